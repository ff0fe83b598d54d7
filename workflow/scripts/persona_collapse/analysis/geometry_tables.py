"""Tables of persona geometry, each a pure function of the design and the chains' activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from .. import geometry as geo
from ..chains import BASE
from ..statistics import (
    Families,
    adjust,
    sign_flip_test,
    sign_flip_units,
    student_interval,
    tost_units,
)
from .views import Load, cells_of, measuring, views

GEOMETRY_COLUMNS = [
    "chain", "condition", "seed", "method", "layer", "metric", "value", "ci_low", "ci_high",
    "delta_base", "p", "q", "p_floor", "n", "note", "delta_low", "delta_high", "family",
]  # fmt: skip
CONTRAST_COLUMNS = [
    "condition", "reference", "chain", "reference_chain", "source", "seed", "method", "layer", "metric",
    "estimate", "ci_low", "ci_high", "p", "p_floor", "p_pairs", "margin", "p_equivalent", "n", "q",
    "family",
]  # fmt: skip


def geometry_table(
    grid: pd.DataFrame,
    load: Load,
    *,
    draws: int,
    seed: int,
    longest: str = "",
    families: Families = (),
) -> pd.DataFrame:
    """Every geometric measure of every chain, method and layer, against the base model.

    `load` gives a chain's activations; one chain is in memory at a time, and of the base only the
    persona vectors and resampled cosines. Metrics, on persona vectors (means over questions):

    m1                  mean cosine over pairs of personas, not centred. p: sign flips over the
                        pairs, as the study did; pairs share personas, so it is too small. Interval:
                        questions resampled
    m1_by_persona       the same value; p: sign flips over the personas' effects (pseudo-values), all
                        2^n where they are no more than `draws`. Interval: jackknife over personas
    m1_two_way          the same value; interval: questions and personas resampled together
    m1_label_swap       the same value; p: each persona's vectors before and after swapped or not
    m1_centred          after the mean over personas is taken out; -1/(n-1) if directions are spread
                        evenly
    m1_without_longest  m1 without the persona `longest`, the one with the longest prompt
    spread              distance of the personas to their mean, over that mean's norm
    mean_distance       mean distance over pairs, in the model's units
    effective_rank      of the centred vectors
    cka_base            linear CKA with the base model's vectors; 1 for the base
    distance_agreement  Spearman correlation of the pairwise distances with the base model's
    m1_split_half       noise floor of m1 from halves of the questions
    m1_replicate        noise floor of m1 from retraining: standard deviation over the seeds of a
                        condition, one row a condition (chain empty, n seeds)
    m1_over_seeds       mean over those seeds; t test and interval of the change with the training run
                        as the unit, the only ones that know how much retraining moves M1

    delta_base is the change from the base, with delta_low and delta_high (questions for m1, personas
    for m1_by_persona, both for m1_two_way). q is Benjamini-Hochberg within `families`.
    """
    base: dict[tuple[str, int], np.ndarray] = {}
    base_cosines: dict[tuple[str, int], np.ndarray] = {}
    rows: list[dict[str, Any]] = []
    intervals = min(draws, 1000)
    for view in views(grid, load):
        chain, method, layer, vectors = view.chain, view.method, view.layer, view.vectors
        resampled = geo.resampled_cosines(view.stack, intervals, seed)
        if chain == BASE:
            base[method, layer], base_cosines[method, layer] = vectors, resampled
        before, before_resampled = base[method, layer], base_cosines[method, layer]
        key = {"chain": chain, "method": method, "layer": layer}

        def add(
            metric: str,
            value: float,
            delta: float = np.nan,
            *,
            key: dict[str, Any] = key,
            interval: tuple[float, float] = (np.nan, np.nan),
            delta_interval: tuple[float, float] = (np.nan, np.nan),
            **test: Any,
        ) -> None:
            rows.append(
                {
                    **key,
                    "metric": metric,
                    "value": value,
                    "delta_base": delta,
                    "ci_low": interval[0],
                    "ci_high": interval[1],
                    "delta_low": delta_interval[0],
                    "delta_high": delta_interval[1],
                    **test,
                }
            )

        m1, delta = geo.mean_offdiagonal_cosine(vectors), 0.0
        weights = geo.persona_weights(len(vectors), len(resampled), seed + 1)
        unit_tests: dict[str, dict[str, Any]] = {"m1": {}, "m1_by_persona": {}, "swap": {}}
        delta_of: dict[str, tuple[float, float]] = dict.fromkeys(
            ("questions", "personas", "both"), (np.nan, np.nan)
        )
        if chain != BASE:
            delta = m1 - geo.mean_offdiagonal_cosine(before)
            after_pairs, before_pairs = geo.pair_cosines(vectors), geo.pair_cosines(before)
            n_pairs, n = len(after_pairs), len(vectors)
            unit_tests["m1"] = {
                "p": sign_flip_test(after_pairs, before_pairs, draws, seed),
                "p_floor": max(1 / (draws + 1), 2.0 ** (1 - n_pairs)),
                "n": n_pairs,
            }
            effects = geo.persona_effects(vectors, before)
            p, p_floor = sign_flip_units(effects, draws, seed) if n > 2 else (np.nan, np.nan)
            unit_tests["m1_by_persona"] = {"p": p, "p_floor": p_floor, "n": n}
            p, p_floor = geo.swap_test(vectors, before, draws, seed)
            unit_tests["swap"] = {"p": p, "p_floor": p_floor, "n": n}
            change = np.zeros((0, n, n))
            if len(resampled) == len(before_resampled):
                change = resampled - before_resampled
            delta_of = {
                "questions": geo.basic_interval(delta, geo.mean_pairs(change)),
                "personas": geo.jackknife_interval(effects),
                "both": geo.basic_interval(delta, geo.mean_pairs(change, weights)),
            }
        own = {
            "questions": geo.basic_interval(m1, geo.mean_pairs(resampled)),
            "personas": geo.jackknife_interval(geo.persona_effects(vectors)),
            "both": geo.basic_interval(m1, geo.mean_pairs(resampled, weights)),
        }
        for metric, unit, test in (
            ("m1", "questions", unit_tests["m1"]),
            ("m1_by_persona", "personas", unit_tests["m1_by_persona"]),
            ("m1_two_way", "both", {}),
        ):
            # M1 is a cosine: an interval does not go beyond 1.
            interval = own[unit][0], min(own[unit][1], 1.0)
            add(metric, m1, delta, interval=interval, delta_interval=delta_of[unit], **test)
        add("m1_label_swap", m1, delta, **unit_tests["swap"])
        for metric, measure in geo.MEASURES.items():
            value = measure(vectors)
            add(metric, value, value - measure(before))
        if longest in view.personas and len(view.personas) > 2:
            keep = [i for i, persona in enumerate(view.personas) if persona != longest]
            value = geo.mean_offdiagonal_cosine(vectors[keep])
            change_without = value - geo.mean_offdiagonal_cosine(before[keep])
            add("m1_without_longest", value, change_without, note=f"without {longest}")
        add("cka_base", geo.linear_cka(vectors, before))
        add("distance_agreement", geo.distance_agreement(vectors, before))
        add("m1_split_half", geo.split_half(view.stack, seed))
    table = pd.DataFrame(rows)
    table = table.reindex(columns=[c for c in GEOMETRY_COLUMNS if c not in ("condition", "seed")])
    table = cells_of(grid).merge(table, on="chain")
    table = table.reindex(columns=GEOMETRY_COLUMNS)
    over_seeds = _replicates(table)
    if len(over_seeds):
        table = pd.concat([table, over_seeds], ignore_index=True)
    return adjust(table, families).reindex(columns=GEOMETRY_COLUMNS)


def _replicates(table: pd.DataFrame) -> pd.DataFrame:
    """Rows over the training seeds of a condition: `m1_replicate` and `m1_over_seeds`."""
    m1 = table[table["metric"] == "m1"]
    rows = []
    for (condition, method, layer), own in m1.groupby(["condition", "method", "layer"], sort=False):
        n = len(own)
        if n < 2:
            continue
        key = {
            "condition": condition,
            "chain": "",
            "seed": "",
            "method": method,
            "layer": layer,
            "n": n,
        }
        delta = own["delta_base"].to_numpy(float)
        (low, high), (delta_low, delta_high) = map(student_interval, (own["value"], delta))
        rows.append(
            key
            | {"metric": "m1_replicate", "value": own["value"].std(), "note": "over training seeds"}
        )
        rows.append(
            key
            | {"metric": "m1_over_seeds", "value": own["value"].mean(), "delta_base": delta.mean()}
            | {"ci_low": low, "ci_high": min(high, 1.0)}
            | {"delta_low": delta_low, "delta_high": delta_high}
            | {"p": float(stats.ttest_1samp(delta, 0).pvalue) if np.ptp(delta) > 0 else np.nan}
        )
    return pd.DataFrame(rows, columns=table.columns)


def geometry_contrasts(
    grid: pd.DataFrame,
    load: Load,
    contrasts: Sequence[tuple[str, str]],
    *,
    margin: float,
    draws: int,
    seed: int,
    families: Families = (),
) -> pd.DataFrame:
    """M1 of one condition minus another's, with tests of a difference and of equivalence.

    `contrasts`: (condition, reference); chains of the same source and seed are compared. Where the
    reference does not follow that source, its chains of any do; where one side has a single chain, it is
    compared with all of the other's. `margin`: the largest difference of M1 that counts as none. `p`:
    sign flips over the personas' effects; `p_pairs`: over pairs, as the study did; `p_equivalent`: the
    larger of two one-sided t tests over personas, small where the difference is within the margin.
    Interval: jackknife over personas. q is Benjamini-Hochberg within `families`. Contrasts whose
    conditions are not in the grid are left out.
    """
    cells = {
        name: part.drop_duplicates("chain")
        for name, part in measuring(grid, "activations").groupby("condition")
    }
    pairs = []
    for condition, reference in contrasts:
        if condition not in cells or reference not in cells:
            continue
        for cell in cells[condition].itertuples(index=False):
            own = cells[condition][cells[condition]["source"] == cell.source]
            others = cells[reference]
            if cell.source in set(others["source"]):
                others = others[others["source"] == cell.source]
            same = others[others["seed"] == cell.seed]
            if same.empty and 1 in (len(own), len(others)):
                same = others
            for other in same.itertuples(index=False):
                seed_of = cell.seed if len(others) == 1 else other.seed
                key = condition, reference, cell.chain, other.chain, cell.source, seed_of
                pairs.append(key)
    wanted = {chain for pair in pairs for chain in pair[2:4]}
    vectors: dict[str, dict[tuple[str, int], np.ndarray]] = {}
    for view in views(grid[grid["chain"].isin(wanted)], load):
        vectors.setdefault(view.chain, {})[view.method, view.layer] = view.vectors
    rows = []
    for condition, reference, one, two, source, own_seed in pairs:
        if one == two:
            continue
        for (method, layer), after in vectors[one].items():
            before = vectors[two][method, layer]
            effects = geo.persona_effects(after, before)
            if len(effects) < 3:
                continue
            low, high = geo.jackknife_interval(effects)
            p, p_floor = sign_flip_units(effects, draws, seed)
            pair_cosines = geo.pair_cosines(after), geo.pair_cosines(before)
            rows.append(
                {
                    "condition": condition,
                    "reference": reference,
                    "chain": one,
                    "reference_chain": two,
                    "source": source,
                    "seed": own_seed,
                    "method": method,
                    "layer": layer,
                    "metric": "m1",
                    "estimate": effects.mean(),
                    "ci_low": low,
                    "ci_high": high,
                    "p": p,
                    "p_floor": p_floor,
                    "p_pairs": sign_flip_test(*pair_cosines, draws, seed),
                    "margin": margin,
                    "p_equivalent": tost_units(effects, margin),
                    "n": len(effects),
                }
            )
    table = pd.DataFrame(rows, columns=CONTRAST_COLUMNS)
    return adjust(table, families).reindex(columns=CONTRAST_COLUMNS)


def cosines(grid: pd.DataFrame, load: Load) -> pd.DataFrame:
    """Persona-by-persona cosines; `centred`: after the personas' mean is taken out."""
    parts = []
    for view in views(grid, load):
        names = view.personas
        index = pd.MultiIndex.from_product([names, names], names=["persona_a", "persona_b"])
        values = {
            "cosine": geo.cosine_matrix(view.vectors).ravel(),
            "centred": geo.cosine_matrix(geo.centred(view.vectors)).ravel(),
        }
        table = pd.DataFrame(values, index=index).reset_index()
        parts.append(table.assign(chain=view.chain, method=view.method, layer=view.layer))
    columns = ["condition", "chain", "seed", "method", "layer", "persona_a", "persona_b"]
    columns += ["cosine", "centred"]
    return cells_of(grid).merge(pd.concat(parts), on="chain").reindex(columns=columns)


def persona_map(grid: pd.DataFrame, load: Load) -> pd.DataFrame:
    """Every chain's persona vectors on the base model's first two principal components.

    The base's axes and centre serve all chains, so one chain's points can be set beside another's: a
    shift of all personas moves the cloud, a collapse shrinks it. Columns: condition, chain, seed,
    method, layer, persona, pc1, pc2, and `captured`: the share of the chain's own variance between
    personas that lies in that plane.
    """
    axes: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
    parts = []
    for view in views(grid, load):
        at = view.method, view.layer
        if view.chain == BASE:
            axes[at] = geo.principal_axes(view.vectors)
        centre, plane = axes[at]
        points = (view.vectors - centre) @ plane.T
        total = geo.centred(view.vectors)
        table = pd.DataFrame({"persona": view.personas, "pc1": points[:, 0], "pc2": points[:, 1]})
        parts.append(
            table.assign(
                chain=view.chain,
                method=view.method,
                layer=view.layer,
                captured=float(np.sum((total @ plane.T) ** 2) / np.sum(total**2)),
            )
        )
    columns = ["condition", "chain", "seed", "method", "layer", "persona", "pc1", "pc2", "captured"]
    return cells_of(grid).merge(pd.concat(parts), on="chain").reindex(columns=columns)
