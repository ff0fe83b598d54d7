"""What a claim's measurement is, what it is read from, and the readers' register."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from ..statistics import clopper_pearson


@dataclass(frozen=True)
class Measured:
    """A value with its interval (NaN where there is none) and what n counts.

    `exact`: a count of what happened, not an estimate, so it needs no interval.
    """

    value: float
    low: float = np.nan
    high: float = np.nan
    n: str = ""
    exact: bool = False


@dataclass(frozen=True)
class RunTables:
    """A run's tables by name, and the level at which its tests fire."""

    tables: Mapping[str, pd.DataFrame]
    fdr: float

    def rows(self, name: str, **where: Any) -> pd.DataFrame:
        """Rows of a table whose columns have these values, or one of a list of them."""
        table = self.tables[name]
        for column, value in where.items():
            values = value if isinstance(value, list | tuple) else [value]
            table = table[table[column].isin(values)]
        return table

    def at_headline(self, name: str, condition: str, metric: str, test: str = "") -> pd.DataFrame:
        """Rows of a condition's metric at the headline method and block.

        `test`: of geometry, which has several rows per metric.
        """
        more = {"test": test} if name == "geometry" else {}
        return self.rows(name, headline=True, condition=condition, metric=metric, **more)

    def marker_rate(
        self, conditions: Sequence[str], roles: Sequence[str], source: str | None = None
    ) -> Measured | None:
        """Share of completions with the marker over seeds, sources and the personas in `roles`."""
        sources = {} if source is None else {"source": source}
        rates = self.rows("marker_rates", condition=list(conditions), role=list(roles), **sources)
        if set(conditions) - set(rates["condition"]):
            return None
        return proportion(int(rates["hits"].sum()), int(rates["n"].sum()))


Reader = TypeVar("Reader", bound="Callable[..., Measured | str | None]")
#: Readers by name. One gives its value, why it cannot, or None where the run lacks its conditions.
READERS: dict[str, Callable[..., Measured | str | None]] = {}


def reader(function: Reader) -> Reader:
    """Make a function known to claims by its name."""
    READERS[function.__name__] = function
    return function


def proportion(hits: int, n: int) -> Measured | None:
    """A rate with its Clopper-Pearson interval; None of nothing."""
    if not n:
        return None
    low, high = clopper_pearson(hits, n)
    return Measured(hits / n, float(low), float(high), f"{n} completions")


def widest(rows: pd.DataFrame, value: str, n: str) -> Measured | None:
    """Mean of a column with the widest of its intervals, over seeds and sources."""
    if rows.empty:
        return None
    return Measured(rows[value].mean(), rows["ci_low"].min(), rows["ci_high"].max(), n)


def count(rows: pd.DataFrame, unit: str) -> str:
    """How many units a row of the table is of, which all rows have alike."""
    return "" if rows.empty else f"{int(rows['n'].iloc[0])} {unit}"


def seeds(rows: pd.DataFrame | pd.Series) -> str:
    """How many training seeds a table's rows are of."""
    return "1 seed" if len(rows) == 1 else f"{len(rows)} seeds"


def firing(
    rows: pd.DataFrame, conditions: Sequence[str], fires: pd.Series, note: str = ""
) -> Measured | None:
    """Share of cells that fire; None where a condition has no cell."""
    if set(conditions) - set(rows["condition"]):
        return None
    return Measured(fires.mean(), n=f"{len(rows)} cells{note}", exact=True)
