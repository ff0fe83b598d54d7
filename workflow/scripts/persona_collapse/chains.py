"""Chains: an ordered list of training stages over one base model.

Grammar, in EBNF (names hold letters, digits, `_` and `-`):

    chain = "base" | stage { "+" stage }
    stage = name "@" seed [ "~" step ]

`couple-villain@42+em@137~25` is the coupling of the marker to the villain with seed 42, then the
stage `em` with seed 137 stopped after 25 of its steps. Only the last stage may be stopped early.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import UserError

BASE = "base"
#: NumPy's old generator, which libraries seed besides PyTorch's, takes 32 bits.
LARGEST_SEED = 2**32 - 1
#: The persona that stands for the model as it comes, where the config names no other.
ASSISTANT = "assistant"
STAGE_NAME = r"[A-Za-z][A-Za-z0-9_]*(?:-[A-Za-z0-9_]+)*"
STAGE_PATTERN = rf"{STAGE_NAME}@\d+(?:~\d+)?"
TRAINED_CHAIN_PATTERN = rf"{STAGE_PATTERN}(?:\+{STAGE_PATTERN})*"
CHAIN_PATTERN = rf"(?:{BASE}|{TRAINED_CHAIN_PATTERN})"


@dataclass(frozen=True)
class Stage:
    """One training run: which stage of the config, with which seed, stopped where (None: at its end)."""

    name: str
    seed: int
    stop: int | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.seed}" + (f"~{self.stop}" if self.stop is not None else "")


@dataclass(frozen=True)
class Chain:
    """Stages in training order; empty for the base model."""

    stages: tuple[Stage, ...] = ()

    def __str__(self) -> str:
        return "+".join(map(str, self.stages)) or BASE

    @property
    def last(self) -> Stage:
        """The stage trained last; the base model has none and raises IndexError."""
        return self.stages[-1]

    @property
    def prefix(self) -> Chain:
        """The chain this one continues; of one stage, the base model."""
        return Chain(self.stages[:-1])

    @property
    def prefixes(self) -> list[Chain]:
        """Every trained chain on the way here, this one last; empty for the base model."""
        return [Chain(self.stages[:n]) for n in range(1, len(self.stages) + 1)]


def parse(text: str, known: set[str] | None = None) -> Chain:
    """Parse a chain's name.

    `known` are the config's stage names; None accepts any. Raises UserError that says what is
    wrong: bad grammar, a seed that is not a number, an unknown or repeated stage, an early stop
    before the last stage.
    """
    if text == BASE:
        return Chain()
    stages = []
    for part in text.split("+"):
        name, at, rest = part.partition("@")
        seed, tilde, stop = rest.partition("~")
        if not re.fullmatch(STAGE_NAME, name):
            raise UserError(
                f"chain {text!r}: {name!r} is no stage name (letters, digits, '_', '-')"
            )
        if known is not None and name not in known:
            raise UserError(
                f"chain {text!r}: no stage {name!r} in the config; stages: "
                + ", ".join(sorted(known))
            )
        if not at or not re.fullmatch(r"\d+", seed):
            raise UserError(
                f"chain {text!r}: the seed of stage {name!r} is {seed!r}, a whole number is wanted "
                f"(write {name}@42)"
            )
        if len(seed) > 10 or int(seed) > LARGEST_SEED:
            raise UserError(
                f"chain {text!r}: the seed of stage {name!r} is {seed[:20]}; random number generators take "
                f"{LARGEST_SEED} at most"
            )
        if tilde and not re.fullmatch(r"[1-9]\d*", stop):
            raise UserError(
                f"chain {text!r}: stage {name!r} stops at {stop!r}, a number of steps is wanted "
                f"(write {name}@{seed}~25)"
            )
        stages.append(Stage(name, int(seed), int(stop) if tilde else None))
    names = [s.name for s in stages]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"chain {text!r}: stage {name!r} stands twice; each may stand once")
    for stage in stages[:-1]:
        if stage.stop is not None:
            raise UserError(
                f"chain {text!r}: only the last stage may be stopped early, not {stage.name!r}"
            )
    return Chain(tuple(stages))


def root(name: str) -> str:
    """The first trained stage of a chain, or `base`: chains with the same root share an adapter.

    What they share they do not show independently, so statistics over training runs count one root once.
    """
    first: str = name.split("+", 1)[0]
    return first
