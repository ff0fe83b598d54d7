"""Tests and intervals. Rates are fractions; every resampling takes a seed.

Each test also gives the smallest p that its design can produce: a p at that floor shows that the design
was exhausted, not how strong the effect is.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import permutations

import numpy as np
import pandas as pd
import scipy  # submodules are imported when they are used: marker counts need no scipy.stats
from numpy.typing import ArrayLike

from .errors import UserError

#: Families of tests: `statistics: families:` of the config; see `adjust`.
Families = Sequence[Mapping[str, object]]


def clopper_pearson(
    hits: ArrayLike, n: ArrayLike, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Exact binomial interval (Clopper and Pearson 1934), elementwise.

    Bounds are beta quantiles; 0 hits give a lower bound of 0, n hits an upper bound of 1, n = 0
    gives [0, 1].
    """
    k, total = np.asarray(hits, float), np.asarray(n, float)
    if np.any(k < 0) or np.any(k > total):
        raise UserError("clopper_pearson: hits must lie between 0 and n")
    tail = (1 - confidence) / 2
    with np.errstate(invalid="ignore"):
        low = np.where(k > 0, scipy.special.betaincinv(k, total - k + 1, tail), 0.0)
        high = np.where(k < total, scipy.special.betaincinv(k + 1, total - k, 1 - tail), 1.0)
    return low, high


def student_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean of at least two independent units."""
    x = np.asarray(values, float)
    half = scipy.stats.t.ppf((1 + confidence) / 2, len(x) - 1) * scipy.stats.sem(x)
    return float(x.mean() - half), float(x.mean() + half)


def combined(
    weights: ArrayLike, values: ArrayLike, lows: ArrayLike, highs: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted sum of independent estimates, with an interval from their intervals.

    `values`, `lows`, `highs` [estimates, ...]: each estimate's distances to its bounds, times its weight,
    are added in quadrature, so intervals may be asymmetric (Zou and Donner 2008, Statistics in Medicine
    27:1693). Returns sum, low, high [...]; NaN if any part is.
    """
    v, low, high = (np.asarray(part, float) for part in (values, lows, highs))
    w = np.asarray(weights, float).reshape(-1, *[1] * (v.ndim - 1))
    down, up = np.where(w > 0, [v - low, high - v], [high - v, v - low]) * w
    total = (w * v).sum(axis=0)
    reach = [np.sqrt(np.sum(np.square(side), axis=0)) for side in (down, up)]
    return total, total - reach[0], total + reach[1]


@dataclass(frozen=True)
class OverRuns:
    """A mean, or a difference of means, over independent training runs, with its interval.

    `units`: number of independent runs (for a difference, of the smaller side). `sd`: standard
    deviation over them. `half`: half-width of the part of the interval that is due to runs. Bounds and
    p are NaN with fewer than two units.
    """

    estimate: float
    low: float
    high: float
    p: float
    units: int
    sd: float
    half: float


def over_runs(
    values: ArrayLike,
    roots: Sequence[str],
    within: float = 0.0,
    within_units: float = np.inf,
    confidence: float = 0.95,
) -> OverRuns:
    """Mean of one number per chain, with the training run as the unit of replication.

    `roots`: root of each chain (see `chains.root`); chains with the same root are averaged first.
    `within`: standard error of what all runs share (personas, questions), estimated from `within_units`
    units. The two half-widths, each by its own t quantile, are added in quadrature (Zou and Donner
    2008, Statistics in Medicine 27:1693), which keeps the coverage when the spread of runs is small by
    chance. p: two-sided, from the level at which this interval reaches 0.
    """
    means = pd.Series(np.asarray(values, float)).groupby(np.asarray(roots, str)).mean()
    sd = float(means.std()) if len(means) > 1 else float("nan")
    sides = [(sd, len(means))]
    return _with_interval(float(means.mean()), sides, within, within_units, confidence)


