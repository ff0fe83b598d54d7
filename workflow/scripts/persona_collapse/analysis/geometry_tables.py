"""Tables of persona geometry, as pure functions of the design and the chains' activations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .. import chains
from .. import geometry as geo
from ..statistics import Families, adjust, sign_flip_test, sign_flip_units
from .geometry_runs import CELL, left_out_table, student, wide
from .views import (
    Headline,
    Load,
    View,
    bases_of,
    cells_of,
    chains_of,
    mark_headline,
    side_by_side,
    untrained,
    views,
)

GEOMETRY_COLUMNS = [
    "condition", "chain", "seed", "method", "layer", "headline", "metric", "test", "unit", "value",
    "ci_low", "ci_high", "delta_base", "delta_low", "delta_high", "n", "p", "p_floor", "q", "family",
    "note",
]  # fmt: skip
COSINE_COLUMNS = [
    "condition", "chain", "seed", "method", "layer", "headline", "persona_a", "persona_b", "cosine",
    "centred",
]  # fmt: skip
MAP_COLUMNS = [
    "condition", "chain", "seed", "method", "layer", "headline", "persona", "pc1", "pc2", "captured",
]  # fmt: skip
#: Default values of a row of geometry.csv.
UNTESTED = {"test": "", "unit": "", "note": ""}
Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Before:
    """Data kept of the base model, by method and block."""

    vectors: np.ndarray
    resampled: np.ndarray
    unbiased: float
    halves: tuple[np.ndarray, np.ndarray]


def geometry_table(
    design: pd.DataFrame,
    load: Load,
    headline: Headline,
    *,
    draws: int,
    seed: int,
    longest: str = "",
    families: Families = (),
    left_out: pd.DataFrame | None = None,
    threads: int = 1,
) -> pd.DataFrame:
    """Every metric of every chain, method and layer, against the base model.

    `load` gives a chain's activations. `threads` chains are in memory at a time; of the base model, only
    persona vectors and resampled cosines. `left_out`: a `left_out_table`, if it exists already.
    Metrics, on persona vectors (means over questions):

    m1                  mean cosine over pairs of personas, not centred
    m1_unbiased         the same without the noise of the questions, which lowers m1
    angle               mean angle over pairs, in degrees
    log_distance        log(1 - m1)
    m1_centred          without the mean over personas; -1/(n-1) if directions are spread
                        evenly
    m1_without_longest  m1 without the persona `longest`, the one with the longest prompt
    spread              distance of the personas from their mean, over that mean's norm
    mean_distance       mean distance over pairs, in the model's units
    effective_rank      of the centred vectors
    pc1_share           share of the variance between personas along its first component
    cka_base            linear CKA with the base model's vectors; 1 for the base
    cka_unrelated       (base model) mean linear CKA of random vectors of these sizes
    distance_agreement  Spearman correlation of the pairwise distances with the base model's
    procrustes_base     share of the squared distances that no rotation to the base removes
    subspace_angle      mean angle between the leading subspaces of the personas and the base model's
    angle_lost          lost share of the base model's mean angle
    procrustes_halves, subspace_angle_halves
                        the same between halves of a chain's own questions: noise floors
    common_shift        share of the squared shifts from the base that all personas share
    m1_split_half       noise of m1 from the choice of questions: standard deviation, from halves
    m1_replicate        noise of m1 from retraining: standard deviation over the independent runs of a
                        condition, one row per condition (chain empty, n runs)

    A metric's own row has no `test`. It has an interval over questions and personas, from leaving each
    out; for m1, an interval over resampled questions. m1 has a further row for each way of testing its
    change from the base, `delta_base`:

    pairs        p: sign flips over pairs, as in the study; pairs share personas, so it is too small
    personas     p: sign flips over the personas' effects (pseudo-values), all 2^n where they are no more
                 than `draws`; interval: jackknife over personas, of the level without the noise of the
                 questions (m1_unbiased), which would shift it
    two_way      interval: questions and personas resampled together
    label_swap   p: each persona's vectors before and after are swapped or not

    None of these accounts for variation between training runs: see `geometry_runs`. `unit`: what `n`
    counts, and what the interval or p is over. delta_low, delta_high: interval of `delta_base`. q is
    Benjamini-Hochberg within `families`.
    """

    def resampled_of(view: View) -> np.ndarray:
        return geo.resampled_cosines(view.stack, min(draws, 1000), seed)

    base = {
        view.start: Before(
            view.vectors, resampled_of(view), geo.m1_unbiased(view.stack), geo.halves(view.stack)
        )
        for view in views(design, load, bases_of(design))
    }

    def rows_of(chain: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for view in views(design, load, [chain]):
            before = base[view.start]
            resampled = before.resampled if chains.untrained(chain) else resampled_of(view)
            m1 = _m1_rows(view, resampled, before, draws, seed)
            others = _other_rows(view, before, longest, seed)
            rows += [view.key | UNTESTED | row for row in (*m1, *others)]
        return rows

    rows = side_by_side(rows_of, chains_of(design), threads)
    table = cells_of(design).merge(pd.DataFrame(rows), on="chain")
    table = _intervals(
        table, left_out_table(design, load, threads) if left_out is None else left_out
    )
    table = mark_headline(table, headline).reindex(columns=GEOMETRY_COLUMNS)
    replicates = _replicates(table)
    if len(replicates):
        table = pd.concat([table, replicates], ignore_index=True)
    return adjust(table, families).reindex(columns=GEOMETRY_COLUMNS)


def _m1_rows(
    view: View,
    resampled: np.ndarray,
    base: Before,
    draws: int,
    seed: int,
) -> Rows:
    """M1 of one chain: its own row, and one row per test of its change; the base has no p values."""
    vectors, n = view.vectors, len(view.vectors)
    before, before_resampled = base.vectors, base.resampled
    value = geo.mean_offdiagonal_cosine(vectors)
    change = value - geo.mean_offdiagonal_cosine(before)
    common = {"metric": "m1", "value": value, "delta_base": change}
    weights = geo.persona_weights(n, len(resampled), seed + 1)
    changes = np.zeros((0, n, n))
    effects = np.full(n, np.nan)
    pairs: dict[str, Any] = {}
    personas: dict[str, Any] = {}
    swap: dict[str, Any] = {}
    if not chains.untrained(view.chain):
        if len(resampled) == len(before_resampled):
            changes = resampled - before_resampled
        effects = geo.persona_effects(vectors, before)
        after_pairs, before_pairs = geo.pair_cosines(vectors), geo.pair_cosines(before)
        pairs = _p(
            sign_flip_test(after_pairs, before_pairs, draws, seed),
            max(1 / (draws + 1), 2.0 ** (1 - len(after_pairs))),
        )
        personas = _p(*(sign_flip_units(effects, draws, seed) if n > 2 else (np.nan, np.nan)))
        swap = _p(*geo.swap_test(vectors, before, draws, seed))
    yield (
        common
        | {"unit": "question", "n": view.stack.shape[1]}
        | _interval(geo.basic_interval(value, geo.mean_pairs(resampled)))
        | _change(geo.basic_interval(change, geo.mean_pairs(changes)))
    )
    yield common | {"test": "pairs", "unit": "pair", "n": n * (n - 1) // 2} | pairs
    yield (
        common
        | {"test": "personas", "unit": "persona", "n": n}
        | _interval(geo.jackknife_interval(geo.cosine_effects(geo.unbiased_cosines(view.stack))))
        | _change(geo.jackknife_interval(effects))
        | personas
    )
    yield (
        common
        | {"test": "two_way", "unit": "question and persona"}
        | _interval(geo.basic_interval(value, geo.mean_pairs(resampled, weights)))
        | _change(geo.basic_interval(change, geo.mean_pairs(changes, weights[: len(changes)])))
    )
    yield common | {"test": "label_swap", "unit": "persona", "n": n} | swap


def _interval(bounds: tuple[float, float]) -> dict[str, float]:
    """Columns of an interval of M1, clipped at 1 because it is a cosine."""
    return {"ci_low": bounds[0], "ci_high": min(bounds[1], 1.0)}


def _change(bounds: tuple[float, float]) -> dict[str, float]:
    """Columns of an interval of the change from the base model."""
    return {"delta_low": bounds[0], "delta_high": bounds[1]}


def _p(p: float, floor: float) -> dict[str, float]:
    return {"p": p, "p_floor": floor}


def _other_rows(view: View, base: Before, longest: str, seed: int) -> Rows:
    """The metrics of one chain other than M1; they have no tests."""
    vectors, before = view.vectors, base.vectors
    unbiased = geo.m1_unbiased(view.stack)
    yield {"metric": "m1_unbiased", "value": unbiased, "delta_base": unbiased - base.unbiased}
    for metric, measure in geo.METRICS.items():
        value = measure(vectors)
        yield {"metric": metric, "value": value, "delta_base": value - measure(before)}
    if longest in view.personas and len(view.personas) > 2:
        keep = [i for i, persona in enumerate(view.personas) if persona != longest]
        value = geo.mean_offdiagonal_cosine(vectors[keep])
        yield {
            "metric": "m1_without_longest",
            "value": value,
            "delta_base": value - geo.mean_offdiagonal_cosine(before[keep]),
            "note": f"without {longest}",
        }
    for metric, against in geo.AGAINST.items():
        yield {"metric": metric, "value": against(vectors, before)}
    yield {"metric": "m1_split_half", "value": geo.split_half(view.stack, seed)}
    halves = geo.halves(view.stack)
    if view.stack.shape[1] > 1:
        yield {"metric": "procrustes_halves", "value": geo.procrustes(*halves)}
        yield {"metric": "subspace_angle_halves", "value": geo.subspace_angle(*halves)}
    if chains.untrained(view.chain):
        yield {"metric": "cka_unrelated", "value": geo.unrelated_cka(*vectors.shape)}
    else:
        shifts = [after - then for after, then in zip(halves, base.halves, strict=True)]
        yield {"metric": "common_shift", "value": geo.common_shift(*shifts)}


def _intervals(table: pd.DataFrame, left_out: pd.DataFrame) -> pd.DataFrame:
    """`table` with intervals over questions and personas for metrics whose own row has none yet."""
    found = wide(left_out)
    parts = []
    for chain in found.chains:
        bounds, model = pd.DataFrame(index=found.cells), chains.model_of(chain)
        for name, weights in (
            ("own", {chain: 1.0}),
            ("change", {chain: 1.0} if chain == model else {chain: 1.0, model: -1.0}),
        ):
            errors, units = found.errors(weights)
            halves = np.array([student(0.975, n) for n in units]) * errors
            bounds[name] = np.where(halves > 0, halves, np.nan)
        parts.append(bounds.reset_index().assign(chain=chain))
    table = table.merge(pd.concat(parts), on=[*CELL, "chain"], how="left")
    bare = (table["test"] == "") & (table["metric"] != "m1") & table["own"].notna()
    table.loc[bare, "unit"] = "question and persona"
    trained = bare & ~untrained(table["chain"])
    for rows, value, half, low, high in (
        (bare, "value", "own", "ci_low", "ci_high"),
        (trained, "delta_base", "change", "delta_low", "delta_high"),
    ):
        table.loc[rows, low] = table[value] - table[half]
        table.loc[rows, high] = table[value] + table[half]
    return table.drop(columns=["own", "change"])


def _replicates(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of metric `m1_replicate`: its standard deviation over the independent runs of a condition."""
    m1 = table[(table["metric"] == "m1") & (table["test"] == "")]
    keys = ["condition", "method", "layer", "headline"]
    runs = m1.groupby([*keys, m1["chain"].map(chains.root)], sort=False)["value"].mean()
    over = runs.groupby(level=keys, sort=False).agg(value="std", n="size").reset_index()
    common = {"metric": "m1_replicate", "chain": "", "seed": "", "unit": "run"}
    return over[over["n"] > 1].assign(**common, test="", note="").reindex(columns=table.columns)


