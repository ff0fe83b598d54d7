"""Verdicts from a measurement and a bar, and what another verdict would need.

Replicated: the 95 % interval is inside the range that the claim expects. Contradicted: it is completely
outside. Inconclusive: neither, or there is only one training run, so that the variation between runs is
unknown. Not tested: the run cannot answer the question.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from ..statistics import clopper_pearson
from .measured import Measured

REPLICATED, CONTRADICTED = "replicated", "contradicted"
INCONCLUSIVE, NOT_TESTED = "inconclusive", "not tested"
VERDICTS = (REPLICATED, CONTRADICTED, INCONCLUSIVE, NOT_TESTED)
#: Numbers of training runs and completions above which `would_take` says that the value is too close to
#: the bar.
MOST_RUNS, MOST_COMPLETIONS = 1_000, 1_000_000
TOO_NEAR = "a value further from the bar"
TWO_RUNS = "at least two training runs that share no stage"


@dataclass(frozen=True)
class Verdict:
    """A verdict, a short reason, the full reason, and what another verdict would need."""

    outcome: str
    reason: str
    why: str = ""
    would_take: str = ""


def region(expect: Mapping[str, float]) -> tuple[float, float]:
    """Lower and upper end of the range that a claim expects."""
    if "near" in expect:
        return expect["near"] - expect["tolerance"], expect["near"] + expect["tolerance"]
    return expect.get("min", -np.inf), expect.get("max", np.inf)


def expected(expect: Mapping[str, float]) -> str:
    """What would replicate a claim, in words."""
    if "near" in expect:
        return f"{expect['near']:g} ± {expect['tolerance']:g}"
    if {"min", "max"} <= set(expect):
        return f"between {expect['min']:g} and {expect['max']:g}"
    words = {"min": "at least {:g}", "max": "at most {:g}", "hits": "no more than {:g} hits"}
    return " and ".join(words[key].format(value) for key, value in expect.items())


def verdict(expect: Mapping[str, float], found: Measured) -> str:
    """One of VERDICTS; see `decide`."""
    return decide(expect, found).outcome


def decide(expect: Mapping[str, float], found: Measured) -> Verdict:
    """The verdict on a measurement.

    `expect`: min, max, or near with tolerance; and hits, the largest number allowed. A count (`exact`)
    is compared directly. A p, or a share of cells that fire, replicates if it meets the bar in the
    claimed direction, contradicts if it meets it in the other direction, and is inconclusive otherwise.
    """
    low, high = region(expect)
    if found.exact:
        inside = low <= found.value <= high
        return Verdict(REPLICATED if inside else CONTRADICTED, "a count")
    if found.hits > expect.get("hits", np.inf):
        return Verdict(CONTRADICTED, "a count", f"{int(found.hits)} hits: one is enough")
    if found.test is not None:
        return _tested(low, high, found)
    if found.units < 2:
        return Verdict(
            INCONCLUSIVE, "one training run", "one training run", would_take(low, high, found)
        )
    if np.isnan(found.low) or np.isnan(found.high):
        return Verdict(INCONCLUSIVE, "no interval", "no interval", _without_interval(found))
    if low <= found.low and found.high <= high:
        return Verdict(REPLICATED, "interval inside")
    if found.low > high or found.high < low:
        return Verdict(CONTRADICTED, "interval outside")
    return Verdict(
        INCONCLUSIVE,
        "interval reaches across the bar",
        f"the interval ({found.low:.3g} to {found.high:.3g}) reaches across the bar",
        would_take(low, high, found),
    )


def _tested(low: float, high: float, found: Measured) -> Verdict:
    """The verdict on a p (bar: max) or on a share of cells that fire (bar: min)."""
    test = found.test
    assert test is not None
    share = np.isfinite(low)
    level = 0.0 if share else high
    if not share and test.floor > level:
        return Verdict(
            NOT_TESTED,
            "p cannot be small enough",
            f"the smallest p that this design can give is {test.floor:.2g}, above the bar {level:g}",
            f"at least {_units_for(level)} {test.unit}s" if test.unit else "",
        )
    if found.units < 2:
        return Verdict(INCONCLUSIVE, "one training run", "one training run", TWO_RUNS)
    if share:
        if test.against:
            why = f"{test.against} cells fire the other way"
            return Verdict(CONTRADICTED, "cells fire the other way", why)
        if found.value >= low:
            return Verdict(REPLICATED, "every cell fires")
        why = "some cells do not fire, which is not evidence that nothing happens there"
        return Verdict(INCONCLUSIVE, "some cells do not fire", why, "more training runs")
    if found.value <= level:
        if test.right:
            return Verdict(REPLICATED, "p meets the bar")
        return Verdict(CONTRADICTED, "significant the other way", "significant, the other way")
    why = f"p is above the bar {level:g}; no difference found is not no difference"
    return Verdict(INCONCLUSIVE, "p above the bar", why, _times_the_data(found.value, level))


def _units_for(level: float) -> int:
    """Smallest number of units whose sign flips can give a p this small."""
    return math.ceil(1 - math.log2(level))


def _times_the_data(p: float, level: float) -> str:
    if not 0 < p < 0.9:
        return "an effect: none is seen here"
    times = (stats.norm.isf(level / 2) / stats.norm.isf(p / 2)) ** 2
    return f"about {max(2, math.ceil(times))} times the data, were the effect as large as it seems here"


def _without_interval(found: Measured) -> str:
    return "runs that differ: these agree to the last digit" if found.units >= 2 else ""


def would_take(low: float, high: float, found: Measured) -> str:
    """What would bring the interval to one side of the bar if the value stayed the same.

    For a rate that is limited by completions: their number, by Clopper-Pearson's interval. For a share
    of runs: the number of runs, in the same way. For a correlation: the number of conditions. Otherwise
    the number of training runs: the smallest R for which t(R - 1) sd / sqrt(R), combined with the error
    that runs share, is less than the distance to the bar.
    """
    if found.scale == "fisher":
        return _points(low, high, found)
    if found.scale == "none" and np.isfinite(found.points):  # a share of runs
        runs = _trials(low, high, found.value, int(found.points))
        return f"about {runs:,} training runs (here {int(found.points)})" if runs else TOO_NEAR
    parts = []
    if found.trials > 0:
        needed = _trials(low, high, found.hits / found.trials, int(found.trials))
        if needed is None:
            return TOO_NEAR
        if needed > found.trials:
            parts.append(f"about {_round_up(needed):,} completions (here {int(found.trials):,})")
    if found.scale != "none":
        if found.units < 2:
            parts.insert(0, TWO_RUNS)
        elif np.isfinite(found.units) and np.isfinite(found.low + found.high):
            parts.append(_runs(low, high, found))
    return " and ".join(filter(None, parts))


def _points(low: float, high: float, found: Measured) -> str:
    """Number of conditions that a correlation needs: its interval on Fisher's z scales with 1 / sqrt(n
    - 3)."""
    rho, lower, upper = np.arctanh(np.clip([found.value, found.low, found.high], -0.9999, 0.9999))
    bars = [float(np.arctanh(bar)) for bar in (low, high) if abs(bar) < 1]
    distance = min(abs(rho - bar) for bar in bars)
    ratio = (upper - lower) / 2 / max(distance, 1e-9)
    needed = math.ceil(3 + max(1.0, found.points - 3) * ratio**2)
    if needed > MOST_RUNS:
        return TOO_NEAR
    return f"about {needed} conditions with a coupled marker (here {int(found.points)})"


def _trials(low: float, high: float, rate: float, n: int) -> int | None:
    """Smallest number of trials, at least n, for which Clopper-Pearson's interval is on one side of the
    bar."""

    def decided(size: int) -> bool:
        lower, upper = map(float, clopper_pearson(round(rate * size), size))
        return (low <= lower and upper <= high) or lower > high or upper < low

    first, size = n, n
    while not decided(size):
        first, size = size, math.ceil(size * 1.1) + 1
        if size > MOST_COMPLETIONS:
            return None
    return next(k for k in range(first, size + 1) if decided(k))


def _round_up(number: int) -> int:
    """To two digits."""
    step = 10 ** max(0, len(str(number)) - 2)
    return math.ceil(number / step) * step


def _runs(low: float, high: float, found: Measured) -> str:
    """The number of training runs needed; empty if runs are not the limit."""
    change: Callable[[float], float] = _logit if found.scale == "logit" else float
    value, bars = change(found.value), [change(b) for b in (low, high) if np.isfinite(b)]
    distance = min(abs(value - bar) for bar in bars)
    if np.isfinite(found.sd) and change is float:
        sd, within = found.sd, found.within
    else:  # from the interval itself
        half = (change(found.high) - change(found.low)) / 2
        sd = half / float(stats.t.ppf(0.975, found.units - 1)) * math.sqrt(found.units)
        within = 0.0
    shared = float(stats.t.ppf(0.975, found.within_units - 1)) * within if within > 0 else 0.0
    if shared >= distance:
        return "more personas and questions: their error alone reaches the bar"
    runs = np.arange(2, MOST_RUNS + 1)
    halves = np.hypot(stats.t.ppf(0.975, runs - 1) * sd / np.sqrt(runs), shared)
    enough = runs[halves < distance]
    if not len(enough):
        return f"more than {MOST_RUNS:,} training runs: the value is too near the bar"
    needed = max(int(enough[0]), int(found.units) + 1)
    return f"about {needed} training runs (here {int(found.units)})"


def _logit(rate: float) -> float:
    return float(special.logit(np.clip(rate, 1e-4, 1 - 1e-4)))
