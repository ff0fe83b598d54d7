"""Geometry of persona vectors: how similar the personas are inside the model.

A persona vector is the mean of its activations over questions. M1 is the mean cosine over all pairs
of personas. Arrays are [persona, hidden] (vectors) or [persona, question, hidden] (stacks).

The n(n-1)/2 pairs of n personas are not independent: each persona is in n-1 of them. Tests and
intervals over pairs are therefore overconfident by a factor that grows with n; `persona_effects`,
`jackknife_interval` and `swap_test` use the persona as the unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg, stats
from scipy.spatial.distance import pdist

from .errors import UserError
from .statistics import student_interval


def cosine_matrix(vectors: ArrayLike) -> np.ndarray:
    """Cosines between the rows of [persona, hidden]; a zero vector raises UserError."""
    v = np.asarray(vectors, float)
    if v.ndim != 2 or len(v) < 2:
        raise UserError("cosine_matrix: expected two or more vectors [persona, hidden]")
    norms = np.linalg.norm(v, axis=1, keepdims=True)
    if not np.all(norms > 0) or not np.all(np.isfinite(v)):
        raise UserError("cosine_matrix: a persona vector is zero or not finite")
    unit = v / norms
    cosines: np.ndarray = np.clip(unit @ unit.T, -1.0, 1.0)
    return cosines


def pair_cosines(vectors: ArrayLike) -> np.ndarray:
    """The n(n-1)/2 cosines above the diagonal, row by row."""
    cosines = cosine_matrix(vectors)
    pairs: np.ndarray = cosines[np.triu_indices(len(cosines), k=1)]
    return pairs


def mean_offdiagonal_cosine(vectors: ArrayLike) -> float:
    """M1: mean cosine over all pairs of persona vectors, not centred."""
    return float(pair_cosines(vectors).mean())


def mean_angle(vectors: ArrayLike) -> float:
    """Mean angle in degrees over all pairs of persona vectors.

    Near 1, cosines hide angles: .90 is 25.8 degrees, .97 is still 14.1.
    """
    return float(np.degrees(np.arccos(pair_cosines(vectors))).mean())


def log_distance(vectors: ArrayLike) -> float:
    """log(1 - M1), a scale on which changes near 1 are comparable to others; NaN if M1 is 1."""
    distance = 1 - mean_offdiagonal_cosine(vectors)
    return float(np.log(distance)) if distance > 1e-12 else float("nan")


def centred(vectors: ArrayLike) -> np.ndarray:
    """Vectors minus their mean over personas, i.e. without the common part."""
    v = np.asarray(vectors, float)
    out: np.ndarray = v - v.mean(axis=0, keepdims=True)
    return out


def spread(vectors: ArrayLike) -> float:
    """Root mean square distance of the personas from their mean, divided by the norm of that mean.

    M1 alone can rise because the common part grew; this metric shows the distances.
    """
    v = np.asarray(vectors, float)
    return float(np.sqrt((centred(v) ** 2).sum(axis=1).mean()) / np.linalg.norm(v.mean(axis=0)))


def effective_rank(vectors: ArrayLike) -> float:
    """exp of the entropy of the centred vectors' normalised singular values (Roy & Vetterli 2007).

    Between 1 and min(personas - 1, hidden).
    """
    s = np.linalg.svd(centred(vectors), compute_uv=False)
    share = s[s > s.max() * 1e-12] / s[s > s.max() * 1e-12].sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def pc1_share(vectors: ArrayLike) -> float:
    """Share of the variance between personas that lies along its first principal component."""
    variance = np.linalg.svd(centred(vectors), compute_uv=False) ** 2
    total = float(variance.sum())
    return float(variance[0]) / total if total > 0 else float("nan")


@dataclass(frozen=True)
class Grams:
    """Inner products of persona vectors: over all questions first, then without each question in turn.

    `means`: [1 + questions, persona, persona], of the mean vectors. `unbiased`: the same without the
    noise of the questions, only from products of different questions; NaN with fewer than two.
    """

    means: np.ndarray
    unbiased: np.ndarray


def grams(stack: ArrayLike) -> Grams:
    """Inner products of the persona vectors of a stack [persona, question, hidden].

    Noise makes a vector longer but does not change its products with vectors of other questions, so
    cosines come out too small. The mean of x_p · x_p' over all pairs of *different* questions has no
    such bias. It is what odd against even questions estimate, averaged over all ways to halve the
    questions.
    """
    by_question = np.asarray(stack, float).transpose(1, 0, 2)
    sums = by_question.sum(axis=0)
    own = by_question @ by_question.transpose(0, 2, 1)
    cross = by_question @ sums.T
    whole = sums @ sums.T
    if len(own) > 1:
        left = whole - cross - cross.transpose(0, 2, 1) + own
        totals = np.concatenate([whole[None], left])
        squares = np.concatenate([own.sum(axis=0)[None], own.sum(axis=0) - own])
    else:
        totals, squares = whole[None], own
    count = np.full((len(totals), 1, 1), len(own) - 1.0)
    count[0] = len(own)
    pairs = count * (count - 1)
    unbiased = np.divide(
        totals - squares, pairs, out=np.full(totals.shape, np.nan), where=pairs > 0
    )
    return Grams(totals / count**2, unbiased)


def gram_cosines(gram: ArrayLike) -> np.ndarray:
    """Cosines from inner products [..., n, n]; NaN if a squared length is not positive."""
    g = np.asarray(gram, float)
    squares = np.diagonal(g, axis1=-2, axis2=-1)
    lengths = np.sqrt(np.where(squares > 0, squares, np.nan))
    out: np.ndarray = g / (lengths[..., :, None] * lengths[..., None, :])
    return out


def vectors_of(gram: ArrayLike) -> np.ndarray:
    """Vectors [..., n, n] with these inner products: the same up to a rotation, in n dimensions."""
    values, axes = np.linalg.eigh(np.asarray(gram, float))
    out: np.ndarray = axes * np.sqrt(np.clip(values, 0, None))[..., None, :]
    return out


def left_out(stack: ArrayLike) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every metric without each persona, and without each question: {metric: ([persona], [question])}.

    For m1, m1_unbiased and `METRICS`. These depend only on lengths and angles, so vectors with the same
    inner products suffice. Empty if fewer than two units would remain.
    """
    found = grams(stack)
    n = found.means.shape[-1]
    keep = [np.delete(np.arange(n), i) for i in range(n)] if n > 2 else []
    vectors = vectors_of(found.means)
    fewer = [vectors[0][rows] for rows in keep]
    out = {}
    for name, metric in {"m1": mean_offdiagonal_cosine, **METRICS}.items():
        personas = [metric(some) for some in fewer]
        out[name] = np.array(personas), np.array([metric(some) for some in vectors[1:]])
    cosines = gram_cosines(found.unbiased)
    without = [mean_pairs(cosines[0][np.ix_(rows, rows)]) for rows in keep]
    out["m1_unbiased"] = np.array(without), mean_pairs(cosines[1:])
    return out


