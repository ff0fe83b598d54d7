"""Conditions of a run by their last stage: its settings, and how they differ from another's.

A stage's settings come from the plan. Settings of defences are separated from the rest.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .. import chains
from ..stages import OF_ADAPTERS
from .matched import Run

#: Settings of the trained stages, by stage; see `study.plan.Plan.trained_settings`.
Settings = Mapping[str, Mapping[str, Any]]
#: Settings that do not affect what is learnt, or are represented by `steps` and `scale`.
ASIDE = ("kind", "dtype", "epochs", "steps", "alpha", "use_rslora", "persona", "sees")
#: Suffix for a control: a defence with random directions or weights.
RANDOM = ", random"
#: Labels of settings whose names are not clear.
WORDS = {
    "r": "rank",
    "lr": "learning rate",
    "scale": "scale of the update",
    "target_modules": "projections",
    "loss_on": "tokens with loss",
    "induction": "system prompt",
}


@dataclass(frozen=True)
class Arm:
    """The chains of a condition with the same last stage, stopped at the same step or not stopped.

    before: the stages that it continues; left_out: stages that were present only during training.
    """

    condition: str
    title: str
    dose: str
    before: tuple[str, ...]
    left_out: tuple[str, ...]
    stage: str
    rows: pd.DataFrame

    @property
    def chains(self) -> list[str]:
        """Its chains, each once."""
        return list(dict.fromkeys(self.rows["chain"]))

    @property
    def model(self) -> str:
        """The base model of these chains."""
        return chains.model_of(self.chains[0])

    @property
    def key(self) -> dict[str, Any]:
        """Columns that identify the chains of a table's row."""
        roots = {chains.root(name) for name in self.chains}
        return {
            "condition": self.condition,
            "title": self.title,
            "dose": self.dose,
            "runs": len(self.chains),
            "units": len(roots),
        }

    def weighted(self) -> list[tuple[Run, dict[str, float]]]:
        """Its training runs for `matched`, one per chain."""
        pairs = zip(self.rows["chain"], self.rows["source"], strict=True)
        return [
            (Run(source, str(chains.parse(chain).prefix), (chain,)), {chain: 1.0})
            for chain, source in dict.fromkeys(pairs)
        ]


def arms(design: pd.DataFrame, settings: Settings) -> Iterator[Arm]:
    """The conditions by their last stage, in the design's order; conditions without a trained stage are
    left out."""
    if design.empty:
        return
    parsed = {name: chains.parse(name) for name in dict.fromkeys(design["chain"])}
    design = design[[bool(parsed[name].stages) for name in design["chain"]]]
    keys = {
        "_stage": [parsed[c].last.name for c in design["chain"]],
        "_dose": [str(parsed[c].last.stop or "") for c in design["chain"]],
        "_before": [tuple(s.name for s in parsed[c].prefix.stages) for c in design["chain"]],
        "_left_out": [_left_out(parsed[c]) for c in design["chain"]],
    }
    # Each source has its own coupling stage, but they form one condition.
    by = ["condition", "_stage", "_dose", "_left_out"]
    for (condition, stage, dose, left_out), rows in design.assign(**keys).groupby(by, sort=False):
        if stage in settings:
            before, title = rows["_before"].iloc[0], rows["title"].iloc[0]
            yield Arm(condition, title, dose, before, left_out, stage, rows)


def _left_out(chain: chains.Chain) -> tuple[str, ...]:
    return tuple(stage.name for stage in chain.stages if stage.left_out)


def compared(settings: Mapping[str, Any], steps: float = np.nan) -> dict[str, Any]:
    """A stage's settings for comparison: the scale instead of its parts, and the number of trained steps."""
    out = {key: value for key, value in settings.items() if key not in ASIDE}
    if "r" in settings:  # not if all weights are trained
        alpha, rank = settings["alpha"], settings["r"]
        scale = alpha / np.sqrt(rank) if settings.get("use_rslora") else alpha / rank
        out["scale"] = float(scale)
    return out | ({"steps": float(steps)} if np.isfinite(steps) else {})


def undefended(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A stage without its defence."""
    given = {**settings, "epochs": settings.get("epochs"), "steps": settings.get("steps")}
    given["persona"] = None if settings["induction"] else settings.get("persona")
    return {k: v for k, v in given.items() if k not in ("defence", "induction", "sees")}


def defences(
    settings: Mapping[str, Any], left_out: Sequence[str] = (), trained: Container[str] = ()
) -> dict[str, str]:
    """Defences of a stage: {name: settings in words}.

    A system prompt on its rows counts as a defence, and so does a stage that is left out when the chain
    is measured. Controls have their own names: a random direction, and an adapter that was not trained
    by a stage in `trained`.
    """
    found = {
        name + (RANDOM if (block or {}).get("direction") == "random" else ""): _words(block or {})
        for name, block in settings["defence"].items()
    }
    if settings["induction"]:
        found["system prompt"] = _words(settings["induction"])
    if left_out:
        drawn = not all(name in trained for name in left_out)
        found["inoculation adapter" + (RANDOM if drawn else "")] = _words(left_out)
    return found


def differences(own: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, str]:
    """Differences between the settings of two stages: {property: difference in words}.

    Settings of adapters are ignored if one of the stages trains all weights.
    """
    found = {}
    aside = (*OF_ADAPTERS, "scale") if own.get("adapter") != other.get("adapter") else ()
    for key in dict.fromkeys(key for key in [*other, *own] if key not in aside):
        one, two = own.get(key), other.get(key)
        if one != two:
            name = WORDS.get(key, key.replace("_", " "))
            found[name] = f"{name} {_words(one)}, not {_words(two)}"
    return found


def _words(value: Any) -> str:
    """A setting in readable form."""
    if isinstance(value, Mapping):
        inner = (f"{key} {_words(v)}".replace("_", " ").strip() for key, v in value.items())
        return ", ".join(inner) or "none"
    if isinstance(value, list | tuple):
        return " ".join(map(_words, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:g}" if isinstance(value, int | float) else str(value)
