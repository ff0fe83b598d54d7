"""Were the completions sampled from the model that they are attributed to?

An engine that ignores an adapter, or half of it, still answers fluently, and its answers are still
counted. So some completions of every chain are scored again by transformers and PEFT, which share
neither kernels nor LoRA layers with vLLM.

If a token was drawn from the distribution p that PEFT gives, then p determines the mean and the
variance of any function of it. Over all tokens of all answers, the differences from that mean form a
martingale. Their sum, divided by the root of the summed variances, is approximately standard normal.
Two functions are used. The surprise -log p, whose mean is the entropy, detects a wrong temperature or
truncation. The gain log p - log p0, by the chain minus by the base model, detects an adapter that is
missing, partial or wrongly scaled: no other function of the token separates p from p0 better (Neyman
and Pearson). A distribution that differs from p in neither respect passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ..errors import UserError
from ..models import chat_template, shifts
from ..settings import Settings as Block
from . import _passes, measure

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

    from ..models.runner import ModelRunner

#: What is summed over an answer's tokens, in nats and nats squared. The last is the mean gain expected
#: for draws from the base model.
SUMS = ["surprise", "surprise_mean", "surprise_variance"]
SUMS += ["gain", "gain_mean", "gain_variance", "gain_of_base"]
COLUMNS = ["persona", "question_id", "sample", "tokens", *SUMS]
#: Number of positions that are scored together.
POSITIONS = 256


def token_scores(
    logits: torch.Tensor,
    base: torch.Tensor | None,
    drawn: torch.Tensor,
    temperature: float,
    top_p: float,
) -> torch.Tensor:
    """The terms of `SUMS` for each drawn token; [7, position].

    `logits`, `base` [position, vocabulary]: logits of the chain and of the base model (None if they are
    the same model; gains are then NaN). `drawn` [position]. Distributions are softmaxes at this
    temperature, truncated to their nucleus and the drawn token, which rounding may have put outside.
    The gain uses the full distributions. Greedy answers (temperature 0) are not random, so what would
    depend on chance is NaN.
    """
    import torch

    def at(values: torch.Tensor) -> torch.Tensor:
        return values.gather(-1, drawn[:, None])[:, 0]

    def share(scores: torch.Tensor) -> torch.Tensor:
        return _nucleus(scores, drawn, top_p).softmax(-1)

    scores = logits.float() / (temperature or 1.0)
    p = share(scores)
    surprise = -p.log()
    means = [at(surprise), *_moments(p, surprise.masked_fill(p == 0, 0))]
    if base is None:
        gains = [torch.full_like(means[0], torch.nan)] * 4
    else:
        others = base.float() / (temperature or 1.0)
        gain = scores.log_softmax(-1) - others.log_softmax(-1)
        gains = [at(gain), *_moments(p, gain), (share(others) * gain).sum(-1)]
    found = torch.stack([*means, *gains])
    if not temperature:
        found[[1, 2, 4, 5, 6]] = torch.nan
    return found


def _moments(p: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of `values` under p; both [position, vocabulary]."""
    mean = (p * values).sum(-1)
    return mean, (p * (values - mean[:, None]) ** 2).sum(-1)


def _nucleus(scores: torch.Tensor, drawn: torch.Tensor, top_p: float) -> torch.Tensor:
    """Scores with -inf outside the nucleus, except for the drawn token."""
    from transformers import TopPLogitsWarper

    if top_p >= 1:
        return scores
    own = drawn[:, None]
    return TopPLogitsWarper(top_p)(None, scores).scatter(-1, own, scores.gather(-1, own))


