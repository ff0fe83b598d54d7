"""Geometry of persona vectors: how alike the personas are inside the model.

A persona vector is the mean of its activations over questions. M1 is the mean cosine over all pairs
of personas. Arrays are [persona, hidden] (vectors) or [persona, question, hidden] (stacks).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .errors import UserError


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


def mean_cosine_by_persona(vectors: ArrayLike) -> np.ndarray:
    """Each persona's mean cosine to the others, [persona]; their mean is M1."""
    cosines = cosine_matrix(vectors)
    n = len(cosines)
    out: np.ndarray = (cosines.sum(axis=1) - np.diag(cosines)) / (n - 1)
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


def bootstrap_questions(
    stack: ArrayLike, draws: int, seed: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of M1 when questions are drawn with replacement.

    `stack`: [persona, question, hidden]. All personas answer the same questions, so a question is
    drawn for all of them at once. One question gives NaN: there is nothing to draw from.
    """
    values = np.asarray(stack, np.float32)
    personas, questions, hidden = values.shape
    if questions < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    flat = values.transpose(1, 0, 2).reshape(questions, personas * hidden)
    upper = np.triu_indices(personas, k=1)
    means = []
    chunk = max(1, 50_000_000 // (personas * hidden))
    for start in range(0, draws, chunk):
        counts = rng.multinomial(
            questions, np.full(questions, 1 / questions), size=min(chunk, draws - start)
        )
        vectors = (counts.astype(np.float32) @ flat).reshape(-1, personas, hidden)
        vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
        cosines = vectors @ vectors.transpose(0, 2, 1)
        means.append(cosines[:, upper[0], upper[1]].mean(axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


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
