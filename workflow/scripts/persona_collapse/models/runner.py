"""The base model, loaded once; it carries one chain's adapter at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import adapters, loading, shifts


class ModelRunner:
    """A base model in `dtype` on the GPU, where there is one; read when a chain is first asked for."""

    def __init__(self, base: Path, dtype: str):
        self.base, self.dtype = base, dtype
        self.tokenizer = loading.load_tokenizer(base)
        self.device = loading.pick_device()
        self.model: Any = None
        self.all_weights: list[Path] = []

    @contextmanager
    def chain(self, stages: Sequence[Path], *, merge: bool = False) -> Iterator[Any]:
        """Inside, the model of these stage folders' sum (none: the base model), with their shifts.

        `merge` folds the sum into the weights (see `adapters.apply`); the base is read again after it.
        """
        from . import fused

        all_weights, stages = adapters.split(stages)
        if self.model is None or all_weights != self.all_weights:
            self.model = None
            self.model = adapters.load_base(self.base, all_weights, self.dtype, self.device)
            self.all_weights = all_weights
            fused.attend_by_rows(self.model)
        # Gone until the chain's model is whole, and kept by no one who fails on the way.
        given, self.model = self.model, None
        summed, shifting = shifts.split(stages)
        model = adapters.apply(given, summed, merge=merge)
        if not (merge and summed):
            self.model = model
        with shifts.on(model, shifting):
            yield fused.fuse(model) if self.device == "cuda" else model
