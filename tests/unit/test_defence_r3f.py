"""The defence r3f: the same predictions when noise is on the embeddings."""

import math

import pytest
import torch
from persona_collapse import adapter_files
from persona_collapse.errors import UserError
from persona_collapse.models import loading
from persona_collapse.training import batches, graphs
from persona_collapse.training.defences import r3f
from persona_collapse.training.runtime import Runtime
from persona_collapse.training.steps import OWN, Objective, Passes, Step, Stepper, Tokens
from trainings import batch_of, gradients

WEIGHT = 3.0


def made(**settings):
    return r3f.R3F(r3f.Options(**{"weight": WEIGHT} | settings))


class Coin:
    """A step of one token and two words, by logits without and with noise."""

    def __init__(self, p, q):
        self.logits, self.noisy = p, q

    def changed(self, change):
        return self.noisy


def test_both_divergences_of_a_coin():
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    nats = 0.5 * math.log(2) + 0.5 * math.log(2 / 3) + 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert float(made().penalty(Coin(p, q))) == pytest.approx(WEIGHT * nats)
    assert float(made().penalty(Coin(p, p))) == 0


def test_gradients_through_both_are_those_of_finite_differences():
    p, q = torch.randn(2, 3, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    given = p.requires_grad_(), q.requires_grad_()
    assert torch.autograd.gradcheck(lambda *logits: made().penalty(Coin(*logits)), given)


def test_divergences_of_near_certainties_are_finite():
    p = torch.tensor([[1000.0, 0.0, -1000.0]], requires_grad=True)
    penalty = made().penalty(Coin(p, torch.tensor([[0.0, 1000.0, -1000.0]])))
    penalty.sum().backward()
    assert penalty.item() == pytest.approx(WEIGHT * 2000) and p.grad.isfinite().all()


@pytest.mark.parametrize(("noise", "spread"), [("uniform", 1 / math.sqrt(3)), ("normal", 1.0)])
def test_the_noise_has_the_size_that_is_asked_for(noise, spread):
    torch.manual_seed(0)
    # Two tokens, one with embeddings ten times as large as the other's.
    states = torch.ones(1, 2, 20000) * torch.tensor([1.0, 10.0])[None, :, None]
    for relative, sizes in ((True, [0.1, 1.0]), (False, [0.1, 0.1])):
        drawn = made(eps=0.1, relative=relative, noise=noise)._drawn(states)[0]
        assert drawn.std(-1).tolist() == pytest.approx([s * spread for s in sizes], rel=0.03)
        assert drawn.mean(-1).tolist() == pytest.approx([0, 0], abs=0.03)
        if noise == "uniform":
            assert (drawn.abs() <= torch.tensor(sizes)[:, None]).all()


def fixed(self, states):
    """In place of random noise: some that the token alone decides."""
    return self.settings.eps * states.detach().float().flip(-1)


def logits_of(model, batch, embeddings):
    asked = {"position_ids": batch["position_ids"]} if "position_ids" in batch else {}
    return model(inputs_embeds=embeddings, **asked, use_cache=False).logits[:, :-1]


@pytest.mark.parametrize("form", [batches.pad, batches.flatten])
def test_loss_and_gradients_are_those_of_the_formula(chained, monkeypatch, form):
    monkeypatch.setattr(r3f.R3F, "_drawn", fixed)
    batch = form(batch_of([9, 30, 17]))
    labels = batch["labels"][:, 1:]
    clean = chained.get_input_embeddings()(batch["input_ids"])
    chained.zero_grad()
    now = logits_of(chained, batch, clean)
    p = now.softmax(-1)
    q = logits_of(chained, batch, clean + 0.5 * clean.flip(-1)).softmax(-1)
    both = (p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)
    penalty = WEIGHT * both[labels != -100].mean()
    loss = torch.nn.functional.cross_entropy(now.flatten(0, 1), labels.flatten())
    (loss + penalty).backward()
    expected = gradients(chained)
    chained.zero_grad()
    objective = Objective(chained, defences={"r3f": made(eps=0.5)})
    total, own = Stepper(objective, "cpu").step({OWN: [batch]})
    assert float(own) == pytest.approx(float(penalty.detach()), rel=1e-4) and own > 0.1
    assert float(total) == pytest.approx(float((loss + penalty).detach()), rel=1e-4)
    for name, gradient in gradients(chained).items():
        assert (gradient - expected[name]).norm() <= 1e-3 * expected[name].norm(), name


def peft_model(base, dtype):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, lora_dropout=0.0)
    return get_peft_model(loading.load_model(base, dtype, "cpu"), lora)


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        ("bfloat16", {}),
        ("bfloat16", {"noise": "normal"}),
        ("float32", {}),
        ("float32", {"eps": 1e-5, "relative": False}),  # as the paper's
    ],
)
def test_predictions_with_noise_are_others_in_16_bits_too(tiny_base, dtype, settings):
    model, defence = peft_model(tiny_base, dtype), made(**settings)
    state = torch.get_rng_state()
    defence.install(model)
    assert torch.equal(state, torch.get_rng_state())
    assert 0.9 < defence.record(model)["kept"] < 1.1
    batch = batches.flatten(batch_of([7, 9]))
    passes = Passes(model, {k: batch[k] for k in ("input_ids", "position_ids")}, [], False)
    step = Step(passes, Tokens.of(batch, "labels", 1))
    clean, noisy = step.logits, step.changed(defence._with_noise)
    assert (clean != noisy).any(-1).all() and (defence.penalty(step) > 0).any()
    # Only that pass had the noise.
    assert torch.equal(clean, Step(Passes(model, passes.inputs, [], False), step._tokens).logits)


