"""The scorecard on hand-made tables, and on tables from synthetic counts and vectors."""

from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pandas as pd
import pytest
from persona_collapse.analysis import claims, matched, measured, readers, verdicts
from persona_collapse.analysis.measured import Fires, Measured
from persona_collapse.errors import UserError
from persona_collapse.report import findings

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


def score(tables, *entries, judge="values"):
    return claims.scorecard(entries, tables, fdr=0.01, judge=judge).iloc[0]


def rate(condition, low, value, high, **more):
    """A row of rate_model.csv."""
    return {
        "condition": condition,
        "reference": "",
        "source": "",
        "role": "source",
        "persona": "",
        "quantity": "rate",
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "p": np.nan,
        "units": 3,
        "runs": 3,
        "couplings": 3,
        "questions": 28,
        "n": 840,
        "hits": round(840 * value),
        "sd_runs": 0.3,
        "note": "",
    } | more


def change(condition, reference, low, estimate, high, **more):
    """A row of geometry_runs.csv."""
    return {
        "condition": condition,
        "reference": reference,
        "method": "A",
        "layer": 3,
        "headline": True,
        "metric": "m1",
        "value": estimate,
        "estimate": estimate,
        "ci_low": low,
        "ci_high": high,
        "p": 0.001,
        "q": 0.001,
        "family": "f",
        "runs": 3,
        "units": 3,
        "sd_runs": 0.01,
        "within": 0.001,
        "note": "",
    } | more


def of(table, *rows):
    return {table: pd.DataFrame(list(rows))}


def rates(*rows):
    sources = pd.DataFrame(
        [(r["condition"], s) for r in rows for s in ("villain",)], columns=["condition", "source"]
    )
    return of("rate_model", *rows) | {"marker_rates": sources}


def test_a_shift_is_held_against_the_better_of_its_controls():
    def found(falls, *differences):
        rows = [
            rate("S", *ends, reference=name, quantity="difference")
            for name, ends in zip(("isotropic", "zero-sum"), differences, strict=True)
        ]
        levels = [rate(name, 0.1, 0.2, 0.3) for name in ("S", "isotropic", "zero-sum")]
        run = measured.RunTables(rates(*levels, *rows), 0.05)
        return readers.beyond_controls(run, "S", ["isotropic", "zero-sum"], falls)

    raised = found(False, (0.2, 0.3, 0.4), (0.0, 0.1, 0.2))
    assert raised.value == 0.1 and raised.n.startswith("against zero-sum")
    # Two controls: 2.24 standard errors instead of 1.96, on the side that selection biases.
    assert raised.low == 0.0 and raised.high == pytest.approx(
        0.1 + 0.1 * 2.2414 / 1.95996, abs=1e-4
    )
    fell = found(True, (-0.4, -0.3, -0.2), (-0.2, -0.1, 0.0))
    assert (fell.value, fell.low, fell.high) == (-raised.value, -raised.high, -raised.low)
    assert found(True, (-0.4, -0.3, -0.2), (0.1, 0.2, 0.3)).value == 0.2


def test_the_four_outcomes():
    for low, value, high, outcome in (
        (0.001, 0.01, 0.03, "replicated"),
        (0.2, 0.3, 0.5, "contradicted"),
        (0.01, 0.03, 0.09, "inconclusive"),
        (0.01, 0.08, 0.2, "inconclusive"),
    ):
        tables = rates(rate("C1", low, value, high))
        assert score(tables, claim())["verdict"] == outcome
    row = score(rates(rate("C4", 0, 0, 0.01)), claim())
    assert (row["verdict"], row["would_take"]) == ("not tested", "the condition C1")
    full = score(tables, claim(scale="full"), judge="directions")
    assert full["verdict"] == "not tested" and "study's model" in full["note"]
    nothing = score(rates(rate("C1", 0.001, 0.01, 0.03)), claim(), judge="nothing")
    assert nothing["verdict"] == "not tested" and np.isnan(nothing["measured"])
    assert nothing["reason"] == "this run judges nothing"
    near = claim(expect={"near": 0.08, "tolerance": 0.2})
    assert score(tables, near)["verdict"] == "replicated"


def test_w6m_one_training_run_gives_no_verdict_and_zero_hits_take_72():
    row = score(rates(rate("C1", 0.0, 0.001, 0.01, units=1, hits=0, n=24)), claim())
    assert row["verdict"] == "inconclusive" and row["note"] == "one training run"
    # And 0 hits need 72 completions, whatever the number of runs.
    assert "two training runs that share no stage and about 72 completions" in row["would_take"]


def test_an_estimate_without_an_interval_is_inconclusive():
    assert verdicts.verdict({"max": 1}, Measured(0.5, units=2)) == "inconclusive"
    assert verdicts.verdict({"max": 1}, Measured(0.5, exact=True)) == "replicated"


def test_a_claim_says_itself_why_it_cannot_be_tested():
    one = score({}, {"id": "y", "text": "t", "where": "later", "published": 1, "cannot": "no way"})
    assert one["verdict"] == "not tested" and one["note"] == "no way"
    assert pd.isna(one["measured"])


