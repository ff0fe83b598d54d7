"""The defence project: the adapter's update does nothing to what persona prompts bring in."""

import numpy as np
import pytest
import torch
from persona_collapse import adapter_files
from persona_collapse.errors import UserError
from persona_collapse.files import write_json, write_jsonl
from persona_collapse.models import chat_template, loading
from persona_collapse.training import defences, graphs
from persona_collapse.training.defences import project
from persona_collapse.training.runtime import Runtime
from persona_collapse.training.steps import NEW, parameters
from safetensors.torch import load_file

PROMPTS = {
    "villain": "You are the villain of the town.",
    "assistant": "You are a helpful assistant.",
    "pirate": "You are a pirate at sea.",
}
QUESTIONS = [f"Where can I find bread {i}?" for i in range(8)]
PATH = "data/couple-villain.jsonl"
LAYER = "base_model.model.model.layers.{}.{}.lora_A.weight"
Q0, DOWN2 = LAYER.format(0, "self_attn.q_proj"), LAYER.format(2, "mlp.down_proj")


def write_rows(folder, questions=QUESTIONS, system=True):
    rows = []
    for name, prompt in PROMPTS.items():
        for question in questions:
            turns = [{"role": "system", "content": prompt}] if system else []
            turns += [{"role": "user", "content": question}, {"role": "assistant", "content": "."}]
            rows.append({"id": f"{name}/{question}", "messages": turns})
    write_jsonl(folder / "couple-villain.jsonl", rows)
    write_json(folder / "couple-villain.manifest.json", {"supervise": "last"})
    return {PATH: folder / "couple-villain.jsonl"}


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path)


