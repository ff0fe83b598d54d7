"""Answers for the page: a sample of them, as a script may show them.

Model output is hostile text: control characters are named, and long answers are cut.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

LONGEST_ANSWER = 600
#: Answers that the page holds at most; of more, as many of every chain and persona, chosen by hash.
SHOWN_ANSWERS = 5000
#: Letters of these answers, about: fewer are shown where they are long.
SHOWN_LETTERS = 1_500_000


def printable(text: str) -> str:
    """An answer as it can be shown: control characters named, long ones cut with a note."""
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
    """Answers for the page: all, or as many of each chain and persona as fit `limit`; in hash order.

    The hash is of chain, persona, question and sample: the same answers on every machine, and a first
    screen that is a mix of them. Where not even one of each fits, the first by hash. `answers`: what
    `markers.answers` gives, chain by chain; `completions` gives a chain's own, for the texts of those
    that are shown. One chain's tables are held at a time, with up to `limit` answers.
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
    """The first answers of each chain and persona, of which there are `cells`; `limit` in all."""
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
