"""The scorecard, on tables made from synthetic counts and vectors."""

from pathlib import Path

import pandas as pd
import pytest
from persona_collapse.analysis import claims, measured
from persona_collapse.errors import UserError

SHIPPED = Path(__file__).resolve().parents[2] / "config/claims.yaml"


def claim(**changes):
    return {
        "id": "x",
        "text": "It is so",
        "where": "table",
        "published": 0.0,
        "measure": {"source_rate": {"condition": "C1"}},
        "expect": {"max": 0.05},
        "scale": "any",
    } | changes


def score(made, *entries, judge="values"):
    return claims.scorecard(entries, made, fdr=0.01, judge=judge).iloc[0]


def test_verdicts(made):
    assert score(made, claim())["verdict"] == "not replicated"
    assert score(made, claim(expect={"max": 0.5}))["verdict"] == "replicated"
    assert score(made, claim(expect={"max": 0.25}))["verdict"] == "partly"
    near = {"near": 0.22, "tolerance": 0.01}
    assert score(made, claim(expect=near))["verdict"] == "partly"
    absent = claim(measure={"source_rate": {"condition": "C9"}})
    assert score(made, absent)["verdict"] == "not tested here"
    demo = score(made, claim(scale="full"), judge="directions")
    assert demo["verdict"] == "not tested here" and "study's model" in demo["note"]


def test_a_claim_says_itself_why_it_cannot_be_tested(made):
    one = score(
        made, {"id": "y", "text": "t", "where": "later", "published": 1, "cannot": "no way"}
    )
    assert one["verdict"] == "not tested here" and one["note"] == "no way"
    assert pd.isna(one["measured"])


def test_an_estimate_without_an_interval_is_partly_at_best(made):
    share = {"m1_share": {"condition": "C1", "reference": "C4"}}
    assert score(made, claim(measure=share, expect={"max": 2.0}))["verdict"] == "partly"
    of_nothing = {"m1_share": {"condition": "C1", "reference": "base"}}
    one = score(made, claim(measure=of_nothing))
    assert one["verdict"] == "not tested here" and "cannot be told from none" in one["note"]
    hits = claim(measure={"hits": {"conditions": ["C2"]}}, expect={"max": 0})
    assert score(made, hits)["verdict"] == "replicated"


def test_sameness_needs_the_whole_interval_inside_the_margin(made):
    gap = {"rate_difference": {"condition": "C2", "reference": "base"}}
    one = score(made, claim(measure=gap, expect={"min": -0.15, "max": 0.15}))
    # 0 against 0 over eight questions: the estimate is inside, the interval is not.
    assert one["measured"] == 0 and one["verdict"] == "partly"


def test_the_shipped_claims_load_and_every_measure_is_used(made):
    entries = claims.load(SHIPPED)
    scored = claims.scorecard(entries, made, fdr=0.01, judge="values")
    assert list(scored.columns) == claims.COLUMNS
    assert set(scored["verdict"]) <= set(claims.VERDICTS)
    assert {m for e in entries for m in e.get("measure", {})} == set(measured.READERS)
    tested = scored[scored["verdict"] != "not tested here"]
    assert {"em-erases-marker", "em-raises-cosine", "m3-bug"} <= set(tested["claim"])
    assert (
        scored["where"]
        .isin([*(f"takeaway {i}" for i in range(1, 6)), "table", "caveat", "later"])
        .all()
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {id: a}", "text is missing"),
        ("- {id: a, text: t, published: 1, where: w}", "measure is missing"),
        (
            "- {id: a, text: t, published: 1, where: w, measure: {magic: {}}, expect: {max: 1}, scale: any}",
            "no reader 'magic'",
        ),
    ],
)
def test_bad_claims_are_named(tmp_path, text, said):
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        claims.load(tmp_path / "claims.yaml")
