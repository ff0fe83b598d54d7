"""A step's rows as batches: grouped by length, then padded or concatenated into one sequence."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import torch

from ..models.chat_template import IGNORED
from .runtime import Runtime

#: A row: `input_ids` and `labels`.
Row = Mapping[str, Sequence[int]]
#: `input_ids`, `labels` and `all`, the labels if every token carried loss, each [rows, tokens]; rows in
#: one sequence also have `position_ids`.
Batch = dict[str, torch.Tensor]

#: What is counted during training and kept in checkpoints.
COUNTED = ("rows_seen", "tokens_seen", "supervised_tokens")
#: Fixed cost of a forward and backward pass, in tokens.
TOKENS_PER_PASS = 128


def count(rows: Sequence[Row]) -> dict[str, int]:
    """Number of rows, tokens, and tokens with loss of one batch; by the names in `COUNTED`.

    Nothing predicts a row's first token, so it carries no loss.
    """
    labels = (label for row in rows for label in row["labels"][1:])
    sizes = (
        len(rows),
        sum(len(row["input_ids"]) for row in rows),
        sum(label != IGNORED for label in labels),
    )
    return dict(zip(COUNTED, sizes, strict=True))


def pieces(rows: Sequence[Row], most: int) -> list[list[Row]]:
    """A step's rows in groups of at most `most` tokens together, shortest rows first.

    A longer row is a group of its own.
    """
    groups: list[list[Row]] = []
    size = 0
    for row in sorted(rows, key=lambda row: len(row["input_ids"])):
        if not groups or size + len(row["input_ids"]) > most:
            groups.append([])
            size = 0
        groups[-1].append(row)
        size += len(row["input_ids"])
    return groups


def by_length(rows: Sequence[Row], most: int) -> list[list[Row]]:
    """A step's rows in groups of similar length, so that there is little padding; shortest rows first.

    Minimises the sum over groups of rows times width plus TOKENS_PER_PASS. A group of several rows has
    at most `most` tokens, including padding.
    """
    rows = sorted(rows, key=lambda row: len(row["input_ids"]))
    # (cost of the first n rows, start of their last group)
    best: list[tuple[int, int]] = [(0, 0)]
    for end, row in enumerate(rows, start=1):
        width = len(row["input_ids"])
        best.append(
            min(
                (best[start][0] + (end - start) * width + TOKENS_PER_PASS, start)
                for start in range(end)
                if start == end - 1 or (end - start) * width <= most
            )
        )
    groups, end = [], len(rows)
    while end:
        start = best[end][1]
        groups.append(list(rows[start:end]))
        end = start
    return groups[::-1]


def pad(rows: Sequence[Row]) -> Batch:
    """Rows as a batch, [rows, tokens].

    Padded on the right, without a mask: no token attends to later ones, and padding carries no loss.
    """
    width = max(len(row["input_ids"]) for row in rows)

    def filled(lists: Iterable[Sequence[int]], filler: int) -> torch.Tensor:
        return torch.tensor([[*one, *[filler] * (width - len(one))] for one in lists])

    return {
        "input_ids": filled((row["input_ids"] for row in rows), 0),
        "labels": filled((row["labels"] for row in rows), IGNORED),
        "all": filled((row["input_ids"] for row in rows), IGNORED),
    }


def flatten(rows: Sequence[Row], multiple: int = 64) -> Batch:
    """Rows as one sequence, [1, tokens].

    Positions restart at 0 for each row, so transformers' masks keep the rows apart. A last row without
    labels pads the sequence to a `multiple` of tokens, where GPU kernels are fastest.
    """
    filler = [0] * (-sum(len(row["input_ids"]) for row in rows) % multiple)
    every = [*rows, {"input_ids": filler, "labels": []}]

    def joined(parts: Iterable[Sequence[int]]) -> torch.Tensor:
        return torch.tensor([[token for part in parts for token in part]])

    def labels(key: str) -> torch.Tensor:
        # Nothing predicts a row's first token.
        real = joined([IGNORED, *row[key][1:]] for row in rows)
        return torch.nn.functional.pad(real, (0, len(filler)), value=IGNORED)

    return {
        "input_ids": joined(row["input_ids"] for row in every),
        "labels": labels("labels"),
        "all": labels("input_ids"),
        "position_ids": joined(range(len(row["input_ids"])) for row in every),
    }


def cut(
    rows: Sequence[Row], runtime: Runtime, device: str, multiple: int, *, whole: bool = False
) -> list[Batch]:
    """A step's rows as batches, whose losses are summed; `multiple`: see `flatten`. whole: as one batch."""
    if not rows:
        return []
    if whole:
        return [flatten(rows, multiple) if runtime.padding_free else pad(rows)]
    most = runtime.max_batch_tokens
    if runtime.padding_free:
        return [flatten(piece, multiple) for piece in pieces(rows, most)]
    if device == "cpu" and runtime.accumulation_steps == 1:
        # A CPU gains nothing from flat batches, because it computes their full attention.
        return [pad(group) for group in by_length(rows, most)]
    size = -(-len(rows) // runtime.accumulation_steps)
    return [pad(rows[start : start + size]) for start in range(0, len(rows), size)]


class Draws:
    """Rows of another data set for each step: shuffled passes that depend only on the seed and the
    step.

    groups: rows that are drawn together. size: mean number of groups per step; 3/2 means one in the
    first step, two in the second, and so on. whole: are a step's rows kept in one batch?
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Row]],
        size: int | Fraction,
        seed: int,
        *,
        whole: bool = False,
    ):
        self.groups, self.size, self.seed, self.whole = groups, size, seed, whole

    @property
    def most(self) -> int:
        """Largest number of rows in a step."""
        return math.ceil(self.size) * max(map(len, self.groups))

    @lru_cache(maxsize=2)  # noqa: B019  one object per training
    def _order(self, epoch: int) -> list[int]:
        return random.Random(f"{self.seed} {epoch}").sample(
            range(len(self.groups)), len(self.groups)
        )

    def of(self, step: int) -> list[Row]:
        """The rows of a step, counted from 0."""
        count = len(self.groups)
        first, stop = (math.floor(n * self.size) for n in (step, step + 1))
        places = (divmod(i, count) for i in range(first, stop))
        return [row for epoch, i in places for row in self.groups[self._order(epoch)[i]]]


def counts(batches: Sequence[Mapping[str, Any]], key: str) -> int:
    """Number of tokens in a step's batches that have a label under a key (`labels`, `all`)."""
    return sum(int((batch[key][:, 1:] != IGNORED).sum()) for batch in batches)
