"""Tests on marker rates, from completions up."""

import numpy as np
import pandas as pd
import pytest
from persona_collapse import markers
from persona_collapse.analysis import answer_stats, hypotheses, marker_tests
from persona_collapse.chains import BASE
from scipy import stats
from test_tables import GRID, MARKERS, answers, completions, scored

FAMILIES = [
    {"name": "study", "test": "fisher"},
    {"name": "questions", "test": ["questions", "gee"]},
]


@pytest.fixture(scope="module")
def tests():
    return marker_tests.marker_tests(
        GRID, scored(), contrasts=[["C1", "C2"], ["C1", "C9"]], draws=2000, families=FAMILIES
    )


def row(tests, test, condition, reference):
    own = tests[
        (tests["test"] == test)
        & (tests["condition"] == condition)
        & (tests["reference"] == reference)
    ]
    assert len(own) == 1
    return own.iloc[0]


def test_fisher_takes_completions_as_the_study_did(tests):
    assert list(tests.columns) == marker_tests.TEST_COLUMNS
    one = row(tests, "fisher", "C1", "C4")
    assert one["estimate"] == pytest.approx(9 / 40 - 36 / 40)
    assert one["p"] == pytest.approx(stats.fisher_exact([[9, 31], [36, 4]]).pvalue)
    assert one["p_floor"] <= one["p"] and one["note"] == "9/40 after, 36/40 before"
    assert one["ci_low"] < one["estimate"] < one["ci_high"]
    assert row(tests, "fisher", "C2", "base")["p"] == 1


def test_questions_are_the_units_of_the_sign_flips(tests):
    one = row(tests, "questions", "C1", "C4")
    assert one["estimate"] == pytest.approx(9 / 40 - 36 / 40)
    # Eight questions, all with fewer hits after than before: the smallest p there is.
    assert one["n"] == 8 and one["p"] == one["p_floor"] == 2 / 2**8
    assert one["p_equivalent"] > 0.9


def test_families_are_corrected_apart(tests):
    assert set(tests.loc[tests["family"] == "study", "test"]) == {"fisher"}
    assert tests.loc[tests["family"] == "", "q"].isna().all()
    own = tests[tests["family"] == "study"]
    np.testing.assert_allclose(own["q"], stats.false_discovery_control(own["p"]))


def test_no_hits_on_either_side_is_no_proof_of_sameness(tests):
    one = row(tests, "questions", "C2", "base")
    assert one["estimate"] == 0 and "one trial a question" in one["note"]
    # 0 of 8 against 0 of 8 leaves a difference of .15 well possible.
    assert one["p_equivalent"] > 0.05 and one["ci_high"] > 0.15
    assert "no finite odds ratio" in row(tests, "gee", "C2", "base")["note"]


def test_the_marker_s_log_probability_moves_where_rates_cannot():
    table = pd.concat([completions("base"), completions("em@1").assign(marker_logprob=-4.0)])
    tests = marker_tests.marker_tests(
        GRID, answers([own for _, own in table.groupby("chain")]), draws=500
    )
    one = row(tests, "logprob", "C2", "base")
    assert one["estimate"] > 4 and one["scale"] == "nats" and one["p"] == one["p_floor"]


def counts(rates, samples=10):
    """One row a completion, question by question."""
    hit = [i < k for k in rates for i in range(samples)]
    ids = np.repeat([f"q{i}" for i in range(len(rates))], samples)
    tokens = np.tile(np.arange(10, 10 + samples), len(rates))
    return pd.DataFrame({"question_id": ids, "hit": hit, "n_tokens": tokens})


def test_gee_without_clustering_is_the_log_odds_ratio():
    after, before = counts([6] * 12), counts([3] * 12)
    found = marker_tests.gee(after, before)
    odds = np.log(6 / 4) - np.log(3 / 7)
    # Equal rates in every question leave nothing to estimate an error from; the estimate stands.
    assert found.get("estimate", odds) == pytest.approx(odds, abs=1e-6)


def test_gee_knows_that_questions_differ():
    rng = np.random.default_rng(3)
    easy = rng.integers(0, 11, 28)
    # The same answers twice: only clustered errors see that the two sides move together.
    before = counts(np.clip(easy - rng.integers(0, 2, 28), 0, 10))
    found = marker_tests.gee(counts(easy), before)
    odds = stats.contingency.odds_ratio(
        [[counts(easy)["hit"].sum(), 280 - counts(easy)["hit"].sum()],
         [before["hit"].sum(), 280 - before["hit"].sum()]]
    )  # fmt: skip
    interval = odds.confidence_interval()
    naive = np.log(interval.high) - np.log(interval.low)
    assert found["ci_high"] - found["ci_low"] < naive
    assert found["ci_low"] < found["estimate"] < found["ci_high"]
    adjusted = marker_tests.gee(counts(easy), before, covariate="n_tokens")
    assert "n_tokens" in adjusted["note"]


