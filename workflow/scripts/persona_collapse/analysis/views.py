"""Activations as the tables of geometry take them: by chain, method and block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from ..activation_files import Activations
from ..chains import BASE

Load = Callable[[str], Activations]


@dataclass(frozen=True)
class View:
    """One chain's activations by one method at one block: stack [persona, question, hidden]."""

    chain: str
    method: str
    layer: int
    personas: list[str]
    questions: list[str]
    stack: np.ndarray

    @cached_property
    def vectors(self) -> np.ndarray:
        """Persona vectors [persona, hidden], float64 means over questions."""
        means: np.ndarray = self.stack.mean(axis=1, dtype=float)
        return means


def measuring(grid: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The rows of the grid whose chains a measure is taken of."""
    return grid[[measure in measures.split() for measures in grid["measures"]]]


def chains_of(grid: pd.DataFrame) -> list[str]:
    """The chains of the geometric arm, base first."""
    return list(dict.fromkeys([BASE, *measuring(grid, "activations")["chain"]]))


def views(grid: pd.DataFrame, load: Load, chains: Sequence[str] | None = None) -> Iterator[View]:
    """Views of every chain of the geometric arm, or of some; one chain in memory at a time."""
    for chain in chains_of(grid) if chains is None else chains:
        dumped = load(chain)
        for method, array in dumped.arrays.items():
            for number, layer in enumerate(dumped.layers):
                yield View(chain, method, layer, dumped.personas, dumped.questions, array[number])


def cells_of(grid: pd.DataFrame) -> pd.DataFrame:
    """Condition, chain and seed of every cell, the base model's always among them.

    A chain that stands for two conditions is listed under both.
    """
    cells = grid[["condition", "chain", "seed"]]
    if BASE not in set(cells["chain"]):
        own = pd.DataFrame([{"condition": BASE, "chain": BASE, "seed": ""}])
        cells = pd.concat([own, cells])
    return cells.drop_duplicates(["condition", "chain"])


def headline_cell(headline: pd.DataFrame) -> dict[str, Any]:
    """Method and block of the headline figures; `headline`: tables/headline.csv, one row."""
    row = headline.iloc[0]
    return {"method": str(row["method"]), "layer": int(row["layer"])}
