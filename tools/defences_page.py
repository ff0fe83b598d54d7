"""The tables of docs/defences.md, from what tools/models.py keeps of runs with defended second stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import models as kept_runs
import pandas as pd
from cause_page import claims_table
from interval_plot import intervals
from markdown_tables import cell, raw_table, shown
from models import Model
from models_page import mean_over_runs
from persona_collapse.report.figures.frontier import OUTCOMES

NAME = "defences"
#: Digits of an outcome where it is not two.
DIGITS = {"m1": 3, "angle": 1, "marker_logprob": 1}


def _loss(model: Model, condition: str) -> str:
    """Mean over runs of the training loss of the last steps, without the defence's penalty."""
    names = model.tables["design"].query("condition == @condition")["chain"]
    curves = model.tables["training_curves"]
    return mean_over_runs(curves[curves["chain"].isin(names)], "task_loss").text(2)


def _outcomes(models: Sequence[Model]) -> list[str]:
    """Outcomes that a run measured after a defence, in the order of the table."""
    found = pd.concat([m.tables["frontier"] for m in models])
    defended = found[found["defence"].notna() & (found["defence"] != "")]
    return [name for name in found["outcome"].unique() if name in set(defended["outcome"])]


def _conditions(model: Model) -> Iterator[tuple[str, pd.DataFrame]]:
    """A model's conditions with the rows of the frontier, those without a defence first."""
    frontier = model.tables["frontier"]
    yield from frontier.groupby("condition", sort=False)


def outcomes_table(models: Sequence[Model]) -> str:
    """What each defence leaves of the marker and the geometry, and the difference to the stage without it."""
    outcomes, rows = _outcomes(models), []
    for model in models:
        for name, own in _conditions(model):
            first = own.iloc[0]
            made = [cell(model.name), cell(f"{name}: {first['title']}"), cell(first["setting"] or ""),
                    f"{first['runs']:.0f}", _loss(model, name)]  # fmt: skip
            for outcome in outcomes:
                row = own[own["outcome"] == outcome]
                values = ["", ""]
                if len(row):
                    digits = DIGITS.get(outcome, 2)
                    r = row.iloc[0]
                    values[0] = shown(r["value"], r["ci_low"], r["ci_high"], digits)
                    if pd.notna(r["difference"]):
                        low, high = r["difference_low"], r["difference_high"]
                        values[1] = shown(r["difference"], low, high, digits)
                made += values
            rows.append(made)
    head = ["run", "condition", "setting", "training runs", "training loss"]
    for outcome in outcomes:
        head += [cell(OUTCOMES.get(outcome, outcome)), "minus without"]
    return "\n".join(raw_table(head, rows))


TABLES: dict[str, Callable[[Sequence[Model]], str]] = {
    "runs": kept_runs.runs_table,
    "outcomes": outcomes_table,
    "claims": claims_table,
}


def figure(models: Sequence[Model]) -> str:
    """The source's marker rate by defence, with intervals over training runs: an SVG."""
    rows = []
    for model in models:
        for _, own in _conditions(model):
            for row in own[own["outcome"] == "rate"].itertuples():
                rows.append({
                    "panel": model.name, "line": row.title,
                    "group": "with a defence" if row.defence else "without",
                    "value": row.value, "low": row.ci_low, "high": row.ci_high,
                })  # fmt: skip
    table = pd.DataFrame(rows).sort_values("value", kind="stable")
    return intervals(table, "source says the marker", list(dict.fromkeys(table["line"])))


def page(docs: Path) -> str | None:
    """The text of docs/defences.md with its tables made; None where no run was added."""
    return kept_runs.page(docs, NAME, TABLES)
