"""Matched comparisons of misaligned and benign training, and half-doses, on synthetic runs."""

import numpy as np
import pandas as pd
import pytest
from persona_collapse.analysis import half_dose, matched

RNG = np.random.default_rng(3)
STEPS = (1, 3, 10, 30, 100)
QUESTIONS = [f"q{i}" for i in range(28)]
HEADLINE = {"method": "A", "layer": 20}


def falling(half, slope=2.0, top=0.8):
    return lambda steps: top / (1 + (steps / half) ** slope)


def made(rates, rises, seeds=(1, 2, 3), stops=STEPS, tokens=(1.0, 1.0), loss=None, noise=0.0):
    """Design, updates and outcomes of C1 (em) and C5 (benign) with doses D; `rates`, `rises`: functions
    of steps."""
    cells, sizes, answers, left_out = [], [], [], []

    def measured(chain, rate, m1):
        for q in QUESTIONS:
            hits = RNG.random(20) < rate
            key = {"chain": chain, "persona": "villain", "question_id": q}
            answers.extend(key | {"hit": hit} for hit in hits)
        for kind, names in (("", [""]), ("persona", "abcde"), ("question", QUESTIONS)):
            key = {"chain": chain, "method": "A", "layer": 20, "metric": "m1", "left_out": kind}
            left_out.extend(key | {"name": n, "value": m1} for n in names)

    for seed in seeds:
        before = f"c@{seed}"
        measured(before, rates[0](0), 0.9)
        shift = RNG.normal(0, noise)
        for arm, stage, rate, rise, each in zip(
            ("C1", "C5"), ("em", "benign"), rates, rises, tokens, strict=True
        ):
            for steps in stops:
                whole = steps == stops[-1]
                chain = f"{before}+{stage}@{seed}" + ("" if whole else f"~{steps}")
                cell = {"condition": arm if whole else f"D_{arm}", "chain": chain}
                cells.append(cell | {"source": "villain", "measures": "markers activations"})
                measured(chain, rate(steps), 0.9 + rise(steps) + shift)
                amounts = {"tokens": each * steps, "update_norm": steps**0.5, "steps": steps}
                end = 1 / (1 + steps) if loss is None else loss[arm]
                more = {"loss": end, "answer_length": 20 if arm == "C1" else 200}
                sizes.append({"chain": chain, "other": ""} | amounts | more)
    found = matched.outcomes(pd.DataFrame(left_out), pd.DataFrame(answers), HEADLINE)
    return pd.DataFrame(cells), pd.DataFrame(sizes), found


def table(*given):
    rows = matched.matched_table(*given, [("C1", "C5")])
    return rows.set_index(["matched_on", "outcome"])


def log_rise(steps):
    return 0.02 * np.log1p(steps)


def test_equal_training_gives_equal_outcomes_and_an_interval():
    rows = table(*made((falling(10), falling(10)), (log_rise, log_rise), noise=0.003))
    own = rows.loc[("tokens", "m1")]
    assert own["at"] == 100 and own["units"] == 3
    assert own["estimate"] == pytest.approx(0, abs=1e-9)
    rate = rows.loc[("loss", "rate")]
    assert rate["ci_low"] < 0 < rate["ci_high"] and rate["ci_high"] - rate["ci_low"] > 0.001
    assert rows.loc[("loss", "rate"), "at"] == pytest.approx(1 / 101)


def test_a_difference_of_rates_is_never_beyond_one():
    """All answers against none, with an interval that would exceed the range."""
    for rates, bound in (((1.0, 0.0), "ci_high"), ((0.0, 1.0), "ci_low")):
        own = [lambda s, rate=rate: rate for rate in rates]
        row = table(*made(own, (log_rise, log_rise))).loc[("tokens", "rate")]
        assert abs(row["estimate"]) == 1 and row[bound] == row["estimate"]
        assert 0.5 < abs(row["ci_low"] + row["ci_high"]) / 2 < 1


