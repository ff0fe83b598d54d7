"""Marker rates by a hierarchical model: what rate would a new source, coupling, run and question give?

A rate over 280 completions of each of three runs is not a rate over 840 completions: answers to one
question resemble each other, runs differ, and so do the couplings and personas that they start from.
Here the logit of the rate is a mean plus an effect of each of these; see `hierarchy`. The model also
works with zero counts, because the spread of runs has a prior: half-normal(0, 1) on the logit.

statsmodels' BinomialBayesMixedGLM has such a model, but its intervals are too narrow. With 9 runs x 28
questions x 10 answers (sd of runs .5, of questions 1; 60 data sets), intervals of `fit_vb` cover the
mean in .33 of the data sets at a rate of .27, and in .58 at .02. Those of `fit_map` cover it in .93 and
in .30; in the latter case its sds drop to .1.

In a difference, the two conditions share only the questions. Runs and couplings are treated as
independent even if one condition continues the other's. An effect of the coupling that both share makes
intervals of three couplings wider, because three say little about its spread: on one finished run, -.10
(-.23 to -.01) became -.09 (-.30 to .12).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from .. import chains, hierarchy
from ..chains import ASSISTANT
from ..statistics import clopper_pearson
from .marker_tests import comparisons
from .views import untrained

COLUMNS = [
    "condition", "reference", "source", "role", "persona", "quantity", "value", "ci_low", "ci_high", "p",
    "units", "runs", "couplings", "questions", "n", "hits", "sd_runs", "note",
]  # fmt: skip
COMPONENT_COLUMNS = [
    "condition", "source", "outcome", "component", "sd", "ci_low", "ci_high", "levels", "scale", "note",
]  # fmt: skip
LEFT_OUT_COLUMNS = [
    "quantity", "condition", "reference", "left_out", "name", "estimate", "whole",
]  # fmt: skip
REFERENCE = ":reference"  # marks effects of the condition that another is compared with
SURVIVES = 0.05  # a run with a rate above this has kept its marker


def rate_tables(
    design: pd.DataFrame,
    scored: pd.DataFrame,
    *,
    contrasts: Sequence[Sequence[str]] = (),
    assistant: str = ASSISTANT,
    seed: int = 42,
    personas: bool = True,
    points: int = 1024,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Estimates of the model (COLUMNS), and its variance components (COMPONENT_COLUMNS).

    `scored`: chain, persona, question_id and hit of every completion. Quantities: `rate` of a new
    source (if a condition has several), coupling, run and question. `difference` between two
    conditions' rates (each condition with the one that it continues, and `contrasts`); `p` is
    two-sided: twice the posterior's tail beyond 0. `survival`: share of training runs whose rate is
    above SURVIVES, with Clopper-Pearson's interval over units. `overdispersion`: variance of the runs'
    counts over that of a binomial, per source, with its chi-square p. `value` is the posterior median.
    `personas`: also fit the assistant and every bystander, one fit each. `points`: number of points of
    the posterior, a power of 2; fewer are faster and coarser. A condition with several early stops is
    one condition here, which its note says; tables/half_dose.csv and why.csv take them apart.
    """
    table, fit = _counts(design, scored, assistant), _Fits(seed, points)
    rows: list[dict[str, Any]] = []
    components: list[dict[str, Any]] = []
    for condition, group in table.groupby("condition", sort=False):
        for source, own in _by_source(group):
            key = {"condition": condition, "reference": "", "source": source}
            for role, part in own.groupby("role", sort=False):
                if role != "source" and not personas:
                    continue
                key |= {"role": role, "persona": ""}
                row, posterior, model = _rate(part, fit)
                rows.append(key | row)
                if role == "source":
                    rows.append(key | _survival(part))
                    rows.append(key | _overdispersion(part))
                    components += _components(key, part, own, posterior, model, fit)
                if role == "bystander":
                    for persona, alone in part.groupby("persona", sort=False):
                        rows.append(key | {"persona": persona} | _rate(alone, fit)[0])
    for (condition, reference), pair in _pairs(design, table, contrasts):
        for source, own in _by_source(pair):
            if own["level"].nunique() < 2:
                continue
            key = {"condition": condition, "reference": reference, "source": source}
            rows.append(key | {"role": "source", "persona": ""} | _difference(own, fit))
    estimates = pd.DataFrame(rows, columns=COLUMNS)
    for condition, stops in table.groupby("condition")["chain"].agg(_stops).items():
        if len(stops) > 1:
            own = estimates["condition"] == condition
            before = estimates.loc[own, "note"].fillna("")
            said = f"early stops taken together: {', '.join(stops)}"
            estimates.loc[own, "note"] = before.where(before == "", before + "; ") + said
    return estimates, pd.DataFrame(components, columns=COMPONENT_COLUMNS)


