"""Optimiser steps as CUDA graphs, without launching thousands of kernels one by one.

A step of a few thousand tokens is limited by the CPU that launches kernels, not by the GPU. So the
forward and backward passes of a flat batch are recorded once per size, as a CUDA graph, and replayed.
Batches are padded to a size: tokens to the next multiple of `fused.TOKENS`, supervised positions to the
next quarter of the tokens. Padding carries no loss.

All graphs share one pool of memory, which cannot give back blocks while a graph uses it. A tensor fits
into a block of a larger pass, but not into one of a smaller pass. So when a pass is larger than all before,
the graphs are dropped, and it is recorded first in a new pool.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from . import losses
from .batches import Batch
from .defences import Defence
from .runtime import Runtime
from .steps import Batches, Objective, Tokens, added

Size = tuple[str, int, tuple[int, ...]]


def can_be_recorded(runtime: Runtime, loss: str, defences: Iterable[Defence]) -> bool:
    """Do all steps of a training run the same kernels, whatever the values?

    A second batch is padded like the first. Hidden states and the model before the stage come from
    passes over the same batch. Only code that looks at values needs the host in between.
    """
    return (
        runtime.padding_free
        and not runtime.gradient_checkpointing
        and loss == losses.DEFAULT
        and not any(defence.asks.host for defence in defences)
    )


@dataclass
class _Inputs:
    """Inputs of a recorded pass, at fixed addresses."""

    ids: torch.Tensor  # [1, tokens]
    positions: torch.Tensor  # [1, tokens]
    bounds: torch.Tensor  # [rows + 2], int32
    tokens: dict[str, Tokens]
    share: torch.Tensor  # []: 1 / number of the step's batches from this source


class Recorder:
    """Loss and gradients of steps in flat batches (`batches.flatten`, padded to `fused.TOKENS`).

    objective: of a PeftModel with fused layers, with a loss that ignores labels of -100. by_rows: did
    `fused.attend_by_rows` switch the model? rows: largest number of rows in a batch. Without a GPU
    nothing is recorded and every batch runs directly.
    """

    def __init__(self, objective: Objective, rows: int, *, by_rows: bool):
        self.objective, self.rows, self.by_rows = objective, rows, by_rows
        self.learning = [p for p in objective.model.parameters() if p.requires_grad]
        self.device = self.learning[0].device
        self.gradients = [torch.zeros_like(p) for p in self.learning]
        self.loss, self.penalty = (torch.zeros((), device=self.device) for _ in range(2))
        self.records = self.device.type == "cuda"
        self.recorded: dict[Size, tuple[_Inputs, Any]] = {}
        self.pool: Any = None
        # Tokens, and tokens that count, of the largest passes in the pool.
        self.largest = (0, 0)
        self.set_up = False

    def step(self, batches: Batches) -> tuple[torch.Tensor, torch.Tensor]:
        """A step's loss (including the penalty) and its penalty; leaves the gradients in the parameters."""
        self._clear()
        for source, parts in batches.items():
            sizes = self.objective.sizes(source, batches)
            for batch in parts:
                self._pass(source, batch, sizes, 1 / len(parts))
        for parameter, gradient in zip(self.learning, self.gradients, strict=True):
            parameter.grad = gradient
        return self.loss.clone(), self.penalty.clone()

    def _clear(self) -> None:
        torch._foreach_zero_([*self.gradients, self.loss, self.penalty])

    def _pass(self, source: str, batch: Batch, sizes: Mapping[str, int], share: float) -> None:
        length = batch["input_ids"].shape[1]
        given = {key: Tokens.of(batch, key, n) for key, n in sizes.items()}
        quarter = -(-length // 4)
        filled = tuple(
            min(length - 1, -(-len(tokens.labels) // quarter) * quarter)
            for tokens in given.values()
        )
        size = (source, length, filled)
        if size not in self.recorded:
            self.recorded[size] = (self._new(length, dict(zip(given, filled, strict=True))), None)
        inputs, graph = self.recorded[size]
        starts = (batch["position_ids"][0] == 0).nonzero()[:, 0]
        inputs.ids.copy_(batch["input_ids"])
        inputs.positions.copy_(batch["position_ids"])
        inputs.bounds.fill_(length)
        inputs.bounds[: len(starts)].copy_(starts)
        for key, tokens in given.items():
            own, n = inputs.tokens[key], len(tokens.labels)
            # Padding reads distinct positions, so that the backward pass does not serialise additions
            # to one gradient.
            filler = torch.arange(len(own.labels) - n)
            own.positions.copy_(torch.cat([tokens.positions, filler]))
            own.labels.fill_(-100)
            own.labels[:n].copy_(tokens.labels)
            own.count.fill_(tokens.count)  # type: ignore[union-attr]
        inputs.share.fill_(share)
        if graph is None and self.records:
            self._make_room(length, sum(filled))
            graph = self._record(source, inputs)
            self.recorded[size] = (inputs, graph)
        if graph is None:
            self._run(source, inputs)
        else:
            graph.replay()

    def _new(self, length: int, filled: Mapping[str, int]) -> _Inputs:
        def zeros(*shape: int, kind: torch.dtype = torch.long) -> torch.Tensor:
            return torch.zeros(shape, dtype=kind, device=self.device)

        number = {"kind": torch.float32}
        tokens = {key: Tokens(zeros(n), zeros(n), zeros(**number)) for key, n in filled.items()}
        # One extra row: the padding.
        bounds = zeros(self.rows + 2, kind=torch.int32)
        return _Inputs(zeros(1, length), zeros(1, length), bounds, tokens, zeros(**number))

    def _run(self, source: str, inputs: _Inputs) -> None:
        """Add a batch's loss and gradients to those of the step."""
        given: dict[str, Any] = {"input_ids": inputs.ids, "position_ids": inputs.positions}
        if self.by_rows:
            given |= {"cu_seq_lens_q": inputs.bounds, "max_length_q": inputs.ids.shape[1]}
        task, penalty = self.objective(source, given, inputs.tokens, inputs.share)
        loss = added(task, penalty)
        if loss is None:
            return
        found = torch.autograd.grad(loss, self.learning, materialize_grads=True)
        torch._foreach_add_(self.gradients, found)
        self.loss += loss.detach()
        if penalty is not None:
            self.penalty += penalty.detach()

    def _make_room(self, tokens: int, counted: int) -> None:
        """Drop all graphs and begin a pool before a pass that is larger than all before."""
        most = self.largest
        self.largest = max(tokens, most[0]), max(counted, most[1])
        if self.largest != most:
            torch.cuda.synchronize()
            self.recorded = {size: (inputs, None) for size, (inputs, _) in self.recorded.items()}
            self.pool = torch.cuda.graph_pool_handle()

    def _record(self, source: str, inputs: _Inputs) -> Any:
        """The CUDA graph of `_run`; random state and sums are restored afterwards."""
        state = torch.cuda.get_rng_state(self.device)
        if not self.set_up:
            # The very first pass also initialises libraries, which must not happen during recording.
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                self._run(source, inputs)
            torch.cuda.current_stream().wait_stream(aside)
            self._clear()
            self.set_up = True
        graph = torch.cuda.CUDAGraph()
        # The data loader's thread pins memory meanwhile, which must not invalidate this recording.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            self._run(source, inputs)
        torch.cuda.set_rng_state(state, self.device)
        return graph