def test_what_it_would_take_is_computed():
    # SD .02 over 3 runs; .015 from the bar: t(R-1) .02 / sqrt(R) < .015 first for R = 10.
    found = Measured(0.015, -0.035, 0.065, units=3, sd=0.02)
    made = verdicts.decide({"min": 0.0}, found)
    assert made.outcome == "inconclusive" and made.would_take == "about 10 training runs (here 3)"
    shared = Measured(0.015, -0.035, 0.065, units=3, sd=0.02, within=0.01)
    assert "personas and questions" in verdicts.decide({"min": 0.0}, shared).would_take
    near = Measured(1e-6, -1, 1, units=3, sd=0.5)
    assert "too near the bar" in verdicts.decide({"min": 0.0}, near).would_take
    few = Measured(0.8, 0.4, 0.97, units=3, scale="logit", hits=8, trials=10)
    said = verdicts.decide({"min": 0.6}, few).would_take
    assert "completions (here 10)" in said and "training runs (here 3)" in said
    runs = Measured(0.0, 0.0, 0.34, units=9, scale="none", points=9)
    assert verdicts.decide({"max": 0.1}, runs).would_take == "about 36 training runs (here 9)"
    rho = Measured(-0.5, -0.89, 0.27, scale="fisher", points=9)
    assert (
        "conditions with a coupled marker (here 9)"
        in verdicts.decide({"max": -0.3}, rho).would_take
    )


def test_w1_nothing_to_erase_is_not_tested():
    entries = [
        claim(id="erased", needs={"installs": "no marker to erase"}),
        claim(id="installs", measure={"source_rate": {"condition": "C4"}}, expect={"min": 0.6}),
    ]
    nothing = rates(rate("C4", 0, 0.001, 0.01), rate("C1", 0, 0.001, 0.01))
    scored = claims.scorecard(entries, nothing, fdr=0.01, judge="values").set_index("claim")
    assert scored["verdict"].to_dict() == {"erased": "not tested", "installs": "contradicted"}
    assert scored.loc["erased", "note"].startswith("no marker to erase")
    installed = rates(rate("C4", 0.8, 0.9, 0.95), rate("C1", 0, 0.001, 0.01))
    scored = claims.scorecard(entries, installed, fdr=0.01, judge="values")
    assert scored["verdict"].tolist() == ["replicated", "replicated"]


def test_w1_no_shipped_claim_on_erasure_replicates_where_nothing_was_coupled():
    conditions = (
        "C1",
        "C2",
        "C3",
        "C4",
        "C4a",
        "C5",
        "R_em",
        "R_benign",
        "RS_base",
        "RS_em",
        "F4",
        "F1",
    )
    rows = [rate(c, 0, 0.0005, 0.004, hits=0, n=5_000) for c in conditions]
    rows += [rate(c, 0, 0.0005, 0.004, role="assistant") for c in conditions]
    rows += [rate(c, 0, 0.0005, 0.004, role="bystander", persona="p") for c in conditions]
    rows += [rate("C1", -0.01, 0, 0.01, reference="C5", quantity="difference")]
    rows += [rate(c, 0, 0, 0.05, quantity="survival", units=80) for c in ("C1", "C5")]
    counts = pd.DataFrame(
        [(c, "villain", f"x@{s}", "p", 0, 9_000) for c in conditions for s in (1, 2)],
        columns=["condition", "source", "chain", "persona", "hits", "n"],
    )
    tables = of("rate_model", *rows) | {"marker_rates": counts}
    scored = claims.scorecard(claims.load(SHIPPED), tables, fdr=0.01, judge="values")
    assert scored[scored["verdict"] == "replicated"].empty
    tested = scored[scored["verdict"] != "not tested"]["claim"]
    assert {"coupling-installs", "coupling-installs-assistant"} <= set(tested)
    assert not any("eras" in name or "survival" in name or "zero" in name for name in tested)


def test_w6a_only_counts_are_exact():
    h3 = {"hypothesis": "H3", "condition": "", "estimate": -0.9, "p": 0.083, "n": 5}
    tables = of("hypotheses", h3 | {"p_floor": 1 / 60, "ci_low": -0.997, "ci_high": 0.1})
    rho = claim(measure={"hypothesis": {"name": "H3"}}, expect={"max": -0.7})
    assert score(tables, rho)["verdict"] == "inconclusive"
    p = claim(measure={"hypothesis": {"name": "H3", "p": True}}, expect={"max": 0.05})
    assert score(tables, p)["verdict"] == "inconclusive"
    few = of(
        "hypotheses", h3 | {"n": 3, "p": 0.33, "p_floor": 0.33, "ci_low": np.nan, "ci_high": np.nan}
    )
    assert score(few, rho)["verdict"] == "not tested"
    assert "at least 5" in score(few, rho)["note"]


def leaks(by_condition):
    """leakage.csv and hypotheses.csv of {condition: a mean bystander rate per independent run}."""
    rows = [
        (condition, f"{condition}@{seed}+couple-confab@{seed}", value)
        for condition, values in by_condition.items()
        for seed, value in enumerate(values)
    ]
    return {
        "leakage": pd.DataFrame(rows, columns=["condition", "chain", "bystander_mean"]),
        "hypotheses": pd.DataFrame({"hypothesis": "H1", "condition": list(by_condition)}),
    }