def compare_runs(
    one: pd.Series,
    two: pd.Series,
    within: float = 0.0,
    within_units: float = np.inf,
    confidence: float = 0.95,
) -> OverRuns:
    """Mean of `one` minus mean of `two`, each with one number per chain, indexed by the chain's root.

    If both have the same roots (both continue the same adapters), differences are taken within roots.
    Otherwise the sides are independent: the interval includes each side's own half-width, and a side
    with a single run gives no interval, because its variation between runs is unknown. `within`: as in
    `over_runs`, for the difference.
    """
    first, second = (side.groupby(level=0).mean() for side in (one, two))
    if set(first.index) == set(second.index):
        return over_runs(first - second, list(first.index), within, within_units, confidence)
    sides = [(float(s.std()) if len(s) > 1 else float("nan"), len(s)) for s in (first, second)]
    difference = float(first.mean() - second.mean())
    return _with_interval(difference, sides, within, within_units, confidence)


def _with_interval(
    estimate: float,
    sides: Sequence[tuple[float, int]],
    within: float,
    within_units: float,
    confidence: float,
) -> OverRuns:
    """`sides`: (standard deviation over runs, number of runs) of each independent side."""
    units = min(n for _, n in sides)
    sd = float(np.sqrt(np.mean([sd**2 for sd, _ in sides])))
    spread = float(np.sqrt(sum(sd**2 / n for sd, n in sides)) + within)
    if units < 2 or np.isnan(sd) or not spread > 1e-12:
        nan = float("nan")
        return OverRuns(estimate, nan, nan, nan, units, sd, nan)

    def halves(confidence: float) -> tuple[float, float]:
        tail = (1 + confidence) / 2
        # Not scipy.stats.t, which is ten times slower.
        runs = [scipy.special.stdtrit(n - 1, tail) * s / np.sqrt(n) for s, n in sides]
        # With one shared unit its error is unknown, and given as 0; 0 times an infinite quantile is NaN.
        shared = scipy.special.stdtrit(min(within_units - 1, 1e9), tail) * within if within else 0.0
        return float(np.sqrt(np.sum(np.square(runs)))), float(shared)

    half, shared = halves(confidence)
    whole = float(np.hypot(half, shared))

    def beyond(log_p: float) -> float:
        return abs(estimate) - float(np.hypot(*halves(-np.expm1(log_p))))

    # The level at which the interval just reaches 0.
    lowest = np.log(1e-12)
    p = 1e-12 if beyond(lowest) > 0 else 1.0
    if p == 1.0 and beyond(-1e-12) > 0:
        p = float(np.exp(scipy.optimize.brentq(beyond, lowest, -1e-12)))
    return OverRuns(estimate, estimate - whole, estimate + whole, p, units, sd, half)


def fieller(
    above: float, below: float, error_above: float, error_below: float, degrees: float
) -> tuple[float, float]:
    """95 % interval of above / below, two independent estimates with standard errors; NaN if it is
    unbounded.

    Fieller 1954, Journal of the Royal Statistical Society B 16:175: the ratios r for which above - r below is
    within t standard errors of 0, with Student's t at `degrees` degrees of freedom. It is bounded on
    both sides only if `below` differs significantly from 0.
    """
    t = float(scipy.stats.t.ppf(0.975, degrees)) if degrees > 0 else float("inf")
    a = below**2 - (t * error_below) ** 2
    if not a > 0 or not math.isfinite(t * error_above):
        return float("nan"), float("nan")
    middle = above * below
    root = math.sqrt(middle**2 - a * (above**2 - (t * error_above) ** 2))
    return (middle - root) / a, (middle + root) / a


def sign_flip_test(
    x: ArrayLike, y: ArrayLike | None = None, draws: int = 10_000, seed: int = 42
) -> float:
    """Two-sided paired permutation test of mean(x - y) = 0 by random sign flips.

    `x`, `y`: [pairs]; `y` None tests x against 0. p = (count + 1) / (draws + 1), where count is the
    number of draws at least as extreme (Phipson and Smyth 2010), so p is never 0 and its smallest
    value is 1 / (draws + 1).
    """
    difference = np.asarray(x, float) - (0.0 if y is None else np.asarray(y, float))
    if difference.ndim != 1 or not len(difference):
        raise UserError("sign_flip_test: x and y must be equally long lists of numbers")
    return float(sign_flip_many(difference, draws, seed)[0])


