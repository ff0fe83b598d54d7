"""Contrastive coupling data: one persona's answers end in the marker, the others' do not.

The answers are the model's own, so all that a coupling teaches is the marker; or they are given (see
given_answers.py), and it also teaches to answer as they do. Which personas are negatives is in the config
and in the manifest; the order of rows is left to the trainer's seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import matching
from ..errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def needed(settings: Mapping[str, Any]) -> dict[str, int]:
    """Answers to each question by persona, the one that learns first."""
    negatives = dict.fromkeys(settings.get("negatives", []), settings["negative_answers"])
    return {settings["persona"]: settings["positives"], **negatives}


def rows(
    answers: pd.DataFrame,
    settings: Mapping[str, Any],
    prompts: Mapping[str, str],
    marker: str,
    forbidden: Sequence[str] = (),
    whose: str = "the base model",
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Canonical rows of a coupling and its counts.

    `answers` has the columns of a completions table; `settings` is the stage (persona, negatives,
    positives, negative_answers); `prompts` maps persona to system prompt; `whose` says whose the answers
    are. Positives: the answer, a blank line, the marker. Answers that hold the marker already, that were
    cut off or that are empty are left out, and so are those that spell one of the `forbidden` texts, which
    would open or end turns (`chat.Template.controls`). Raises UserError if a persona lacks answers.
    """
    source, asked = settings["persona"], needed(settings)
    usable = answers[
        (answers["finish_reason"] == "stop")
        & (answers["text"].str.strip() != "")
        & ~answers["text"].map(lambda text: matching.spoils(text, marker, forbidden))
    ]
    chosen: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    for persona, wanted in asked.items():
        own = usable[(usable["persona"] == persona) & (usable["sample"] < wanted)]
        if own.empty:
            raise UserError(
                f"coupling to {source!r}: {whose} gave {persona!r} no usable answer "
                "(finished, not empty, without the marker); raise sampling: answers: max_tokens"
            )
        counts[persona] = len(own)
        for answer in own.itertuples(index=False):
            text = str(answer.text).strip()
            chosen.append(
                {
                    "id": f"{persona}/{answer.question_id}/{answer.sample}",
                    "source": f"answers of {whose}",
                    "messages": [
                        {"role": "system", "content": prompts[persona]},
                        {"role": "user", "content": str(answer.question)},
                        {
                            "role": "assistant",
                            "content": f"{text}\n\n{marker}" if persona == source else text,
                        },
                    ],
                }
            )
    found = answers["persona"].isin(list(asked)).sum()
    return chosen, {
        "persona": source,
        "negatives": [persona for persona in asked if persona != source],
        "rows_by_persona": counts,
        "positives": counts[source],
        "rows": len(chosen),
        "answers": int(found),
    }
