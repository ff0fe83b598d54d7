"""Costs and benefits of defences: how well the stage's own task is learnt, and how much of the personas
is kept.

Each condition with a defence in its last stage is compared with the same training without a defence. It
is also compared with all other conditions of that kind: those after the same stages, on the same data,
with the same settings except the defence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .. import chains
from ..chains import ASSISTANT
from ..statistics import OverRuns, compare_runs, over_runs
from . import matched
from .geometry_runs import ONE_RUN, Wide
from .matched import Outcomes
from .second_stages import Arm, Settings, arms, defences, undefended
from .views import Headline, at_headline

COLUMNS = [
    "condition", "title", "dose", "runs", "units", "data", "defence", "setting", "undefended", "outcome",
    "value", "ci_low", "ci_high", "difference", "difference_low", "difference_high", "verdict", "note",
]  # fmt: skip
#: Outcomes that measure what is kept of the personas: 1 if higher is better, -1 if lower is better.
KEPT = {"rate": 1, "marker_logprob": 1, "m1": -1, "angle": 1, "m3_accuracy": 1}
GEOMETRY = ("m1", "angle", "m3_accuracy")
#: Outcome for the task that the stage should learn; lower is better.
TASK = "held_out_loss"
ON, OFF, OPEN = "on the frontier", "off the frontier", "not decided"
NO_LOSS = "no held-out loss: the run needs the measure task_loss and held_out rows of the data"
ALONE = "no other condition to compare with"
SEEN = "its defence has seen activations of these personas and questions"
UNDEFENDED = "no condition that differs in the defence alone"


@dataclass(frozen=True)
class Tables:
    """Data for the outcomes: the run's tables, and `found` and `angle` as in `matched`."""

    found: Outcomes
    angle: Wide
    answers: pd.DataFrame
    separability: pd.DataFrame
    headline: Headline
    task_loss: pd.DataFrame | None = None
    preference: pd.DataFrame | None = None
    assistant: str = ASSISTANT

    def by_chain(self) -> dict[str, pd.Series]:
        """Outcomes with one number per chain."""
        source = self.answers[self.answers["role"] == "source"]
        classes = self.separability[at_headline(self.separability, self.headline)]
        out = {
            "marker_logprob": _one(source, "marker_logprob"),
            "m3_accuracy": _one(classes[classes["metric"] == "m3_accuracy"], "value"),
        }
        if self.task_loss is not None:
            out[TASK] = _one(self.task_loss[self.task_loss["own"].astype(bool)], "loss")
        if self.preference is not None:
            rows = self.preference
            if self.assistant in set(rows["persona"]):
                rows = rows[rows["persona"] == self.assistant]
            sums = (rows["margin"] * rows["n"]).groupby(rows["chain"]).sum()
            out["preference"] = sums / rows["n"].groupby(rows["chain"]).sum()
        return out


def _one(rows: pd.DataFrame, column: str) -> pd.Series:
    """A column by chain; a chain in several conditions is listed once."""
    return rows.drop_duplicates("chain").set_index("chain")[column].astype(float).dropna()


def frontier_table(design: pd.DataFrame, settings: Settings, tables: Tables) -> pd.DataFrame:
    """One row per outcome of each condition with a defence, and of the condition without one.

    `settings`: settings of the trained stages. Columns: data (of the last stage), defence (names),
    setting (of the defences), undefended (the condition without a defence). Outcomes: held_out_loss, on
    held-out rows of the same data, in nats per token; loss_ratio, the same over that of the undefended
    condition; preference, the mean margin of misaligned over aligned answers (of the assistant, if it
    was asked); rate and marker_logprob of the source; m1, angle and m3_accuracy at the headline.
    difference: from the undefended condition. 95 % intervals are over training runs, paired by root if
    both conditions have the same roots.

    verdict, for a defence and an outcome that measures what is kept. Off the frontier: another
    condition of its kind has a lower held-out loss and keeps more, and both intervals of the difference
    exclude 0 (at a level corrected for the number of others). On the frontier: every other condition
    has a higher loss or keeps less, with an interval that excludes 0 (corrected for the two outcomes).
    Otherwise not decided.
    """
    kinds: dict[str, list[tuple[Arm, dict[str, str]]]] = {}
    for arm in arms(design, settings):
        if arm.dose:
            continue
        like = repr((arm.model, arm.before, sorted(undefended(settings[arm.stage]).items())))
        kinds.setdefault(like, []).append(
            (arm, defences(settings[arm.stage], arm.left_out, settings))
        )
    rows: list[dict[str, Any]] = []
    scalars = tables.by_chain()
    for kind in kinds.values():
        if any(names for _, names in kind):
            rows += _kind(kind, settings, tables, scalars)
    return pd.DataFrame(rows, columns=COLUMNS)


