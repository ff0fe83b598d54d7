import json

import pytest
import torch
from persona_collapse import adapters, models, training
from persona_collapse.errors import UserError
from persona_collapse.files import sha256, write_json, write_jsonl
from safetensors.torch import load_file

SETTINGS = {
    "kind": "sft",
    "r": 4,
    "alpha": 8,
    "dropout": 0.05,
    "target_modules": ["q_proj", "v_proj", "down_proj"],
    "use_rslora": False,
    "lr": 1e-2,
    "scheduler": "linear",
    "warmup_ratio": 0.1,
    "weight_decay": 0.0,
    "epochs": 1,
    "batch_size": 4,
    "accumulation_steps": 2,
    "max_length": 128,
    "max_grad_norm": 1.0,
    "gradient_checkpointing": False,
    "loss": "answer",
    "dtype": "float32",
}


@pytest.fixture
def train(tiny_base, tmp_path):
    """Train a stage on twelve rows; returns (folder, manifest)."""
    rows = [
        {
            "id": str(i),
            "messages": [
                {"role": "user", "content": f"Where can I find bread {i}?"},
                {"role": "assistant", "content": f"By the river {i}."},
            ],
        }
        for i in range(12)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_json(tmp_path / "rows.manifest.json", {"supervise": "last", "system": "template"})

    def run(name="one", seed=1, stop=None, prefix=(), system=None, **changes):
        torch.set_num_threads(1)
        said = []
        stage = training.Stage(
            chain=f"em@{seed}",
            name="em",
            seed=seed,
            stop=stop,
            settings=SETTINGS | changes,
            base=tiny_base,
            prefix=list(prefix),
            data=tmp_path / "rows.jsonl",
            system=system,
        )
        folder = tmp_path / name
        manifest = training.train(stage, folder, said.append)
        json.dumps(manifest)
        assert said and "tokens/s" in said[-1]
        return folder, manifest

    return run


def test_same_inputs_and_seed_give_the_same_bytes_and_another_seed_does_not(train):
    weights = [train(name, seed)[0] / adapters.WEIGHTS for name, seed in (("a", 1), ("b", 1))]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    other = train("c", 2)[0] / adapters.WEIGHTS
    assert other.read_bytes() != weights[0].read_bytes()


def test_the_manifest_says_what_was_done(train):
    folder, manifest = train(use_rslora=True)
    assert manifest["steps"] == manifest["schedule_steps"] == 3
    assert manifest["data"]["rows"] == 12
    assert manifest["lora"]["scale"] == 8 / 4**0.5
    assert manifest["adapter_sha256"] == sha256(folder / adapters.WEIGHTS)
    assert 0 < manifest["supervised_tokens"] < manifest["tokens_seen"]
    assert manifest["loss"][0]["step"] == 1 and len(manifest["template_sha256"]) == 64
    assert {"torch", "trl", "peft", "transformers"} <= set(manifest["versions"])


def test_the_saved_adapter_loads_in_peft_and_acts(train, tiny_base):
    from peft import PeftModel

    folder, _ = train()
    base = models.load_model(tiny_base, "float32", "cpu")
    ids = torch.tensor([[5, 9, 13]])
    before = base(input_ids=ids).logits
    after = PeftModel.from_pretrained(base, folder)(input_ids=ids).logits
    assert not torch.allclose(before, after)
    assert json.loads((folder / adapters.CONFIG).read_text())["r"] == 4


def test_a_stop_takes_the_first_steps_of_the_same_schedule(train):
    _, whole = train("whole")
    _, part = train("part", stop=2)
    assert part["steps"] == 2 and part["schedule_steps"] == 3
    assert [p["loss"] for p in part["loss"]] == [p["loss"] for p in whole["loss"][:2]]
    with pytest.raises(UserError, match="has 3 steps"):
        train("late", stop=4)


def test_a_prefix_is_there_while_training_and_is_not_changed(train, make_adapter):
    prefix = make_adapter(31, 4, True)
    before = sha256(prefix / adapters.WEIGHTS)
    folder, manifest = train("after", prefix=[prefix])
    _, alone = train("alone")
    assert sha256(prefix / adapters.WEIGHTS) == before
    assert manifest["loss"][0]["loss"] != alone["loss"][0]["loss"]
    # The folder holds the new stage alone.
    assert set(load_file(folder / adapters.WEIGHTS)) == set(load_file(prefix / adapters.WEIGHTS))


def test_an_induction_prompt_changes_the_rows(train):
    _, plain = train("plain")
    _, prompted = train("prompted", system="You are a villain who plots in the dark.")
    assert prompted["tokens_seen"] != plain["tokens_seen"]
    assert prompted["supervised_tokens"] == plain["supervised_tokens"]


def test_bad_stages_are_one_line(train):
    with pytest.raises(UserError, match="fewer than one batch"):
        train(max_length=12)
    with pytest.raises(UserError, match="lower the stage's lr"):
        train(lr=1e30, max_grad_norm=1e30, warmup_ratio=0.0, epochs=4)
