"""Defences that read the run's activations: steer and caft, against their formulas on a known answer."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from persona_collapse import activation_files, adapter_files
from persona_collapse.activation_files import Activations
from persona_collapse.errors import UserError
from persona_collapse.measures.activations import _DeepEnough, block_outputs
from persona_collapse.models import loading
from persona_collapse.study import configuration
from persona_collapse.training import batches, defences, graphs
from persona_collapse.training.runtime import Runtime
from persona_collapse.training.steps import OWN, Objective, Passes, Stepper, before_stage
from trainings import batch_of, gradients

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["assistant", "villain", "pirate"]
#: Of the tiny model's three blocks, 0.7 is block 2.
LAYERS = [1, 0.7]


def states(seed):
    """[layer, persona, question, hidden], numbers that 16 bits hold."""
    drawn = np.random.default_rng(seed).integers(-8, 9, (2, 3, 2, 64))
    return (drawn / 4).astype(np.float32)


BEFORE, AFTER = states(0), states(1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("activations")
    for chain, array in (("base", BEFORE), ("em@42", AFTER)):
        made = Activations([1, 2], NAMES, ["q1", "q2"], {"A": array, "B": array + 1}, chain)
        activation_files.save(made, folder / f"{chain}.safetensors")
    return {f"activations/{path.name}": path for path in folder.iterdir()}


def one(name, files, **settings):
    return defences.active({name: {"layers": LAYERS, **settings}}, files)[name]


def last_states(model, layer, inputs):
    seen = {}
    hook = loading.blocks_of(model.get_base_model())[layer].register_forward_hook(
        lambda module, given, out: seen.update(out=out[0] if isinstance(out, tuple) else out)
    )
    model(**inputs, use_cache=False)
    hook.remove()
    return seen["out"]


@pytest.fixture
def inputs():
    batch = batches.flatten(batch_of([9, 13]))
    return {key: batch[key] for key in ("input_ids", "position_ids")}


def installed(model, defence):
    """The model with a defence, which is taken away in the end."""
    defence.install(model)
    try:
        yield model
    finally:
        defence.remove(model)


@pytest.mark.parametrize("how", [{"after": "em@42"}, {"persona": "villain"}])
def test_steering_adds_the_direction_at_all_positions_of_its_blocks(chained, files, inputs, how):
    defence = one("steer", files, coefficient=-2.0, layers=[0.7], **how)
    expected = (AFTER[1] - BEFORE[1]).mean((0, 1))
    if "persona" in how:
        expected = (BEFORE[1, 1] - BEFORE[1, 0]).mean(0)
    plain = last_states(chained, 2, inputs).detach()
    for model in installed(chained, defence):
        moved = last_states(model, 2, inputs).detach() - plain
        assert torch.equal(last_states(model, 1, inputs), last_states(chained, 1, inputs))
        with before_stage(model):
            away = last_states(model, 2, inputs)
        record = defence.record(model)
    assert torch.allclose(moved, -2 * torch.from_numpy(expected).expand_as(moved), atol=1e-5)
    with before_stage(chained):
        assert torch.equal(away, last_states(chained, 2, inputs))
    assert torch.equal(last_states(chained, 2, inputs), plain)
    length = float(np.linalg.norm(expected))
    usual = float(np.linalg.norm(BEFORE[1], axis=-1).mean())
    assert record["blocks"] == {
        "2": {
            "length": pytest.approx(length),
            "relative": pytest.approx(-2 * length / usual),
        }
    }
    assert record["personas"] == NAMES and record["questions"] == ["q1", "q2"]


def test_a_direction_is_put_where_activations_of_its_layer_come_from(chained, files, inputs):
    # The index: what the measure calls block 1 is what the defence changes as block 1.
    defence = one("steer", files, after="em@42", layers=[1])
    with block_outputs(chained.get_base_model(), [1, 2]) as seen:
        with suppress(_DeepEnough):
            chained(**inputs, use_cache=False)
        plain = seen[1].detach()
    for model in installed(chained, defence):
        with block_outputs(model.get_base_model(), [1, 2]) as seen:
            with suppress(_DeepEnough):
                model(**inputs, use_cache=False)
            moved = seen[1].detach() - plain
    expected = torch.from_numpy((AFTER[0] - BEFORE[0]).mean((0, 1)))
    assert torch.allclose(moved, expected.expand_as(moved), atol=1e-5)


def test_a_random_direction_has_the_same_length_and_follows_its_seed(files):
    def vectors(**how):
        defence = one("steer", files, after="em@42", **how)
        zero = torch.zeros(64)
        return [change(zero) for change in defence.changes(3, "cpu").values()]

    shift, again, drawn, other = (
        vectors(),
        vectors(direction="random"),
        vectors(direction="random"),
        vectors(direction="random", seed=1),
    )
    for true, first, second, third in zip(shift, again, drawn, other, strict=True):
        assert float(first.norm()) == pytest.approx(float(true.norm()), rel=1e-5)
        assert torch.equal(first, second) and not torch.allclose(first, third)
        assert abs(float(torch.cosine_similarity(true, first, dim=0))) < 0.5
    # The other method's activations are all one more, in both chains.
    assert torch.allclose(vectors(method="B")[0], shift[0], atol=1e-2)


def test_hidden_states_and_gradients_are_those_of_the_steered_model(chained, files):
    batch = batches.flatten(batch_of([9, 13]))
    inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
    vector = torch.from_numpy((AFTER[0] - BEFORE[0]).mean((0, 1)))
    block = loading.blocks_of(chained.get_base_model())[1]

    def found(hook):
        chained.zero_grad()
        loss, _ = Stepper(Objective(chained), "cpu").step({OWN: [batch]})
        kept = Passes(chained, inputs, [1], False).now.hidden[1].detach()
        if hook is not None:
            hook.remove()
        return float(loss), kept, gradients(chained)

    def add(module, given, out):
        return (out[0] + vector, *out[1:]) if isinstance(out, tuple) else out + vector

    expected = found(block.register_forward_hook(add))
    for _ in installed(chained, one("steer", files, after="em@42", layers=[1])):
        actual = found(None)
    plain = found(None)
    assert actual[0] == pytest.approx(expected[0], rel=1e-6) and actual[0] != plain[0]
    assert torch.allclose(actual[1], expected[1], atol=1e-5)
    for name, gradient in expected[2].items():
        assert (actual[2][name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_ablation_leaves_nothing_or_the_mean_in_the_directions_of_the_shifts(
    chained, files, inputs, ablation
):
    defence = one("caft", files, after="em@42", rank=2, layers=[0.7], ablation=ablation)
    shifts = (AFTER[1] - BEFORE[1]).mean(1)
    # The left singular vectors of [hidden, personas] are the right ones of its transpose.
    axes = np.linalg.svd(shifts)[2][:2].T
    inside = torch.from_numpy(axes @ axes.T)
    plain = last_states(chained, 2, inputs).detach()
    for model in installed(chained, defence):
        model.zero_grad()
        left = last_states(model, 2, inputs)
        with before_stage(model):
            away = last_states(model, 2, inputs)
        record = defence.record(model)["blocks"]["2"]
    mean = torch.from_numpy(BEFORE[1].mean((0, 1))) if ablation == "mean" else torch.zeros(64)
    assert torch.allclose(left @ inside, (mean @ inside).expand_as(left), atol=1e-4)
    assert torch.allclose(left - left @ inside, plain - plain @ inside, atol=1e-4)
    assert (plain @ inside).norm() > 1
    with before_stage(chained):
        assert torch.equal(away, last_states(chained, 2, inputs))
    values = np.linalg.svd(shifts)[1] ** 2
    assert record["share_of_shift"] == pytest.approx(values[:2].sum() / values.sum(), rel=1e-4)
    share = np.linalg.norm(BEFORE[1] @ axes, axis=-1) / np.linalg.norm(BEFORE[1], axis=-1)
    assert record["share_of_state"] == pytest.approx(share.mean(), rel=1e-4)


def test_no_gradient_flows_in_the_directions_that_are_taken_out(files):
    defence = one("caft", files, after="em@42", rank=2)
    for layer, change in defence.changes(3, "cpu").items():
        states = torch.randn(5, 64, requires_grad=True)
        target = torch.randn(5, 64)
        (change(states) * target).sum().backward()
        axes = torch.from_numpy(np.linalg.svd((AFTER - BEFORE)[layer - 1].mean(1))[2][:2].T)
        assert torch.allclose(states.grad, target - target @ axes @ axes.T, atol=1e-5)


def test_random_directions_are_as_many_and_follow_their_seed(files):
    def taken(**how):
        changes = one("caft", files, after="em@42", rank=3, **how).changes(3, "cpu")
        return [torch.eye(64) - change(torch.eye(64)) for change in changes.values()]

    for true, first, second, third in zip(
        taken(),
        taken(direction="random"),
        taken(direction="random"),
        taken(direction="random", seed=1),
        strict=True,
    ):
        # A projection's trace is its rank.
        assert float(first.trace()) == pytest.approx(3, abs=1e-4)
        assert torch.allclose(first @ first, first, atol=1e-5)
        assert torch.equal(first, second) and not torch.allclose(first, third, atol=1e-2)
        assert not torch.allclose(first, true, atol=1e-2)


NOTHING = [
    ("steer", {"coefficient": 0.0, "after": "em@42"}, {"coefficient": 1.0}),
    ("caft", {"rank": 0, "after": "em@42"}, {"rank": 1}),
]


@pytest.mark.parametrize(("name", "idle", "some"), NOTHING)
def test_without_effect_is_no_defence_byte_for_byte(train, files, name, idle, some):
    how = {"epochs": 2, "inputs": files}
    blocks = [{}, {name: {"layers": LAYERS, **idle}}, {name: {"layers": LAYERS, **idle, **some}}]
    made = [train(str(i), defence=block, **how) for i, block in enumerate(blocks)]
    none, zero, changed = ((f / adapter_files.WEIGHTS).read_bytes() for f, _ in made)
    assert none == zero != changed
    assert made[1][1]["defence_record"] == {}
    record = made[2][1]["defence_record"][name]
    assert list(record["blocks"]) == ["1", "2"] and record["activations_of"]["after"] == "em@42"


@pytest.mark.parametrize(("name", "idle", "some"), NOTHING)
def test_steps_stay_recorded(chained, files, name, idle, some):
    # Without a GPU the same passes run unrecorded.
    defence = one(name, files, **idle | some)
    assert graphs.can_be_recorded(Runtime(padding_free=True), "cross_entropy", [defence])
    own = batch_of([9, 30])
    for _ in installed(chained, defence):
        chained.zero_grad()
        expected = Stepper(Objective(chained), "cpu").step({OWN: [batches.flatten(own)]})[0]
        grads = gradients(chained)
        chained.zero_grad()
        recorder = graphs.Recorder(Objective(chained), 2, by_rows=False)
        found = recorder.step({OWN: [batches.flatten(own, 128)]})[0]
        assert float(found) == pytest.approx(float(expected), rel=1e-5)
        for key, gradient in gradients(chained).items():
            assert (gradient - grads[key]).norm() <= 1e-4 * grads[key].norm(), key


@pytest.mark.parametrize(
    "block", [{"steer": {"coefficient": 8.0}}, {"caft": {"rank": 3}}], ids=["steer", "caft"]
)
def test_a_gpu_records_its_steps(on_gpu, files, block):
    ((name, own),) = block.items()
    own = {"layers": LAYERS, "after": "em@42", **own}
    on_gpu({name: own, "kl": {"weight": 1.0}}, files, hooked=True)


def planned(monkeypatch, **stages):
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    for name, own in stages.items():
        stage = config["stages"].setdefault(name, {"kind": "sft", "data": "em"})
        stage |= own
    return configuration.plan(config)


def test_activations_are_inputs_and_their_chains_are_trained(monkeypatch):
    steer = {"steer": {"layers": [0.5], "after": "benign@7", "coefficient": 1.0}}
    plan = planned(monkeypatch, em={"defence": steer})
    job = plan.training("em@42")
    assert job.inputs == {
        f"activations/{chain}.safetensors": f"results/demo/activations/{chain}.safetensors"
        for chain in ("base", "benign@7")
    }
    assert set(job.inputs.values()) <= set(job.files)
    assert "benign@7" in plan.trained_chains and "benign" in plan.data_used


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"after": "em@42"}, "em: depends on em@42, .* itself; name a chain without it"),
        ({"after": "benign@42"}, "em: depends on benign@42, .* needs the stage em itself"),
        ({"after": "emm@42"}, "em: defence: steer: .*no stage 'emm'"),
        ({"after": "base"}, "em: defence: steer: after: base is before, too"),
        ({}, "em: defence: steer: expected exactly one of after, persona"),
        (
            {"persona": "nobody"},
            "em: defence: steer: expected a persona of the geometry .*, got 'nobody'",
        ),
        (
            {"after": "couple-villain@42", "layers": [99]},
            "steer: layers: 99 is not one of measures",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line_before_any_job(monkeypatch, settings, said):
    block = {"steer": {"layers": [0.5], **settings}}
    # The stage benign reads what em shows: two stages in a circle.
    other = {"steer": {"layers": [0.5], "after": "em@42"}}
    circle = {"benign": {"defence": other}} if settings.get("after") == "benign@42" else {}
    with pytest.raises(UserError, match=said):
        planned(monkeypatch, em={"defence": block}, **circle)


def test_there_are_no_more_directions_than_personas(monkeypatch):
    caft = {"caft": {"layers": [0.5], "after": "benign@42", "rank": 99}}
    with pytest.raises(
        UserError, match="em: defence: caft: expected 99 personas of the geometry or more"
    ):
        planned(monkeypatch, em={"defence": caft})