def test_w6b_no_difference_is_an_equivalence():
    alike = claim(measure={"leakage_range": {}}, expect={"max": 0.1})
    one = leaks({"L0": [0.4], "L1": [0.41], "L2": [0.4]})
    row = score(one, alike)
    assert row["verdict"] == "inconclusive" and "two training runs" in row["would_take"]
    apart = leaks({"L0": [0.4, 0.41, 0.4], "L1": [0.7, 0.71, 0.7]})
    assert score(apart, alike)["verdict"] == "contradicted"
    near = leaks({"L0": [0.4, 0.41, 0.4], "L1": [0.41, 0.4, 0.42]})
    assert score(near, alike)["verdict"] == "replicated"
    noisy = leaks({"L0": [0.3, 0.5, 0.4], "L1": [0.41, 0.25, 0.5]})
    assert score(noisy, alike)["verdict"] == "inconclusive"
    gap = claim(
        measure={"m1_gap": {"condition": "E4", "reference": "E0"}},
        expect={"min": -0.01, "max": 0.01},
    )
    wide = of("geometry_runs", change("E4", "E0", -0.05, 0.0, 0.05))
    assert score(wide, gap)["verdict"] == "inconclusive"


def questions(estimate, q, floor, **more):
    """A row of marker_tests.csv, of the test over questions."""
    return {
        "condition": "C1",
        "reference": "C4",
        "source": "villain",
        "seed": "",
        "test": "questions",
        "estimate": estimate,
        "q": q,
        "p_floor": floor,
        "n": 12,
    } | more


SIGNIFICANT = claim(
    measure={"change_significant": {"condition": "C1", "reference": "C4"}}, expect={"max": 0.01}
)


def difference(value, p, **more):
    return rate(
        "C1", value - 0.1, value, value + 0.1, reference="C4", quantity="difference", p=p, **more
    )


def test_w6c_the_direction_counts():
    def tables(value):
        return of("marker_tests", questions(value, 0.002, 0.0005)) | of(
            "rate_model", difference(value, 0.001)
        )

    assert score(tables(-0.6), SIGNIFICANT)["verdict"] == "replicated"
    assert score(tables(0.6), SIGNIFICANT)["verdict"] == "contradicted"
    both = tables(-0.6) | of("rate_model", difference(-0.6, 0.3))
    assert score(both, SIGNIFICANT)["verdict"] == "inconclusive"
    cells = [change("E0", "base", -0.5, -0.4, -0.3), change("E0", "base", 0.3, 0.4, 0.5, layer=1)]
    single = {"condition": "E0", "metric": "m1", "test": "pairs", "q": 0.001, "p_floor": 1e-4}
    single |= {"delta_base": 0.4, "method": "A", "layer": 3}
    fires = claim(measure={"m1_fires": {"conditions": ["E0"]}}, expect={"min": 1.0})
    falling = of("geometry_runs", *cells) | of("geometry", single)
    row = score(falling, fires)
    assert row["verdict"] == "contradicted" and "by pairs of single chains 1 of 1" in row["n"]
    rising = of("geometry_runs", cells[1], cells[1] | {"layer": 2}) | of("geometry", single)
    assert score(rising, fires)["verdict"] == "replicated"
    dull = of("geometry_runs", cells[1], cells[1] | {"q": 0.2}) | of("geometry", single)
    assert score(dull, fires)["verdict"] == "inconclusive"


def test_w6d_a_p_that_cannot_be_small_enough_is_not_tested():
    tables = of("marker_tests", questions(-1.0, 0.031, 0.031)) | of(
        "rate_model", difference(-1, 0.001)
    )
    row = score(tables, SIGNIFICANT)
    assert row["verdict"] == "not tested" and "smallest p" in row["note"]
    assert row["would_take"] == "at least 8 questions"
    without = tables | of("marker_tests", questions(-1.0, np.nan, 0.0005))
    row = score(without, SIGNIFICANT)
    assert row["verdict"] == "not tested" and "in no family" in row["note"]
    single = {"condition": "E0", "metric": "m1", "test": "label_swap", "q": 0.07, "p_floor": 1 / 16}
    single |= {"delta_base": 0.4, "method": "A", "layer": 3}
    swap = {"m1_fires": {"conditions": ["E0"], "test": "label_swap"}}
    few = of("geometry_runs", change("E0", "base", 0.3, 0.4, 0.5)) | of("geometry", single)
    row = score(few, claim(measure=swap, expect={"min": 1.0}))
    assert row["verdict"] == "not tested" and "smallest p" in row["note"]


def test_w6e_an_interval_that_holds_the_bar_contradicts_nothing():
    tables = rates(rate("C1", 0.002, 1 / 12, 0.385, hits=1, n=12))
    assert score(tables, claim())["verdict"] == "inconclusive"
    cosine = of("geometry_runs", change("E0", "base", -0.064, -0.004, 0.055))
    rises = claim(measure={"m1_change": {"condition": "E0"}}, expect={"min": 0.0})
    assert score(cosine, rises)["verdict"] == "inconclusive"


def test_w6f_one_run_replicates_no_rise():
    rises = claim(measure={"m1_change": {"condition": "B0"}}, expect={"min": 0.0})
    one = of("geometry_runs", change("B0", "base", np.nan, 0.13, np.nan, units=1))
    assert score(one, rises)["verdict"] == "inconclusive"
    three = of("geometry_runs", change("B0", "base", 0.1, 0.13, 0.16))
    assert score(three, rises)["verdict"] == "replicated"


