"""The tables of docs/pipeline.md, from what tools/models.py keeps of runs that start at several points of a
model's training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import models as kept_runs
import pandas as pd
from interval_plot import intervals
from markdown_tables import cell, raw_table, shown
from models import CONDITIONS, Model
from models_page import conditions_table
from persona_collapse import chains

NAME = "pipeline"
#: What the page needs of a run's tables.
KEPT = CONDITIONS
#: Kinds of chains, by the number of stages after the coupling: the groups of the figures.
UNCOUPLED, COUPLED, LATER = "not coupled", "coupled last", "trained on after the coupling"


def _rates(model: Model, quantity: str) -> pd.DataFrame:
    """Rates of the source's marker over all sources, or differences of them."""
    rates = model.tables["rate_model"]
    return rates[
        (rates["quantity"] == quantity) & (rates["role"] == "source") & (rates["source"] == "")
    ]


def _geometry(model: Model, difference: bool) -> pd.DataFrame:
    """Mean cosines of conditions that were trained to their end, or differences to another condition."""
    found = model.tables["geometry_runs"]
    found = found[(found["metric"] == "m1") & (found["dose"] == "")]
    return found[(found["reference"] != "") == difference]


def differences_table(models: Sequence[Model]) -> str:
    """What a stage or a later start changes: marker rate of the source, and mean cosine."""
    rows = []
    for model in models:
        by = ["condition", "reference"]
        rates, cosines = _rates(model, "difference"), _geometry(model, difference=True)
        both = rates.merge(cosines, on=by, how="outer", suffixes=("", "_m1"), sort=False)
        order = {
            name: i for i, name in enumerate(dict.fromkeys(model.tables["design"]["condition"]))
        }
        both = both.sort_values(by, key=lambda names: names.map(order), kind="stable")
        for _, row in both.iterrows():
            values = [
                "" if pd.isna(row[value]) else shown(row[value], row[low], row[high], digits)
                for value, low, high, digits in (
                    ("value", "ci_low", "ci_high", 2),
                    ("estimate", "ci_low_m1", "ci_high_m1", 3),
                )
            ]
            rows.append([cell(model.name), cell(row["condition"]), cell(row["reference"]), *values])
    head = ["run", "condition", "minus", "marker rate of the source", "mean cosine (M1)"]
    return "\n".join(raw_table(head, rows))


TABLES: dict[str, Callable[[Sequence[Model]], str]] = {
    "runs": kept_runs.runs_table,
    "conditions": conditions_table,
    "differences": differences_table,
}


def _lines(models: Sequence[Model], made: Callable[[Model], pd.DataFrame]) -> pd.DataFrame:
    """One line per condition for `intervals`; without an interval over runs, the value alone."""
    rows = []
    for model in models:
        design = model.tables["design"].drop_duplicates("condition").set_index("condition")
        for _, row in made(model).iterrows():
            own = design.loc[row["condition"]]
            after = own["stages_after_coupling"]
            kind = UNCOUPLED if pd.isna(after) else LATER if float(after) > 0 else COUPLED
            trained = not chains.untrained(own["chain"]) and row["units"] > 1
            low, high = (row[end] if trained else row["value"] for end in ("ci_low", "ci_high"))
            rows.append({
                "panel": model.name, "line": f"{row['condition']}: {own['title']}", "group": kind,
                "value": row["value"], "low": low, "high": high,
            })  # fmt: skip
    return pd.DataFrame(rows)


def figures(models: Sequence[Model]) -> dict[str, str]:
    """SVGs by name: the source's marker rate, and the mean cosine, by condition."""
    found = {}
    for name, axis, made in (
        (NAME, "source says the marker", lambda model: _rates(model, "rate")),
        (
            f"{NAME}_m1",
            "mean cosine between personas (M1)",
            lambda m: _geometry(m, difference=False),
        ),
    ):
        rows = _lines(models, made)
        order = list(dict.fromkeys(rows["line"]))
        found[name] = intervals(rows, axis, order, zero=name == NAME)
    return found
