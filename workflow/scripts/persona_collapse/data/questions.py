"""Lists of questions: reading them, and finding questions that ask the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError, no_file
from ..files import half_pair, read_jsonl, sha256


def normalise(text: str) -> str:
    """A question normalised for comparison: case, Unicode composition, punctuation and spacing are
    ignored."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[^\w\s]", " ", folded).split())


#: Where a system prompt shows what the answer to a question has to say; see `system_prompt`.
STATEMENT = "{statement}"


def system_prompt(prompt: str, column: str, question: Mapping[str, Any]) -> str:
    """System prompt of the answer in a column to a question: `{statement}` is the question's statement
    for that column. The prompt itself where the question has none."""
    statements = question.get("statements", {})
    return prompt.replace(STATEMENT, statements[column]) if column in statements else prompt


def load_questions(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Questions of a file: [{id, question}, ...], the first `take` of them.

    Each line holds `question` and optionally `id` (default: the row number) and `statements`: what an
    answer has to say, by column of a generated data set. A repeated id, an empty question or statement,
    too few questions or a wrong hash raise UserError. So does a repeated question, unless the
    file is pinned by `sha256` (the study's own 240 questions contain one duplicate).
    """
    path = Path(spec["file"])
    if not path.is_file():
        raise UserError(f"questions: {no_file(path)}")
    if "sha256" in spec and sha256(path) != spec["sha256"]:
        raise UserError(f"questions: {path}: its SHA-256 is not the one in the config")
    questions: list[dict[str, Any]] = []
    for number, row in enumerate(read_jsonl(path), start=1):
        text = row.get("question")
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"questions: {path}, row {number}: question: expected text")
        name = str(number if row.get("id") is None else row["id"])
        statements = row.get("statements", {})
        if not isinstance(statements, dict) or not all(
            isinstance(said, str) and said.strip() for said in statements.values()
        ):
            raise UserError(
                f"questions: {path}, row {number}: statements: expected text by column of the data set"
            )
        if half := half_pair("".join([name, text, *statements.values()])):
            raise UserError(
                f"questions: {path}, row {number}: half a surrogate pair ({half}), which is no "
                "character; fix the text"
            )
        said = {"statements": statements} if statements else {}
        questions.append({"id": name, "question": text, **said})
    if not questions:
        raise UserError(f"questions: {path}: no question in it; write some, or name another file")
    take = spec.get("take", len(questions))
    if take > len(questions):
        raise UserError(f"questions: {path}: expected {take} questions, got {len(questions)}")
    ids: set[str] = set()
    texts: dict[str, str] = {}
    for number, question in enumerate(questions[:take], start=1):
        name = question["id"]
        # The same question may be there with other statements.
        text = normalise(
            "\n".join([question["question"], *question.get("statements", {}).values()])
        )
        if name in ids:
            raise UserError(f"questions: {path}, row {number}: id {name!r} is used twice")
        if text in texts and "sha256" not in spec:
            raise UserError(
                f"questions: {path}, row {number}: {name!r} asks the same as {texts[text]!r}; remove "
                "one, or give the file's sha256 to take it as it is"
            )
        ids.add(name)
        texts[text] = name
    return questions[:take]


def check_disjoint(train: Mapping[str, Any], *others: Mapping[str, Any]) -> None:
    """Raise UserError if a training question is also in one of `others` (evaluation, ...)."""
    trained = {normalise(q["question"]): q["id"] for q in load_questions(train)}
    for other in others:
        for question in load_questions(other):
            text = normalise(question["question"])
            if text in trained:
                raise UserError(
                    f"questions: {trained[text]!r} of {train['file']} is also {question['id']!r} of "
                    f"{other['file']}; models must be tested on questions they were not trained on"
                )