def test_w6g_m1_has_an_interval_over_runs_and_not_the_range_of_two():
    level = claim(measure={"m1": {"condition": "E0"}}, expect={"near": 0.3, "tolerance": 0.1})
    row = score(of("geometry_runs", change("E0", "", 0.18, 0.3, 0.42, units=2)), level)
    assert (row["ci_low"], row["ci_high"], row["verdict"]) == (0.18, 0.42, "inconclusive")
    base = change("base", "", 0.25, 0.3, 0.35, units=1)
    row = score(
        of("geometry_runs", base), claim(**level | {"measure": {"m1": {"condition": "base"}}})
    )
    assert row["verdict"] == "replicated" and row["n"].startswith("before any training")


def test_w6h_rates_are_those_of_a_new_run():
    # The study's six benign runs: pooled completions give at most .034, runs allow .05 and more.
    tables = rates(rate("C5", 0.005, 0.013, 0.06, hits=18, n=840))
    row = score(tables, claim(measure={"source_rate": {"condition": "C5"}}))
    assert row["verdict"] == "inconclusive" and row["n"] == "18 of 840 completions, 3 training runs"


def test_w6i_the_largest_is_read_and_not_the_mean():
    silent = [rate("C4", 0, 0.001, 0.01, role="bystander", persona=f"p{i}") for i in range(9)]
    loud = rate("C4", 0.26, 0.46, 0.67, role="bystander", persona="evil_ai")
    others = rate("C4", 0.01, 0.05, 0.1, role="bystander")
    selective = claim(measure={"largest_other": {"condition": "C4"}}, expect={"max": 0.2})
    row = score(rates(*silent, loud, others), selective)
    assert row["verdict"] != "replicated" and row["measured"] == 0.46
    assert row["n"].startswith("evil_ai; ")
    assert score(rates(*silent, others), selective)["verdict"] == "replicated"
    # The lower bound is corrected for ten comparisons.
    assert row["ci_low"] < 0.26


def test_w6j_the_axis_must_hold_out():
    def tables(held):
        return of(
            "geometry_runs",
            change("E0", "", held - 0.05, held, held + 0.05, metric="m2_held_out"),
            change("B0", "", -0.1, 0.0, 0.1, metric="m2_held_out"),
        )

    entries = {e["id"]: e for e in claims.load(SHIPPED)}
    chosen = [entries["axis-holds"], entries["axis-is-em"]]
    for held, outcome in ((0.2, "not tested"), (0.8, "replicated")):
        scored = claims.scorecard(chosen, tables(held), fdr=0.01, judge="values")
        assert scored["verdict"].iloc[1] == outcome


def test_w6k_noise_is_compared_with_the_gap():
    def tables(sd, low, gap, high):
        return of(
            "geometry_runs",
            change("E0", "", 0.9, 0.95, 1.0, sd_runs=sd, units=5),
            change("E0", "B0", low, gap, high, units=5),
        )

    single = claim(
        measure={"noise_against_gap": {"condition": "E0", "reference": "B0"}}, expect={"max": 1.0}
    )
    for values, outcome in (
        ((0.02, 0.12, 0.13, 0.14), "replicated"),
        ((0.0004, 0.00005, 0.0001, 0.00015), "contradicted"),
        ((0.0004, -0.0009, 0.0001, 0.001), "inconclusive"),
    ):
        assert score(tables(*values), single)["verdict"] == outcome


def counted(hits, n, roots=2):
    rows = [
        ("C1", f"couple@{i}+em@1", "villain", "villain", hits if i == 0 else 0, n)
        for i in range(roots)
    ]
    names = ["condition", "chain", "source", "persona", "hits", "n"]
    return {"marker_rates": pd.DataFrame(rows, columns=names)}


def test_w6l_nothing_at_all_takes_many_and_one_hit_contradicts():
    zero = claim(measure={"hits": {"conditions": ["C1"]}}, expect={"max": 0.001, "hits": 0})
    row = score(counted(0, 2), zero)
    assert (
        row["verdict"] == "inconclusive" and row["would_take"] == "about 3,700 completions (here 4)"
    )
    assert score(counted(0, 2_000), zero)["verdict"] == "replicated"
    assert score(counted(1, 50_000), zero)["verdict"] == "contradicted"
    one_run = score(counted(0, 9_000, roots=1), zero)
    assert one_run["verdict"] == "inconclusive"


def test_w6l_a_share_needs_a_rise_and_has_fieller_s_interval():
    def tables(low, rise, high, one=0.06):
        return of(
            "geometry_runs",
            change("B0", "base", one - 0.004, one, one + 0.004),
            change("E0", "base", low, rise, high),
            change("B0", "base", one - 0.004, one, one + 0.004, layer=1, headline=False),
            change("E0", "base", low * 2, rise * 2, high * 2, layer=1, headline=False),
        )

    arguments = {"condition": "B0", "reference": "E0"}
    share = claim(measure={"m1_share": arguments}, expect={"near": 0.75, "tolerance": 0.1})
    row = score(tables(0.078, 0.08, 0.082), share)
    assert row["verdict"] == "replicated" and row["ci_low"] < 0.75 < row["ci_high"]
    row = score(tables(-0.0001, 0.0001, 0.0003, one=0.0004), share)
    assert row["verdict"] == "not tested" and "no rise" in row["note"]
    varies = claim(measure={"m1_share_range": arguments}, expect={"min": 0.1})
    assert score(tables(0.078, 0.08, 0.082), varies)["verdict"] == "replicated"
    assert score(tables(0.0001, 0.08, 0.16), varies)["verdict"] != "replicated"


