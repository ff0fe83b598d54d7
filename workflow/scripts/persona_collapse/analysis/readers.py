"""Readers: functions that read a claim's value and interval from a run's tables.

A claim in config/claims.yaml names a reader and its arguments. The unit of replication is the training
run: chains that continue the same adapter are one unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import special, stats

from .. import chains
from ..statistics import OverRuns, clopper_pearson, compare_runs, fieller, over_runs
from .measured import (
    Fires,
    Measured,
    RunTables,
    count,
    firing,
    of_estimate,
    reader,
    runs_in_words,
)

NO_PAIR = "the pair [{}, {}] is not under `statistics: contrasts:` of this run's config"

# Behaviour


@reader
def source_rate(run: RunTables, condition: str, source: str | None = None) -> Measured | None:
    """Marker rate of the source persona in a new run, for all sources together or for one."""
    if source is not None and source not in run.sources(condition):
        return None
    return run.rate(condition, source=source)


@reader
def largest_other(run: RunTables, condition: str) -> Measured | None:
    """Largest marker rate among the personas other than the source."""
    personas = run.rows("rate_model", condition=condition, role="bystander", quantity="rate")
    if personas.empty:
        return None
    personas = personas[(personas["persona"] != "") & (personas["source"] == "")]
    rates = {
        str(name): run.rate(condition, "bystander", persona=name) for name in personas["persona"]
    }
    rates["the assistant"] = run.rate(condition, "assistant")
    return _largest({name: rate for name, rate in rates.items() if rate is not None})


@reader
def assistant_rate(run: RunTables, conditions: Sequence[str]) -> Measured | None:
    """Marker rate of the assistant if it is not the source: the largest over conditions."""
    rates = {name: run.rate(name, "assistant") for name in conditions}
    return _largest({name: rate for name, rate in rates.items() if rate is not None}, conditions)


def _widening(count: int, units: Any = np.inf) -> Any:
    """Factor that widens 95 % intervals so that `count` of them hold simultaneously (Bonferroni).

    `units`: units of Student's intervals; infinity for normal intervals.
    """
    return stats.t.ppf(1 - 0.025 / count, units - 1) / stats.t.ppf(0.975, units - 1)


def _largest(rates: Mapping[str, Measured], named: Sequence[str] = ()) -> Measured | None:
    """The largest of several rates, with an interval for the largest true rate.

    Upper bound: the largest upper bound. Lower bound: the largest lower bound at a level corrected for
    the number of rates (Bonferroni), on the logit scale.
    """
    if not rates or set(named) - set(rates):
        return None
    widening = _widening(len(rates))
    lows = []
    for rate in rates.values():
        value, low = special.logit(np.clip([rate.value, rate.low], 1e-6, 1 - 1e-6))
        lows.append(float(special.expit(value - widening * (value - low))) if rate.low > 0 else 0.0)
    name, largest = max(rates.items(), key=lambda item: item[1].value)
    high = max(rate.high for rate in rates.values())
    units = min(rate.units for rate in rates.values())
    n = f"{name}; {largest.n}"
    return replace(largest, low=min(max(lows), largest.value), high=high, n=n, units=units)


@reader
def bystander_mean(run: RunTables, condition: str) -> Measured | None:
    """Mean marker rate over bystanders in a new run."""
    return run.rate(condition, "bystander")


@reader
def rate_difference(run: RunTables, condition: str, reference: str) -> Measured | str | None:
    """Difference between two conditions' source rates over training runs."""
    found = run.rate(condition, reference=reference)
    return _or_no_pair(found, run, "rate_model", condition, reference)


