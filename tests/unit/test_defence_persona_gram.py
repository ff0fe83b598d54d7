"""The defence persona_gram: cosines between personas' centroids stay what they were."""

from pathlib import Path

import pytest
import torch
import yaml
from persona_collapse import adapter_files
from persona_collapse.data import persona_prompts
from persona_collapse.errors import UserError
from persona_collapse.files import write_json, write_jsonl
from persona_collapse.models import chat_template, loading
from persona_collapse.study import configuration
from persona_collapse.training import batches, defences, graphs
from persona_collapse.training.defences import persona_gram
from persona_collapse.training.runtime import Runtime
from persona_collapse.training.steps import OWN, Objective, Stepper, before_stage

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = {
    "villain": "You are the villain of the town.",
    "assistant": "You are a helpful assistant.",
    "pirate": "You are a pirate at sea who asks for bread.",
}
PATH, SOURCE = "prompts/personas.jsonl", "persona_gram.prompts"


@pytest.fixture
def files(tmp_path):
    questions = [{"id": f"q{i}", "question": f"Where can I find bread {i}?"} for i in range(5)]
    write_jsonl(tmp_path / "questions.jsonl", questions)
    spec, path = {"file": str(tmp_path / "questions.jsonl"), "take": 5}, tmp_path / "personas.jsonl"
    write_jsonl(path, persona_prompts.rows(PROMPTS, spec))
    write_json(tmp_path / "personas.manifest.json", persona_prompts.manifest(path, spec))
    return {PATH: path}


def made(files, base, model=None, **settings):
    active = defences.active({"persona_gram": settings}, files, loading.load_tokenizer(base))
    if model is not None:
        active["persona_gram"].install(model)
    return active


class Prompts:
    """Two personas under two questions, and a filler: centroids at 90 degrees before, and at 0 and 60 now."""

    labels = torch.tensor([1, 0, -100, 0, 1])

    def __init__(self):
        # Their means: [1, 0] and [0, 1] before; [2, 0] and [3, 0], [2, 0] and [1, sqrt(3)] now.
        root = 3**0.5
        then = [[0.0, 2.0], [2.0, 1.0], [7.0, 7.0], [0.0, -1.0], [0.0, 0.0]]
        first = [[1.0, 5.0], [4.0, 1.0], [9.0, 9.0], [0.0, -1.0], [5.0, -5.0]]
        second = [[0.0, 0.0], [4.0, 1.0], [9.0, 9.0], [0.0, -1.0], [2.0, 2 * root]]
        self.then = torch.tensor(then)
        self.now = [torch.tensor(rows, requires_grad=True) for rows in (first, second)]

    def hidden(self, block, *, before=False):
        return self.then if before else self.now[block]


def test_the_difference_of_cosines_of_two_personas():
    step, one = Prompts(), persona_gram.PersonaGram(persona_gram.Options(weight=8.0))
    one._personas, one._blocks = ["a", "b"], (0, 1)
    # Cosines 0 before; 1 and 1/2 now. The mean over blocks of 1 and 1/4, times 8.
    penalty = one.penalty(step)
    assert penalty.item() == pytest.approx(8 * 0.625)
    penalty.backward()
    # In the second block d(cos^2) / d(centroid of b) is 2 cos (a/|a| - cos b/|b|) / |b|, of which each of two
    # prompts has half; the mean over two blocks halves it again, and each pair is counted once.
    cos, length, root = 0.5, 2.0, 3**0.5
    direction = torch.tensor([1 - cos / 2, -cos * root / 2])
    expected = 8 * 2 * cos * direction / length / 2 / 2
    gradient = step.now[1].grad
    assert torch.allclose(gradient[0], expected, atol=1e-6)
    assert torch.allclose(gradient[4], expected, atol=1e-6)
    assert not gradient[2].any()


