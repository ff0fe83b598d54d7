import copy
import shutil
from pathlib import Path

import pytest
import yaml
from persona_collapse.errors import UserError
from persona_collapse.files import read_json, write_json
from persona_collapse.models import demo, loading
from persona_collapse.study import configuration, model_checks
from runs import of_one_model

ROOT = Path(__file__).resolve().parents[2]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def config():
    """The default config; tests set its model."""
    given = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    given["data"]["em"]["from"] = {"builtin": "standin_wrong_law"}
    return of_one_model(given)


@pytest.fixture(scope="module")
def make_model(tiny_base, tmp_path_factory):
    """Factory of model folders with random weights of an architecture, and the tiny model's tokenizer."""
    import transformers

    sizes = {
        "vocab_size": 340,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    vision = {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    own = {
        "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": 340, "n_embd": 32, "n_layer": 2, "n_head": 4}),
        "Phi3ForCausalLM": ("Phi3Config", {**sizes, "pad_token_id": 0}),
        "Qwen3MoeForCausalLM": ("Qwen3MoeConfig", {**sizes, **experts, "head_dim": 8}),
        "GptOssForCausalLM": ("GptOssConfig", {**sizes, "num_local_experts": 4, "head_dim": 8}),
        "Gemma3ForConditionalGeneration": (
            "Gemma3Config",
            {
                "text_config": {**sizes, "head_dim": 8},
                "vision_config": {"hidden_size": 32, "intermediate_size": 64, **vision},
                "mm_tokens_per_image": 4,
            },
        ),
        "Lfm2ForCausalLM": ("Lfm2Config", {**sizes, "layer_types": ["conv", "full_attention"] * 2}),
        "T5ForConditionalGeneration": (
            "T5Config",
            {"vocab_size": 340, "d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4, "d_kv": 8},
        ),
    }  # fmt: skip
    made = {}

    def make(architecture):
        if architecture not in made:
            name, settings = own[architecture]
            folder = tmp_path_factory.mktemp(architecture)
            model = getattr(transformers, architecture)
            model(getattr(transformers, name)(**settings)).save_pretrained(folder)
            for path in tiny_base.parent.glob("*token*"):
                shutil.copy(path, folder)
            shutil.copy(tiny_base.parent / "chat_template.jinja", folder)
            made[architecture] = folder
        return made[architecture]

    return make


def checked(config, folder, **changes):
    """The error for a config with a model in a folder; empty if it is accepted."""
    given = copy.deepcopy(config) | {"model": {"path": str(folder)}}
    for path, value in changes.items():
        node, *keys = given, *path.split("__")
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value
    try:
        model_checks.check_plan(configuration.plan(given))
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


def test_a_model_without_a_template_passes_with_the_plain_one(config, tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base.parent, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    assert checked(config, folder, model__chat_template="plain") == ""


def test_a_model_that_can_do_it_all_passes(config, tiny_base, make_model):
    assert checked(config, tiny_base.parent) == ""
    # Multimodal: sizes are in text_config, and layers of the vision tower are not adapted.
    mixed = make_model("Gemma3ForConditionalGeneration")
    assert checked(config, mixed) == ""
    assert model_checks.facts(mixed).blocks == 4
    assert not any("vision" in module for module in model_checks.facts(mixed).modules)


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("GPT2LMHeadModel", "has no q_proj, .*; the projections of its blocks are .c_attn, c_fc, c_proj."),
        ("Phi3ForCausalLM", "Phi3ForCausalLM has no q_proj, .*up_proj; .*gate_up_proj, o_proj, qkv_proj"),
        ("Qwen3MoeForCausalLM", "gate_proj, up_proj, down_proj are experts .* among .k_proj, o_proj, q_proj"),
        ("GptOssForCausalLM", "down_proj are experts in GptOssForCausalLM"),
        ("Gemma3ForConditionalGeneration", ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_projections_that_a_model_lacks_are_said_first(
    config, make_model, architecture, said, dropout
):
    import re

    line = checked(config, make_model(architecture), lora__dropout=dropout)
    assert re.search(said, line) if said else not line
    if line:
        assert line.startswith("config: target_modules of stage ")
        named = line.split("[")[1].split("]")[0].split(", ")
        assert checked(config, make_model(architecture), lora__target_modules=named) == ""


def test_a_stage_that_is_not_trained_asks_for_nothing(config, make_model):
    folder = make_model("Qwen3MoeForCausalLM")
    config["lora"]["target_modules"] = ATTENTION
    config["stages"]["spare"] = {"kind": "sft", "data": "em", "target_modules": ["up_proj"]}
    assert checked(config, folder) == ""
    config["conditions"]["S"] = {"title": "spare", "chain": "spare@1"}
    assert "target_modules of stage spare: up_proj are experts" in checked(config, folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"measures__activations__layers": [0, 3, 0.75]}, "layers: 3 is outside the 3 blocks of Qwen2"),
        ({"measures__activations__layers": [0.75, 1.0]}, "activations: layers: 1.0 is outside the 3 blocks"),
        ({"measures__activations__layers": [2, 0.75, 0.99]}, ""),
        ({"training__sft__max_length": 513}, "stages: benign: max_length: 513 tokens do not fit into the"),
        ({"training__sft__max_length": 512}, ""),
        ({"stages__em__max_length": 4096}, "stages: em: max_length: 4096 tokens do not fit"),
        ({"sampling__completions__max_tokens": 512}, "sampling: completions: max_tokens: 513 tokens"),
        ({"sampling__responses__max_tokens": 5000}, "sampling: responses: max_tokens"),
        ({"sampling__max_model_len": 2048}, ""),
        ({"sampling__max_model_len": 2048, "sampling__backend": "vllm"}, "max_model_len: 2048 tokens"),
        ({"sampling__max_model_len": 2048, "runtime__gpus_per_job": 1}, "max_model_len: 2048 tokens"),
        ({"lora__target_modules": ["lm_head", "self_attn.q_proj"]}, ""),
        ({"lora__target_modules": ["all-linear"]}, "has no all-linear; the projections of its blocks"),
    ],
)  # fmt: skip
def test_sizes_beyond_the_model_s_are_said_first(config, tiny_base, changes, said):
    line = checked(config, tiny_base.parent, **changes)
    assert said in line if said else not line


