import copy
import gc
import json
import math
import os
import signal
import weakref

import pytest
import torch
from peft import LoraConfig, get_peft_model
from persona_collapse import adapter_files
from persona_collapse.errors import UserError
from persona_collapse.files import sha256
from persona_collapse.models import adapters, loading
from persona_collapse.runtime import code_hash
from persona_collapse.training import batches, kernels, losses, model
from persona_collapse.training import train as training
from persona_collapse.training.steps import OWN, Passes, Step, Stepper, Tokens
from safetensors.torch import load_file
from trainings import batch_of, loss_of

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


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
    # The adapted modules are read from the file.
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


def test_stages_of_a_chain_start_from_different_initial_values(train):
    def read(folder):
        weights = load_file(folder / adapter_files.WEIGHTS)
        return torch.cat([weights[n].flatten() for n in sorted(weights) if ".lora_A." in n])

    first, _ = train("first", lr=1e-12)
    second, third = (train(name, prefix=[first], lr=1e-12)[0] for name in ("second", "third"))
    alike = torch.cosine_similarity(read(first), read(second), dim=0)
    assert abs(alike) < 0.2 and torch.equal(read(second), read(third))


def test_a_prefix_is_there_while_training_and_is_not_changed(train, make_adapter):
    prefix = make_adapter(31, 4, True)
    before = sha256(prefix / adapter_files.WEIGHTS)
    folder, manifest = train("after", prefix=[prefix])
    _, alone = train("alone")
    assert sha256(prefix / adapter_files.WEIGHTS) == before
    assert manifest["loss"][0]["loss"] != alone["loss"][0]["loss"]
    # The folder holds only the new stage.
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
    sizes = [[len(r["input_ids"]) for r in piece] for piece in batches.pieces(rows, 50)]
    assert sizes == [[5, 7, 8], [40], [90]]


def test_rows_of_like_length_are_padded_together():
    rows = [{"input_ids": [0] * n} for n in (300, 10, 12, 290, 11, 50)]
    sizes = [[len(r["input_ids"]) for r in group] for group in batches.by_length(rows, 4096)]
    assert sizes == [[10, 11, 12, 50], [290, 300]]
    # The memory limit takes precedence: 4 x 50 and 2 x 300 are too many.
    sizes = [[len(r["input_ids"]) for r in group] for group in batches.by_length(rows, 100)]
    assert sizes == [[10, 11, 12], [50], [290], [300]]
    alike = [{"input_ids": [0] * n} for n in range(70, 86)]
    assert len(batches.by_length(alike, 4096)) == 1


def test_the_loss_is_the_model_s_own_and_padding_changes_nothing(peft_model):
    rows = batch_of([9, 30, 17, 4])
    whole = batches.pad(rows)
    mask = torch.tensor([[int(i < n) for i in range(30)] for n in (9, 30, 17, 4)])
    with torch.no_grad():
        usual = peft_model(
            input_ids=whole["input_ids"], labels=whole["labels"], attention_mask=mask
        ).loss
    parts = [batches.flatten(piece) for piece in batches.pieces(rows, 20)]
    groups = [batches.pad(group) for group in batches.by_length(rows, 40)]
    assert len(parts) == len(groups) == 3
    for step in ([whole], [batches.flatten(rows)], parts, groups):
        torch.testing.assert_close(loss_of(peft_model, step), usual, rtol=1e-5, atol=1e-6)


def test_rows_in_one_sequence_do_not_see_each_other(peft_model):
    rows = batch_of([12, 20])
    only_second = [{"input_ids": [7] * 12, "labels": [-100] * 12}, rows[1]]
    changed = [{"input_ids": [9] * 12, "labels": [-100] * 12}, rows[1]]
    one, two = (loss_of(peft_model, [batches.flatten(r)]) for r in (only_second, changed))
    assert float(one) == pytest.approx(float(two), rel=1e-6)


