"""Former names of tables and metrics in `statistics: families:`; the error gives the new name."""

from __future__ import annotations

from typing import Any

from ..errors import UserError

TABLES = {"link": "correlations", "axis": "shared_axis"}
TESTS = {
    "m1_by_persona": "personas",
    "m1_label_swap": "label_swap",
    "m1_two_way": "two_way",
}


def check_families(config: Any) -> None:
    """Raise UserError with the new name of a renamed table or metric; other names pass."""
    statistics = config.get("statistics")
    families = statistics.get("families") if isinstance(statistics, dict) else None
    where = "config: statistics: families: "
    for family in families if isinstance(families, list) else []:
        if not isinstance(family, dict):
            continue
        table, metric = family.get("table"), family.get("metric")
        if isinstance(table, str) and table in TABLES:
            raise UserError(f"{where}table: {table} is now called {TABLES[table]}")
        if metric == "m1_over_seeds" or (table, family.get("test")) == ("geometry", "seeds"):
            raise UserError(f"{where}M1 over seeds is now table: geometry_runs, metric: m1")
        if isinstance(metric, str) and metric in TESTS:
            raise UserError(f"{where}metric: {metric} is now metric: m1, test: {TESTS[metric]}")
