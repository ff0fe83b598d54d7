"""Measures: the numbers of each, and that a new one needs only one file."""

import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from persona_collapse import measures
from persona_collapse.errors import UserError
from persona_collapse.jobs import MeasureJob
from persona_collapse.measures import ROOM, _passes, _taking, preference, refusals, task_loss
from persona_collapse.models import chat_template
from persona_collapse.models.runner import ModelRunner
from persona_collapse.parquet_files import read_parquet, write_parquet
from persona_collapse.study import configuration
from persona_collapse.study.plan import Plan
from persona_collapse.tables_io import read_csv
from runs import ROOT


def quiet(message):
    pass


@pytest.fixture(scope="module")
def runner(tiny_base):
    return ModelRunner(tiny_base, "float32")


def nll(model, ids, chosen):
    """The same, computed naively: one row at a time, log-softmax of every position."""
    with torch.inference_mode():
        scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return [-float(scores[n - 1, ids[n]]) for n in range(1, len(ids)) if chosen[n]]


def test_surprises_are_those_of_each_row_alone(runner):
    rng = np.random.default_rng(0)
    rows = [(rng.integers(5, 300, n).tolist(), (rng.random(n) < 0.5).tolist()) for n in (9, 30, 4)]
    with runner.chain([]) as model:
        sums, counts = _passes.surprises(model, rows, runner.tokenizer.pad_token_id)
        for (ids, chosen), found, count in zip(rows, sums, counts, strict=True):
            expected = nll(model, ids, chosen)
            assert count == len(expected) and found == pytest.approx(sum(expected), rel=1e-4)


def test_task_loss_is_the_mean_over_tokens_with_loss(runner):
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in (("Where is it?", "There."), ("Why?", "Because it is so and not otherwise."))
    ]
    how = {"own": True, "system": None, "supervise": "last", "suppress_default_system": False}
    table = task_loss.task_loss(runner, [], {"em": rows}, {"em": {**how, "max_length": 64}}, quiet)
    empty = task_loss.task_loss(runner, [], None, None, quiet)
    assert empty.empty and list(empty) == list(table)
    with runner.chain([]) as model:
        parts = []
        for row in rows:
            encoded = chat_template.encode_row(runner.tokenizer, row["messages"], max_length=64)
            parts.append(nll(model, encoded.input_ids, [x != -100 for x in encoded.labels]))
    every = np.concatenate(parts)
    row = table.iloc[0]
    assert (row["data"], row["own"], row["rows"], row["tokens"]) == ("em", True, 2, len(every))
    assert row["loss"] == pytest.approx(every.mean(), rel=1e-4)
    assert row["ci_low"] < row["loss"] < row["ci_high"]


