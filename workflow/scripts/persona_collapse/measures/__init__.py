"""What is asked of each chain: one module per measure, and one block of the config.

A measure is a function that asks for what it needs by the names of its parameters:

    completions, responses    tables of the chain's sampled answers (evaluation; extraction, greedy)
    held_out                  {data set: rows that no stage trained on}; see `held_out:` of the config's data
    any key of settings.files()     rows of that file
    data                      how each set's held-out rows are read, and if the chain trained on the others
    settings, personas, geometry_personas, questions, extraction, sampling, marker, chain
    runner, adapters          the base model, to be run with the chain's adapters (`runner.chain(adapters)`)
    batch_size, log           from `runtime:`; a function for one line of progress

With `runner` it is a measure of the model. It returns a table, one row per what it likes, and all
chains' tables become `tables/<measure>.csv`. Passes are made by `_passes`, which tells shifts whose
tokens they have. The loaded model is shared: whichever job has one does all measures of the model for
the chains that are ready.

Without, it is a measure of answers. It gets completions and returns one row per answer with the
answer's keys (persona, question_id, sample) and what it found; a column of truth values, named by
`counts`, is counted by persona.
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
#: What else a measure may ask for, beside files of its own: see above.
KNOWN = (
    *("held_out", "data", "settings", "personas", "geometry_personas", "questions", "extraction"),
    *("sampling", "marker", "chain", "runner", "adapters", "batch_size", "log"),
)


class NoSettings(Settings):
    """A measure without settings."""


@dataclass(frozen=True)
class Measure:
    """A measure: what it is called, computes, and is told by the config.

    counts: column of truth values whose share by persona is reported; of a measure of answers. save:
    writes a result that is no table to a path, with the settings; suffix: of that file.
    """

    name: str
    function: Callable[..., Any]
    settings: type[Settings]
    counts: str = ""
    suffix: str = ".csv"
    save: Callable[[Any, Path, Settings], None] | None = None

    @property
    def parameters(self) -> list[str]:
        """What the function asks for."""
        return list(inspect.signature(self.function).parameters)

    @property
    def title(self) -> str:
        """What it asks: the first line of its file."""
        return (sys.modules[self.function.__module__].__doc__ or self.name).strip().splitlines()[0]

    @property
    def of_model(self) -> bool:
        """Does it run the model?"""
        return "runner" in self.parameters

    def needs(self, settings: Mapping[str, Any]) -> list[str]:
        """Tables of sampled answers that it reads with these settings (`completions`, `responses`)."""
        unread = self.settings(**settings).unread()
        return [name for name in ANSWERS if name in self.parameters and name not in unread]

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise UserError if the function asks for what no measure gets, or counts nothing of answers."""
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
        """Call the function with what it asks for; what is left out is None."""
        return self.function(**{name: known.get(name) for name in self.parameters})


ROOM: Room[Measure] = Room(__name__, "measure")


def measure(
    name: str,
    settings: type[Settings] = NoSettings,
    **more: Any,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function a measure; `more`: fields of `Measure`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        ROOM.add(name, Measure(name, function, settings, **more))
        return function

    return register
