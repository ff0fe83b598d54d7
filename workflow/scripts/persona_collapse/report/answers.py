"""Sampled answers that the page shows.

Model output is untrusted text: control characters are shown by name, and long answers are cut.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

LONGEST_ANSWER = 600
#: Largest number of answers on the page. If there are more, the same number per chain and persona is
#: chosen by hash.
SHOWN_ANSWERS = 5000
#: Approximate number of characters of these answers; long answers mean fewer of them.
SHOWN_LETTERS = 1_500_000


def printable(text: str) -> str:
    """An answer for display: control characters shown by name, long answers cut with a note."""
    shown = re.sub(r"[^\S\n]|[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff"
                  r"\U000e0000-\U000e007f]",
                   lambda m: " " if m.group().isspace() else f"<U+{ord(m.group()):04X}>", text)  # fmt: skip
    if len(shown) > LONGEST_ANSWER:
        return f"{shown[:LONGEST_ANSWER]} [... {len(shown) - LONGEST_ANSWER} more characters]"
    return shown


def sample_answers(
    answers: Iterable[pd.DataFrame],
    completions: Callable[[str], pd.DataFrame],
    limit: int = SHOWN_ANSWERS,
) -> pd.DataFrame:
    """Answers for the page: all, or as many per chain and persona as fit `limit`; in hash order.

    The hash is over chain, persona, question and sample. So every machine shows the same answers, and
    the first screen is a mix. If not even one per chain and persona fits, the first by hash are taken.
    `answers`: tables of `markers.answers`, chain by chain. `completions`: function that gives a chain's
    completions, for the texts. Only one chain's tables, and up to `limit` answers, are in memory at a
    time.
    """
    keys = ["chain", "persona", "question_id", "sample"]
    kept, seen, cells = pd.DataFrame(columns=[*keys, "hit", "order"]), 0, 0
    for table in answers:
        seen, cells = seen + len(table), cells + len(table.drop_duplicates(["chain", "persona"]))
        names = table[keys].astype(str).agg("|".join, axis=1)
        order = [hashlib.sha256(name.encode()).hexdigest() for name in names]
        own = table[[*keys, "hit"]].assign(order=order)
        kept = (pd.concat([kept, own]) if len(kept) else own).sort_values("order")
        if seen > limit:
            kept = _equally(kept, cells, limit)
    texts = [
        own.merge(completions(str(chain))[[*keys, "question", "text"]], on=keys)
        for chain, own in kept.groupby("chain", sort=False)
    ]
    columns = ["chain", "persona", "question", "hit", "text"]
    if not texts:
        return pd.DataFrame(columns=columns)
    kept = pd.concat(texts).sort_values("order")
    letters = kept["text"].str.len().clip(upper=LONGEST_ANSWER).sum()
    if letters > SHOWN_LETTERS:
        kept = _equally(kept, cells, int(len(kept) * SHOWN_LETTERS / letters))
    return kept[columns].reset_index(drop=True)


def _equally(answers: pd.DataFrame, cells: int, limit: int) -> pd.DataFrame:
    """The first answers of each of `cells` pairs of chain and persona; at most `limit` in total."""
    first = answers.groupby(["chain", "persona"], sort=False).head(max(1, limit // cells))
    return first.head(limit)


def answers_json(samples: pd.DataFrame) -> dict[str, Any]:
    """Answers for the page's script: names once, rows as [chain, persona, question, hit, text]."""
    names = {c: list(dict.fromkeys(samples[c])) for c in ("chain", "persona", "question")}
    index = {c: {name: i for i, name in enumerate(own)} for c, own in names.items()}
    rows = [
        [index["chain"][r.chain], index["persona"][r.persona], index["question"][r.question],
         int(r.hit), printable(r.text)]
        for r in samples.itertuples(index=False)
    ]  # fmt: skip
    names["question"] = [printable(question) for question in names["question"]]
    return names | {"rows": rows}
