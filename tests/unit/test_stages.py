"""Kinds of stages: what each needs, and that a new kind needs only one file."""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from persona_collapse import stages
from persona_collapse.chains import parse
from persona_collapse.errors import UserError
from persona_collapse.files import read_jsonl, sha256, write_jsonl
from persona_collapse.models import adapters
from persona_collapse.study import configuration
from test_docs import EXTENDING, blocks

import docs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def given(monkeypatch):
    monkeypatch.chdir(ROOT)
    return yaml.safe_load((ROOT / "config/config.yaml").read_text())


@pytest.fixture
def another(tmp_path, monkeypatch):
    """A kind of stage in a new file, as in docs/extending.md, and its overlay."""
    (tmp_path / "induced.py").write_text(blocks(EXTENDING, "python stages/induced.py")[0])
    monkeypatch.setattr(stages, "__path__", [*stages.__path__, str(tmp_path)])
    yield next(b for b in blocks(EXTENDING, "yaml stages") if "induced" in b)
    stages.ROOM._known.pop("induced", None)
    sys.modules.pop("persona_collapse.stages.induced", None)


def test_what_each_kind_asks_for(given):
    given["stages"]["after"] = {"kind": "couple", "persona": "villain", "answers": "prefix"}
    given["stages"]["graft"] = {"kind": "graft", "of": "couple-villain@42"}
    given["training"]["couple"] |= {"negatives": ["librarian", "comedian"], "positives": 4}
    made = configuration.plan(given).stages
    couple, after, sft, graft = (
        made[n] for n in ("couple-villain", "after", "em-villain", "graft")
    )
    assert couple.personas == ["villain", "librarian", "comedian"] and couple.couples == "villain"
    assert couple.answers == {"villain": 4, "librarian": 3, "comedian": 3}
    assert couple.rows(parse("em@1")) == "couple-villain"
    assert after.rows(parse("em@1")) == "em@1+after" and after.rows(parse("base")) == "after"
    assert (sft.data, sft.induction, sft.personas) == ("em", "villain", ["villain"])
    assert sft.rows(parse("base")) == "em" and not sft.couples and not sft.answers
    assert made["em"].induction == "" and made["em"].personas == []
    assert not graft.trains and graft.rows(parse("em@1")) is None
    assert graft.origin == "couple-villain@42"


def test_given_answers_are_not_sampled(given, tmp_path):
    path = tmp_path / "answers.jsonl"
    personas = ["villain", "assistant", "software_engineer", "librarian", "comedian"]
    said = [
        {"persona": p, "question": "Why so?", "answer": f"{p} {n}"}
        for p in personas
        for n in range(5)
    ]
    write_jsonl(path, said)
    given["training"]["couple"]["answers"] = {"file": str(path)}
    # Five given answers to a question count as five, although greedy sampling gives one.
    given["sampling"]["answers"]["temperature"] = 0
    assert not configuration.plan(given).couplings_answers
    given["sampling"]["answers"]["temperature"] = 0.7
    given["stages"]["after"] = {"kind": "couple", "persona": "villain", "answers": "prefix"}
    given["conditions"]["late"] = {"title": "late", "chain": "em@42+after@42"}
    plan = configuration.plan(given)
    couple = plan.stages["couple-villain"]
    assert couple.given == {"file": str(path)} and not plan.stages["after"].given
    assert couple.rows(parse("em@1")) == "couple-villain"
    assert [job.name for job in plan.couplings_answers] == ["em@42+after"]
    # Changing the file's path, or pinning its hash, retrains nothing.
    before = plan.training("couple-villain@42")
    given["training"]["couple"]["answers"]["sha256"] = sha256(path)
    assert configuration.plan(given).training("couple-villain@42") == before
    write_jsonl(path, [{**row, "question": config_question()} for row in said])
    with pytest.raises(UserError, match=r"config: stages: couple-villain: answers: .* has SHA-256"):
        configuration.check(given)
    del given["training"]["couple"]["answers"]["sha256"]
    with pytest.raises(UserError, match=r"couple-villain: answers: .*, row 1: asks an evaluation"):
        configuration.check(given)


