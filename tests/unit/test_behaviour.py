"""Tests on marker rates, starting from completions."""

from math import factorial

import numpy as np
import pandas as pd
import pytest
from persona_collapse import markers
from persona_collapse.analysis import answer_stats, hypotheses, marker_rates, marker_tests
from persona_collapse.chains import BASE
from scipy import stats
from test_tables import GRID, MARKERS, answers, completions, scored

FAMILIES = [
    {"name": "study", "test": "fisher"},
    {"name": "questions", "test": ["questions", "firth"]},
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
    # Eight questions, all with fewer hits after than before: the smallest possible p.
    assert one["n"] == 8 and one["p"] == one["p_floor"] == 2 / 2**8
    assert one["p_equivalent"] > 0.9


def test_families_are_corrected_apart(tests):
    assert set(tests.loc[tests["family"] == "study", "test"]) == {"fisher"}
    assert tests.loc[tests["family"] == "", "q"].isna().all()
    own = tests[tests["family"] == "study"]
    np.testing.assert_allclose(own["q"], stats.false_discovery_control(own["p"]))


def test_no_hits_on_either_side_is_no_proof_of_sameness(tests):
    one = row(tests, "questions", "C2", "base")
    assert one["estimate"] == 0 and "one trial per question" in one["note"]
    # 0 of 8 against 0 of 8 does not exclude a difference of .15.
    assert one["p_equivalent"] > 0.05 and one["ci_high"] > 0.15
    assert row(tests, "questions", "C2", "base")["p_floor"] == 1


def test_the_marker_s_log_probability_moves_where_rates_cannot():
    table = pd.concat([completions("base"), completions("em@1").assign(marker_logprob=-4.0)])
    tests = marker_tests.marker_tests(
        GRID, answers([own for _, own in table.groupby("chain")]), draws=500
    )
    one = row(tests, "logprob", "C2", "base")
    assert one["estimate"] > 4 and one["scale"] == "nats" and one["p"] == one["p_floor"]


def counts(rates, samples=10):
    """One row per completion, question by question."""
    hit = [i < k for k in rates for i in range(samples)]
    ids = np.repeat([f"q{i}" for i in range(len(rates))], samples)
    tokens = np.tile(np.arange(10, 10 + samples), len(rates))
    return pd.DataFrame({"question_id": ids, "hit": hit, "n_tokens": tokens})


def test_firth_without_clustering_is_the_log_odds_ratio():
    found = marker_tests.odds_ratio(counts([6] * 12), counts([3] * 12))
    assert found["estimate"] == pytest.approx(np.log(72.5 / 48.5) - np.log(36.5 / 84.5))


def test_firth_knows_that_questions_differ():
    """Whole questions change, so answers are not independent."""
    found = marker_tests.odds_ratio(counts([10] * 7 + [0] * 5), counts([10] * 5 + [0] * 7))
    naive = np.sqrt(sum(1 / (k + 0.5) for k in (70, 50, 50, 70)))
    assert (found["ci_high"] - found["ci_low"]) / 2 > 2 * naive * stats.norm.ppf(0.975)
    adjusted = marker_tests.odds_ratio(counts([6] * 12), counts([3] * 12), covariate="n_tokens")
    assert "n_tokens" in adjusted["note"]


def test_w11_length_is_adjusted_for_where_a_rate_is_0():
    """0 of 840 short answers against half of 840 longer ones."""
    rng = np.random.default_rng(0)
    before, after = counts([5] * 12, 70), counts([0] * 12, 70)
    before = before.assign(hit=rng.random(len(before)) < 0.5)
    after["n_tokens"] -= 5
    with np.errstate(all="raise"):
        found = marker_tests.odds_ratio(after, before, covariate="n_tokens")
    assert found["estimate"] < -5 and found["ci_high"] < 0 and np.isfinite(found["ci_low"])


def runs(rates, chain="a@{}", questions=14, samples=20):
    """Completions of one persona in one chain per rate, for `_seeds`; all questions are equal."""
    parts = []
    for i, rate in enumerate(rates):
        hits = counts([round(rate * samples)] * questions, samples)
        parts.append(hits.assign(chain=chain.format(i)))
    return pd.concat(parts, ignore_index=True)


def over_training(after, before, margin=0.15):
    found = {row["test"]: row for row in marker_tests._seeds(after, before, margin)}
    return found.get("seeds"), found.get("welch")


def test_w3_a_control_trained_once_gives_no_test():
    seeds, welch = over_training(runs([0.5, 0.6, 0.7]), runs([0.9], "control@{}"))
    assert seeds["estimate"] == pytest.approx(-0.3) and seeds["n"] == 1 and welch is None
    assert np.isnan([seeds["p"], seeds["ci_low"], seeds["ci_high"], seeds["p_equivalent"]]).all()
    assert seeds["note"] == "one independent training run on a side"


def test_w3_no_interval_has_no_width():
    seeds, _ = over_training(runs([0, 0, 0]), runs([0.9], "a@0"))
    assert np.isnan(seeds["ci_low"])
    seeds, _ = over_training(runs([0, 0, 0]), runs([0.9, 0.9, 0.8], "control@{}"))
    assert seeds["ci_low"] < -0.9 < seeds["ci_high"] and seeds["p"] < 0.01


def test_w3_the_control_s_own_spread_is_in_the_test():
    rng = np.random.default_rng(0)
    rejected = []
    for _ in range(200):
        noise = 1 / (1 + np.exp(-rng.normal(size=(2, 3)) * 0.5))
        seeds, _ = over_training(
            *(runs(r, c) for r, c in zip(noise, ("a@{}", "b@{}"), strict=True))
        )
        rejected.append(seeds["p"] < 0.05)
    assert np.mean(rejected) < 0.09


def test_w4_seeds_are_never_paired_by_their_order():
    after, before = runs([0.1, 0.2, 0.3]), runs([0.15, 0.25, 0.35], "b@{}")
    apart, _ = over_training(after, before)
    turned = pd.concat([before[before["chain"] == c] for c in ("b@2", "b@0", "b@1")])
    assert over_training(after, turned)[0] == apart and apart["p"] > 0.3
    # Three runs against two are compared too.
    assert np.isfinite(over_training(after, before[before["chain"] != "b@0"])[0]["p"])


def test_w4_runs_that_continue_the_same_adapters_are_paired():
    after, before = runs([0.1, 0.2, 0.3], "a@{}+em@1"), runs([0.15, 0.25, 0.4])
    paired, _ = over_training(after, before)
    assert paired["n"] == 3 and paired["p"] < 0.1
    # All runs continue one adapter: one unit, whatever their number.
    one = after.assign(chain=after["chain"].str.replace(r"a@(\d)\+em@1", r"a@9+em@\1", regex=True))
    assert over_training(one, before)[0]["n"] == 1


def test_the_base_model_is_no_training_run():
    seeds, welch = over_training(runs([0.8, 0.9, 0.85]), runs([0.0], "base"))
    assert seeds["n"] == 3 and seeds["p"] < 0.01 and welch is None


def test_w9_what_is_asked_keeps_families_apart(tests):
    asks = tests.groupby("condition")["asks"].agg(set).to_dict()
    assert asks == {"C4": {"install"}, "C1": {"erase", "contrast"}, "C2": {"null"}}
    assert set(tests["pool"]) == {"whole"}
    one = row(tests, "fisher", "C1", "C4")
    assert (one["chains"], one["reference_chains"]) == (
        "couple-villain@42+em@1",
        "couple-villain@42",
    )


def test_w9_one_test_under_two_names_counts_once():
    twice = pd.concat([GRID, GRID[GRID["condition"] == "C1"].assign(condition="C1b")])
    families = [{"name": "all", "test": "fisher", "asks": ["erase", "install"]}]
    one, two = (
        marker_tests.marker_tests(g, scored(), draws=99, families=families) for g in (GRID, twice)
    )
    for condition in ("C1", "C4"):
        assert row_q(one, condition) == row_q(two, condition)
    assert row_q(two, "C1b") == row_q(two, "C1")


def row_q(tests, condition):
    own = tests[(tests["condition"] == condition) & (tests["test"] == "fisher")]
    return own["q"].iloc[0]


def test_w10_interval_and_test_of_the_log_probability_agree(tests):
    one = row(tests, "logprob", "C1", "C4")
    assert one["p"] < 0.05 and one["ci_high"] < 0


def test_w10_no_hit_is_a_bound():
    rates = marker_rates.marker_rates(GRID, MARKERS)
    silent = marker_rates.leakage(rates).set_index("condition").loc["C2"]
    assert silent["ci_low"] == 0 and silent["ci_high"] == pytest.approx(1 - 0.025 ** (1 / 40))


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
    assert len(table[table["condition"] == "E0"]) == 1  # it has no source


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
        [
            {"condition": c, "induction": i, "source": "confab", "chain": f"em-{c}@1"}
            for c, i in induction.items()
        ]
    )
    near = dict(zip(names[1:], [0.9457, 0.9060, 0.8696, 0.7828], strict=True))
    cosines = pd.DataFrame(
        [
            {"chain": BASE, "persona_a": a, "persona_b": "assistant", "cosine": c}
            for a, c in near.items()
        ]
    )
    table = hypotheses.hypotheses(grid, rates, cosines, list(induction), draws=10_000, seed=42)
    h1 = table[table["hypothesis"] == "H1"].set_index("condition")
    assert h1.loc["E4", "estimate"] == pytest.approx(0.08, abs=1e-3)
    assert h1.loc["E4", "p"] == h1.loc["E4", "p_floor"] == pytest.approx(1 / 11)
    assert h1.loc["E0", "estimate"] == pytest.approx(-0.0461, abs=1e-3)
    assert "not among the evaluated" in h1.loc["E1", "note"]
    # Ten others, plus the induction persona if it was evaluated.
    assert (h1.loc["E4", "n"], h1.loc["E1", "n"]) == (11, 11)
    assert h1.loc["E4", "note"].startswith("one-sided")
    assert h1.loc["E0", "bystander_mean"] == pytest.approx(0.4568, abs=1e-4)
    h2 = table[table["hypothesis"] == "H2"].iloc[0]
    assert h2["estimate"] == pytest.approx(0.0804, abs=1e-4) and 0.001 < h2["p"] < 0.005
    h3 = table[table["hypothesis"] == "H3"].iloc[0]
    assert h3["estimate"] == pytest.approx(-0.9) and h3["p"] == pytest.approx(10 / 120)
    assert h3["p_floor"] == pytest.approx(2 / 120)


