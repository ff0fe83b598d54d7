"""Calibration of the tables' p values and intervals in a world without differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from persona_collapse.statistics import clopper_pearson

COLUMNS = [
    "world",
    "design",
    "table",
    "name",
    "kind",
    "runs",
    "rows",
    "share",
    "low",
    "high",
    "said",
]


@dataclass(frozen=True)
class Source:
    """A p or an interval in a table.

    `by`: the columns that identify a test. `truth`: the value that the interval should contain, 0 or
    the world's rate.
    """

    table: str
    by: tuple[str, ...]
    p: str = ""
    interval: tuple[str, str] = ("", "")
    of_rate: bool = False


SOURCES = [
    Source("marker_rates", ("role",), interval=("ci_low", "ci_high"), of_rate=True),
    Source("leakage", (), interval=("ci_low", "ci_high"), of_rate=True),
    Source("marker_tests", ("test",), "p", ("ci_low", "ci_high")),
    Source("rate_model", ("quantity",), "p", ("ci_low", "ci_high")),
    Source("geometry", ("metric", "test"), "p", ("delta_low", "delta_high")),
    Source("geometry_runs", ("metric",), "p", ("ci_low", "ci_high")),
    Source("contrasts", ("metric",), "p", ("ci_low", "ci_high")),
    Source("contrasts", ("metric",), "p_pairs"),
    Source("shared_axis", ("metric",), "p"),
    Source("correlations", ("analysis", "outcome", "controls"), "p", ("ci_low", "ci_high")),
    Source("hypotheses", ("hypothesis",), "p"),
]


def counts(
    tables: Mapping[str, pd.DataFrame], rate: float
) -> Iterator[tuple[tuple[str, ...], int, int]]:
    """(table, name, kind), events and rows: p values below .05, and intervals that contain the true value."""
    for source in SOURCES:
        table = tables.get(source.table)
        if table is None:
            continue
        if "reference" in table and source.table != "marker_tests":
            table = table[(table["reference"] != "") | (table.get("quantity", "") == "rate")]
        if "chain" in table:
            table = table[table["chain"] != "base"]
        keys = list(source.by)
        groups = table.groupby(keys, sort=False) if keys else [((), table)]
        for values, rows in groups:
            name = " ".join(filter(None, map(str, values)))
            if source.p and source.p in rows:
                p = pd.to_numeric(rows[source.p], errors="coerce").dropna()
                label = name if source.p == "p" else f"{name} {source.p}"
                if len(p):
                    yield (source.table, label, "p"), int((p < 0.05).sum()), len(p)
            if source.interval[0]:
                bounds = rows[list(source.interval)].apply(pd.to_numeric, errors="coerce").dropna()
                of_rate = source.of_rate or name == "rate"
                truth = rate if of_rate else 0.0
                low, high = bounds.to_numpy().T if len(bounds) else np.zeros((2, 0))
                inside = (low <= truth) & (truth <= high)
                if len(bounds):
                    yield (source.table, name, "interval"), int(inside.sum()), len(bounds)


def summary(
    world: str, design: str, runs: list[list[tuple[tuple[str, ...], int, int]]]
) -> pd.DataFrame:
    """One row per p and interval, over runs; bounds use the run as the unit, because rows of a run are
    correlated.

    `share`: share of p below .05, or of intervals that contain the true value. `said`: whether it is as
    it should be.
    """
    found: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for run in runs:
        for key, events, rows in run:
            found.setdefault(key, []).append((events, rows))
    out = []
    for (table, name, kind), pairs in found.items():
        events, rows = np.array(pairs, float).T
        share = float(events.sum() / rows.sum())
        # Effective number of rows, from the spread between runs.
        spread = np.var(events / rows) if len(pairs) > 1 else 0.0
        effective = share * (1 - share) / spread * len(pairs) if spread > 0 else rows.sum()
        n = max(1.0, min(rows.sum(), effective))
        low, high = (float(b) for b in clopper_pearson(share * n, n))
        if kind == "p":
            said = "too many" if low > 0.05 else "few" if high < 0.05 else "as it should be"
        else:
            said = "too narrow" if high < 0.95 else "wide" if low > 0.95 else "as it should be"
        out.append(
            [world, design, table, name, kind, len(pairs), int(rows.sum()), share, low, high, said]
        )
    return pd.DataFrame(out, columns=COLUMNS)
