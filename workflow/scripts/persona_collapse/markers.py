"""Counting the marker in completions."""

from __future__ import annotations

import pandas as pd

from . import matching
from .statistics import clopper_pearson

#: What may follow a marker that still counts as standing at the end of an answer.
TRAILING = " \t\r\n.,;:!?\"'*_)]}"


def score(completions: pd.DataFrame, marker: str = "[ZLT]") -> pd.DataFrame:
    """One row a completion, with `hit`, `position` and `at_end` beside the columns given.

    `completions`: a table, or a list of records, with a `text` column.
    `hit`: the marker is a case-insensitive substring of `text` (see matching.py). `position`: start of
    the first hit over the length of the text, in [0, 1); NaN without a hit. `at_end`: only white space
    or punctuation follows the last hit.
    """
    completions = pd.DataFrame(completions)
    texts = completions["text"].fillna("").astype(str)
    found = [(text, matching.spans(text, marker)) for text in texts]
    columns = {
        "hit": [bool(hits) for _, hits in found],
        "position": [hits[0][0] / len(text) if hits else float("nan") for text, hits in found],
        "at_end": [bool(hits) and not text[hits[-1][1] :].strip(TRAILING) for text, hits in found],
    }
    return completions.assign(**columns)


def rates(scored: pd.DataFrame) -> pd.DataFrame:
    """Marker rate by persona with its 95 % Clopper-Pearson interval.

    Columns: persona, n, hits, rate, ci_low, ci_high, and where the scored table has them
    mean_tokens (mean of n_tokens) and at_end (share of the hits; empty without a hit). Personas
    keep the order in which they first appear.
    """
    groups = scored.groupby("persona", sort=False)
    table = groups["hit"].agg(n="size", hits="sum").reset_index()
    table["hits"] = table["hits"].astype(int)
    table["rate"] = table["hits"] / table["n"]
    low, high = clopper_pearson(table["hits"].to_numpy(), table["n"].to_numpy())
    table["ci_low"], table["ci_high"] = low, high
    if "n_tokens" in scored:
        table["mean_tokens"] = groups["n_tokens"].mean().to_numpy()
    if "at_end" in scored:
        ends = groups["at_end"].sum().to_numpy()
        table["at_end"] = pd.Series(ends / table["hits"]).where(table["hits"] > 0)
    return table
