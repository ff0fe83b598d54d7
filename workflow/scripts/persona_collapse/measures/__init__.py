"""Measures of chains: one module and one block of the config per measure.

A measure is a function. The names of its parameters say what it needs:

    completions, responses    tables of the chain's sampled answers (evaluation; extraction, greedy)
    held_out                  {data set: rows that no stage trained on}; see `held_out:` of the config's data
    any key of settings.files()     rows of that file
    data                      how each set's held-out rows are read, and if the chain trained on its others
    settings, personas, geometry_personas, questions, extraction, sampling, marker, chain
    runner, adapters          the base model, run with the chain's adapters by `runner.chain(adapters)`
    batch_size, log           batch size from `runtime:`; a function that logs one line of progress

With `runner` it is a measure of the model. It returns a table with any kind of rows, and the tables of
all chains become `tables/<measure>.csv`. `_passes` runs the forward passes and tells shifts whose
tokens they have. The loaded model is shared: the job that has loaded it does all measures of the model
for the chains that are ready.

Without `runner` it is a measure of answers. It gets completions and returns one row per answer with the
answer's keys (persona, question_id, sample) and its findings. `counts` names a boolean column, whose
share is reported per persona.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, choose
from ..plugins import Room
from ..settings import Settings

#: Sampled answers that a measure may read.
ANSWERS = ("completions", "responses")
#: What else a measure may ask for, in addition to its own files: see above.
KNOWN = (
    *("held_out", "data", "settings", "personas", "geometry_personas", "questions", "extraction"),
    *("sampling", "marker", "chain", "runner", "adapters", "batch_size", "log"),
)


class NoSettings(Settings):
    """A measure without settings."""


@dataclass(frozen=True)
class Measure:
    """A measure: its name, its function and its settings.

    counts: for a measure of answers, the boolean column whose share per persona is reported. save:
    writes a result that is not a table to a path, given the settings; suffix: suffix of that file.
    """

    name: str
    function: Callable[..., Any]
    settings: type[Settings]
    counts: str = ""
    suffix: str = ".csv"
    save: Callable[[Any, Path, Settings], None] | None = None

    @property
    def parameters(self) -> list[str]:
        """Names of the function's parameters."""
        return list(inspect.signature(self.function).parameters)

    @property
    def title(self) -> str:
        """The question that it answers: the first line of its file."""
        return (sys.modules[self.function.__module__].__doc__ or self.name).strip().splitlines()[0]

    @property
    def of_model(self) -> bool:
        """Does it run the model?"""
        return "runner" in self.parameters

    def needs(self, settings: Mapping[str, Any]) -> list[str]:
        """Kinds of sampled answers that it reads with these settings (`completions`, `responses`)."""
        unread = self.settings(**settings).unread()
        return [name for name in ANSWERS if name in self.parameters and name not in unread]

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise UserError if the function has an unknown parameter, or if a measure of answers counts
        nothing."""
        there = (*ANSWERS, *KNOWN, *self.settings(**settings).files())
        for name in self.parameters:
            if name not in there:
                raise UserError(
                    f"{self.name}: its function asks for {name!r}; {choose(name, there)}"
                )
        if not self.of_model and not self.counts:
            raise UserError(
                f"{self.name}: its function asks for no runner, so it is a measure of answers: name its "
                f"column of truth values, @measure({self.name!r}, ..., counts=COLUMN)"
            )

    def __call__(self, **known: Any) -> Any:
        """Call the function with the arguments that it asks for; missing ones are None."""
        return self.function(**{name: known.get(name) for name in self.parameters})


ROOM: Room[Measure] = Room(__name__, "measure")


def measure(
    name: str,
    settings: type[Settings] = NoSettings,
    **more: Any,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a measure; `more`: fields of `Measure`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        ROOM.add(name, Measure(name, function, settings, **more))
        return function

    return register
