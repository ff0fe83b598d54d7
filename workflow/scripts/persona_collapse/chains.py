"""Chains: an ordered list of training stages over one base model.

Grammar, in EBNF (names hold letters, digits, `_` and `-`):

    chain = model | [ model "+" ] { earlier "+" } stage
    model = "base" | name
    earlier = name "@" seed [ "!" ]
    stage = name "@" seed [ "~" step ]

`couple-villain@42+em@137~25` is the coupling of the marker to the villain with seed 42, then the
stage `em` with seed 137 stopped after 25 of its steps. Only the last stage may be stopped early.

A chain starts from the config's `model:`, whose name is `base` on its own and is left out before
stages; or from another of its `models:`, by name: `early`, `early+em@42`.

`evil@42!+em@137`: the adapter of `evil@42` is present, frozen, while `em` is trained, and is left out
when the chain is measured (an inoculation adapter). The last stage is always measured.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from .errors import UserError, choose

BASE = "base"
#: NumPy's legacy generator, which libraries seed as well as PyTorch's, takes 32 bits.
LARGEST_SEED = 2**32 - 1
#: Default for the persona that stands for the unchanged model.
ASSISTANT = "assistant"
STAGE_NAME = r"[A-Za-z][A-Za-z0-9_]*(?:-[A-Za-z0-9_]+)*"
#: Suffix of a stage that is present while later stages are trained and left out when the chain is
#: measured.
LEFT_OUT = "!"
STAGE_PATTERN = rf"{STAGE_NAME}@\d+(?:~\d+)?"
TRAINED_CHAIN_PATTERN = rf"(?:{STAGE_NAME}\+)?(?:{STAGE_PATTERN}{LEFT_OUT}?\+)*{STAGE_PATTERN}"
CHAIN_PATTERN = rf"(?:{STAGE_NAME}|{TRAINED_CHAIN_PATTERN})"


@dataclass(frozen=True)
class Stage:
    """One training run: a stage of the config, its seed, and the step where it stops (None: at its
    end).

    left_out: is its adapter present only while later stages are trained?
    """

    name: str
    seed: int
    stop: int | None = None
    left_out: bool = False

    def __str__(self) -> str:
        stop = f"~{self.stop}" if self.stop is not None else ""
        return f"{self.name}@{self.seed}{stop}{LEFT_OUT if self.left_out else ''}"


@dataclass(frozen=True)
class Chain:
    """Stages in training order, empty for the base model itself; `model`: the base model's name."""

    stages: tuple[Stage, ...] = ()
    model: str = BASE

    def __str__(self) -> str:
        named = [self.model] if self.model != BASE or not self.stages else []
        return "+".join([*named, *map(str, self.stages)])

    @property
    def last(self) -> Stage:
        """The stage trained last; raises IndexError for a base model."""
        return self.stages[-1]

    @property
    def prefix(self) -> Chain:
        """The chain that this one continues, as it is measured; for one stage, the base model.

        It ends with the last earlier stage that is not left out.
        """
        stages = self.stages[:-1]
        while stages and stages[-1].left_out:
            stages = stages[:-1]
        return Chain(stages, self.model)

    @property
    def prefixes(self) -> list[Chain]:
        """Every trained chain that leads to this one, this one last; empty for the base model."""
        return [
            Chain((*self.stages[:n], replace(stage, left_out=False)), self.model)
            for n, stage in enumerate(self.stages)
        ]

    @property
    def measured(self) -> list[Chain]:
        """The `prefixes` whose last adapters are in the chain's model when it is measured."""
        found = zip(self.prefixes, self.stages, strict=True)
        return [prefix for prefix, stage in found if not stage.left_out]


def parse(
    text: str, known: Collection[str] | None = None, models: Collection[str] | None = None
) -> Chain:
    """Parse a chain's name.

    `known`: stage names of the config. `models`: names of its base models. None accepts any. Raises
    UserError that says what is wrong: bad grammar, an unknown model, a seed that is not a number, an
    unknown or repeated stage, an early stop before the last stage.
    """
    model, parts = BASE, text.split("+")
    if "@" not in parts[0] and parts[0] not in (known or ()):
        model, *parts = parts
        if not re.fullmatch(STAGE_NAME, model):
            raise UserError(
                f"chain {text!r}: {model!r} is not a stage name, nor a model's (letters, digits, '_', '-')"
            )
        if models is not None and model not in models:
            raise UserError(
                f"chain {text!r}: no model {model!r} in the config; models: {', '.join(models)} (of a stage, "
                f"write {model}@42)"
            )
        if model == BASE and parts:
            raise UserError(
                f"chain {text!r}: write {'+'.join(parts)}; {BASE} is where chains start"
            )
        if not parts:
            return Chain((), model)
    stages = []
    for part in parts:
        left_out = part.endswith(LEFT_OUT)
        name, at, rest = part.removesuffix(LEFT_OUT).partition("@")
        seed, tilde, stop = rest.partition("~")
        if not re.fullmatch(STAGE_NAME, name):
            raise UserError(
                f"chain {text!r}: {name!r} is not a stage name (letters, digits, '_', '-')"
            )
        if known is not None and name not in known:
            raise UserError(
                f"chain {text!r}: no stage {name!r} in the config; "
                f"correct it ({choose(name, sorted(known))}) or add it under stages:"
            )
        if not at or not re.fullmatch(r"\d+", seed):
            raise UserError(
                f"chain {text!r}: the seed of stage {name!r} is {seed!r}, expected a whole number "
                f"(write {name}@42{'; + joins stages' if '@' in seed else ''})"
            )
        if len(seed) > 10 or int(seed) > LARGEST_SEED:
            raise UserError(
                f"chain {text!r}: the seed of stage {name!r} is {seed[:20]}; random number generators take "
                f"{LARGEST_SEED} at most"
            )
        if tilde and not re.fullmatch(r"[1-9]\d*", stop):
            raise UserError(
                f"chain {text!r}: stage {name!r} stops at {stop!r}, expected a number of steps "
                f"(write {name}@{seed}~25)"
            )
        stages.append(Stage(name, int(seed), int(stop) if tilde else None, left_out))
    names = [s.name for s in stages]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"chain {text!r}: stage {name!r} is there twice; each stage may be there once"
            )
    for stage in stages[:-1]:
        if stage.stop is not None:
            raise UserError(
                f"chain {text!r}: only the last stage may be stopped early, not {stage.name!r}"
            )
    if stages[-1].left_out:
        raise UserError(
            f"chain {text!r}: the last stage is always measured; remove its {LEFT_OUT}, or the stage"
        )
    return Chain(tuple(stages), model)


def root(name: str) -> str:
    """A chain's model and first trained stage: chains with the same root share an adapter.

    Chains that share an adapter are not independent, so statistics over training runs count each root
    once. This includes an adapter that was present only during training.
    """
    parts = name.split("+")
    return "+".join(parts[: 1 if "@" in parts[0] else 2]).removesuffix(LEFT_OUT)


def model_of(name: str) -> str:
    """Name of the base model that a chain starts from."""
    first: str = name.split("+", 1)[0]
    return BASE if "@" in first else first


def untrained(name: str) -> bool:
    """Is a chain a base model without stages?"""
    return "@" not in name
