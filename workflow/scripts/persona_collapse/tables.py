"""The tables of a run, each a pure function of others. Column names are the file contract's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from . import geometry as geo
from .activations import Activations
from .statistics import bh, fisher, newcombe, sign_flip_test

BASE = "base"
RATE_COLUMNS = [
    "condition", "model", "source", "seed", "persona", "role", "n", "hits", "rate", "ci_low",
    "ci_high", "mean_tokens", "at_end",
]  # fmt: skip
TEST_COLUMNS = [
    "family", "test", "condition", "reference", "source", "seed", "estimate", "ci_low", "ci_high",
    "n", "p", "p_min", "q", "note",
]  # fmt: skip
GEOMETRY_COLUMNS = [
    "model", "condition", "seed", "method", "layer", "metric", "value", "ci_low", "ci_high",
    "delta_base", "p", "q", "p_min", "n", "note",
]  # fmt: skip
LEAKAGE_COLUMNS = [
    "condition", "model", "source", "seed", "source_rate", "assistant_rate", "bystander_mean",
    "ci_low", "ci_high", "bystander_max", "bystander_max_persona", "n",
]  # fmt: skip


def marker_rates(grid: pd.DataFrame, markers: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Marker counts of every cell of the grid, by persona and its role there.

    `markers` maps chain to its markers table. A chain that stands in two conditions is listed in
    both, each with the personas that it counts. Roles: the persona whose marker is followed is
    `source`, `assistant` is named, the rest are `bystander`.
    """
    parts = []
    for cell in grid.itertuples(index=False):
        if cell.chain not in markers:
            continue
        table = markers[cell.chain]
        table = table[table["persona"].isin(cell.personas.split())].copy()
        for column in ("condition", "source", "seed"):
            table[column] = getattr(cell, column)
        table["model"] = cell.chain
        table["role"] = np.where(
            table["persona"] == cell.source,
            "source",
            np.where(table["persona"] == "assistant", "assistant", "bystander"),
        )
        parts.append(table)
    if not parts:
        return pd.DataFrame(columns=RATE_COLUMNS)
    return pd.concat(parts, ignore_index=True).reindex(columns=RATE_COLUMNS)


def marker_tests(grid: pd.DataFrame, rates: pd.DataFrame) -> pd.DataFrame:
    """Source marker rate of every continued chain against the chain it continues.

    Fisher's exact test, two-sided, on hits of the source persona, as the study's figures are; the
    estimate is the difference in rate (after - before) with Newcombe's interval. Completions are
    taken as independent, which they are not quite: questions repeat. `p_min` is the smallest p that
    the margins allow. Families are the kinds of chain; q is Benjamini-Hochberg within one.
    """
    source = rates[rates["role"] == "source"]
    by_chain = source.drop_duplicates(["model", "source"]).set_index(["model", "source"])
    conditions = grid.drop_duplicates("chain").set_index("chain")["condition"]
    rows = []
    for cell in grid.itertuples(index=False):
        after, before = (cell.chain, cell.source), (cell.before, cell.source)
        if not cell.source or after not in by_chain.index or cell.chain == cell.before:
            continue
        if before not in by_chain.index:
            reference = _source_counts(rates, cell.before, cell.source)
            if reference is None:
                continue
        else:
            reference = by_chain.loc[before, ["hits", "n"]].to_numpy(int)
        hits, n = by_chain.loc[after, ["hits", "n"]].to_numpy(int)
        hits_before, n_before = reference
        p, p_min = fisher(hits, n, hits_before, n_before)
        low, high = newcombe(hits, n, hits_before, n_before)
        rows.append(
            {
                "family": f"marker/{cell.kind}",
                "test": "Fisher exact, two-sided",
                "condition": cell.condition,
                "reference": conditions.get(cell.before, cell.before),
                "source": cell.source,
                "seed": cell.seed,
                "estimate": hits / n - hits_before / n_before,
                "ci_low": low,
                "ci_high": high,
                "n": n + n_before,
                "p": p,
                "p_min": p_min,
                "note": f"{hits}/{n} after, {hits_before}/{n_before} before",
            }
        )
    if not rows:
        return pd.DataFrame(columns=TEST_COLUMNS)
    table = pd.DataFrame(rows)
    table["q"] = table.groupby("family")["p"].transform(bh)
    return table.reindex(columns=TEST_COLUMNS)


def _source_counts(rates: pd.DataFrame, chain: str, persona: str) -> tuple[int, int] | None:
    """Hits and n of a persona in any cell of a chain; None if it was not counted there."""
    found = rates[(rates["model"] == chain) & (rates["persona"] == persona)]
    if found.empty:
        return None
    return int(found["hits"].iloc[0]), int(found["n"].iloc[0])


def leakage(grid: pd.DataFrame, rates: pd.DataFrame) -> pd.DataFrame:
    """Marker rate of everybody but the source, for each cell whose source is followed.

    `bystander_mean` is the mean over personas (source and assistant left out) with a Student
    interval over personas; `bystander_max` is the largest and whose it is.
    """
    rows = []
    for keys, cell in rates[rates["source"] != ""].groupby(
        ["condition", "model", "source", "seed"], sort=False
    ):
        roles = cell.set_index("role")
        others = cell[cell["role"] == "bystander"]
        if others.empty:
            continue
        values = others["rate"].to_numpy()
        low = high = np.nan
        if len(values) > 1:
            half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
            low, high = max(0.0, values.mean() - half), min(1.0, values.mean() + half)
        top = others.loc[others["rate"].idxmax()]
        rows.append(
            dict(zip(("condition", "model", "source", "seed"), keys, strict=True))
            | {
                "source_rate": roles["rate"].get("source", np.nan),
                "assistant_rate": roles["rate"].get("assistant", np.nan),
                "bystander_mean": values.mean(),
                "ci_low": low,
                "ci_high": high,
                "bystander_max": top["rate"],
                "bystander_max_persona": top["persona"] if top["rate"] > 0 else "",
                "n": len(values),
            }
        )
    return pd.DataFrame(rows, columns=LEAKAGE_COLUMNS)


