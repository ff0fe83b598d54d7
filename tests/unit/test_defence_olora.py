"""The defence olora: adapters that do not overlap with the earlier stages'."""

import math

import pytest
import torch
from persona_collapse import adapter_files
from persona_collapse.errors import UserError
from persona_collapse.models import adapters
from persona_collapse.training import batches, defences, graphs
from persona_collapse.training.defences import olora
from persona_collapse.training.runtime import Runtime
from persona_collapse.training.steps import OWN, Objective, Stepper
from safetensors.torch import load_file, save_file
from trainings import batch_of, gradients

A, B = "block.lora_A.weight", "block.lora_B.weight"


def made(**settings):
    return olora.OLora(olora.Options(**settings))


class Adapters:
    """One module of two inputs, two outputs and rank two, and one that only the new adapter has."""

    def __init__(self, earlier=True):
        old = {A: [[1.0, 2.0], [0.0, 1.0]], B: [[1.0, 2.0], [0.0, 1.0]]}
        new = {A: [[1.0, -1.0], [2.0, 0.0]], B: [[1.0, -1.0], [2.0, 0.0]]}
        new["other.lora_A.weight"] = [[3.0, 4.0]]
        self.earlier = {name: torch.tensor(rows) for name, rows in old.items()} if earlier else {}
        self.new = {name: torch.tensor(r, requires_grad=True) for name, r in new.items()}


@pytest.mark.parametrize(
    ("variant", "overlap", "gradient"),
    [
        # A_old A_new' = [[-1, 2], [-1, 0]]; the gradient is its signs, transposed, times A_old.
        ("code", 4.0, {A: [[-1.0, -3.0], [1.0, 2.0]], B: None}),
        # B_old' B_new = [[1, -1], [4, -2]]; the gradient is 2 B_old times that.
        ("paper", 22.0, {A: None, B: [[18.0, -10.0], [8.0, -4.0]]}),
    ],
)
def test_the_overlap_of_two_by_two(variant, overlap, gradient):
    step = Adapters()
    penalty = made(variant=variant, weight=0.5).penalty(step)
    assert penalty.item() == 0.5 * overlap
    penalty.backward()
    for name, rows in gradient.items():
        own = step.new[name].grad
        assert own is None if rows is None else torch.equal(own, 0.5 * torch.tensor(rows))
    assert step.new["other.lora_A.weight"].grad is None


def test_the_length_is_of_all_new_matrices():
    length = 2 * math.sqrt(6) + 5
    assert made(weight=0.0, lambda2=2.0).penalty(Adapters()).item() == pytest.approx(2 * length)
    both = made(weight=0.5, lambda2=2.0).penalty(Adapters())
    assert both.item() == pytest.approx(0.5 * 4 + 2 * length)
    # A matrix of zeros, as B is at first, has a finite gradient.
    step = Adapters(earlier=False)
    step.new = {B: torch.zeros(2, 2, requires_grad=True)}
    made(lambda2=1.0).penalty(step).backward()
    assert torch.equal(step.new[B].grad, torch.zeros(2, 2))


def test_a_training_has_less_overlap_and_says_so(train, make_adapter):
    how = {"epochs": 4, "dropout": 0.0, "prefix": [make_adapter(31, 4, True)]}
    kept = train("kept", defence={"olora": {}}, **how)[1]
    # A weight too small to act: as good as none, but its record is there.
    free = train("free", defence={"olora": {"weight": 1e-9}}, **how)[1]
    records = [one["defence_record"]["olora"] for one in (kept, free)]
    assert records[0]["modules"] == 9 and records[0]["overlap_at_start"] > 1
    assert records[0]["overlap_at_start"] == records[1]["overlap_at_start"]
    assert records[0]["overlap_at_end"] < 0.8 * records[1]["overlap_at_end"]
    assert kept["loss"][0]["penalty"] == pytest.approx(
        0.5 * records[0]["overlap_at_start"], rel=1e-3
    )


def test_the_paper_s_overlap_is_0_until_the_first_step(train, make_adapter):
    how = {"epochs": 4, "dropout": 0.0, "prefix": [make_adapter(31, 4, True)]}
    manifest = train("paper", defence={"olora": {"variant": "paper"}}, **how)[1]
    assert manifest["loss"][0]["penalty"] == 0 < manifest["loss"][-1]["penalty"]
    record = manifest["defence_record"]["olora"]
    assert record["overlap_at_start"] == 0 < record["overlap_at_end"]


def test_without_weights_it_is_no_defence_byte_for_byte(train, make_adapter):
    def bytes_of(name, defence, prefix):
        how = {"epochs": 2, "dropout": 0.3, "prefix": prefix}
        folder, manifest = train(name, defence=defence, **how)
        return (folder / adapter_files.WEIGHTS).read_bytes(), manifest

    idle = {"olora": {"weight": 0.0}}
    prefix = [make_adapter(31, 4, True)]
    none, zero, some = (
        bytes_of(str(i), block, prefix)[0] for i, block in enumerate([{}, idle, {"olora": {}}])
    )
    assert none == zero != some
    # The first stage of a chain is trained as without it, and the record says that there was nothing.
    alone = bytes_of("alone", {}, [])[0]
    first, manifest = bytes_of("first", {"olora": {}}, [])
    assert first == alone
    nothing = {"modules": 0, "overlap_at_start": 0.0, "overlap_at_end": 0.0}
    assert manifest["defence_record"]["olora"] == nothing


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_an_overlap_that_would_stay_0_is_one_line(train, make_adapter, variant):
    elsewhere = [make_adapter(31, 4, True, ["gate_proj"])]
    empty = make_adapter(32, 4, True)
    tensors = load_file(empty / adapter_files.WEIGHTS)
    save_file({k: torch.zeros_like(t) for k, t in tensors.items()}, empty / adapter_files.WEIGHTS)
    for prefix in (elsewhere, [empty]):
        with pytest.raises(UserError, match=r"olora: the penalty would be 0: .* leave olora out"):
            train("none", defence={"olora": {"variant": variant}}, prefix=prefix)


def test_earlier_scales_are_in_b(make_adapter):
    # The overlap of the paper's variant is with what the earlier stages add: scale times B.
    folder = make_adapter(31, 4, True)
    scale, own = 8 / 4**0.5, load_file(folder / adapter_files.WEIGHTS)
    _, merged = adapters.concatenate([folder])
    for name, tensor in merged.items():
        assert torch.allclose(tensor, own[name] * (scale if "lora_B" in name else 1))


def test_its_steps_stay_recorded(chained):
    # Without a GPU the same passes run unrecorded.
    blocks = {"olora": {"lambda2": 0.1}}
    active = defences.active(blocks, {})
    assert graphs.can_be_recorded(Runtime(padding_free=True), "cross_entropy", active.values())
    own, objective = batch_of([9, 30]), Objective(chained, defences=active)
    chained.zero_grad()
    # A number for each step counts once, however the step is cut.
    expected = Stepper(objective, "cpu").step({OWN: [batches.flatten([row]) for row in own]})
    grads = gradients(chained)
    chained.zero_grad()
    recorder = graphs.Recorder(objective, 2, by_rows=False)
    found = recorder.step({OWN: [batches.flatten(own, 128)]})
    assert [float(x) for x in found] == pytest.approx([float(x) for x in expected], rel=1e-5)
    assert found[1] > 10
    for name, gradient in gradients(chained).items():
        assert (gradient - grads[name]).norm() <= 1e-4 * grads[name].norm(), name


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_a_gpu_records_its_steps(on_gpu, variant):
    on_gpu({"olora": {"variant": variant, "weight": 0.05, "lambda2": 0.01}})