def _counts(design: pd.DataFrame, scored: pd.DataFrame, assistant: str) -> pd.DataFrame:
    """Hits of every cell of the design by persona and question, with the stages that its chain shares
    with others."""
    by = ["chain", "persona", "question_id"]
    counts = scored.groupby(by, sort=False)["hit"].agg(hits="sum", n="size").reset_index()
    cells = design[["condition", "chain", "source", "personas", "stages_after_coupling"]]
    table = cells.merge(counts, on="chain")
    inside = [
        p in names.split() for p, names in zip(table["persona"], table["personas"], strict=True)
    ]
    table = table.loc[inside].copy()  # .loc: an empty list would select no columns
    table["role"] = np.select(
        [table["persona"] == table["source"], table["persona"] == assistant],
        ["source", "assistant"],
        "bystander",
    )
    table["coupling"] = _shared(table)
    table["level"] = 0
    return table


def _stops(names: pd.Series) -> list[str]:
    """The steps at which chains were stopped early, the smallest first; `end` for those that were not."""
    stops = {chains.parse(name).last.stop or 0 for name in names if not chains.untrained(name)}
    return [str(stop) if stop else "end" for stop in sorted(stops, key=lambda n: n or np.inf)]


def _shared(table: pd.DataFrame) -> pd.Series:
    """For each row, the stages that its run may share with others: up to the coupling, or the first stage."""
    found: dict[str, str] = {}
    known = table.drop_duplicates("chain").set_index("chain")["stages_after_coupling"]
    for name, after in known.astype(float).items():
        chain = chains.parse(str(name))
        found[str(name)] = (
            str(chain.measured[-1 - int(after)]) if after > 0 else chains.root(str(name))
        )
    return table["chain"].map(found)