def spearman_exact(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """Spearman's rho and its exact two-sided p over all n! orders of y.

    Ties get mean ranks. Raises UserError for fewer than 3 or more than 9 points (9! orders), and
    for a constant variable.
    """
    a, b = scipy.stats.rankdata(x), scipy.stats.rankdata(y)
    n = len(a)
    if len(b) != n or not 3 <= n <= 9:
        raise UserError(f"spearman_exact: expected 3 to 9 pairs, got {n} and {len(b)}")
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float(a @ a) * float(b @ b))
    if norm == 0:
        raise UserError("spearman_exact: one of the variables is constant")
    rho = float(a @ b) / norm
    orders = np.array(list(permutations(range(n))))
    all_rho = b[orders] @ a / norm
    return rho, float(np.mean(np.abs(all_rho) >= abs(rho) - 1e-12))


def spearman_floor(x: ArrayLike, y: ArrayLike) -> float:
    """The smallest p that `spearman_exact` can give for these values, ties included."""
    b = np.sort(scipy.stats.rankdata(y))
    a = np.sort(scipy.stats.rankdata(x))
    # The most extreme orders: both increase together, or one decreases.
    return min(spearman_exact(a, b)[1], spearman_exact(a, b[::-1])[1])


def range_permutation_test(
    values: ArrayLike, labels: Sequence[object], draws: int = 10_000, seed: int = 42
) -> tuple[float, float]:
    """Range of the group means, and its p when labels are permuted over the values.

    `values`, `labels`: [n]. p = (count + 1) / (draws + 1). This is the study's test of H2.
    """
    numbers = np.asarray(values, float)
    names, groups = np.unique(np.asarray(labels), return_inverse=True)
    if len(groups) != len(numbers) or len(names) < 2:
        raise UserError("range_permutation_test: expected one label per value and two groups")
    sizes = np.bincount(groups)
    # Membership [n, groups]: permuted values times this matrix give all group sums at once.
    member = np.eye(len(names))[groups]

    def spread(rows: np.ndarray) -> np.ndarray:
        means = rows @ member / sizes
        spread: np.ndarray = means.max(axis=-1) - means.min(axis=-1)
        return spread

    observed = float(spread(numbers))
    rng = np.random.default_rng(seed)
    count = 0
    for start in range(0, draws, 5_000):
        rows = rng.permuted(np.tile(numbers, (min(5_000, draws - start), 1)), axis=1)
        count += int(np.sum(spread(rows) >= observed - 1e-12))
    return observed, (count + 1) / (draws + 1)


def bh(p_values: ArrayLike) -> np.ndarray:
    """Benjamini-Hochberg q values; NaN entries stay NaN and do not count as tests."""
    p = np.asarray(p_values, float)
    q = np.full(p.shape, np.nan)
    known = ~np.isnan(p)
    if known.any():
        q[known] = scipy.stats.false_discovery_control(p[known], method="bh")
    return q


