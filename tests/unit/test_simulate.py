"""Tests of the simulation: false-positive rates and coverage, on a small number of data sets."""

import numpy as np
import pandas as pd
import pytest
from persona_collapse.analysis import power, simulation
from persona_collapse.report.figures import false_positives

SIZES = simulation.Sizes(personas=12, questions=12, samples=4, extraction=12, margin=0.15)


@pytest.fixture(scope="module")
def table():
    return simulation.simulate(SIZES, runs=150, draws=499, seed=1).set_index(["name", "world"])


def test_the_study_s_pair_test_rejects_far_too_often(table):
    row = table.loc[("sign flips over persona pairs (M1)", "personas drift")]
    assert row["rate_low"] > 0.2 and row["verdict"] == "too many"


def test_persona_tests_keep_their_level(table):
    for name in ("persona-label swap (M1)", "sign flips over persona effects (M1)"):
        assert table.loc[(name, "personas drift"), "rate_low"] < 0.05


def test_no_test_on_one_model_survives_noise_between_runs(table):
    # This is a finding: with one training run, a test cannot separate the run's noise from an effect.
    assert table.loc[("persona-label swap (M1)", "model drifts"), "rate_low"] > 0.05
    assert table.loc[("range of means, labels permuted (H2)", "runs differ"), "rate_low"] > 0.2


def test_the_axis_test_is_circular_and_the_held_out_one_has_no_p(table):
    assert table.loc[("anchored axis, raw vectors (M2)", "own shift"), "rate"] > 0.9
    assert table.loc[("held-out axis, sign flips (M2, not used)", "unrelated shift"), "rate"] > 0.5


def test_equivalence_at_the_margin_is_rare(table):
    for name in ("TOST over questions", "TOST over persona effects (M1)"):
        assert table.loc[(name, "at the margin"), "rate_low"] < 0.05


def test_intervals(table):
    def cover(name, world):
        return table.loc[(name, world)]

    assert cover("Clopper-Pearson on completions", "nothing moves")["rate"] > 0.93
    assert cover("Student over questions (difference)", "questions differ")["rate_high"] > 0.93
    assert cover("jackknife over personas (M1)", "personas are redrawn")["rate"] > 0.88
    assert cover("percentile bootstrap over pairs (M1)", "personas are redrawn")["rate"] < 0.8
    worst = cover("percentile bootstrap over questions (M1)", "questions vary")["rate"]
    assert worst < cover("basic bootstrap over questions (M1)", "questions vary")["rate"]


def test_five_points_never_reach_05_but_in_perfect_order(table):
    exact = table.loc[("Spearman, five points, exact (H3)", "nothing moves")]
    approximate = table.loc[("Spearman, five points, t approximation (H3)", "nothing moves")]
    assert exact["rate"] < 0.05 < approximate["rate_high"]


def test_one_persona_pair_and_one_question_do_not_break_it():
    small = simulation.Sizes(personas=2, questions=2, samples=1, extraction=1, margin=0.15)
    assert len(simulation.simulate(small, runs=20, draws=99, seed=1))


def test_the_figure_shows_every_test(table):
    shown = false_positives.data(table.reset_index())
    assert len(shown) == (table["kind"] == "test").sum()


def test_power_table():
    geometry = pd.DataFrame([{"test": "personas", "delta_low": 0.1, "delta_high": 0.3}] * 3)
    table = power.power_table(SIZES, geometry, draws=10_000).set_index("test")
    assert table.loc["H1, rank of the induction persona", "p_floor"] == pytest.approx(1 / 11)
    assert table.loc["sign flips over questions", "p_floor"] == 2**-11
    m1 = table.loc["sign flips over persona effects (M1)", "detectable"]
    assert 0.1 < m1 < 0.2
    assert 0.1 < table.loc["Fisher on completions", "detectable"] < 0.4


def test_an_interval_that_is_missing_covers_nothing_and_misses_nothing():
    assert np.isnan(simulation._covers(np.nan, 0.3, np.nan))
    assert simulation._covers(0.2, 0.3, 0.4) == 1 and simulation._covers(0.4, 0.3, 0.5) == 0