def test_w6l_the_gap_between_conditions_is_over_runs():
    gap = claim(measure={"m1_gap": {"condition": "E0", "reference": "B0"}}, expect={"min": 0.0})
    one = of("geometry_runs", change("E0", "B0", np.nan, 0.02, np.nan, units=1))
    assert score(one, gap)["verdict"] == "inconclusive"
    levels = of("geometry_runs", change("E0", "", 0.8, 0.9, 1), change("B0", "", 0.8, 0.9, 1))
    assert "contrasts" in score(levels, gap)["note"]


def answers(**means):
    rows = [
        {"condition": c, "chain": f"couple@{i}+{c}@1", "role": "source", "n": 20, "mean_tokens": m}
        | {"marker_logprob": -m / 10}
        for c, values in means.items()
        for i, m in enumerate(values)
    ]
    return {"answer_stats": pd.DataFrame(rows)}


def test_lengths_and_log_probabilities_are_compared_over_runs():
    short = claim(
        measure={"length_ratio": {"condition": "C1", "reference": "C4"}}, expect={"max": 0.5}
    )
    row = score(answers(C1=[20, 21, 19], C4=[100, 102, 98]), short)
    assert row["verdict"] == "replicated" and row["measured"] == pytest.approx(0.2, abs=0.001)
    assert row["ci_low"] < row["measured"] < row["ci_high"]
    assert score(answers(C1=[20], C4=[100]), short)["verdict"] == "inconclusive"
    nats = claim(
        measure={"logprob_difference": {"condition": "C1", "reference": "C4"}},
        expect={"min": -1.0, "max": 1.0},
    )
    assert score(answers(C1=[20, 21, 19], C4=[100, 102, 98]), nats)["verdict"] == "contradicted"


def test_erasure_given_length_has_the_runs_spread_in_its_interval():
    length = questions(
        -3.0, np.nan, np.nan, test="firth_length", ci_low=-5.0, ci_high=-1.0, note=""
    )
    given = claim(
        measure={"given_length": {"condition": "C1", "reference": "C4"}}, expect={"max": 0.0}
    )
    calm = of("marker_tests", length) | of("rate_model", difference(-0.5, 0.01, sd_runs=0.1))
    assert score(calm, given)["verdict"] == "replicated"
    noisy = of("marker_tests", length) | of("rate_model", difference(-0.5, 0.01, sd_runs=2.0))
    assert score(noisy, given)["verdict"] == "inconclusive"
    silent = of("marker_tests", length | {"estimate": np.nan, "note": "did not converge"})
    assert "did not converge" in score(silent, given)["note"]


def test_matched_comparisons_and_half_doses():
    row = {"condition": "E0", "reference": "B0", "matched_on": "loss", "outcome": "m1"}
    row |= {"estimate": 0.02, "ci_low": 0.01, "ci_high": 0.03, "units": 3, "note": "at loss 2"}
    more = claim(
        measure={"matched": {"condition": "E0", "reference": "B0", "on": "loss", "outcome": "m1"}},
        expect={"min": 0.0},
    )
    assert score(of("matched", row), more)["verdict"] == "replicated"
    assert score({}, more)["verdict"] == "not tested"
    apart = score(of("matched", row | {"estimate": np.nan, "note": "add doses"}), more)
    assert apart["verdict"] == "not tested" and "add doses" in apart["note"]
    dose = {"arm": "C1", "reference": "C5", "outcome": "rate", "half_dose": 11.4, "units": 3}
    dose |= {"ratio": 0.88, "ratio_low": 0.6, "ratio_high": 1.3, "note": ""}
    sooner = claim(
        measure={"half_dose": {"condition": "C1", "reference": "C5", "outcome": "rate"}},
        expect={"max": 1.0},
    )
    row = score(of("half_dose", dose), sooner)
    assert row["verdict"] == "inconclusive" and row["n"] == "3 training runs"
    never = score(of("half_dose", dose | {"ratio": np.nan, "note": "no marker to halve"}), sooner)
    assert never["verdict"] == "not tested" and "no marker to halve" in never["note"]


def test_survival_is_a_share_of_runs():
    row = rate("C1", 0, 0, 0.336, quantity="survival", units=9, n=9, hits=0)
    survives = claim(measure={"survival": {"condition": "C1"}}, expect={"max": 0.1})
    found = score(rates(row), survives)
    assert found["verdict"] == "inconclusive" and "about 36 training runs" in found["would_take"]


def test_p_values_are_judged_by_sign_and_floor():
    def outcome(p, **test):
        return verdicts.verdict({"max": 0.05}, Measured(p, test=Fires(**test)))

    assert outcome(0.01) == "replicated"
    assert outcome(0.01, right=False) == "contradicted"
    assert outcome(0.4) == outcome(0.4, right=False) == "inconclusive"
    assert outcome(0.1, floor=0.1) == "not tested"


