"""Were the completions drawn from the model whose name they carry?

An engine that leaves out an adapter, or half of it, still answers fluently, and its answers still get
counted. So some completions of every chain are scored again by transformers and PEFT, which share
neither kernels nor LoRA layers with vLLM. A token drawn from a distribution p has a surprise -log p
whose mean is the entropy of p; over all tokens of all answers the surprises less the entropies add
up to a martingale, so their sum over the root of the summed variances is close to standard normal
if, and only if, the tokens were drawn from this very model at this temperature. The same sums
without the adapter tell how well the check sees that adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from . import activations, chat
from .errors import UserError

if TYPE_CHECKING:
    import torch

    from .carrier import Carrier

SUMS = ["surprise", "entropy", "variance"]
COLUMNS = ["model", "persona", "question_id", "sample", "tokens", *SUMS]
COLUMNS += [f"base_{name}" for name in SUMS]
#: Rows of a forward pass where rows stand behind each other, and positions whose words are looked at
#: together: over a large vocabulary they are what fills the memory.
ROWS, POSITIONS = 32, 256


def surprises(
    logits: torch.Tensor, drawn: torch.Tensor, temperature: float, top_p: float
) -> torch.Tensor:
    """Surprise of each drawn token, and the mean and variance it had before the draw; [3, position].

    `logits` [position, vocabulary], `drawn` [position]; nats and nats squared. The distribution is
    the softmax at this temperature, cut to its nucleus and the drawn token, which rounding may have
    left outside. Greedy draws (temperature 0) are no draws: mean and variance are NaN.
    """
    import torch
    from transformers import TopPLogitsWarper

    scores = logits.float() / (temperature or 1.0)
    own = drawn[:, None]
    if top_p < 1 and temperature:
        nucleus = TopPLogitsWarper(top_p)(None, scores)
        scores = nucleus.scatter(-1, own, scores.gather(-1, own))
    logs = scores.log_softmax(-1)
    surprise = -logs.gather(-1, own)[:, 0]
    if not temperature:
        return torch.stack([surprise, *torch.full_like(surprise, torch.nan).expand(2, -1)])
    logs = logs.masked_fill(logs == -torch.inf, 0)  # 0 log 0 = 0
    shares = scores.softmax(-1)
    entropy = -(shares * logs).sum(-1)
    return torch.stack([surprise, entropy, (shares * logs**2).sum(-1) - entropy**2])


def scores(
    model: Any,
    sequences: Sequence[tuple[list[int], list[int]]],
    temperature: float,
    top_p: float,
    pad: int,
) -> np.ndarray:
    """`surprises` summed over each answer's tokens; float64 [sequence, 3].

    `sequences`: (prompt ids, answer ids).
    """
    import torch

    from . import fused

    out = np.zeros((len(sequences), 3))
    # Without attention by rows one answer a pass: what is kept of the logits is the same in all rows.
    rows = ROWS if fused.by_rows(model) else 1
    with torch.inference_mode():
        for batch, inputs, starts in activations.batches(model, sequences, rows, pad):
            kept, drawn = [], []
            for i, start in zip(batch, starts, strict=True):
                prompt, answer = sequences[i]
                first = start + len(prompt) - 1  # its logits are those of the first token
                kept += range(first, first + len(answer))
                drawn += answer
            where = torch.tensor(kept, device=model.device)
            tokens = torch.tensor(drawn, device=model.device)
            logits = model(**inputs, use_cache=False, logits_to_keep=where).logits[0]
            parts = [
                surprises(logits[at : at + POSITIONS], tokens[at : at + POSITIONS], temperature, top_p)
                for at in range(0, len(drawn), POSITIONS)
            ]
            found = torch.cat(parts, dim=1).double().cpu().numpy()
            bounds = np.cumsum([0, *(len(sequences[i][1]) for i in batch)])
            for n, i in enumerate(batch):
                out[i] = found[:, bounds[n] : bounds[n + 1]].sum(1)
    return out


def rescore(
    carrier: Carrier,
    task: Mapping[str, Any],
    completions: pd.DataFrame,
    progress: Callable[[str], None],
) -> pd.DataFrame:
    """Some of a chain's completions scored by the chain's model and by the base model.

    `task`: chain, stages, personas, sampling and count, as `configuration.task` makes it. Columns:
    COLUMNS, sums as by `scores`; the base model's are empty where it is the chain. Which
    completions: those of the smallest request seeds, which are hashes. Raises UserError if the prompts
    of today are not as long as those the completions were drawn from.
    """
    chosen = completions.sort_values("seed", ignore_index=True).head(task["count"])
    sequences = []
    for row in chosen.itertuples(index=False):
        prompt = chat.prompt_ids(carrier.tokenizer, task["personas"][row.persona], row.question)
        if len(prompt) != row.prompt_tokens:
            raise UserError(
                f"{task['chain']}: persona {row.persona!r}, question {row.question_id!r}: the prompt has "
                f"{len(prompt)} tokens and had {row.prompt_tokens} when it was answered; delete the "
                "chain's completions file and rerun"
            )
        sequences.append((prompt, [int(token) for token in row.token_ids]))
    how = task["sampling"]["temperature"], task["sampling"]["top_p"]
    out = chosen[["model", "persona", "question_id", "sample"]].copy()
    out["tokens"] = [len(answer) for _, answer in sequences]
    for prefix, stages in (("", task["stages"]), ("base_", [])):
        if prefix and not task["stages"]:
            continue  # the chain is the base model
        with carrier.chain([Path(folder) for folder in stages]) as model:
            found = scores(model, sequences, *how, carrier.tokenizer.pad_token_id)
        out[[f"{prefix}{name}" for name in SUMS]] = found
        progress(f"{len(sequences)} completions by {'the base model' if prefix else task['chain']}")
    return out.reindex(columns=COLUMNS)