def cosines(design: pd.DataFrame, load: Load, headline: Headline) -> pd.DataFrame:
    """Persona-by-persona cosines; `centred`: without the personas' mean."""
    parts = []
    for view in views(design, load):
        names = view.personas
        index = pd.MultiIndex.from_product([names, names], names=["persona_a", "persona_b"])
        values = {
            "cosine": geo.cosine_matrix(view.vectors).ravel(),
            "centred": geo.cosine_matrix(geo.centred(view.vectors)).ravel(),
        }
        parts.append(pd.DataFrame(values, index=index).reset_index().assign(**view.key))
    table = cells_of(design).merge(pd.concat(parts), on="chain")
    return mark_headline(table, headline).reindex(columns=COSINE_COLUMNS)


def persona_map(design: pd.DataFrame, load: Load, headline: Headline) -> pd.DataFrame:
    """Every chain's persona vectors on its base model's first two principal components.

    All its chains share the base's axes and centre, so their points can be compared: a common shift
    moves the cloud, a collapse shrinks it. `captured`: share of the chain's own variance between
    personas that lies in that plane.
    """
    axes: dict[tuple[str, str, int], tuple[np.ndarray, np.ndarray]] = {}
    parts = []
    for view in views(design, load):
        if chains.untrained(view.chain):
            axes[view.start] = geo.principal_axes(view.vectors)
        centre, plane = axes[view.start]
        points = (view.vectors - centre) @ plane.T
        total = geo.centred(view.vectors)
        captured = float(np.sum((total @ plane.T) ** 2) / np.sum(total**2))
        table = pd.DataFrame({"persona": view.personas, "pc1": points[:, 0], "pc2": points[:, 1]})
        parts.append(table.assign(**view.key, captured=captured))
    table = cells_of(design).merge(pd.concat(parts), on="chain")
    return mark_headline(table, headline).reindex(columns=MAP_COLUMNS)