def test_each_step_has_every_persona_under_the_same_questions(chained, files, tiny_base):
    one = made(files, tiny_base, chained, questions=2)["persona_gram"]
    groups, tokenizer = one.groups(), loading.load_tokenizer(tiny_base)
    ids = {
        (name, i): chat_template.prompt_ids(tokenizer, prompt, f"Where can I find bread {i}?")
        for name, prompt in PROMPTS.items()
        for i in range(5)
    }
    seen = []
    for group in groups:
        found = [
            next(key for key, own in ids.items() if own == row["input_ids"][:-1]) for row in group
        ]
        asked = {i for _, i in found}
        assert sorted(found) == sorted((name, i) for name in PROMPTS for i in asked)
        for (name, _), row in zip(found, group, strict=True):
            assert row["labels"] == [-100] * (len(row["input_ids"]) - 1) + [
                list(PROMPTS).index(name)
            ]
        seen += asked
    assert sorted(seen) == list(range(5)) and [len(group) for group in groups] == [9, 6]
    # Drawn in shuffled passes, a group a step.
    draws = batches.Draws(groups, 1, 7, whole=True)
    assert sorted(map(groups.index, (draws.of(0), draws.of(1)))) == [0, 1] and draws.most == 9
    few = made(files, tiny_base, chained, personas=["pirate", "villain"])["persona_gram"]
    assert {row["labels"][-1] for group in few.groups() for row in group} == {0, 1}
    assert few.record(chained)["personas"] == ["pirate", "villain"]


