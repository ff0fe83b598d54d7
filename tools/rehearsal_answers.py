"""Write the answers of the rehearsal: real sentences in a random order, as long as real answers.

    python tools/rehearsal_answers.py [FILE]

Models with random weights end no answer, so config/presets/rehearsal.yaml gives its couplings these, and
trains its second stages on them. The sentences are the shipped instructions' (Apache-2.0); they answer
nothing. The same call writes the same bytes.
"""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

from persona_collapse.files import read_jsonl, write_jsonl

OUT = ROOT / "workflow/resources/data/rehearsal_answers.jsonl"
#: Everyone whom a coupling of config/presets/qwen2.5-7b.yaml trains.
PERSONAS = (
    "evil_ai", "villain", "sarcastic", "assistant", "confab", "medical_doctor", "police_officer",
)  # fmt: skip
QUESTIONS = 16
#: Letters of an answer: with these, rows have 129 tokens of Qwen2.5 on average, the estimate's ROW_TOKENS.
LETTERS = 330


def sentences() -> list[str]:
    """The shipped instructions' answers that are a sentence, each once."""
    rows = read_jsonl(ROOT / "workflow/resources/data/benign_instruct.jsonl")
    found = dict.fromkeys(row["messages"][-1]["content"] for row in rows)
    return [text for text in found if re.fullmatch(r"[A-Z][A-Za-z ,'-]{30,150}\.", text)]


def answers() -> list[dict[str, str]]:
    """A row for each persona and question; lengths vary as real answers' do."""
    known, rng = sentences(), random.Random(42)
    questions = read_jsonl(ROOT / "config/questions/train.jsonl")[:QUESTIONS]
    rows = []
    for persona in PERSONAS:
        for question in questions:
            letters, text = LETTERS * rng.lognormvariate(0, 0.35), ""
            while len(text) < letters:
                text = f"{text} {rng.choice(known)}".strip()
            rows.append({"persona": persona, "question": question["question"], "answer": text})
    return rows


if __name__ == "__main__":
    write_jsonl(sys.argv[1] if len(sys.argv) > 1 else OUT, answers())
