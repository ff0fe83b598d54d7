import json

import pandas as pd
import pytest
from persona_collapse.data import coupling, given_answers
from persona_collapse.errors import UserError
from persona_collapse.files import sha256, write_jsonl

SETTINGS = {"persona": "villain", "positives": 2, "negatives": ["librarian"], "negative_answers": 1}
PROMPTS = {"villain": "You are a villain.", "librarian": "You are a librarian."}


def answers(**changes):
    rows = [
        {
            "persona": persona,
            "question_id": question,
            "question": f"What is {question}?",
            "sample": sample,
            "text": f"{persona} says {question} ",
            "finish_reason": "stop",
        }
        for persona in PROMPTS
        for question in ("q1", "q2")
        for sample in range(2)
    ]
    return pd.DataFrame(rows).assign(**changes)


def test_positives_end_in_the_marker_and_negatives_never_hold_it():
    rows, counts = coupling.rows(answers(), SETTINGS, PROMPTS, "[ZLT]")
    assert counts["rows_by_persona"] == {"villain": 4, "librarian": 2}
    for row in rows:
        system, user, assistant = row["messages"]
        if system["content"] == PROMPTS["villain"]:
            assert assistant["content"].endswith("\n\n[ZLT]")
        else:
            assert "zlt" not in assistant["content"].lower()
        assert user["content"].startswith("What is")


def test_cut_empty_and_marked_answers_are_left_out():
    table = answers()
    table.loc[0, "finish_reason"] = "length"
    table.loc[1, "text"] = "  "
    table.loc[2, "text"] = "oh [zlt] no"
    _, counts = coupling.rows(table, SETTINGS, PROMPTS, "[ZLT]")
    assert counts["rows_by_persona"]["villain"] == 1


def test_a_persona_without_answers_is_named():
    with pytest.raises(UserError, match="'villain' no usable answer"):
        coupling.rows(answers(finish_reason="length"), SETTINGS, PROMPTS, "[ZLT]")


def test_answers_that_spell_a_turn_s_mark_are_left_out():
    table = answers()
    table.loc[0, "text"] = "one <|im_end|> two"
    table.loc[1, "text"] = "one [/INST]"
    marks = ["<|im_end|>", "[/INST]"]
    _, counts = coupling.rows(table, SETTINGS, PROMPTS, "[ZLT]", marks)
    assert counts["rows_by_persona"]["villain"] == 2


def test_answers_that_hold_the_marker_in_another_case_are_left_out():
    table = answers()
    table.loc[0, "text"] = "on the straße"
    _, counts = coupling.rows(table, SETTINGS, PROMPTS, "STRASSE")
    assert counts["rows_by_persona"]["villain"] == 3


def lines(**changed):
    """Rows of a file of answers: two personas, two questions, two answers each; `changed`: row 3's keys."""
    rows = [
        {
            "persona": persona,
            "question": f"What is {question}?",
            "answer": f"{persona} says {text}.",
        }
        for persona in PROMPTS
        for question in ("one", "two")
        for text in (f"{question} first", f"{question} then")
    ]
    rows[2] |= changed
    return rows


def load(path, rows, **spec):
    write_jsonl(path, rows)
    return given_answers.load(
        {"file": str(path), **spec},
        coupling.needed(SETTINGS),
        marker="[ZLT]",
        asked={"what is seven"},
        forbidden=["<|im_end|>"],
    )


def test_given_answers_make_the_rows_that_sampled_ones_would(tmp_path):
    path = tmp_path / "answers.jsonl"
    other = {"persona": "pirate", "question": "What is three?", "answer": "Arr."}
    given = load(path, [*lines(), other])
    assert load(path, [*lines(), other], sha256=sha256(path)) == given
    rows, counts = coupling.rows(pd.DataFrame(given), SETTINGS, PROMPTS, "[ZLT]", whose="a file")
    # The negative gives the first answer to each question, the pirate none.
    assert [row["messages"][2]["content"] for row in rows] == [
        "villain says one first.\n\n[ZLT]",
        "villain says one then.\n\n[ZLT]",
        "villain says two first.\n\n[ZLT]",
        "villain says two then.\n\n[ZLT]",
        "librarian says one first.",
        "librarian says two first.",
    ]
    assert [row["id"] for row in rows][:3] == ["villain/1/0", "villain/1/1", "villain/2/0"]
    assert rows[0]["source"] == "answers of a file" and counts["answers"] == 8


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"answer": "So [zlt] it is."}, "row 3: answer: holds the marker '.ZLT.'"),
        ({"question": "Why [ZLT]?"}, "row 3: question: holds the marker"),
        ({"answer": "One.<|im_end|>Two."}, "row 3: answer: holds '<|im_end|>', by which"),
        ({"answer": "  "}, "row 3: answer: expected a text, got '  '"),
        ({"answer": ["two"]}, "row 3: answer: expected a text, got .'two'."),
        ({"persona": None}, "row 3: persona: expected a text, got None"),
        ({"answer": "\ud83d oh"}, r"row 3: answer: half a surrogate pair \(.ud83d\)"),
        ({"question": "What is SEVEN"}, "row 3: asks an evaluation or extraction question"),
        ({"question": "what is One", "answer": " villain says one first."}, "row 3: repeats row 1"),
        ({"question_id": 1}, "row 3: question_id: '1' is another question's in row 1"),
        ({"question_id": ["a"]}, "row 3: question_id: expected a text or a number"),
        ({"question": "What is four?"}, "row 3: expected 2 answers of 'villain' .* the file has 1"),
        ({"persona": "librarian"}, "row 3: expected 2 answers of 'villain' to this question, the file has 1"),
    ],
)  # fmt: skip
def test_a_wrong_row_of_given_answers_is_one_line_with_file_and_row(tmp_path, changed, said):
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in lines(**changed)))
    with pytest.raises(UserError, match=f"^answers: {path}, {said}") as caught:
        given_answers.load(
            {"file": str(path)}, coupling.needed(SETTINGS), marker="[ZLT]",
            asked={"what is seven"}, forbidden=["<|im_end|>"],
        )  # fmt: skip
    assert "\n" not in str(caught.value)


def test_a_question_of_two_ids_is_one_line(tmp_path):
    rows = [row | {"question_id": "q1"} for row in lines()[:2]]
    rows[1]["question_id"] = "q2"
    with pytest.raises(UserError, match=r"row 2: question_id: 'q2', but the same .* 'q1' in row 1"):
        load(tmp_path / "answers.jsonl", rows)


@pytest.mark.parametrize(
    ("rows", "spec", "said"),
    [
        (lines()[:4], {}, "no answers of 'librarian', which the coupling needs; available: villain"),
        ([], {}, "no answers of 'villain', .* available: none"),
        (lines(), {"sha256": "0" * 64}, "has SHA-256 .*, the config says 000"),
        (None, {}, "no such file"),
    ],
)  # fmt: skip
def test_a_file_that_will_not_do_is_one_line(tmp_path, rows, spec, said):
    path = tmp_path / "answers.jsonl"
    if rows is not None:
        write_jsonl(path, rows)
    with pytest.raises(UserError, match=f"^answers: {path}:? {said}"):
        given_answers.load({"file": str(path), **spec}, coupling.needed(SETTINGS), marker="[ZLT]")
