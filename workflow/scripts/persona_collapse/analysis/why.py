"""Effects of properties of the second stage: how far it trained, and how much it changed the personas.

A stage that changes the weights less moves personas less, whatever its other properties. So each
condition is also compared with the run's own curve, the reference stage stopped early, at the same
update norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from .. import chains
from ..statistics import OverRuns, bh, over_runs
from . import matched
from .geometry_runs import ONE_RUN, Wide
from .matched import Outcomes
from .second_stages import Arm, Settings, arms, compared, differences

COLUMNS = [
    "condition", "title", "dose", "runs", "units", "axis", "differs", "update_norm", "update_low",
    "update_high", "tokens", "steps", "loss", "held_out_loss", "held_out_low", "held_out_high",
    "answer_tokens", "rate", "rate_low", "rate_high", "m1", "m1_low", "m1_high", "log_distance",
    "log_distance_low", "log_distance_high", "angle", "angle_low", "angle_high", "kept", "kept_low",
    "kept_high", "beside_curve", "beside_low", "beside_high", "beside_p", "beside_q", "rate_beside_curve",
    "rate_beside_low", "rate_beside_high", "rate_beside_p", "rate_beside_q", "curve_note",
    "marker_verdict", "cosine_verdict", "note",
]  # fmt: skip
#: Metrics of geometry whose change by the last stage is computed.
CHANGES = ("m1", "log_distance", "angle")
#: Labels under `axis` of the conditions on the curve.
REFERENCE, EARLY = "the reference", "stopped early"
LESS, MORE = "collapses less than its size says", "collapses more than its size says"
KEEPS = "keeps more of the marker than its size says"
LOSES = "keeps less of the marker than its size says"
OPEN = "not decided"
#: Verdicts: prefix of the columns of the comparison, and the words for a difference above and below 0.
VERDICTS = {"cosine": ("beside", LESS, MORE), "marker": ("rate_beside", KEEPS, LOSES)}
#: A verdict is given at this false discovery rate, over the conditions that are compared.
RATE = 0.05


def reference(design: pd.DataFrame, settings: Settings) -> Arm | None:
    """The condition that others are compared with: the design's first with one complete stage after a
    coupling."""
    return next((arm for arm in _second(design, settings) if not arm.dose), None)


def _second(design: pd.DataFrame, settings: Settings) -> list[Arm]:
    """The conditions one trained stage after a coupling."""
    return list(arms(design[design["stages_after_coupling"] == 1], settings))


def why_table(
    design: pd.DataFrame,
    settings: Settings,
    updates: pd.DataFrame,
    found: Outcomes,
    metrics: Mapping[str, Wide],
    answers: pd.DataFrame,
    task_loss: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row per condition with one stage after a coupling, and per step where it was stopped.

    `settings`: settings of the trained stages. `metrics`: those of CHANGES at the headline
    (`matched.metric_of`). `answers`: tables/answer_stats.csv. `task_loss`: that table, if the run has
    it.

    axis: the properties in which the last stage differs from the reference's (see `reference`);
    differs: the differences in words. update_norm, tokens, steps, loss, held_out_loss (on the stage's
    own data) and answer_tokens: means over training runs. rate: marker rate of the source. m1,
    log_distance, angle: changes by the last stage; log_distance is log(1 - M1). kept: remaining share
    of 1 - M1, i.e. exp of that change. beside_curve, rate_beside_curve: log_distance and rate minus
    those of the reference's runs at the same update norm, interpolated between early stops in its
    logarithm; _p is the test of that difference over training runs, _q its Benjamini-Hochberg value over
    the conditions compared. cosine_verdict (of beside_curve) and marker_verdict (of rate_beside_curve)
    need q of at most RATE. All 95 % intervals are over training runs and not corrected; a condition with
    one run has no interval and no verdict.
    """
    base = reference(design, settings)
    if base is None:
        return pd.DataFrame(columns=COLUMNS)
    sizes = updates[updates["other"] == ""].set_index("chain")
    own_loss = pd.Series(dtype=float)
    if task_loss is not None:
        own_loss = task_loss[task_loss["own"].astype(bool)].set_index("chain")["loss"]
    source = answers[answers["role"] == "source"].drop_duplicates("chain").set_index("chain")
    usual = compared(settings[base.stage], sizes["steps"].reindex(base.chains).mean())
    table = pd.DataFrame(
        [
            arm.key
            | _axis(arm, base, settings, usual, sizes)
            | _size(arm, sizes, own_loss, source)
            | _outcomes(arm, found, metrics)
            | _beside(design, arm, base, sizes["update_norm"], found, metrics)
            | {"note": ONE_RUN if arm.key["units"] < 2 else ""}
            for arm in _second(design, settings)
        ],
        columns=COLUMNS,
    )
    for subject, (name, above, below) in VERDICTS.items():
        table[f"{name}_q"] = q = bh(table[f"{name}_p"])
        words = np.where(table[f"{name}_low"] > 0, above, below)
        table[f"{subject}_verdict"] = np.where(q <= RATE, words, np.where(np.isnan(q), "", OPEN))
    return table


