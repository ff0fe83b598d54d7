"""Misaligned against benign training, matched on amounts such as loss or trained tokens.

Two trainings differ in more than the content of their data. So outcomes are compared at the same loss,
trained tokens, update norm or answer length. Chains that are stopped early are points on the path of
their run. Between them, outcomes are interpolated in the logarithm of the amount.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from .. import chains
from ..statistics import OverRuns, compare_runs, over_runs
from .geometry_runs import Wide, wide
from .views import Headline, headline_rows, measuring, untrained

COLUMNS = [
    "condition", "reference", "matched_on", "outcome", "estimate", "ci_low", "ci_high", "units", "note", "at",
]  # fmt: skip
#: Matched amounts: column of `updates`, by its name in the table.
MATCHED_ON = {
    "loss": "loss",
    "tokens": "tokens",
    "update_norm": "update_norm",
    "answer_length": "answer_length",
}
#: Amounts that differ by at most this count as equal.
WITHIN = 1.1


@dataclass(frozen=True)
class Run:
    """A training run: the chain before its last stage, and its chains, stopped early or complete."""

    source: str
    before: str
    members: tuple[str, ...]

    @property
    def root(self) -> str:
        """Root of the run; runs with the same root are one unit."""
        return chains.root(self.members[-1])


def _uncut(chain: str) -> str:
    """A chain's name without an early stop."""
    return chain.partition("~")[0]


def runs(design: pd.DataFrame, condition: str, measure: str) -> list[Run]:
    """A condition's training runs, each with all chains of the design that are early stops of it.

    Chains without the `measure` are left out.
    """
    cells = measuring(design, measure).drop_duplicates(["chain", "source"])
    series = cells["chain"].map(_uncut)
    found = []
    own = design[(design["condition"] == condition) & ~untrained(design["chain"])]
    for name, source in dict.fromkeys(zip(own["chain"].map(_uncut), own["source"], strict=True)):
        at = cells[(series == name) & (cells["source"] == source)]["chain"]
        members = sorted(at, key=lambda n: chains.parse(n).last.stop or np.inf)
        if members:
            found.append(Run(source, str(chains.parse(name).prefix), tuple(members)))
    return found


@dataclass(frozen=True)
class Outcomes:
    """Measurements of chains. `m1` by chain, as `geometry_runs.wide` at the headline, or another metric
    instead. `hits` [question] by (chain, persona): mean over samples. `completions`: number of each.
    """

    m1: Wide
    hits: Mapping[tuple[str, str], pd.Series]
    completions: Mapping[tuple[str, str], tuple[int, int]]

    def m1_of(self, chain: str) -> float:
        """Mean cosine of a chain at the headline."""
        return float(self.m1.of({chain: 1.0})[0, 0])


def metric_of(left_out: pd.DataFrame, headline: Headline, metric: str) -> Wide:
    """A metric at the headline, from a `geometry_runs.left_out_table`."""
    return wide(headline_rows(left_out[left_out["metric"] == metric], headline))


def outcomes(left_out: pd.DataFrame, answers: pd.DataFrame, headline: Headline) -> Outcomes:
    """Outcomes from a `geometry_runs.left_out_table` and marker rows, one per answer."""
    by_question = answers.groupby(["chain", "persona", "question_id"])["hit"].agg(
        ["mean", "sum", "size"]
    )
    grouped = by_question.groupby(level=["chain", "persona"])
    hits = {key: rows["mean"].droplevel([0, 1]) for key, rows in grouped}
    counts = {key: (int(rows["sum"].sum()), int(rows["size"].sum())) for key, rows in grouped}
    return Outcomes(metric_of(left_out, headline, "m1"), hits, counts)


def _weights(amounts: Sequence[float], at: float) -> np.ndarray:
    """Weight of each point in the value at an amount, interpolated in its logarithm."""
    order = np.argsort(amounts)
    x = np.log(np.asarray(amounts, float)[order])
    weights = np.zeros(len(x))
    for place, unit in zip(order, np.eye(len(x)), strict=True):
        weights[place] = np.interp(np.log(at), x, unit)
    return weights


def common(amounts: Sequence[Sequence[float]], least: bool) -> float | None:
    """The largest amount (`least`: the smallest) that every run reaches or nearly reaches; None without
    one.

    `amounts`: amounts of each run's points. A run covers the range from its smallest to its largest
    amount, extended by a tenth, so that complete runs with similar amounts can be compared without
    doses.
    """
    low = max(min(own) / WITHIN for own in amounts)
    high = min(max(own) * WITHIN for own in amounts)
    if low > high:
        return None
    wanted = max(map(min, amounts)) if least else min(map(max, amounts))
    return float(np.clip(wanted, low, high))


Weighted = list[tuple[Run, dict[str, float]]]


def _arm(weighted: Weighted) -> Iterator[tuple[Run, dict[str, float], float]]:
    """Runs with their weights and their share in the arm's mean: roots count equally, and so do runs of
    one root."""
    roots = [run.root for run, _ in weighted]
    for run, weights in weighted:
        yield run, weights, 1 / (len(set(roots)) * roots.count(run.root))


def _over(
    sides: Sequence[pd.Series], within: float, within_units: float, confidence: float
) -> OverRuns:
    """The mean of one side, or the first side minus the second, over training runs."""
    if len(sides) == 1:
        return over_runs(sides[0], list(sides[0].index), within, within_units, confidence)
    return compare_runs(sides[0], sides[1], within, within_units, confidence)


