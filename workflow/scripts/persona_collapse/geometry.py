"""Geometry of persona vectors: how alike the personas are inside the model.

A persona vector is the mean of its activations over questions. M1 is the mean cosine over all pairs
of personas. Arrays are [persona, hidden] (vectors) or [persona, question, hidden] (stacks).

The n(n-1)/2 pairs of n personas are not independent: each persona is in n-1 of them. Tests and
intervals over pairs are therefore too sure of themselves by a factor that grows with n;
`persona_effects`, `jackknife_interval` and `swap_test` take the persona as the unit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.spatial.distance import pdist

from .errors import UserError
from .statistics import student_interval


def cosine_matrix(vectors: ArrayLike) -> np.ndarray:
    """Cosines between the rows of [persona, hidden]; a zero vector raises UserError."""
    v = np.asarray(vectors, float)
    if v.ndim != 2 or len(v) < 2:
        raise UserError("cosine_matrix: two or more vectors [persona, hidden] are wanted")
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


def centred(vectors: ArrayLike) -> np.ndarray:
    """Vectors minus their mean over personas: what is left when the common part is taken out."""
    v = np.asarray(vectors, float)
    out: np.ndarray = v - v.mean(axis=0, keepdims=True)
    return out


def spread(vectors: ArrayLike) -> float:
    """Root mean square distance of the personas to their mean, over the norm of that mean.

    A collapse seen in M1 alone can come from a grown common part; this is the distances' side.
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


def resampled_cosines(stack: ArrayLike, draws: int, seed: int) -> np.ndarray:
    """Cosine matrices of the persona vectors when questions are drawn with replacement.

    `stack`: [persona, question, hidden]; returns float32 [draws, persona, persona]. All personas
    answer the same questions, so a question is drawn for all of them at once. The draws depend on
    `seed` and the number of questions alone, so two chains with the same questions are resampled
    alike and their difference can be taken draw by draw. One question gives no rows.
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
    """M1 of cosine matrices [..., n, n]; with `weights` [..., n], of resampled personas.

    A persona drawn twice would make a pair with itself whose cosine is 1 by construction; such
    pairs are left out.
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

    Noise in the persona vectors lowers M1, and resampling adds that noise once more, so percentile
    intervals are shifted the wrong way twice: with few questions they miss the true value in up to
    nine tenths of simulated runs. Where the estimate itself is that biased, it can lie outside.
    """
    low, high = percentiles(draws, confidence)
    return 2 * estimate - high, 2 * estimate - low


def persona_effects(after: ArrayLike, before: ArrayLike | None = None) -> np.ndarray:
    """Each persona's share of M1, or of its change: the jackknife pseudo-values, [persona].

    M1 is a U-statistic over pairs; its pseudo-values n M1 - (n-1) M1_without_i (Arvesen 1969,
    Annals of Mathematical Statistics 40:2076) average to M1 exactly and, if a pair's change is the sum of its
    two personas' effects, are those effects themselves, independent of each other. Mean cosines by
    persona are not: each contains all the others, so flipping their signs is anticonservative.
    `after`, `before`: vectors [persona, hidden]. Three personas at least, else NaN.
    """
    c = cosine_matrix(after)
    if before is not None:
        c = c - cosine_matrix(before)
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

    Each persona's two vectors are swapped or not, and M1 is computed anew on both mixed sets. Exact
    when the vectors before and after are exchangeable persona by persona, i.e. for the null that
    the second training is a replicate of the first. All 2^(n-1) swaps where they are no more than
    `draws`.
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
    """Linear centred kernel alignment of two sets of the same rows, [n, hidden] each; in [0, 1].

    Kornblith et al. 2019 (ICML), equation 2 with linear kernels. With a dozen personas in thousands
    of dimensions it is near 1 for unrelated vectors too; read it beside the replicate's.
    """
    x, y = centred(one), centred(two)
    kx, ky = x @ x.T, y @ y.T
    norm = np.linalg.norm(kx) * np.linalg.norm(ky)
    return float((kx * ky).sum() / norm) if norm > 0 else float("nan")


def mean_distance(vectors: ArrayLike) -> float:
    """Mean Euclidean distance over pairs of personas, in the model's own units."""
    return float(pdist(np.asarray(vectors, float)).mean())


def distance_agreement(one: ArrayLike, two: ArrayLike) -> float:
    """Spearman correlation of the pairwise distances of two sets: are the same personas close?

    NaN with fewer than three pairs or when all distances are equal.
    """
    x, y = pdist(np.asarray(one, float)), pdist(np.asarray(two, float))
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(stats.spearmanr(x, y).statistic)


def leave_one_out_as_the_study(vectors: ArrayLike) -> float:
    """The study's M3: share of personas nearest to their own centroid when it is left out.

    With one vector a persona the left-out class has no centroid, so this is 0 for any input.
    """
    v = np.asarray(vectors, float)
    distances = np.linalg.norm(v[:, None] - v[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return float(np.mean(distances.argmin(axis=1) == np.arange(len(v))))


#: Metrics of one set of persona vectors, [persona, hidden] -> float, by their name in geometry.csv,
#: beside M1 and its tests. What is added here is in the next table; see docs/extending.md.
METRICS: dict[str, Callable[[np.ndarray], float]] = {
    "m1_centred": lambda vectors: mean_offdiagonal_cosine(centred(vectors)),
    "spread": spread,
    "mean_distance": mean_distance,
    "effective_rank": effective_rank,
}


def split_half(stack: ArrayLike, seed: int, splits: int = 20) -> float:
    """Noise floor of M1: mean absolute difference between random halves of the questions.

    Scaled by 1/2 to the full number of questions, since the difference of two halves has four times
    the variance of the whole. NaN with fewer than 2 questions.
    """
    values = np.asarray(stack, float)
    questions = values.shape[1]
    if questions < 2:
        return float("nan")
    rng = np.random.default_rng(seed)
    gaps = []
    for _ in range(splits):
        order = rng.permutation(questions)
        half = questions // 2
        one, two = values[:, order[:half]].mean(1), values[:, order[half:]].mean(1)
        gaps.append(abs(mean_offdiagonal_cosine(one) - mean_offdiagonal_cosine(two)))
    return float(np.mean(gaps) / 2)


def principal_axes(vectors: ArrayLike, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """(centre [hidden], axes [count, hidden]) of persona vectors' principal components.

    Each axis points to where its largest loading is positive, so that equal vectors give equal axes.
    """
    v = np.asarray(vectors, float)
    centre = v.mean(axis=0)
    axes = np.linalg.svd(v - centre, full_matrices=False)[2][:count]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    return centre, axes * np.where(largest < 0, -1.0, 1.0)
