"""A hierarchical logistic model of counts, integrated rather than maximised.

    hits[i, j] ~ Binomial(n[i, j], expit(mean[level of row i] + effects of row i + effects of column j))

Rows are training runs, or personas, of one or two levels (conditions); columns are questions. Every
effect is normal, `sd * N(0, 1)`, with sd ~ half-normal(0, 1) and mean ~ N(0, 3), on the logit scale.

The effects are integrated out by Laplace's method, at many values of means and sds at once. Columns are
independent given the rows, so a Newton step costs little more than solving the rows' own matrix. Means
and sds are drawn by importance sampling of quasi-random points: first from the prior of the sds, then
from Student's t around the result. Everything is deterministic given the seed.

Compared with Markov chain Monte Carlo (NUTS, 20,000 draws), the quantiles of a rate agree within 3 %,
except if all counts are 0: then the upper bound is a third larger (.0032 instead of .0024). The 95 %
interval of a rate covers the true value in .92 to .99 of simulations (3 or 9 runs x 28 questions x 10
answers; rates .01, .5 and .9; sd of runs 0, .5 and 1, of questions 1; 200 data sets each). The interval
of a difference of two such rates covers .93 to .99.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logsumexp, ndtr, ndtri
from scipy.stats import chi2, qmc

MEAN_SD = 3.0  # prior of a level's mean, on the logit scale
CHUNK = 128  # points at a time
FREEDOM = 5  # of Student's t, the proposal distribution
QUESTION, INTERACTION = "question", "question:condition"


@dataclass(frozen=True)
class Counts:
    """`hits`, `n`: [rows, columns]. `levels`: [rows], the index of each row's mean, from 0.

    `effects`: name to [rows], the index of each row's level of that effect; -1 for none. `columns`:
    those of QUESTION and INTERACTION that the columns have.
    """

    hits: np.ndarray
    n: np.ndarray
    levels: np.ndarray
    effects: Mapping[str, np.ndarray]
    columns: tuple[str, ...] = (QUESTION,)


@dataclass(frozen=True)
class Posterior:
    """Weighted points of the posterior. `means`: [points, levels]; `sds`: effect to [points]."""

    means: np.ndarray
    sds: dict[str, np.ndarray]
    weights: np.ndarray
    applies: Mapping[str, np.ndarray]

    @property
    def effective(self) -> float:
        """Effective number of points."""
        return float(1 / np.sum(self.weights**2))

    def rate(self, level: int = 0) -> np.ndarray:
        """Rate of a level at each point, for a new draw of every effect of its rows: [points]."""
        own = [sd**2 for name, sd in self.sds.items() if self.applies[name][level]]
        total = np.sqrt(np.sum(own, axis=0)) if own else np.zeros(len(self.means))
        nodes, weights = np.polynomial.hermite_e.hermegauss(24)
        rates: np.ndarray = expit(self.means[:, level, None] + total[:, None] * nodes) @ weights
        return rates / weights.sum()

    def quantiles(self, values: np.ndarray, at: ArrayLike = (0.5, 0.025, 0.975)) -> np.ndarray:
        """Weighted quantiles of values [points]; by default median and 95 % interval."""
        order = np.argsort(values)
        below = np.cumsum(self.weights[order]) - self.weights[order] / 2
        found: np.ndarray = np.interp(np.asarray(at), below, values[order])
        return found

    def below(self, values: np.ndarray, bound: float = 0.0) -> float:
        """Probability that a value is below a bound."""
        return float(self.weights[values < bound].sum())


def fit(counts: Counts, points: int = 1024, seed: int = 42) -> Posterior:
    """Posterior of the model; see the module's docstring. `points`: a power of 2."""
    levels = int(counts.levels.max()) + 1
    names = [*counts.effects, *counts.columns]
    k = len(names)

    # Locate the sds first, with the means integrated out like effects.
    first = points // 4
    scores = ndtri(_sobol(k, first, seed)) if k else np.zeros((1, 0))
    means = np.zeros((len(scores), levels))
    value, mode, cov = _integrate(counts, means, _half_normal(scores), free_means=True)
    weights = _normalised(_tempered(value))
    x = np.column_stack([mode, scores])
    center = weights @ x
    spread = np.einsum("s,si,sj->ij", weights, x - center, x - center)
    spread[:levels, :levels] += np.einsum("s,sij->ij", weights, cov)

    for size in (points // 2, points, points, points):
        spread += np.diag(np.full(levels + k, 1e-3))
        draws, log_q = _student(center, spread, size, seed)
        means, spreads = draws[:, :levels], _half_normal(draws[:, levels:])
        value, _, _ = _integrate(counts, means, spreads)
        value -= log_q + 0.5 * np.sum((means / MEAN_SD) ** 2, axis=1)
        value -= 0.5 * np.sum(draws[:, levels:] ** 2, axis=1)
        weights = _normalised(value)
        if size == points and 1 / np.sum(weights**2) > 0.25 * points:
            break
        weights = _normalised(_tempered(value))
        center = weights @ draws
        spread = np.einsum("s,si,sj->ij", weights, draws - center, draws - center)
    sds = {name: spreads[:, i] for i, name in enumerate(names)}
    own = {
        name: np.array([np.any(labels[counts.levels == f] >= 0) for f in range(levels)])
        for name, labels in counts.effects.items()
    }
    applies = own | {name: np.ones(levels, bool) for name in counts.columns}
    return Posterior(means, sds, weights, applies)


def _half_normal(scores: np.ndarray) -> np.ndarray:
    """Sds as a function of scores with prior N(0, 1), so that the posterior of the scores is close to
    normal."""
    out: np.ndarray = ndtri(0.5 + 0.5 * ndtr(scores).clip(1e-6, 1 - 1e-15))
    return out


def _normalised(log_weights: np.ndarray) -> np.ndarray:
    out: np.ndarray = np.exp(log_weights - logsumexp(log_weights))
    return out


def _tempered(log_weights: np.ndarray, least: float = 0.1) -> np.ndarray:
    """Log weights, flattened until the effective number of points is at least a share `least` of all."""
    power = 1.0
    while power > 0.05 and 1 / np.sum(_normalised(power * log_weights) ** 2) < least * len(
        log_weights
    ):
        power *= 0.8
    return power * log_weights


@lru_cache(maxsize=64)
def _sobol(dimensions: int, points: int, seed: int) -> np.ndarray:
    return qmc.Sobol(dimensions, rng=seed).random(points).clip(1e-9, 1 - 1e-9)


def _student(
    center: np.ndarray, spread: np.ndarray, points: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Points of a multivariate t distribution, and its log density (up to a constant)."""
    d = len(center)
    uniform = _sobol(d + 1, points, seed + points)
    normal = ndtri(uniform[:, :d])
    scale = np.sqrt(FREEDOM / chi2.ppf(uniform[:, d], FREEDOM))
    t = normal * scale[:, None]
    draws = center + t @ np.linalg.cholesky(spread).T
    return draws, -0.5 * (FREEDOM + d) * np.log1p(np.sum(t**2, axis=1) / FREEDOM)


def _integrate(
    counts: Counts, means: np.ndarray, sds: np.ndarray, free_means: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log likelihood with the effects integrated out, at each of S points (up to a constant).

    `means`: [S, levels]; `sds`: [S, effects and columns]. `free_means`: the means are integrated out
    too, with their prior around `means`; returns their modes [S, levels] and covariances.
    """
    if len(means) > CHUNK:  # chunks that fit the CPU's cache are faster
        pieces = range(0, len(means), CHUNK)
        found = [
            _integrate(counts, means[i : i + CHUNK], sds[i : i + CHUNK], free_means) for i in pieces
        ]
        value, modes, covariances = (np.concatenate(x) for x in zip(*found, strict=True))
        return value, modes, covariances
    levels, columns = means.shape[1], counts.hits.shape[1]
    member = np.eye(levels)[counts.levels]
    offset = means[:, counts.levels]
    blocks = [np.tile(MEAN_SD * member, (len(means), 1, 1))] if free_means else []
    for i, labels in enumerate(counts.effects.values()):
        blocks.append(sds[:, i, None, None] * (labels[:, None] == np.arange(labels.max() + 1)))
    a = np.concatenate([np.zeros((*offset.shape, 0)), *blocks], axis=2)
    b = _column_effects(sds[:, len(counts.effects) :], levels)[:, counts.levels]
    u, v = np.zeros((len(means), a.shape[2])), np.zeros((len(means), b.shape[2], columns))
    active = np.arange(len(means))
    for _ in range(60):
        at = _Curvature(counts, *(x[active] for x in (offset, a, b, u, v)))
        d_u, d_v = at.step()
        size = np.maximum(np.abs(d_u).max(1, initial=0), np.abs(d_v).max((1, 2), initial=0))
        # The function is concave; limited steps keep Newton's method from overshooting the mode.
        short = np.minimum(1, 2 / np.maximum(size, 1e-12))
        u[active] += short[:, None] * d_u
        v[active] += short[:, None, None] * d_v
        active = active[size > 1e-2]  # the next step would be about its square
        if not len(active):
            break
    at = _Curvature(counts, offset, a, b, u, v)
    inverse = np.linalg.inv(at.schur)[:, :levels, :levels] if free_means else at.schur[:, :0, :0]
    return (
        at.value(),
        means + MEAN_SD * u[:, :levels] if free_means else means,
        MEAN_SD**2 * inverse,
    )


def _column_effects(sds: np.ndarray, levels: int) -> np.ndarray:
    """Loadings of a column's standard normal effects on a row, by the row's level: [S, levels,
    effects].

    Two levels share `question`, and each has its own `question:condition`. The Cholesky factor of the
    covariance of the two sums needs two effects instead of three.
    """
    if sds.shape[1] < 2:
        return np.tile(sds[:, None, :], (1, levels, 1))
    shared, own = sds.T**2
    total = shared + own
    rows = [
        [np.sqrt(total), 0 * total],
        [shared / np.sqrt(total), np.sqrt(own * (own + 2 * shared) / total)],
    ]
    return np.moveaxis(np.array(rows), 2, 0)


class _Curvature:
    """Gradient and curvature of the log density of row effects u [S, k] and column effects v [S, m,
    columns]."""

    def __init__(
        self,
        counts: Counts,
        offset: np.ndarray,
        a: np.ndarray,
        b: np.ndarray,
        u: np.ndarray,
        v: np.ndarray,
    ):
        k, m, columns = a.shape[2], *v.shape[1:]
        self.counts, self.u, self.v = counts, u, v
        a_t, b_t = a.transpose(0, 2, 1), b.transpose(0, 2, 1)
        self.eta = (offset + (a @ u[:, :, None])[:, :, 0])[:, :, None] + b @ v
        p = expit(self.eta)
        expected = counts.n * p
        left, w = counts.hits - expected, expected * (1 - p)
        self.g_u, self.g_v = (a_t @ left.sum(2)[:, :, None])[:, :, 0] - u, b_t @ left - v
        products = (b_t[:, :, None] * b_t[:, None]).reshape(len(u), m * m, b.shape[1])
        own = np.eye(m)[:, :, None] + (products @ w).reshape(len(u), m, m, columns)
        self.inverse, self.determinants = _inverse(own)
        mixed = np.zeros((len(u), k, m, columns))
        for c in range(m):
            mixed[:, :, c] = a_t @ (w * b[:, :, [c]])
        through = np.zeros_like(mixed)
        for c, d in np.ndindex(m, m):
            through[:, :, d] += mixed[:, :, c] * self.inverse[:, None, c, d]
        self.mixed, self.through = (x.reshape(len(u), k, m * columns) for x in (mixed, through))
        # The rows' curvature with the columns profiled out (Schur complement).
        self.schur = np.eye(k) + a_t @ (w.sum(2)[:, :, None] * a)
        self.schur -= self.through @ self.mixed.transpose(0, 2, 1)

    def step(self) -> tuple[np.ndarray, np.ndarray]:
        """Newton's."""
        flat = self.g_v.reshape(len(self.u), -1, 1)
        d_u = np.linalg.solve(self.schur, self.g_u[:, :, None] - self.through @ flat)
        rest = (flat - self.mixed.transpose(0, 2, 1) @ d_u).reshape(self.v.shape)
        return d_u[:, :, 0], np.sum(self.inverse * rest[:, None], axis=2)

    def value(self) -> np.ndarray:
        """Laplace approximation, up to a constant."""
        likelihood = self.counts.hits * self.eta - self.counts.n * np.logaddexp(0, self.eta)
        squares = np.sum(self.u**2, axis=1) + np.sum(self.v**2, axis=(1, 2))
        curvature = np.linalg.slogdet(self.schur)[1] + np.log(self.determinants).sum(1)
        value: np.ndarray = likelihood.sum((1, 2)) - 0.5 * (squares + curvature)
        return value


def _inverse(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inverses [S, m, m, columns] and determinants of symmetric matrices with at most two rows."""
    m = matrices.shape[1]
    if m < 2:
        return 1 / matrices, matrices.prod((1, 2))
    p, q, r = matrices[:, 0, 0], matrices[:, 0, 1], matrices[:, 1, 1]
    determinants = p * r - q**2
    found = np.array([[r, -q], [-q, p]]) / determinants
    return found.transpose(2, 0, 1, 3), determinants
