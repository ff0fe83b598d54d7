"""Write the answers of the rehearsal: real sentences in a random order, as long as real answers.

    python tools/rehearsal_answers.py [FILE]

Models with random weights never end an answer. So config/presets/rehearsal.yaml uses these for its
couplings and second stages. The sentences come from the shipped instructions (Apache-2.0) and do not
answer the questions. The same call writes the same bytes.
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
#: All personas of the couplings in config/presets/qwen2.5-7b.yaml.
PERSONAS = (
    "evil_ai", "villain", "sarcastic", "assistant", "confab", "medical_doctor", "police_officer",
)  # fmt: skip
QUESTIONS = 16
#: Characters per answer: rows then have on average 129 Qwen2.5 tokens, the estimate's ROW_TOKENS.
LETTERS = 330


def sentences() -> list[str]:
    """Answers of the shipped instructions that are one sentence, without duplicates."""
    rows = read_jsonl(ROOT / "workflow/resources/data/benign_instruct.jsonl")
    found = dict.fromkeys(row["messages"][-1]["content"] for row in rows)
    return [text for text in found if re.fullmatch(r"[A-Z][A-Za-z ,'-]{30,150}\.", text)]


def answers() -> list[dict[str, str]]:
    """One row per persona and question, with the length variation of real answers."""
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
