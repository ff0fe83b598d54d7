"""Statistics of the answers: length, truncation, repetition, and position of the marker."""

from __future__ import annotations

import numpy as np
import pandas as pd

COLUMNS = [
    "condition", "chain", "source", "seed", "role", "n", "rate", "mean_tokens", "sd_tokens",
    "truncated", "rate_finished", "empty", "looping", "repeated_answers", "hits", "marker_position",
    "marker_at_start", "marker_in_tail", "marker_at_end", "markers_per_hit", "n_logprob",
    "marker_logprob",
]  # fmt: skip


def answer_stats(design: pd.DataFrame, scored: pd.DataFrame) -> pd.DataFrame:
    """Other explanations of a marker rate (length, loops, position): two rows per cell of the design.

    Roles are `source` and `others` (every other persona). Shares are of completions. Shares about the
    marker are of hits: `marker_at_start` (first twentieth of the text), `marker_in_tail` (last 15 %),
    `marker_at_end` (only punctuation follows); `markers_per_hit` is a mean. `rate_finished`: marker
    rate of answers that were not cut off (`truncated`). `repeated_answers`: share of completions with
    the same text as another sample of the same persona and question. `marker_logprob`: mean
    log-probability, in nats, of the marker appended to the `n_logprob` answers where it was measured:
    the first sample of each question, unless it was cut off.
    """
    by_chain = dict(tuple(scored.groupby("chain", sort=False)))
    rows = []
    for cell in design.itertuples(index=False):
        if cell.chain not in by_chain:
            continue
        table = by_chain[cell.chain]
        table = table[table["persona"].isin(cell.personas.split())]
        parts = {
            "source": table["persona"] == cell.source,
            "others": table["persona"] != cell.source,
        }
        for role, inside in parts.items():
            answers = table[inside]
            if answers.empty:
                continue
            hits, truncated = answers[answers["hit"]], answers["finish_reason"] == "length"
            rows.append(
                {
                    "condition": cell.condition,
                    "chain": cell.chain,
                    "source": cell.source,
                    "seed": cell.seed,
                    "role": role,
                    "n": len(answers),
                    "rate": answers["hit"].mean(),
                    "mean_tokens": answers["n_tokens"].mean(),
                    "sd_tokens": answers["n_tokens"].std(),
                    "truncated": truncated.mean(),
                    "rate_finished": answers.loc[~truncated, "hit"].mean(),
                    "empty": answers["empty"].mean(),
                    "looping": answers["looping"].mean(),
                    "repeated_answers": answers["repeated"].mean(),
                    "hits": len(hits),
                    "marker_position": hits["position"].mean(),
                    "marker_at_start": (hits["position"] < 0.05).mean() if len(hits) else np.nan,
                    "marker_in_tail": (hits["position"] > 0.85).mean() if len(hits) else np.nan,
                    "marker_at_end": hits["at_end"].mean() if len(hits) else np.nan,
                    "markers_per_hit": hits["markers"].mean(),
                    "n_logprob": answers["marker_logprob"].count(),
                    "marker_logprob": answers["marker_logprob"].mean(),
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)