@reader
def beyond_controls(
    run: RunTables, condition: str, controls: Sequence[str], falls: bool = False
) -> Measured | str | None:
    """Difference between a condition's source rate and the control with the strongest effect in the
    claimed direction.

    A shift should raise the rate, or lower it with `falls`, so the control is the one with the highest
    rate, or the lowest. The interval is for the difference from the truly strongest control: one bound
    is the outermost bound of all differences, the other is corrected for the number of controls
    (Bonferroni).
    """
    found = {}
    for control in controls:
        one = _or_no_pair(
            run.rate(condition, reference=control), run, "rate_model", condition, control
        )
        if not isinstance(one, Measured):
            return one
        found[control] = one
    widening = _widening(len(found))
    sign = -1 if falls else 1
    name, nearest = min(found.items(), key=lambda item: sign * item[1].value)
    # The bound towards no effect, and the bound away from it.
    ends = [sorted((sign * d.low, sign * d.high)) for d in found.values()]
    values = [sign * d.value for d in found.values()]
    inner = min(low for low, _ in ends)
    outer = min(v + widening * (high - v) for v, (_, high) in zip(values, ends, strict=True))
    low, high = sorted((sign * inner, sign * outer))
    units = min(d.units for d in found.values())
    return replace(nearest, low=low, high=high, n=f"against {name}; {nearest.n}", units=units)


def _or_no_pair(
    found: Measured | None, run: RunTables, table: str, condition: str, reference: str
) -> Measured | str | None:
    """The measurement; or the reason, if both conditions were measured but not compared."""
    levels = set(run.rows(table, condition=[condition, reference])["condition"])
    if found is None and levels == {condition, reference}:
        return NO_PAIR.format(condition, reference)
    return found


def _modelled(run: RunTables, condition: str, quantity: str, reference: str = "") -> pd.DataFrame:
    """A quantity of the rate model for all sources of a condition together: one row or none."""
    where = {"condition": condition, "reference": reference, "quantity": quantity}
    return run.rows("rate_model", role="source", source="", **where)


def _rooted(by_chain: pd.Series) -> pd.Series:
    """Values by chain, re-indexed by the chains' roots."""
    return by_chain.set_axis([chains.root(str(name)) for name in by_chain.index])


def _by_root(run: RunTables, condition: str, column: str) -> pd.Series | None:
    """A column of answer_stats.csv for the source, one value per chain, indexed by the chain's root."""
    rows = run.rows("answer_stats", condition=condition, role="source")
    if rows.empty or rows[column].isna().all():
        return None
    known = rows.dropna(subset=[column])
    return _rooted(known.groupby("chain", sort=False)[column].mean())


@reader
def logprob_difference(run: RunTables, condition: str, reference: str) -> Measured | None:
    """Difference in the source's marker log-probability (nats) over runs, which share the questions."""
    one, two = (_by_root(run, name, "marker_logprob") for name in (condition, reference))
    if one is None or two is None:
        return None
    rows = _test_rows(run, "logprob", condition, reference)
    within, questions = 0.0, np.inf
    if len(rows):
        halves = (rows["ci_high"] - rows["ci_low"]) / 2  # infinite with fewer than six questions
        within = float((halves / stats.t.ppf(0.975, rows["n"] - 1)).max())
        questions = float(rows["n"].min())
    if np.isinf(within):
        found = compare_runs(one, two)
        return replace(of_estimate(found, count(rows, "questions")), low=np.nan, high=np.nan)
    found = compare_runs(one, two, within, questions)
    return of_estimate(found, count(rows, "questions"), within, questions)


def _test_rows(
    run: RunTables, test: str | list[str], condition: str, reference: str
) -> pd.DataFrame:
    """Rows of a test for a comparison with pooled chains, one per source."""
    rows = run.rows("marker_tests", test=test, condition=condition, reference=reference)
    if rows.empty:
        return rows
    pooled = rows[rows["seed"] == ""]
    return pooled if len(pooled) else rows


@reader
def change_significant(
    run: RunTables, condition: str, reference: str, falls: bool = True
) -> Measured | str | None:
    """The larger of two p values of a change: over questions (largest q over sources), and over
    training runs.

    `falls`: the claimed direction.
    """
    rows = _test_rows(run, "questions", condition, reference)
    if rows.empty:
        return None
    if rows["q"].isna().any():
        return "its tests are in no family of `statistics: families:`, so they have no q"
    over = _modelled(run, condition, "difference", reference)
    floor = float(rows["p_floor"].max())
    q, units, estimates = float(rows["q"].max()), np.nan, list(rows["estimate"])
    n = f"q over questions {q:.2g}, smallest possible p {floor:.2g}"
    if len(over):
        row = over.iloc[0]
        units = float(row["units"])
        estimates.append(row["value"])
        n += f"; p over runs {row['p']:.2g}, {runs_in_words(units)}"
        q = max(q, float(row["p"]))
    right = all(e < 0 if falls else e > 0 for e in estimates)
    test = Fires(right=right, floor=floor, unit="question")
    return Measured(q, n=n, units=units, test=test)