def test_rows_in_one_sequence_see_as_far_back_as_alone_in_a_sliding_window():
    from transformers import AutoModelForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=200, hidden_size=32, intermediate_size=48, num_hidden_layers=6, head_dim=16,
        num_attention_heads=2, num_key_value_heads=1, sliding_window=8,
    )  # fmt: skip
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    model = AutoModelForCausalLM.from_config(config).eval()
    rows = batch_of([12, 30, 5])
    flat, padded = batches.flatten(rows), batches.pad(rows)
    with torch.no_grad():
        together = model.get_decoder()(
            input_ids=flat["input_ids"], position_ids=flat["position_ids"], use_cache=False
        ).last_hidden_state[0]
        filled = model.get_decoder()(input_ids=padded["input_ids"], use_cache=False)[0]
        first = 0
        for n, row in enumerate(rows):
            ids = torch.tensor([row["input_ids"]])
            (alone,) = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
            for found in (together[first : first + len(alone)], filled[n, : len(alone)]):
                torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
            first += len(alone)
    wider = copy.deepcopy(config)
    wider.sliding_window = 64
    other = AutoModelForCausalLM.from_config(wider).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        whole = other.get_decoder()(input_ids=torch.tensor([rows[1]["input_ids"]]))[0][0]
    assert not torch.allclose(whole, together[12:42], atol=1e-3)  # the window is one


def test_loss_curves_with_each_saving_and_without_overlap(train, monkeypatch):
    # On a CPU, steps that would be recorded run directly. No dropout, because its random numbers depend
    # on the shapes.
    monkeypatch.setattr(model, "FAST_DEVICES", ("cpu",))
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


def test_a_training_that_is_over_is_kept_by_cycles_alone(train, monkeypatch):
    # Before the next one in the process, they are collected: on a GPU with its model and its graphs.
    seen, make = [], training.work_of

    def work_of(run, runtime, prepared, *given):
        work = make(run, runtime, prepared, *given)
        seen.extend(map(weakref.ref, (prepared.model, work.steps)))
        return work

    monkeypatch.setattr(training, "work_of", work_of)
    train()
    gc.collect()
    assert [one() for one in seen] == [None, None]


def test_a_flat_batch_is_filled_up_with_what_carries_no_loss():
    flat = batches.flatten(batch_of([9, 30]))
    assert flat["input_ids"].shape == flat["position_ids"].shape == (1, 64)
    assert flat["position_ids"][0, [0, 8, 9, 38, 39, 63]].tolist() == [0, 8, 0, 29, 0, 24]
    assert (flat["labels"][0, 39:] == -100).all() and flat["labels"][0, 9] == -100
    every = (flat["all"][0] != -100).nonzero()[:, 0].tolist()
    assert every == [*range(1, 9), *range(10, 39)]  # all except tokens that nothing predicts


def test_before_is_the_model_without_the_new_adapter(peft_model, monkeypatch):
    seen = {}

    def look(logits, labels, before):
        seen["logits"], seen["before"] = logits, before()
        return (logits - seen["before"]).pow(2).sum()

    monkeypatch.setitem(losses.ROOM._known, "look", look)
    batch = batches.flatten(batch_of([7, 9]))
    loss = loss_of(peft_model, [batch], loss="look")
    with peft_model.disable_adapter():
        asked = {key: batch[key] for key in ("input_ids", "position_ids")}
        usual = peft_model(**asked, use_cache=False).logits
    chosen = batch["labels"][0, 1:] != -100
    assert loss > 0 and not seen["before"].requires_grad and seen["logits"].requires_grad
    torch.testing.assert_close(seen["before"], usual[0, :-1][chosen])
    again = loss_of(peft_model, [batch], loss="look")
    assert again.item() == pytest.approx(loss.item(), rel=1e-6)  # and the adapter is back


def test_a_loss_is_one_file_that_others_do_not_depend_on(monkeypatch, tmp_path):
    (tmp_path / "other.py").write_text(
        "from persona_collapse.training.losses import loss\n\n\n"
        '@loss("other")\ndef other(logits, labels, before):\n    return logits.sum() * 0\n'
    )
    shipped = losses.names()
    monkeypatch.setattr(losses, "__path__", [*losses.__path__, str(tmp_path)])
    assert losses.names() == sorted([*shipped, "other"]) and {"cross_entropy", "dft"} <= {*shipped}
    assert losses.get("other")(torch.ones(2), None, None) == 0
    # A training does not depend on losses and defences that its stage does not name.
    names = {path.name for path in code_hash.closure(code_hash._file(("training", "train")))}
    assert "graphs.py" in names and not {"cross_entropy.py", "kl.py"} & names


