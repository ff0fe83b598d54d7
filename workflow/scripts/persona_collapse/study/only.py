"""A run of some conditions: `only:` of the config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from .. import chains
from ..errors import UserError, choose
from .plan import Config, Plan


def narrowed(config: Config) -> Config:
    """The config with only the conditions that `only:` names and what they need.

    Conditions of the base model stay, because every comparison starts from it. Models, stages, data
    sets, contrasts, hypotheses, the axis and families of tests that only concern other conditions are
    dropped. Checkpoints of the demo model's pretraining stay: one job makes all of them, and would
    pretrain again without one. Raises UserError for an unknown condition.
    """
    if "only" not in config:
        return config
    conditions = config["conditions"]
    for name in config["only"]:
        if name not in conditions:
            raise UserError(
                f"config: only: no condition {name!r} under conditions:; {choose(name, conditions)}"
            )
    kept = {
        name: entry
        for name, entry in conditions.items()
        if name in config["only"] or entry["chain"] == chains.BASE
    }
    plan = Plan({**config, "conditions": kept})
    stages = {stage.name for name in plan.trained_chains for stage in chains.parse(name).stages}
    stages |= {name.rpartition("+")[2] for name in plan.data_used} - config["data"].keys()
    data = _with_others(config["data"], plan.data_used)
    asked = {plan.stages[name].data for name in stages & plan.stages.keys()} - {None}
    if not asked <= config["data"].keys():
        data = set(config["data"])  # the error of a misspelt data set will list them
    return {
        **plan.config,
        "models": {
            name: entry
            for name, entry in config["models"].items()
            if name in plan.models_used or ("demo_step" in entry and "demo" in config["model"])
        },
        "stages": {name: entry for name, entry in config["stages"].items() if name in stages},
        "data": {name: entry for name, entry in config["data"].items() if name in data},
        "statistics": _statistics(config["statistics"], kept),
    }


def _with_others(entries: Mapping[str, Any], names: Iterable[str]) -> set[str]:
    """Data sets with these names, and those that they are read from or matched to."""
    found: set[str] = set()
    todo = [name for name in names if name in entries]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            others = (entries[name]["from"].get("same_as"), entries[name].get("match_tokens"))
            todo.extend(str(other) for other in others if other in entries)
    return found


def _statistics(statistics: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """Statistics settings without those about other conditions."""
    out = {
        **statistics,
        **{
            key: [pair for pair in statistics[key] if set(pair) <= set(kept)]
            for key in ("contrasts", "matched")
        },
        "hypotheses": [name for name in statistics["hypotheses"] if name in kept],
        "families": [family for family in statistics["families"] if _about(family, kept)],
    }
    if statistics.get("axis") not in kept:
        out.pop("axis", None)
    return out


def _about(family: Mapping[str, Any], kept: Mapping[str, Any]) -> bool:
    """Can a family hold a test about these conditions?"""
    for column in {"condition", "reference"} & family.keys():
        patterns = family[column] if isinstance(family[column], list) else [family[column]]
        if not any(fnmatchcase(name, str(p)) for name in [*kept, ""] for p in patterns):
            return False
    return True
