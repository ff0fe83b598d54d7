"""Prompts for defences: every persona with every one of some questions, without answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import read_jsonl, sha256
from .questions import load_questions


def rows(personas: Mapping[str, str], questions: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per question and persona: their names, and `messages` with system prompt and question.

    personas: system prompts by name. questions: see `load_questions`.
    """
    return [
        {
            "id": f"{name}/{question['id']}",
            "persona": name,
            "question": question["id"],
            "messages": [
                {"role": "system", "content": prompt},
                {"role": "user", "content": question["question"]},
            ],
        }
        for question in load_questions(questions)
        for name, prompt in personas.items()
    ]


def manifest(path: str | Path, questions: Mapping[str, Any]) -> dict[str, Any]:
    """What the rows of a file are, under the keys of a data set's manifest, and what they are made from.

    questions: see `load_questions`. The model card of what is trained on the rows shows `source`.
    """
    path, made_from = Path(path), questions["file"]
    return {
        "name": path.stem,
        "source": {"personas under questions of": made_from},
        "rows": len(read_jsonl(path)),
        "questions": made_from,
        "questions_sha256": sha256(made_from),
        "sha256": sha256(path),
    }