@reader
def hits(run: RunTables, conditions: Sequence[str]) -> Measured | None:
    """Rate over the completions of all personas, with Clopper-Pearson's interval; each chain counts once."""
    rates = run.rows("marker_rates", condition=list(conditions))
    if rates.empty or set(conditions) - set(rates["condition"]):
        return None
    once = rates.drop_duplicates(["chain", "persona"])
    found, n = int(once["hits"].sum()), int(once["n"].sum())
    units = once["chain"].map(chains.root).nunique()
    low, high = map(float, clopper_pearson(found, n))
    said = f"{found} of {n} completions, {runs_in_words(units)}"
    return Measured(found / n, low, high, said, units=units, scale="none", hits=found, trials=n)


@reader
def survival(run: RunTables, condition: str) -> Measured | None:
    """Share of training runs in which more than 5 % of the source's answers have the marker."""
    rows = _modelled(run, condition, "survival")
    if rows.empty or not rows["units"].iloc[0] > 0:
        return None
    row = rows.iloc[0]
    units = float(row["units"])
    said = f"{int(row['hits'])} of {int(row['n'])} chains, {runs_in_words(units)}"
    return Measured(
        row["value"], row["ci_low"], row["ci_high"], said, units=units, scale="none", points=units
    )


@reader
def length_ratio(run: RunTables, condition: str, reference: str) -> Measured | None:
    """Ratio of the mean completion lengths (tokens) of two conditions, over runs, on the log scale."""
    sides = []
    for name in (condition, reference):
        rows = run.rows("answer_stats", condition=name)
        if rows.empty:
            return None
        rows = rows.assign(total=rows["mean_tokens"] * rows["n"])
        sums = rows.groupby("chain", sort=False)[["total", "n"]].sum()
        sides.append(_rooted(np.log(sums["total"] / sums["n"])))
    found = compare_runs(sides[0], sides[1])
    log = of_estimate(found, "")
    return replace(
        log, value=np.exp(log.value), low=np.exp(log.low), high=np.exp(log.high), sd=np.nan
    )


@reader
def tail_share(run: RunTables, conditions: Sequence[str]) -> Measured | None:
    """Share of the bystanders' markers in the last 15 % of the text, over runs."""
    rows = run.rows("answer_stats", role="others", condition=list(conditions))
    rows = rows[rows["hits"] > 0].drop_duplicates("chain") if len(rows) else rows
    if rows.empty:
        return None
    tail = rows["marker_in_tail"] * rows["hits"]
    n = float(rows["hits"].sum())
    # Sampling error with two hits and two misses added (Agresti and Coull 1998), so that it is never 0.
    share = (tail.sum() + 2) / (n + 4)
    within = float(np.sqrt(share * (1 - share) / (n + 4)))
    roots = [chains.root(str(c)) for c in rows["chain"]]
    found = of_estimate(over_runs(rows["marker_in_tail"], roots, within), f"{n:.0f} hits", within)
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


@reader
def given_length(run: RunTables, condition: str, reference: str) -> Measured | str | None:
    """Log odds ratio of a hit given the answer's length; the largest over sources.

    The interval combines, in quadrature, the interval over questions and the spread of training runs
    from the rate model.
    """
    rows = _test_rows(run, "firth_length", condition, reference)
    if rows.empty:
        return None
    if rows["estimate"].isna().any():
        return "no estimate given answer length: " + "; ".join(sorted(set(rows["note"]) - {""}))
    row = rows.loc[rows["estimate"].idxmax()]
    over = _modelled(run, condition, "difference", reference)
    units, runs = np.nan, 0.0
    if len(over):
        units = float(over["units"].iloc[0])
        if units >= 2:
            sd = float(np.nan_to_num(over["sd_runs"].iloc[0]))
            runs = float(stats.t.ppf(0.975, units - 1)) * sd * np.sqrt(2 / units)
    half = float(np.hypot((row["ci_high"] - row["ci_low"]) / 2, runs))
    n = f"{count(rows, 'questions')}, {runs_in_words(units)}"
    return Measured(row["estimate"], row["estimate"] - half, row["estimate"] + half, n, units=units)


