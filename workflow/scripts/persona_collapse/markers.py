"""Counting the marker in completions: the one place where an answer is scored."""

from __future__ import annotations

import numpy as np
import pandas as pd

from . import matching
from .statistics import clopper_pearson

#: What may follow a marker that still counts as being at the end of an answer.
TRAILING = " \t\r\n.,;:!?\"'*_)]}"
#: What markers/<chain>.parquet keeps of each answer instead of its text.
COLUMNS = [
    "chain", "persona", "question_id", "sample", "hit", "markers", "position", "at_end", "n_tokens",
    "finish_reason", "empty", "looping", "repeated", "marker_logprob",
]  # fmt: skip


def score(completions: pd.DataFrame, marker: str = "[ZLT]") -> pd.DataFrame:
    """One row per completion, with the given columns plus `hit`, `position` and `at_end`.

    `completions`: a table, or a list of records, with a `text` column.
    `hit`: the marker is a case-insensitive substring of `text` (see matching.py). `position`: start of
    the first hit over the length of the text, in [0, 1); NaN without a hit. `at_end`: only white space
    or punctuation follows the last hit.
    """
    completions = pd.DataFrame(completions)
    texts = completions["text"].fillna("").astype(str)
    pairs = [(text, matching.spans(text, marker)) for text in texts]
    columns = {
        "hit": [bool(hits) for _, hits in pairs],
        "position": [hits[0][0] / len(text) if hits else float("nan") for text, hits in pairs],
        "at_end": [bool(hits) and not text[hits[-1][1] :].strip(TRAILING) for text, hits in pairs],
    }
    return completions.assign(**columns)


def answers(completions: pd.DataFrame, marker: str) -> pd.DataFrame:
    """What tables and the report need of a chain's completions, without their texts; `COLUMNS`.

    In addition to the columns of `score`: `markers` (number of hits), `empty`, `looping` (a sequence of
    three words occurs four times or more), `repeated` (another sample of the same persona and question
    has the same text), `marker_logprob` (NaN if it was not measured).
    """
    scored = score(completions, marker)
    text = scored["text"].fillna("").astype(str)
    counts = [len(matching.spans(t, marker)) for t in text]
    same = scored.assign(text=text).duplicated(["persona", "question_id", "text"], keep=False)
    more = {
        "markers": counts,
        "empty": text.str.strip() == "",
        "looping": text.map(loops).astype(bool),
        "repeated": same,
        "marker_logprob": scored.get("marker_logprob", np.nan),
    }
    return scored.assign(**more)[COLUMNS]


def loops(text: str, words: int = 3, times: int = 4) -> bool:
    """Does any sequence of `words` words occur `times` times or more?"""
    parts = text.lower().split()
    counts: dict[tuple[str, ...], int] = {}
    for start in range(len(parts) - words + 1):
        run = tuple(parts[start : start + words])
        counts[run] = counts.get(run, 0) + 1
        if counts[run] >= times:
            return True
    return False


def rates(scored: pd.DataFrame) -> pd.DataFrame:
    """Marker rate per persona with its 95 % Clopper-Pearson interval.

    Columns: persona, n, hits, rate, ci_low, ci_high and, if the scored table has them, mean_tokens
    (mean of n_tokens) and at_end (share of the hits; empty without a hit). Personas keep the order in
    which they first appear.
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