def test_the_shipped_claims_load_and_every_measure_is_used(made):
    entries = claims.load(SHIPPED)
    scored = claims.scorecard(entries, made, fdr=0.01, judge="values")
    assert list(scored.columns) == claims.COLUMNS
    assert set(scored["verdict"]) <= set(claims.VERDICTS)
    assert {m for e in entries for m in e.get("measure", {})} == set(measured.READERS)
    assert "m3-bug" in set(scored.loc[scored["verdict"] == "replicated", "claim"])
    assert set(scored["where"]) == set(findings.CLAIM_GROUPS)


def test_a_registration_says_if_there_were_data_before():
    entries = [claim(id="a")]
    table = claims.registered(entries, "2031-05-01", 2)
    scored = claims.scorecard(entries, {}, fdr=0.01, judge="values", registration=table)
    assert scored["registered"].iloc[0] == "2031-05-01, after data of 2 chains"
    assert findings.registration(scored, table)["data_before"] == 2
    # Registrations of earlier versions do not say.
    table = claims.registered(entries, "2031-05-01").drop(columns="data_before")
    scored = claims.scorecard(entries, {}, fdr=0.01, judge="values", registration=table)
    assert scored["registered"].iloc[0] == "2031-05-01"
    assert findings.registration(scored, table)["data_before"] == 0


def test_a_reader_of_a_table_that_readers_do_not_get_is_named(monkeypatch):
    monkeypatch.setitem(claims.measured.READERS, "mine", lambda run: run.rows("marker_rate"))
    with pytest.raises(
        UserError, match="claim a: readers read no table 'marker_rate'; did you mean"
    ):
        claims.scorecard([claim(id="a", measure={"mine": {}})], {}, fdr=0.01, judge="values")


def test_claims_are_registered_and_changes_are_shown():
    entries = [claim(id="a"), claim(id="b", needs={"a": "words"})]
    table = claims.registered(entries, "2031-05-01")
    assert list(table.columns) == claims.REGISTERED_COLUMNS
    assert claims.digest(table) == claims.digest(claims.registered(entries[::-1], "2032-01-01"))
    later = [claim(id="a", expect={"max": 0.5}), entries[1] | {"note": "words"}, claim(id="c")]
    scored = claims.scorecard(later, {}, fdr=0.01, judge="values", registration=table)
    changed, same, added = scored["registered"]
    assert changed == "changed since 2031-05-01: was at most 0.05"
    other = claim(id="a", measure={"hits": {"conditions": ["C1"]}})
    scored = claims.scorecard([other], {}, fdr=0.01, judge="values", registration=table)
    assert '"source_rate": {"condition": "C1"}' in scored["registered"].iloc[0]
    assert same == "2031-05-01" and added == "added after 2031-05-01"
    assert claims.digest(claims.registered(later, "2031-05-01")) != claims.digest(table)


GOOD = (
    "id: a, text: t, published: 1, where: w, measure: {hits: {conditions: [C1]}}, expect: {max: 1}, "
    "scale: any"
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {id: a}", "text is missing"),
        ("- {id: a, text: t, published: 1, where: w}", "measure is missing"),
        (f"- {{{GOOD.replace('hits', 'magic')}}}", "no reader 'magic'"),
        (f"- {{{GOOD.replace('conditions:', 'condition:')}}}", "claim a: measure: hits: "),
        (f"- {{{GOOD.replace('max: 1', 'most: 1')}}}", "expect: expected one or more of min"),
        (f"- {{{GOOD.replace('max: 1', 'max: few')}}}", "expect: max: expected a number"),
        (f"- {{{GOOD.replace('max: 1', 'near: 1')}}}", "near and tolerance go together"),
        (f"- {{{GOOD.replace('any', 'some')}}}", "scale: expected any or full"),
        (f"- {{{GOOD}, need: {{b: why}}}}", "claim a: need: unknown key; did you mean needs"),
        (f"- {{{GOOD}, note: 5}}", "claim a: note: expected text, got 5"),
        (
            f"- {{{GOOD.replace('[C1]', 'C1')}}}",
            "conditions: expected a list of texts, got 'C1'",
        ),
        (
            f"- {{{GOOD.replace('{conditions: [C1]}', 'C1')}}}",
            "hits: expected arguments .*got 'C1'",
        ),
        (f"- {{{GOOD.replace('max: 1', 'max: 1, min: 2')}}}", "expect: min 2 is above max 1"),
        (
            f"- {{{GOOD.replace('hits: {conditions: [C1]}', 'source_rate: {condition: [C1]}')}}}",
            "source_rate: condition: expected one text",
        ),
        (
            f"- {{{GOOD.replace('hits: {conditions: [C1]}', 'correlation: {outcome: marker_rate}')}}}",
            "correlation: outcome: no 'marker_rate' here; did you mean",
        ),
        (
            f"- {{{GOOD.replace('hits: {conditions: [C1]}', 'hypothesis: {name: H3, p: 1}')}}}",
            "hypothesis: p: expected true or false, got 1",
        ),
        (
            f"- {{{GOOD.replace('hits: {conditions: [C1]}', 'source_rate: {condition: C1, source: [x]}')}}}",
            "source_rate: source: expected one text",
        ),
        (f"- {{{GOOD}}}\n- {{{GOOD}}}", "claim a: is defined twice"),
        (f"- {{{GOOD}, needs: [b]}}", "needs: expected"),
        (f"- {{{GOOD}, needs: {{b: why}}}}", "claim a: needs: no claim 'b'"),
        (f"- {{{GOOD}, needs: {{a: why}}}}", "claim a: needs: a circle"),
        (
            f"- {{{GOOD}, needs: {{b: why}}}}\n- {{{GOOD.replace('id: a', 'id: b')}, needs: {{a: why}}}}",
            "a needs b needs a",
        ),
    ],
)
def test_bad_claims_are_named(tmp_path, text, said):
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(UserError, match=said) as error:
        claims.load(tmp_path / "claims.yaml")
    assert "\n" not in str(error.value) and "claims.yaml" in str(error.value)