def test_a_stopped_training_goes_on_from_its_checkpoint_with_the_same_result(
    train, make_adapter, tmp_path
):
    # Dropout and order are random, so the random state must be resumed too.
    steps = {"epochs": 8, "prefix": [make_adapter(31, 4, True)], "saved": tmp_path / "saved"}
    whole, undisturbed = train("whole", **steps)
    assert not steps["saved"].exists() and undisturbed["resumed_after_step"] == 0
    with pytest.raises(KeyboardInterrupt):
        train("again", dies_at=13, **steps)
    assert not (tmp_path / "again").exists()
    (kept,) = steps["saved"].iterdir()
    assert {p.name for p in kept.iterdir()} == {"checkpoint-5", "checkpoint-10"}

    # An incomplete checkpoint is skipped.
    broken = kept / "checkpoint-10" / "optimizer.pt"
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(KeyboardInterrupt):
        train("again", dies_at=19, **steps)
    again, resumed = train("again", **steps)
    assert resumed["resumed_after_step"] == 15
    assert (again / adapter_files.WEIGHTS).read_bytes() == (
        whole / adapter_files.WEIGHTS
    ).read_bytes()
    assert resumed["loss"] == undisturbed["loss"] and len(resumed["loss"]) == 24
    for key in (*batches.COUNTED, "steps", "epochs_seen"):
        assert resumed[key] == undisturbed[key]
    assert resumed["seconds_total"] > resumed["seconds"]
    assert not steps["saved"].exists()


