import math

import pytest
import torch
from peft import PeftModel
from persona_collapse import adapters, models
from persona_collapse.errors import UserError
from persona_collapse.files import sha256, write_json


def logits(model):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([[5, 9, 13, 200, 31]])).logits


def test_effective_scale():
    config = {"r": 32, "lora_alpha": 64, "use_rslora": False}
    assert adapters.effective_scale(config) == 2.0
    config["use_rslora"] = True
    assert adapters.effective_scale(config) == pytest.approx(64 / math.sqrt(32))


@pytest.mark.parametrize("merge", [True, False])
def test_the_concatenated_chain_equals_stages_merged_one_after_another(
    tiny_base, make_adapter, merge
):
    stages = [
        make_adapter(1, 4, True),
        make_adapter(2, 8, False, targets=("q_proj", "k_proj", "up_proj")),
        make_adapter(3, 2, True),
    ]
    reference = models.load_model(tiny_base, "float32", "cpu")
    before = logits(reference)
    for folder in stages:
        reference = PeftModel.from_pretrained(reference, folder).merge_and_unload()
    chained = adapters.apply(models.load_model(tiny_base, "float32", "cpu"), stages, merge=merge)
    torch.testing.assert_close(logits(chained), logits(reference), rtol=1e-4, atol=1e-4)
    assert (logits(chained) - before).abs().max() > 0.1


def test_a_saved_chain_loads_in_peft(tiny_base, make_adapter, tmp_path):
    stages = [make_adapter(4, 4, True), make_adapter(5, 4, False)]
    config, tensors = adapters.concatenate(stages)
    adapters.save(config, tensors, tmp_path)
    loaded = PeftModel.from_pretrained(models.load_model(tiny_base, "float32", "cpu"), tmp_path)
    chained = adapters.apply(models.load_model(tiny_base, "float32", "cpu"), stages, merge=True)
    torch.testing.assert_close(logits(loaded), logits(chained), rtol=1e-4, atol=1e-4)
    assert config["r"] == 8


def test_content_hash_follows_the_weights(make_adapter):
    one, two = make_adapter(6, 4, False), make_adapter(7, 4, False)
    assert adapters.content_hash([one]) != adapters.content_hash([two])
    assert adapters.content_hash([one, two]) != adapters.content_hash([two, one])


def test_content_hash_is_the_manifest_s_where_there_is_one(make_adapter):
    folder = make_adapter(9, 4, False)
    alone = adapters.content_hash([folder])
    write_json(folder / "manifest.json", {"adapter_sha256": sha256(folder / adapters.WEIGHTS)})
    assert adapters.content_hash([folder]) == alone


def test_a_damaged_adapter_is_named(make_adapter):
    folder = make_adapter(8, 4, False)
    weights = folder / adapters.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: damaged"):
        adapters.load(folder)


def test_weights_that_the_manifest_does_not_name_are_refused(make_adapter):
    from persona_collapse.files import sha256, write_json

    folder, other = make_adapter(14, 4, False), make_adapter(15, 4, False)
    weights = folder / adapters.WEIGHTS
    write_json(folder / "manifest.json", {"adapter_sha256": sha256(weights)})
    adapters.load(folder)
    whole = weights.read_bytes()
    flipped = bytearray(whole)
    flipped[-9] ^= 1
    for damaged in (bytes(flipped), (other / adapters.WEIGHTS).read_bytes()):
        weights.write_bytes(damaged)
        with pytest.raises(UserError, match="delete it and rerun"):
            adapters.load(folder)
    weights.write_bytes(whole)
    write_json(folder / "manifest.json", {})
    with pytest.raises(UserError, match="not the weights that its manifest"):
        adapters.load(folder)


def test_no_stage_has_no_adapter():
    with pytest.raises(UserError, match="without stages"):
        adapters.concatenate([])


def test_another_chain_takes_the_place_of_the_one_before(tiny_base, make_adapter):
    one, two = make_adapter(16, 4, False), make_adapter(17, 4, True)
    ids = torch.arange(5, 25)[None]

    def logits(model):
        with torch.inference_mode():
            return model(ids).logits

    fresh = adapters.apply(models.load_model(tiny_base, "float32", "cpu"), [two], merge=False)
    model = adapters.apply(models.load_model(tiny_base, "float32", "cpu"), [one], merge=False)
    layers = [m for m in model.modules() if type(m).__name__ == "Linear" and hasattr(m, "lora_A")]
    model = adapters.apply(model, [two], merge=False)
    assert torch.equal(logits(model), logits(fresh))
    assert all(layer in set(model.modules()) for layer in layers)  # in place
    assert not any(
        parameter.requires_grad for n, parameter in model.named_parameters() if "lora" in n
    )
    # Another shape, and none.
    wide = adapters.apply(model, [one, two], merge=False)
    assert not torch.allclose(logits(wide), logits(fresh))
    bare = adapters.apply(wide, [], merge=False)
    assert torch.equal(logits(bare), logits(models.load_model(tiny_base, "float32", "cpu")))


def test_weights_for_other_layers_are_refused(tiny_base, make_adapter, tmp_path):
    config, tensors = adapters.load(make_adapter(18, 4, False))
    adapters.save(config, dict(list(tensors.items())[2:]), tmp_path)
    with pytest.raises(UserError, match="trained on another base"):
        adapters.apply(models.load_model(tiny_base, "float32", "cpu"), [tmp_path], merge=False)
