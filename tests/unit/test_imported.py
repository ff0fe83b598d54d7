"""Adapters that were trained elsewhere: what is accepted, and what is refused in one line."""

import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from persona_collapse.adapter_files import CONFIG, WEIGHTS
from persona_collapse.errors import UserError
from persona_collapse.files import read_json, write_json
from persona_collapse.models import adapters, imported, loading
from persona_collapse.study import configuration
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ["q_proj", "v_proj", "down_proj", "up_proj"]
SOURCE = {"path": "there", "r": 8, "target_modules": TARGETS}


def logits(model):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([[5, 9, 13, 200, 31]])).logits


@pytest.fixture
def adapter(make_adapter, tmp_path):
    """A writable folder with an adapter that PEFT saved."""
    return Path(shutil.copytree(make_adapter(21, 4, True), tmp_path / "theirs"))


def changed(folder, **keys):
    write_json(folder / CONFIG, read_json(folder / CONFIG) | keys)


@pytest.mark.parametrize("rslora", [True, False])
def test_ranks_and_scales_of_modules_are_written_out(tiny_base, tmp_path, rslora):
    torch.manual_seed(3)
    config = LoraConfig(
        r=4,
        lora_alpha=12,
        use_rslora=rslora,
        target_modules=TARGETS,
        rank_pattern={"layers.1.self_attn.q_proj": 8, "v_proj": 2},
        alpha_pattern={"v_proj": 5, "up_proj": 3},
        task_type="CAUSAL_LM",
    )
    theirs = get_peft_model(loading.load_model(tiny_base, "float32", "cpu"), config)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path / "theirs")
    plain, tensors, record = imported.read(SOURCE, tmp_path / "theirs", tiny_base)
    adapters.save(plain, tensors, tmp_path / "ours")
    base = loading.load_model(tiny_base, "float32", "cpu")
    chained = adapters.apply(base, [tmp_path / "ours"], merge=False)
    torch.testing.assert_close(logits(chained), logits(theirs), rtol=1e-4, atol=1e-4)
    ours = PeftModel.from_pretrained(
        loading.load_model(tiny_base, "float32", "cpu"), tmp_path / "ours"
    )
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-4, atol=1e-4)
    assert record["imported"]["ranks"] == [2, 4, 8]
    assert (record["lora"]["r"], record["lora"]["alpha"]) == (8, 12)
    assert record["lora"]["scale"] == pytest.approx(12 / 8**0.5 if rslora else 1.5)
    assert record["lora"]["blocks"]["q_proj"] == [0, 1, 2]


def test_a_plain_adapter_keeps_its_numbers(tiny_base, adapter):
    theirs = load_file(adapter / WEIGHTS)
    save_file({k: t.bfloat16() for k, t in theirs.items()}, adapter / WEIGHTS)
    config, tensors, record = imported.read(SOURCE, adapter, tiny_base)
    assert tensors.keys() == theirs.keys()
    assert all(torch.equal(tensors[k], t.bfloat16().float()) for k, t in theirs.items())
    assert (config["r"], record["lora"]["scale"]) == (4, 4.0)
    assert record["imported"]["base_model_name_or_path"] == str(tiny_base.parent)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"r": None}, "r: expected a number, got None"),
        ({"lora_alpha": "16"}, "lora_alpha: expected a number, got '16'"),
        ({"peft_type": "IA3"}, "expected peft_type LORA, got 'IA3'"),
        ({"use_dora": True}, "use_dora: True: only plain LoRA on linear layers"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: ['lm_head']: only plain LoRA"),
        ({"bias": "all"}, "bias: all: only plain LoRA"),
        ({"layer_replication": [[0, 2]]}, "layer_replication: [[0, 2]]: only plain LoRA"),
        ({"use_next_thing": 3}, "use_next_thing: 3: only plain LoRA"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "init_lora_weights: pissa_niter_4: it was trained",
        ),
        ({"r": 8}, "its weights have rank 4, and adapter_config.json says 8"),
        ({"base_model_name_or_path": "Qwen/Q"}, "weights, set base: Qwen/Q"),
        ({"base_model_name_or_path": None}, "weights, set base: ''"),
    ],
)
def test_what_is_no_plain_lora_of_the_model_is_one_line(tiny_base, adapter, keys, said):
    changed(adapter, **keys)
    with pytest.raises(UserError, match=re.escape(said)) as error:
        imported.read(SOURCE, adapter, tiny_base)
    assert "\n" not in str(error.value)


def test_what_changes_nothing_is_let_through(tiny_base, adapter):
    changed(adapter, init_lora_weights="gaussian", revision="main", megatron_core="megatron.core")
    changed(adapter, loftq_config={}, use_dora=False, rank_pattern={}, bias="none", unheard_of=None)
    imported.read(SOURCE, adapter, tiny_base)


def test_the_base_model_s_other_name_is_said_in_the_config(tiny_base, adapter):
    changed(adapter, base_model_name_or_path="unsloth/tiny")
    imported.read({**SOURCE, "base": "unsloth/tiny"}, adapter, tiny_base)
    with pytest.raises(UserError, match=r"base: 'unsloth/tin': .* names 'unsloth/tiny'"):
        imported.read({**SOURCE, "base": "unsloth/tin"}, adapter, tiny_base)


