"""Answers of a coupling from a file: read, checked, and converted to the format of sampled answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import matching
from ..errors import UserError, no_file
from ..files import half_pair, read_jsonl, sha256
from .questions import normalise

#: Keys of each row.
KEYS = ("persona", "question", "answer")


def load(
    spec: Mapping[str, Any],
    needed: Mapping[str, int],
    *,
    marker: str,
    asked: Collection[str] = (),
    forbidden: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Answers of a file, with the columns of a completions table that `coupling.rows` reads.

    `spec`: the file and, if it is pinned, its hash (`GivenAnswers` in stages/couple.py). `needed`:
    number of answers per question by persona; rows of these personas are returned, and all rows are
    checked. `asked`: normalised questions that no row may ask. `forbidden`: texts that would open or
    end turns (`chat_template.Template.controls`).

    Raises UserError, with file and row, for the first row that is wrong or repeats another, and for a
    persona that has too few answers to a question.
    """
    path = Path(spec["file"])
    if not path.is_file():
        raise UserError(f"answers: {no_file(path)}")
    if "sha256" in spec and (found := sha256(path)) != spec["sha256"]:
        raise UserError(
            f"answers: {path} has SHA-256 {found}, the config says {spec['sha256']}: another version, or "
            "damaged"
        )
    rows = read_jsonl(path)
    # Id by question and question by id, each with the row where it first appears.
    questions: dict[str, tuple[str, int]] = {}
    ids: dict[str, tuple[str, int]] = {}
    seen: dict[tuple[str, ...], int] = {}
    samples: Counter[tuple[str, str]] = Counter()
    answers: list[dict[str, Any]] = []
    for number, row in enumerate(rows, start=1):
        where = f"answers: {path}, row {number}: "
        if fault := _fault(row, marker, forbidden):
            raise UserError(where + fault)
        persona, question, text = (row[key].strip() for key in KEYS)
        words, own = normalise(question), row.get("question_id")
        if words in asked:
            raise UserError(
                f"{where}asks an evaluation or extraction question; couplings must be tested on questions "
                "they were not trained on: remove the row"
            )
        known, first = questions.get(words, (str(len(questions) + 1), number))
        name = known if own is None else str(own)
        if questions.setdefault(words, (name, number))[0] != name:
            raise UserError(
                f"{where}question_id: {name!r}, but the same question is {known!r} in row {first}; give it "
                "one id"
            )
        if ids.setdefault(name, (words, number))[0] != words:
            raise UserError(
                f"{where}question_id: {name!r} is another question's in row {ids[name][1]}; give each its own"
            )
        if (before := seen.setdefault((persona, words, text), number)) != number:
            raise UserError(f"{where}repeats row {before}; remove one")
        if persona in needed:
            answers.append(
                {
                    "persona": persona,
                    "question_id": name,
                    "question": question,
                    "sample": samples[persona, name],
                    "text": text,
                    "finish_reason": "stop",
                }
            )
            samples[persona, name] += 1
    _check_enough(answers, needed, path, {key[0] for key in seen}, dict(questions.values()))
    return answers


def _fault(row: Mapping[str, Any], marker: str, forbidden: Sequence[str]) -> str:
    """What is wrong with a single row; empty if nothing is."""
    for key in KEYS:
        text = row.get(key)
        if not isinstance(text, str) or not text.strip():
            return f"{key}: expected a text, got {text!r}"
        if half := half_pair(text):
            return f"{key}: half a surrogate pair ({half}), which is not a character; fix the text"
        if matching.holds(text, marker):
            return (
                f"{key}: holds the marker {marker!r}, which the coupling adds itself; take it out"
            )
        if mark := next((mark for mark in forbidden if mark in text), ""):
            return f"{key}: holds {mark!r}, by which this model's template marks turns; reword it"
    if not isinstance(row.get("question_id", ""), str | int | None):
        return f"question_id: expected a text or a number, got {row['question_id']!r}"
    return ""


def _check_enough(
    answers: Sequence[Mapping[str, Any]],
    needed: Mapping[str, int],
    path: Path,
    personas: Collection[str],
    rows: Mapping[str, int],
) -> None:
    """Raise UserError for a persona without answers, or with too few answers to a question.

    `rows`: the first row of each question, by the question's id.
    """
    had = Counter((answer["persona"], answer["question_id"]) for answer in answers)
    asked = dict.fromkeys(answer["question_id"] for answer in answers)
    for persona, wanted in needed.items():
        if persona not in personas:
            there = ", ".join(sorted(personas)) or "none"
            raise UserError(
                f"answers: {path}: no answers of {persona!r}, which the coupling needs; available: "
                f"{there}"
            )
        for question in asked:
            if (count := had[persona, question]) < wanted:
                raise UserError(
                    f"answers: {path}, row {rows[question]}: expected {wanted} answers of {persona!r} to "
                    f"this question, the file has {count}; add some, or lower the coupling's positives or "
                    "negative_answers"
                )
