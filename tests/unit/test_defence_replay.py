"""The defence replay: other rows beside the stage's own, with the usual loss."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch
import yaml
from persona_collapse import adapter_files
from persona_collapse.errors import UserError
from persona_collapse.files import write_json, write_jsonl
from persona_collapse.study import configuration
from persona_collapse.training import batches, graphs
from persona_collapse.training.defences import replay
from persona_collapse.training.runtime import Runtime
from persona_collapse.training.steps import OWN, Objective, Stepper
from trainings import batch_of, gradients, loss_of

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "replay.rows"


def made(**settings):
    return replay.Replay(replay.Options(data="other", **settings))


class Coin:
    """A step of two tokens and two words, and one of filler."""

    logits = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5]]).log()
    labels = torch.tensor([0, 1, -100])


def test_the_surprise_of_a_coin():
    expected = [3 * -torch.tensor(p).log().item() for p in (0.5, 0.75)]
    assert made(weight=3.0).penalty(Coin()).tolist() == pytest.approx([*expected, 0.0])


def test_with_weight_one_it_is_the_loss_of_mixed_rows(chained):
    own, other = batch_of([9, 30, 17]), batch_of([41, 8])
    sizes = [batches.count(rows)["supervised_tokens"] for rows in (own, other)]
    mixed = loss_of(chained, [batches.flatten([*own, *other])])
    expected = gradients(chained)
    chained.zero_grad()
    objective = Objective(chained, defences={"replay": made(weight=1.0)})
    total, replayed = Stepper(objective, "cpu").step(
        # However each is cut.
        {OWN: [batches.flatten(own)], SOURCE: [batches.flatten([row]) for row in other]}
    )
    factor = sum(sizes) / sizes[0]
    assert sizes[0] != sizes[1] and float(total) == pytest.approx(factor * float(mixed), rel=1e-5)
    alone = loss_of(chained, [batches.flatten(other)])
    assert float(replayed) == pytest.approx(float(alone) * sizes[1] / sizes[0], rel=1e-5)
    chained.zero_grad()
    Stepper(objective, "cpu").step({OWN: [batches.pad(own)], SOURCE: [batches.pad(other)]})
    for name, gradient in gradients(chained).items():
        wanted = factor * expected[name]
        assert (gradient - wanted).norm() <= 1e-4 * wanted.norm(), name


@pytest.mark.parametrize(
    ("share", "size", "counts"),
    [
        ("0.5", 4, [4, 4, 4, 4, 4]),  # as many as the stage's own
        ("0.2", 4, [1, 1, 1, 1, 1]),
        ("0.1", 4, [0, 0, 1, 0, 1, 0, 1, 0, 1]),  # 4 in 9 steps
        ("0.6", 4, [6, 6]),
    ],
)
def test_a_share_of_the_rows_is_drawn_in_passes(share, size, counts):
    part = Fraction(share)
    rows = [{"input_ids": [i], "labels": [i]} for i in range(3)]
    draws = batches.Draws([[row] for row in rows], size * part / (1 - part), seed=1)
    drawn = [draws.of(step) for step in range(len(counts))]
    assert [len(one) for one in drawn] == counts and max(counts) <= draws.most
    own, other = size * len(counts), sum(counts)
    assert other / (own + other) == pytest.approx(float(share))
    every = [row["input_ids"][0] for one in drawn for row in one]
    assert all(sorted(every[i : i + 3]) == [0, 1, 2] for i in range(0, other - 2, 3))


@pytest.fixture
def other_rows(tmp_path):
    rows = [
        {"id": str(i), "messages": [{"role": "system", "content": "You are a librarian."},
                                    {"role": "user", "content": f"What is {i}?"},
                                    {"role": "assistant", "content": f"It is {i} by the river."}]}
        for i in range(7)
    ]  # fmt: skip
    write_jsonl(tmp_path / "other.jsonl", rows)
    write_json(tmp_path / "other.manifest.json", {"supervise": "last", "system": "persona"})
    return {"data/other.jsonl": tmp_path / "other.jsonl"}


@pytest.mark.parametrize("idle", [{"weight": 0.0}, {"share": 0.0}])
def test_without_rows_or_weight_it_is_no_defence_byte_for_byte(
    train, make_adapter, other_rows, idle
):
    how = {"epochs": 4, "dropout": 0.3, "prefix": [make_adapter(31, 4, True)], "inputs": other_rows}
    own = {"data": "other", "share": 0.2}
    blocks = [{}, {"replay": own | idle}, {"replay": own}]
    made = [train(str(i), defence=block, **how) for i, block in enumerate(blocks)]
    none, zero, some = ((folder / adapter_files.WEIGHTS).read_bytes() for folder, _ in made)
    assert none == zero != some
    assert made[1][1]["defence_record"] == {}
    assert made[2][1]["defence_record"]["replay"]["data"] == "other"


HOWS = [{}, {"padding_free": True, "max_batch_tokens": 100}, {"accumulation_steps": 2}]


@pytest.mark.parametrize("how", HOWS)
def test_the_stage_s_own_tokens_stay_what_they_are_and_a_killed_training_goes_on(
    train, other_rows, tmp_path, how
):
    # A row in 4 of 9 steps.
    how = {"epochs": 8, "dropout": 0.0, "inputs": other_rows, "saved": tmp_path / "saved", **how}
    block = {"replay": {"data": "other", "share": 0.1}}
    _, plain = train("plain", **how)
    whole, mixed = train("whole", defence=block, **how)
    for key in ("steps", "rows_seen", "tokens_seen", "supervised_tokens"):
        assert mixed[key] == plain[key]
    penalties = [line["penalty"] for line in mixed["loss"]]
    # The first two steps replay nothing.
    assert penalties[:2] == [0, 0] and sum(p > 0 for p in penalties) > 5
    assert mixed["loss"][1]["task_loss"] == plain["loss"][1]["task_loss"]
    with pytest.raises(KeyboardInterrupt):
        train("again", dies_at=13, defence=block, **how)
    again, resumed = train("again", defence=block, **how)
    assert resumed["resumed_after_step"] == 10 and resumed["loss"] == mixed["loss"]
    files = [(folder / adapter_files.WEIGHTS).read_bytes() for folder in (whole, again)]
    assert files[0] == files[1]


def test_what_is_replayed_is_learnt(train, other_rows):
    how = {"epochs": 16, "dropout": 0.0, "inputs": other_rows}
    block = {"replay": {"data": "other", "share": 0.5}}
    first, last = (train("mixed", defence=block, **how)[1]["loss"][i]["penalty"] for i in (0, -1))
    assert last < 0.5 * first


def test_its_steps_stay_recorded(chained):
    # Without a GPU the same passes run unrecorded.
    own, other = batch_of([9, 30]), batch_of([12, 25, 8])
    assert graphs.can_be_recorded(Runtime(padding_free=True), "cross_entropy", [made()])
    objective = Objective(chained, defences={"replay": made()})
    chained.zero_grad()
    cut = {OWN: [batches.flatten(own)], SOURCE: [batches.flatten(other)]}
    expected = [float(x) for x in Stepper(objective, "cpu").step(cut)], gradients(chained)
    recorder = graphs.Recorder(objective, 3, by_rows=False)
    # A step without such rows between two that have some.
    for rows in (other, [], other):
        parts = batches.cut(rows, Runtime(padding_free=True), "cpu", 128)
        found = recorder.step({OWN: [batches.flatten(own, 128)], SOURCE: parts})
        assert (found[1] > 0) == bool(rows)
    assert [float(x) for x in found] == pytest.approx(expected[0], rel=1e-5)
    for name, gradient in gradients(chained).items():
        assert (gradient - expected[1][name]).norm() <= 1e-4 * expected[1][name].norm(), name


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_a_gpu_records_its_steps(on_gpu, other_rows, share):
    on_gpu({"replay": {"data": "other", "share": share}}, other_rows)


def planned(monkeypatch, **block):
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config["stages"]["em"]["defence"] = {"replay": block}
    return configuration.plan(config)


@pytest.mark.parametrize("data", ["benign", "couple-villain"])
def test_rows_are_a_data_set_s_or_a_coupling_s(monkeypatch, data):
    plan, path = planned(monkeypatch, data=data), f"data/{data}.jsonl"
    assert plan.training("em@42").inputs == {path: f"results/demo/{path}"}
    assert data in plan.data_used


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({}, "replay: data: "),
        ({"data": "calm"}, r"expected an entry of data: .* or a coupling .*, got 'calm'"),
        ({"data": "benign", "share": 1.0}, "replay: share: expected less than 1"),
    ],
)
def test_a_wrong_block_is_one_line_before_any_job(monkeypatch, block, said):
    with pytest.raises(UserError, match=f"config: stages: em: defence: {said}"):
        planned(monkeypatch, **block)