def change(found: Outcomes, arms: Sequence[Weighted], confidence: float = 0.95) -> OverRuns:
    """An arm's change of M1 by the last stage, or the difference between the changes of two arms."""
    moved = [
        [(run, {**own, run.before: own.get(run.before, 0.0) - 1}) for run, own in arm]
        for arm in arms
    ]
    return level(found, moved, confidence)


def level(found: Outcomes, arms: Sequence[Weighted], confidence: float = 0.95) -> OverRuns:
    """An arm's M1, or the difference between two arms, over training runs."""
    sides, total = [], dict[str, float]()
    for sign, arm in zip((1, -1), arms, strict=False):
        values = []
        for _, weights, share in _arm(arm):
            values.append(sum(w * found.m1_of(name) for name, w in weights.items()))
            for name, w in weights.items():
                total[name] = total.get(name, 0.0) + sign * share * w
        sides.append(pd.Series(values, [run.root for run, _ in arm]))
    within, units = found.m1.errors(total)
    return _over(sides, float(within[0]), float(units[0]), confidence)


def rate(found: Outcomes, arms: Sequence[Weighted], confidence: float = 0.95) -> OverRuns:
    """An arm's marker rate of the source, or the difference between two arms.

    All runs share the questions. Their standard error is at least that of the completions with one hit
    and one miss added, because questions without any hit have no spread. Bounds are clipped to the
    range.
    """
    sides, least, total = [], 0.0, 0.0
    for sign, arm in zip((1, -1), arms, strict=False):
        values, hits, n = [], 0.0, 0
        for run, weights, share in _arm(arm):
            rates = sum(w * found.hits[name, run.source] for name, w in weights.items())
            values.append(float(np.mean(rates)))
            total = total + sign * share * rates
            own = [found.completions[name, run.source] for name, w in weights.items() if w]
            size = min(count for _, count in own)
            hits, n = hits + values[-1] * size, n + size
        p = (hits + 1) / (n + 2)
        least += p * (1 - p) / n
        sides.append(pd.Series(values, [run.root for run, _ in arm]))
    by_question = pd.Series(total).dropna()
    units = len(by_question)
    error = float(by_question.sem()) if units > 1 else 0.0
    over = _over(sides, max(error, float(np.sqrt(least))), max(units, 2), confidence)
    low, high = np.clip([over.low, over.high], 1 - len(arms), 1)
    return replace(over, low=float(low), high=float(high))


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _reach(amounts: Sequence[Sequence[float]]) -> str:
    flat = [value for own in amounts for value in own]
    low, high = _amount(min(flat)), _amount(max(flat))
    return low if low == high else f"{low} to {high}"


def matched_table(
    design: pd.DataFrame,
    updates: pd.DataFrame,
    found: Outcomes,
    pairs: Sequence[tuple[str, str]],
) -> pd.DataFrame:
    """One row per pair of conditions, outcome and matched amount; `updates`: see `updates_table`.

    outcome: `m1`, the change of the headline's mean cosine by the last stage; `rate`, the source's
    marker rate, if there is a source. estimate: first condition minus second, at the amount `at`, the
    largest that both reach (for loss the smallest). ci: over training runs, see
    `statistics.compare_runs`.
    """
    sizes = updates[updates["other"] == ""].set_index("chain")
    rows = []
    for one, two in pairs:
        for outcome, measure in (("m1", "activations"), ("rate", "markers")):
            both = [runs(design, name, measure) for name in (one, two)]
            if outcome == "m1":  # the change is unknown if the chain before was not measured
                both = [[run for run in arm if run.before in found.m1.chains] for arm in both]
            if not all(both) or (outcome == "rate" and not all(r.source for b in both for r in b)):
                continue
            for name, column in MATCHED_ON.items():
                key = {"condition": one, "reference": two, "matched_on": name, "outcome": outcome}
                rows.append(key | at_equal(found, both, sizes[column], outcome, name, (one, two)))
    return pd.DataFrame(rows, columns=COLUMNS)


def at_equal(
    found: Outcomes,
    both: Sequence[Sequence[Run]],
    sizes: pd.Series,
    outcome: str,
    on: str,
    names: tuple[str, str],
) -> dict[str, Any]:
    """The runs of two arms at an equal amount: the non-key columns of a row of `matched_table`."""
    known = [
        [(run, [m for m in run.members if sizes.get(m, np.nan) > 0]) for run in arm] for arm in both
    ]
    amounts = [
        [[float(sizes[m]) for m in members] for _, members in arm if members] for arm in known
    ]
    nothing = dict.fromkeys(("estimate", "ci_low", "ci_high", "p", "at"), np.nan) | {
        "units": min(len({run.root for run in arm}) for arm in both)
    }
    if not all(amounts):
        return nothing | {"note": "not known of these chains"}
    at = common([own for arm in amounts for own in arm], on == "loss")
    if at is None:
        reach = ", ".join(f"{n} {_reach(own)}" for n, own in zip(names, amounts, strict=True))
        return nothing | {"note": f"{reach}: no common value; add doses"}
    arms = [
        [
            (run, dict(zip(members, _weights([sizes[m] for m in members], at), strict=True)))
            for run, members in arm
            if members
        ]
        for arm in known
    ]
    over = (change if outcome == "m1" else rate)(found, arms)
    note = "" if over.units > 1 else "one training run"
    return {
        "estimate": over.estimate,
        "ci_low": over.low,
        "ci_high": over.high,
        "p": over.p,
        "units": over.units,
        "note": "; ".join(filter(None, [f"at {on.replace('_', ' ')} {_amount(at)}", note])),
        "at": at,
    }