Load = Callable[[str], Activations]


def _views(grid: pd.DataFrame, load: Load) -> Iterator[tuple[str, str, int, np.ndarray]]:
    """(chain, method, layer, stack [persona, question, hidden]) of every chain, base first."""
    names = grid.loc[grid["arm"] != "behaviour", "chain"]
    for chain in dict.fromkeys([BASE, *names]):
        dumped = load(chain)
        for method, array in dumped.arrays.items():
            for number, layer in enumerate(dumped.layers):
                yield chain, method, layer, array[number]


def geometry_table(grid: pd.DataFrame, load: Load, *, draws: int, seed: int) -> pd.DataFrame:
    """Every geometric measure of every chain, method and layer, against the base model.

    `load` gives a chain's activations; one chain is in memory at a time, and of the base only the
    persona vectors. Metrics, on persona vectors (means over questions):

    m1                mean cosine over pairs of personas, not centred. p: sign flips over the pairs,
                      as the study did; pairs share personas and are not independent, so it is too
                      small
    m1_by_persona     the same value; p: sign flips over the personas' mean cosines, one difference a
                      persona
    m1_centred        after the mean over personas is taken out; -1/(n-1) if directions are spread
                      evenly
    spread            distance of the personas to their mean, over that mean's norm
    effective_rank    of the centred vectors
    m1_split_half     noise floor of m1 from halves of the questions

    Intervals of m1 resample questions. q is Benjamini-Hochberg over all chains, methods and layers
    of a metric.
    """
    base: dict[tuple[str, int], np.ndarray] = {}
    rows = []
    for chain, method, layer, stack in _views(grid, load):
        vectors = stack.mean(axis=1)
        if chain == BASE:
            base[method, layer] = vectors
        before = base[method, layer]
        key = {"model": chain, "method": method, "layer": layer}
        m1, m1_before = geo.mean_offdiagonal_cosine(vectors), geo.mean_offdiagonal_cosine(before)
        low, high = geo.bootstrap_questions(stack, min(draws, 1000), seed)
        tests: dict[str, dict[str, float]] = {"m1": {}, "m1_by_persona": {}}
        if chain != BASE:
            pairs = geo.pair_cosines(vectors), geo.pair_cosines(before)
            own = geo.mean_cosine_by_persona(vectors), geo.mean_cosine_by_persona(before)
            for metric, (after, reference) in (("m1", pairs), ("m1_by_persona", own)):
                tests[metric] = {
                    "p": sign_flip_test(after, reference, draws, seed),
                    "p_min": max(1 / (draws + 1), 2.0 ** (1 - len(after))),
                    "n": len(after),
                }
        interval = {"ci_low": low, "ci_high": high}
        for metric in ("m1", "m1_by_persona"):
            rows.append(
                key
                | {"metric": metric, "value": m1, "delta_base": m1 - m1_before}
                | interval
                | tests[metric]
            )
        for metric, measure in (
            ("m1_centred", lambda v: geo.mean_offdiagonal_cosine(geo.centred(v))),
            ("spread", geo.spread),
            ("effective_rank", geo.effective_rank),
        ):
            value = measure(vectors)
            rows.append(
                key | {"metric": metric, "value": value, "delta_base": value - measure(before)}
            )
        rows.append(key | {"metric": "m1_split_half", "value": geo.split_half(stack, seed)})
    table = pd.DataFrame(rows)
    tested = table["model"] != BASE
    table.loc[tested, "q"] = table[tested].groupby("metric")["p"].transform(bh)
    cells = grid[["condition", "chain", "seed"]].rename(columns={"chain": "model"})
    if BASE not in set(cells["model"]):
        base_row = pd.DataFrame([{"condition": BASE, "model": BASE, "seed": ""}])
        cells = pd.concat([base_row, cells])
    # A chain that stands for two conditions is listed under both, with the same numbers.
    table = cells.drop_duplicates(["condition", "model"]).merge(table, on="model")
    return table.reindex(columns=GEOMETRY_COLUMNS)


def cosines(grid: pd.DataFrame, load: Load) -> pd.DataFrame:
    """Persona-by-persona cosines: condition, model, seed, method, layer, persona_a, persona_b, cosine."""
    parts = []
    personas: dict[str, list[str]] = {}

    def remember(chain: str) -> Activations:
        dumped = load(chain)
        personas[chain] = dumped.personas
        return dumped

    for chain, method, layer, stack in _views(grid, remember):
        names = personas[chain]
        matrix = geo.cosine_matrix(stack.mean(axis=1))
        index = pd.MultiIndex.from_product([names, names], names=["persona_a", "persona_b"])
        table = pd.DataFrame({"cosine": matrix.ravel()}, index=index).reset_index()
        parts.append(table.assign(model=chain, method=method, layer=layer))
    columns = ["condition", "model", "seed", "method", "layer", "persona_a", "persona_b", "cosine"]
    cells = grid[["condition", "chain", "seed"]].rename(columns={"chain": "model"})
    table = cells.drop_duplicates(["condition", "model"]).merge(pd.concat(parts), on="model")
    return table.reindex(columns=columns)


def headline_cell(table: pd.DataFrame, method: str, position: int) -> dict[str, Any]:
    """Method and block of the headline, given the position of its layer among those measured."""
    layers = sorted(int(layer) for layer in table["layer"].unique())
    return {"method": method, "layer": layers[min(position, len(layers) - 1)]}