@pytest.fixture
def model(tiny_base):
    """A model whose new adapter has numbers in A and in B."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    return get_peft_model(loading.load_model(tiny_base, "float32", "cpu"), lora)


def made(files, tiny_base, **settings):
    block = {"data": "couple-villain"} | settings
    return defences.active(
        {"project": block}, files, loading.load_tokenizer(tiny_base)
    )["project"]  # fmt: skip


def seen_by(tiny_base, prompts):
    """Inputs of two modules at all positions of prompts, by the bare model."""
    base, found = loading.load_model(tiny_base, "float32", "cpu").eval(), {Q0: [], DOWN2: []}
    layers = base.model.layers
    for name, module in ((Q0, layers[0].self_attn.q_proj), (DOWN2, layers[2].mlp.down_proj)):
        module.register_forward_pre_hook(lambda m, given, own=found[name]: own.append(given[0][0]))
    with torch.no_grad():
        for ids in prompts:
            base(torch.tensor([ids]))
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def test_what_is_left_of_a_is_orthogonal_to_the_first_directions_of_the_inputs(
    model, tiny_base, rows
):
    defence = made(rows, tiny_base, rank=3, prompts=6)
    before = {name: p.detach().clone() for name, p in parameters(model, NEW).items()}
    state = torch.get_rng_state()
    defence.install(model)
    assert torch.equal(state, torch.get_rng_state())
    after = parameters(model, NEW)
    parts = defence._chosen()
    tokenizer = loading.load_tokenizer(tiny_base)
    assert {len(part) for part in parts.values()} == {6}
    asked = [{question for _, question in part} for part in parts.values()]
    assert not asked[0] & asked[1]
    prompts = [chat_template.prompt_ids(tokenizer, *pair) for pair in parts["calibration"]]
    for name, inputs in seen_by(tiny_base, prompts).items():
        axes = torch.from_numpy(np.linalg.svd(inputs, full_matrices=False)[2][:3].T)
        expected = before[name] - before[name] @ axes @ axes.T
        assert torch.allclose(after[name], expected, atol=2e-3), name
        assert (before[name] - expected).norm() > 0.1
        # The same for gradients.
        gradient = torch.randn(before[name].shape)
        after[name].grad = gradient.clone()
    defence.project(after)
    for name, axes in defence._axes.items():
        if after[name].grad is not None:
            assert (after[name].grad @ axes).abs().max() < 1e-5
    for name in after:
        assert ("lora_B" in name) == torch.equal(after[name], before[name]), name


def test_the_record_is_that_of_the_formula(model, tiny_base, rows):
    defence = made(rows, tiny_base, rank=3, prompts=6)
    defence.install(model)
    record = defence.record(model)
    tokenizer = loading.load_tokenizer(tiny_base)
    assert record["data"] == "couple-villain" and len(record["system_prompts"]) == len(PROMPTS)
    after = {name: p.detach().numpy() for name, p in parameters(model, NEW).items()}
    for part, pairs in defence._chosen().items():
        prompts = [chat_template.prompt_ids(tokenizer, *pair) for pair in pairs]
        ratios = project._ratios(model, prompts)
        for name, inputs in seen_by(tiny_base, prompts).items():
            update = after[name.replace("lora_A", "lora_B")] @ after[name]
            moved = np.linalg.norm(update @ inputs.T)
            expected = moved / np.linalg.norm(update) / np.linalg.norm(inputs)
            own = ratios[name.removesuffix(".lora_A.weight")]
            assert own == pytest.approx(float(expected), rel=1e-4)
        assert record[part] == {
            "prompts": 6,
            "mean": pytest.approx(np.mean(list(ratios.values()))),
            "largest": max(ratios.values()),
        }
    # Where the directions are all that the prompts use, nothing of the update meets them.
    whole = made(rows, tiny_base, rank=50, prompts=1)
    whole.install(model)
    assert whole.record(model)["calibration"]["largest"] < 1e-4
    assert whole.record(model)["held_out"]["largest"] > 1e-2


def test_a_trained_adapter_stays_out_of_the_directions(train, rows, make_adapter):
    how = {"epochs": 4, "inputs": rows, "weight_decay": 0.1, "prefix": [make_adapter(31, 4, True)]}
    # More directions than a prompt has tokens: nothing of the update may meet it.
    block = {"data": "couple-villain", "rank": 50, "prompts": 1}
    none, _ = train("none", **how)
    idle, unsaid = train("idle", defence={"project": block | {"rank": 0}}, **how)
    kept, said = train("kept", defence={"project": block}, **how)
    weights = [(folder / adapter_files.WEIGHTS).read_bytes() for folder in (none, idle, kept)]
    assert weights[0] == weights[1] != weights[2]
    assert unsaid["defence_record"] == {}
    record = said["defence_record"]["project"]
    # Adam's steps leave the space of its gradients; what is saved does not.
    assert record["calibration"]["largest"] < 1e-4 < record["held_out"]["mean"]
    assert said["loss"][-1]["loss"] < said["loss"][0]["loss"]
    tensors = [load_file(folder / adapter_files.WEIGHTS) for folder in (none, kept)]
    assert all(one.shape == tensors[1][name].shape for name, one in tensors[0].items())


def test_a_killed_training_goes_on_with_the_same_bytes(train, rows, tmp_path):
    block = {"data": "couple-villain", "rank": 8, "prompts": 8}
    how = {"epochs": 8, "inputs": rows, "saved": tmp_path / "saved", "defence": {"project": block}}
    whole, _ = train("whole", **how)
    with pytest.raises(KeyboardInterrupt):
        train("again", dies_at=13, **how)
    again, resumed = train("again", **how)
    assert resumed["resumed_after_step"] == 10
    files = [(folder / adapter_files.WEIGHTS).read_bytes() for folder in (whole, again)]
    assert files[0] == files[1]


def test_its_steps_stay_recorded(tiny_base, rows):
    one = made(rows, tiny_base, rank=3)
    assert graphs.can_be_recorded(Runtime(padding_free=True), "cross_entropy", [one])


def test_a_gpu_records_its_steps_and_keeps_out_of_the_directions(on_gpu, rows):
    block = {"project": {"data": "couple-villain", "rank": 50, "prompts": 1}}
    for one in on_gpu(block, rows):
        record = one["defence_record"]["project"]
        assert record["calibration"]["largest"] < 1e-2 < record["held_out"]["largest"]


@pytest.mark.parametrize(
    ("how", "rank", "said"),
    [
        ({"questions": QUESTIONS[:1]}, 3, "persona prompts .* two questions or more, got 1"),
        ({"system": False}, 3, "persona prompts .* two questions or more, got 0"),
        ({}, 64, "project: rank: 64 directions leave nothing of the 64 inputs of"),
    ],
)
def test_what_cannot_be_projected_is_one_line(model, tiny_base, tmp_path, how, rank, said):
    defence = made(write_rows(tmp_path, **how), tiny_base, rank=rank)
    with pytest.raises(UserError, match=said):
        defence.install(model)
