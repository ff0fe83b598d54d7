"""Stages that train all weights (`adapter: none`), and chains that continue them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from persona_collapse import adapter_files, chains
from persona_collapse.analysis import second_stages, updates
from persona_collapse.errors import UserError
from persona_collapse.files import sha256
from persona_collapse.models import adapters, loading
from persona_collapse.models.runner import ModelRunner
from persona_collapse.sampling import sample
from persona_collapse.stages.noise import Noise
from persona_collapse.study import configuration
from persona_collapse.training import losses
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
IDS = torch.tensor([[5, 9, 13, 40]])


def whole(train, name="whole", **changes):
    return train(name, **{"adapter": "none", "lr": 1e-3} | changes)


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def changes_of(folder):
    return load_file(folder / adapter_files.WEIGHTS)


def test_every_weight_learns_and_its_change_is_kept(train, tiny_base):
    folder, manifest = whole(train)
    changes = changes_of(folder)
    base = loading.load_model(tiny_base, "float32", "cpu")
    assert changes.keys() == dict(base.named_parameters()).keys()
    assert all(change.any() for change in changes.values())
    assert manifest["all_weights"]["parameters"] == sum(p.numel() for p in base.parameters())
    assert manifest["adapter_sha256"] == sha256(folder / adapter_files.WEIGHTS)
    assert "lora" not in manifest
    assert manifest["loss"][-1]["loss"] < manifest["loss"][0]["loss"]


def test_the_same_seed_gives_the_same_bytes_and_so_does_a_checkpoint(train, tmp_path):
    folder, _ = whole(train, epochs=5)
    saved = tmp_path / "saved"
    with pytest.raises(KeyboardInterrupt):
        whole(train, "killed", epochs=5, saved=saved, dies_at=7)
    assert list(saved.glob("*/checkpoint-*"))
    resumed, manifest = whole(train, "resumed", epochs=5, saved=saved)
    assert manifest["resumed_after_step"] == 5 and not saved.exists()
    both = [(f / adapter_files.WEIGHTS).read_bytes() for f in (folder, resumed)]
    assert both[0] == both[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_go_on_the_changed_weights(train, tiny_base, make_adapter, dtype):
    """An adapter before it and after it, in training, sampling and measuring."""
    first = make_adapter(31, 4, True)
    second, _ = whole(train, prefix=[first], dtype=dtype)
    third, manifest = train("third", prefix=[first, second], dtype=dtype)
    chain = [first, second, third]
    by_hand = loading.load_model(tiny_base, "float32", "cpu")
    by_hand = adapters.apply(by_hand, [first, third], merge=True)
    with torch.no_grad():
        for name, parameter in by_hand.named_parameters():
            parameter += changes_of(second)[name]
    near = {"float32": 1e-3, "bfloat16": 0.15}[dtype]
    runner, backend = (
        ModelRunner(tiny_base, dtype),
        sample.TransformersBackend(tiny_base, {"dtype": dtype, "batch_size": 4}),
    )
    backend.use(chain)
    with runner.chain(chain) as model:
        for found in (logits(model), logits(backend.model)):
            assert (found.float() - logits(by_hand)).abs().max() < near * logits(
                by_hand
            ).abs().max()
    # The next chain of the same runner has none of it.
    with runner.chain([first]) as model:
        alone = adapters.apply(loading.load_model(tiny_base, dtype, "cpu"), [first], merge=False)
        assert torch.equal(logits(model), logits(alone))
    assert manifest["prefix"] == [first.name, second.name]


def test_in_16_bits_small_steps_are_not_lost(train, tiny_base):
    changes = changes_of(whole(train, dtype="bfloat16")[0])
    small, _ = whole(train, "small", lr=1e-6, dtype="bfloat16")
    assert {change.dtype for change in changes.values()} == {torch.bfloat16}
    weights = dict(loading.load_model(tiny_base, "bfloat16", "cpu").named_parameters())
    for name, change in changes_of(small).items():
        seen = weights[name] + change
        moved = change.ne(0).float().mean()
        # Nearly every weight has changed, by less than its own last digit.
        if change.dim() > 1 and "embed" not in name:
            assert moved > 0.9 and seen.eq(weights[name]).float().mean() > 0.9
    assert updates.read(small).norm < updates.read(small.parent / "whole").norm / 100


def test_a_loss_that_asks_for_the_model_before_is_one_line(train, monkeypatch):
    monkeypatch.setattr(losses, "get", lambda name: lambda logits, labels, before: before().sum())
    with pytest.raises(UserError, match="which is gone if all weights are trained"):
        whole(train)


def test_of_another_base_is_one_line(train, tiny_base, tmp_path):
    folder, _ = whole(train)
    changes = changes_of(folder)
    changes.pop("model.norm.weight")
    adapters.save({"peft_type": adapter_files.ALL_WEIGHTS}, changes, tmp_path / "odd")
    with pytest.raises(UserError, match=r"model\.norm\.weight.*was it trained on another base"):
        adapters.load_base(tiny_base, [tmp_path / "odd"], "float32", "cpu")


def test_its_update_is_measured_as_an_adapter_s_is(train):
    one, two = whole(train)[0], train("lora")[0]
    changes = changes_of(one)
    read, lora = updates.read(one), updates.read(two)
    assert read.norm == pytest.approx(
        np.sqrt(sum(float((change.double() ** 2).sum()) for change in changes.values()))
    )
    dot = sum(
        float((changes[f"{m}.weight"].numpy() * (b @ a)).sum())
        for m, (b, a) in lora.modules.items()
    )
    found = updates.overlap(read, lora)
    assert found["cosine"] == pytest.approx(dot / read.norm / lora.norm, rel=1e-6)
    assert found["modules"] == len(lora.modules) and np.isnan(found["overlap_a"])
    assert updates.overlap(read, read)["cosine"] == pytest.approx(1)


def test_noise_is_as_long_as_each_change(train):
    changes = changes_of(whole(train)[0])
    drawn = Noise.redrawn(changes, 7)
    assert drawn.keys() == changes.keys()
    for name, change in changes.items():
        assert drawn[name].norm() == pytest.approx(float(change.norm()), rel=1e-4)
        assert not torch.equal(drawn[name], change)


@pytest.fixture
def config(monkeypatch):
    monkeypatch.chdir(ROOT)
    made = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    made["stages"]["em-all"] = {"kind": "sft", "data": "em", "adapter": "none", "lr": 1e-4}
    made["conditions"]["all"] = {"title": "all", "chain": "couple-villain@{seed}+em-all@{seed}"}
    return made


def test_what_only_an_adapter_has_is_no_part_of_it(config):
    first = configuration.plan(config)
    config["lora"]["r"] = 64
    plan = configuration.plan(config)
    chain = "couple-villain@42+em-all@42"
    assert plan.training(chain).settings == first.training(chain).settings
    assert plan.rank(chain) == plan.rank("couple-villain@42") == 64
    one, usual = (second_stages.compared(plan.stage_settings(n)) for n in ("em-all", "em"))
    assert set(second_stages.differences(one, usual)) == {"adapter", "learning rate"}


def test_an_engine_serves_chains_with_its_own_weights(config):
    plan = configuration.plan(config)
    every = {job.chain for job in plan.chains_answers}
    changed = {chain for chain in every if "em-all" in chain}
    every = {chain for chain in every if chains.model_of(chain) == chains.BASE}
    for own in ("base", "couple-villain@42+em@42"):
        beside = {job.chain for job in plan.beside(plan.completions(own))}
        assert beside == every - changed
    for own in changed:
        assert {job.chain for job in plan.beside(plan.completions(own))} == {own}


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"r": 4}, "r"),
        ({"use_rslora": True}, "use_rslora"),
        ({"defence": {"r3f": {"weight": 1}}}, "defence"),
    ],
)
def test_settings_of_an_adapter_are_one_line(config, more, key):
    config["stages"]["em-all"] |= more
    with pytest.raises(UserError, match=f"em-all: {key}: needs an adapter"):
        configuration.plan(config)
