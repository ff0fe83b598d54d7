"""The conditions of a run by their last stage: what it was set to, and how that differs from another's.

A stage's settings come from the plan. Two kinds of them are told apart: what defends the stage, and the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .. import chains
from .matched import Run

#: Settings of the stages that train, by stage; see `study.plan.Plan.trained_settings`.
Settings = Mapping[str, Mapping[str, Any]]
#: Settings that decide nothing of what is learnt, or are told by `steps` and `scale`.
ASIDE = ("kind", "dtype", "epochs", "steps", "alpha", "use_rslora", "persona")
#: What the settings are called where their name does not say it.
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
    """The chains of a condition that were trained alike: one last stage, stopped at one step or none."""

    condition: str
    title: str
    dose: str
    before: tuple[str, ...]
    stage: str
    rows: pd.DataFrame

    @property
    def chains(self) -> list[str]:
        """Its chains, each once."""
        return list(dict.fromkeys(self.rows["chain"]))

    @property
    def key(self) -> dict[str, Any]:
        """Columns that say which chains a table's row is of."""
        roots = {chains.root(name) for name in self.chains}
        return {
            "condition": self.condition,
            "title": self.title,
            "dose": self.dose,
            "runs": len(self.chains),
            "units": len(roots),
        }

    def weighted(self, known: pd.Index | None = None) -> list[tuple[Run, dict[str, float]]]:
        """Its training runs as `matched` takes them, each its own chain; of the chains `known`, if given."""
        pairs = zip(self.rows["chain"], self.rows["source"], strict=True)
        return [
            (Run(source, chain.rpartition("+")[0] or chains.BASE, (chain,)), {chain: 1.0})
            for chain, source in dict.fromkeys(pairs)
            if known is None or chain in known
        ]


def arms(design: pd.DataFrame, settings: Settings) -> Iterator[Arm]:
    """The conditions by their last stage, in the design's order; those without a trained one left out."""
    if design.empty:
        return
    parsed = {name: chains.parse(name) for name in dict.fromkeys(design["chain"])}
    design = design[[bool(parsed[name].stages) for name in design["chain"]]]
    keys = {
        "_stage": [parsed[c].last.name for c in design["chain"]],
        "_dose": [str(parsed[c].last.stop or "") for c in design["chain"]],
        "_before": [tuple(s.name for s in parsed[c].stages[:-1]) for c in design["chain"]],
    }
    # Sources are coupled by stages of their own, and are one condition all the same.
    by = ["condition", "_stage", "_dose"]
    for (condition, stage, dose), rows in design.assign(**keys).groupby(by, sort=False):
        if stage in settings:
            before, title = rows["_before"].iloc[0], rows["title"].iloc[0]
            yield Arm(condition, title, dose, before, stage, rows)


def compared(settings: Mapping[str, Any], steps: float = np.nan) -> dict[str, Any]:
    """A stage's settings as they are compared: the scale for what it is made of, and steps as trained."""
    alpha, rank = settings["alpha"], settings["r"]
    scale = alpha / np.sqrt(rank) if settings.get("use_rslora") else alpha / rank
    out = {key: value for key, value in settings.items() if key not in ASIDE}
    out["scale"] = float(scale)
    return out | ({"steps": float(steps)} if np.isfinite(steps) else {})


def undefended(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage would be without its defence."""
    given = {**settings, "epochs": settings.get("epochs"), "steps": settings.get("steps")}
    given["persona"] = None if settings["induction"] else settings.get("persona")
    return {key: value for key, value in given.items() if key not in ("defence", "induction")}


def defences(settings: Mapping[str, Any]) -> dict[str, str]:
    """What defends a stage: {name: its settings, in words}; a system prompt on its rows is a defence too."""
    found = {
        name: _words(block or {}) if block else "" for name, block in settings["defence"].items()
    }
    if settings["induction"]:
        found["system prompt"] = _words(settings["induction"])
    return found


def differences(own: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, str]:
    """How what two stages are set to differs: {property: in words}."""
    found = {}
    for key in dict.fromkeys([*other, *own]):
        one, two = own.get(key), other.get(key)
        if one != two:
            name = WORDS.get(key, key.replace("_", " "))
            found[name] = f"{name} {_words(one)}, not {_words(two)}"
    return found


def _words(value: Any) -> str:
    """A setting as a reader says it."""
    if isinstance(value, Mapping):
        inner = (f"{key} {_words(v)}".replace("_", " ").strip() for key, v in value.items())
        return ", ".join(inner) or "none"
    if isinstance(value, list | tuple):
        return " ".join(map(_words, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:g}" if isinstance(value, int | float) else str(value)