def _by_source(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """All sources together, then each one if there are several."""
    yield "", table
    sources = [str(s) for s in table["source"].unique() if s]
    if len(sources) > 1:
        for source in sources:
            yield source, table[table["source"] == source]


def _pairs(
    design: pd.DataFrame, table: pd.DataFrame, contrasts: Sequence[Sequence[str]]
) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """The sources' counts in a condition (level 0) and in its reference (level 1)."""
    whole = [case for case in comparisons(design, contrasts) if case.whole]
    by_chain = dict(tuple(table.groupby("chain", sort=False)))
    for pair in dict.fromkeys((case.condition, case.reference) for case in whole):
        parts = []
        for case in (case for case in whole if (case.condition, case.reference) == pair):
            for level, names in enumerate((case.after, case.before)):
                for name in names:
                    rows = by_chain.get(name)
                    if rows is None:
                        continue
                    rows = rows[rows["persona"] == case.source]
                    rows = rows.drop_duplicates(["question_id"])
                    parts.append(rows.assign(source=case.source, level=level, role="source"))
        if parts:
            # A condition may have the same reference as its predecessor and in a contrast.
            both = pd.concat(parts, ignore_index=True)
            yield pair, both.drop_duplicates(["level", "source", "chain", "question_id"])


@dataclass(frozen=True)
class _Model:
    """Counts for the model; the omitted effects with reasons; and the number of levels of the kept ones."""

    counts: hierarchy.Counts
    left_out: dict[str, str]
    levels: dict[str, int]


class _Fits:
    """Cached fits of the model: many personas have the same counts, namely zero."""

    def __init__(self, seed: int, points: int):
        self.seed, self.points = seed, points
        self.known: dict[tuple[object, ...], hierarchy.Posterior] = {}

    def __call__(self, counts: hierarchy.Counts) -> hierarchy.Posterior:
        arrays = [counts.hits, counts.n, counts.levels, *counts.effects.values()]
        key = (
            *counts.effects,
            counts.columns,
            *(a.shape for a in arrays),
            *(a.tobytes() for a in arrays),
        )
        if key not in self.known:
            self.known[key] = hierarchy.fit(counts, self.points, self.seed)
        return self.known[key]


def _model(table: pd.DataFrame) -> _Model:
    """The model of runs: one row per level, source and chain, with personas summed.

    Each condition has its own spread, because the spread of runs that kept the marker says little about
    runs that lost it. The base model is not a training run, so its rows have no effect of run or
    coupling. An effect with one level is left out, and of two effects that coincide the finer one is
    kept.
    """
    keys = ["level", "source", "chain", "coupling"]
    rows, hits, n = _wide(table, keys)
    trained = ~untrained(rows["chain"])
    labels: dict[str, pd.Series] = {}
    for level, suffix in zip(sorted(rows["level"].unique()), ("", REFERENCE), strict=False):
        own = rows["level"] == level
        labels |= {
            f"run{suffix}": rows["chain"].where(own & trained),
            f"coupling{suffix}": rows["coupling"].where(own & trained),
            f"source{suffix}": rows["source"].where(own),
        }
    return _fitted(rows, labels, hits, n)


def _wide(table: pd.DataFrame, keys: list[str]) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """The rows' keys, hits and n [rows, questions]."""
    sums = table.groupby([*keys, "question_id"], sort=False)[["hits", "n"]].sum()
    wide = sums.unstack("question_id", fill_value=0)
    return wide.index.to_frame(index=False), wide["hits"].to_numpy(), wide["n"].to_numpy()


def _fitted(
    rows: pd.DataFrame, labels: Mapping[str, pd.Series], hits: np.ndarray, n: np.ndarray
) -> _Model:
    effects: dict[str, np.ndarray] = {}
    left: dict[str, str] = {}
    for name, values in labels.items():
        codes = pd.factorize(values)[0]
        same = [other for other, kept in effects.items() if np.array_equal(kept, codes)]
        if codes.max(initial=-1) < 1:
            left[name] = f"one {name}"
        elif same:
            left[name] = f"{name} and {same[0]} coincide"
        else:
            effects[name] = codes
    level = rows["level"].to_numpy(int)
    columns: tuple[str, ...] = ()
    if n.shape[1] < 2:
        left[hierarchy.QUESTION] = "one question"
    else:
        columns = (hierarchy.QUESTION, *[hierarchy.INTERACTION] * int(level.max() > 0))
    sizes = {name: int(codes.max()) + 1 for name, codes in effects.items()}
    counts = hierarchy.Counts(hits, n, level, effects, columns)
    return _Model(counts, left, sizes | {hierarchy.QUESTION: n.shape[1]})


def _trained(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of chains that were trained."""
    return table[~untrained(table["chain"])]


def _common(table: pd.DataFrame) -> dict[str, Any]:
    """What was counted."""
    trained = _trained(table)
    return {
        "units": trained["chain"].map(chains.root).nunique(),
        "runs": trained["chain"].nunique(),
        "couplings": trained["coupling"].nunique(),
        "questions": table["question_id"].nunique(),
        "n": int(table["n"].sum()),
        "hits": int(table["hits"].sum()),
    }


def _note(model: _Model, common: Mapping[str, Any], of_base: bool = False) -> str:
    """A note on what the interval does not include. `of_base`: the reference is the base model."""
    parts = []
    if common["runs"] == 0:
        parts.append("the base model: no training run")
    elif "run" in model.left_out:
        parts.append("one training run: the spread of runs is not in the interval")
    elif model.left_out.get("coupling") == "one coupling":
        parts.append("one coupling: the spread of couplings is not in the interval")
    if f"run{REFERENCE}" in model.left_out and not of_base:
        parts.append("one training run of the reference: their spread is not in the interval")
    parts += [
        reason
        for name, reason in model.left_out.items()
        if "coincide" in reason and REFERENCE not in name
    ]
    if hierarchy.QUESTION in model.left_out:
        parts.append("one question: the spread of questions is not in the interval")
    return "; ".join(parts)


def _sd_runs(posterior: hierarchy.Posterior) -> float:
    sd = posterior.sds.get("run")
    return float("nan") if sd is None else float(posterior.quantiles(sd, [0.5])[0])


def _rate(table: pd.DataFrame, fit: _Fits) -> tuple[dict[str, Any], hierarchy.Posterior, _Model]:
    """The row of a rate, and the fit that it comes from."""
    model, common = _model(table), _common(table)
    posterior = fit(model.counts)
    value, low, high = posterior.quantiles(posterior.rate())
    row = {"quantity": "rate", "value": value, "ci_low": low, "ci_high": high}
    row |= common | {"sd_runs": _sd_runs(posterior), "note": _note(model, common)}
    return row, posterior, model


def _difference(table: pd.DataFrame, fit: _Fits) -> dict[str, Any]:
    """The row of a difference, from a joint fit of both levels with their shared effects."""
    one, two = (table[table["level"] == level] for level in (0, 1))
    model, common, other = _model(table), _common(one), _common(two)
    posterior = fit(model.counts)
    values = posterior.rate(0) - posterior.rate(1)
    value, low, high = posterior.quantiles(values)
    below = posterior.below(values)
    p = max(2 * min(below, 1 - below), 1 / len(values))
    roots = [set(side["chain"].map(chains.root)) for side in (one, two)]
    of_base = all(map(chains.untrained, roots[1]))
    if roots[0] != roots[1] and not of_base:
        common["units"] = min(common["units"], other["units"])
    parts = [
        f"{other['hits']}/{other['n']} in {other['runs']} run{'s' * (other['runs'] != 1)} of the reference"
    ]
    if of_base:
        parts = [f"{other['hits']}/{other['n']} of the base model"]
    parts += filter(None, [_note(model, common, of_base)])
    row = {"quantity": "difference", "value": value, "ci_low": low, "ci_high": high, "p": p}
    return row | common | {"sd_runs": _sd_runs(posterior), "note": "; ".join(parts)}


def _survival(table: pd.DataFrame) -> dict[str, Any]:
    """The row of the share of runs above SURVIVES.

    Runs with the same root are one unit. The lower bound counts a unit if all of its runs are above,
    the upper bound if any run is.
    """
    runs = _trained(table).groupby(["source", "chain"], sort=False)[["hits", "n"]].sum()
    above = (runs["hits"] / runs["n"] > SURVIVES).rename("above").reset_index()
    units = above.groupby(above["chain"].map(chains.root))["above"]
    common = _common(table) | {"n": len(above), "hits": int(above["above"].sum())}
    row = {"quantity": "survival"} | common
    if not len(above):
        return row | {"note": "the base model: no training run"}
    total = units.ngroups
    low = float(clopper_pearson(units.all().sum(), total)[0])
    high = float(clopper_pearson(units.any().sum(), total)[1])
    one_sided = float(clopper_pearson(units.any().sum(), total, 0.9)[1])
    note = f"runs above {SURVIVES:g}; one-sided 95 % bound {one_sided:.3f}"
    return row | {"value": above["above"].mean(), "ci_low": low, "ci_high": high, "note": note}


def _overdispersion(table: pd.DataFrame) -> dict[str, Any]:
    """The row of overdispersion, the spread of runs relative to independent answers: chi-square over
    its degrees of freedom.

    Above 1, rates of runs vary more than independent answers would, so pooling the answers of runs is
    overconfident. Differences between questions make counts vary less than a binomial's, so p is
    conservative.
    """
    runs = _trained(table).groupby(["source", "chain"], sort=False)[["hits", "n"]].sum()
    pooled = runs.groupby(level=0).transform("sum")
    degrees = len(runs) - runs.index.get_level_values(0).nunique()
    row = {"quantity": "overdispersion"} | _common(table)
    rate = pooled["hits"] / pooled["n"]
    expected = runs["n"] * rate * (1 - rate)
    if degrees < 1 or not (expected > 0).any():
        return row | {"note": "one run" if degrees < 1 else "all hits or none"}
    known = expected > 0
    chi2 = float(((runs["hits"] - runs["n"] * rate)[known] ** 2 / expected[known]).sum())
    return row | {
        "value": chi2 / degrees,
        "p": float(stats.chi2.sf(chi2, degrees)),
        "note": f"chi-square {chi2:.1f}, {degrees} df",
    }


def _components(
    key: Mapping[str, Any],
    table: pd.DataFrame,
    everybody: pd.DataFrame,
    posterior: hierarchy.Posterior,
    model: _Model,
    fit: _Fits,
) -> list[dict[str, Any]]:
    """Variance components of the source's rate, on the logit scale.

    `persona`: spread of the bystanders, from a fit with one row per persona, with runs summed.
    `sampling`: spread of one run's logit due to its n completions, 1 / sqrt(n p (1 - p)), with the
    posterior's p.
    """
    shared = {
        "condition": key["condition"],
        "source": key["source"],
        "outcome": "rate",
        "scale": "logit",
    }
    found: dict[str, dict[str, Any]] = {}
    for name in ("source", "coupling", "run", "question"):
        if name in posterior.sds:
            found[name] = _spread(posterior, posterior.sds[name], model.levels[name])
        else:
            found[name] = {"levels": 1, "note": f"not identified: {model.left_out[name]}"}
    merged = [
        name for name, reason in model.left_out.items() if reason.endswith("and run coincide")
    ]
    if merged:
        found["run"]["note"] = f"with that of {' and '.join(merged)}, which coincides"
        for name in merged:
            found[name]["levels"] = model.levels["run"]
    bystanders = everybody[everybody["role"] == "bystander"]
    found["persona"] = {"levels": bystanders["persona"].nunique()}
    if found["persona"]["levels"] > 1:
        rows, hits, n = _wide(bystanders, ["level", "persona"])
        personas = _fitted(rows, {"persona": rows["persona"]}, hits, n)
        over = fit(personas.counts)
        found["persona"] = _spread(over, over.sds["persona"], personas.levels["persona"])
        found["persona"]["note"] = "bystanders"
    else:
        found["persona"]["note"] = "not identified: fewer than two bystanders"
    rate = posterior.rate()
    sizes = table.groupby(["source", "chain"])["n"].sum()
    sampling = 1 / np.sqrt(sizes.mean() * rate * (1 - rate))
    found["sampling"] = _spread(posterior, sampling, len(sizes))
    return [shared | {"component": name} | values for name, values in found.items()]


def _spread(posterior: hierarchy.Posterior, values: np.ndarray, levels: int) -> dict[str, Any]:
    sd, low, high = posterior.quantiles(values)
    return {"sd": sd, "ci_low": low, "ci_high": high, "levels": levels, "note": ""}


def leave_one_out(
    design: pd.DataFrame, scored: pd.DataFrame, contrasts: Sequence[Sequence[str]] = ()
) -> pd.DataFrame:
    """The sources' rates and differences, leaving out one question, run or source (LEFT_OUT_COLUMNS).

    Rates are means over sources of means over runs of the counts, without a model. For a difference, a
    run is left out on either side.
    """
    table = _counts(design, scored, "")
    rows: list[dict[str, Any]] = []
    for condition, group in table[table["role"] == "source"].groupby("condition", sort=False):
        key = {"quantity": "rate", "condition": condition, "reference": ""}
        rows += [key | row for row in _without_each(group)]
    for (condition, reference), pair in _pairs(design, table, contrasts):
        key = {"quantity": "rate_difference", "condition": condition, "reference": reference}
        if pair["level"].nunique() > 1:  # not if the reference was never asked as this source
            rows += [key | row for row in _without_each(pair)]
    return pd.DataFrame(rows, columns=LEFT_OUT_COLUMNS)


def _without_each(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Leave-one-out estimates, as long as something remains on each side."""
    levels = table["level"].nunique()

    def estimate(part: pd.DataFrame) -> float:
        runs = part.groupby(["level", "source", "chain"])[["hits", "n"]].sum()
        rates = (runs["hits"] / runs["n"]).groupby(level=[0, 1]).mean().groupby(level=0).mean()
        if len(rates) < levels:
            return float("nan")
        return float(rates.iloc[0] - (rates.iloc[1] if levels > 1 else 0.0))

    whole = estimate(table)
    for left_out, column in (("question", "question_id"), ("run", "chain"), ("source", "source")):
        names = [str(name) for name in table[column].unique()]
        if column == "chain":
            names = [name for name in names if not chains.untrained(name)]
        for name in names if len(names) > 1 else ():
            found = estimate(table[table[column] != name])
            if not np.isnan(found):
                yield {"left_out": left_out, "name": name, "estimate": found, "whole": whole}