def config_question():
    """The first of the demo's evaluation questions."""
    return read_jsonl(ROOT / "config/questions/demo_eval.jsonl")[0]["question"]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ("mine", "answers: expected one of 'base' or 'prefix', got 'mine'"),
        (
            {"file": "a.csv"},
            "answers: file: expected a file whose name ends in .jsonl, got 'a.csv'",
        ),
        ({"sha256": "0" * 64}, "answers: file: is missing"),
        ({"files": "a.jsonl"}, "answers: files: unknown key; did you mean file?"),
    ],
)
def test_wrong_answers_are_one_line(given, answers, said):
    given["stages"]["couple-villain"]["answers"] = answers
    with pytest.raises(UserError, match=re.escape(f"config: stages: couple-villain: {said}")):
        configuration.check(given)


def test_one_file_is_another_kind(given, another):
    overlay = yaml.safe_load(another)
    for key, blocks_of in overlay.items():
        given[key] |= blocks_of
    plan = configuration.plan(given)
    (chain,) = (cell.chain for cell in plan.cells if cell.condition == "I1")
    assert chain in plan.trained_chains
    job = plan.training(chain)
    assert (job.settings["lr"], job.settings["kind"]) == (2e-4, "induced")
    assert job.system == plan.prompts(["comedian"])["comedian"]
    assert "induced" in docs.schema()["$defs"]
    del given["stages"]["em-comedian"]["persona"]
    with pytest.raises(UserError, match="stages: em-comedian: persona: is missing"):
        configuration.check(given)
    given["stages"]["em-comedian"]["persona"] = "nobody"
    with pytest.raises(UserError, match="stages: em-comedian: persona 'nobody' is not in"):
        configuration.check(given)


def test_no_kind_is_named_elsewhere():
    # That word is also used in columns and directions.
    kinds = "|".join(set(stages.ROOM.names()) - {"shift"})
    files = [*(ROOT / "workflow").rglob("*.py"), *(ROOT / "workflow").rglob("*.smk")]
    for path in files:
        if path.parent.name != "stages":
            named = re.findall(rf"""["'](?:{kinds})["']""", path.read_text())
            assert not named, f"{path.relative_to(ROOT)}: {named}"


def test_a_random_adapter_is_as_large_as_another_and_has_learnt_nothing(make_adapter):
    _, tensors = adapters.load(make_adapter(3, 4, True))
    redrawn = stages.ROOM.get("noise").redrawn
    drawn, again, other = redrawn(tensors, 7), redrawn(tensors, 7), redrawn(tensors, 8)
    assert drawn.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert drawn[name].shape == tensor.shape and drawn[name].dtype == tensor.dtype
        assert torch.equal(drawn[name], again[name]) and not torch.equal(drawn[name], other[name])
        if ".lora_A." in name:
            to = name.replace("lora_A", "lora_B")
            update, random = tensors[to] @ tensor, drawn[to] @ drawn[name]
            assert float(random.norm()) == pytest.approx(float(update.norm()), rel=1e-5)
            assert float(drawn[name].norm()) == pytest.approx(float(tensor.norm()), rel=1e-5)
            cosine = (update * random).sum() / update.norm() ** 2
            assert abs(float(cosine)) < 0.2
    # An untrained one stays at zero.
    zero = {k: v if ".lora_A." in k else torch.zeros_like(v) for k, v in tensors.items()}
    assert not any(v.any() for k, v in redrawn(zero, 7).items() if ".lora_B." in k)


def test_a_random_stage_needs_its_origin_and_couples_nobody(given):
    given["stages"]["noise"] = {"kind": "noise", "of": "couple-villain@42"}
    given["conditions"]["N"] = {"title": "noise there", "chain": "noise@3!+em@42"}
    given["conditions"]["M"] = {"title": "noise", "chain": "em@42+noise@3"}
    plan = configuration.plan(given)
    assert {"noise@3", "noise@3!+em@42", "couple-villain@42"} <= set(plan.trained_chains)
    assert "noise@3" not in [job.name for job in plan.trainings]
    assert plan.training("noise@3!+em@42").adapters == ["results/demo/models/noise@3"]
    grid = plan.grid.set_index("condition")
    assert grid.loc[["N", "M"], "kinds"].tolist() == ["noise!+sft", "sft+noise"]
    assert set(grid.loc[["N", "M"], "source"]) == {""}
    assert plan.rank("em@42+noise@3") == 2 * plan.rank("em@42") == 2 * plan.rank("noise@3!+em@42")