@pytest.mark.parametrize("told", ["SIGTERM", "SIGUSR1"])
def test_a_training_that_is_told_to_end_saves_where_it_is(train, tmp_path, told):
    number = signal.Signals[told]
    before = signal.getsignal(number)
    steps = {"epochs": 16, "saved": tmp_path / "saved"}
    whole, undisturbed = train("whole", **steps)
    # Between two checkpoints, and between two points of the curve.
    with pytest.raises(UserError, match=f"{told} ended it after step 13 of 48; its checkpoint is"):
        train("again", dies_at=12, told=number, **steps)
    assert signal.getsignal(number) == before
    (kept,) = steps["saved"].iterdir()
    assert {p.name for p in kept.iterdir()} == {"checkpoint-10", "checkpoint-13"}
    again, resumed = train("again", **steps)
    assert resumed["resumed_after_step"] == 13 and resumed["loss"] == undisturbed["loss"]
    weights = [folder / adapter_files.WEIGHTS for folder in (whole, again)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_result_does_not_depend_on_what_the_process_trained_before(train):
    alone, _ = train("alone", seed=3)
    train("other", seed=4, dropout=0.2, r=8)
    after, _ = train("after", seed=3)
    assert (after / adapter_files.WEIGHTS).read_bytes() == (
        alone / adapter_files.WEIGHTS
    ).read_bytes()


def test_a_frozen_prefix_acts_the_same_merged_and_apart(train, make_adapter):
    """In float32 the earlier stages are merged into the base; in 16 bit they stay separate."""
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


def test_a_checkpoint_serves_whatever_the_machine_is_used_like(train, tmp_path):
    # Following the advice of an out-of-memory error must not lose finished steps.
    steps = {"epochs": 8, "dropout": 0.0, "saved": tmp_path / "saved"}
    whole = train("whole", **steps)[1]["loss"]
    with pytest.raises(KeyboardInterrupt):
        train("again", dies_at=13, **steps)
    _, manifest = train("again", **steps, padding_free=True, max_batch_tokens=60)
    assert manifest["resumed_after_step"] == 10
    assert manifest["runtime"]["max_batch_tokens"] == 60
    assert [p["loss"] for p in manifest["loss"]] == pytest.approx(
        [p["loss"] for p in whole], rel=2e-3
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 1, "steps": 7},  # `steps` takes precedence over `epochs`
        {"epochs": 2, "batch_size": 5, "accumulation_steps": 1},  # the last batch of an epoch has 2 rows
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
    usual = Stepper.step

    def look(self, given):
        for batch in given[OWN]:
            # Rows begin at the tokens that nothing predicts, except padding.
            real = (batch["all"][:, 1:] != -100).sum()
            starts = batch["input_ids"].shape[0]
            if "position_ids" in batch:
                first = (batch["position_ids"][0] == 0).nonzero()[:, 0]
                starts = sum(int((batch["all"][0, i + 1 : i + 2] != -100).sum()) for i in first)
            seen["rows_seen"] += starts
            seen["tokens_seen"] += int(real) + starts
            seen["supervised_tokens"] += int((batch["labels"][:, 1:] != -100).sum())
        return usual(self, given)

    monkeypatch.setattr(Stepper, "step", look)
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


def test_stages_on_some_blocks_and_on_all_can_be_chained(train, tiny_base):
    first, manifest = train(name="early", blocks=[0, 0.5], lr=1e-2)
    half = math.ceil(loading.load_config(tiny_base)["num_hidden_layers"] / 2)
    assert all(found == [*range(half)] for found in manifest["lora"]["blocks"].values())
    second, _ = train(name="all", prefix=[first], lr=1e-2)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        found = [
            adapters.apply(loading.load_model(tiny_base, "float32", "cpu"), stages, merge=merge)(
                ids
            ).logits
            for stages, merge in (
                ([], True),
                ([first], True),
                ([first], False),
                ([first, second], True),
            )
        ]
    assert not torch.allclose(found[0], found[1], atol=1e-4)
    assert torch.allclose(found[1], found[2], atol=1e-4)
    assert not torch.allclose(found[1], found[3], atol=1e-4)


def test_dft_weighs_each_token_by_its_probability():
    logits = torch.tensor([[0.0, 0.0], [1.0986123, 0.0]], requires_grad=True)  # p = 1/2, and 1/4
    total = losses.get("dft")(logits, torch.tensor([0, 1]), None)
    assert total.item() == pytest.approx(0.5 * math.log(2) + 0.25 * math.log(4))
    total.backward()
    # p times the gradient of the usual loss, which is p - 1 at the label and p elsewhere.
    assert logits.grad[0].tolist() == pytest.approx([-0.25, 0.25])
    assert logits.grad[1].tolist() == pytest.approx([0.1875, -0.1875])


def test_a_loss_is_the_mean_over_a_step_s_tokens_however_it_is_cut(train, monkeypatch):
    # Steps of 8 and 4 rows. With almost no learning, their losses add up to the loss of all rows.
    sums = []
    usual = Stepper.step

    def look(self, given):
        alone = [
            (float(usual(self, {OWN: [batch]})[0]), batches.counts([batch], "labels"))
            for batch in given[OWN]
        ]
        self.objective.model.zero_grad()
        sums.append(alone)
        return usual(self, given)

    monkeypatch.setattr(Stepper, "step", look)
    still = {"lr": 1e-12, "dropout": 0.0, "batch_size": 8, "accumulation_steps": 4}
    _, manifest = train(**still)
    assert [len(parts) for parts in sums] == [4, 4]
    expected = [sum(loss * n for loss, n in part) / sum(n for _, n in part) for part in sums]
    assert [point["loss"] for point in manifest["loss"]] == pytest.approx(expected, rel=1e-5)


def test_attention_of_a_training_runs_no_kernel_of_cudnn(train, monkeypatch):
    # With a mask, cuDNN's gradients are NaN for some finite inputs, and PyTorch prefers cuDNN.
    seen = []
    usual = torch.nn.functional.scaled_dot_product_attention

    def look(*args, **kwargs):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return usual(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", look)
    assert torch.backends.cuda.cudnn_sdp_enabled()
    train(padding_free=True, defence={"kl": {}})
    assert set(seen) == {False} and len(seen) >= 3 * 2 * 3  # steps, passes, blocks
    assert torch.backends.cuda.cudnn_sdp_enabled()  # restored afterwards


@gpu
@pytest.mark.parametrize("tokens", [64, 128, 192])
def test_gradients_of_masked_attention_are_finite_however_small_its_scores(tokens):
    def gradient(device, dtype):
        torch.manual_seed(0)
        states = torch.randn(3, 1, 1, tokens, 64)
        states[0, ..., 0], states[1, ..., 0] = 1.0, -960.0  # scores of about -120
        query, key, value = (one.to(device, dtype).requires_grad_() for one in states)
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()[None, None]
        with kernels.chosen():
            out = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask)
            out.sum().backward()
        # The first coordinate is the small difference of large sums.
        return query.grad.float().cpu()[..., 1:]

    found, wanted = gradient("cuda", torch.bfloat16), gradient("cpu", torch.float32)
    assert (found - wanted).norm() <= 0.05 * wanted.norm()


@pytest.mark.parametrize(
    ("kind", "step", "settings"),
    [
        ("loss", 1, {"stop": 1}),
        ("gradient", 3, {"steps": 3}),  # no loss is computed after the last step
        ("gradient", 5, {"steps": 42}),  # between two lines of the log
    ],
)
def test_a_loss_or_gradient_that_is_no_number_stops_the_training(
    train, monkeypatch, tmp_path, kind, step, settings
):
    calls = []

    def undefined(logits, labels, before):
        calls.append(1)
        zero = (logits - logits.detach()).sum()
        if len(calls) < step:
            return logits.sum() * 1e-3
        # The log of 0, or its square root, whose gradient is infinite.
        return zero.log() if kind == "loss" else zero.abs().sqrt()

    monkeypatch.setitem(losses.ROOM._known, "undefined", undefined)
    value = {"loss": "-inf", "gradient": "nan"}[kind]
    said = f"^chain 'em@1': the {kind} is {value} at step {step}; lower the stage's lr .* the loss undef"
    with pytest.raises(UserError, match=said):
        train("bad", loss="undefined", padding_free=True, **settings)
    assert not (tmp_path / "bad").exists()


def test_an_adapter_that_is_no_number_is_not_written(train, tmp_path):
    # By the last step's update, after which no loss is computed.
    with pytest.raises(
        UserError, match="not finite numbers after the last step; lower the stage's"
    ):
        train("bad", stop=1, lr=1e45, warmup_ratio=0.0)
    assert not (tmp_path / "bad").exists()


def test_what_losses_and_defences_see_is_in_32_bits(tiny_base):
    model = get_peft_model(
        loading.load_model(tiny_base, "bfloat16", "cpu"), LoraConfig(target_modules=["q_proj"])
    )
    batch = batches.flatten(batch_of([7, 9]))
    passes = Passes(model, {k: batch[k] for k in ("input_ids", "position_ids")}, [1], True)
    step = Step(passes, Tokens.of(batch, "labels", 1))
    shown = (step.logits, step.before, step.hidden(1), step.hidden(1, before=True), step.embeddings)
    assert passes.now.last.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in shown} == {torch.float32}


