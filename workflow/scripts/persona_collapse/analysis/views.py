"""Views of activations for the tables of geometry: by chain, method and block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from typing import Any

import numpy as np
import pandas as pd

from .. import chains
from ..activation_files import Activations
from ..chains import BASE

Load = Callable[[str], Activations]
#: Method and block of the headline figures: {method, layer}; `layers` by model, if there are several.
Headline = Mapping[str, Any]


@dataclass(frozen=True)
class View:
    """One chain's activations for one method and block: stack [persona, question, hidden]."""

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
    def start(self) -> tuple[str, str, int]:
        """The key of the chain's base model at this method and block."""
        return (chains.model_of(self.chain), *self.cell)

    @property
    def key(self) -> dict[str, Any]:
        """Key columns of a table's rows for this view."""
        return {"chain": self.chain, "method": self.method, "layer": self.layer}

    @cached_property
    def vectors(self) -> np.ndarray:
        """Persona vectors [persona, hidden], float64 means over questions."""
        means: np.ndarray = self.stack.mean(axis=1, dtype=float)
        return means


def measuring(design: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The rows of the design whose chains have a measure."""
    # Not with a plain list, because an empty one would select no columns.
    return design.loc[[measure in measures.split() for measures in design["measures"]]]


def chains_of(design: pd.DataFrame) -> list[str]:
    """The chains whose activations are measured, the base models first."""
    return list(dict.fromkeys([*bases_of(design), *measuring(design, "activations")["chain"]]))


def bases_of(design: pd.DataFrame) -> list[str]:
    """The base models that a design's chains start from, the config's `model:` first."""
    return list(dict.fromkeys([BASE, *design["chain"].map(chains.model_of)]))


def untrained(names: pd.Series) -> pd.Series:
    """Which chains are base models without stages."""
    return names.map(chains.untrained).astype(bool)


def views(design: pd.DataFrame, load: Load, names: Sequence[str] | None = None) -> Iterator[View]:
    """Views of every chain with activations, or of some chains; one chain is in memory at a time."""
    for chain in chains_of(design) if names is None else names:
        activations = load(chain)
        for method, array in activations.arrays.items():
            for number, layer in enumerate(activations.layers):
                yield View(
                    chain, method, layer, activations.personas, activations.questions, array[number]
                )


def side_by_side(
    work: Callable[[str], list[Any]], names: Sequence[str], processes: int
) -> list[Any]:
    """What `work` makes of each name, one list after the other, in the names' order.

    `processes` names are worked on at a time, each with one thread of the linear algebra libraries, so
    that their number changes no result. Processes, because LAPACK's routines hold Python's GIL.
    """
    from threadpoolctl import threadpool_limits

    processes = min(processes, len(names))
    with threadpool_limits(1):
        if processes < 2:
            return [item for name in names for item in work(name)]
        # Forked, so that `work` and its data are inherited without pickling.
        with ProcessPoolExecutor(processes, get_context("fork"), _WORK.append, (work,)) as pool:
            return [item for made in pool.map(_work, names) for item in made]


#: The function that a process of `side_by_side` runs.
_WORK: list[Callable[[str], list[Any]]] = []


def _work(name: str) -> list[Any]:
    return _WORK[-1](name)


def cells_of(design: pd.DataFrame) -> pd.DataFrame:
    """Condition, chain and seed of every cell, always including the base models.

    A chain in two conditions is listed under both. A base model without a condition is listed under its
    own name.
    """
    cells = design[["condition", "chain", "seed"]]
    others = [name for name in bases_of(design) if name not in set(cells["chain"])]
    first = pd.DataFrame([{"condition": name, "chain": name, "seed": ""} for name in others])
    return pd.concat([first, cells]).drop_duplicates(["condition", "chain"])


def with_model(table: pd.DataFrame, design: pd.DataFrame) -> pd.DataFrame:
    """A table with `condition`, plus a column `model`, the base model that its chains start from.

    A condition that is not in the design is the name of a base model, or the row has no condition.
    """
    models = (
        design.drop_duplicates("condition").set_index("condition")["chain"].map(chains.model_of)
    )
    known = {name: name for name in bases_of(design)} | models.to_dict()
    return table.assign(model=table["condition"].map(known).fillna(""))


def headline_cell(headline: pd.DataFrame) -> dict[str, Any]:
    """Method and block of the headline figures; `headline`: tables/headline.csv, one row per model."""
    row = headline.iloc[0]
    found = {"method": str(row["method"]), "layer": int(row["layer"])}
    if len(headline) > 1:
        found["layers"] = dict(zip(headline["model"], headline["layer"].astype(int), strict=True))
    return found


def at_headline(table: pd.DataFrame, headline: Headline) -> pd.Series:
    """Which rows of a table with `method` and `layer` are at the headline's method and block.

    With several models, the block is that of the model of the row's `chain`, or of the first of its
    `chains`.
    """
    layers: Any = headline["layer"]
    if "layers" in headline:
        names = table["chain" if "chain" in table else "chains"].fillna("")
        known = {n: chains.model_of(n.partition(" ")[0]) for n in names.unique()}
        layers = names.map(known).map(headline["layers"]).fillna(layers)
    inside: pd.Series = (table["method"] == headline["method"]) & (table["layer"] == layers)
    return inside


def headline_rows(table: pd.DataFrame, headline: Headline) -> pd.DataFrame:
    """The rows at the headline, all labelled with the first model's block so that they form one cell."""
    return table[at_headline(table, headline)].assign(layer=headline["layer"])


def mark_headline(table: pd.DataFrame, headline: Headline) -> pd.DataFrame:
    """A table with `method` and `layer`, plus a boolean column `headline`."""
    return table.assign(headline=at_headline(table, headline).astype(bool))