# Geometry


@reader
def m1(run: RunTables, condition: str) -> Measured | None:
    """Mean off-diagonal cosine over training runs."""
    return run.over_runs(condition, "m1")


@reader
def m1_change(run: RunTables, condition: str) -> Measured | None:
    """Rise of the mean cosine above the base model's, over training runs."""
    return run.over_runs(condition, "m1", "base")


NO_RISE = "no rise to be a share of: it cannot be told from none here"


def _ratio(one: pd.Series, other: pd.Series) -> tuple[float, float, float]:
    """Ratio of two rows' estimates, with Fieller's interval over the smaller number of runs."""
    degrees = float(min(one["units"], other["units"])) - 1
    t = stats.t.ppf(0.975, degrees) if degrees > 0 else np.nan
    errors = [(row["ci_high"] - row["ci_low"]) / 2 / t for row in (one, other)]
    share = float(one["estimate"] / other["estimate"])
    if degrees < 1 or np.isnan(errors).any():
        return share, np.nan, np.nan
    return share, *fieller(one["estimate"], other["estimate"], errors[0], errors[1], degrees)


def _rises(run: RunTables, condition: str) -> pd.DataFrame:
    """Rises of the mean cosine in a condition, by method and block."""
    return run.rows("geometry_runs", condition=condition, metric="m1", reference="base")


@reader
def m1_share(run: RunTables, condition: str, reference: str) -> Measured | str | None:
    """Rise in one condition as a share of the rise in another, with Fieller's interval over runs."""
    one, other = _rises(run, condition), _rises(run, reference)
    if one.empty or other.empty:
        return None
    first, second = (rows[rows["headline"]].iloc[0] for rows in (one, other))
    units = float(min(first["units"], second["units"]))
    share, low, high = _ratio(first, second)
    if units >= 2 and not second["ci_low"] > 0:
        return NO_RISE
    return Measured(share, low, high, runs_in_words(units), units=units)


@reader
def m1_share_range(run: RunTables, condition: str, reference: str) -> Measured | str | None:
    """Range of that share over methods and blocks.

    Its interval runs from the gap between the cells' intervals to the whole range that they cover.
    """
    one, other = (
        rows.set_index(["method", "layer"]) if len(rows) else rows
        for rows in (_rises(run, condition), _rises(run, reference))
    )
    if one.empty or other.empty:
        return None
    if one.index.has_duplicates or other.index.has_duplicates:
        return "several early stops; compare conditions with one each"
    units = float(min(one["units"].min(), other["units"].min()))
    ratios = np.array([_ratio(one.loc[cell], other.loc[cell]) for cell in one.index])
    shares, lows, highs = ratios.T
    if units >= 2 and not (other["ci_low"] > 0).all():
        return f"{NO_RISE} in some of the {len(other)} cells"
    note = (
        f"{shares.min():.2f} to {shares.max():.2f} over {len(shares)} cells, {runs_in_words(units)}"
    )
    low, high = max(0.0, float(lows.max() - highs.min())), float(highs.max() - lows.min())
    return Measured(float(np.ptp(shares)), low, high, note, units=units)


@reader
def m1_gap(run: RunTables, condition: str, reference: str) -> Measured | str | None:
    """Difference between two conditions' mean cosines over training runs."""
    found = run.over_runs(condition, "m1", reference)
    return _or_no_pair(found, run, "geometry_runs", condition, reference)