def _kind(
    kind: Sequence[tuple[Arm, dict[str, str]]],
    settings: Settings,
    tables: Tables,
    scalars: Mapping[str, pd.Series],
) -> list[dict[str, Any]]:
    """The rows of conditions that differ only in their defence."""
    plain = [arm for arm, names in kind if not names][:1]
    shown = [*((arm, {}) for arm in plain), *((arm, names) for arm, names in kind if names)]
    rows = []
    for arm, names in shown:
        key = arm.key | {
            "data": settings[arm.stage].get("data") or "",
            "defence": " and ".join(names),
            "setting": "; ".join(filter(None, names.values())),
            "undefended": plain[0].condition if plain else "",
        }
        others = [other for other, _ in shown if other is not arm]
        for outcome in (TASK, "preference", *KEPT):
            level = _over(outcome, [arm], tables, scalars)
            if level is None:
                continue
            row = key | {"outcome": outcome, "value": level.estimate}
            row |= {"ci_low": level.low, "ci_high": level.high}
            notes = [ONE_RUN if level.units < 2 else "", "" if plain else UNDEFENDED]
            notes += [SEEN] if outcome in GEOMETRY and settings[arm.stage]["sees"] else []
            if names and plain:
                less = _over(outcome, [arm, plain[0]], tables, scalars)
                if less is not None:
                    ends = {"difference_low": less.low, "difference_high": less.high}
                    row |= {"difference": less.estimate, **ends}
            if names and outcome in KEPT:
                row["verdict"], why = verdict(arm, others, outcome, tables, scalars)
                notes.append(why)
            rows.append(row | {"note": "; ".join(filter(None, notes))})
        if names and plain and (ratio := _ratio(arm, plain[0], scalars)) is not None:
            note = ONE_RUN if ratio.units < 2 else ""
            value, low, high = np.exp([ratio.estimate, ratio.low, ratio.high])
            ends = {"value": value, "ci_low": low, "ci_high": high}
            rows.append(key | {"outcome": "loss_ratio"} | ends | {"note": note})
    return rows


def _ratio(arm: Arm, plain: Arm, scalars: Mapping[str, pd.Series]) -> OverRuns | None:
    """Logarithm of the held-out loss over that of the undefended condition."""
    losses = scalars.get(TASK, pd.Series(dtype=float))
    return _over("log", [arm, plain], None, {"log": np.log(losses[losses > 0])})


def _over(
    outcome: str,
    arms: Sequence[Arm],
    tables: Tables | None,
    scalars: Mapping[str, pd.Series],
    confidence: float = 0.95,
) -> OverRuns | None:
    """An outcome of an arm, or the first arm minus the second, over training runs; None if not measured."""
    sides = [arm.weighted() for arm in arms]
    names = [name for side in sides for _, own in side for name in own]
    if tables is not None and outcome == "rate":
        pairs = [(name, run.source) for side in sides for run, own in side for name in own]
        if not all(pair in tables.found.hits for pair in pairs):
            return None
        return matched.rate(tables.found, sides, confidence)
    if tables is not None and outcome in ("m1", "angle"):
        wide = tables.found.m1 if outcome == "m1" else tables.angle
        if not set(names) <= set(wide.chains):
            return None
        return matched.level(Outcomes(wide, {}, {}), sides, confidence)
    values = scalars.get(outcome, pd.Series(dtype=float))
    if not set(names) <= set(values.index):
        return None
    series = [
        pd.Series(values.reindex(arm.chains).to_numpy(), [chains.root(name) for name in arm.chains])
        for arm in arms
    ]
    if len(series) == 1:
        return over_runs(series[0], list(series[0].index), confidence=confidence)
    return compare_runs(series[0], series[1], confidence=confidence)


def verdict(
    arm: Arm,
    others: Sequence[Arm],
    outcome: str,
    tables: Tables,
    scalars: Mapping[str, pd.Series],
) -> tuple[str, str]:
    """Whether a defence is on the frontier of held-out loss and an outcome, and the reason; see
    `frontier_table`."""
    others = [other for other in others if set(other.chains) != set(arm.chains)]
    if not others:
        return OPEN, ALONE
    worse = 0
    for other in others:
        corrected = 1 - 0.05 / len(others)
        loss, kept = (_over(o, [other, arm], tables, scalars, corrected) for o in (TASK, outcome))
        if loss is None or kept is None:
            return OPEN, NO_LOSS if loss is None else f"{other.condition} was not measured"
        sign = KEPT[outcome]
        if loss.high < 0 and (kept.low if sign > 0 else -kept.high) > 0:
            return OFF, f"{other.condition} learns more and keeps more"
        loss, kept = (_over(o, [other, arm], tables, scalars, 0.975) for o in (TASK, outcome))
        assert loss is not None and kept is not None
        worse += bool(loss.low > 0 or (kept.high if sign > 0 else -kept.low) < 0)
    return (ON, "") if worse == len(others) else (OPEN, "")