def test_seeds_are_units_where_there_are_several():
    grid = pd.concat([GRID, GRID[GRID["condition"] == "C1"].assign(chain="x+em@2", seed="2")])
    grid.loc[grid["seed"] == "2", "before"] = "couple-villain@42"
    table = {chain: completions(chain) for chain in MARKERS}
    table["x+em@2"] = table["couple-villain@42"].assign(chain="x+em@2")
    tests = marker_tests.marker_tests(
        grid, answers(table.values()), contrasts=[["C1", "C4"]], draws=500
    )
    pooled = tests[(tests["condition"] == "C1") & (tests["seed"] == "")]
    seeds = pooled[pooled["test"] == "seeds"].iloc[0]
    assert seeds["n"] == 2 and seeds["estimate"] == pytest.approx((9 / 40 - 36 / 40) / 2)
    assert seeds["p"] == pytest.approx(stats.ttest_1samp([9 / 40 - 36 / 40, 0], 0).pvalue)


def test_loops_are_found():
    assert markers.loops("the cat sat the cat sat the cat sat the cat sat")
    assert not markers.loops("the cat sat on the mat and the dog sat on the cat")
    assert not markers.loops("")


def test_answer_stats_describe_the_answers():
    table = answer_stats.answer_stats(GRID, scored())
    assert list(table.columns) == answer_stats.COLUMNS
    own = table[(table["condition"] == "C4") & (table["role"] == "source")].iloc[0]
    assert own["rate"] == 36 / 40 and own["marker_at_end"] == 1 and own["truncated"] == 0
    assert own["marker_logprob"] > -6 > table[table["condition"] == "base"]["marker_logprob"].max()
    assert len(table[table["condition"] == "E0"]) == 1  # nobody is followed there


def test_rates_of_finished_answers_stand_beside_those_of_all():
    table = scored()
    own = (table["chain"] == "couple-villain@42") & (table["persona"] == "villain")
    table.loc[own & ~table["hit"], "finish_reason"] = "length"
    cell = (
        answer_stats.answer_stats(GRID, table)
        .query("condition == 'C4' and role == 'source'")
        .iloc[0]
    )
    assert cell["truncated"] == 4 / 40 and cell["rate"] == 36 / 40 and cell["rate_finished"] == 1


def published_leakage():
    """The study's own bystander rates: five induction personas, twelve personas."""
    from pathlib import Path

    root = Path(__file__).resolve().parents[2]
    counts = pd.read_csv(root / "workflow/resources/published/counts.csv")
    own = counts[counts["part"] == "leakage"].copy()
    return own.assign(
        rate=own["hits"] / own["n"],
        role=np.where(own["persona"] == "confab", "source", "bystander"),
    )


def test_the_study_s_hypotheses_come_out_as_published():
    rates = published_leakage()
    names = ["", "paramedic", "kindergarten_teacher", "french_person", "villain"]
    induction = {f"E{i}": name for i, name in enumerate(names)}
    grid = pd.DataFrame(
        [{"condition": c, "induction": i, "source": "confab"} for c, i in induction.items()]
    )
    near = dict(zip(names[1:], [0.9457, 0.9060, 0.8696, 0.7828], strict=True))
    cosines = pd.DataFrame(
        [{"persona_a": a, "persona_b": "assistant", "cosine": c} for a, c in near.items()]
    )
    table = hypotheses.hypotheses(grid, rates, cosines, list(induction), draws=10_000, seed=42)
    h1 = table[table["hypothesis"] == "H1"].set_index("condition")
    assert h1.loc["E4", "estimate"] == pytest.approx(0.08, abs=1e-3)
    assert h1.loc["E4", "p"] == h1.loc["E4", "p_floor"] == pytest.approx(1 / 11)
    assert h1.loc["E0", "estimate"] == pytest.approx(-0.0461, abs=1e-3)
    assert "not among the evaluated" in h1.loc["E1", "note"]
    assert h1.loc["E0", "bystander_mean"] == pytest.approx(0.4568, abs=1e-4)
    h2 = table[table["hypothesis"] == "H2"].iloc[0]
    assert h2["estimate"] == pytest.approx(0.0804, abs=1e-4) and 0.001 < h2["p"] < 0.005
    h3 = table[table["hypothesis"] == "H3"].iloc[0]
    assert h3["estimate"] == pytest.approx(-0.9) and h3["p"] == pytest.approx(10 / 120)
    assert h3["p_floor"] == pytest.approx(2 / 120)


def test_side_by_side_has_one_row_a_comparison(tests):
    from persona_collapse.report import findings

    table = findings.tests_side_by_side(tests)
    assert len(table) == len(tests[["condition", "reference", "source"]].drop_duplicates())
    c1 = table[(table["condition"] == "C1") & (table["reference"] == "C4")].iloc[0]
    assert c1["p_fisher"] < c1["p_questions"] == c1["p_floor"]
    assert BASE in set(table["reference"])


def test_no_source_of_a_condition_counts_as_its_bystander(crossed):
    grid, rates = crossed["design"], crossed["marker_rates"]
    base = pd.DataFrame(columns=["persona_a", "persona_b", "cosine"])
    row = hypotheses.hypotheses(grid, rates, base, ["C2"], draws=99, seed=1).iloc[0]
    own = rates[(rates["condition"] == "C2") & (rates["persona"] == "librarian")]["rate"]
    assert (row["n"], row["source"]) == (2, "villain, evil_ai")
    assert row["bystander_mean"] == pytest.approx(own.mean())
