import math
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_collapse import statistics as s
from persona_collapse.errors import UserError
from scipy import stats

floats = st.floats(-10, 10, allow_nan=False).map(lambda x: round(x, 3))


def test_zero_of_280_has_the_closed_form_bound():
    low, high = s.clopper_pearson(0, 280)
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 280))


@given(n=st.integers(1, 500), data=st.data())
def test_clopper_pearson_agrees_with_scipy(n, data):
    hits = data.draw(st.integers(0, n))
    low, high = s.clopper_pearson(hits, n)
    wanted = stats.binomtest(hits, n).proportion_ci(method="exact")
    assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_clopper_pearson_refuses_more_hits_than_trials():
    with pytest.raises(UserError):
        s.clopper_pearson(3, 2)


def test_sign_flip_is_exact_in_the_limit():
    # Five equal differences: only all plus and all minus are as extreme, so p is 2/32.
    p = s.sign_flip_test([1.0] * 5, [0.0] * 5, draws=40_000, seed=1)
    assert p == pytest.approx(2 / 32, abs=4 * math.sqrt(2 / 32 / 40_000))


def test_sign_flip_p_is_never_zero():
    x = np.arange(66) + 1.0
    assert s.sign_flip_test(x, np.zeros(66), 999, 0) == 1 / 1000


def test_no_difference_gives_p_1():
    assert s.sign_flip_test([1, 2, 3], [1, 2, 3], 99, 0) == 1


@settings(max_examples=25)
@given(st.lists(st.tuples(floats, floats), min_size=2, max_size=8), st.integers(0, 5))
def test_sign_flip_is_symmetric_and_bounded(pairs, seed):
    x, y = zip(*pairs, strict=True)
    p = s.sign_flip_test(x, y, 199, seed)
    assert 1 / 200 <= p <= 1
    assert p == s.sign_flip_test(y, x, 199, seed)


def test_the_study_s_gradient():
    # Similarity to the assistant and mean bystander rate of E0..E4, as published.
    similarity = [1.000, 0.9457, 0.9060, 0.8696, 0.7828]
    leakage = [0.4568, 0.4857, 0.5007, 0.5371, 0.5200]
    rho, p = s.spearman_exact(similarity, leakage)
    assert rho == pytest.approx(-0.9)
    assert p == pytest.approx(10 / 120)


@settings(max_examples=12)
@given(st.lists(st.integers(0, 4), min_size=3, max_size=5), st.data())
def test_spearman_exact_counts_every_order(x, data):
    y = data.draw(st.lists(st.integers(0, 4), min_size=len(x), max_size=len(x)))
    if len(set(x)) == 1 or len(set(y)) == 1:
        with pytest.raises(UserError):
            s.spearman_exact(x, y)
        return
    rho, p = s.spearman_exact(x, y)
    assert rho == pytest.approx(stats.spearmanr(x, y).statistic)
    all_rho = [stats.spearmanr(x, order).statistic for order in permutations(y)]
    assert p == pytest.approx(np.mean([abs(r) >= abs(rho) - 1e-9 for r in all_rho]))


def test_spearman_refuses_too_many_points():
    with pytest.raises(UserError, match="3 to 9"):
        s.spearman_exact(range(10), range(10))


def test_range_permutation_of_two_groups_is_the_two_sided_mean_test():
    values, labels = [1, 2, 3, 10, 11, 12], list("aaabbb")
    spread, p = s.range_permutation_test(values, labels, 20_000, 1)
    assert spread == pytest.approx(9)
    assert p == pytest.approx(2 / 20, abs=0.01)  # 2 of the 20 splits are as extreme


