import copy

import pytest
import torch
from persona_collapse.models import adapters, fused, loading
from persona_collapse.training import graphs, train


@pytest.fixture(scope="module")
def plain(tiny_base, make_adapter):
    """A PeftModel with a frozen adapter and one that learns, both on every projection."""
    from peft import LoraConfig

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    prefix = make_adapter(5, 4, True, targets)
    model = adapters.attach(
        loading.load_model(tiny_base, "float32", "cpu"), [prefix], name="prefix"
    )
    torch.manual_seed(0)
    lora = LoraConfig(
        r=4, lora_alpha=8, target_modules=targets, lora_dropout=0.0, init_lora_weights=False
    )
    model.add_adapter("default", lora)
    model.base_model.set_adapter(["prefix", "default"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".default." in name)
    return model


def rows(*lengths):
    generator = torch.Generator().manual_seed(1)
    made = []
    for n in lengths:
        ids = torch.randint(5, 200, (n,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [-100] * (n // 2) + ids[n // 2 :]})
    return made


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def assert_same(found, wanted):
    """Gradients by name, equal but for roundings."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name] - tensor).norm() <= 1e-4 * tensor.norm(), name


def by_autograd(model, batches, items):
    model.zero_grad()
    losses = [train.supervised_loss(model, batch, items) for batch in batches]
    for loss in losses:
        loss.backward()
    return float(sum(losses).detach()), gradients(model)


def test_fused_layers_give_peft_s_loss_and_gradients(plain):
    batch = train.flatten(rows(9, 30, 17))
    loss, expected = by_autograd(plain, [batch], 20)
    quick = fused.fuse(copy.deepcopy(plain))
    ours, found = by_autograd(quick, [batch], 20)
    assert ours == pytest.approx(loss, rel=1e-5)
    assert len(found) == 2 * 7 * 3
    assert_same(found, expected)
    with quick.disable_adapter(), plain.disable_adapter(), torch.no_grad():
        one, two = (m(input_ids=batch["input_ids"]).logits for m in (quick, plain))
    assert torch.equal(one, two)


def test_fused_dropout_drops_what_peft_drops(plain):
    # With the same random numbers; a step of several batches draws them in the same order.
    batch = train.flatten(rows(9, 30))
    found = []
    for model in (copy.deepcopy(plain), fused.fuse(copy.deepcopy(plain))):
        for layer in model.modules():
            if hasattr(layer, "lora_dropout"):
                layer.lora_dropout["default"] = torch.nn.Dropout(0.5)
        model.train()
        torch.manual_seed(3)
        found.append(by_autograd(model, [batch], 20))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][0] != pytest.approx(by_autograd(plain, [batch], 20)[0], rel=1e-3)
    assert_same(found[1][1], found[0][1])


def test_a_recorded_step_has_the_loss_and_gradients_of_the_plain_one(plain):
    # Without a GPU the same passes run unrecorded: what is filled up, chosen and summed is the same.
    groups = train.pieces(rows(9, 30, 17, 40, 5), 60)
    items = sum(label != -100 for group in groups for row in group for label in row["labels"][1:])
    loss, expected = by_autograd(plain, [train.flatten(g) for g in groups], items)
    recorder = graphs.Recorder(plain, 5, by_rows=False)
    for _ in range(2):  # sums start anew with every step
        plain.zero_grad()
        ours = recorder.step([train.flatten(g, graphs.TOKENS) for g in groups])
        assert float(ours) == pytest.approx(loss, rel=1e-5)
        assert_same(gradients(plain), expected)
    assert set(recorder.recorded) == {(128, 32)} and len(groups) == 3


def test_rotation_is_transformers_own_there_and_back():
    from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

    torch.manual_seed(0)
    angles = torch.randn(1, 7, 4).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    found = []
    for rotate in (apply_rotary_pos_emb, fused._rotate):
        torch.manual_seed(1)
        query, key = (torch.randn(1, 7, n, 8).transpose(1, 2).requires_grad_() for n in (4, 2))
        turned = rotate(query, key, cos, sin)
        sum((t * t.detach().sin()).sum() for t in turned).backward()
        found.append([*turned, query.grad, key.grad])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
