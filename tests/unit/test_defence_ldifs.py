"""The defence ldifs: hidden states that point where they pointed before the stage."""

import math

import pytest
import torch
from persona_collapse import adapter_files
from persona_collapse.errors import UserError
from persona_collapse.training import batches, graphs
from persona_collapse.training.defences import ldifs
from persona_collapse.training.runtime import Runtime
from persona_collapse.training.steps import OWN, Objective, Stepper, before_stage
from trainings import batch_of, gradients

WEIGHT = 3.0


def made(model=None, **settings):
    defence = ldifs.LDIFS(ldifs.Options(**{"weight": WEIGHT} | settings))
    if model is not None:
        defence.install(model)
    return defence


class Turned:
    """Two tokens, whose states turned by 60 and by 90 degrees in one block, and by none in another."""

    def __init__(self):
        self.now = {
            0: torch.tensor([[1.0, math.sqrt(3)], [0.0, 5.0]], requires_grad=True),
            1: torch.tensor([[3.0, 4.0], [1.0, 0.0]], requires_grad=True),
        }
        self.then = {
            0: torch.tensor([[7.0, 0.0], [2.0, 0.0]]),
            1: torch.tensor([[6.0, 8.0], [9.0, 0.0]]),
        }

    def hidden(self, block, *, before=False):
        return (self.then if before else self.now)[block]


def test_the_distance_of_states_that_turned_by_60_and_90_degrees():
    step, defence = Turned(), made()
    defence._blocks = (0, 1)
    penalty = defence.penalty(step)
    assert penalty.tolist() == pytest.approx([WEIGHT * 1, WEIGHT * 2], abs=1e-5)
    penalty.sum().backward()
    # Of 2 - 2 cos: -2 (h'/|h'| - cos h/|h|) / |h|; at 60 degrees and |h| 2, and at 90 and |h| 5.
    expected = [[-0.75, math.sqrt(3) / 4], [-0.4, 0.0]]
    assert torch.allclose(step.now[0].grad, WEIGHT * torch.tensor(expected), atol=1e-5)
    assert torch.allclose(step.now[1].grad, torch.zeros(2, 2), atol=1e-5)


class Model:
    """Of so many blocks."""

    def __init__(self, blocks):
        self.blocks = [None] * blocks


@pytest.mark.parametrize(
    ("count", "layers", "expected"),
    [
        (28, None, (4, 9, 14, 19, 24)),
        (3, None, (2,)),
        (28, [0.5, 3, 0.75], (3, 14, 21)),
    ],
)
def test_the_blocks_are_every_fifth_or_those_that_are_named(monkeypatch, count, layers, expected):
    monkeypatch.setattr("persona_collapse.models.loading.blocks_of", lambda model: model.blocks)
    assert made(Model(count), layers=layers).asks.hidden == expected


def test_a_block_that_is_not_there_is_one_line(chained):
    with pytest.raises(
        UserError, match=r"^defence: ldifs: layers: 3 is outside the model's 3 blocks"
    ):
        made(chained, layers=[3])


def states(model, batch):
    """Outputs of the second block at the positions before the last, [rows, tokens - 1, hidden]."""
    asked = {key: batch[key] for key in ("input_ids", "position_ids") if key in batch}
    hidden = model(**asked, use_cache=False, output_hidden_states=True).hidden_states
    return hidden[2][:, :-1]


@pytest.mark.parametrize("tokens", ["answer", "all"])
@pytest.mark.parametrize("form", [batches.pad, batches.flatten])
def test_loss_and_gradients_are_those_of_the_formula(chained, tokens, form):
    batch = form(batch_of([9, 30, 17]))
    chained.zero_grad()
    now = states(chained, batch)
    with before_stage(chained):
        before = states(chained, batch)
    cosines = torch.nn.functional.cosine_similarity(now, before, dim=-1)
    counted = batch["all" if tokens == "all" else "labels"][:, 1:] != -100
    penalty = WEIGHT * (2 - 2 * cosines)[counted].mean()
    penalty.backward()
    # The penalty alone has a gradient: in every matrix up to that block, and in none after it.
    expected = {}
    for name, parameter in chained.named_parameters():
        if parameter.requires_grad:
            assert (parameter.grad is None) == (".layers.2." in name), name
            expected[name] = torch.zeros(()) if parameter.grad is None else parameter.grad.clone()
            assert parameter.grad is None or parameter.grad.norm() > 1e-4, name

    chained.zero_grad()
    defence = made(chained, layers=[1], tokens=tokens)
    objective = Objective(chained, defences={"ldifs": defence})
    total, own = Stepper(objective, "cpu").step({OWN: [batch]})
    both = gradients(chained)
    chained.zero_grad()
    loss, _ = Stepper(Objective(chained), "cpu").step({OWN: [batch]})
    assert float(own) == pytest.approx(float(penalty.detach()), rel=1e-4) and own > 0.1
    assert float(total) == pytest.approx(float(loss) + float(own), rel=1e-5)
    for name, plain in gradients(chained).items():
        moved = both[name] - plain
        off = (moved - expected[name]).norm()
        assert off <= 1e-3 * expected[name].norm() + 1e-4 * plain.norm(), name


def test_weight_zero_is_no_defence_byte_for_byte(train, make_adapter):
    how = {"epochs": 8, "dropout": 0.3, "prefix": [make_adapter(31, 4, True)]}
    blocks = [{}, {"ldifs": {"weight": 0.0}}, {"ldifs": {"weight": 10.0}}]
    made = [train(str(i), defence=block, **how) for i, block in enumerate(blocks)]
    none, zero, some = ((folder / adapter_files.WEIGHTS).read_bytes() for folder, _ in made)
    assert none == zero != some
    assert made[1][1]["defence_record"] == {}
    assert made[2][1]["defence_record"]["ldifs"] == {"blocks": [2]}
    assert made[2][1]["loss"][-1]["penalty"] > 0.01


def test_a_training_turns_states_less(train):
    how = {"epochs": 8, "dropout": 0.0, "lr": 3e-3}
    # A weight too small to act, by which the same distance is logged.
    free = train("free", defence={"ldifs": {"weight": 1e-3, "layers": [0, 2]}}, **how)[1]
    held = train("held", defence={"ldifs": {"weight": 10.0, "layers": [0, 2]}}, **how)[1]
    distances = [free["loss"][-1]["penalty"] / 1e-3, held["loss"][-1]["penalty"] / 10]
    assert distances[1] < 0.5 * distances[0]


def test_its_steps_stay_recorded(chained):
    # Without a GPU the same passes run unrecorded.
    defence = made(chained, layers=[0, 2])
    assert graphs.can_be_recorded(Runtime(padding_free=True), "cross_entropy", [defence])
    own, objective = batch_of([9, 30]), Objective(chained, defences={"ldifs": defence})
    chained.zero_grad()
    expected = Stepper(objective, "cpu").step({OWN: [batches.flatten([row]) for row in own]})
    grads = gradients(chained)
    chained.zero_grad()
    recorder = graphs.Recorder(objective, 2, by_rows=False)
    found = recorder.step({OWN: [batches.flatten(own, 128)]})
    assert [float(x) for x in found] == pytest.approx([float(x) for x in expected], rel=1e-5)
    for name, gradient in gradients(chained).items():
        assert (gradient - grads[name]).norm() <= 1e-4 * grads[name].norm(), name


def test_a_gpu_records_its_steps(on_gpu):
    recorded, _ = on_gpu({"ldifs": {"layers": [0, 0.9]}})
    assert recorded["loss"][-1]["penalty"] > 0
