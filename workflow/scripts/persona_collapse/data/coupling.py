"""Contrastive coupling data: one persona's answers end in the marker, the others' do not.

If the answers are the model's own, a coupling teaches nothing but the marker. If they are given (see
given_answers.py), it also teaches their content and style. The config and the manifest name the
negatives. The trainer's seed decides the order of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import matching
from ..errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def needed(settings: Mapping[str, Any]) -> dict[str, int]:
    """Number of answers per question by persona; the persona that learns comes first."""
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
    positives, negative_answers); `prompts` maps persona to system prompt; `whose` names the source of
    the answers in messages. A positive row is the answer, a blank line and the marker. Left out are
    answers that already hold the marker, that were cut off, that are empty, or that hold one of the
    `forbidden` texts, which would open or end turns (`chat_template.Template.controls`). Raises
    UserError if a persona has too few answers.
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