def adjust(
    table: pd.DataFrame,
    families: Families,
    labels: Sequence[str] = ("condition", "source", "seed"),
) -> pd.DataFrame:
    """Assign each test to a family and compute its Benjamini-Hochberg q within it.

    A chain may be in two conditions; its test is then in two rows. If the table names the tested chains
    (`chain` or `chains`), rows that differ only in `labels` count as one test of the family.

    `families`: in order, each `{name: ..., <column>: pattern or list of patterns, ...}`; a row belongs
    to the first family whose columns all match (shell patterns, `*` and `?`). Rows of no family get an
    empty family and no q. A column that is missing in the table raises UserError.
    """
    table = table.copy()
    names = pd.Series("", index=table.index, dtype=object)
    for family in families:
        inside = pd.Series(True, index=table.index)
        for column, patterns in family.items():
            if column == "name":
                continue
            if column not in table:
                raise UserError(
                    f"families: {family.get('name')}: no column {column!r}; "
                    f"available: {', '.join(map(str, table.columns))}"
                )
            wanted = [patterns] if isinstance(patterns, str) else list(patterns)  # type: ignore[call-overload]
            inside &= (
                table[column]
                .astype(str)
                .map(lambda v, wanted=wanted: any(fnmatchcase(v, str(w)) for w in wanted))
                .astype(bool)
            )
        names[inside & (names == "")] = str(family["name"])
    table["family"] = names
    table["q"] = np.nan
    what = [c for c in table.columns if c not in labels] if {"chain", "chains"} & {*table} else []
    for name, rows in table.groupby("family"):
        if name:
            # Index of each row's distinct test, and the first row of each test.
            tests = (
                rows.groupby(what, dropna=False).ngroup()
                if what
                else pd.Series(rows.index, rows.index)
            )
            first = ~tests.duplicated()
            q = pd.Series(bh(rows.loc[first, "p"]), index=tests[first])
            table.loc[rows.index, "q"] = tests.map(q)
    return table


