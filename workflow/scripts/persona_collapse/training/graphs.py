"""Optimiser steps without launching their thousands of kernels one by one.

A step of a few thousand tokens is bound by the processor that launches kernels, not by the GPU. So
forward and backward pass of a flat batch are recorded once for each size, as a CUDA graph, and
replayed. Batches are filled up to a size: tokens to the next `TOKENS`, supervised positions to the
next quarter of the tokens; what fills up carries no loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import objectives

#: Flat batches are filled up to a multiple of this, which bounds how many sizes there are.
TOKENS = 128

Batch = Mapping[str, torch.Tensor]


@dataclass
class OnHost:
    """A step's batches in main memory: as an object of its own, accelerate does not move them."""

    batches: Sequence[Batch]


@dataclass
class _Inputs:
    """What a recorded pass reads, at addresses that stay."""

    ids: torch.Tensor  # [1, tokens]
    positions: torch.Tensor  # [1, tokens]
    bounds: torch.Tensor  # [rows + 1], int32
    chosen: torch.Tensor  # [supervised]: positions whose next token carries loss
    targets: torch.Tensor  # [supervised]: that token, or -100
    share: torch.Tensor  # []: one over the step's supervised tokens


class Recorder:
    """Loss and gradients of steps in flat batches (`training.flatten`, filled to `TOKENS`).

    `model`: a PeftModel whose layers are fused; `by_rows`: whether `fused.attend_by_rows` took it;
    `rows`: the most rows a batch can have. Without a GPU nothing is recorded and every batch runs as
    it is. The objective is cross-entropy, to which a target of -100 is no loss.
    """

    def __init__(self, model: Any, rows: int, *, by_rows: bool):
        self.model, self.rows, self.by_rows = model, rows, by_rows
        self.learning = [p for p in model.parameters() if p.requires_grad]
        self.device = self.learning[0].device
        self.gradients = [torch.zeros_like(p) for p in self.learning]
        self.loss = torch.zeros((), device=self.device)
        self.recorded: dict[tuple[int, int], tuple[_Inputs, Any]] = {}
        self.pool: Any = None

    def step(self, batches: Sequence[Batch]) -> torch.Tensor:
        """Mean loss over a step's supervised tokens; leaves its gradients in the parameters."""
        torch._foreach_zero_(self.gradients)
        self.loss.zero_()
        items = sum(int((batch["labels"] != -100).sum()) for batch in batches)
        for batch in batches:
            self._pass(batch, 1 / items)
        for parameter, gradient in zip(self.learning, self.gradients, strict=True):
            parameter.grad = gradient
        return self.loss.clone()

    def _pass(self, batch: Batch, share: float) -> None:
        tokens = batch["input_ids"].shape[1]
        targets = batch["labels"][0, 1:]
        chosen = (targets != -100).nonzero()[:, 0]
        quarter = -(-tokens // 4)
        size = (tokens, min(tokens - 1, -(-len(chosen) // quarter) * quarter))
        if size not in self.recorded:
            self.recorded[size] = self._new(*size)
        inputs, graph = self.recorded[size]
        starts = (batch["position_ids"][0] == 0).nonzero()[:, 0]
        # What fills up looks at different positions, so that no two add to the same gradient for long.
        filler = torch.arange(size[1] - len(chosen))
        inputs.ids.copy_(batch["input_ids"])
        inputs.positions.copy_(batch["position_ids"])
        inputs.bounds.fill_(tokens)
        inputs.bounds[: len(starts)].copy_(starts)
        inputs.chosen.copy_(torch.cat([chosen, filler]))
        inputs.targets.fill_(-100)
        inputs.targets[: len(chosen)].copy_(targets[chosen])
        inputs.share.fill_(share)
        if graph is None and self.device.type == "cuda":
            graph = self._record(inputs)
            self.recorded[size] = (inputs, graph)
        if graph is None:
            self._run(inputs)
        else:
            graph.replay()

    def _new(self, tokens: int, supervised: int) -> tuple[_Inputs, None]:
        def whole(*shape: int, kind: torch.dtype = torch.long) -> torch.Tensor:
            return torch.zeros(shape, dtype=kind, device=self.device)

        # One row more than there are: the filler.
        bounds = whole(self.rows + 2, kind=torch.int32)
        share = whole(kind=torch.float32)
        return _Inputs(
            whole(1, tokens), whole(1, tokens), bounds, whole(supervised), whole(supervised), share
        ), None

    def _run(self, inputs: _Inputs) -> None:
        """Add a batch's loss and gradients to the step's."""
        base = self.model.get_base_model()
        bounds: dict[str, Any] = {}
        if self.by_rows:
            bounds = {"cu_seq_lens_q": inputs.bounds, "max_length_q": inputs.ids.shape[1]}
        hidden = base.get_decoder()(
            input_ids=inputs.ids, position_ids=inputs.positions, use_cache=False, **bounds
        ).last_hidden_state[0]
        logits = base.get_output_embeddings()(hidden[inputs.chosen]).float()
        objective = objectives.OBJECTIVES[objectives.DEFAULT]
        loss = objective(logits, inputs.targets, lambda: None) * inputs.share
        torch._foreach_add_(self.gradients, torch.autograd.grad(loss, self.learning))
        self.loss += loss.detach()

    def _record(self, inputs: _Inputs) -> Any:
        """The CUDA graph of `_run`; random numbers and sums are as if nothing had run."""
        state = torch.cuda.get_rng_state(self.device)
        if self.pool is None:
            # The first pass of all also sets up libraries, which may not happen while recording.
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                self._run(inputs)
            torch.cuda.current_stream().wait_stream(aside)
            torch._foreach_zero_(self.gradients)
            self.loss.zero_()
            self.pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # The data loader's thread pins memory meanwhile, which is not this thread's business.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            self._run(inputs)
        torch.cuda.set_rng_state(state, self.device)
        return graph
