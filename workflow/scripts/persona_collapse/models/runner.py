"""The base model, loaded once, with one chain's adapter at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import adapters, loading, shifts


class ModelRunner:
    """A base model in `dtype`, on the GPU if there is one; loaded when the first chain is needed."""

    def __init__(self, base: Path, dtype: str):
        self.base, self.dtype = base, dtype
        self.tokenizer = loading.load_tokenizer(base)
        self.device = loading.pick_device()
        self.model: Any = None
        self.all_weights: list[Path] = []

    @contextmanager
    def chain(self, stages: Sequence[Path], *, merge: bool = False) -> Iterator[Any]:
        """Context that gives the model with the sum of these stage folders (none: the base model) and
        their shifts.

        `merge` adds the sum to the weights (see `adapters.apply`); the base is then loaded again
        afterwards.
        """
        from . import fused

        all_weights, stages = adapters.split(stages)
        if self.model is None or all_weights != self.all_weights:
            self.model = None
            self.model = adapters.load_base(self.base, all_weights, self.dtype, self.device)
            self.all_weights = all_weights
            fused.attend_by_rows(self.model)
        # Dropped until the chain's model is complete, so that a failure leaves no half-changed model.
        given, self.model = self.model, None
        summed, shifting = shifts.split(stages)
        model = adapters.apply(given, summed, merge=merge)
        if not (merge and summed):
            self.model = model
        with shifts.on(model, shifting):
            yield fused.fuse(model) if self.device == "cuda" else model