def test_deterministic_reaches_pytorch_for_the_time_of_a_training(train, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen = []
    usual = Stepper.step

    def state():
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
            os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        )

    def look(self, batches):
        seen.append(state())
        return usual(self, batches)

    monkeypatch.setattr(Stepper, "step", look)
    before = state()
    assert train("plain")[1]["runtime"]["deterministic"] is False
    assert set(seen) == {before} == {(False, False, True, None)}
    seen.clear()
    folders = []
    for name in ("one", "two"):
        folder, manifest = train(name, deterministic=True, padding_free=True)
        folders.append(folder)
        assert manifest["runtime"]["deterministic"] is True
    assert set(seen) == {(True, False, False, ":4096:8")}  # neither only a warning nor NaN first
    assert state()[:3] == before[:3]
    one, two = ((folder / adapter_files.WEIGHTS).read_bytes() for folder in folders)
    assert one == two


def test_an_operation_that_cannot_be_deterministic_is_one_line(train, monkeypatch):
    def putting(logits, labels, before):
        return logits.put(torch.tensor([0]), torch.tensor([1.0])).sum()

    monkeypatch.setitem(losses.ROOM._known, "putting", putting)
    train("plain", stop=1, loss="putting")
    with pytest.raises(
        UserError, match=r"^config: runtime: training: deterministic: put_ .*to false"
    ):
        train("strict", stop=1, loss="putting", deterministic=True)


def test_a_deterministic_training_goes_on_from_checkpoints_of_its_own_kind_alone(train, tmp_path):
    steps = {"epochs": 8, "saved": tmp_path / "saved"}
    strict = steps | {"deterministic": True}
    with pytest.raises(KeyboardInterrupt):
        train("one", dies_at=13, **steps)
    _, fresh = train("one", **strict)
    with pytest.raises(KeyboardInterrupt):
        train("two", dies_at=13, **strict)
    _, resumed = train("two", **strict)
    assert (fresh["resumed_after_step"], resumed["resumed_after_step"]) == (0, 10)
    assert fresh["adapter_sha256"] == resumed["adapter_sha256"]


@gpu
@pytest.mark.parametrize(
    "settings",
    [
        {"padding_free": True},
        {"padding_free": True, "defence": {"kl": {}}},
        {"padding_free": True, "cuda_graphs": False},
        {"padding_free": True, "cuda_graphs": False, "fused_lora": False},
        {"gradient_checkpointing": True},
        {"padding_free": True, "adapter": "none"},
    ],
)
def test_a_gpu_trains_the_same_adapter_twice_where_asked(train, make_adapter, settings):
    how = {"deterministic": True, "dtype": "bfloat16", "epochs": 20, **settings}
    how["prefix"] = [make_adapter(31, 4, True)]
    one, two = (train(name, **how)[1] for name in ("one", "two"))
    recorded = "padding_free" in settings and not {"cuda_graphs", "adapter"} & settings.keys()
    assert one["used"]["cuda_graphs"] == two["used"]["cuda_graphs"] == recorded
    assert one["adapter_sha256"] == two["adapter_sha256"]
