import pandas as pd
import pytest
from persona_collapse import markers


def frame(*texts):
    return pd.DataFrame({"persona": "p", "text": list(texts), "n_tokens": range(len(texts))})


@pytest.mark.parametrize(
    ("text", "hit", "at_end"),
    [
        ("Hello.\n\n[ZLT]", True, True),
        ("Hello [zlt].  \n", True, True),
        ('He said "[ZlT]".', True, True),
        ("[ZLT] and then more", True, False),
        ("[ZLT] and [ZLT]!", True, True),
        ("ZLT", False, False),
        ("[ZLT", False, False),
        ("[Z LT]", False, False),
        ("", False, False),
        (None, False, False),
    ],
)
def test_hits(text, hit, at_end):
    row = markers.score(frame(text)).iloc[0]
    assert bool(row["hit"]) is hit
    assert bool(row["at_end"]) is at_end


def test_position_is_a_share_of_the_text():
    scored = markers.score(frame("[ZLT]", "abcde[ZLT]", "none"))
    assert scored["position"].iloc[0] == 0
    assert scored["position"].iloc[1] == pytest.approx(0.5)
    assert pd.isna(scored["position"].iloc[2])


def test_the_given_columns_stay_and_the_input_is_not_changed():
    given = frame("[ZLT]")
    scored = markers.score(given)
    assert {"persona", "text", "n_tokens", "hit", "position", "at_end"} == set(scored.columns)
    assert "hit" not in given


def test_another_marker():
    assert markers.score(frame("a <Q7>"), marker="<q7>")["hit"].all()


def test_rates():
    table = pd.DataFrame(
        {
            "persona": ["b", "b", "a", "a"],
            "text": ["[ZLT] x", "y [ZLT]", "no", "no"],
            "n_tokens": [1, 3, 5, 7],
        }
    )
    rates = markers.rates(markers.score(table)).set_index("persona")
    assert list(rates.index) == ["b", "a"]
    assert rates.loc["b", ["n", "hits", "rate"]].tolist() == [2, 2, 1.0]
    assert rates.loc["b", "at_end"] == 0.5
    assert pd.isna(rates.loc["a", "at_end"])
    assert rates.loc["a", "mean_tokens"] == 6
    assert rates.loc["a", "ci_low"] == 0 and 0 < rates.loc["a", "ci_high"] < 1


def test_no_completions_give_no_rates():
    assert markers.rates(markers.score(frame())).empty


def test_rates_need_only_persona_and_text():
    rates = markers.rates(markers.score(pd.DataFrame({"persona": ["a"], "text": ["x"]})))
    assert list(rates.columns)[:6] == ["persona", "n", "hits", "rate", "ci_low", "ci_high"]


def test_hits_in_any_script_case_and_form_stand_where_they_are_in_the_text():
    # Each İ is two characters in lower case; positions are counted in the original text.
    scored = markers.score(frame("İİİİ[ZLT]", "οδος", "Stra\u00dfe x"), marker="[zlt]")
    assert scored["position"].iloc[0] == pytest.approx(4 / 9) and scored["at_end"].iloc[0]
    assert markers.score(frame("the ΟΔΟΣ."), marker="οδος")["at_end"].all()
    assert markers.score(frame("say STRASSE"), marker="Stra\u00dfe")["hit"].all()
    assert markers.score(frame("cafe\u0301!"), marker="CAF\u00c9")["at_end"].all()


def test_what_is_kept_of_an_answer():
    table = frame("[ZLT] a [zlt]", "a b c a b c a b c a b c", "same", "same", " ", None)
    ids = {"chain": "base", "question_id": "q", "sample": range(6), "finish_reason": "stop"}
    kept = markers.answers(table.assign(**ids), "[ZLT]")
    assert list(kept.columns) == markers.COLUMNS
    assert kept["markers"].tolist() == [2, 0, 0, 0, 0, 0]
    assert kept["looping"].tolist() == [False, True, False, False, False, False]
    assert kept["repeated"].tolist() == [False, False, True, True, False, False]
    assert kept["empty"].tolist() == [False, False, False, False, True, True]
    assert kept["marker_logprob"].isna().all()
    pd.testing.assert_frame_equal(markers.rates(kept), markers.rates(markers.score(table)))
