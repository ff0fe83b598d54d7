"""Geometry over training runs: levels, changes and contrasts of conditions, with the run as unit.

A metric of one chain has three sources of error: the run (another training seed), the personas and the
questions. Seeds replicate runs. Personas and questions are the same in all chains, so seeds do not show
their part; leave-one-out estimates do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from .. import chains
from .. import geometry as geo
from ..chains import BASE
from ..statistics import Families, OverRuns, adjust, compare_runs, over_runs
from .views import (
    Headline,
    Load,
    View,
    bases_of,
    chains_of,
    headline_rows,
    mark_headline,
    measuring,
    side_by_side,
    views,
)

COLUMNS = [
    "condition", "reference", "method", "layer", "headline", "metric", "value", "estimate", "ci_low",
    "ci_high", "p", "q", "family", "runs", "units", "sd_runs", "within", "note", "dose", "margin",
    "p_equivalent", "same_low", "same_high", "chains", "reference_chains",
]  # fmt: skip
LEFT_OUT_COLUMNS = ["chain", "method", "layer", "metric", "left_out", "name", "value"]
#: Note of a condition with a single training run, which has no interval.
ONE_RUN = "one training run"
CELL = ["method", "layer", "metric"]
#: `statistics: margins: m1:` of the config: a difference of M1, or "replicate".
Margin = float | str


def left_out_table(design: pd.DataFrame, load: Load, threads: int = 1) -> pd.DataFrame:
    """Every metric of every chain, method and block: in full, and without each persona or question.

    `left_out`: empty, persona or question; `name`: the persona or question. See `geometry.left_out`.
    `threads` chains are worked on in parallel.
    """

    def parts_of(chain: str) -> list[dict[str, Any]]:
        return [part for view in views(design, load, [chain]) for part in _left_out(view)]

    parts = side_by_side(parts_of, chains_of(design), threads)
    sizes = [len(part["value"]) for part in parts]
    table = {
        key: np.repeat([part[key] for part in parts], sizes) for key in LEFT_OUT_COLUMNS[:4]
    } | {key: np.concatenate([part[key] for part in parts]) for key in LEFT_OUT_COLUMNS[4:]}
    return pd.DataFrame(table, columns=LEFT_OUT_COLUMNS)


def _left_out(view: View) -> Iterator[dict[str, Any]]:
    """Columns of a `left_out_table`, metric by metric."""
    wholes = {
        "m1": geo.mean_offdiagonal_cosine(view.vectors),
        "m1_unbiased": geo.m1_unbiased(view.stack),
    } | {name: metric(view.vectors) for name, metric in geo.METRICS.items()}
    for metric, (personas, questions) in geo.left_out(view.stack).items():
        kinds = ["", *["persona"] * len(personas), *["question"] * len(questions)]
        names = ["", *view.personas[: len(personas)], *view.questions[: len(questions)]]
        values = np.concatenate([[wholes[metric]], personas, questions])
        columns = {"left_out": kinds, "name": names, "value": values}
        yield view.key | {"metric": metric} | columns


@dataclass(frozen=True)
class Wide:
    """A `left_out_table`, one row per method, block and metric: values [cell, chain, left out]."""

    cells: pd.MultiIndex
    chains: list[str]
    columns: pd.MultiIndex
    values: np.ndarray

    def of(self, weights: Mapping[str, float]) -> np.ndarray:
        """[cell, left out]: weighted sum of the chains' values."""
        rows = [self.chains.index(chain) for chain in weights]
        out: np.ndarray = np.tensordot(self.values[:, rows], list(weights.values()), (1, 0))
        return out

    def errors(self, weights: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
        """Standard error of such a sum due to personas and questions, and its units; [cell] each.

        The two variances are added. This counts the interaction of persona and question twice, so it is
        slightly too large. Units: degrees of freedom (Satterthwaite 1946) plus one. If fewer than three
        personas or questions can be left out, their part is unknown and not added.
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
    """A condition's chains against others: none (its level), the base model, or another condition's
    chains."""

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
    def which(self) -> dict[str, Any]:
        """Columns that identify the chains: the same chains in two conditions are one comparison."""
        return {"chains": " ".join(self.own), "reference_chains": " ".join(self.others)}

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the chains: roots are weighted equally, and so are chains within a root; `others`
        are negative."""
        found: dict[str, float] = {}
        for sign, names in ((1, self.own), (-1, self.others)):
            roots = pd.Series([chains.root(name) for name in names], index=names, dtype=object)
            size = roots.map(roots.value_counts()) * roots.nunique()
            for name, share in (sign / size).items():
                found[str(name)] = found.get(str(name), 0.0) + share
        return found

    def over(
        self,
        values: Mapping[str, float],
        within: float,
        units: float,
        less: float = 0.0,
        confidence: float = 0.95,
    ) -> OverRuns:
        """The estimate minus a number, over training runs, from each chain's value; see `over_runs`."""
        own, others = (
            pd.Series([values[n] for n in names], [chains.root(n) for n in names], dtype=float)
            for names in (self.own, self.others)
        )
        own = own - less
        if all(map(chains.untrained, others.index)):  # base models are not training runs
            alone = own - others.sum()
            return over_runs(alone, list(own.index), within, units, confidence)
        return compare_runs(own, others, within, units, confidence)

    def equivalence(
        self, values: Mapping[str, float], within: float, units: float, margin: float
    ) -> dict[str, float]:
        """Test of equivalence within +- margin: p of two one-sided tests, and the 90 % interval."""
        one_sided = []
        for sign in (1, -1):
            moved = self.over(values, within, units, sign * margin)
            inside = sign * moved.estimate < 0
            one_sided.append(moved.p / 2 if inside else 1 - moved.p / 2)
        over = self.over(values, within, units, confidence=0.9)
        p = float(max(one_sided)) if not np.isnan(one_sided).any() else float("nan")
        return {"margin": margin, "p_equivalent": p, "same_low": over.low, "same_high": over.high}


def comparisons(
    design: pd.DataFrame, contrasts: Sequence[tuple[str, str]] = ()
) -> Iterator[Comparison]:
    """The comparisons: each condition's level, its change, and the pairs in `contrasts`.

    If the chains do not continue a trained chain, the change is relative to their base model (reference
    `base`). Otherwise it is relative to the chains that they continue, and the reference is the
    condition of these. If they continue several adapters, the change from the base model is given as
    well. Chains stopped at different steps are not replicates. So a condition with doses has rows for
    each dose, compared with the same dose if the other condition has several. In a contrast of
    conditions that share some source personas, both have the chains of those alone.
    """
    cells = measuring(design, "activations")
    sources = _sources(cells)
    cells = cells.drop_duplicates(["condition", "chain"])
    cells = cells.assign(
        dose=[name.partition("~")[2] for name in cells["chain"]],
        root=cells["chain"].map(chains.root),
        before=[str(chains.parse(name).prefix) for name in cells["chain"]],
    )
    measured = set(cells["chain"])
    by_condition = {name: set(rows["chain"]) for name, rows in cells.groupby("condition")}
    for model in bases_of(design):
        if model not in measured:
            yield Comparison(model, "", "", [model], [])
    for (condition, dose), rows in cells.groupby(["condition", "dose"], sort=False):
        own = list(rows["chain"])
        yield Comparison(condition, "", dose, own, [])
        model = chains.model_of(own[0])
        if own == [model]:
            continue
        before = list(dict.fromkeys(rows["before"]))
        if before == [model] or rows["root"].nunique() > 1:
            yield Comparison(condition, BASE, dose, own, [model])
        if model not in before and set(before) <= measured:
            holding = (name for name in cells["condition"] if set(before) <= by_condition[name])
            name = next(holding, None)
            if name is not None:
                yield Comparison(condition, name, dose, own, before)
        for one, other in contrasts:
            if one != condition:
                continue
            references = cells[cells["condition"] == other]
            if references["dose"].nunique() > 1:
                references = references[references["dose"] == dose]
            ours, others = _of_shared_sources(
                sources, (condition, own), (other, list(references["chain"]))
            )
            if others and set(others) != set(ours) and others != [model]:
                yield Comparison(condition, other, dose, ours, others)


def _sources(cells: pd.DataFrame) -> dict[tuple[str, str], set[str]]:
    """The source personas of each condition and chain; none for a chain that follows no source."""
    if "source" not in cells:
        return {}
    named = cells[cells["source"].fillna("") != ""]
    return {key: set(own) for key, own in named.groupby(["condition", "chain"])["source"]}


def _of_shared_sources(
    sources: Mapping[tuple[str, str], set[str]], *sides: tuple[str, list[str]]
) -> Iterator[list[str]]:
    """The chains of two conditions, each (condition, chains), without sources that only one of them has."""
    covered = [
        {s for name in names for s in sources.get((condition, name), ())}
        for condition, names in sides
    ]
    shared = set.intersection(*covered)
    for condition, names in sides:
        if shared:
            names = [name for name in names if sources.get((condition, name), set()) & shared]
        yield names


def geometry_runs(
    design: pd.DataFrame,
    left_out: pd.DataFrame,
    headline: Headline,
    contrasts: Sequence[tuple[str, str]] = (),
    *,
    shared_axis: pd.DataFrame | None = None,
    separability: pd.DataFrame | None = None,
    margin: Margin = "replicate",
    families: Families = (),
) -> pd.DataFrame:
    """Each condition's metrics over training runs: level, change and contrasts; see `comparisons`.

    `value`: mean level of the condition. `estimate`: its difference from the reference, or the level
    without one. `runs`: number of chains. `units`: number of chains that share no adapter; the interval
    (of `estimate`) and p are over units, and need at least two. `sd_runs`: standard deviation over
    units. `within`: standard error due to personas and questions, which all runs share. Metrics of the
    other two tables have only levels: m3_accuracy, and m2_held_out without the chain that gives the
    axis, which is no evidence about it. `p_equivalent`: two one-sided tests that the difference is
    within `margin`, for m1, or for log_distance if the margin is `replicate` (see `replicate_margins`);
    the 90 % interval belongs to this test. q is Benjamini-Hochberg within `families`.
    """
    found = wide(left_out)
    position = found.columns.get_loc(("", ""))
    rows: list[dict[str, Any]] = []
    margins = replicate_margins(design, left_out) if margin == "replicate" else {}
    levels: dict[tuple[str, str], np.ndarray] = {}
    measured = set(left_out.groupby(["chain", "method", "layer"]).groups)
    for pair in _unique(design, contrasts, found):
        estimates = found.of(pair.weights)[:, position]
        errors, units = found.errors(pair.weights)
        if not pair.reference:
            levels[pair.condition, pair.dose] = estimates
        level = levels[pair.condition, pair.dose]
        columns = [found.chains.index(name) for name in (*pair.own, *pair.others)]
        for number, cell in enumerate(found.cells):
            if not {(name, *cell[:2]) for name in (*pair.own, *pair.others)} <= measured:
                continue  # a model of other blocks
            values = found.values[number, columns, position]
            by_chain = dict(zip((*pair.own, *pair.others), values, strict=True))
            over = pair.over(by_chain, float(errors[number]), float(units[number]))
            key = pair.key | dict(zip(CELL, cell, strict=True)) | {"runs": len(pair.own)}
            row = key | pair.which | _row(pair, over, level[number], errors[number], units[number])
            if pair.reference and cell[2] == ("log_distance" if margin == "replicate" else "m1"):
                size = margins.get(cell[:2], np.nan) if margin == "replicate" else float(margin)
                row |= pair.equivalence(by_chain, float(errors[number]), float(units[number]), size)
            rows.append(row)
    for table, metric in ((shared_axis, "m2_held_out"), (separability, "m3_accuracy")):
        if table is not None and len(table):
            rows += _levels(design, table, metric)
    out = mark_headline(pd.DataFrame(rows, columns=COLUMNS), headline)
    return adjust(out, families).reindex(columns=COLUMNS)


def replicate_margins(design: pd.DataFrame, left_out: pd.DataFrame) -> dict[tuple[str, int], float]:
    """By method and block, the difference of log(1 - M1) that retraining alone can make.

    Twice the standard deviation over independent runs of a condition, pooled over conditions by degrees
    of freedom; chains in several conditions count once. NaN if no condition has two runs. It is
    estimated from the same run that it is applied to; a number in the config is better if you know one.
    """
    own = left_out[(left_out["metric"] == "log_distance") & (left_out["left_out"] == "")]
    values = own.set_index(["method", "layer", "chain"])["value"].unstack("chain")
    squares, freedom = (pd.Series(0.0, index=values.index) for _ in range(2))
    seen = set()
    for pair in comparisons(design):
        names = [name for name in pair.own if name in values]
        if pair.reference or frozenset(names) in seen:
            continue
        seen.add(frozenset(names))
        means = values[names].T.groupby(chains.root).mean()
        # Models may have no block in common.
        degrees = (means.notna().sum() - 1).clip(lower=0)
        squares += (means.var() * degrees).fillna(0.0)
        freedom += degrees
    return (2 * np.sqrt(squares / freedom.where(freedom > 0))).to_dict()


def in_cosines(margin: float, m1: float) -> float:
    """The difference of M1 that a margin of log(1 - M1) allows above a mean cosine, which is the
    smaller side."""
    return float((1 - m1) * -np.expm1(-margin))


def _row(
    pair: Comparison, over: OverRuns, level: float, within: float, units: float
) -> dict[str, Any]:
    row: dict[str, Any] = {"value": level}
    row |= {"estimate": over.estimate, "ci_low": over.low, "ci_high": over.high}
    row |= {"p": over.p if pair.reference else np.nan, "units": over.units, "sd_runs": over.sd}
    row |= {"within": within, "note": ONE_RUN if over.units < 2 else ""}
    if all(map(chains.untrained, pair.own)):
        half = student(0.975, units) * within
        row |= {"ci_low": level - half, "ci_high": level + half} if half > 0 else {}
        row |= {"note": "not trained: interval over personas and questions"}
    return row


def student(quantile: float, units: float) -> float:
    """Quantile of Student's t with units - 1 degrees of freedom; units may be fractional."""
    return float(
        special.stdtrit(units - 1, quantile) if np.isfinite(units) else special.ndtri(quantile)
    )


def _levels(design: pd.DataFrame, table: pd.DataFrame, metric: str) -> Iterator[dict[str, Any]]:
    """Levels over runs of a metric with its own table of one row and interval per chain."""
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
            # Bounds of shares and cosines may be clipped to their range; the other side of the interval
            # is not.
            half = np.maximum(some["value"] - some["ci_low"], some["ci_high"] - some["value"])
            units = np.inf if metric == "m3_accuracy" else float(some["n"].iloc[0])
            within = float(half.mean()) / student(0.975, units) if units > 2 else np.nan
            level = Comparison(pair.condition, "", pair.dose, list(some.index), [])
            over = level.over(some["value"], within, units)
            row = _row(level, over, over.estimate, within, units)
            # Shares and cosines are at most 1.
            row["ci_high"] = min(row["ci_high"], 1.0)
            row["ci_low"] = max(row["ci_low"], 0.0 if metric == "m3_accuracy" else -1.0)
            row["note"] = "; ".join(filter(None, [row["note"], note]))
            key = level.key | {"method": method, "layer": layer, "metric": metric}
            yield key | level.which | row | {"runs": len(some)}


LEAVING_COLUMNS = [
    "quantity", "condition", "reference", "left_out", "name", "estimate", "whole", "dose",
]  # fmt: skip


def leave_one_out(
    design: pd.DataFrame,
    left_out: pd.DataFrame,
    headline: Headline,
    contrasts: Sequence[tuple[str, str]] = (),
) -> pd.DataFrame:
    """Changes and contrasts of M1 at the headline without one persona, question, source or run.

    quantity: m1_change (from the base model, or from the continued chains) and m1_gap (`contrasts`).
    `left_out`: persona, question, source or run; `name`: its name. A run means all chains of one
    adapter, on either side. `whole`: the estimate with everything. Units are not left out if nothing
    would remain.
    """
    inside = headline_rows(left_out[left_out["metric"] == "m1"], headline)
    if inside.empty:
        return pd.DataFrame(columns=LEAVING_COLUMNS)
    found = wide(inside)
    position = found.columns.get_loc(("", ""))
    gaps = {tuple(pair) for pair in contrasts}
    sources = design.drop_duplicates(["condition", "chain"]).set_index(["condition", "chain"])
    rows = []
    for pair in _unique(design, contrasts, found):
        if not pair.reference:
            continue
        sums = found.of(pair.weights)[0]
        key = {"quantity": "m1_gap" if (pair.condition, pair.reference) in gaps else "m1_change"}
        key |= pair.key | {"whole": sums[position]}
        for (kind, name), estimate in zip(found.columns, sums, strict=True):
            if kind and not np.isnan(estimate):
                rows.append(key | {"left_out": kind, "name": name, "estimate": estimate})
        groups = {
            "run": {
                name: "" if chains.untrained(name) else chains.root(name)
                for name in (*pair.own, *pair.others)
            }
        }
        if "source" in sources:
            groups["source"] = {
                name: sources["source"].get((condition, name), "")
                for condition, names in ((pair.condition, pair.own), (pair.reference, pair.others))
                for name in names
            }
        for kind, group in groups.items():
            for name in dict.fromkeys(group.values()):
                own, others = (
                    [chain for chain in names if group[chain] != name or chains.untrained(chain)]
                    for names in (pair.own, pair.others)
                )
                lost = len(own) + len(others) < len(pair.own) + len(pair.others)
                if name and lost and own and (others or not pair.others):
                    fewer = replace(pair, own=own, others=others)
                    estimate = found.of(fewer.weights)[0, position]
                    rows.append(key | {"left_out": kind, "name": name, "estimate": estimate})
    return pd.DataFrame(rows, columns=LEAVING_COLUMNS)


COMPONENT_COLUMNS = [
    "condition", "source", "outcome", "component", "sd", "ci_low", "ci_high", "levels", "scale", "note",
    "dose",
]  # fmt: skip


def variance_components(
    design: pd.DataFrame, left_out: pd.DataFrame, headline: Headline
) -> pd.DataFrame:
    """Variance components of a condition's log(1 - M1) at the headline, as standard deviations.

    source, coupling and run: due to the coupled persona, the coupling, and the training on top of it,
    by the method of moments on means of means (nested analysis of variance); intervals after Ting et
    al. 1990, see `moments`. Without a coupling there is only run. question and persona: due to a single
    question or persona, by the jackknife, with chi-square intervals; so the questions' part of a
    condition's variance is sd^2 / levels. With several sources there are rows for all together (source
    empty) and for each. A component that the design cannot identify has a `note` instead.
    """
    inside = headline_rows(left_out[left_out["metric"] == "log_distance"], headline)
    if inside.empty:
        return pd.DataFrame(columns=COMPONENT_COLUMNS)
    found = wide(inside)
    position = found.columns.get_loc(("", ""))
    values = pd.Series(found.values[0, :, position], found.chains)
    measured = measuring(design, "activations").drop_duplicates(["condition", "chain"])
    rows = []
    for pair in _unique(design, (), found):
        if pair.reference or all(map(chains.untrained, pair.own)):
            continue
        own = measured[measured["condition"] == pair.condition].set_index("chain").loc[pair.own]
        labels = own.get("source", pd.Series("", index=own.index)).fillna("").astype(str)
        several = labels.nunique() > 1
        for source in ["", *labels.unique()] if several else [""]:
            names = pair.own if not source else list(labels.index[labels == source])
            key = {"condition": pair.condition, "source": source, "outcome": "m1"}
            key |= {"dose": pair.dose, "scale": "log(1 - M1)"}
            tree = pd.DataFrame({"value": values[names].to_numpy()}, index=names)
            levels = {"source": labels[names]} if several and not source else {}
            roots = pd.Series([chains.root(name) for name in names], index=names)
            first, second = _stages(own.loc[names[0]])
            levels[first] = roots
            if second:
                levels[second] = pd.Series(names, index=names)
            rows += [key | row for row in moments(tree["value"], levels)]
            sums = found.of(replace(pair, own=names).weights)[0]
            for kind in ("question", "persona"):
                some = sums[found.columns.get_level_values("left_out") == kind]
                rows.append(key | {"component": kind} | _influence(some))
    return pd.DataFrame(rows, columns=COMPONENT_COLUMNS)


def _stages(cell: pd.Series) -> tuple[str, str]:
    """Labels of the runs of a chain's first stage and of its later stages; the second may be empty."""
    name, couples = str(cell.name), cell.get("stages_after_coupling")
    chain = chains.parse(name)
    staged = len(chain.stages) > 1
    first = bool(chain.stages) and not chain.stages[0].left_out
    if first and couples is not None and couples == len(chain.measured) - 1:
        return "coupling", "run" if staged else ""
    return "run", ("coupling" if couples == 0 else "later stage") if staged else ""


def _influence(without: np.ndarray) -> dict[str, Any]:
    """Standard deviation of a single unit's influence, from leave-one-out values."""
    n = len(without)
    error = geo.jackknife_error(without)
    if np.isnan(error):
        return {"levels": n, "note": "not identified: fewer than three"}
    sd = error * np.sqrt(n)
    low, high = sd * np.sqrt((n - 1) / special.chdtri(n - 1, [0.025, 0.975]))
    return {"sd": sd, "ci_low": low, "ci_high": high, "levels": n, "note": ""}


def moments(values: pd.Series, levels: Mapping[str, pd.Series]) -> Iterator[dict[str, Any]]:
    """Variance components of nested factors by the method of moments on means of means.

    `values` by chain; `levels`: each factor's label for every chain, outermost first; labels of the
    last factor are unique. The mean square of a factor is the variance of its means within the factor
    above. Its expectation is the factor's own component plus that of the next factor over the number of
    its levels (their harmonic mean); this is exact if the design is balanced. Interval: chi-square for
    a single mean square, else the modified large-sample interval for a difference of two (Ting,
    Burdick, Graybill, Jeyaratnam and Lu 1990, Journal of Statistical Computation and Simulation
    35:135), clipped at 0.
    """
    squares: list[tuple[float, int, int, float]] = []
    names = list(levels)
    means, paths = values, pd.DataFrame(levels)
    for depth in range(len(names), 0, -1):
        keys = [paths[name] for name in names[:depth]]
        means = means.groupby(keys).mean()
        paths = means.index.to_frame(index=False)
        means = pd.Series(means.to_numpy(), paths.index)
        above = [paths[name] for name in names[: depth - 1]] or [pd.Series(0, paths.index)]
        groups = means.groupby(above)
        freedom = len(means) - groups.ngroups
        square = (
            float(((means - groups.transform("mean")) ** 2).sum() / freedom) if freedom else 0.0
        )
        squares.insert(0, (square, freedom, len(means), 1 / (1 / groups.size()).mean()))
    for number, name in enumerate(names):
        square, freedom, count, _ = squares[number]
        row = {"component": name, "levels": count, "note": ""}
        inner = squares[number + 1 :]
        outer = squares[number - 1] if number else None
        if not freedom and outer is not None and outer[1] and count > 1:
            yield row | {"note": f"not identified: one for each {names[number - 1]}"}
        elif not freedom:
            yield row | {"note": f"not identified: one {name}"}
        elif inner and not inner[0][1]:
            together = f"{name} and {names[number + 1]} together have {np.sqrt(square):.3g}"
            yield row | {"note": f"not identified: {together}"}
        elif inner:
            less, its_freedom, _, size = inner[0]
            low, high = _difference(square, freedom, less / size, its_freedom)
            sd = np.sqrt(max(square - less / size, 0.0))
            yield row | {"sd": sd, "ci_low": np.sqrt(low), "ci_high": np.sqrt(high)}
        else:
            low, high = freedom * square / special.chdtri(freedom, [0.025, 0.975])
            yield row | {"sd": np.sqrt(square), "ci_low": np.sqrt(low), "ci_high": np.sqrt(high)}


def _difference(one: float, df_one: int, two: float, df_two: int) -> tuple[float, float]:
    """95 % interval of the difference of two expected mean squares, clipped at 0; see `moments`."""
    f_high, f_low = special.fdtri(df_one, df_two, [0.975, 0.025])
    g_one, g_two = (1 - df / special.chdtri(df, 0.025) for df in (df_one, df_two))
    h_one, h_two = (df / special.chdtri(df, 0.975) - 1 for df in (df_one, df_two))
    low = ((f_high - 1) ** 2 - (g_one * f_high) ** 2 - h_two**2) / f_high
    high = ((1 - f_low) ** 2 - (h_one * f_low) ** 2 - g_two**2) / f_low
    below = (g_one * one) ** 2 + (h_two * two) ** 2 + low * one * two
    above = (h_one * one) ** 2 + (g_two * two) ** 2 + high * one * two
    middle = one - two
    return max(0.0, middle - np.sqrt(max(below, 0.0))), max(0.0, middle + np.sqrt(max(above, 0.0)))


def _unique(
    design: pd.DataFrame, contrasts: Sequence[tuple[str, str]], found: Wide
) -> Iterator[Comparison]:
    """`comparisons` of chains in the table, each once."""
    done, known = set(), set(found.chains)
    for pair in comparisons(design, contrasts):
        at = (pair.condition, pair.reference, pair.dose)
        if at not in done and {*pair.own, *pair.others} <= known:
            done.add(at)
            yield pair
