import pandas as pd
import pytest
from persona_collapse.data import coupling
from persona_collapse.errors import UserError

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