@pytest.mark.parametrize("count", [3, 9, 10, 12])
def test_h3_has_a_p_for_any_number_of_conditions(count):
    grid, rates, cosines = [], [], []
    for i in range(count):
        grid.append({"condition": f"E{i}", "induction": f"p{i}", "source": "s", "chain": f"e{i}@1"})
        rates += [{"condition": f"E{i}", "persona": q, "rate": i / 20} for q in ("a", "b")]
        cosines.append(
            {"chain": BASE, "persona_a": f"p{i}", "persona_b": "assistant", "cosine": -i / 20}
        )
    names = [row["condition"] for row in grid]
    tables = (pd.DataFrame(rows) for rows in (grid, rates, cosines))
    found = hypotheses.hypotheses(*tables, names, draws=999, seed=1)
    h3 = found[found["hypothesis"] == "H3"].iloc[0]
    assert (h3["estimate"], h3["n"]) == (pytest.approx(-1), count)
    assert (
        h3["p"] == h3["p_floor"] == pytest.approx(1 / 1000 if count > 9 else 2 / factorial(count))
    )
    assert ("random orders" in str(h3["note"])) == (count > 9)


def test_side_by_side_has_one_row_a_comparison(tests):
    from persona_collapse.report import findings

    table = findings.tests_side_by_side(tests)
    assert len(table) == len(tests[["condition", "reference", "source"]].drop_duplicates())
    c1 = table[(table["condition"] == "C1") & (table["reference"] == "C4")].iloc[0]
    assert c1["p_fisher"] < c1["p_questions"] == c1["p_floor"]
    assert BASE in set(table["reference"])


def test_no_source_of_a_condition_counts_as_its_bystander(crossed):
    grid, rates = crossed["design"], crossed["marker_rates"]
    base = pd.DataFrame(columns=["chain", "persona_a", "persona_b", "cosine"])
    row = hypotheses.hypotheses(grid, rates, base, ["C2"], draws=99, seed=1).iloc[0]
    own = rates[(rates["condition"] == "C2") & (rates["persona"] == "librarian")]["rate"]
    assert (row["n"], row["source"]) == (2, "villain, evil_ai")
    assert row["bystander_mean"] == pytest.approx(own.mean())


def test_one_condition_with_bystanders_has_no_range(crossed):
    grid, rates = crossed["design"], crossed["marker_rates"]
    others = rates[(rates["condition"] != "C2") | (rates["persona"] == "villain")]
    base = pd.DataFrame(columns=["chain", "persona_a", "persona_b", "cosine"])
    table = hypotheses.hypotheses(grid, others, base, ["C1", "C2"], draws=99, seed=1)
    assert "H2" not in set(table["hypothesis"])