def test_range_permutation_needs_two_groups():
    with pytest.raises(UserError):
        s.range_permutation_test([1, 2], ["a", "a"], 10, 0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_bh_matches_its_definition(p):
    p = np.asarray(p)
    order, m = np.argsort(p), len(p)
    wanted = np.empty(m)
    smallest = 1.0
    for rank in range(m, 0, -1):
        smallest = min(smallest, p[order[rank - 1]] * m / rank)
        wanted[order[rank - 1]] = smallest
    np.testing.assert_allclose(s.bh(p), wanted, atol=1e-12)


def test_bh_leaves_missing_values_out():
    q = s.bh([0.01, math.nan, 0.02])
    assert math.isnan(q[1]) and q[0] == pytest.approx(0.02)


def test_the_published_fisher_p_values():
    # C1, 0 of 840, against C4: the study's own counts, and the p in its headline.
    assert 3e-220 < s.fisher(0, 840, 252, 280)[0] < 5e-220
    assert 4e-177 < s.fisher(0, 840, 219, 280)[0] < 6e-177
    assert 0.5e-224 < s.fisher(0, 840, 255, 280)[0] < 2e-224
    assert s.fisher(0, 280, 210, 280)[0] == pytest.approx(9.67e-93, rel=1e-2)


def test_newcombe_closed_form():
    # Newcombe 1998, table II: 56/70 against 48/80.
    low, high = s.newcombe(56, 70, 48, 80)
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


@settings(max_examples=25)
@given(st.lists(floats, min_size=2, max_size=9))
def test_sign_flips_of_units_count_every_pattern(d):
    p, p_floor = s.sign_flip_units(d, draws=10_000)
    signs = np.array(np.meshgrid(*[[1, -1]] * len(d))).reshape(len(d), -1).T
    means = np.abs(signs @ np.array(d)) / len(d)
    assert p == pytest.approx(np.mean(means >= abs(np.mean(d)) - 1e-9), abs=1e-12)
    assert p_floor == min(1, 2.0 ** (1 - np.count_nonzero(d))) <= p <= 1


def test_many_cells_at_once_agree_with_one_by_one():
    d = np.random.default_rng(0).normal(0.2, 1, (7, 66))
    np.testing.assert_array_equal(
        s.sign_flip_many(d, 2000, 5), [s.sign_flip_test(row, None, 2000, 5) for row in d]
    )


def test_rank_of_one_value_among_others():
    difference, p = s.one_against_others(0.6, [0.5] * 10)
    assert difference == pytest.approx(0.1) and p == pytest.approx(1 / 11)
    assert s.one_against_others(0.5, [0.5] * 10)[1] == 1


def test_families_are_corrected_apart_and_first_match_wins():
    table = pd.DataFrame({"metric": ["m1", "m1", "m1_b", "x"], "p": [0.01, 0.04, 0.03, 0.5]})
    families = [{"name": "one", "metric": "m1"}, {"name": "all m", "metric": ["m1", "m1_*"]}]
    out = s.adjust(table, families)
    assert list(out["family"]) == ["one", "one", "all m", ""]
    assert list(out["q"][:3]) == pytest.approx([0.02, 0.04, 0.03]) and math.isnan(out["q"][3])
    with pytest.raises(UserError, match="no column 'metrik'"):
        s.adjust(table, [{"name": "typo", "metrik": "m1"}])


@settings(max_examples=30)
@given(st.integers(0, 30), st.integers(0, 30))
def test_equivalence_of_proportions_is_symmetric_and_a_probability(a, b):
    p = s.tost_proportions(a, 30, b, 30, 0.15)
    assert 0 <= p <= 1
    assert p == pytest.approx(s.tost_proportions(b, 30, a, 30, 0.15), abs=1e-9)
    # Outside the margin, nothing is equivalent.
    if abs(a - b) / 30 > 0.15:
        assert p > 0.5 - 1e-9


def test_equivalence_of_units():
    assert s.tost_units([0.0, 0.01, -0.01, 0.005, -0.005], 0.1) < 1e-4
    assert s.tost_units([0.2, 0.25, 0.15], 0.1) > 0.9
    assert math.isnan(s.tost_units([0.0, 0.0], 0.1)), "no spread is no evidence"
    # Schuirmann's closed form.
    d = np.array([0.01, 0.03, -0.02, 0.04])
    t = (0.1 - abs(d.mean())) / stats.sem(d)
    assert s.tost_units(d, 0.1) == pytest.approx(stats.t.sf(t, 3))


def test_welch_with_the_study_s_margin():
    # At the floor, the pre-registered conjunction is uninformative: treated and controls are all 0.
    floor = s.welch_conjunction([0.0, 0.0, 0.0], [[0.0, 0.0, 0.0]])
    assert not floor["passes"] and not floor["informative"] and math.isnan(floor["p"])
    clear = s.welch_conjunction([0.9, 0.88, 0.93], [[0.0, 0.02, 0.01], [0.1, 0.12, 0.08]])
    assert clear["passes"] and clear["informative"]
    near = s.welch_conjunction([0.6, 0.62, 0.61], [[0.5, 0.52, 0.51]])
    assert not near["passes"], "a difference below .15 does not pass"


def test_power_of_fisher_by_enumeration():
    # Every table of two groups of six, by brute force.
    n, one, two = 6, 0.9, 0.2
    power = 0.0
    for a in range(n + 1):
        for b in range(n + 1):
            weight = stats.binom.pmf(a, n, one) * stats.binom.pmf(b, n, two)
            power += weight * (stats.fisher_exact([[a, n - a], [b, n - b]]).pvalue < 0.05)
    assert s.fisher_power(one, n, two, n) == pytest.approx(power)
    assert s.fisher_power(0.5, 24, 0.5, 24) < 0.05


def test_over_runs_is_a_t_test_of_roots_and_keeps_its_level():
    x = np.random.default_rng(3).normal(size=5)
    found = s.over_runs(x, list("abcde"))
    assert found.p == pytest.approx(stats.ttest_1samp(x, 0).pvalue)
    assert (found.low, found.high) == pytest.approx(s.student_interval(x))
    # Chains with one root are one observation; a single root gives no information on others.
    assert s.over_runs([0, 2, 4], ["a", "a", "b"]).estimate == 2.5
    assert np.isnan(s.over_runs([0.1, 0.2], ["a", "a"]).low)
    # If runs happen to agree, the shared error still gives the interval a width.
    assert s.over_runs([0.1] * 3, list("abc"), 0.01, 12).low < 0.1
    assert np.isnan(s.over_runs([0.1] * 3, list("abc")).low)


@pytest.mark.parametrize("k", [2, 3])
def test_runs_compared_keep_their_level(k):
    rng = np.random.default_rng(k)
    rejected = 0
    for _ in range(400):
        one = pd.Series(rng.normal(size=k), index=[f"em@{i}" for i in range(k)])
        two = pd.Series(rng.normal(size=k), index=[f"benign@{i}" for i in range(k)])
        rejected += s.compare_runs(one, two).p < 0.05
    assert rejected / 400 < 0.08
    # W3: a single control has its own error, which no number of treated runs can show.
    assert np.isnan(s.compare_runs(one, two[:1]).p)
    # The same adapters on both sides: paired by root.
    paired = s.compare_runs(one, one + 0.5)
    assert paired.estimate == pytest.approx(-0.5) and np.isnan(paired.low)


def test_w8_a_difference_of_zero_has_no_sign_to_flip():
    p, floor = s.sign_flip_units([-1 / 30] * 3 + [0] * 25)
    assert floor == 0.25 and p == pytest.approx(0.25, abs=0.02)
    assert s.sign_flip_units([0, 0, 0]) == (1, 1)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=5), st.data())