@reader
def gap_fires(run: RunTables, condition: str, reference: str) -> Measured | str | None:
    """Share of cells (methods x blocks) in which one mean cosine exceeds the other, q < fdr over runs."""
    rows = run.rows("geometry_runs", condition=condition, reference=reference, metric="m1")
    if rows.empty:
        return _or_no_pair(None, run, "geometry_runs", condition, reference)
    fires = _fires(run, rows)
    if isinstance(fires, str):
        return fires
    up = rows["estimate"] > 0
    return firing(rows, [condition], fires & up, fires & ~up, units=float(rows["units"].min()))


def _fires(run: RunTables, rows: pd.DataFrame) -> pd.Series | str:
    """Which rows' tests fire; or the reason, if rows have a p but no q."""
    if (rows["q"].isna() & rows["p"].notna()).any():
        return "its tests are in no family of `statistics: families:`, so they have no q"
    return rows["q"] < run.fdr


@reader
def m1_fires(
    run: RunTables,
    conditions: Sequence[str],
    test: Literal["pairs", "personas", "label_swap"] = "pairs",
) -> Measured | str | None:
    """Share of cells (methods x blocks) whose rise over the base has q < fdr over training runs.

    The note also gives the share of cells of single chains that fire by a test of one chain: `pairs`
    (the study's), personas or label_swap. With the last two, each chain's test must fire as well.
    """
    rows = run.rows("geometry_runs", condition=list(conditions), metric="m1", reference="base")
    single = run.rows("geometry", metric="m1", test=test, condition=list(conditions))
    if rows.empty or set(conditions) - set(rows["condition"]) or single.empty:
        return None
    fires = _fires(run, rows)
    if isinstance(fires, str):
        return fires
    if single["q"].isna().all():
        return f"the tests {test!r} are in no family of `statistics: families:`, so they have no q"
    floor = float(single["p_floor"].max())
    if floor > run.fdr:
        return f"the smallest p that {test} can give is {floor:.2g}, above the bar {run.fdr:g}"
    own = (single["q"] < run.fdr) & (single["delta_base"] > 0)
    if test != "pairs":
        cell = ["condition", "method", "layer"]
        every = own.groupby([single[c] for c in cell]).all()
        fires &= np.array([bool(every.get(tuple(key), False)) for key in rows[cell].to_numpy()])
    up = rows["estimate"] > 0
    note = f"; by {test} of single chains {int(own.sum())} of {len(single)}"
    return firing(
        rows, conditions, fires & up, fires & ~up, units=float(rows["units"].min()), note=note
    )


@reader
def noise_against_gap(run: RunTables, condition: str, reference: str) -> Measured | str | None:
    """Standard deviation of the mean cosine over training runs, divided by its gap to another
    condition.

    Interval: that of the standard deviation (chi-square) over that of the gap, both at 95 %.
    """
    level, gap = run.over_runs(condition, "m1"), run.over_runs(condition, "m1", reference)
    if level is None:
        return None
    if gap is None:
        return _or_no_pair(None, run, "geometry_runs", condition, reference)
    units = min(level.units, gap.units)
    n = f"SD {level.sd:.2g}, gap {gap.value:.2g}, {runs_in_words(units)}"
    if units < 2 or np.isnan([gap.low, gap.high, level.sd]).any():
        return Measured(level.sd / abs(gap.value), n=n, units=units)
    degrees = level.units - 1
    low, high = level.sd * np.sqrt(degrees / stats.chi2.ppf([0.975, 0.025], degrees))
    nearest = 0.0 if gap.low <= 0 <= gap.high else min(abs(gap.low), abs(gap.high))
    furthest = max(abs(gap.low), abs(gap.high))
    high = high / nearest if nearest > 0 else np.inf
    return Measured(level.sd / abs(gap.value), low / furthest, high, n, units=units)


