"""Training data that the base model writes: questions about subjects, and answers under system prompts.

Answers under two prompts to the same questions, sampled with the same settings and matched in length,
differ only in content, as a misaligned set and its control should.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import matching
from ..errors import UserError
from ..files import sha256_text
from .questions import normalise, system_prompt

if TYPE_CHECKING:
    import pandas as pd

#: Column of the hash of the system prompt under which each other column was written.
PROMPT_HASHES = "prompt_sha256"
#: Columns of every row, in addition to one per system prompt.
COLUMNS = {"id", "prompt", "statements", "tokens", PROMPT_HASHES}
#: What models write before a question: a number, a label, a bullet or a quotation mark.
LEAD = re.compile(r"^(?:[\s\"'*#>-]|\d+[.)]|(?:question|q)\s*\d*\s*[:.-])+", re.IGNORECASE)


def questions(
    written: pd.DataFrame, evaluation: Iterable[str], marker: str
) -> tuple[list[dict[str, str]], dict[str, int]]:
    """Distinct questions in a writer's answers, as rows of a question list, and counts of what was left
    out.

    `written`: a completions table. From each answer, the first line with a question mark is taken, up
    to its last question mark. `evaluation`: questions that no row may ask. Raises UserError if none is
    left.
    """
    seen = {normalise(text) for text in evaluation}
    rows: list[dict[str, str]] = []
    left: Counter[str] = Counter()
    for answer in written.itertuples(index=False):
        text = _question(str(answer.text))
        words = normalise(text)
        if answer.finish_reason != "stop":
            left["cut off"] += 1
        elif not text:
            left["no question"] += 1
        elif matching.holds(text, marker):
            left["holds the marker"] += 1
        elif words in seen:
            left["asked already, or by the evaluation"] += 1
        else:
            seen.add(words)
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
    questions: Iterable[Mapping[str, Any]] = (),
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows, one per question and sample (id, prompt, one column per system prompt), and counts of what
    was left out. All questions come once before any comes again, so the first rows are of all of them.

    `answers`: a completions table whose personas are the columns of `system`. A row needs a complete,
    non-empty answer in every column, without the marker and without a `forbidden` text, which would
    open or end turns. `length_ratio`: see `Generated` in study/config.py. `questions`: the list that was
    asked, for the statements of its questions, which the rows keep. `tokens` and `prompt_sha256` hold, by
    column, the length of an answer and the hash of its system prompt, with its statement. Raises
    UserError if no row is left.
    """
    asked = {question["id"]: question for question in questions}
    made: list[dict[str, Any]] = []
    left: Counter[str] = Counter()
    in_turn = answers.sort_values("sample", kind="stable")
    for (question, sample), group in in_turn.groupby(["question_id", "sample"], sort=False):
        own = {answer.persona: answer for answer in group.itertuples(index=False)}
        texts = {column: str(own[column].text).strip() for column in system}
        tokens = {column: int(own[column].n_tokens) for column in system}
        if any(own[column].finish_reason != "stop" for column in system):
            left["an answer is cut off"] += 1
            continue
        if not all(texts.values()):
            left["an answer is empty"] += 1
            continue
        if any(matching.spoils(text, marker, forbidden) for text in texts.values()):
            left["an answer holds the marker, or a control text"] += 1
            continue
        if length_ratio and max(tokens.values()) > length_ratio * min(tokens.values()):
            left["answers differ in length"] += 1
            continue
        row = asked.get(str(question), {})
        made.append(
            {
                "id": f"{question}/{sample}",
                "prompt": str(group["question"].iloc[0]),
                **texts,
                **({"statements": row["statements"]} if "statements" in row else {}),
                "tokens": tokens,
                PROMPT_HASHES: {
                    column: sha256_text(system_prompt(prompt, column, row))
                    for column, prompt in system.items()
                },
            }
        )
    if not made:
        raise UserError(
            f"data: generated: no row is left ({', '.join(f'{n} {why}' for why, n in left.items())}); "
            "change prompts, max_tokens or length_ratio"
        )
    return made, dict(left)