def jackknife_error(values: ArrayLike) -> float:
    """Jackknife standard error from leave-one-out values; NaN with fewer than three units.

    Efron and Tibshirani 1993, equation 11.5.
    """
    x = np.asarray(values, float)
    if len(x) < 3:
        return float("nan")
    return float(np.sqrt((len(x) - 1) / len(x) * ((x - x.mean()) ** 2).sum()))


def unbiased_cosines(stack: ArrayLike) -> np.ndarray:
    """Cosines between personas without the noise of the questions, from [persona, question, hidden].

    See `grams`. NaN with one question, or if a persona's squared length without noise is not positive.
    """
    return gram_cosines(grams(stack).unbiased[0])


def m1_unbiased(stack: ArrayLike) -> float:
    """M1 without the noise of the questions; NaN if any of the `unbiased_cosines` is."""
    return float(mean_pairs(unbiased_cosines(stack)))


def resampled_cosines(stack: ArrayLike, draws: int, seed: int) -> np.ndarray:
    """Bootstrap over questions: cosine matrices of the persona vectors.

    `stack`: [persona, question, hidden]; returns float32 [draws, persona, persona]. All personas answer
    the same questions, so each question is drawn for all of them together. The draws depend only on
    `seed` and the number of questions. Two chains with the same questions therefore get the same draws,
    and their difference can be taken draw by draw. One question gives no draws.
    """
    values = np.asarray(stack, np.float32)
    personas, questions, hidden = values.shape
    if questions < 2:
        return np.zeros((0, personas, personas), np.float32)
    rng = np.random.default_rng(seed)
    flat = values.transpose(1, 0, 2).reshape(questions, personas * hidden)
    out = []
    chunk = max(1, 50_000_000 // (personas * hidden))
    for start in range(0, draws, chunk):
        counts = rng.multinomial(
            questions, np.full(questions, 1 / questions), size=min(chunk, draws - start)
        )
        vectors = (counts.astype(np.float32) @ flat).reshape(-1, personas, hidden)
        vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
        out.append(vectors @ vectors.transpose(0, 2, 1))
    return np.concatenate(out)


def mean_pairs(cosines: ArrayLike, weights: np.ndarray | None = None) -> np.ndarray:
    """M1 of cosine matrices [..., n, n]; `weights` [..., n] count resampled personas.

    A persona drawn twice would form a pair with itself, whose cosine is 1 by construction; such pairs
    are left out.
    """
    c = np.asarray(cosines, float)
    n = c.shape[-1]
    w = np.ones(n) if weights is None else np.asarray(weights, float)
    off = c * (1 - np.eye(n))
    total = np.einsum("...i,...ij,...j->...", w, off, w)
    out: np.ndarray = total / ((w.sum(-1)) ** 2 - (w**2).sum(-1))
    return out


def persona_weights(personas: int, draws: int, seed: int) -> np.ndarray:
    """How often each persona is drawn, [draws, persona]; draws of one persona only are redrawn."""
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(personas, np.full(personas, 1 / personas), size=draws)
    while (single := weights.max(axis=1) == personas).any():
        weights[single] = rng.multinomial(
            personas, np.full(personas, 1 / personas), size=int(single.sum())
        )
    return np.asarray(weights, float)


def percentiles(draws: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap draws; NaN without draws."""
    values = np.asarray(draws, float)
    if not values.size:
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def basic_interval(
    estimate: float, draws: ArrayLike, confidence: float = 0.95
) -> tuple[float, float]:
    """Basic (pivotal) bootstrap interval: 2 estimate - quantiles (Davison and Hinkley 1997, 5.2).

    Noise in the persona vectors lowers M1, and resampling adds that noise again, so percentile
    intervals are shifted twice in the wrong direction. With few questions they miss the true value in
    up to nine tenths of simulated runs. If the estimate itself is that biased, it can lie outside this
    interval.
    """
    low, high = percentiles(draws, confidence)
    return 2 * estimate - high, 2 * estimate - low


def persona_effects(after: ArrayLike, before: ArrayLike | None = None) -> np.ndarray:
    """Each persona's share of M1, or of its change: jackknife pseudo-values, [persona].

    M1 is a U-statistic over pairs; its pseudo-values n M1 - (n-1) M1_without_i (Arvesen 1969,
    Annals of Mathematical Statistics 40:2076) average to M1 exactly. If a pair's change is the sum of
    its two personas' effects, they equal those effects and are independent of each other. Mean cosines
    per persona are not independent: each contains all other personas, so flipping their signs is
    anticonservative. `after`, `before`: vectors [persona, hidden]. NaN with fewer than three personas.
    """
    c = cosine_matrix(after)
    return cosine_effects(c if before is None else c - cosine_matrix(before))


def cosine_effects(cosines: ArrayLike) -> np.ndarray:
    """`persona_effects` from cosines, or from their changes, [persona, persona]."""
    c = np.asarray(cosines, float)
    n = len(c)
    if n < 3:
        return np.full(n, np.nan)
    rows = c.sum(axis=1) - np.diag(c)
    out: np.ndarray = 2 * (rows - rows.sum() / (2 * (n - 1))) / (n - 2)
    return out


def jackknife_interval(effects: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Student interval of the mean of pseudo-values; NaN with fewer than three."""
    values = np.asarray(effects, float)
    if len(values) < 3 or np.isnan(values).any():
        return float("nan"), float("nan")
    return student_interval(values, confidence)


def swap_test(
    after: ArrayLike, before: ArrayLike, draws: int = 10_000, seed: int = 42
) -> tuple[float, float]:
    """Persona-label permutation of M1's change: two-sided p and its smallest value.

    Each persona's two vectors are swapped or not, and M1 is recomputed on both mixed sets. The test is
    exact if the vectors before and after are exchangeable within each persona, i.e. under the null
    hypothesis that the second training is a replicate of the first. All 2^(n-1) swaps are used if there
    are no more than `draws`.
    """
    one, two = np.asarray(after, float), np.asarray(before, float)
    n = len(one)
    gram = cosine_matrix(np.concatenate([one, two]))
    exact = 2 ** (n - 1) <= draws
    if exact:
        swap = (np.arange(2 ** (n - 1))[:, None] >> np.arange(n)) & 1
    else:
        swap = np.random.default_rng(seed).integers(0, 2, (draws, n))

    def m1_of(first: np.ndarray) -> np.ndarray:
        chosen = np.concatenate([first, 1 - first], axis=1).astype(float)
        total = np.einsum("di,di->d", chosen @ gram, chosen)
        means: np.ndarray = (total - n) / (n * (n - 1))
        return means

    changes = np.abs(m1_of(1 - swap) - m1_of(swap))
    observed = abs(mean_offdiagonal_cosine(one) - mean_offdiagonal_cosine(two)) - 1e-12
    count = int((changes >= observed).sum())
    return (
        (count / len(swap), 1 / len(swap))
        if exact
        else ((count + 1) / (draws + 1), 1 / (draws + 1))
    )


def linear_cka(one: ArrayLike, two: ArrayLike) -> float:
    """Linear centred kernel alignment of two sets with the same rows, [n, hidden] each; in [0, 1].

    Kornblith et al. 2019 (ICML), equation 2 with linear kernels. With a dozen personas in thousands of
    dimensions it is near 1 even for unrelated vectors; compare it with the replicate's.
    """
    x, y = centred(one), centred(two)
    kx, ky = x @ x.T, y @ y.T
    norm = np.linalg.norm(kx) * np.linalg.norm(ky)
    return float((kx * ky).sum() / norm) if norm > 0 else float("nan")


@cache
def unrelated_cka(personas: int, hidden: int, pairs: int = 20) -> float:
    """Mean `linear_cka` of random vectors: its value for two unrelated models."""
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(pairs, 2, personas, hidden))
    return float(np.mean([linear_cka(one, two) for one, two in drawn]))


def procrustes(one: ArrayLike, two: ArrayLike) -> float:
    """Share of the squared distances that remains after the best rotation and scaling; in [0, 1].

    1 - (sum of singular values of X'Y)^2 for X and Y centred and with unit Frobenius norm: the
    disparity of orthogonal Procrustes analysis (Schönemann 1966, Psychometrika 31:1), from inner
    products. Both sets have the same rows, [n, hidden]. NaN if all vectors of a set are equal.
    """
    x, y = (vectors_of(c @ c.T) for c in (centred(one), centred(two)))
    norm = np.linalg.norm(x) * np.linalg.norm(y)
    if not norm > 0:
        return float("nan")
    fit = np.linalg.svd(x.T @ y, compute_uv=False).sum() / norm
    return float(1 - min(fit, 1.0) ** 2)


#: Number of leading directions whose subspaces `subspace_angle` compares.
LEADING = 3


def subspace_angle(one: ArrayLike, two: ArrayLike) -> float:
    """Mean principal angle in degrees between the leading subspaces of the differences between
    personas.

    The subspaces are spanned by the first `LEADING` principal components of each set, or by all if
    there are fewer (Björck and Golub 1973, Mathematics of Computation 27:579). 0: equal subspaces. 90:
    orthogonal ones.
    """
    spans = []
    for vectors in (one, two):
        _, values, axes = np.linalg.svd(centred(vectors), full_matrices=False)
        spans.append(axes[:LEADING][values[:LEADING] > values[0] * 1e-9])
    if not min(map(len, spans)):
        return float("nan")
    return float(np.degrees(linalg.subspace_angles(*(span.T for span in spans)).mean()))


def angle_lost(after: ArrayLike, before: ArrayLike) -> float:
    """Lost share of the mean angle between personas: 1 - after / before."""
    was = mean_angle(before)
    return 1 - mean_angle(after) / was if was > 0 else float("nan")


def common_shift(odd: ArrayLike, even: ArrayLike) -> float:
    """Share of the personas' squared shifts that is common to all of them.

    ||mean shift||^2 / mean ||shift||^2; 1 if all shifts are equal, about 1/n for n unrelated shifts.
    `odd`, `even`: the shifts [persona, hidden] from two halves of the questions; their products contain
    no squared noise of the questions. NaN if the halves agree on no shift.
    """
    one, two = np.asarray(odd, float), np.asarray(even, float)
    total = float((one * two).sum(axis=1).mean())
    return float(one.mean(axis=0) @ two.mean(axis=0)) / total if total > 0 else float("nan")


def mean_distance(vectors: ArrayLike) -> float:
    """Mean Euclidean distance over pairs of personas, in the model's own units."""
    return float(pdist(np.asarray(vectors, float)).mean())


def distance_agreement(one: ArrayLike, two: ArrayLike) -> float:
    """Spearman correlation of the pairwise distances in two sets: are the same personas close?

    NaN with fewer than three pairs or when all distances are equal.
    """
    x, y = pdist(np.asarray(one, float)), pdist(np.asarray(two, float))
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(stats.spearmanr(x, y).statistic)


def leave_one_out_as_the_study(vectors: ArrayLike) -> float:
    """The study's M3: leave-one-out accuracy of the nearest centroid.

    With one vector per persona, the left-out class has no centroid, so this is 0 for any input.
    """
    v = np.asarray(vectors, float)
    distances = np.linalg.norm(v[:, None] - v[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return float(np.mean(distances.argmin(axis=1) == np.arange(len(v))))


#: Metrics of one set of persona vectors, [persona, hidden] -> float, by name in geometry.csv, in
#: addition to M1 and its tests. They may depend only on lengths and angles, because single coordinates
#: have no meaning here. A metric added here appears in the tables; see docs/extending.md.
METRICS: dict[str, Callable[[np.ndarray], float]] = {
    "angle": mean_angle,
    "log_distance": log_distance,
    "m1_centred": lambda vectors: mean_offdiagonal_cosine(centred(vectors)),
    "spread": spread,
    "mean_distance": mean_distance,
    "effective_rank": effective_rank,
    "pc1_share": pc1_share,
}


#: Metrics of a chain's vectors against the base model's, by name in geometry.csv.
AGAINST: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "cka_base": linear_cka,
    "distance_agreement": distance_agreement,
    "procrustes_base": procrustes,
    "subspace_angle": subspace_angle,
    "angle_lost": angle_lost,
}


def halves(stack: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Persona vectors over every second question, and over the others; a single question is in both."""
    values = np.asarray(stack)
    first = values[:, ::2].mean(axis=1, dtype=float)
    return first, values[:, 1::2].mean(axis=1, dtype=float) if values.shape[1] > 1 else first


def split_half(stack: ArrayLike, seed: int, splits: int = 20) -> float:
    """Standard deviation of M1 due to the choice of questions, from random halves of them.

    The difference of two halves has four times the variance of the whole, so this is half the root mean
    square difference. It is comparable to the standard deviation over training runs. NaN with fewer
    than 2 questions.
    """
    values = np.asarray(stack, float)
    personas, questions, hidden = values.shape
    if questions < 2:
        return float("nan")
    rng = np.random.default_rng(seed)
    half = questions // 2
    weights = np.zeros((splits, 2, questions))
    for split in weights:
        order = rng.permutation(questions)
        split[0, order[:half]] = 1 / half
        split[1, order[half:]] = 1 / (questions - half)
    flat = values.transpose(1, 0, 2).reshape(questions, personas * hidden)
    means = (weights @ flat).reshape(splits, 2, personas, hidden)
    m1 = mean_pairs(gram_cosines(means @ means.swapaxes(2, 3)))
    return float(np.sqrt(((m1[:, 0] - m1[:, 1]) ** 2).mean()) / 2)


def principal_axes(vectors: ArrayLike, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """(centre [hidden], axes [count, hidden]) of the principal components of persona vectors.

    Each axis has the sign that makes its largest loading positive, so that equal vectors give equal
    axes.
    """
    v = np.asarray(vectors, float)
    centre = v.mean(axis=0)
    axes = np.linalg.svd(v - centre, full_matrices=False)[2][:count]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    return centre, axes * np.where(largest < 0, -1.0, 1.0)
