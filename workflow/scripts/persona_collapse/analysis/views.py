"""Activations as the tables of geometry take them: by chain, method and block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from ..activation_files import Activations
from ..chains import BASE

Load = Callable[[str], Activations]
#: Method and block of the headline figures: {method, layer}.
Headline = Mapping[str, Any]


@dataclass(frozen=True)
class View:
    """One chain's activations by one method at one block: stack [persona, question, hidden]."""

    chain: str
    method: str
    layer: int
    personas: list[str]
    questions: list[str]
    stack: np.ndarray

    @property
    def cell(self) -> tuple[str, int]:
        """Method and block."""
        return self.method, self.layer

    @property
    def key(self) -> dict[str, Any]:
        """The key columns of a table's rows on this view."""
        return {"chain": self.chain, "method": self.method, "layer": self.layer}

    @cached_property
    def vectors(self) -> np.ndarray:
        """Persona vectors [persona, hidden], float64 means over questions."""
        means: np.ndarray = self.stack.mean(axis=1, dtype=float)
        return means


def measuring(design: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The rows of the design whose chains a measure is taken of."""
    # Not by a plain list: an empty one would choose no columns.
    return design.loc[[measure in measures.split() for measures in design["measures"]]]


def chains_of(design: pd.DataFrame) -> list[str]:
    """The chains whose activations are measured, base first."""
    return list(dict.fromkeys([BASE, *measuring(design, "activations")["chain"]]))


def views(design: pd.DataFrame, load: Load, chains: Sequence[str] | None = None) -> Iterator[View]:
    """Views of every chain with activations, or of some; one chain in memory at a time."""
    for chain in chains_of(design) if chains is None else chains:
        activations = load(chain)
        for method, array in activations.arrays.items():
            for number, layer in enumerate(activations.layers):
                yield View(
                    chain, method, layer, activations.personas, activations.questions, array[number]
                )


def cells_of(design: pd.DataFrame) -> pd.DataFrame:
    """Condition, chain and seed of every cell, the base model's always among them.

    A chain that stands for two conditions is listed under both.
    """
    cells = design[["condition", "chain", "seed"]]
    if BASE not in set(cells["chain"]):
        first = pd.DataFrame([{"condition": BASE, "chain": BASE, "seed": ""}])
        cells = pd.concat([first, cells])
    return cells.drop_duplicates(["condition", "chain"])


def headline_cell(headline: pd.DataFrame) -> dict[str, Any]:
    """Method and block of the headline figures; `headline`: tables/headline.csv, one row."""
    row = headline.iloc[0]
    return {"method": str(row["method"]), "layer": int(row["layer"])}


def at_headline(table: pd.DataFrame, headline: Headline) -> pd.Series:
    """Which rows of a table with `method` and `layer` are at the headline's."""
    inside: pd.Series = (table["method"] == headline["method"]) & (
        table["layer"] == headline["layer"]
    )
    return inside


def mark_headline(table: pd.DataFrame, headline: Headline) -> pd.DataFrame:
    """A table with `method` and `layer`, and whether each row is at the headline's: column `headline`."""
    return table.assign(headline=at_headline(table, headline).astype(bool))
