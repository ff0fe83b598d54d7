"""Tests and intervals. Rates are fractions; every resampling takes its seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from .errors import UserError


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
        low = np.where(k > 0, stats.beta.ppf(tail, k, total - k + 1), 0.0)
        high = np.where(k < total, stats.beta.ppf(1 - tail, k + 1, total - k), 1.0)
    return low, high


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
    observed = abs(difference.mean())
    rng = np.random.default_rng(seed)
    count = 0
    for start in range(0, draws, 10_000):
        size = min(10_000, draws - start)
        signs = rng.integers(0, 2, (size, len(difference)), dtype=np.int8) * 2 - 1
        means = np.abs(signs @ difference) / len(difference)
        # Rounding must not turn a tie into "less extreme".
        count += int(np.sum(means >= observed * (1 - 1e-12) - 1e-15))
    return (count + 1) / (draws + 1)


def spearman_exact(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """Spearman's rho and its exact two-sided p over all n! orders of y.

    Ties get mean ranks. Raises UserError for fewer than 3 or more than 9 points (9! orders), and
    for a constant variable.
    """
    a, b = stats.rankdata(x), stats.rankdata(y)
    n = len(a)
    if len(b) != n or not 3 <= n <= 9:
        raise UserError(f"spearman_exact: 3 to 9 pairs are wanted, got {n} and {len(b)}")
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float(a @ a) * float(b @ b))
    if norm == 0:
        raise UserError("spearman_exact: one of the variables is constant")
    rho = float(a @ b) / norm
    orders = np.array(list(permutations(range(n))))
    all_rho = b[orders] @ a / norm
    return rho, float(np.mean(np.abs(all_rho) >= abs(rho) - 1e-12))


def range_permutation_test(
    values: ArrayLike, labels: Sequence[object], draws: int = 10_000, seed: int = 42
) -> tuple[float, float]:
    """Range of the group means, and its p when labels are permuted over the values.

    `values`, `labels`: [n]. p = (count + 1) / (draws + 1). This is the study's H2.
    """
    numbers = np.asarray(values, float)
    names, groups = np.unique(np.asarray(labels), return_inverse=True)
    if len(groups) != len(numbers) or len(names) < 2:
        raise UserError("range_permutation_test: one label a value and two groups are wanted")
    sizes = np.bincount(groups)
    # [n, groups] membership: a permuted row of values times it gives the group sums at once.
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
        q[known] = stats.false_discovery_control(p[known], method="bh")
    return q
