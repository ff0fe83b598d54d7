"""Geometry over training runs: levels, changes and contrasts of conditions, with the run as the unit.

What one chain shows of a metric has three sources of error: the run (another seed of the training), the
personas and the questions. Runs are replicated by seeds. Personas and questions are the same in all
chains, so seeds do not show their part; it comes from leaving each out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from .. import chains
from .. import geometry as geo
from ..chains import BASE
from ..statistics import Families, OverRuns, adjust, compare_runs, over_runs
from .views import Headline, Load, mark_headline, measuring, views

COLUMNS = [
    "condition", "reference", "method", "layer", "headline", "metric", "value", "estimate", "ci_low",
    "ci_high", "p", "q", "family", "runs", "units", "sd_runs", "within", "note", "dose",
]  # fmt: skip
LEFT_OUT_COLUMNS = ["chain", "method", "layer", "metric", "left_out", "name", "value"]
#: What a condition with a single training run has instead of an interval.
ONE_RUN = "one training run"
CELL = ["method", "layer", "metric"]


def left_out_table(design: pd.DataFrame, load: Load) -> pd.DataFrame:
    """Every metric of every chain, method and block: as it is, and without each persona or question.

    `left_out`: empty, persona or question; `name`: of what is left out. See `geometry.left_out`.
    """
    parts = []
    for view in views(design, load):
        wholes = {
            "m1": geo.mean_offdiagonal_cosine(view.vectors),
            "m1_unbiased": geo.m1_unbiased(view.stack),
        } | {name: metric(view.vectors) for name, metric in geo.METRICS.items()}
        for metric, (personas, questions) in geo.left_out(view.stack).items():
            kinds = ["", *["persona"] * len(personas), *["question"] * len(questions)]
            names = ["", *view.personas[: len(personas)], *view.questions[: len(questions)]]
            values = np.concatenate([[wholes[metric]], personas, questions])
            columns = {"left_out": kinds, "name": names, "value": values}
            parts.append(view.key | {"metric": metric} | columns)
    sizes = [len(part["value"]) for part in parts]
    table = {
        key: np.repeat([part[key] for part in parts], sizes) for key in LEFT_OUT_COLUMNS[:4]
    } | {key: np.concatenate([part[key] for part in parts]) for key in LEFT_OUT_COLUMNS[4:]}
    return pd.DataFrame(table, columns=LEFT_OUT_COLUMNS)


@dataclass(frozen=True)
class Wide:
    """A `left_out_table`, one row per method, block and metric: values [cell, chain, left out]."""

    cells: pd.MultiIndex
    chains: list[str]
    columns: pd.MultiIndex
    values: np.ndarray

    def of(self, weights: Mapping[str, float]) -> np.ndarray:
        """[cell, left out]: a sum of chains' values by their weights."""
        rows = [self.chains.index(chain) for chain in weights]
        out: np.ndarray = np.tensordot(self.values[:, rows], list(weights.values()), (1, 0))
        return out

    def errors(self, weights: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
        """Standard error of such a sum from personas and questions, and its units; [cell] each.

        The two variances are added, which counts what a persona says to one question twice and so is
        rather too large. Units: one more than the degrees of freedom (Satterthwaite 1946). Of a kind of
        which fewer than three can be left out nothing is known; it adds nothing.
        """
        sums = self.of(weights)
        variances, freedom = [], []
        for kind in ("persona", "question"):
            inside = sums[:, self.columns.get_level_values("left_out") == kind]
            n = inside.shape[1]
            if n > 2:
                centred = inside - inside.mean(axis=1, keepdims=True)
                variances.append((n - 1) / n * (centred**2).sum(axis=1))
                freedom.append(n - 1)
        if not variances:
            return np.zeros(len(sums)), np.full(len(sums), np.inf)
        total = np.sum(variances, axis=0)
        parts = sum(v**2 / f for v, f in zip(variances, freedom, strict=True))
        known = np.divide(total**2, parts, out=np.full(len(sums), np.inf), where=parts > 0)
        return np.sqrt(total), known + 1


def wide(left_out: pd.DataFrame) -> Wide:
    """A `left_out_table` as an array."""
    known = left_out.set_index([*CELL, "chain", "left_out", "name"])["value"]
    table = known.unstack(["left_out", "name"]).unstack("chain")
    names = list(dict.fromkeys(table.columns.get_level_values("chain")))
    columns = table.columns.droplevel("chain")[:: len(names)]
    values = table.to_numpy().reshape(len(table), len(columns), len(names)).transpose(0, 2, 1)
    return Wide(table.index, names, columns, values)


@dataclass(frozen=True)
class Comparison:
    """A condition's chains against others: none (its level), the base model's, or another condition's."""

    condition: str
    reference: str
    dose: str
    own: list[str]
    others: list[str]

    @property
    def key(self) -> dict[str, Any]:
        """Key columns of its rows."""
        return {"condition": self.condition, "reference": self.reference, "dose": self.dose}

    @property
    def weights(self) -> dict[str, float]:
        """What each chain counts: roots alike, and within a root its chains alike; others negative."""
        found: dict[str, float] = {}
        for sign, names in ((1, self.own), (-1, self.others)):
            roots = pd.Series([chains.root(name) for name in names], index=names, dtype=object)
            size = roots.map(roots.value_counts()) * roots.nunique()
            for name, share in (sign / size).items():
                found[str(name)] = found.get(str(name), 0.0) + share
        return found

    def over(self, values: Mapping[str, float], within: float, units: float) -> OverRuns:
        """Its estimate over training runs, from each chain's value; see `statistics.over_runs`."""
        own, others = (
            pd.Series([values[n] for n in names], [chains.root(n) for n in names], dtype=float)
            for names in (self.own, self.others)
        )
        if set(others.index) <= {BASE}:  # which is no training run
            return over_runs(own - others.sum(), list(own.index), within, units)
        return compare_runs(own, others, within, units)


def comparisons(
    design: pd.DataFrame, contrasts: Sequence[tuple[str, str]] = ()
) -> Iterator[Comparison]:
    """What is compared: each condition's level; its change; and the conditions of `contrasts`.

    The change is that from the base model, unless the condition's chains go on from a trained one. Then
    it is that from the chains that they go on from, under the condition that these are of; and, where the
    adapters that they go on from are several, from the base model as well. Chains stopped at different
    steps are no replicates: a condition with doses has rows for each.
    """
    cells = measuring(design, "activations").drop_duplicates(["condition", "chain"])
    cells = cells.assign(
        dose=[name.partition("~")[2] for name in cells["chain"]],
        root=cells["chain"].map(chains.root),
        before=[name.rpartition("+")[0] or BASE for name in cells["chain"]],
    )
    measured = set(cells["chain"])
    by_condition = {name: set(rows["chain"]) for name, rows in cells.groupby("condition")}
    if BASE not in measured:
        yield Comparison(BASE, "", "", [BASE], [])
    for (condition, dose), rows in cells.groupby(["condition", "dose"], sort=False):
        own = list(rows["chain"])
        yield Comparison(condition, "", dose, own, [])
        if own == [BASE]:
            continue
        before = list(dict.fromkeys(rows["before"]))
        if before == [BASE] or rows["root"].nunique() > 1:
            yield Comparison(condition, BASE, dose, own, [BASE])
        if BASE not in before and set(before) <= measured:
            holding = (name for name in cells["condition"] if set(before) <= by_condition[name])
            name = next(holding, None)
            if name is not None:
                yield Comparison(condition, name, dose, own, before)
        for one, other in contrasts:
            references = cells[(cells["condition"] == other) & (cells["dose"] == dose)]
            others = list(references["chain"])
            if one == condition and others and set(others) != set(own) and others != [BASE]:
                yield Comparison(condition, other, dose, own, others)


def geometry_runs(
    design: pd.DataFrame,
    left_out: pd.DataFrame,
    headline: Headline,
    contrasts: Sequence[tuple[str, str]] = (),
    *,
    shared_axis: pd.DataFrame | None = None,
    separability: pd.DataFrame | None = None,
    families: Families = (),
) -> pd.DataFrame:
    """Each condition's metrics over training runs: level, change and contrasts; see `comparisons`.

    `value`: mean level of the condition. `estimate`: its difference to the reference; without one, the
    level. `runs` are chains and `units` those that share no adapter; the interval (of `estimate`) and p
    are over units, and there is none with a single one. `sd_runs`: standard deviation over units.
    `within`: standard error that all runs share, from personas and questions. Metrics of the other two
    tables have levels alone: m2_held_out without the chain that the axis is of, which is no evidence
    about it, and m3_accuracy. q is Benjamini-Hochberg within `families`.
    """
    found = wide(left_out)
    position = found.columns.get_loc(("", ""))
    rows: list[dict[str, Any]] = []
    known = set(found.chains)
    levels: dict[tuple[str, str], np.ndarray] = {}
    done = set()
    for pair in comparisons(design, contrasts):
        at = (pair.condition, pair.reference, pair.dose)
        if at in done or not {*pair.own, *pair.others} <= known:
            continue
        done.add(at)
        estimates = found.of(pair.weights)[:, position]
        errors, units = found.errors(pair.weights)
        if not pair.reference:
            levels[pair.condition, pair.dose] = estimates
        level = levels[pair.condition, pair.dose]
        columns = [found.chains.index(name) for name in (*pair.own, *pair.others)]
        for number, cell in enumerate(found.cells):
            values = found.values[number, columns, position]
            by_chain = dict(zip((*pair.own, *pair.others), values, strict=True))
            over = pair.over(by_chain, float(errors[number]), float(units[number]))
            key = pair.key | dict(zip(CELL, cell, strict=True)) | {"runs": len(pair.own)}
            rows.append(key | _row(pair, over, level[number], errors[number], units[number]))
    for table, metric in ((shared_axis, "m2_held_out"), (separability, "m3_accuracy")):
        if table is not None and len(table):
            rows += _levels(design, table, metric)
    out = mark_headline(pd.DataFrame(rows, columns=COLUMNS), headline)
    return adjust(out, families).reindex(columns=COLUMNS)


def _row(
    pair: Comparison, over: OverRuns, level: float, within: float, units: float
) -> dict[str, Any]:
    row: dict[str, Any] = {"value": level}
    row |= {"estimate": over.estimate, "ci_low": over.low, "ci_high": over.high}
    row |= {"p": over.p if pair.reference else np.nan, "units": over.units, "sd_runs": over.sd}
    row |= {"within": within, "note": ONE_RUN if over.units < 2 else ""}
    if pair.own == [BASE]:
        half = student(0.975, units) * within
        row |= {"ci_low": level - half, "ci_high": level + half} if half > 0 else {}
        row |= {"note": "not trained: interval over personas and questions"}
    return row


def student(quantile: float, units: float) -> float:
    """Quantile of Student's t with one degree of freedom fewer than units, which may be a fraction."""
    return float(
        special.stdtrit(units - 1, quantile) if np.isfinite(units) else special.ndtri(quantile)
    )


def _levels(design: pd.DataFrame, table: pd.DataFrame, metric: str) -> Iterator[dict[str, Any]]:
    """Levels over runs of a metric that has one row and interval per chain in a table of its own."""
    own = table[table["metric"] == metric].drop_duplicates(
        ["condition", "chain", "method", "layer"]
    )
    by_chain = {key: rows.set_index("chain") for key, rows in own.groupby(["method", "layer"])}
    for pair in comparisons(design):
        if pair.reference:
            continue
        for (method, layer), rows in by_chain.items():
            rows = rows[~rows.index.duplicated()]
            some = rows.loc[[name for name in pair.own if name in rows.index]]
            if some.empty:
                continue
            note = ""
            if "anchor" in some:
                others = some[some.index != some["anchor"]]
                note = "" if len(others) else "the axis is this chain's own"
                some = others if len(others) else some
            # Bounds of shares and cosines are cut at the ends of their range; the other side is whole.
            half = np.maximum(some["value"] - some["ci_low"], some["ci_high"] - some["value"])
            units = np.inf if metric == "m3_accuracy" else float(some["n"].iloc[0])
            within = float(half.mean()) / student(0.975, units) if units > 2 else np.nan
            level = Comparison(pair.condition, "", pair.dose, list(some.index), [])
            over = level.over(some["value"], within, units)
            row = _row(level, over, over.estimate, within, units)
            row["note"] = "; ".join(filter(None, [row["note"], note]))
            key = level.key | {"method": method, "layer": layer, "metric": metric}
            yield key | row | {"runs": len(some)}