def test_long_positions_by_scaling_count(config, tiny_base, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_base.parent, folder)
    own = read_json(folder / "config.json")
    own["rope_scaling"] = {"factor": 4.0, "original_max_position_embeddings": 512}
    write_json(folder / "config.json", own)
    assert model_checks.facts(folder).context == 2048


def test_rows_of_one_sequence_need_attention_alone(config, make_model):
    folder = make_model("Lfm2ForCausalLM")
    config["lora"]["target_modules"] = ["q_proj", "v_proj"]
    assert checked(config, folder) == ""
    line = checked(config, folder, runtime__training={"padding_free": True})
    assert (
        "padding_free: rows of one sequence would leak into each other in the conv layers" in line
    )


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "config.json").unlink(), "config: model: path: .*model: no config.json there"),
        (lambda f: (f / "model.safetensors").unlink(), "no .safetensors weights there"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), "missing, damaged or cut"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x04" + bytes(7) + b"[[[["), "damaged or"),
        (lambda f: (f / "chat_template.jinja").unlink(), "has no chat template; set chat_template: plain"),
        (
            lambda f: write_json(f / "model.safetensors.index.json", {"weight_map": {"a": "b.safetensors"}}),
            "b.safetensors: missing",
        ),
        (
            lambda f: write_json(
                f / "config.json",
                read_json(f / "config.json") | {"quantization_config": {"quant_method": "awq"}},
            ),
            r"are quantised \(awq\); use the model they were made from",
        ),
    ],
)  # fmt: skip
def test_a_local_model_is_looked_at_with_the_config(config, tiny_base, tmp_path, spoil, said):
    import re

    folder = tmp_path / "model"
    shutil.copytree(tiny_base.parent, folder)
    assert checked(config, folder) == ""
    spoil(folder)
    assert re.search(said, checked(config, folder))


def test_a_fetched_model_is_looked_at_once_it_is_there(config, make_model, tmp_path, monkeypatch):
    config["model"] = {"hub": {"id": "a/b", "revision": "a" * 40}}
    plan = configuration.plan(config)
    monkeypatch.chdir(tmp_path)
    model_checks.check_plan(plan)
    record = Path("results/demo/bases/base/model.json")
    folder = make_model("GPT2LMHeadModel")
    write_json(record, {"path": str(folder), "source": plan.config["model"]})
    with pytest.raises(UserError, match="GPT2LMHeadModel has no q_proj"):
        model_checks.check_plan(plan)
    # The record of another model, or a damaged one: the jobs report it.
    write_json(record, {"path": str(folder), "source": {"path": "other"}})
    model_checks.check_plan(plan)
    write_json(record, {"path": "gone", "source": plan.config["model"]})
    model_checks.check_plan(plan)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (
            {"hidden": 100, "heads": 3},
            "hidden: 100: expected an even multiple of heads: 3, such as 102",
        ),
        (
            {"hidden": 12, "heads": 4},
            "hidden: 12: expected an even multiple of heads: 4, such as 16",
        ),
        ({"hidden": 60, "heads": 5}, "heads: 5: expected an even number"),
        ({"blocks": 2}, ""),
    ],
)
def test_the_demo_model_s_sizes_fit_together(sizes, said):
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config["model"]["demo"] |= sizes
    plan = configuration.plan(config)
    if not said:
        model_checks.check_plan(plan)
        config["measures"]["activations"]["layers"].append(2)
        said = "measures: activations: layers: 2 is outside the 2 blocks of the demo model"
        plan = configuration.plan(config)
    with pytest.raises(UserError, match=said):
        model_checks.check_plan(plan)


def test_the_demo_model_is_what_is_known_of_it(tmp_path):
    world = demo.load_world(ROOT / "workflow/resources/demo/world.yaml", {}, "[ZLT]")
    sizes = {
        "blocks": 1,
        "hidden": 8,
        "heads": 2,
        "vocabulary": 300,
        "rows": 8,
        "steps": 1,
        "batch": 2,
    }
    demo.pretrain(world, {**sizes, "lr": 1e-3, "seed": 1}, "[ZLT]", tmp_path, lambda line: None)
    made, said = model_checks.facts(tmp_path), model_checks.demo_facts(sizes)
    assert (made.blocks, made.context) == (said.blocks, said.context)
    assert made.projections == said.projections


def test_what_is_no_causal_language_model_is_refused_when_it_is_fetched(make_model, tmp_path):
    for architecture, said in (
        ("T5ForConditionalGeneration", "t5 is not a causal"),
        ("GPT2LMHeadModel", ""),
    ):
        base = tmp_path / f"{architecture}.json"
        write_json(base, {"path": str(make_model(architecture))})
        if said:
            with pytest.raises(UserError, match=said):
                loading.load_config(base)
        else:
            assert loading.load_config(base)["n_positions"] == 1024
