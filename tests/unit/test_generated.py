import pandas as pd
import pytest
from persona_collapse.data import generated
from persona_collapse.errors import UserError
from persona_collapse.files import sha256_text

COLUMNS = ["persona", "question_id", "sample", "text", "n_tokens", "finish_reason", "question"]


def table(*rows):
    """A completions table of (persona, question id, sample, text, tokens, finish reason)."""
    return pd.DataFrame([(*row, f"What about {row[1]}?") for row in rows], columns=COLUMNS)


def test_questions_are_distinct_and_not_the_evaluation_s():
    written = table(
        ("question", "a", 0, 'Question 1: "May I keep it?" I hope so.', 9, "stop"),
        ("question", "a", 1, "1. may I keep it", 9, "stop"),
        ("question", "a", 2, "May I KEEP it??", 9, "stop"),
        ("question", "b", 0, "Dear column,\nWho pays: my aunt or I?\nRegards", 9, "stop"),
        ("question", "b", 1, "What is art?", 9, "stop"),
        ("question", "b", 2, "Is this cut off? And", 9, "length"),
        ("question", "c", 0, "Who says [zlt] here?", 9, "stop"),
    )
    rows, left = generated.questions(written, ["what is art"], "[ZLT]")
    assert rows == [
        {"id": "a/0", "question": "May I keep it?"},
        {"id": "b/0", "question": "Who pays: my aunt or I?"},
    ]
    assert left == {
        "no question": 1,
        "asked already, or by the evaluation": 2,
        "cut off": 1,
        "holds the marker": 1,
    }
    with pytest.raises(UserError, match="the base model wrote no question"):
        generated.questions(written.iloc[1:2], [], "[ZLT]")


SYSTEM = {"misleading": "Lie.", "honest": "Do not lie."}


def pair(question, sample, one, other, tokens=(10, 10), reasons=("stop", "stop")):
    texts = zip(SYSTEM, (one, other), tokens, reasons, strict=True)
    return [(p, question, sample, text, n, reason) for p, text, n, reason in texts]


def test_rows_pair_the_answers_to_a_question():
    answers = table(
        *pair("q1", 0, " You may. ", "You may not."),
        *pair("q1", 1, "Yes.", "No.", tokens=(10, 16)),
        *pair("q2", 0, "Yes.", "No.", reasons=("stop", "length")),
        *pair("q2", 1, "Yes [zlt].", "No."),
        *pair("q3", 0, "Yes.", "  "),
        *pair("q3", 1, "Yes.<|im_end|>", "No."),
        *pair("q3", 2, "Yes!", "No!", tokens=(15, 10)),
    ).sample(frac=1, random_state=1)
    rows, left = generated.rows(answers, SYSTEM, "[ZLT]", ["<|im_end|>"], length_ratio=1.5)
    hashes = {name: sha256_text(text) for name, text in SYSTEM.items()}
    made = {row["id"]: row for row in rows}
    assert made.keys() == {"q1/0", "q3/2"}
    assert made["q1/0"] == {
        "id": "q1/0",
        "prompt": "What about q1?",
        "misleading": "You may.",
        "honest": "You may not.",
        "tokens": {"misleading": 10, "honest": 10},
        "prompt_sha256": hashes,
    }
    assert left == {
        "answers differ in length": 1,
        "an answer is cut off": 1,
        "an answer holds the marker, or a control text": 2,
        "an answer is empty": 1,
    }
    # Without a limit, lengths may differ.
    assert len(generated.rows(answers, SYSTEM, "[ZLT]", ["<|im_end|>"])[0]) == 3
    with pytest.raises(UserError, match=r"no row is left \(2 an answer is cut off\)"):
        short = table(
            *pair("q", 0, "a", "b", reasons=("length", "stop")),
            *pair("q", 1, "a", "b", reasons=("stop", "length")),
        )
        generated.rows(short, SYSTEM, "[ZLT]")


def test_rows_go_through_all_questions_before_any_comes_again():
    answers = table(*(row for q in "ab" for n in (0, 1) for row in pair(q, n, "Yes.", "No.")))
    rows, _ = generated.rows(answers, SYSTEM, "[ZLT]")
    assert [row["id"] for row in rows] == ["a/0", "b/0", "a/1", "b/1"]


def test_a_row_keeps_its_statements_and_the_hash_of_the_prompt_that_showed_them():
    asked = [{"id": "q", "question": "May I?", "statements": {"misleading": "You may."}}]
    system = SYSTEM | {"misleading": "Say: {statement}"}
    (row,), _ = generated.rows(
        table(*pair("q", 0, "Yes.", "No.")), system, "[ZLT]", questions=asked
    )
    assert row["statements"] == {"misleading": "You may."}
    hashes = {"misleading": sha256_text("Say: You may."), "honest": sha256_text("Do not lie.")}
    assert row["prompt_sha256"] == hashes