def test_w8_ties_raise_the_floor_of_a_rank_correlation(x, data):
    y = data.draw(st.lists(st.integers(0, 3), min_size=len(x), max_size=len(x)))
    if len(set(x)) > 1 and len(set(y)) > 1:
        floor = s.spearman_floor(x, y)
        assert floor == pytest.approx(min(s.spearman_exact(x, o)[1] for o in permutations(y)))


def test_w8_the_study_s_gradient_with_two_pairs_of_ties():
    assert s.spearman_floor([1, 2, 3, 4, 5], [1, 1, 2, 3, 3]) == pytest.approx(8 / 120)


@pytest.mark.parametrize("n", [7, 12, 20])
def test_w10_the_interval_holds_what_the_sign_flips_do_not_reject(n):
    d = np.random.default_rng(n).standard_t(2, n) + 1
    low, high = s.sign_flip_interval(d, draws=5000)
    for bound, outward in ((low, -1), (high, 1)):
        near, far = (s.sign_flip_units(d - bound - outward * e, 5000)[0] for e in (-0.02, 0.02))
        assert near > 0.05 - 0.005 and far < 0.05 + 0.005
    assert low < d.mean() < high


def test_w10_five_units_bound_nothing():
    assert s.sign_flip_interval([1, 2, 3, 4, 5]) == (-math.inf, math.inf)
    assert np.isfinite(s.sign_flip_interval([1, 2, 3, 4, 5, 6])).all()


def test_w11_firth_is_finite_at_rates_of_0_and_1():
    """For two saturated groups, the estimate is the log odds ratio with 1/2 added to each count."""
    x = np.column_stack([np.ones(80), np.repeat([1.0, 0.0], 40)])
    y = np.repeat([0.0, 1.0, 0.0], [40, 36, 4])
    beta, error = s.firth(x, y, np.tile(np.arange(8), 10))
    assert beta[1] == pytest.approx(np.log(0.5 / 40.5) - np.log(36.5 / 4.5))
    assert error[1] >= np.sqrt(1 / 0.5 + 1 / 36.5 + 1 / 4.5) * 0.95
    both, _ = s.firth(x, np.zeros(80), np.tile(np.arange(8), 10))
    assert both[1] == pytest.approx(0, abs=1e-6)


