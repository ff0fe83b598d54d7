"""M2: do all chains shift the personas along one axis?

The study's axis is the shift of the assistant's vector in one chain (the anchor: misaligned data, no
induction persona). It asked whether raw persona vectors have larger cosines with that axis after than
before. Raw vectors share a large common part, and the anchor chain is tested against itself, so any
shift that all personas share passes. A second version uses held-out anchors: it tests shifts instead of
raw vectors, and the axis comes from other personas and other questions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from .. import chains
from ..chains import ASSISTANT
from ..geometry import jackknife_interval
from ..statistics import Families, adjust
from .views import Headline, Load, View, mark_headline, views

COLUMNS = [
    "condition", "chain", "seed", "method", "layer", "headline", "anchor", "metric", "value", "ci_low",
    "ci_high", "n", "p", "p_floor", "q", "family", "note",
]  # fmt: skip


def unit(vector: ArrayLike) -> np.ndarray:
    """A vector divided by its norm; zero vectors stay zero."""
    v = np.asarray(vector, float)
    norm = np.linalg.norm(v)
    out: np.ndarray = v / norm if norm > 0 else v
    return out


def anchored(
    after: ArrayLike, before: ArrayLike, axis: ArrayLike, draws: int, seed: int
) -> tuple[float, float]:
    """The study's M2: rise of the mean |cosine| with the axis, and its one-sided label p.

    `after`, `before`: [persona, hidden], without the anchor persona. The null permutes the labels
    after/before over all 2n vectors; p = (count + 1) / (draws + 1).
    """
    direction = unit(axis)

    def closeness(vectors: ArrayLike) -> np.ndarray:
        v = np.asarray(vectors, float)
        out: np.ndarray = np.abs(v @ direction) / np.linalg.norm(v, axis=1)
        return out

    one, two = closeness(after), closeness(before)
    n = len(one)
    observed = one.mean() - two.mean()
    both = np.concatenate([one, two])
    shuffled = np.random.default_rng(seed).permuted(np.tile(both, (draws, 1)), axis=1)
    changes = shuffled[:, :n].mean(axis=1) - shuffled[:, n:].mean(axis=1)
    return float(observed), float((np.sum(changes >= observed - 1e-12) + 1) / (draws + 1))


def held_out_cosines(shifts: ArrayLike, anchor_shifts: ArrayLike) -> np.ndarray:
    """Cosine of each persona's shift with the mean shift of all *other* personas in the anchor.

    Both [persona, hidden], from different questions. A persona whose shift is zero gives 0.
    """
    moved, anchor = np.asarray(shifts, float), np.asarray(anchor_shifts, float)
    n = len(moved)
    axes = (anchor.sum(axis=0) - anchor) / (n - 1)
    norms = np.linalg.norm(moved, axis=1) * np.linalg.norm(axes, axis=1)
    dots = (moved * axes).sum(axis=1)
    out: np.ndarray = np.divide(dots, norms, out=np.zeros(n), where=norms > 0)
    return out


def explained(shifts: ArrayLike, anchor_shifts: ArrayLike) -> float:
    """Share of the squared shifts that lies along the held-out axes; between 0 and 1."""
    moved = np.asarray(shifts, float)
    lengths = (moved**2).sum(axis=1)
    total = float(lengths.sum())
    cosines = held_out_cosines(moved, anchor_shifts)
    return float((cosines**2 * lengths).sum() / total) if total > 0 else float("nan")


def axis_table(
    design: pd.DataFrame,
    load: Load,
    headline: Headline,
    *,
    anchor: str,
    draws: int,
    seed: int,
    assistant: str = ASSISTANT,
    families: Families = (),
) -> pd.DataFrame:
    """M2 of every chain against the axis of one anchor chain (usually the first of E0) of the same base
    model.

    Metrics: m2_anchored (the study's: rise of |cosine|, label permutation over the personas other
    than the assistant); m2_held_out (mean cosine of the shifts with the axis of other personas and
    the other half of the questions; interval: Student over personas); m2_explained (share of the
    squared shifts on that axis). m2_held_out has no p. The personas of one chain share its shift and
    are not independent evidence about the direction, so sign flips over them reject four out of five
    unrelated shifts (tables/simulation.csv). The benign chains are the control: an axis that also
    explains them is not specific to misaligned data. Without the anchor in the design, the table is
    empty.
    """
    if anchor not in set(design["chain"]):
        return mark_headline(pd.DataFrame(columns=COLUMNS), headline)
    first = design[design["chain"] == anchor].assign(measures="activations")
    halves: dict[tuple[str, str, int], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    axis: dict[tuple[str, str, int], tuple[np.ndarray, np.ndarray]] = {}
    rows: list[dict[str, Any]] = []
    for view in views(pd.concat([first, design]), load):
        means = _halves(view)
        if chains.untrained(view.chain):
            halves[view.start] = means
            continue
        whole, odd, even = (a - b for a, b in zip(means, halves[view.start], strict=True))
        names = view.personas
        if view.chain == anchor:
            direction = whole[names.index(assistant)] if assistant in names else whole.mean(axis=0)
            axis[view.start] = (direction, odd)
        if view.start not in axis:
            continue  # another model than the anchor's: its directions mean something else
        direction, anchor_odd = axis[view.start]
        key = view.key | {"anchor": anchor}
        keep = [i for i, name in enumerate(names) if name != assistant]
        if len(keep) > 1:
            value, p = anchored(means[0][keep], halves[view.start][0][keep], direction, draws, seed)
            note = "axis and test share the chain" if view.chain == anchor else ""
            rows.append(
                key
                | {"metric": "m2_anchored", "value": value, "p": p, "p_floor": 1 / (draws + 1)}
                | {"n": len(keep), "note": note}
            )
        cosines = held_out_cosines(even, anchor_odd)
        low, high = jackknife_interval(cosines)
        rows.append(
            key
            | {"metric": "m2_held_out", "value": cosines.mean(), "ci_low": max(low, -1.0)}
            | {
                "ci_high": min(high, 1.0),
                "n": len(cosines),
                "note": "interval for this chain's shift",
            }
        )
        rows.append(
            key
            | {"metric": "m2_explained", "value": explained(even, anchor_odd), "n": len(cosines)}
        )
    table = pd.DataFrame(rows, columns=[c for c in COLUMNS if c not in ("condition", "seed")])
    cells = design[["condition", "chain", "seed"]].drop_duplicates(["condition", "chain"])
    table = mark_headline(cells.merge(table, on="chain"), headline)
    return adjust(table, families).reindex(columns=COLUMNS)


def _halves(view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Persona vectors over all questions, every second question, and the other questions.

    With a single question both halves are that question.
    """
    if view.stack.shape[1] < 2:
        return view.vectors, view.vectors, view.vectors
    odd, even = (view.stack[:, i::2].mean(axis=1, dtype=float) for i in (0, 1))
    return view.vectors, odd, even