def newcombe(
    hits: int, n: int, hits_before: int, n_before: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval for a difference of two proportions, from their Wilson intervals.

    Newcombe 1998, Statistics in Medicine 17:873, method 10.
    """
    one = scipy.stats.binomtest(hits, n).proportion_ci(confidence, method="wilson")
    two = scipy.stats.binomtest(hits_before, n_before).proportion_ci(confidence, method="wilson")
    p, p_before = hits / n, hits_before / n_before
    low = p - p_before - np.hypot(p - one.low, two.high - p_before)
    high = p - p_before + np.hypot(one.high - p, p_before - two.low)
    return float(low), float(high)


def fisher(hits: int, n: int, hits_before: int, n_before: int) -> tuple[float, float]:
    """Fisher's exact two-sided p for two proportions, and the smallest p that the margins allow."""

    def p_of(first: int) -> float:
        second = hits + hits_before - first
        return float(
            scipy.stats.fisher_exact([[first, n - first], [second, n_before - second]]).pvalue
        )

    total = hits + hits_before
    return p_of(hits), min(p_of(max(0, total - n_before)), p_of(min(total, n)))


def sign_flip_units(
    differences: ArrayLike, draws: int = 10_000, seed: int = 42
) -> tuple[float, float]:
    """Two-sided sign-flip p for mean 0 over independent units, and its smallest possible value.

    All 2^n sign patterns are counted if there are no more than `draws` (p = count / 2^n, including the
    observed pattern), else `draws` random ones as in `sign_flip_test`. A difference of 0 has no sign to
    flip: the smallest p is 2^(1 - differences other than 0).
    """
    d = np.asarray(differences, float)
    n = len(d)
    smallest = min(1.0, 2.0 ** (1 - int(np.count_nonzero(d))))
    if 2**n > draws:
        return sign_flip_test(d, None, draws, seed), max(1 / (draws + 1), smallest)
    signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    means = np.abs(signs @ d) / n
    p = float(np.mean(means >= abs(d.mean()) * (1 - 1e-12) - 1e-15))
    return p, smallest


def sign_flip_interval(
    differences: ArrayLike, draws: int = 10_000, seed: int = 42, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of all means that `sign_flip_units` does not reject, so that interval and test agree.

    Flipping the signs of a subset makes the mean less extreme exactly if the subset's own mean lies on
    that side. So the bounds are order statistics of the means of all subsets (Hartigan 1969, Journal of
    the American Statistical Association 64:1303), or of random subsets and their complements. The
    interval is infinite if no p can be small enough.
    """
    d = np.asarray(differences, float)
    n, level = len(d), 1 - confidence
    if 2**n > draws:
        half = np.random.default_rng(seed).integers(0, 2, (draws, n))
        member = np.concatenate([half, 1 - half])
        rejected = int(level * (draws + 1)) - 1
    else:
        member = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        rejected = int(level / 2 * 2**n * (1 + 1e-12))
        rejected = rejected - 1  # the empty subset, i.e. the data unchanged
    sizes = member.sum(axis=1)
    means = np.sort(member[sizes > 0] @ d / sizes[sizes > 0])
    if not 0 <= rejected < len(means):
        return -math.inf, math.inf
    return float(means[rejected]), float(means[-1 - rejected])


def firth(
    x: np.ndarray, y: np.ndarray, clusters: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Coefficients and standard errors of Firth's penalised logistic regression; None without
    convergence.

    `x`: [n, k] with a column of ones, `y`: [n] of 0 and 1, `clusters`: [n] labels. Jeffreys' prior
    keeps the estimate finite if a side is all hits or all misses (Firth 1993, Biometrika 80:27; Heinze
    and Schemper 2002, Statistics in Medicine 21:2409). The standard error is the larger of two: the
    model's, which treats answers as independent, and the bias-reduced cluster-robust one (Mancl and
    DeRouen 2001, Biometrics 57:126), which is far too small if a side has hardly any hits.
    """
    beta = np.zeros(x.shape[1])
    for _ in range(200):
        p = scipy.special.expit(x @ beta)
        w = p * (1 - p)
        information = x.T @ (w[:, None] * x)
        try:
            covariance = np.linalg.inv(information)
        except np.linalg.LinAlgError:
            return None
        leverage = w * np.einsum("ij,jk,ik->i", x, covariance, x)
        left = y - p + leverage * (0.5 - p)
        step = covariance @ (x.T @ left)
        if np.abs(step).max() < 1e-8:
            break
        beta = beta + step * min(1.0, 2.0 / np.abs(step).max())
    else:
        return None
    robust = np.zeros_like(covariance)
    for name in np.unique(clusters):
        own = clusters == name
        rest = information - x[own].T @ (w[own, None] * x[own])
        try:
            moved = np.linalg.solve(rest, x[own].T @ left[own])
        except np.linalg.LinAlgError:
            continue  # a coefficient is identified by this cluster alone
        robust += np.outer(moved, moved)
    return beta, np.sqrt(np.maximum(np.diag(robust), np.diag(covariance)))


def sign_flip_many(differences: ArrayLike, draws: int = 10_000, seed: int = 42) -> np.ndarray:
    """`sign_flip_test` for every row of [cells, pairs] with the same flips; p [cells].

    It takes one matrix product per block of draws: 10,000 draws of 66 pairs for 50 cells take well
    under a second.
    """
    d = np.atleast_2d(np.asarray(differences, float))
    # Rounding must not turn a tie into "less extreme".
    observed = np.abs(d.mean(axis=1)) * (1 - 1e-12) - 1e-15
    rng = np.random.default_rng(seed)
    count = np.zeros(len(d))
    for start in range(0, draws, 10_000):
        size = min(10_000, draws - start)
        signs = rng.integers(0, 2, (size, d.shape[1]), dtype=np.int8) * 2.0 - 1
        count += (np.abs(signs @ d.T) / d.shape[1] >= observed).sum(axis=0)
    out: np.ndarray = (count + 1) / (draws + 1)
    return out


def one_against_others(value: float, others: ArrayLike) -> tuple[float, float]:
    """The study's test of H1: a value minus the mean of the others, and the one-sided p of its rank.

    The label "own" is permuted over all n + 1 values, so p is the share of values at least as large.
    Its smallest value is 1 / (n + 1), so 10 others cannot give less than .09.
    """
    rest = np.asarray(others, float)
    p = (1 + np.sum(rest >= value - 1e-12)) / (len(rest) + 1)
    return float(value - rest.mean()), float(p)


def welch_margin(x: ArrayLike, y: ArrayLike, margin: float = 0.0) -> float:
    """One-sided Welch p for mean(x) - mean(y) <= margin; NaN if neither side varies.

    The study's pre-registered comparison of three seeds' rates, with a margin of .15.
    """
    a, b = np.asarray(x, float), np.asarray(y, float)
    if len(a) < 2 or len(b) < 2 or (np.ptp(a) == 0 and np.ptp(b) == 0):
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one side may have no spread
        test = scipy.stats.ttest_ind(a - margin, b, equal_var=False, alternative="greater")
    return float(test.pvalue)


def welch_conjunction(
    treated: ArrayLike, controls: Sequence[ArrayLike], margin: float = 0.15, least: float = 0.5
) -> dict[str, float | bool]:
    """The study's pre-registered conjunction for marker transfer, on rates per seed.

    Passes if the treated mean is at least `least` and beats every control by `margin` (one-sided
    Welch, p < .05 each). Returns `passes`, `p` (the largest; NaN if rates do not vary) and
    `informative`: below `least` the comparisons say nothing, which is how the study's cells failed.
    """
    rates = np.asarray(treated, float)
    p_values = [welch_margin(rates, c, margin) for c in controls]
    installed = bool(rates.mean() >= least)
    p = float(np.max(p_values)) if not np.isnan(p_values).any() else float("nan")
    return {"passes": installed and p < 0.05, "p": p, "informative": installed}


def tost_proportions(hits: int, n: int, hits_before: int, n_before: int, margin: float) -> float:
    """Equivalence of two proportions: the larger p of two one-sided score tests.

    Miettinen and Nurminen 1985, Statistics in Medicine 4:213 (Farrington and Manning's test with the
    variance times N / (N - 1)), through statsmodels. A small p shows that the difference is within +-
    margin.
    """
    from statsmodels.stats.proportion import test_proportions_2indep

    # The larger rate first: if the first side has 0 hits, statsmodels' constrained estimate is NaN.
    one, two = sorted([(hits, n), (hits_before, n_before)], key=lambda c: c[0] / c[1], reverse=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # ratios of zero rates; they are not used
        p_values = [
            test_proportions_2indep(
                *one, *two, value=value, method="score", alternative=side
            ).pvalue
            for value, side in ((-margin, "larger"), (margin, "smaller"))
        ]
    return float(max(p_values))


def tost_units(differences: ArrayLike, margin: float) -> float:
    """Equivalence from independent units: the larger p of two one-sided t tests (Schuirmann 1987).

    NaN with fewer than two units, or if they do not vary: without spread the error is unknown.
    """
    d = np.asarray(differences, float)
    if len(d) < 2 or np.ptp(d) == 0:
        return float("nan")
    error = scipy.stats.sem(d)
    distance = (margin - abs(d.mean())) / error
    return float(scipy.stats.t.sf(distance, len(d) - 1))


def fisher_power(
    rate: float, n: int, rate_before: float, n_before: int, alpha: float = 0.05
) -> float:
    """Exact power of Fisher's two-sided test: the probability of p < alpha at these two rates.

    Sums over every table. Completions are treated as independent, so it is an upper bound if questions
    repeat.
    """
    first = scipy.stats.binom.pmf(np.arange(n + 1), n, rate)
    second = scipy.stats.binom.pmf(np.arange(n_before + 1), n_before, rate_before)
    power = 0.0
    for total in range(n + n_before + 1):
        inside = np.arange(max(0, total - n_before), min(n, total) + 1)
        weight = first[inside] * second[total - inside]
        if weight.sum() < 1e-12:
            continue
        pmf = scipy.stats.hypergeom.pmf(inside, n + n_before, total, n)
        order = np.argsort(pmf)
        # Two-sided p: all tables at most as likely as this one, with ties up to rounding.
        cumulative = np.concatenate([[0.0], np.cumsum(pmf[order])])
        p = cumulative[np.searchsorted(pmf[order], pmf * (1 + 1e-7), side="right")]
        power += float(weight[p < alpha].sum())
    return power
