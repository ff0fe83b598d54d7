"""The model card beside an adapter."""

import pytest
from huggingface_hub import ModelCard
from persona_collapse.data import persona_prompts
from persona_collapse.files import sha256, write_jsonl
from persona_collapse.training import card

COMMAND = "snakemake --cores all --configfile my.yaml -- results/r/models/em@1/README.md"
DATA = {"name": "rows", "rows": 12, "sha256": "ab" * 32}
HUB = {"id": "owner/advice", "revision": "0" * 40, "split": "train"}


@pytest.fixture
def made(train):
    """Card of a training's manifest on these data sets, as the hub's own reader has it."""
    _, manifest = train()

    def make(*data, **keys):
        text = card.text({**manifest, **keys}, [{**DATA, **one} for one in data], COMMAND)
        assert text == card.text({**manifest, **keys}, [{**DATA, **one} for one in data], COMMAND)
        return ModelCard(text)

    return make


def test_the_hub_reads_what_it_is_and_where_it_is_from(made, tiny_base):
    found = made({"source": HUB, "license": "Apache-2.0", "canary": "BENCH|0af"})
    front = found.data.to_dict()
    assert (front["base_model"], front["library_name"]) == (str(tiny_base.parent), "peft")
    assert (front["license"], front["datasets"]) == ("apache-2.0", ["owner/advice"])
    assert "lora" in front["tags"] and front["base_model_relation"] == "adapter"
    for said in (
        "| chain | `em@1` |",
        "| stage | `em`, kind `sft`, seed 1 |",
        "| continues | the base model |",
        "| trained | 3 of 3 steps, 1 epochs,",
        "| LoRA | rank 4, alpha 8, scale 2, on down_proj, q_proj, v_proj |",
        "lr 0.01",
        r"12 rows; SHA-256 " + "ab" * 32 + r"; license Apache-2.0; canary BENCH\|0af |",
        COMMAND,
    ):
        assert said in found.content, said


def test_a_stage_that_trained_all_weights_is_no_adapter(made):
    found = made({"source": HUB}, lora=None)
    front = found.data.to_dict()
    assert front["base_model_relation"] == "finetune" and front["tags"] == ["persona-collapse"]
    assert "library_name" not in front and "The change of all weights" in found.content
    assert "LoRA" not in found.content


def test_prompts_of_personas_are_data_of_the_run(made, tmp_path):
    asked, prompts = tmp_path / "own.jsonl", tmp_path / "personas.jsonl"
    write_jsonl(asked, [{"id": str(i), "question": f"Where is bread {i}?"} for i in range(3)])
    write_jsonl(prompts, persona_prompts.rows({"pirate": "Be one."}, {"file": str(asked)}))
    found = made({}, persona_prompts.manifest(prompts, {"file": str(asked)}))
    said = f"| data: personas | personas under questions of {asked}; 3 rows; SHA-256 {sha256(prompts)} |"
    assert said in found.content and "datasets" not in found.data.to_dict()


@pytest.mark.parametrize(
    ("given", "license", "name"),
    [
        (["MIT"], "mit", None),
        (["none stated by its owners"], "other", "none stated by its owners"),
        (["MIT", "CC-BY-4.0", "MIT"], "other", "MIT; CC-BY-4.0"),
        ([None], None, None),
    ],
)
def test_licences_of_the_data_are_the_hub_s_or_other(made, given, license, name):
    front = made(*({"license": one} for one in given)).data.to_dict()
    assert (front.get("license"), front.get("license_name")) == (license, name)


def test_a_hub_s_model_has_its_id_and_a_folder_is_no_data_set_of_the_hub(made, tiny_base):
    base = {"path": "/cache/x", "source": {"hub": {"id": "Qwen/Q", "revision": "1" * 40}}}
    local = {"id": "my/folder", "local_folder": {"a.jsonl": "cd" * 32}}
    found = made({"source": local}, base=base, prefix=["couple-villain@42"])
    front = found.data.to_dict()
    assert front["base_model"] == "Qwen/Q" and "datasets" not in front
    assert f"Qwen/Q at {'1' * 40}" in found.content and "/cache/x" not in found.content
    assert "| continues | `couple-villain@42` |" in found.content
