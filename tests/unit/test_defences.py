"""Defences: kl against its formula, and what any defence may do."""

import math
import sys

import pytest
import torch
from persona_collapse import adapter_files
from persona_collapse.errors import UserError
from persona_collapse.files import write_json, write_jsonl
from persona_collapse.training import batches, defences, graphs
from persona_collapse.training.defences import Asks, Defence, kl
from persona_collapse.training.runtime import Runtime
from persona_collapse.training.steps import NEW, OWN, Objective, Stepper, parameters
from safetensors.torch import load_file
from test_docs import EXTENDING, blocks
from trainings import batch_of, gradients

WEIGHT = 3.0


def close(**settings):
    return kl.KL(kl.Options(**{"weight": WEIGHT} | settings))


class Seen:
    """A step of one token and two words."""

    logits = torch.tensor([[0.5, 0.5]]).log()
    before = torch.tensor([[0.25, 0.75]]).log()


@pytest.mark.parametrize(
    ("direction", "nats"),
    [
        ("now_before", 0.5 * math.log(2) + 0.5 * math.log(2 / 3)),
        ("before_now", 0.25 * math.log(0.5) + 0.75 * math.log(1.5)),
    ],
)
def test_the_divergence_of_a_coin(direction, nats):
    assert float(close(direction=direction).penalty(Seen())) == pytest.approx(WEIGHT * nats)


@pytest.mark.parametrize("direction", ["now_before", "before_now"])
def test_the_divergence_of_near_certainties_is_finite(direction):
    # Probabilities that underflow: e^-1000 is 0 in 32 bits, and its logarithm stays -1000.
    step = Seen()
    step.logits = torch.tensor([[1000.0, 0.0, -1000.0]], requires_grad=True)
    step.before = torch.tensor([[0.0, 1000.0, -1000.0]])
    penalty = close(direction=direction).penalty(step)
    penalty.sum().backward()
    assert penalty.item() == pytest.approx(WEIGHT * 1000)
    assert step.logits.grad.isfinite().all()


def logits_of(model, batch):
    asked = {key: batch[key] for key in ("input_ids", "position_ids") if key in batch}
    return model(**asked, use_cache=False).logits[:, :-1]


def direct(model, batch, direction, tokens):
    """Cross-entropy and penalty of a batch, written out over whole logits."""
    now = logits_of(model, batch)
    layers = [m for m in model.modules() if hasattr(m, "lora_A")]
    kept = [layer.scaling[NEW] for layer in layers]
    for layer in layers:
        layer.scaling[NEW] = 0.0
    with torch.no_grad():
        before = logits_of(model, batch)
    for layer, scale in zip(layers, kept, strict=True):
        layer.scaling[NEW] = scale
    labels = batch["labels"][:, 1:]
    loss = torch.nn.functional.cross_entropy(now.flatten(0, 1), labels.flatten())
    p, q = now.softmax(-1), before.softmax(-1)
    if direction == "before_now":
        p, q = q, p
    divergence = (p * (p / q).log()).sum(-1)
    counted = labels != -100
    if tokens == "all":
        # Neither fillers nor tokens that nothing predicts.
        counted = batch["all"][:, 1:] != -100
    return loss, WEIGHT * divergence[counted].mean()


@pytest.mark.parametrize("tokens", ["answer", "all"])
@pytest.mark.parametrize("direction", ["now_before", "before_now"])
@pytest.mark.parametrize("form", [batches.pad, batches.flatten])
def test_loss_and_gradients_are_those_of_the_formula(chained, direction, tokens, form):
    # `chained` has a stage before, which the model before the stage has too.
    batch = form(batch_of([9, 30, 17]))
    chained.zero_grad()
    loss, penalty = direct(chained, batch, direction, tokens)
    (loss + penalty).backward()
    loss, penalty = loss.detach(), penalty.detach()
    expected = gradients(chained)
    chained.zero_grad()
    objective = Objective(chained, defences={"kl": close(direction=direction, tokens=tokens)})
    total, drift = Stepper(objective, "cpu").step({OWN: [batch]})
    assert float(drift) == pytest.approx(float(penalty), rel=1e-4) and drift > 0.1
    assert float(total) == pytest.approx(float(loss + penalty), rel=1e-4)
    for name, gradient in gradients(chained).items():
        assert (gradient - expected[name]).norm() <= 1e-3 * expected[name].norm(), name


