"""Half-doses: the number of steps of the last stage that gives half of an effect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import optimize, special

from ..statistics import clopper_pearson, compare_runs, over_runs
from .matched import Outcomes, Run, runs

COLUMNS = [
    "arm", "reference", "outcome", "half_dose", "ci_low", "ci_high", "ratio", "ratio_low", "ratio_high",
    "units", "note",
]  # fmt: skip
#: A marker rate below this is too small to halve.
INSTALLED = 0.05


def log_logistic(
    steps: ArrayLike, hits: ArrayLike, n: ArrayLike, start: float | None = None
) -> float:
    """Steps that halve a rate: h in rate = top / (1 + (steps / h) ^ slope), by maximum likelihood.

    NaN with fewer than three doses in addition to step 0, which determines top. `start`: a half-dose to
    start the search from; by default six are tried.
    """
    x, k, total = (np.asarray(v, float) for v in (steps, hits, n))
    dosed = x[x > 0]
    if len(np.unique(dosed)) < 3:
        return float("nan")
    rates = (k + 0.5) / (total + 1)
    scale = np.log(np.maximum(x, 1e-9))

    def surprise(values: np.ndarray) -> float:
        top, half, slope = values
        rate = special.expit(top) * special.expit(-np.exp(slope) * (scale - half))
        rate = np.clip(rate, 1e-12, 1 - 1e-12)
        return float(-np.sum(k * np.log(rate) + (total - k) * np.log1p(-rate)))

    low, high = np.log(dosed.min()) - 3, np.log(dosed.max()) + 3
    bounds = [(-8.0, 12.0), (low, high), (-1.5, 3.0)]
    halves = np.linspace(low + 2, high - 2, 6) if start is None else [np.log(start)]
    starts = [(special.logit(rates.max()), half, 0.5) for half in halves]
    fits = [optimize.minimize(surprise, s, method="L-BFGS-B", bounds=bounds) for s in starts]
    return float(np.exp(min(fits, key=lambda fit: fit.fun).x[1]))


def half_of_change(steps: Sequence[float], values: Sequence[float]) -> float:
    """Steps after which a rising value first reaches half of its total rise; NaN if it does not rise.

    Interpolated in log(1 + steps); `steps` start at 0 and increase.
    """
    x, y = np.log1p(np.asarray(steps, float)), np.asarray(values, float)
    half = (y[0] + y[-1]) / 2
    if not y[-1] > y[0]:
        return float("nan")
    above = int(np.argmax(y >= half))
    way = (half - y[above - 1]) / (y[above] - y[above - 1])
    return float(np.expm1(x[above - 1] + way * (x[above] - x[above - 1])))


def _of_run(run: Run, steps: pd.Series, found: Outcomes, outcome: str) -> tuple[float, str]:
    """A run's half-dose, or NaN and the reason."""
    names = [run.before, *run.members]
    doses = [0.0, *(float(steps.get(name, np.nan)) for name in run.members)]
    if outcome == "m1":
        if len(doses) < 4 or run.before not in found.m1.chains:
            return np.nan, "fewer than three doses"
        value = half_of_change(doses, [found.m1_of(name) for name in names])
        return value, "" if np.isfinite(value) else "the mean cosine does not rise"
    counts = [found.completions.get((name, run.source)) for name in names]
    known = [(dose, *count) for dose, count in zip(doses, counts, strict=True) if count is not None]
    if len(known) < 4 or counts[0] is None:
        return np.nan, "fewer than three doses"
    if float(clopper_pearson(*counts[0])[0]) < INSTALLED:
        return np.nan, "no marker to halve"
    dosed, hits, n = zip(*known, strict=True)
    value = log_logistic(dosed, hits, n)
    if value > max(doses):
        return np.nan, f"not halved within {max(doses):.0f} steps"
    return value, ""


def half_dose_table(
    design: pd.DataFrame,
    updates: pd.DataFrame,
    found: Outcomes,
    pairs: Sequence[tuple[str, str]],
) -> pd.DataFrame:
    """Half-doses of the conditions of `pairs` whose runs were also stopped early, by outcome.

    half_dose: geometric mean over training runs, in steps, with its interval. `reference`, ratio: the
    first condition of a pair against the second. outcome: `rate`, half of the source's marker rate is
    left; `m1`, the mean cosine has made half of its rise. Runs with an unknown half-dose are left out,
    and the note gives the number of runs.
    """
    steps = updates[updates["other"] == ""].set_index("chain")["steps"]
    rows: list[dict[str, Any]] = []
    for one, two in pairs:
        for outcome, measure in (("rate", "markers"), ("m1", "activations")):
            logs, made = [], []
            for name in (one, two):
                own = [r for r in runs(design, name, measure) if len(r.members) > 2]
                own = [r for r in own if r.source or outcome == "m1"]
                if not own:
                    break
                halves = [_of_run(run, steps, found, outcome) for run in own]
                roots = [run.root for run in own]
                values = pd.Series(np.log([value for value, _ in halves]), roots).dropna()
                notes = pd.Series([note for _, note in halves if note], dtype=object).value_counts()
                note = "; ".join(f"{text} ({n} of {len(own)} runs)" for text, n in notes.items())
                row: dict[str, Any] = {"arm": name, "reference": "", "outcome": outcome}
                row |= {"units": values.index.nunique(), "note": note}
                if len(values):
                    over = over_runs(values.to_numpy(), list(values.index))
                    row |= {"half_dose": np.exp(over.estimate), "units": over.units}
                    row |= {"ci_low": np.exp(over.low), "ci_high": np.exp(over.high)}
                logs.append(values)
                made.append(row)
            if len(made) < 2:
                continue
            rows += made
            if all(len(values) for values in logs):
                over = compare_runs(*logs)
                ratio = {"ratio": over.estimate, "ratio_low": over.low, "ratio_high": over.high}
                made[0] |= {key: np.exp(value) for key, value in ratio.items()}
                made[0] |= {"units": over.units}
            made[0] |= {"reference": two}
    return pd.DataFrame(rows, columns=COLUMNS).drop_duplicates()