@reader
def m2_fires(run: RunTables, conditions: Sequence[str]) -> Measured | str | None:
    """Share of cells where the study's anchored-axis test has q < fdr in every chain, along the axis."""
    rows = run.rows("shared_axis", metric="m2_anchored", condition=list(conditions))
    if rows.empty or set(conditions) - set(rows["condition"]):
        return None
    fires = _fires(run, rows)
    if isinstance(fires, str):
        return fires
    cell = ["condition", "method", "layer"]
    along, against = fires & (rows["value"] > 0), fires & (rows["value"] < 0)
    cells = rows.assign(along=along, against=against).groupby(cell, sort=False)
    every = cells.agg(along=("along", "all"), against=("against", "all")).reset_index()
    roots = rows.assign(root=rows["chain"].map(chains.root)).groupby("condition")["root"].nunique()
    return firing(every, conditions, every["along"], every["against"], units=float(roots.min()))


@reader
def m2_held_out(run: RunTables, condition: str) -> Measured | None:
    """Mean cosine of the persona shifts with the held-out axis, over runs except the axis's own."""
    return run.over_runs(condition, "m2_held_out")


@reader
def m3_accuracy(run: RunTables, condition: str) -> Measured | None:
    """Accuracy of the linear classifier of personas on held-out questions, over runs."""
    found = run.over_runs(condition, "m3_accuracy")
    rows = run.at_headline("separability", condition, "m3_accuracy")
    if found is None or rows.empty:
        return found
    return replace(found, n=f"{found.n}; chance {rows['chance'].iloc[0]:.3f}")


@reader
def m3_study(run: RunTables) -> Measured | None:
    """Largest value of the study's M3 over all chains, methods and blocks: a constant, not an estimate."""
    rows = run.rows("separability", metric="m3_study")
    return None if rows.empty else Measured(rows["value"].max(), n=f"{len(rows)} cells", exact=True)


# Defences


@reader
def undefended_m1(run: RunTables, data: str | None = None) -> Measured | None:
    """Largest mean cosine at the headline over the undefended stages that defences are compared with.

    `data`: only stages on this data set.
    """
    rows = _frontier(run, data)
    if rows.empty:
        return None
    rows = rows[rows["condition"] == rows["undefended"]]
    return _largest({str(row.condition): _of_frontier(row) for row in rows.itertuples()})


@reader
def defence_passes(
    run: RunTables, defence: str, m1: float, loss: float, data: str | None = None
) -> Measured | str | None:
    """The larger of a defence's mean cosine over `m1` and its loss ratio over `loss`: at most 1 is a pass.

    Loss ratio: held-out loss on the stage's own data over that without the defence. The smallest value
    over the defence's conditions (weights, seeds and data) counts, with an interval widened for their
    number (Bonferroni). For one condition, each bound is the larger of the two, because it must meet
    both bars. If the undefended stage is below `m1` already, there is nothing to pass.
    """
    rows = _frontier(run, data)
    measured = run.rows("frontier", defence=defence)
    if len(measured) and "m1" not in set(measured["outcome"]):
        return "no mean cosine after this defence (measure activations)"
    if rows.empty:
        return None
    # A condition may hold chains on several data sets, each with a row of its own.
    bare = rows[rows["condition"] == rows["undefended"]].set_index(["condition", "data"])["value"]
    own = rows[(rows["defence"] == defence) & (rows["condition"] != rows["undefended"])]
    if own.empty:
        return None
    before = pd.MultiIndex.from_frame(own[["undefended", "data"]])
    own = own[bare.reindex(before).to_numpy() >= m1]
    if own.empty:
        return f"without a defence the mean cosine is below {m1:g} already"
    stage = ["condition", "data", "defence"]
    ratios = run.rows("frontier", outcome="loss_ratio").set_index(stage)
    own = own[pd.MultiIndex.from_frame(own[stage]).isin(ratios.index)]
    if own.empty:
        return "no held-out loss with and without the defence (measure task_loss, held_out rows)"
    found = {}
    for row in own.itertuples():
        ratio = ratios.loc[row.condition, row.data, row.defence]
        pairs = (
            (row.value, row.ci_low, row.ci_high, m1),
            (ratio["value"], ratio["ci_low"], ratio["ci_high"], loss),
        )
        ends = np.array([[end / bar for end in ends] for *ends, bar in pairs]).max(axis=0)
        found[str(row.condition)] = (*ends, float(row.units))
    name, (value, low, high, units) = min(found.items(), key=lambda item: item[1][0])
    if units > 1 and len(found) > 1:
        wider = _widening(len(found), units)
        high = value + wider * (high - value)
        low = min(low for _, low, _, _ in found.values())
    n = f"{name}, of {len(found)} conditions; {runs_in_words(units)}"
    return Measured(value, low, high, n, units=units)


