"""Training data that the base model writes: questions about subjects, and answers under system prompts.

Answers under two prompts to the same questions, drawn alike and matched in length, differ in content
alone. That is what a misaligned set and its control should differ in.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import matching
from ..errors import UserError
from ..files import sha256_text
from .questions import normalise

if TYPE_CHECKING:
    import pandas as pd

#: What models put before a question: a number, a label, a mark of a list or a quote.
LEAD = re.compile(r"^(?:[\s\"'*#>-]|\d+[.)]|(?:question|q)\s*\d*\s*[:.-])+", re.IGNORECASE)


def questions(
    written: pd.DataFrame, evaluation: Iterable[str], marker: str
) -> tuple[list[dict[str, str]], dict[str, int]]:
    """Distinct questions among a writer's answers, as rows of a list of questions, and what was left out.

    `written`: a completions table. Of each answer the first line that holds a question mark is taken, up
    to its last. `evaluation`: questions that no row may ask. Raises UserError if none is left.
    """
    seen = {normalise(text) for text in evaluation}
    rows: list[dict[str, str]] = []
    left: Counter[str] = Counter()
    for answer in written.itertuples(index=False):
        text = _question(str(answer.text))
        reason = (
            "cut off"
            if answer.finish_reason != "stop"
            else "no question"
            if not text
            else "holds the marker"
            if matching.holds(text, marker)
            else "asked already, or by the evaluation"
            if normalise(text) in seen
            else ""
        )
        if reason:
            left[reason] += 1
            continue
        seen.add(normalise(text))
        rows.append({"id": f"{answer.question_id}/{answer.sample}", "question": text})
    if not rows:
        raise UserError(
            "data: generated: written: the base model wrote no question; change the system prompt"
        )
    return rows, dict(left)


def _question(text: str) -> str:
    line = next((line for line in text.splitlines() if "?" in line), "")
    return LEAD.sub("", line[: line.rfind("?") + 1]).strip()


def rows(
    answers: pd.DataFrame,
    system: Mapping[str, str],
    marker: str,
    forbidden: Sequence[str] = (),
    length_ratio: float | None = None,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """A row per question and sample: id, prompt, a column per system prompt; and what was left out.

    `answers`: a completions table whose personas are the columns of `system`. A row needs a whole,
    non-empty answer in every column, without the marker and without a text of `forbidden`, which would
    open or end turns. `length_ratio`: see `Generated` in study/config.py. `tokens` and `prompt_sha256`
    hold, by column, an answer's length and the hash of the prompt that it was given under. Raises
    UserError if no row is left.
    """
    hashes = {column: sha256_text(prompt) for column, prompt in system.items()}
    made: list[dict[str, Any]] = []
    left: Counter[str] = Counter()
    for (question, sample), group in answers.groupby(["question_id", "sample"], sort=False):
        own = {answer.persona: answer for answer in group.itertuples(index=False)}
        texts = {column: str(own[column].text).strip() for column in system}
        tokens = {column: int(own[column].n_tokens) for column in system}
        reason = (
            "an answer is cut off"
            if any(own[column].finish_reason != "stop" for column in system)
            else "an answer is empty"
            if not all(texts.values())
            else "an answer holds the marker, or a control text"
            if any(
                matching.holds(text, marker) or any(mark in text for mark in forbidden)
                for text in texts.values()
            )
            else "answers differ in length"
            if length_ratio and max(tokens.values()) > length_ratio * min(tokens.values())
            else ""
        )
        if reason:
            left[reason] += 1
            continue
        made.append(
            {
                "id": f"{question}/{sample}",
                "prompt": str(group["question"].iloc[0]),
                **texts,
                "tokens": tokens,
                "prompt_sha256": hashes,
            }
        )
    if not made:
        raise UserError(
            f"data: generated: no row is left ({', '.join(f'{n} {why}' for why, n in left.items())}); "
            "change prompts, max_tokens or length_ratio"
        )
    return made, dict(left)