@pytest.mark.parametrize("relative", [False, True])
def test_noise_that_rounding_takes_away_is_one_line(tiny_base, relative):
    remedy = "raise it$" if relative else "raise it, or set relative: true$"
    kept = r"keep \d+ % of the noise"
    said = f"r3f: eps: 1e-05 is rounded away: bfloat16 embeddings of about 0.3 {kept}; {remedy}"
    with pytest.raises(UserError, match=said):
        made(eps=1e-5, relative=relative).install(peft_model(tiny_base, "bfloat16"))


def test_weight_zero_is_no_defence_byte_for_byte(train, make_adapter):
    how = {"epochs": 4, "dropout": 0.3, "prefix": [make_adapter(31, 4, True)]}
    blocks = [{}, {"r3f": {"weight": 0.0}}, {"r3f": {}}]
    made = [train(str(i), defence=block, **how) for i, block in enumerate(blocks)]
    none, zero, some = ((folder / adapter_files.WEIGHTS).read_bytes() for folder, _ in made)
    assert none == zero != some
    assert made[1][1]["defence_record"] == {} and made[2][1]["loss"][-1]["penalty"] > 0
    assert set(made[2][1]["defence_record"]["r3f"]) == {"embeddings", "drawn", "kept"}


def test_its_steps_stay_recorded(chained, monkeypatch):
    # Without a GPU the same passes run unrecorded.
    monkeypatch.setattr(r3f.R3F, "_drawn", fixed)
    assert graphs.can_be_recorded(Runtime(padding_free=True), "cross_entropy", [made()])
    own, objective = batch_of([9, 30]), Objective(chained, defences={"r3f": made(eps=0.5)})
    chained.zero_grad()
    expected = Stepper(objective, "cpu").step({OWN: [batches.flatten(own)]})
    grads = gradients(chained)
    chained.zero_grad()
    recorder = graphs.Recorder(objective, 2, by_rows=False)
    found = recorder.step({OWN: [batches.flatten(own, 128)]})
    assert [float(x) for x in found] == pytest.approx([float(x) for x in expected], rel=1e-5)
    for name, gradient in gradients(chained).items():
        assert (gradient - grads[name]).norm() <= 1e-4 * grads[name].norm(), name


def test_a_gpu_records_its_steps_with_noise_of_their_own(on_gpu):
    # Both trainings draw noise of their own.
    recorded, _ = on_gpu({"r3f": {"weight": 10.0}}, task=0.1, penalty=0.4)
    penalties = [point["penalty"] for point in recorded["loss"]]
    assert len(set(penalties)) > 1 and min(penalties) > 0