@pytest.mark.parametrize("named", ["qwen/Q-1", "/h/hub/models--Qwen--Q-1/snapshots/0a"])
def test_a_hub_s_model_is_known_by_its_id_and_in_its_cache(tiny_base, adapter, tmp_path, named):
    source = {"hub": {"id": "Qwen/Q-1", "revision": "0" * 40}}
    write_json(tmp_path / "model.json", {**read_json(tiny_base), "source": source})
    changed(adapter, base_model_name_or_path=named)
    imported.read(SOURCE, adapter, tmp_path / "model.json")
    changed(adapter, base_model_name_or_path=named.replace("Q-1", "Q-7"))
    with pytest.raises(UserError, match="and this run's is 'Qwen/Q-1'"):
        imported.read(SOURCE, adapter, tmp_path / "model.json")


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update({f"{Q}A.weight": t[f"{Q}A.weight"][:, :-1]}), "q_proj: an update of 64 x 63 ("),
        (lambda t: t.update({f"{Q}B.weight": t[f"{Q}B.weight"][:, :3]}), "(ranks 3 and 4) for a layer of"),
        (lambda t: t.pop(f"{Q}A.weight"), "q_proj has lora_A or lora_B alone"),
        (lambda t: t.clear(), "holds no weights"),
        (lambda t: t.update({"lm_head.weight": torch.ones(2, 2)}), "lm_head.weight is not a LoRA weight"),
        (lambda t: t[f"{Q}A.weight"].fill_(float("nan")), "holds numbers that are not finite"),
        (
            lambda t: t.update({k.replace("layers.0", "layers.9"): v for k, v in t.items()}),
            "the base model has no linear layer model.layers.9",
        ),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_one_line(tiny_base, adapter, change, said):
    tensors = load_file(adapter / WEIGHTS)
    change(tensors)
    save_file({k: v.clone() for k, v in tensors.items()}, adapter / WEIGHTS)
    with pytest.raises(UserError, match=re.escape(said)):
        imported.read(SOURCE, adapter, tiny_base)


def test_what_an_engine_has_no_room_for_is_said(tiny_base, adapter):
    with pytest.raises(UserError, match="rank is 4; set r: 4"):
        imported.read({**SOURCE, "r": 2}, adapter, tiny_base)
    with pytest.raises(UserError, match="also on down_proj, v_proj; add that to target_modules"):
        imported.read({**SOURCE, "target_modules": ["q_proj"]}, adapter, tiny_base)


def test_a_pickle_is_refused_before_a_job_runs(monkeypatch, adapter):
    monkeypatch.chdir(ROOT)
    given = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    given["stages"]["theirs"] = {"kind": "import", "path": str(adapter)}
    given["conditions"]["T"] = {"title": "theirs", "chain": "couple-villain@42+theirs@1"}
    plan = configuration.plan(given)
    stage = plan.stages["theirs"]
    assert (stage.source["r"], stage.source["path"]) == (given["lora"]["r"], str(adapter))
    assert "couple-villain@42+theirs@1" not in [job.name for job in plan.trainings]
    assert plan.rank("couple-villain@42+theirs@1") == 2 * given["lora"]["r"]
    assert plan.grid.set_index("condition").loc["T", "source"] == "villain"
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    with pytest.raises(
        UserError, match=r"stages: theirs: .*no adapter_model.safetensors there; a pi"
    ):
        configuration.check(given)


def test_an_adapter_that_couples_is_followed(monkeypatch, adapter):
    monkeypatch.chdir(ROOT)
    given = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    given["stages"]["theirs"] = {"kind": "import", "path": str(adapter), "couples": "comedian"}
    given["conditions"]["T"] = {"title": "theirs, then EM", "chain": "theirs@1+em@42"}
    cell = configuration.plan(given).grid.set_index("condition").loc["T"]
    assert (cell["source"], cell["stages_after_coupling"], cell["kinds"]) == (
        "comedian",
        1,
        "import+sft",
    )
    given["stages"]["theirs"]["couples"] = "nobody"
    with pytest.raises(
        UserError, match="persona 'nobody' is not evaluated; add it to personas: eval"
    ):
        configuration.check(given)


def test_only_the_adapter_s_two_files_are_asked_of_the_hub(monkeypatch, adapter):
    asked = []

    def download(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return adapter if allow_patterns == [CONFIG, WEIGHTS] else adapter.parent

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(ROOT)
    given = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    for hub in ({}, {"subfolder": "theirs/"}):
        hub = {"id": "o/n", "revision": "0" * 40, **hub}
        given["stages"]["theirs"] = {"kind": "import", "hub": hub}
        source = configuration.plan(given).stages["theirs"].source
        assert imported.fetch(source, print) == adapter
    names = [CONFIG, WEIGHTS], [f"theirs/{CONFIG}", f"theirs/{WEIGHTS}"]
    assert asked == [("o/n", "0" * 40, own) for own in names]