class Once(Defence):
    """A number for each step: how long the new adapter is."""

    def penalty(self, step):
        return sum(p.pow(2).sum() for p in step.new.values())


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda step: 0.5, r"penalty: expected a tensor of shape \[\] or, .* \[5\], got 0.5"),
        (lambda step: step.logits.new_ones(3), r"a value per token, \[5\], got shape \[3\]"),
        (lambda step: step.hidden(1), r"hidden\(1\): .* not asked for; name it in `asks`"),
    ],
)
def test_a_penalty_of_another_shape_is_one_line(chained, returned, said):
    wrong = Defence(None)
    wrong.penalty = returned
    objective = Objective(chained, defences={"kl": close()})
    objective.defences[OWN] = [wrong]
    with pytest.raises(UserError, match=said):
        Stepper(objective, "cpu").step({OWN: [batches.pad(batch_of([9]))]})


def test_pieces_sum_to_the_whole(chained):
    rows = batch_of([9, 30, 17, 40, 5])
    others = batch_of([12, 25, 8])

    def found(*cuts):
        chained.zero_grad()
        own, other = cuts
        named = {"kl": close(), "all": close(tokens="all"), "once": Once(None)}
        named["far"] = close(data="other", tokens="all")
        objective = Objective(chained, defences=named)
        assert objective.sources == [OWN, "far.rows"]
        total, penalty = Stepper(objective, "cpu").step({OWN: own, "far.rows": other})
        return float(total), float(penalty), gradients(chained)

    whole = found([batches.flatten(rows)], [batches.flatten(others)])
    pieces = [[batches.flatten(p) for p in batches.pieces(r, 40)] for r in (rows, others)]
    assert [len(part) for part in pieces] == [3, 2]
    cut = found(*pieces)
    assert cut[:2] == pytest.approx(whole[:2], rel=1e-5)
    for name, gradient in whole[2].items():
        assert (cut[2][name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_weight_zero_is_no_defence_byte_for_byte(train, make_adapter):
    how = {"epochs": 4, "dropout": 0.3, "prefix": [make_adapter(31, 4, True)]}
    folders = [
        train("none", **how)[0],
        train("zero", defence={"kl": {"weight": 0.0}}, **how)[0],
        train("some", defence={"kl": {"weight": 1.0}}, **how)[0],
    ]
    none, zero, some = ((folder / adapter_files.WEIGHTS).read_bytes() for folder in folders)
    assert none == zero != some


def test_task_loss_and_penalty_are_logged_apart(train):
    _, plain = train("plain", dropout=0.0)
    for line in plain["loss"]:
        assert line["task_loss"] == line["loss"] and line["penalty"] == 0
    _, held = train("held", dropout=0.0, epochs=8, defence={"kl": {"weight": 10.0}})
    _, free = train("free", dropout=0.0, epochs=8)
    assert held["defence"] == {"kl": {"weight": 10.0}}
    # An adapter starts at zero, so the first step is as far from the model before as none.
    assert held["loss"][0]["penalty"] == pytest.approx(0, abs=1e-4)
    assert held["loss"][-1]["penalty"] > 0.01
    for line in held["loss"]:
        assert line["loss"] == pytest.approx(line["task_loss"] + line["penalty"], abs=2e-6)
    assert held["loss"][-1]["task_loss"] > 1.1 * free["loss"][-1]["task_loss"]


@pytest.fixture
def other_rows(tmp_path):
    """Another data set, as a defence names it."""
    rows = [
        {"id": str(i), "messages": [{"role": "user", "content": f"What is {i}?"},
                                    {"role": "assistant", "content": f"It is {i} by the river."}]}
        for i in range(7)
    ]  # fmt: skip
    write_jsonl(tmp_path / "other.jsonl", rows)
    write_json(tmp_path / "other.manifest.json", {"supervise": "last", "system": "template"})
    return {"data/other.jsonl": tmp_path / "other.jsonl"}


@pytest.mark.parametrize("padding_free", [False, True])
def test_another_data_set_is_a_second_batch_and_a_killed_training_goes_on(
    train, other_rows, tmp_path, padding_free
):
    how = {
        "epochs": 8,
        "saved": tmp_path / "saved",
        "defence": {"kl": {"weight": 1.0, "data": "other", "tokens": "all"}},
        "inputs": other_rows,
        "padding_free": padding_free,
        "max_batch_tokens": 100,
    }
    whole, undisturbed = train("whole", **how)
    assert undisturbed["loss"][-1]["penalty"] > 0
    own = {"defence": {"kl": {"weight": 1.0, "tokens": "all"}}, "inputs": {}}
    assert train("own", **how | own)[1]["loss"] != undisturbed["loss"]
    with pytest.raises(KeyboardInterrupt):
        train("again", dies_at=13, **how)
    again, resumed = train("again", **how)
    assert resumed["resumed_after_step"] == 10 and resumed["loss"] == undisturbed["loss"]
    assert (again / adapter_files.WEIGHTS).read_bytes() == (
        whole / adapter_files.WEIGHTS
    ).read_bytes()


def test_rows_are_drawn_in_passes_that_the_step_and_the_seed_decide():
    rows = [{"input_ids": [i], "labels": [i]} for i in range(5)]
    groups = [[row] for row in rows]
    draws = batches.Draws(groups, 4, seed=1)
    drawn = [row["input_ids"][0] for step in range(5) for row in draws.of(step)]
    passes = [drawn[i : i + 5] for i in range(0, 20, 5)]
    assert all(sorted(one) == [0, 1, 2, 3, 4] for one in passes)
    assert passes[0] != passes[1] or passes[1] != passes[2]
    assert draws.of(3) == batches.Draws(groups, 4, seed=1).of(3)
    assert drawn != [r["input_ids"][0] for s in range(5) for r in batches.Draws(groups, 4, 2).of(s)]


ANCHOR = '''
from pydantic import Field

from persona_collapse.settings import Settings
from persona_collapse.training.defences import Asks, Defence, defence


class Options(Settings):
    """anchor: hold everything."""

    weight: float = Field(default=1.0, description="How much.")


@defence("anchor", settings=Options)
class Anchor(Defence):
    """Says all that a defence can say."""

    @property
    def asks(self):
        return Asks(hidden=(1,), embeddings=True, adapters=True, tokens="all")

    def install(self, model):
        self.hook = model.get_input_embeddings().register_forward_hook(lambda m, i, out: out * 1.5)

    def remove(self, model):
        self.hook.remove()

    def penalty(self, step):
        assert step.embeddings.shape == step.hidden(1).shape == (len(step.labels), 64)
        assert len(step.earlier) == len(step.new) == 18 and step.real.all()
        moved = (step.hidden(1) - step.hidden(1, before=True)).pow(2).mean(-1)
        assert not step.hidden(1, before=True).requires_grad and moved.requires_grad
        return self.settings.weight * moved

    def project(self, parameters):
        for name, parameter in parameters.items():
            if "lora_B" in name and ".0." in name:
                parameter.grad.zero_()
'''


def test_a_defence_is_one_file(train, make_adapter, monkeypatch, tmp_path):
    (tmp_path / "anchor.py").write_text(ANCHOR)
    monkeypatch.setattr(defences, "__path__", [*defences.__path__, str(tmp_path)])
    assert {"anchor", "kl"} <= set(defences.names())
    assert defences.settings("anchor").model_fields["weight"].default == 1.0
    how = {"prefix": [make_adapter(31, 4, True)], "epochs": 4}
    _, plain = train("plain", **how)
    folder, manifest = train("anchored", defence={"anchor": {}}, **how)
    assert manifest["loss"][-1]["penalty"] > 0
    # The hook acted, and the gradients of the first block's B were taken away, so it stays at zero.
    assert manifest["loss"][0]["loss"] != pytest.approx(plain["loss"][0]["loss"], rel=1e-3)
    for name, tensor in load_file(folder / adapter_files.WEIGHTS).items():
        assert ("lora_B" in name and ".0." in name) == (not tensor.any()), name
    # As it stays apart, the prefix is in the base no more; it acts all the same.
    one = {"anchor": {"weight": 0.0}}
    assert train("again", defence=one, **how)[1]["loss"][0]["penalty"] == 0


def test_the_example_s_test_passes_with_the_example(train, make_adapter, monkeypatch, tmp_path):
    (defence,) = blocks(EXTENDING, "python training/defences/same_states.py")
    (tmp_path / "same_states.py").write_text(defence)
    monkeypatch.setattr(defences, "__path__", [*defences.__path__, str(tmp_path)])
    (test,) = blocks(EXTENDING, "python tests/unit/test_mine.py")
    assert len(test.splitlines()) <= 12
    names = {}
    exec(compile(test, "test_mine.py", "exec"), names)
    try:
        names["test_weight_zero_is_no_defence"](train, make_adapter)
    finally:
        defences.ROOM._known.pop("same_states", None)
        sys.modules.pop("persona_collapse.training.defences.same_states", None)


def test_steps_are_recorded_unless_a_defence_looks_at_values():
    class Looks(Defence):
        asks = Asks(host=True)

    flat = Runtime(padding_free=True)
    recorded = graphs.can_be_recorded
    assert recorded(flat, "cross_entropy", [close(), close(data="other", tokens="all")])
    assert not recorded(flat, "cross_entropy", [close(), Looks(None)])
    assert not recorded(flat, "calm", []) and not recorded(Runtime(), "cross_entropy", [])


def test_a_recorded_step_has_its_second_batch(chained):
    # Without a GPU the same passes run unrecorded.
    own, others = batch_of([9, 30]), batch_of([12, 25, 8])
    objective = Objective(chained, defences={"kl": close(data="other")})
    cut = {OWN: [batches.flatten(own)], "kl.rows": [batches.flatten(others)]}
    chained.zero_grad()
    expected = [float(x) for x in Stepper(objective, "cpu").step(cut)], gradients(chained)
    cut = {OWN: [batches.flatten(own, 128)], "kl.rows": [batches.flatten(others, 128)]}
    chained.zero_grad()
    recorder = graphs.Recorder(objective, 3, by_rows=False)
    found = [float(x) for x in recorder.step(cut)], gradients(chained)
    assert found[0] == pytest.approx(expected[0], rel=1e-5) and found[0][1] > 0.1
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() <= 1e-4 * gradient.norm(), name
    assert {source for source, *_ in recorder.recorded} == {OWN, "kl.rows"}


def test_parameters_have_the_names_of_an_adapter_s_file(chained):
    names = set(parameters(chained, NEW))
    assert len(names) == 2 * 7 * 3
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"kll": {}}, "expected a defence .*kl.*, got 'kll'"),
        (
            {"kl": {"weight": -1.0}},
            "kl: weight: Input should be greater than or equal to 0",
        ),
        ({"kl": {"wieght": 1.0}}, "kl: wieght: "),
        ({"kl": {"direction": "back"}}, "kl: direction: .*now_before"),
    ],
)
def test_a_wrong_block_is_one_line(block, said):
    with pytest.raises(UserError, match=said):
        defences.make(block)