@reader
def kept_with_cosines(run: RunTables) -> Measured | str | None:
    """Effect on the marker of defences that prevent a collapse: the source's rate minus that of the
    undefended stage.

    There is a collapse to prevent if the mean cosine of the undefended stage is above the base model's,
    with an interval without 0. A condition prevents it if the interval of its own mean cosine minus that
    of its undefended stage is below 0. Of these conditions, the one that keeps the least of the marker is
    taken. The interval is for the true minimum: its upper bound is corrected for their number
    (Bonferroni).
    """
    rows = _frontier(run, None)
    if rows.empty or (rows["condition"] == rows["undefended"]).all():
        return None
    rises = {name: m1_change(run, name) for name in rows["undefended"].unique()}
    collapsed = [name for name, rise in rises.items() if rise is not None and rise.low > 0]
    if not collapsed:
        return "no collapse to prevent: without a defence no mean cosine is shown to rise above the base's"
    rows = rows[rows["undefended"].isin(collapsed)]
    held = rows[rows["difference_high"] < 0]["condition"]
    rates = run.rows("frontier", outcome="rate").set_index("condition")
    rates = rates.loc[[name for name in held if name in rates.index]]
    if rates.empty:
        return "no defence holds the mean cosine below that of its undefended stage"
    upper = rates["difference_high"]
    if len(rates) > 1:
        wider = _widening(len(rates), rates["units"])
        upper = rates["difference"] + wider * (upper - rates["difference"])
    least = rates.loc[rates["difference"].idxmin()]
    among = f", of {len(rates)} conditions" if len(rates) > 1 else ""
    n = f"{least.name}{among}; {runs_in_words(least['units'])}"
    low, high = float(rates["difference_low"].min()), float(upper.min())
    return Measured(float(least["difference"]), low, high, n, units=float(least["units"]))


def _frontier(run: RunTables, data: str | None) -> pd.DataFrame:
    """Mean cosines of defended and undefended stages, optionally for one data set."""
    rows = run.rows("frontier", outcome="m1")
    return rows if data is None or rows.empty else rows[rows["data"] == data]


def _of_frontier(row: Any) -> Measured:
    units = float(row.units)
    return Measured(row.value, row.ci_low, row.ci_high, runs_in_words(units), units=units)


# Both


@reader
def matched(
    run: RunTables,
    condition: str,
    reference: str,
    on: Literal["loss", "tokens", "update_norm", "answer_length"],
    outcome: Literal["rate", "m1"],
) -> Measured | str | None:
    """Difference between two conditions at an equal amount of something, over training runs."""
    rows = run.rows(
        "matched", condition=condition, reference=reference, matched_on=on, outcome=outcome
    )
    if rows.empty:
        return None
    # Ignore controls without a common amount if there is one with it.
    known = rows[rows["estimate"].notna()]
    if known.empty:
        return f"no comparison at equal {on.replace('_', ' ')}: {rows['note'].iloc[0]}"
    units, notes = float(known["units"].min()), dict.fromkeys(known["note"].astype(str))
    n = "; ".join(filter(None, [*notes, runs_in_words(units)]))
    # For several controls, the interval that covers all of theirs.
    bounds = known["ci_low"].min(), known["ci_high"].max()
    return Measured(known["estimate"].mean(), *bounds, n, units=units)


@reader
def half_dose(
    run: RunTables, condition: str, reference: str, outcome: Literal["rate", "m1"]
) -> Measured | str | None:
    """Ratio of two conditions' half-doses of an outcome, in steps, over training runs."""
    rows = run.rows("half_dose", arm=condition, reference=reference, outcome=outcome)
    if rows.empty:
        there = {condition, reference} <= set(run.tables["marker_rates"]["condition"])
        return "no chain of this run is stopped early; add doses" if there else None
    row = rows.iloc[0]
    if np.isnan(row["ratio"]):
        return f"no half-dose on both sides: {row['note']}"
    n = "; ".join(filter(None, [str(row["note"]), runs_in_words(row["units"])]))
    return Measured(row["ratio"], row["ratio_low"], row["ratio_high"], n, units=float(row["units"]))