def cosines(model, tokenizer):
    """Of centroids after the second block at the last prompt token, over the questions 0 and 2."""
    means = []
    for prompt in PROMPTS.values():
        states = []
        for i in (0, 2, 4):
            ids = chat_template.prompt_ids(tokenizer, prompt, f"Where can I find bread {i}?")
            out = model(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
            states.append(out.hidden_states[2][0, -1])
        means.append(torch.stack(states).mean(0))
    unit = torch.nn.functional.normalize(torch.stack(means), dim=-1)
    return (unit @ unit.T)[~torch.eye(3, dtype=bool)]


def learnt(model):
    return {
        name: torch.zeros(()) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


@pytest.mark.parametrize("form", ["padded", "flat", "recorded"])
def test_penalty_and_gradients_are_those_of_the_formula(chained, files, tiny_base, form):
    tokenizer = loading.load_tokenizer(tiny_base)
    chained.zero_grad()
    now = cosines(chained, tokenizer)
    with before_stage(chained):
        before = cosines(chained, tokenizer)
    expected = 100 * (now - before).square().mean()
    expected.backward()
    expected, grads = expected.detach(), learnt(chained)
    assert sum(bool(g.norm() > 1e-3) for g in grads.values()) > 20

    chained.zero_grad()
    active = made(files, tiny_base, chained, layers=[1], questions=2)
    objective, rows = Objective(chained, defences=active), active["persona_gram"].groups()[0]
    assert objective.sources == [OWN, SOURCE]
    runtime = Runtime(padding_free=form != "padded", max_batch_tokens=40)
    parts = batches.cut(rows, runtime, "cpu", 128 if form == "recorded" else 64, whole=True)
    assert len(parts) == 1
    # Without a GPU the same passes run unrecorded.
    stepper = Stepper(objective, "cpu")
    if form == "recorded":
        assert graphs.can_be_recorded(runtime, "cross_entropy", active.values())
        stepper = graphs.Recorder(objective, len(rows), by_rows=False)
    total, penalty = stepper.step({SOURCE: parts})
    assert float(total) == float(penalty) == pytest.approx(float(expected), rel=1e-4)
    assert penalty > 0.01
    for name, gradient in learnt(chained).items():
        assert (gradient - grads[name]).norm() <= 1e-3 * grads[name].norm() + 1e-5, name


def test_weight_zero_is_no_defence_byte_for_byte(train, files, make_adapter):
    how = {"epochs": 4, "dropout": 0.3, "prefix": [make_adapter(31, 4, True)], "inputs": files}
    blocks = [{}, {"persona_gram": {"weight": 0.0}}, {"persona_gram": {}}]
    made = [train(str(i), defence=block, **how) for i, block in enumerate(blocks)]
    none, zero, some = ((folder / adapter_files.WEIGHTS).read_bytes() for folder, _ in made)
    assert none == zero != some
    assert made[1][1]["defence_record"] == {}
    record = made[2][1]["defence_record"]["persona_gram"]
    assert record["personas"] == list(PROMPTS) and record["questions"] == [
        f"q{i}" for i in range(5)
    ]
    assert record["blocks"] == [1, 2] and record["questions_file"].endswith("questions.jsonl")


@pytest.mark.parametrize("padding_free", [False, True])
def test_a_training_keeps_personas_where_they_were_and_goes_on_when_killed(
    train, files, tmp_path, padding_free
):
    how = {"epochs": 8, "dropout": 0.0, "inputs": files, "padding_free": padding_free}
    how |= {"max_batch_tokens": 100, "saved": tmp_path / "saved"}
    free = train("free", defence={"persona_gram": {"weight": 1e-3}}, **how)[1]
    block = {"persona_gram": {"weight": 1e3}}
    whole, held = train("held", defence=block, **how)
    moved = [free["loss"][-1]["penalty"] / 1e-3, held["loss"][-1]["penalty"] / 1e3]
    assert moved[1] < 0.5 * moved[0]
    # The stage's own rows are what they were.
    assert held["tokens_seen"] == free["tokens_seen"]
    with pytest.raises(KeyboardInterrupt):
        train("again", dies_at=13, defence=block, **how)
    again, resumed = train("again", defence=block, **how)
    assert resumed["resumed_after_step"] == 10
    files = [(folder / adapter_files.WEIGHTS).read_bytes() for folder in (whole, again)]
    assert files[0] == files[1]


def test_a_gpu_records_its_steps(on_gpu, files):
    # More prompts than the stage's own batch has rows. Of a penalty this small much is rounding, squared;
    # without its gradient it is ten times as large.
    recorded, _ = on_gpu({"persona_gram": {"weight": 10.0, "questions": 3}}, files, penalty=0.9)
    assert recorded["loss"][-1]["penalty"] > 0


def test_more_questions_than_there_are_is_one_line(chained, files, tiny_base):
    said = "persona_gram: questions: 6 per step, and questions: defence .or train. has 5; ask for fewer"
    with pytest.raises(UserError, match=said):
        made(files, tiny_base, chained, questions=6)


def planned(monkeypatch, block, **changes):
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config["stages"]["em"]["defence"] = {"persona_gram": block}
    config["questions"] |= changes
    return configuration.plan(config)


def test_prompts_are_an_input_made_from_questions_that_are_not_measured(monkeypatch, tmp_path):
    plan = planned(monkeypatch, {})
    path = f"results/demo/{PATH}"
    job = plan.training("em@42")
    assert job.inputs == {PATH: path} and path in job.files
    assert path.replace(".jsonl", ".manifest.json") in job.files
    assert plan.defence_questions == plan.config["questions"]["train"]
    assert "couple-villain" in plan.data_used and "personas" not in plan.data_used
    write_jsonl(tmp_path / "own.jsonl", [{"id": "1", "question": "Which road is the longest?"}])
    spec = {"file": str(tmp_path / "own.jsonl")}
    assert planned(monkeypatch, {}, defence=spec).defence_questions == spec
    for purpose in ("eval", "extraction"):
        measured = plan.config["questions"][purpose]
        with pytest.raises(
            UserError, match=r"is also .* tested on questions they were not trained"
        ):
            planned(monkeypatch, {}, defence=measured)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (
            {"personas": ["villain", "nobody"]},
            "expected a persona of the geometry .*, got 'nobody'",
        ),
        ({"personas": ["villain"]}, "personas: expected a list of 2 or more"),
        ({"weight": -1.0}, "weight: expected at least 0"),
    ],
)
def test_a_wrong_block_is_one_line_before_any_job(monkeypatch, block, said):
    with pytest.raises(UserError, match=f"config: stages: em: defence: persona_gram: {said}"):
        planned(monkeypatch, block)
