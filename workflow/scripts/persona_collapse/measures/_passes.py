"""Forward passes over many sequences: in batches, and the loss of their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Sequences = Sequence[tuple[list[int], list[int]]]
#: The sequences of a forward pass, the decoder's inputs, and the first position of each sequence.
Batches = Iterator[tuple[list[int], dict[str, Any], list[int]]]
#: Flat batches hold batch_size times this many tokens.
TOKENS_A_PROMPT = 64


def batches(
    model: Any,
    sequences: Sequences,
    batch_size: int,
    pad: int,
    personas: Sequence[str | None] | None = None,
) -> Batches:
    """Passes over all sequences, shortest first, with inputs on the model's device.

    `personas`: persona of each sequence, for shifts (see `models.shifts`), which are aimed at each
    pass.
    """
    import torch

    from ..models import fused, shifts

    order = sorted(range(len(sequences)), key=lambda i: sum(map(len, sequences[i])))
    if fused.by_rows(model):
        made = _flat(sequences, order, TOKENS_A_PROMPT * batch_size, pad)
    else:
        made = _padded(sequences, order, batch_size, pad)
    for batch, inputs, starts in made:
        spans = [
            shifts.Span(
                start,
                len(sequences[i][0]),
                sum(map(len, sequences[i])),
                personas[i] if personas else None,
            )
            for i, start in zip(batch, starts, strict=True)
        ]
        shifts.aim(model, inputs["input_ids"].shape, spans)
        there = {k: v.to(model.device) if torch.is_tensor(v) else v for k, v in inputs.items()}
        yield batch, there, starts


def _padded(sequences: Sequences, order: Sequence[int], batch_size: int, pad: int) -> Batches:
    """Batches [sequence, token], padded on the right."""
    import torch

    for first in range(0, len(order), batch_size):
        batch = list(order[first : first + batch_size])
        width = max(sum(map(len, sequences[i])) for i in batch)
        ids = torch.full((len(batch), width), pad)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        for row, i in enumerate(batch):
            tokens = sequences[i][0] + sequences[i][1]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        yield (
            batch,
            {"input_ids": ids, "attention_mask": mask},
            [row * width for row in range(len(batch))],
        )


def _flat(sequences: Sequences, order: Sequence[int], tokens: int, pad: int) -> Batches:
    """Batches [1, token] of `tokens` each (the last may be shorter), padded at the end.

    With a single size, GPU libraries choose their kernels only once.
    """
    import torch

    from ..models import fused

    left = list(order)
    while left:
        batch: list[int] = []
        starts: list[int] = []
        ids: list[int] = []
        positions: list[int] = []
        while left and (not batch or len(ids) + sum(map(len, sequences[left[0]])) <= tokens):
            prompt, answer = sequences[left[0]]
            starts.append(len(ids))
            ids += prompt + answer
            positions += range(len(ids) - starts[-1])
            batch.append(left.pop(0))
        filler = tokens - len(ids) if left and len(ids) < tokens else -len(ids) % fused.TOKENS
        bounds = [*starts, len(ids), *([len(ids) + filler] if filler else [])]
        ids += [pad] * filler
        positions += range(filler)
        yield (
            batch,
            {
                "input_ids": torch.tensor([ids]),
                "position_ids": torch.tensor([positions]),
                "cu_seq_lens_q": torch.tensor(bounds, dtype=torch.int32),
                "max_length_q": max(b - a for a, b in pairwise(bounds)),
            },
            starts,
        )


#: With a large vocabulary, logits fill the memory. Bytes of a pass's logits, for the chain's model and
#: the base each: few large passes on a GPU, cache-sized ones on a CPU.
LOGITS = {"cuda": 2**30, "cpu": 2**28}


def fitting(model: Any, sequences: Sequences) -> int:
    """The batch size for `batches` at which logits take `LOGITS` bytes."""
    from ..models import fused

    longest = max((len(prompt) + len(answer) for prompt, answer in sequences), default=1)
    tokens = TOKENS_A_PROMPT if fused.by_rows(model) else longest
    row = tokens * model.config.vocab_size * model.dtype.itemsize
    return max(1, LOGITS[model.device.type] // row)


def surprises(
    model: Any,
    rows: Sequence[tuple[Sequence[int], Sequence[bool]]],
    pad: int,
    persona: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of -log p over each row's chosen tokens (nats), and the number of these tokens; both [row].

    `rows`: (token ids, mask of chosen tokens); the first token of a row has no prediction and is never
    counted. Log-probabilities are at temperature 1. `persona`: persona of the rows, if any; the tokens
    before the first chosen one are the prompt.
    """
    import numpy as np
    import torch

    sums, counts = np.zeros(len(rows)), np.zeros(len(rows), dtype=int)
    prompts = [[*chosen, True].index(True) for _, chosen in rows]
    sequences: list[tuple[list[int], list[int]]] = [
        (list(ids[:end]), list(ids[end:])) for (ids, _), end in zip(rows, prompts, strict=True)
    ]
    with torch.inference_mode():
        for batch, inputs, starts in batches(
            model, sequences, fitting(model, sequences), pad, [persona] * len(rows)
        ):
            width = inputs["input_ids"].shape[1]
            where, drawn, owner = [], [], []
            for i, start in zip(batch, starts, strict=True):
                ids, chosen = rows[i]
                places = [n for n in range(1, len(ids)) if chosen[n]]
                where += [start + n - 1 for n in places]
                drawn += [ids[n] for n in places]
                owner += [i] * len(places)
            columns, column = np.unique(np.array(where) % width, return_inverse=True)
            keep, row, kept, tokens = (
                torch.tensor(numbers, device=model.device)
                for numbers in (columns, np.array(where) // width, column, drawn)
            )
            logits = model(**inputs, logits_to_keep=keep, use_cache=False).logits
            chosen_logits = logits[row, kept].float()
            lost = torch.nn.functional.cross_entropy(chosen_logits, tokens, reduction="none")
            np.add.at(sums, owner, lost.double().cpu().numpy())
            np.add.at(counts, owner, 1)
    return sums, counts