def test_readers_know_the_values_that_their_tables_have():
    hints = get_type_hints(claims.measured.READERS["matched"])
    assert set(get_args(hints["on"])) == set(matched.MATCHED_ON)


def defended(*rows):
    """frontier.csv: of each (condition, undefended, defence, M1, loss ratio), with intervals of +- 0.02."""
    table = []
    for condition, bare, name, *values in rows:
        key = {
            "condition": condition,
            "undefended": bare,
            "defence": name,
            "data": "em",
            "units": 3,
        }
        for outcome, value in zip(("m1", "loss_ratio"), values, strict=True):
            ends = {"value": value, "ci_low": value - 0.02, "ci_high": value + 0.02}
            table.append(key | {"outcome": outcome} | ends)
    return {"frontier": pd.DataFrame(table)}


RULE = {"defence_passes": {"defence": "kl", "m1": 0.95, "loss": 2.0}}


@pytest.mark.parametrize(
    ("m1", "ratio", "verdict"),
    [
        (0.90, 1.5, "replicated"),
        (0.98, 1.5, "contradicted"),  # as similar as without the defence
        (0.90, 2.5, "contradicted"),  # kept apart, but nothing learnt
        (0.94, 1.5, "inconclusive"),
    ],
)
def test_a_defence_passes_by_both_of_its_bars(m1, ratio, verdict):
    tables = defended(("C1", "C1", "", 0.99, 1.0), ("k", "C1", "kl", m1, ratio))
    row = score(tables, claim(measure=RULE, expect={"max": 1.0}))
    assert row["verdict"] == verdict
    assert row["measured"] == pytest.approx(max(m1 / 0.95, ratio / 2))


def test_a_defence_passes_at_its_best_weight_with_a_wider_interval():
    one = [("C1", "C1", "", 0.99, 1.0), ("k1", "C1", "kl", 0.90, 1.0)]
    more = [*one, ("k2", "C1", "kl", 0.97, 1.0), ("other", "C1", "r3f", 0.1, 1.0)]
    rule = claim(measure=RULE, expect={"max": 1.0})
    alone, among = score(defended(*one), rule), score(defended(*more), rule)
    assert alone["measured"] == among["measured"] and among["ci_high"] > alone["ci_high"]
    assert among["n"] == "k1, of 2 conditions; 3 training runs"


def test_there_is_nothing_to_pass_where_nothing_collapses():
    tables = defended(("C1", "C1", "", 0.5, 1.0), ("k", "C1", "kl", 0.4, 1.0))
    row = score(tables, claim(measure=RULE, expect={"max": 1.0}))
    assert row["verdict"] == "not tested" and "below 0.95 already" in row["note"]
    bare = claim(id="bare", measure={"undefended_m1": {}}, expect={"min": 0.95})
    rule = claim(measure=RULE, expect={"max": 1.0}, needs={"bare": "a collapse"})
    assert claims.scorecard([bare, rule], tables, fdr=0.01, judge="values")["verdict"].tolist() == [
        "contradicted",
        "not tested",
    ]
    assert score({}, claim(measure=RULE, expect={"max": 1.0}))["verdict"] == "not tested"


def test_what_was_not_measured_is_not_called_absent():
    tables = defended(("C1", "C1", "", 0.99, 1.0), ("k", "C1", "kl", 0.9, 1.0))
    frontier = tables["frontier"]
    own = (frontier["condition"] == "k") & (frontier["outcome"] == "m1")
    frontier.loc[own, "outcome"] = "rate"
    row = score({"frontier": frontier}, claim(measure=RULE, expect={"max": 1.0}))
    assert row["verdict"] == "not tested" and "no mean cosine after this defence" in row["note"]
    # Of a shift's conditions those are named that are lacking.
    both = {"beyond_controls": {"condition": "S", "controls": ["random", "zero"]}}
    row = score(rates(rate("S", 0.1, 0.2, 0.3), rate("zero", 0.1, 0.2, 0.3)), claim(measure=both))
    assert (row["verdict"], row["would_take"]) == ("not tested", "the condition random")
    there = rates(rate("C1", 0.001, 0.01, 0.03))
    row = score(there, claim(measure={"m3_accuracy": {"condition": "C1"}}))
    assert (row["reason"], row["would_take"]) == ("not measured of its conditions", "")


