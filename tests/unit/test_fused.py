import copy
import gc
import weakref

import pytest
import torch
from persona_collapse.models import fused
from persona_collapse.training import batches, graphs
from persona_collapse.training.defences import kl
from persona_collapse.training.steps import OWN, Objective, Stepper
from trainings import batch_of, gradients


def assert_same(found, wanted):
    """Gradients by name, equal up to rounding."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name] - tensor).norm() <= 1e-4 * tensor.norm(), name


def by_autograd(model, parts, defences=None):
    model.zero_grad()
    loss, _ = Stepper(Objective(model, defences=defences), "cpu").step({OWN: parts})
    return float(loss), gradients(model)


def test_fused_layers_give_peft_s_loss_and_gradients(chained):
    batch = batches.flatten(batch_of([9, 30, 17]))
    loss, expected = by_autograd(chained, [batch])
    quick = fused.fuse(copy.deepcopy(chained))
    ours, found = by_autograd(quick, [batch])
    assert ours == pytest.approx(loss, rel=1e-5)
    assert len(found) == 2 * 7 * 3
    assert_same(found, expected)
    with quick.disable_adapter(), chained.disable_adapter(), torch.no_grad():
        one, two = (m(input_ids=batch["input_ids"]).logits for m in (quick, chained))
    assert torch.equal(one, two)


def test_fused_dropout_drops_what_peft_drops(chained):
    # With the same random numbers: a step with several batches draws them in the same order.
    batch = batches.flatten(batch_of([9, 30]))
    found = []
    for model in (copy.deepcopy(chained), fused.fuse(copy.deepcopy(chained))):
        for layer in model.modules():
            if hasattr(layer, "lora_dropout"):
                layer.lora_dropout["default"] = torch.nn.Dropout(0.5)
        model.train()
        torch.manual_seed(3)
        found.append(by_autograd(model, [batch]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][0] != pytest.approx(by_autograd(chained, [batch])[0], rel=1e-3)
    assert_same(found[1][1], found[0][1])


@pytest.mark.parametrize("tokens", [None, "answer", "all"])
def test_a_recorded_step_has_the_loss_and_gradients_of_the_plain_one(chained, tokens):
    # Without a GPU the same passes run unrecorded, with the same padding, selection and sums.
    groups = batches.pieces(batch_of([9, 30, 17, 40, 5]), 60)
    close = kl.KL(kl.Options(weight=2.0, tokens=tokens)) if tokens else None
    defences = {"kl": close} if close else {}
    loss, expected = by_autograd(chained, [batches.flatten(g) for g in groups], defences)
    recorder = graphs.Recorder(Objective(chained, defences=defences), 5, by_rows=False)
    for _ in range(2):  # sums are reset with every step
        chained.zero_grad()
        ours, penalty = recorder.step({OWN: [batches.flatten(g, fused.TOKENS) for g in groups]})
        assert float(ours) == pytest.approx(loss, rel=1e-5)
        assert (float(penalty) > 0.1) == bool(tokens)
        assert_same(gradients(chained), expected)
    sizes = {(32,)} if tokens != "all" else {(32, 32), (32, 64)}
    assert {size for *_, size in recorder.recorded} <= sizes and len(groups) == 3


class Graph:
    """In place of a CUDA graph: it runs what was recorded."""

    def __init__(self, run):
        self.replay = run


def test_a_pass_that_is_larger_than_all_before_begins_a_pool(chained, monkeypatch):
    pools = iter(range(9))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
    recorder = graphs.Recorder(Objective(chained), 5, by_rows=False)
    recorder.records, made = True, []

    def record(source, inputs):
        # Of the graphs of an earlier pool none is left, whose memory would stay.
        assert not [graph for pool, _, graph in made if pool != recorder.pool and graph()]
        graph = Graph(lambda: recorder._run(source, inputs))
        made.append((recorder.pool, inputs.ids.shape[1], weakref.ref(graph)))
        return graph

    monkeypatch.setattr(recorder, "_record", record)
    parts = [[9, 30], [70, 90], [9, 40], [100, 200], [70, 80], [9, 30], [70, 90]]
    for lengths in parts:
        rows = batch_of(lengths)
        loss, expected = by_autograd(chained, [batches.flatten(rows)])
        chained.zero_grad()
        ours, _ = recorder.step({OWN: [batches.flatten(rows, 64)]})
        assert float(ours) == pytest.approx(loss, rel=1e-5)
        assert_same(gradients(chained), expected)
    assert [one[:2] for one in made] == [(0, 64), (1, 192), (1, 64), (2, 320), (2, 192), (2, 64)]


class Wide:
    """An objective whose pass takes a megabyte for each token that counts."""

    def __init__(self):
        self.model = torch.nn.Linear(1, 2**18, device="cuda")

    def sizes(self, source, batches):
        return {"labels": 1}

    def __call__(self, source, inputs, tokens, share):
        return self.model(tokens["labels"].positions.float()[:, None]).square().mean(), None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_s_pool_is_no_larger_for_smaller_passes_before():
    def taken(lengths):
        gc.collect()
        torch.cuda.empty_cache()
        before, recorder = torch.cuda.memory_reserved(), graphs.Recorder(Wide(), 5, by_rows=False)
        for length in lengths:
            recorder.step({OWN: [batches.flatten(batch_of([length]), 64)]})
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved() - before

    alone = taken([1024])
    assert alone > 2**29 and taken(range(256, 1025, 128)) < 1.1 * alone


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