def test_twice_the_tokens_a_step_are_matched_by_interpolation():
    """With half the tokens per step, benign has reached at 100 steps what the other has reached at 50."""
    rise = [lambda s: 0.02 * np.log(s), lambda s: 0.02 * np.log(s) - 0.005]
    design, sizes, found = made((falling(10), falling(10)), rise, tokens=(2.0, 1.0))
    row = table(design, sizes, found).loc[("tokens", "m1")]
    assert row["at"] == 100
    assert row["estimate"] == pytest.approx(0.005 - 0.02 * np.log(2), abs=1e-6)


def test_no_common_value_is_said():
    given = made(
        (falling(10), falling(10)), (log_rise, log_rise), stops=(100,), loss={"C1": 1.0, "C5": 2.2}
    )
    rows = table(*given)
    row = rows.loc[("loss", "m1")]
    assert np.isnan(row["estimate"]) and row["note"] == "C1 1, C5 2.2: no common value; add doses"
    assert "C1 20, C5 200" in rows.loc[("answer_length", "rate"), "note"]
    assert rows.loc[("tokens", "m1"), "estimate"] == pytest.approx(0)


def test_one_training_run_has_no_interval():
    row = table(*made((falling(10), falling(10)), (log_rise, log_rise), seeds=(1,)))
    row = row.loc[("tokens", "rate")]
    assert np.isnan(row["ci_low"]) and "one training run" in row["note"]


def test_amounts_a_tenth_apart_count_as_equal():
    assert matched.common([[1.0], [1.05]], least=False) == 1.0
    assert matched.common([[1.0], [1.3]], least=False) is None
    assert matched.common([[1, 10], [2, 5]], least=False) == 5
    assert matched.common([[1, 10], [2, 5]], least=True) == 2


def test_half_doses_are_found_again():
    rise = (lambda s: 0.08 * s / (s + 5), lambda s: 0.08 * s / (s + 20))
    given = made((falling(8), falling(16)), rise)
    rows = half_dose.half_dose_table(*given, [("C1", "C5")]).set_index(["arm", "outcome"])
    em, benign = rows.loc[("C1", "rate")], rows.loc[("C5", "rate")]
    assert em["half_dose"] == pytest.approx(8, rel=0.1)
    assert benign["half_dose"] == pytest.approx(16, rel=0.1)
    assert em["ratio_low"] < 0.5 < em["ratio_high"] and em["ratio_high"] < 0.7
    assert em["units"] == 3 and em["reference"] == "C5" and np.isnan(benign["ratio"])
    assert rows.loc[("C1", "m1"), "half_dose"] < rows.loc[("C5", "m1"), "half_dose"]


def test_no_half_dose_without_a_marker_or_a_rise():
    given = made((falling(8, top=0.01), falling(8, top=0.01)), (lambda s: 0.0, lambda s: -0.01))
    rows = half_dose.half_dose_table(*given, [("C1", "C5")]).set_index(["arm", "outcome"])
    assert rows["half_dose"].isna().all() and rows["ratio"].isna().all()
    assert rows.loc[("C5", "rate"), "note"] == "no marker to halve (3 of 3 runs)"
    assert rows.loc[("C5", "m1"), "note"] == "the mean cosine does not rise (3 of 3 runs)"


def test_one_run_has_a_half_dose_and_no_interval():
    given = made((falling(8), falling(16)), (log_rise, log_rise), seeds=(1,))
    row = half_dose.half_dose_table(*given, [("C1", "C5")]).iloc[0]
    assert row["half_dose"] > 0 and np.isnan(row["ci_low"]) and np.isnan(row["ratio_low"])


def test_a_rate_that_is_not_halved_is_said():
    given = made((falling(10_000), falling(8)), (log_rise, log_rise))
    row = half_dose.half_dose_table(*given, [("C1", "C5")]).iloc[0]
    assert np.isnan(row["half_dose"]) and row["note"] == "not halved within 100 steps (3 of 3 runs)"


def test_half_way_up_is_interpolated_in_the_logarithm():
    steps = np.array([0, 1, 3, 7])
    assert half_dose.half_of_change(steps, np.log1p(steps)) == pytest.approx(np.sqrt(8) - 1)


def test_no_doses_no_half_doses():
    given = made((falling(8), falling(16)), (log_rise, log_rise), stops=(100,))
    assert half_dose.half_dose_table(*given, [("C1", "C5")]).empty
