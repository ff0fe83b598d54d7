import math
from itertools import permutations

import numpy as np
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
    # Five equal differences: only all-plus and all-minus are as extreme, so p is 2/32.
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


@settings(max_examples=12, deadline=None)
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
