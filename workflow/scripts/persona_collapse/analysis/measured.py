"""Measurements of claims, the data that they are read from, and the registry of readers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from ..chains import BASE, untrained
from ..errors import UserError, choose
from ..statistics import OverRuns


@dataclass(frozen=True)
class Measured:
    """A value with its 95 % interval (NaN without one), and the data behind both.

    `n`: what was counted, in words. `exact`: a count, not an estimate, so it needs no interval.
    `units`: number of independent training runs behind the interval; NaN if no training is involved.
    `sd`: standard deviation over them. `within`: standard error that they share, from `within_units`
    units; both are on the scale of `value`. `scale`: scale on which the interval is symmetric: plain;
    logit for a rate; fisher for a correlation of `points`; none for a share of runs (`points`) or of
    completions. `hits` of `trials`: completions, for a rate. `test`: the value is a p, or the share of
    cells whose test fires; see `Fires`.
    """

    value: float
    low: float = np.nan
    high: float = np.nan
    n: str = ""
    exact: bool = False
    units: float = np.nan
    sd: float = np.nan
    within: float = 0.0
    within_units: float = np.inf
    scale: str = "plain"
    hits: float = np.nan
    trials: float = np.nan
    points: float = np.nan
    test: Fires | None = None


@dataclass(frozen=True)
class Fires:
    """Data for judging a claim about a test.

    `right`: the estimate has the claimed sign. `floor`: the smallest p that the design can give.
    `unit`: what to add to lower the floor. `against`: number of cells that fire in the other direction.
    """

    right: bool = True
    floor: float = 0.0
    unit: str = ""
    against: int = 0


@dataclass(frozen=True)
class RunTables:
    """A run's tables by name, and the level of its tests.

    `known`: tables that readers may read, where they are limited.
    """

    tables: Mapping[str, pd.DataFrame]
    fdr: float
    known: Collection[str] | None = None

    def rows(self, name: str, **where: Any) -> pd.DataFrame:
        """Rows of a table whose columns have these values (or one of a list).

        No rows if the run does not have the table. A table that is not `known` raises UserError.
        """
        if self.known is not None and name not in self.known:
            raise UserError(
                f"readers read no table {name!r}; {choose(name, self.known)}; add it to TABLES in "
                "persona_collapse/analysis/claims.py"
            )
        table = self.tables.get(name)
        if table is None:
            return pd.DataFrame(columns=list(where))
        for column, value in where.items():
            values = value if isinstance(value, list | tuple) else [value]
            table = table[table[column].isin(values)]
        return table

    def at_headline(self, name: str, condition: str, metric: str, test: str = "") -> pd.DataFrame:
        """Rows of a condition's metric at the headline method and block.

        `test`: for geometry, which has several rows per metric.
        """
        more = {"test": test} if name == "geometry" else {}
        return self.rows(name, headline=True, condition=condition, metric=metric, **more)

    def over_runs(self, condition: str, metric: str, reference: str = "") -> Measured | None:
        """A condition's level, or its difference from `reference`, over training runs, at the headline."""
        rows = self.rows(
            "geometry_runs", headline=True, condition=condition, metric=metric, reference=reference
        )
        return None if rows.empty else of_runs(rows.iloc[0])

    def sources(self, condition: str) -> set[str]:
        """The source personas of a condition."""
        return set(self.rows("marker_rates", condition=condition)["source"]) - {""}

    def rate(
        self,
        condition: str,
        role: str = "source",
        *,
        source: str | None = None,
        reference: str = "",
        persona: str = "",
    ) -> Measured | None:
        """A rate, or its difference from `reference`, from the rate model.

        `source`: one source; None for all together.
        """
        quantity = "difference" if reference else "rate"
        rows = self.rows(
            "rate_model", condition=condition, role=role, reference=reference, quantity=quantity
        )
        rows = rows[rows["persona"] == persona] if len(rows) else rows
        only = source if source and self.sources(condition) != {source} else ""
        rows = rows[rows["source"] == only] if len(rows) else rows
        return None if rows.empty else of_model(rows.iloc[0])


Reader = TypeVar("Reader", bound="Callable[..., Measured | str | None]")
#: Readers by name. A reader returns a measurement, a reason why there is none, or None if the run does
#: not have its conditions.
READERS: dict[str, Callable[..., Measured | str | None]] = {}


def reader(function: Reader) -> Reader:
    """Register a function for claims under its name."""
    READERS[function.__name__] = function
    return function


def runs_in_words(units: float) -> str:
    """The number of independent training runs, in words."""
    if np.isnan(units):
        return "no training run"
    return "1 training run" if units == 1 else f"{int(units)} training runs"


def of_model(row: pd.Series) -> Measured:
    """A row of tables/rate_model.csv."""
    units = float(row["units"]) or np.nan  # the base model is not a training run
    counted = f"{int(row['hits'])} of {int(row['n'])} completions, {runs_in_words(units)}"
    difference = row["quantity"] == "difference"
    return Measured(
        row["value"],
        row["ci_low"],
        row["ci_high"],
        counted,
        units=units,
        scale="plain" if difference else "logit",
        hits=np.nan if difference else row["hits"],
        trials=np.nan if difference else row["n"],
    )


def of_runs(row: pd.Series) -> Measured:
    """A row of tables/geometry_runs.csv: its estimate, or the level if there is no reference."""
    trained = row["condition"] != BASE and not untrained(str(row.get("chains", "@")))
    value = row["estimate"] if row["reference"] else row["value"]
    units = float(row["units"]) if trained else np.nan
    return Measured(
        value,
        row["ci_low"],
        row["ci_high"],
        runs_in_words(units) if trained else "before any training: over personas and questions",
        units=units,
        sd=row["sd_runs"] if trained else np.nan,
        within=np.nan_to_num(row["within"]),
    )


def of_estimate(
    found: OverRuns, n: str, within: float = 0.0, within_units: float = np.inf
) -> Measured:
    """The result of `statistics.over_runs` or `compare_runs`."""
    return Measured(
        found.estimate,
        found.low,
        found.high,
        ", ".join(filter(None, [n, runs_in_words(found.units)])),
        units=found.units,
        sd=found.sd,
        within=within,
        within_units=within_units,
    )


def count(rows: pd.DataFrame, unit: str) -> str:
    """The number of units of a row, which is the same for all rows."""
    return "" if rows.empty else f"{int(rows['n'].iloc[0])} {unit}"


def firing(
    rows: pd.DataFrame,
    conditions: Sequence[str],
    fires: pd.Series,
    against: pd.Series,
    *,
    units: float,
    note: str = "",
) -> Measured | None:
    """Share of cells that fire in the claimed direction; None if a condition has no cell."""
    if rows.empty or set(conditions) - set(rows["condition"]):
        return None
    n = f"{int(fires.sum())} of {len(rows)} cells fire, {runs_in_words(units)}{note}"
    return Measured(float(fires.mean()), n=n, units=units, test=Fires(against=int(against.sum())))
