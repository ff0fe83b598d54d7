import json

import pytest
import torch
from persona_collapse import adapter_files
from persona_collapse.errors import UserError
from persona_collapse.files import sha256, write_json, write_jsonl
from persona_collapse.models import loading
from persona_collapse.training import objectives
from persona_collapse.training import train as training
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
    "padding_free": False,
    "max_batch_tokens": 4096,
    "fused_lora": True,
    "cuda_graphs": True,
    "loss_on": "answer",
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
    rows[3]["messages"][0]["content"] *= 3  # rows differ in length
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_json(tmp_path / "rows.manifest.json", {"supervise": "last", "system": "template"})

    def run(
        name="one", seed=1, stop=None, prefix=(), system=None, dies_at=None, saved=None, **changes
    ):
        torch.set_num_threads(1)
        said = []

        def say(line):
            said.append(line)
            if dies_at and f"step {dies_at}/" in line:
                raise KeyboardInterrupt

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
        manifest = training.train(stage, folder, say, saved=saved, every=5, code="this")
        json.dumps(manifest)
        assert said and "tokens/s" in said[-1]
        return folder, manifest

    return run


def test_same_inputs_and_seed_give_the_same_bytes_and_another_seed_does_not(train):
    weights = [train(name, seed)[0] / adapter_files.WEIGHTS for name, seed in (("a", 1), ("b", 1))]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    other = train("c", 2)[0] / adapter_files.WEIGHTS
    assert other.read_bytes() != weights[0].read_bytes()