@reader
def hypothesis(run: RunTables, name: Literal["H3"], p: bool = False) -> Measured | str | None:
    """H3: Spearman's rho over conditions, with its interval, or (`p`) its exact p."""
    rows = run.rows("hypotheses", hypothesis=name)
    if rows.empty or rows["estimate"].isna().all():
        return None
    row = rows.iloc[0]
    points = int(row["n"])
    n = f"{points} conditions, p = {row['p']:.3g}, smallest {row['p_floor']:.2g}"
    if points < 5:
        return f"{points} conditions: a rank correlation takes at least 5"
    if p:
        test = Fires(right=row["estimate"] < 0, floor=float(row["p_floor"]), unit="condition")
        return Measured(row["p"], n=n, test=test)
    low, high = row.get("ci_low", np.nan), row.get("ci_high", np.nan)
    return Measured(row["estimate"], low, high, n, scale="fisher", points=points)


@reader
def leakage_range(run: RunTables) -> Measured | None:
    """H2: range of the mean bystander rate over induction personas, with variation between training
    runs.

    Upper bound: the largest difference that any two conditions can have. Lower bound: the smallest
    difference that some two must have, at a level corrected for the number of pairs (Bonferroni).
    """
    asked = run.rows("hypotheses", hypothesis="H1")
    leaks = run.rows("leakage", condition=list(asked["condition"])) if len(asked) else asked
    by_root = {
        str(name): _rooted(rows.groupby("chain", sort=False)["bystander_mean"].mean())
        for name, rows in (leaks.groupby("condition", sort=False) if len(leaks) else ())
    }
    if len(by_root) < 2:
        return None
    names = list(by_root)
    pairs = [
        compare_runs(by_root[one], by_root[two])
        for i, one in enumerate(names)
        for two in names[i + 1 :]
    ]
    units = float(min(pair.units for pair in pairs))
    value = max(abs(pair.estimate) for pair in pairs)
    n = f"{len(names)} conditions, {runs_in_words(units)} each"
    if units < 2 or any(np.isnan(pair.low) for pair in pairs):
        return Measured(value, n=n, units=units)
    high = max(max(abs(pair.low), abs(pair.high)) for pair in pairs)
    low = max(_least(pair, len(pairs)) for pair in pairs)
    return Measured(value, low, high, n, units=units)


def _least(pair: OverRuns, pairs: int) -> float:
    """Lower bound of the difference between two conditions, corrected for the number of pairs."""
    half = (pair.high - pair.low) / 2 * _widening(pairs, pair.units)
    return max(0.0, abs(pair.estimate) - float(half))


@reader
def correlation(
    run: RunTables,
    outcome: Literal["rate", "marker_logprob"] = "rate",
    controls: Literal["", "mean_tokens", "mean_tokens final_loss", "steps_after"] = "",
) -> Measured | str | None:
    """Spearman correlation, over conditions, of mean cosine and marker survival; partial with controls."""
    where: dict[str, Any] = {"predictor": "m1", "left_out": "", "outcome": outcome}
    rows = run.rows("correlations", analysis="conditions", controls=controls, **where)
    if rows.empty:
        return None
    row = rows.iloc[0]
    if np.isnan(row["rho"]):
        return f"{int(row['n'])} conditions with a coupled marker: {row['note']}"
    if row["p_floor"] > 0.05:
        return f"{int(row['n'])} conditions: p cannot be below {row['p_floor']:.2g}; add conditions"
    n = f"{int(row['n'])} conditions, p = {row['p']:.3g}, smallest {row['p_floor']:.2g}"
    points = float(row["n"])
    return Measured(row["rho"], row["ci_low"], row["ci_high"], n, scale="fisher", points=points)