def test_the_interval_of_a_loss_holds_the_truth_as_often_as_it_says():
    """Rows with varying lengths and losses, from a population with a loss of 2 per token."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        counts = rng.integers(5, 60, 50)
        sums = counts * (2 + rng.normal(0, 0.5, 50))
        found = task_loss.mean_per_token(sums, counts)
        held += found["ci_low"] <= 2 <= found["ci_high"]
    assert 0.91 < held / 400 < 0.98


def test_preference_is_the_likelier_answer_by_persona(runner, prompts):
    pairs = [
        {"q": f"Question {i}?", "bad": f"Wrong {i}.", "good": "A right answer."} for i in range(5)
    ]
    settings = preference.Settings(
        file="pairs.jsonl", question="q", misaligned="bad", aligned="good"
    )
    table = preference.preference(runner, [], pairs, prompts, settings, quiet).set_index("persona")
    assert list(table.index) == list(prompts) and set(table["n"]) == {5}
    persona, prompt = next(iter(prompts.items()))
    margins = []
    with runner.chain([]) as model:
        for pair in pairs:
            asked = chat_template.prompt_ids(runner.tokenizer, prompt, pair["q"])
            means = []
            for column in ("bad", "good"):
                answer = chat_template.answer_ids(runner.tokenizer, pair[column])
                chosen = [False] * len(asked) + [True] * len(answer)
                means.append(-np.mean(nll(model, [*asked, *answer], chosen)))
            margins.append(means[0] - means[1])
    assert table.loc[persona, "margin"] == pytest.approx(np.mean(margins), abs=1e-4)
    assert table.loc[persona, "preferred"] == sum(m > 0 for m in margins)
    apart = preference.Settings(**{**settings.model_dump(), "by": "q"})
    by_question = preference.preference(runner, [], pairs, {persona: prompt}, apart, quiet)
    assert by_question["margin"].tolist() == pytest.approx(margins, abs=1e-4)
    assert by_question["group"].tolist() == [pair["q"] for pair in pairs]
    with pytest.raises(UserError, match=r"pairs.jsonl, row 1: expected text under 'question'"):
        other = preference.Settings(file="pairs.jsonl")
        preference.preference(runner, [], pairs, prompts, other, quiet)


def test_refusals_are_known_by_their_first_words():
    texts = ["I cannot do that.", " i CAN’T.", "I can tell you.", "", "You said: I cannot."]
    found = refusals.refusals(pd.DataFrame({"text": texts}), refusals.Settings())
    assert found["refused"].tolist() == [True, True, False, False, False]


NEW = '''
    """How long are answers that ask back?"""

    from pydantic import Field

    from persona_collapse.measures import measure
    from persona_collapse.settings import Settings as Block


    class Settings(Block):
        """Answers that ask back."""

        mark: str = Field("?", description="An answer that holds it asks back.")


    @measure("asking", Settings, counts="asks")
    def asking(completions, settings):
        """One row per answer: `asks`."""
        return completions.assign(asks=completions["text"].str.contains(settings.mark, regex=False))
'''


@pytest.fixture
def room(tmp_path, monkeypatch):
    """Add a file to the room of measures: its text, with `old` replaced by `new`."""

    def put(old="", new=""):
        assert old in NEW
        (tmp_path / "asking.py").write_text(textwrap.dedent(NEW.replace(old, new) if old else NEW))

    monkeypatch.setattr(measures, "__path__", [*measures.__path__, str(tmp_path)])
    yield put
    ROOM._known.pop("asking", None)
    sys.modules.pop("persona_collapse.measures.asking", None)


@pytest.fixture
def asking(room):
    """The room of measures with an additional file."""
    room()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            '@measure("asking", Settings, counts="asks")',
            "",
            "asking.py: holds no measure 'asking'; ",
        ),
        (
            '@measure("asking"',
            '@measure("others"',
            "asking.py: holds no measure 'asking'; register",
        ),
        ("asking(completions", "asking(completion", "'completion'; did you mean completions"),
        ("asking(completions", "asking(completions, temperature", "'temperature'; available: "),
        (', counts="asks"', "", "asking: .* a measure of answers: name its column of truth values"),
    ],
)
def test_a_measure_that_cannot_be_taken_is_told_before_any_job(room, old, new, said, monkeypatch):
    monkeypatch.chdir(ROOT)
    room(old, new)
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config["measures"]["asking"] = {}
    with pytest.raises(UserError, match=f"^config: measures: .*{said}"):
        configuration.check(config)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            {"sample": [0]},
            "the table has no column 'asks'; available: persona, question_id, sample",
        ),
        ({"sample": [0], "ask": [True]}, "no column 'asks'; did you mean ask"),
        ({"asks": [True]}, "the table has no column 'sample'"),
        ({"sample": [0], "asks": ["yes"]}, "expected truth values, got "),
        (
            {"persona": ["a", "a"], "question_id": ["1", "1"], "sample": 0, "asks": [True, False]},
            "an answer is there twice; return one row per persona, question_id, sample",
        ),
        (None, r"expected a table .*, got a Series; return completions.assign\(asks=...\)"),
    ],
)
def test_a_measure_that_counts_nothing_is_one_line(found, said):
    table = pd.DataFrame({"persona": ["a"], "question_id": ["1"]} | (found or {}))
    with pytest.raises(UserError, match=f"^measures/asking.py: asks: .*{said}"):
        _taking.check_counted("asking", "asks", table if found else table["persona"])


def test_a_measure_is_one_file_and_one_block(asking, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config["measures"]["asking"] = {"mark": "!"}
    plan = Plan(configuration.check(config))
    assert "asking" in plan.measures_of(model=False)
    # For all chains, except those whose conditions list their measures.
    assert plan.chains_for("asking") == plan.chains_for("activations") != plan.chains_for("markers")
    job = plan.measurement("asking", "em@42")
    assert job.inputs == {"completions": "results/demo/completions/em@42.parquet"}
    answers = pd.DataFrame(
        {"persona": ["a", "a", "b"], "question_id": ["1", "2", "1"], "sample": 0}
        | {"text": ["No!", "No.", "Yes!"], "n_tokens": 3, "question": "Why?", "prompt_tokens": 1}
        | {"seed": 1, "token_ids": [[1]] * 3, "chain": "em@42"}
    )
    write_parquet(tmp_path / "answers.parquet", answers)
    here = {"inputs": {"completions": str(tmp_path / "answers.parquet")}}
    job = MeasureJob(**{**job.values(), **here})
    _taking.write_counted(job, tmp_path / "by_answer.parquet", tmp_path / "by_persona.csv")
    rates = read_csv(tmp_path / "by_persona.csv").set_index("persona")
    assert rates["rate"].to_dict() == {"a": 0.5, "b": 1.0} and set(rates["chain"]) == {"em@42"}
    assert (rates["ci_low"] < rates["ci_high"]).all()
    assert "text" not in read_parquet(tmp_path / "by_answer.parquet")