def _axis(
    arm: Arm, base: Arm, settings: Settings, usual: Mapping[str, Any], sizes: pd.DataFrame
) -> dict[str, str]:
    own = compared(settings[arm.stage], sizes["steps"].reindex(arm.chains).mean())
    found = differences(own, usual)
    if arm.dose and "steps" in found:  # not a training of fewer steps, whose schedule is its own
        del found["steps"]
        found[EARLY] = f"stopped after {own['steps']:.0f} of {usual['steps']:.0f} steps"
    if arm.left_out:
        found["inoculation adapter"] = f"inoculation adapter {' '.join(arm.left_out)}"
    if arm.model != base.model:
        found["model"] = f"base model {arm.model}"
    if arm.before != base.before and len(_sources(arm) & _sources(base)) == 0:
        found["source"] = "another source persona"
    return {"axis": " and ".join(found) or REFERENCE, "differs": "; ".join(found.values())}


def _sources(arm: Arm) -> set[str]:
    return set(arm.rows["source"])


def _size(
    arm: Arm, sizes: pd.DataFrame, own_loss: pd.Series, source: pd.DataFrame
) -> dict[str, float]:
    """Training data of the stage, and size of its update."""
    row: dict[str, float] = {}
    for key, ends, values in (
        ("update_norm", "update", sizes["update_norm"]),
        ("held_out_loss", "held_out", own_loss),
    ):
        over = _level(values, arm)
        row |= {key: over.estimate, f"{ends}_low": over.low, f"{ends}_high": over.high}
    for key in ("tokens", "steps", "loss"):
        row[key] = _level(sizes[key], arm).estimate
    return row | {"answer_tokens": _level(source["mean_tokens"], arm).estimate}


def _level(values: pd.Series, arm: Arm) -> OverRuns:
    """Mean of a per-chain number over the training runs of an arm that have it."""
    known = values.reindex(arm.chains).dropna()
    if known.empty:
        return OverRuns(np.nan, np.nan, np.nan, np.nan, 0, np.nan, np.nan)
    return over_runs(known, [chains.root(name) for name in known.index])


def _outcomes(arm: Arm, found: Outcomes, metrics: Mapping[str, Wide]) -> dict[str, float]:
    """Rate of the marker, and changes of the geometry, over training runs."""
    row: dict[str, float] = {}
    runs = arm.weighted()
    if all((chain, run.source) in found.hits for run, own in runs for chain in own):
        row |= _ends("rate", matched.rate(found, [runs]))
    for name, wide in metrics.items():
        if all({run.before, *own} <= set(wide.chains) for run, own in runs):
            over = matched.change(Outcomes(wide, {}, {}), [runs])
            row |= _ends(name, over)
            if name == "log_distance":
                row |= {key: np.exp(value) for key, value in _ends("kept", over).items()}
    return row


def _ends(name: str, over: OverRuns) -> dict[str, float]:
    return {name: over.estimate, f"{name}_low": over.low, f"{name}_high": over.high}


def _beside(
    design: pd.DataFrame,
    arm: Arm,
    base: Arm,
    norms: pd.Series,
    found: Outcomes,
    metrics: Mapping[str, Wide],
) -> dict[str, Any]:
    """An arm relative to the curve of the reference's runs, at the same update norm."""
    if arm.model != base.model:
        return {"curve_note": "another base model"}
    if (arm.stage, arm.before, arm.left_out) == (base.stage, base.before, base.left_out):
        return {"curve_note": "on the curve itself"}
    row: dict[str, Any] = {}
    own = [run for run, _ in arm.weighted()]
    asked = (
        ("log_distance", "activations", "m1", "beside"),
        ("", "markers", "rate", "rate_beside"),
    )
    for metric, measure, outcome, name in asked:
        curve = matched.runs(design, base.condition, measure)
        where = found
        if metric:
            where = Outcomes(metrics[metric], {}, {})
            known = set(where.m1.chains)
            there = all({run.before, *run.members} <= known for run in [*own, *curve])
        else:
            there = all((c, run.source) in found.hits for run in own for c in run.members)
        if not (there and curve):
            continue
        names = (arm.condition, base.condition)
        got = matched.at_equal(where, [own, curve], norms, outcome, "update_norm", names)
        row |= {f"{name}_curve": got["estimate"], f"{name}_p": got["p"], "curve_note": got["note"]}
        row |= {f"{name}_low": got["ci_low"], f"{name}_high": got["ci_high"]}
    return {"curve_note": "not measured"} | row