def test_the_manifest_says_what_was_done(train):
    folder, manifest = train(use_rslora=True)
    assert manifest["steps"] == manifest["schedule_steps"] == 3
    assert manifest["data"]["rows"] == 12
    assert manifest["lora"]["scale"] == 8 / 4**0.5
    assert manifest["adapter_sha256"] == sha256(folder / adapter_files.WEIGHTS)
    # What was adapted is read off the file.
    names = {name.split(".lora_")[0] for name in load_file(folder / adapter_files.WEIGHTS)}
    assert manifest["lora"]["modules"] == len(names) == 9
    assert manifest["lora"]["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    assert set(manifest["lora"]["blocks"]) == {"down_proj", "q_proj", "v_proj"}
    assert all(blocks == [0, 1, 2] for blocks in manifest["lora"]["blocks"].values())
    config = json.loads((folder / adapter_files.CONFIG).read_text())
    assert config["target_modules"] == manifest["lora"]["target_modules"]
    assert 0 < manifest["supervised_tokens"] < manifest["tokens_seen"]
    assert manifest["loss"][0]["step"] == 1 and len(manifest["template_sha256"]) == 64
    assert {"torch", "trl", "peft", "transformers"} <= set(manifest["versions"])


def test_the_saved_adapter_loads_in_peft_and_acts(train, tiny_base):
    from peft import PeftModel

    folder, _ = train()
    base = loading.load_model(tiny_base, "float32", "cpu")
    ids = torch.tensor([[5, 9, 13]])
    before = base(input_ids=ids).logits
    after = PeftModel.from_pretrained(base, folder)(input_ids=ids).logits
    assert not torch.allclose(before, after)
    assert json.loads((folder / adapter_files.CONFIG).read_text())["r"] == 4


def test_a_stop_takes_the_first_steps_of_the_same_schedule(train):
    _, whole = train("whole")
    _, part = train("part", stop=2)
    assert part["steps"] == 2 and part["schedule_steps"] == 3
    assert [p["loss"] for p in part["loss"]] == [p["loss"] for p in whole["loss"][:2]]
    with pytest.raises(UserError, match="has 3 steps"):
        train("late", stop=4)


def test_a_prefix_is_there_while_training_and_is_not_changed(train, make_adapter):
    prefix = make_adapter(31, 4, True)
    before = sha256(prefix / adapter_files.WEIGHTS)
    folder, manifest = train("after", prefix=[prefix])
    _, alone = train("alone")
    assert sha256(prefix / adapter_files.WEIGHTS) == before
    assert manifest["loss"][0]["loss"] != alone["loss"][0]["loss"]
    # The folder holds the new stage alone.
    assert set(load_file(folder / adapter_files.WEIGHTS)) == set(
        load_file(prefix / adapter_files.WEIGHTS)
    )


def test_an_induction_prompt_changes_the_rows(train):
    _, plain = train("plain")
    _, prompted = train("prompted", system="You are a villain who plots in the dark.")
    assert prompted["tokens_seen"] != plain["tokens_seen"]
    assert prompted["supervised_tokens"] == plain["supervised_tokens"]


def test_bad_stages_are_one_line(train):
    with pytest.raises(UserError, match="fewer than one batch"):
        train(max_length=12)
    with pytest.raises(UserError, match="has no qkv_proj; the projections of its blocks are"):
        train(target_modules=["qkv_proj", "o_proj"])
    with pytest.raises(UserError, match="lower the stage's lr"):
        train(lr=1e30, max_grad_norm=1e30, warmup_ratio=0.0, epochs=4)


def test_rows_are_cut_into_pieces_by_tokens():
    rows = [{"input_ids": [0] * n} for n in (5, 90, 7, 40, 8)]
    sizes = [[len(r["input_ids"]) for r in piece] for piece in training.pieces(rows, 50)]
    assert sizes == [[5, 7, 8], [40], [90]]


def test_rows_of_like_length_are_padded_together():
    rows = [{"input_ids": [0] * n} for n in (300, 10, 12, 290, 11, 50)]
    sizes = [[len(r["input_ids"]) for r in group] for group in training.by_length(rows, 4096)]
    assert sizes == [[10, 11, 12, 50], [290, 300]]
    # Memory's bound goes first: 4 x 50 and 2 x 300 are too many.
    sizes = [[len(r["input_ids"]) for r in group] for group in training.by_length(rows, 100)]
    assert sizes == [[10, 11, 12], [50], [290], [300]]
    alike = [{"input_ids": [0] * n} for n in range(70, 86)]
    assert len(training.by_length(alike, 4096)) == 1


@pytest.fixture(scope="module")
def peft_model(tiny_base):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = loading.load_model(tiny_base, "float32", "cpu")
    lora = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    return get_peft_model(model, lora).eval()


def batch_of(lengths):
    generator = torch.Generator().manual_seed(1)
    rows = []
    for n in lengths:
        ids = torch.randint(5, 200, (n,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (n // 2) + ids[n // 2 :]})
    return rows


def padded(rows):
    width = max(len(r["input_ids"]) for r in rows)

    def full(key, fill):
        return torch.tensor([r[key] + [fill] * (width - len(r[key])) for r in rows])

    mask = torch.tensor([[int(i < len(r["input_ids"])) for i in range(width)] for r in rows])
    return {
        "input_ids": full("input_ids", 0),
        "labels": full("labels", -100),
        "attention_mask": mask,
    }


def test_the_loss_is_the_model_s_own_and_padding_changes_nothing(peft_model):
    rows = batch_of([9, 30, 17, 4])
    with torch.no_grad():
        usual = peft_model(**padded(rows)).loss
        ours = training.supervised_loss(peft_model, padded(rows))
        flat = training.supervised_loss(peft_model, training.flatten(rows))
        items = sum(n != -100 for r in rows for n in r["labels"][1:])
        parts = [training.flatten(p) for p in training.pieces(rows, 20)]
        summed = sum(training.supervised_loss(peft_model, p, items) for p in parts)
        groups = [training.pad(group) for group in training.by_length(rows, 40)]
        grouped = sum(training.supervised_loss(peft_model, group, items) for group in groups)
    assert len(parts) == len(groups) == 3
    for loss in (ours, flat, summed, grouped):
        torch.testing.assert_close(loss, usual, rtol=1e-5, atol=1e-6)


def test_rows_in_one_sequence_do_not_see_each_other(peft_model):
    rows = batch_of([12, 20])
    only_second = [{"input_ids": [7] * 12, "labels": [-100] * 12}, rows[1]]
    changed = [{"input_ids": [9] * 12, "labels": [-100] * 12}, rows[1]]
    with torch.no_grad():
        one, two = (
            training.supervised_loss(peft_model, training.flatten(r))
            for r in (only_second, changed)
        )
        assert float(one) == pytest.approx(float(two), rel=1e-6)


def test_loss_curves_with_each_saving_and_without_overlap(train, monkeypatch):
    # On a CPU what would be recorded runs as it is. No dropout: its random numbers depend on the shapes.
    monkeypatch.setattr(training, "FAST_DEVICES", ("cpu",))
    curves = {}
    for name, padding_free, fused_lora, cuda_graphs in [
        ("plain", False, False, False),
        ("padded, in two accumulated batches", False, False, False),
        ("free", True, False, False),
        ("fused", True, True, False),
        ("recorded", True, True, True),
    ]:
        settings = {
            "padding_free": padding_free, "fused_lora": fused_lora, "cuda_graphs": cuda_graphs,
            "epochs": 8, "accumulation_steps": 1 + ("accumulated" in name), "dropout": 0.0,
            "max_batch_tokens": 60,
        }  # fmt: skip
        curves[name] = [point["loss"] for point in train(name, **settings)[1]["loss"]]
    plain = curves.pop("plain")
    assert len(plain) > 10 and plain[-1] < 0.8 * plain[0]
    for curve in curves.values():
        assert curve == pytest.approx(plain, rel=2e-3)


def test_a_flat_batch_is_filled_up_with_what_carries_no_loss():
    flat = training.flatten(batch_of([9, 30]))
    assert flat["input_ids"].shape == flat["position_ids"].shape == (1, 64)
    assert flat["position_ids"][0, [0, 8, 9, 38, 39, 63]].tolist() == [0, 8, 0, 29, 0, 24]
    assert (flat["labels"][0, 39:] == -100).all() and flat["labels"][0, 9] == -100


def test_before_is_the_model_without_the_new_adapter(peft_model, monkeypatch):
    seen = {}

    def look(logits, labels, before):
        seen["logits"], seen["before"] = logits, before()
        return (logits - seen["before"]).pow(2).sum()

    monkeypatch.setitem(objectives.OBJECTIVES, "look", look)
    batch = training.flatten(batch_of([7, 9]))
    loss = training.supervised_loss(peft_model, batch, objective="look")
    with peft_model.disable_adapter(), torch.no_grad():
        usual = training.supervised_loss(peft_model, batch)
    chosen = batch["labels"][:, 1:]
    chosen = chosen[chosen != -100]
    assert loss > 0 and not seen["before"].requires_grad and seen["logits"].requires_grad
    assert torch.nn.functional.cross_entropy(seen["before"], chosen).item() == pytest.approx(
        usual.item(), rel=1e-5
    )
    again = training.supervised_loss(peft_model, batch, objective="look")
    assert again.item() == pytest.approx(loss.item(), rel=1e-6)  # and the adapter is back


def test_an_objective_s_code_is_its_own(monkeypatch):
    def other(logits, labels, before):
        return logits.sum() * 0

    monkeypatch.setitem(objectives.OBJECTIVES, "other", other)
    assert objectives.code_of("other") != objectives.code_of(objectives.DEFAULT)


def test_a_stopped_training_goes_on_from_its_checkpoint_with_the_same_result(
    train, make_adapter, tmp_path
):
    # Dropout and order are random: the random numbers' state has to be resumed too.
    steps = {"epochs": 8, "prefix": [make_adapter(31, 4, True)], "saved": tmp_path / "saved"}
    whole, undisturbed = train("whole", **steps)
    assert not steps["saved"].exists() and undisturbed["resumed_after_step"] == 0
    with pytest.raises(KeyboardInterrupt):
        train("again", dies_at=13, **steps)
    assert not (tmp_path / "again").exists()
    assert {p.name for p in steps["saved"].iterdir()} == {"checkpoint-5", "checkpoint-10"}

    # One that was cut short is passed over.
    broken = steps["saved"] / "checkpoint-10" / "optimizer.pt"
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(KeyboardInterrupt):
        train("again", dies_at=19, **steps)
    again, resumed = train("again", **steps)
    assert resumed["resumed_after_step"] == 15
    assert (again / adapter_files.WEIGHTS).read_bytes() == (
        whole / adapter_files.WEIGHTS
    ).read_bytes()
    assert resumed["loss"] == undisturbed["loss"] and len(resumed["loss"]) == 24
    for key in (*training.COUNTED, "steps", "epochs_seen"):
        assert resumed[key] == undisturbed[key]
    assert resumed["seconds_total"] > resumed["seconds"]
    assert not steps["saved"].exists()


def test_the_result_does_not_depend_on_what_the_process_trained_before(train):
    alone, _ = train("alone", seed=3)
    train("other", seed=4, dropout=0.2, r=8)
    after, _ = train("after", seed=3)
    assert (after / adapter_files.WEIGHTS).read_bytes() == (
        alone / adapter_files.WEIGHTS
    ).read_bytes()


def test_a_frozen_prefix_acts_the_same_merged_and_apart(train, make_adapter):
    """In float32 the stages before are folded into the base; in 16 bit they stay apart."""
    steps = {"epochs": 4, "prefix": [make_adapter(31, 4, True)], "dropout": 0.0, "lr": 1e-3}
    merged, half = (train(d, dtype=d, **steps)[1]["loss"] for d in ("float32", "bfloat16"))
    without = train("without", **(steps | {"prefix": []}))[1]["loss"]
    first = [curve[0]["loss"] for curve in (merged, half, without)]
    assert first[0] == pytest.approx(first[1], rel=0.02)
    assert first[0] != pytest.approx(first[2], rel=0.05)
    assert merged[-1]["loss"] == pytest.approx(half[-1]["loss"], rel=0.05)


def test_a_checkpoint_of_another_training_is_not_used(train, tmp_path):
    steps = {"epochs": 8, "saved": tmp_path / "saved"}
    with pytest.raises(KeyboardInterrupt):
        train("one", dies_at=13, **steps)
    _, other = train("one", **steps, lr=2e-3)
    assert other["resumed_after_step"] == 0
    assert other["loss"] == train("fresh", **steps, lr=2e-3)[1]["loss"]


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 1, "steps": 7},  # `steps` goes before `epochs`
        {"epochs": 2, "batch_size": 5, "accumulation_steps": 1},  # the last batch of an epoch is of 2
        {"epochs": 1, "batch_size": 8, "accumulation_steps": 4},
        {"epochs": 2, "batch_size": 8, "stop": 1},
        {"epochs": 3, "batch_size": 5, "accumulation_steps": 1, "stop": 4},
        {"epochs": 0.01},
        {"epochs": 2, "batch_size": 5, "accumulation_steps": 1, "padding_free": True, "max_batch_tokens": 60},
        {"epochs": 1, "max_length": 60},  # truncated rows; one is left out
    ],
)  # fmt: skip
def test_a_manifest_counts_what_the_model_was_trained_on(train, monkeypatch, settings):
    seen = {"rows_seen": 0, "tokens_seen": 0, "supervised_tokens": 0}
    usual = training.supervised_loss

    def look(model, inputs, *more):
        if "attention_mask" in inputs:
            lengths = inputs["attention_mask"].sum(1).tolist()
        elif "position_ids" not in inputs:  # filled up with token 0
            lengths = [int(ids.nonzero().max()) + 1 for ids in inputs["input_ids"]]
        else:
            starts = (inputs["position_ids"][0] == 0).nonzero()[:, 0].tolist()
            ends = [*starts[1:], inputs["position_ids"].shape[1]]
            spans = list(zip(starts, ends, strict=True))
            lengths = [b - a for a, b in spans if (inputs["labels"][0, a:b] != -100).any()]
        seen["rows_seen"] += len(lengths)
        seen["tokens_seen"] += sum(lengths)
        seen["supervised_tokens"] += int((inputs["labels"][:, 1:] != -100).sum())
        return usual(model, inputs, *more)

    monkeypatch.setattr(training, "supervised_loss", look)
    stepped = []
    adam = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda *a, **k: (stepped.append(1), adam(*a, **k))[1]
    )
    _, manifest = train(**settings)
    assert ("epochs" in manifest["hyperparameters"]) == ("steps" not in settings)
    assert manifest["used"] == {"fused_lora": False, "cuda_graphs": False}  # on a CPU
    assert {key: manifest[key] for key in seen} == seen
    assert manifest["steps"] == len(stepped) == manifest["loss"][-1]["step"]
    assert manifest["epochs_seen"] == round(seen["rows_seen"] / manifest["data"]["rows"], 4)
    assert "stop" in settings or manifest["schedule_steps"] == manifest["steps"]


def test_a_loss_is_the_mean_over_a_step_s_tokens_however_it_is_cut(train, monkeypatch):
    # Steps of 8 and 4 rows. With next to no learning, their losses sum to the loss of all rows.
    sums = []
    usual = training.supervised_loss

    def look(model, inputs, *more):
        own = inputs["labels"][:, 1:] != -100
        sums.append((float(usual(model, inputs)) * int(own.sum()), int(own.sum())))
        return usual(model, inputs, *more)

    monkeypatch.setattr(training, "supervised_loss", look)
    still = {"lr": 1e-12, "dropout": 0.0, "batch_size": 8, "accumulation_steps": 4}
    _, manifest = train(**still)
    first, second = sums[:4], sums[4:]
    expected = [sum(s for s, _ in part) / sum(n for _, n in part) for part in (first, second)]
    assert [point["loss"] for point in manifest["loss"]] == pytest.approx(expected, rel=1e-5)