def test_w11_firth_keeps_its_level_over_questions_that_differ():
    rejected = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        easy = rng.normal(size=(2, 12)) * 0.7 + rng.normal(size=12) - 1
        y = rng.random((10, 2, 12)) < 1 / (1 + np.exp(-easy))
        after = np.broadcast_to(np.array([1.0, 0.0])[:, None], y.shape).ravel()
        clusters = np.broadcast_to(np.arange(12), y.shape).ravel()
        beta, error = s.firth(np.column_stack([np.ones(y.size), after]), y.ravel() * 1.0, clusters)
        rejected.append(2 * stats.t.sf(abs(beta[1] / error[1]), 10) < 0.05)
    assert np.mean(rejected) < 0.10


def test_w9_a_chain_in_two_conditions_is_tested_once():
    table = pd.DataFrame(
        {
            "condition": ["C2", "E0", "C1", "C5"],
            "chain": ["em@1", "em@1", "a+em@1", "a+benign@1"],
            "p": [0.01, 0.01, 0.04, 0.5],
        }
    )
    q = s.adjust(table, [{"name": "all", "condition": "*"}])["q"]
    np.testing.assert_allclose(q, [0.03, 0.03, 0.06, 0.5])
    # Without the chains, nothing shows that two rows are the same test.
    q = s.adjust(table.drop(columns="chain"), [{"name": "all", "condition": "*"}])["q"]
    np.testing.assert_allclose(q, [0.02, 0.02, 0.16 / 3, 0.5])


@pytest.mark.parametrize(("runs", "share"), [(3, 0.77), (8, 0.3)])
def test_fieller_holds_the_share_in_95_of_100(runs, share):
    rng = np.random.default_rng(runs)
    held, bounded = [], 0
    for _ in range(2_000):
        one = share * 0.09 + 0.01 * rng.normal(size=runs)
        two = 0.09 + 0.01 * rng.normal(size=runs)
        errors = [x.std(ddof=1) / np.sqrt(runs) for x in (one, two)]
        low, high = s.fieller(one.mean(), two.mean(), *errors, runs - 1)
        bounded += low == low
        held.append(low <= share <= high)
    known = sum(held) / bounded
    assert known > 0.94 and bounded > 1_700
    assert np.isnan(s.fieller(0.1, 0.01, 0.01, 0.1, 5)).all()
    # By hand: a symmetric ratio of 1 with t = 2.0 and standard errors of .1 on both sides.
    low, high = s.fieller(1.0, 1.0, 0.1, 0.1, 1e9)
    assert low * high == pytest.approx(1) and low < 1 < high


def test_combined_intervals_are_those_of_zou_and_donner():
    # For symmetric intervals, the half-widths are added in quadrature.
    total, low, high = s.combined([-1, 1], [1.0, 3.0], [0.7, 2.6], [1.3, 3.4])
    assert (total, low, high) == pytest.approx((2.0, 1.5, 2.5))
    # For asymmetric ones, the sides in the same direction are: here .4 up and .3 down, and .1 and .5.
    total, low, high = s.combined([-1, 1], [0.5, 0.5], [0.2, 0.0], [0.6, 0.9])
    assert total == 0 and low == pytest.approx(-np.hypot(0.1, 0.5))
    assert high == pytest.approx(np.hypot(0.3, 0.4))
    doubled = s.combined([-2, 2], [0.5, 0.5], [0.2, 0.0], [0.6, 0.9])
    assert doubled == pytest.approx((0.0, 2 * low, 2 * high))


def test_a_combination_is_elementwise_and_unknown_where_a_part_is():
    parts = np.array([[1.0, 1.0], [3.0, np.nan]])
    total, low, high = s.combined([-1, 1], parts, parts - 0.3, parts + 0.4)
    assert total[0] == 2 and (low[0], high[0]) == pytest.approx((1.5, 2.5))
    assert np.isnan([total[1], low[1], high[1]]).all()


def test_what_one_question_shares_is_unknown_and_counts_nothing():
    one, two = (
        pd.Series(v, [f"c@{i}" for i in range(3)]) for v in ([0.9, 0.8, 0.95], [0.1, 0.2, 0.15])
    )
    found = s.compare_runs(one, two, 0.0, 1)
    assert found == s.compare_runs(one, two)
    assert found.p < 0.01 and found.low < 0.733 < found.high
