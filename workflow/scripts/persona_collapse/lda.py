"""M3: can a linear classifier tell the personas apart, question by question?

Linear discriminant analysis on single (persona, question) vectors, tested on questions it was not
trained on. The study's own M3 compared each persona's one vector with the centroids of the other
personas and asked whether it was nearest to itself, which cannot happen.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from .errors import UserError
from .statistics import adjust, clopper_pearson
from .tables import BASE, Families, Load, cells_of, views

COLUMNS = [
    "condition", "model", "seed", "method", "layer", "metric", "value", "ci_low", "ci_high", "chance",
    "null_mean", "null_high", "delta_base", "p", "p_min", "n", "q", "note", "family",
]  # fmt: skip


def leave_one_out_as_the_study(vectors: ArrayLike) -> float:
    """The study's M3: share of personas nearest to their own centroid when it is left out.

    With one vector a persona the left-out class has no centroid, so this is 0 for any input.
    """
    v = np.asarray(vectors, float)
    distances = np.linalg.norm(v[:, None] - v[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return float(np.mean(distances.argmin(axis=1) == np.arange(len(v))))


def discriminant(
    x: np.ndarray, y: np.ndarray, x_test: np.ndarray, classes: int, shrinkage: float | None = None
) -> np.ndarray:
    """Classes predicted by LDA whose pooled within-class covariance is shrunk (Ledoit-Wolf).

    With equally large classes it is scikit-learn's `LinearDiscriminantAnalysis(solver="lsqr",
    shrinkage=s)`, where s is chosen once for the pooled residuals instead of class by class: twenty
    times faster, which the shuffled null needs.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    member = np.eye(classes, dtype=x.dtype)[y]
    means = member.T @ x / member.sum(axis=0)[:, None]
    residuals = x - means[y]
    if shrinkage is None:
        shrinkage = float(ledoit_wolf_shrinkage(residuals, assume_centered=True))
    covariance = residuals.T @ residuals / len(x)
    size = np.trace(covariance) / len(covariance)
    # A floor: identical answers leave residuals of zero, which no covariance inverts.
    shrunk = (1 - shrinkage) * covariance + (shrinkage * size + 1e-12) * np.eye(len(covariance))
    weights = np.linalg.solve(shrunk, means.T)
    scores = x_test @ weights - 0.5 * (means.T * weights).sum(axis=0)
    out: np.ndarray = scores.argmax(axis=1)
    return out


def separability(
    stack: ArrayLike, *, folds: int, shuffles: int, seed: int, components: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Held-out predictions of the persona, and the accuracies under shuffled labels.

    `stack`: [persona, question, hidden]. Returns correct bool [persona, question] and null
    [shuffles]. Folds hold out whole questions (GroupKFold). In each, the training rows are reduced
    to their first `components` principal components (fitted without labels) and classified by
    `discriminant`. The null permutes the personas' labels within each question, in
    training and test alike. Fewer than two questions or personas raise UserError.
    """
    from sklearn.decomposition import PCA
    from sklearn.model_selection import GroupKFold

    values = np.asarray(stack, np.float32)
    personas, questions, hidden = values.shape
    if personas < 2 or questions < 2:
        raise UserError("lda: two personas and two questions at least are wanted")
    rows = values.transpose(1, 0, 2).reshape(questions * personas, hidden)
    groups = np.repeat(np.arange(questions), personas)
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(personas), (questions, 1))
    label_sets = [labels, *(rng.permuted(labels, axis=1) for _ in range(shuffles))]
    hits = np.zeros((len(label_sets), questions * personas), bool)
    splitter = GroupKFold(n_splits=min(folds, questions))
    for train, test in splitter.split(rows, groups=groups):
        size = min(components, hidden, len(train) - 1)
        reduce = PCA(size, svd_solver="auto", random_state=seed).fit(rows[train])
        x, x_test = reduce.transform(rows[train]), reduce.transform(rows[test])
        for number, chosen in enumerate(label_sets):
            y = chosen.ravel()
            hits[number, test] = discriminant(x, y[train], x_test, personas) == y[test]
    correct = hits[0].reshape(questions, personas).T
    return correct, hits[1:].mean(axis=1)


def lda_table(
    grid: pd.DataFrame,
    load: Load,
    *,
    folds: int = 5,
    shuffles: int = 50,
    seed: int = 42,
    resamples: int = 1000,
    families: Families = (),
) -> pd.DataFrame:
    """Accuracy of the classifier for every chain, method and block (metric m3_accuracy).

    Interval: questions resampled, of the fixed predictions; where every answer is right (or wrong)
    Clopper-Pearson with the questions as trials. p: share of shuffles at least as accurate, with
    the + 1. Row m3_study is the study's own figure, 0 whatever the vectors. With one question per
    chain there is nothing to hold out and the table is empty.
    """
    rows = []
    base: dict[tuple[str, int], float] = {}
    for view in views(grid, load):
        personas, questions, _ = view.stack.shape
        if questions < 2 or personas < 2:
            continue
        correct, null = separability(view.stack, folds=folds, shuffles=shuffles, seed=seed)
        value = float(correct.mean())
        if view.chain == BASE:
            base[view.method, view.layer] = value
        key = {"model": view.chain, "method": view.method, "layer": view.layer}
        low, high = _interval(correct.mean(axis=0), resamples, seed)
        rows.append(
            key
            | {"metric": "m3_accuracy", "value": value, "ci_low": low, "ci_high": high}
            | {"chance": 1 / personas, "null_mean": null.mean() if shuffles else np.nan}
            | {"null_high": np.quantile(null, 0.95) if shuffles else np.nan}
            | {"delta_base": value - base.get((view.method, view.layer), np.nan)}
            | {"p": (1 + np.sum(null >= value - 1e-12)) / (shuffles + 1)}
            | {"p_min": 1 / (shuffles + 1), "n": questions}
        )
        rows.append(
            key
            | {"metric": "m3_study", "value": leave_one_out_as_the_study(view.vectors)}
            | {"note": "0 for any vectors: the class left out has no centroid"}
        )
    table = pd.DataFrame(rows)
    if table.empty:
        return pd.DataFrame(columns=COLUMNS)
    table = cells_of(grid).merge(table, on="model")
    return adjust(table, families).reindex(columns=COLUMNS)


def _interval(by_question: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """95 % interval of a mean over questions; see `lda_table`."""
    n = len(by_question)
    if np.ptp(by_question) == 0 and by_question[0] in (0.0, 1.0):
        low, high = clopper_pearson(n * by_question[0], n)
        return float(low), float(high)
    drawn = np.random.default_rng(seed).integers(0, n, (resamples, n))
    low, high = np.quantile(by_question[drawn].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