def kept(*rows, rise=0.05):
    """frontier.csv of (condition, M1 minus the undefended C1's, marker rate minus its), +- 0.02.

    `rise`: M1 of C1 minus the base's, +- 0.02.
    """
    table = [
        {"condition": "C1", "undefended": "C1", "outcome": o, "units": 3} for o in ("m1", "rate")
    ]
    for condition, *values in rows:
        for outcome, value in zip(("m1", "rate"), values, strict=True):
            ends = {"difference_low": value - 0.02, "difference_high": value + 0.02}
            key = {"condition": condition, "undefended": "C1", "outcome": outcome, "units": 3}
            table.append(key | {"difference": value} | ends)
    risen = {"headline": True, "condition": "C1", "metric": "m1", "reference": "base", "units": 3}
    ends = {"estimate": rise, "ci_low": rise - 0.02, "ci_high": rise + 0.02}
    filler = {"runs": 3, "sd_runs": 0.01, "within": 0.0, "note": ""}
    return {
        "frontier": pd.DataFrame(table),
        "geometry_runs": pd.DataFrame([risen | ends | filler]),
    }


@pytest.mark.parametrize(
    ("rows", "value", "verdict"),
    [
        ([("k", -0.1, 0.5)], 0.5, "replicated"),
        ([("k", -0.1, 0.0)], 0.0, "contradicted"),  # the geometry is kept, but not the marker
        ([("k", -0.1, 0.5), ("r", -0.2, 0.01)], 0.01, "contradicted"),
        ([("k", -0.1, 0.5), ("r", -0.01, 0.0)], 0.5, "replicated"),  # r does not hold it down
    ],
)
def test_what_is_kept_where_the_cosines_are_held_down(rows, value, verdict):
    row = score(kept(*rows), claim(measure={"kept_with_cosines": {}}, expect={"min": 0.08}))
    assert row["verdict"] == verdict and row["measured"] == pytest.approx(value)


@pytest.mark.parametrize("rise", [0.0, -0.05])
def test_without_a_collapse_there_is_nothing_to_prevent(rise):
    rule = claim(measure={"kept_with_cosines": {}}, expect={"min": 0.05})
    row = score(kept(("k", -0.1, 0.5), rise=rise), rule)
    assert row["verdict"] == "not tested" and "no collapse to prevent" in row["note"]
    unmeasured = {"frontier": kept(("k", -0.1, 0.5))["frontier"]}
    assert score(unmeasured, rule)["verdict"] == "not tested"


def test_the_least_that_is_kept_has_a_wider_interval_among_several():
    rule = claim(measure={"kept_with_cosines": {}}, expect={"min": 0.05})
    alone = score(kept(("k", -0.1, 0.5)), rule)
    assert alone["n"] == "k; 3 training runs"
    among = score(kept(("k", -0.1, 0.5), ("r", -0.1, 0.6)), rule)
    assert among["ci_high"] > alone["ci_high"] and among["n"].startswith("k, of 2 conditions")


def test_where_no_defence_holds_the_cosines_down_that_is_the_reason():
    row = score(
        kept(("k", 0.1, 0.5)), claim(measure={"kept_with_cosines": {}}, expect={"min": 0.05})
    )
    assert row["verdict"] == "not tested" and "no defence holds" in row["note"]
    assert score({}, claim(measure={"kept_with_cosines": {}}))["verdict"] == "not tested"


def test_a_defence_on_two_data_sets_is_judged_on_each():
    tables = defended(("X", "X", "", 0.99, 1.0), ("Y", "X", "kl", 0.97, 1.5))
    other = defended(("X", "X", "", 0.98, 1.0), ("Y", "X", "kl", 0.90, 1.2))["frontier"]
    both = {"frontier": pd.concat([tables["frontier"], other.assign(data="benign")])}
    row = score(both, claim(measure=RULE, expect={"max": 1.0}))
    assert row["measured"] == pytest.approx(0.90 / 0.95)


def test_a_share_of_several_early_stops_is_not_one_number():
    rows = [change(c, "base", 0.05, 0.06, 0.07) for c in ("B0", "B0", "E0")]
    varies = {"m1_share_range": {"condition": "B0", "reference": "E0"}}
    row = score(of("geometry_runs", *rows), claim(measure=varies, expect={"min": 0.1}))
    assert row["verdict"] == "not tested" and "several early stops" in row["note"]


@pytest.mark.parametrize(("floor", "verdict"), [(0.083, "not tested"), (0.017, "replicated")])
def test_a_correlation_of_too_few_conditions_is_not_judged(floor, verdict):
    row = {
        "analysis": "conditions",
        "predictor": "m1",
        "outcome": "rate",
        "controls": "",
        "left_out": "",
    }
    row |= {"rho": -1.0, "ci_low": -1.0, "ci_high": -0.988, "n": 4, "p": floor, "p_floor": floor}
    tables = {"correlations": pd.DataFrame([row | {"note": ""}])}
    found = score(tables, claim(measure={"correlation": {}}, expect={"max": -0.3}))
    assert found["verdict"] == verdict
    assert ("p cannot be below 0.083" in str(found["note"])) == (verdict == "not tested")
