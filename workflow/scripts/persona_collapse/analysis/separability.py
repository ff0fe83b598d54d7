"""M3: can a linear classifier identify the persona from the activations for a single question?

Linear discriminant analysis on single (persona, question) vectors, tested on held-out questions. The
study's own M3 had one vector per persona. It compared that vector with the centroids of the other
personas and asked whether its own was nearest, which cannot happen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from .. import chains
from .. import geometry as geo
from ..errors import UserError
from ..statistics import Families, adjust, clopper_pearson
from .views import Headline, Load, View, cells_of, chains_of, mark_headline, side_by_side, views

COLUMNS = [
    "condition", "chain", "seed", "method", "layer", "headline", "metric", "value", "ci_low",
    "ci_high", "delta_base", "chance", "null_mean", "null_high", "n", "p", "p_floor", "q", "family",
    "note",
]  # fmt: skip


def discriminants(
    x: np.ndarray,
    labels: np.ndarray,
    x_test: np.ndarray,
    classes: int,
    shrinkage: float | None = None,
) -> np.ndarray:
    """Classes predicted by LDA with a shrunk pooled within-class covariance, for several labellings.

    All `labels` [set, row] share `x` [row, feature] and `x_test` [test, feature]; each set contains
    every class at least once. Returns [set, test]. `shrinkage`: None for Ledoit and Wolf's (2004, J.
    Multivar. Anal. 88), computed on the pooled residuals.

    With equal class sizes it equals scikit-learn's `LinearDiscriminantAnalysis(solver="lsqr",
    shrinkage=s)`, except that s is chosen once and not per class. For each labelling it only needs the
    class means m and the lengths of the residuals, because the within-class scatter is the total
    scatter minus that of the means. So all labellings share the same few matrix products.
    """
    x, x_test = (
        x.astype(float),
        x_test.astype(float),
    )  # float64, because the scatter is a difference
    (rows, size), sets = x.shape, len(labels)
    member = (labels[:, None] == np.arange(classes)[:, None]).reshape(sets * classes, rows)
    counts = member.sum(axis=1)
    flat = member.astype(float) @ x / counts[:, None]
    means = flat.reshape(sets, classes, size)
    between = (means * counts.reshape(sets, classes, 1)).swapaxes(1, 2) @ means
    total = x.T @ x
    covariance = (total - between) / rows
    scale = np.trace(covariance, axis1=1, axis2=2) / size
    if shrinkage is None:
        labelled = np.arange(sets)[:, None] * classes + labels  # [set, row]: row of `flat`
        along = (x @ flat.T)[np.arange(rows), labelled]
        residual = (x**2).sum(axis=1) - 2 * along + (flat**2).sum(axis=1)[labelled]
        squares = (covariance**2).sum(axis=(1, 2))
        error = ((residual**2).sum(axis=1) / rows - squares) / rows
        distance = squares - size * scale**2
        share = np.clip(np.divide(error, distance, where=distance > 0, out=np.ones(sets)), 0, 1)
    else:
        share = np.full(sets, shrinkage)
    # A floor: identical answers leave residuals of zero, and a singular covariance.
    floor = 1e-12 + np.finfo(float).eps * np.trace(total) / rows
    diagonal = (share * scale + floor)[:, None, None] * np.eye(size)
    shrunk = (1 - share)[:, None, None] * covariance + diagonal
    weights = np.linalg.solve(shrunk, means.swapaxes(1, 2))  # [set, feature, class]
    scores = x_test @ weights - 0.5 * (means.swapaxes(1, 2) * weights).sum(axis=1)[:, None]
    out: np.ndarray = scores.argmax(axis=2)
    return out


def _directions(
    rows: np.ndarray, splits: Sequence[tuple[np.ndarray, np.ndarray]], components: int, seed: int
) -> Iterator[np.ndarray]:
    """First principal components of the training rows of each split; [hidden, component].

    If there are more rows than features, they come from covariances: each fold's is the scatter of all
    rows minus that of its test rows, and only the leading eigenvectors are computed.
    """
    from scipy.linalg import eigh
    from sklearn.decomposition import PCA

    hidden = rows.shape[1]
    narrow = all(hidden <= len(train) for train, _ in splits)
    scatters = [rows[test].T @ rows[test] for _, test in splits] if narrow else []
    for fold, (train, _) in enumerate(splits):
        size = min(components, hidden, len(train) - 1)
        if narrow:
            mean = rows[train].mean(axis=0)
            scatter = sum(scatters[:fold] + scatters[fold + 1 :]) - len(train) * np.outer(
                mean, mean
            )
            yield eigh(scatter, subset_by_index=[hidden - size, hidden - 1])[1]
        else:
            yield PCA(size, random_state=seed).fit(rows[train]).components_.T


def separability(
    stack: ArrayLike, *, folds: int, shuffles: int, seed: int, components: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Held-out predictions of the persona, and accuracies under shuffled labels.

    `stack`: [persona, question, hidden]. Returns correct bool [persona, question] and null
    [shuffles]. Folds hold out whole questions (GroupKFold). In each, the training rows are reduced
    to their first `components` principal components (fitted without labels) and classified by
    `discriminants`. The null permutes the personas' labels within each question, in
    training and test alike. Fewer than two questions or personas raise UserError.
    """
    from sklearn.model_selection import GroupKFold

    values = np.asarray(stack, np.float32)
    personas, questions, hidden = values.shape
    if personas < 2 or questions < 2:
        raise UserError("lda: expected at least two personas and two questions")
    rows = values.transpose(1, 0, 2).reshape(questions * personas, hidden)
    rows = rows - rows.mean(axis=0, dtype=float).astype(np.float32)
    groups = np.repeat(np.arange(questions), personas)
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(personas), (questions, 1))
    shuffled = [rng.permuted(labels, axis=1) for _ in range(shuffles)]
    chosen = np.stack([labels, *shuffled]).reshape(-1, questions * personas)
    splits = list(GroupKFold(min(folds, questions)).split(rows, groups=groups))
    hits = np.zeros(chosen.shape, bool)
    for (train, test), directions in zip(
        splits, _directions(rows, splits, components, seed), strict=True
    ):
        reduced = rows @ directions
        predicted = discriminants(reduced[train], chosen[:, train], reduced[test], personas)
        hits[:, test] = predicted == chosen[:, test]
    return hits[0].reshape(questions, personas).T, hits[1:].mean(axis=1)


def lda_table(
    design: pd.DataFrame,
    load: Load,
    headline: Headline,
    *,
    folds: int = 5,
    shuffles: int = 50,
    seed: int = 42,
    resamples: int = 1000,
    families: Families = (),
    threads: int = 1,
) -> pd.DataFrame:
    """Accuracy of the classifier for every chain, method and block (metric m3_accuracy).

    Interval: from resampled questions with fixed predictions; if every prediction is right (or wrong),
    Clopper-Pearson with the questions as trials. p: share of shuffles that are at least as accurate,
    with the + 1. Row m3_study is the study's own M3, which is 0 for any vectors. With one question
    there is nothing to hold out and the table is empty.

    `threads` chains are classified in parallel, each with one thread of the linear algebra libraries;
    their number changes no result.
    """

    def rows_of(chain: str) -> list[dict[str, Any]]:
        tested = (view for view in views(design, load, [chain]) if min(view.stack.shape[:2]) > 1)
        return [row for v in tested for row in _rows(v, folds, shuffles, seed, resamples)]

    table = pd.DataFrame(side_by_side(rows_of, chains_of(design), threads))
    if table.empty:
        return mark_headline(pd.DataFrame(columns=COLUMNS), headline)
    cell = ["model", "metric", "method", "layer"]
    table = table.assign(model=table["chain"].map(chains.model_of))
    base = table[table["chain"] == table["model"]].set_index(cell)["value"].rename("base")
    table = table.join(base, on=cell)
    tested = table["metric"] == "m3_accuracy"
    table["delta_base"] = (table["value"] - table.pop("base")).where(tested)
    table = mark_headline(cells_of(design).merge(table, on="chain"), headline)
    return adjust(table, families).reindex(columns=COLUMNS)


def _rows(view: View, folds: int, shuffles: int, seed: int, resamples: int) -> list[dict[str, Any]]:
    """The rows of one chain, method and block in `lda_table`."""
    personas, questions, _ = view.stack.shape
    correct, null = separability(view.stack, folds=folds, shuffles=shuffles, seed=seed)
    value = float(correct.mean())
    key = view.key
    low, high = _interval(correct.mean(axis=0), resamples, seed)
    accuracy = (
        key
        | {"metric": "m3_accuracy", "value": value, "ci_low": low, "ci_high": high}
        | {"chance": 1 / personas, "null_mean": null.mean() if shuffles else np.nan}
        | {"null_high": np.quantile(null, 0.95) if shuffles else np.nan}
        | {"p": (1 + np.sum(null >= value - 1e-12)) / (shuffles + 1)}
        | {"p_floor": 1 / (shuffles + 1), "n": questions}
    )
    study = key | {
        "metric": "m3_study",
        "value": geo.leave_one_out_as_the_study(view.vectors),
        "note": "0 for any vectors: the class left out has no centroid",
    }
    return [accuracy, study]


def _interval(by_question: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """95 % interval of a mean over questions; see `lda_table`."""
    n = len(by_question)
    if np.ptp(by_question) == 0 and by_question[0] in (0.0, 1.0):
        low, high = clopper_pearson(n * by_question[0], n)
        return float(low), float(high)
    drawn = np.random.default_rng(seed).integers(0, n, (resamples, n))
    low, high = np.quantile(by_question[drawn].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