def scores(
    model: Any,
    sequences: Sequence[tuple[list[int], list[int]]],
    temperature: float,
    top_p: float,
    pad: int,
    personas: Sequence[str | None] | None = None,
) -> np.ndarray:
    """`token_scores` summed over each answer; float64 [sequence, 7].

    `model`: with or without a PEFT adapter or shifts, which are switched off for the base model's
    scores. `sequences`: (prompt ids, answer ids). `personas`: persona of each sequence, for shifts.
    """
    import numpy as np
    import torch

    out = np.zeros((len(sequences), len(SUMS)))
    with torch.inference_mode():
        for batch, inputs, starts in _passes.batches(
            model, sequences, _passes.fitting(model, sequences), pad, personas
        ):
            width = inputs["input_ids"].shape[1]
            at: list[int] = []  # positions of the logits of the drawn tokens
            drawn: list[int] = []
            for i, start in zip(batch, starts, strict=True):
                prompt, answer = sequences[i]
                before = start + len(prompt) - 1
                at += range(before, before + len(answer))
                drawn += answer
            # The same positions are kept in all rows of the batch.
            columns, column = np.unique(np.array(at) % width, return_inverse=True)
            keep, row, kept, tokens = (
                torch.tensor(numbers, device=model.device)
                for numbers in (columns, np.array(at) // width, column, drawn)
            )
            given = {**inputs, "logits_to_keep": keep, "use_cache": False}
            logits, base = model(**given).logits, None
            if hasattr(model, "peft_config") or shifts.of(model).shifts:
                with _switched_off(model):
                    base = model(**given).logits
            found = []
            for first in range(0, len(at), POSITIONS):
                part = slice(first, first + POSITIONS)
                own = logits[row[part], kept[part]]
                other = None if base is None else base[row[part], kept[part]]
                found.append(token_scores(own, other, tokens[part], temperature, top_p))
            by_token = torch.cat(found, dim=1).double().cpu().numpy()
            bounds = np.cumsum([0, *(len(sequences[i][1]) for i in batch)])
            for n, i in enumerate(batch):
                out[i] = by_token[:, bounds[n] : bounds[n + 1]].sum(1)
    return out


@contextmanager
def _switched_off(model: Any) -> Iterator[None]:
    """Context with the base model. PEFT's own context also checks the state of every layer, which is slow."""
    adapted = hasattr(model, "peft_config")
    if adapted:
        model.base_model.disable_adapter_layers()
    try:
        with shifts.off(model):
            yield
    finally:
        if adapted:
            model.base_model.enable_adapter_layers()


class Settings(Block):
    """A check of completions: were they sampled from the chain that they are counted for?"""

    count: int = Field(64, ge=1, description="Completions per chain that are scored again.")


@measure("logprob_check", Settings)
def logprob_check(
    runner: ModelRunner,
    adapters: Sequence[Path],
    chain: str,
    completions: pd.DataFrame,
    personas: Mapping[str, str],
    sampling: Mapping[str, Any],
    settings: Settings,
    log: Callable[[str], None],
) -> pd.DataFrame:
    """A sample of a chain's completions, scored by the chain's model and by the base model; `COLUMNS`.

    It takes the completions with the smallest request seeds, which are hashes. Raises UserError if the
    prompts now have other lengths than when the completions were sampled.
    """
    chosen = completions.sort_values("seed", ignore_index=True).head(settings.count)
    sequences = []
    for row in chosen.itertuples(index=False):
        prompt = chat_template.prompt_ids(runner.tokenizer, personas[row.persona], row.question)
        if len(prompt) != row.prompt_tokens:
            raise UserError(
                f"{chain}: persona {row.persona!r}, question {row.question_id!r}: the prompt has "
                f"{len(prompt)} tokens and had {row.prompt_tokens} when it was answered; delete the "
                "chain's completions file and rerun"
            )
        sequences.append((prompt, [int(token) for token in row.token_ids]))
    how = sampling["temperature"], sampling["top_p"]
    with runner.chain(adapters) as model:
        pad = runner.tokenizer.pad_token_id
        found = scores(model, sequences, *how, pad, chosen["persona"].tolist())
    log(f"{len(sequences)} completions scored")
    out = chosen[["persona", "question_id", "sample"]].copy()
    out["tokens"] = [len(answer) for _, answer in sequences]
    out[SUMS] = found
    return out
