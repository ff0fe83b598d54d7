import copy
import math

import pytest
import torch
from peft import PeftModel
from persona_collapse import adapter_files
from persona_collapse.errors import UserError
from persona_collapse.files import sha256, write_json
from persona_collapse.models import adapters, loading


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
    reference = loading.load_model(tiny_base, "float32", "cpu")
    before = logits(reference)
    for folder in stages:
        reference = PeftModel.from_pretrained(reference, folder).merge_and_unload()
    chained = adapters.apply(loading.load_model(tiny_base, "float32", "cpu"), stages, merge=merge)
    torch.testing.assert_close(logits(chained), logits(reference), rtol=1e-4, atol=1e-4)
    assert (logits(chained) - before).abs().max() > 0.1


def test_a_saved_chain_loads_in_peft(tiny_base, make_adapter, tmp_path):
    stages = [make_adapter(4, 4, True), make_adapter(5, 4, False)]
    config, tensors = adapters.concatenate(stages)
    adapters.save(config, tensors, tmp_path)
    loaded = PeftModel.from_pretrained(loading.load_model(tiny_base, "float32", "cpu"), tmp_path)
    chained = adapters.apply(loading.load_model(tiny_base, "float32", "cpu"), stages, merge=True)
    torch.testing.assert_close(logits(loaded), logits(chained), rtol=1e-4, atol=1e-4)
    assert config["r"] == 8


def test_content_hash_follows_the_weights(make_adapter):
    one, two = make_adapter(6, 4, False), make_adapter(7, 4, False)
    assert adapter_files.content_hash([one]) != adapter_files.content_hash([two])
    assert adapter_files.content_hash([one, two]) != adapter_files.content_hash([two, one])


def test_content_hash_is_the_manifest_s_where_there_is_one(make_adapter):
    folder = make_adapter(9, 4, False)
    alone = adapter_files.content_hash([folder])
    write_json(folder / "manifest.json", {"adapter_sha256": sha256(folder / adapter_files.WEIGHTS)})
    assert adapter_files.content_hash([folder]) == alone


def test_a_damaged_adapter_is_named(make_adapter):
    folder = make_adapter(8, 4, False)
    weights = folder / adapter_files.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: damaged"):
        adapters.load(folder)


def test_weights_that_the_manifest_does_not_name_are_refused(make_adapter):
    from persona_collapse.files import sha256, write_json

    folder, other = make_adapter(14, 4, False), make_adapter(15, 4, False)
    weights = folder / adapter_files.WEIGHTS
    write_json(folder / "manifest.json", {"adapter_sha256": sha256(weights)})
    adapters.load(folder)
    whole = weights.read_bytes()
    flipped = bytearray(whole)
    flipped[-9] ^= 1
    for damaged in (bytes(flipped), (other / adapter_files.WEIGHTS).read_bytes()):
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

    fresh = adapters.apply(loading.load_model(tiny_base, "float32", "cpu"), [two], merge=False)
    model = adapters.apply(loading.load_model(tiny_base, "float32", "cpu"), [one], merge=False)
    layers = [m for m in model.modules() if type(m).__name__ == "Linear" and hasattr(m, "lora_A")]
    model = adapters.apply(model, [two], merge=False)
    assert torch.equal(logits(model), logits(fresh))
    assert all(layer in set(model.modules()) for layer in layers)  # in place
    assert not any(
        parameter.requires_grad for n, parameter in model.named_parameters() if "lora" in n
    )
    # Another shape, and no adapter.
    wide = adapters.apply(model, [one, two], merge=False)
    assert not torch.allclose(logits(wide), logits(fresh))
    bare = adapters.apply(wide, [], merge=False)
    assert torch.equal(logits(bare), logits(loading.load_model(tiny_base, "float32", "cpu")))


def test_weights_for_other_layers_are_refused(tiny_base, make_adapter, tmp_path):
    config, tensors = adapters.load(make_adapter(18, 4, False))
    adapters.save(config, dict(list(tensors.items())[2:]), tmp_path)
    with pytest.raises(UserError, match="trained on another base"):
        adapters.apply(loading.load_model(tiny_base, "float32", "cpu"), [tmp_path], merge=False)


SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip
LINEAR = {
    f"linear_{of}": n
    for of, n in [("num_key_heads", 1), ("num_value_heads", 2), ("key_head_dim", 8), ("value_head_dim", 8)]
}  # fmt: skip
TOWER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ARCHITECTURES = {
    "Phi3": {**SMALL, "pad_token_id": 0},
    "GPT2": {"vocab_size": 64, "n_embd": 32, "n_layer": 4, "n_head": 2},
    "Mpt": {"vocab_size": 64, "d_model": 32, "n_layers": 4, "n_heads": 2},
    "Qwen3Moe": {**SMALL, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "Qwen3_5Text": {**SMALL, "head_dim": 16, **LINEAR},
    "Gemma3": {"text_config": {**SMALL, "head_dim": 16}, "vision_config": TOWER},
    "Gemma2": {**SMALL, "head_dim": 16, "final_logit_softcapping": 0.1},
    "Cohere": SMALL,
    "Granite": {**SMALL, "logits_scaling": 8.0},
}


def architecture(name):
    import transformers

    config = getattr(transformers, f"{name}Config")(**ARCHITECTURES[name])
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("name", "missing", "there"),
    [
        ("Phi3", "gate_proj, k_proj", "[o_proj, qkv_proj, gate_up_proj, down_proj]"),
        ("GPT2", "down_proj, gate_proj", "[c_attn, c_proj, c_fc]"),
        ("Mpt", "gate_proj, k_proj", "[Wqkv, out_proj, up_proj, down_proj]"),
        ("Qwen3Moe", "down_proj, gate_proj, up_proj", "[q_proj, k_proj, v_proj, o_proj]"),
    ],
)
def test_projections_that_a_model_lacks_are_one_line_with_those_it_has(name, missing, there):
    with torch.device("meta"):
        model = architecture(name)
    assert len(loading.blocks_of(model)) == 4
    with pytest.raises(UserError) as caught:
        adapters.targets(model, SEVEN)
    assert f"has no {missing}" in str(caught.value) and there in str(caught.value)
    # The line can be copied.
    found = adapters.by_block(adapters.targets(model, there.strip("[]").split(", ")))
    assert all(blocks == [0, 1, 2, 3] for blocks in found.values())


def test_what_only_some_blocks_have_is_listed_block_by_block():
    with torch.device("meta"):
        model = architecture("Qwen3_5Text")
    found = adapters.targets(model, SEVEN)
    assert adapters.by_block(found)["q_proj"] == [3]
    assert adapters.by_block(found)["down_proj"] == [0, 1, 2, 3]
    assert "q_proj is in 1 of 4 blocks: 3" in adapters.partly(found, 4)
    assert adapters.named(model, found) == sorted(SEVEN)


def test_an_adapter_may_be_on_a_part_of_the_blocks():
    with torch.device("meta"):
        model = architecture("Qwen3_5Text")
    depths = {(0, 0.5): [0, 1], (0.5, 1): [2, 3], (0.25, 0.75): [1, 2], (0.3, 0.6): [2]}
    for depth, blocks in depths.items():
        found = adapters.targets(model, ["down_proj"], depth)
        assert adapters.by_block(found) == {"down_proj": blocks}
        # By path: by name it would be on all blocks.
        assert adapters.named(model, found) == sorted(found)
    with pytest.raises(UserError, match=r"blocks: \[0.3, 0.4\] holds none of the 4 blocks"):
        adapters.targets(model, ["down_proj"], (0.3, 0.4))


@pytest.mark.parametrize(
    ("name", "names"), [("Gemma3", SEVEN), ("GPT2", ["c_attn", "c_proj"]), ("Qwen3_5Text", SEVEN)]
)
def test_an_adapter_is_on_the_language_model_alone(name, names, tmp_path):
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    torch.manual_seed(0)
    model = architecture(name).eval()
    bare = copy.deepcopy(model)
    found = adapters.targets(model, names)
    lora = LoraConfig(r=2, target_modules=list(found), init_lora_weights=False)
    model = get_peft_model(model, lora).eval()
    state = get_peft_model_state_dict(model)
    assert adapters.adapted(state, found) == found
    assert not any("vision" in key for key in state) and len(state) == 2 * len(found)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "use_rslora": False}
    adapters.save(config | {"target_modules": adapters.named(model, found)}, state, tmp_path)
    # A chain's model, and PEFT's model from the folder, have exactly these modules.
    ids = torch.tensor([[5, 9, 13]])
    expected = model(input_ids=ids).logits
    for other in (adapters.attach(copy.deepcopy(bare), [tmp_path], name="default"),
                  PeftModel.from_pretrained(copy.deepcopy(bare), tmp_path)):  # fmt: skip
        torch.testing.assert_close(other(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
        assert set(get_peft_model_state_dict(other)) == set(state)


@pytest.mark.parametrize(
    "name", ["Phi3", "GPT2", "Qwen3Moe", "Gemma3", "Gemma2", "Cohere", "Granite"]
)
def test_a_model_that_caps_or_scales_its_logits_is_one_line(name):
    torch.manual_seed(0)
    model = architecture(name).eval()
    if name in ("Gemma2", "Cohere", "Granite"):
        with pytest.raises(UserError, match=f"{name}ForCausalLM caps or scales the logits"):
            loading.check_head(model)
    else:
        loading.check_head(model)


def test_an_adapter_on_other_modules_than_asked_for_is_refused():
    wanted = {"model.layers.0.q_proj": ("q_proj", 0), "model.layers.0.k_proj": ("k_proj", 0)}
    keys = ["base_model.model.model.layers.0.q_proj.lora_A.weight"]
    with pytest.raises(UserError, match=r"1 modules were adapted and 2 .* model.layers.0.k_proj"):
        adapters.adapted(dict.fromkeys(keys), wanted)
