"""The tables of docs/cause.md, from what tools/models.py keeps of runs that shift states while sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import models as kept_runs
import pandas as pd
from interval_plot import intervals
from markdown_tables import cell, lines, raw_table, shown
from models import EVERY_PERSONA, RATES, SCORECARD, Kept, Model
from models_page import mean_over_runs, source_label

NAME = "cause"
#: Conditions with shifts, and those that they start from.
ROWS = "condition.str.match('restored|shifted|C1$|C4$|C5$')"
#: What the page needs of a run's tables.
KEPT = {
    "design": Kept(("condition", "title", "chain", "source", "seed")),
    "rate_model": Kept(
        RATES,
        EVERY_PERSONA + "role != 'assistant' and quantity in ['rate', 'difference'] and " + ROWS,
    ),
    "answer_stats": Kept(
        ("condition", "chain", "source", "role", "n", "mean_tokens", "truncated", "marker_logprob"),
        ROWS,
    ),
    "scorecard": Kept(SCORECARD, "where == 'cause'"),
}  # fmt: skip
#: How names of conditions with shifts begin.
SHIFTED = ("restored", "shifted")


def titles(model: Model) -> dict[str, str]:
    """What each condition is, by its name."""
    design = model.tables["design"].drop_duplicates("condition")
    return dict(zip(design["condition"], design["title"], strict=True))


def _source(model: Model) -> str:
    """The source whose states were shifted; empty in a run without shifts."""
    design = model.tables["design"]
    shifted = design[design["condition"].str.startswith(SHIFTED)]
    return next(iter(shifted["source"]), "")


def _rows(model: Model, quantity: str, role: str = "source") -> pd.DataFrame:
    """Rates of the source whose states were shifted, also in conditions that have others."""
    rates, source = model.tables["rate_model"], _source(model)
    wanted = rates["condition"].map(lambda name: source_label(model, name, source))
    return rates[
        (rates["quantity"] == quantity) & (rates["role"] == role) & (rates["source"] == wanted)
    ]


def _value(row: pd.Series) -> str:
    return shown(row["value"], row["ci_low"], row["ci_high"])


def _mean(model: Model, condition: str, column: str, digits: int) -> str:
    """Mean over training runs of what the source's answers show."""
    stats = model.tables["answer_stats"]
    own = stats[(stats["condition"] == condition) & (stats["role"] == "source")]
    own = own[own["source"] == _source(model)] if _source(model) else own
    return mean_over_runs(own, column).text(digits)


def rates_table(models: Sequence[Model]) -> str:
    """How often the source, and others, say the marker in each condition."""
    rows = []
    for model in models:
        others = _rows(model, "rate", "bystander").set_index("condition")
        for _, row in _rows(model, "rate").iterrows():
            name = row["condition"]
            rows.append(
                [
                    cell(model.name),
                    cell(f"{name}: {titles(model)[name]}"),
                    f"{row['units']:.0f}",
                    _value(row),
                    _value(others.loc[name]) if name in others.index else "",
                    _mean(model, name, "marker_logprob", 1),
                    _mean(model, name, "mean_tokens", 0),
                ]
            )
    head = [
        "run", "condition", "training runs", "source says the marker", "others", "log-probability", "tokens",
    ]  # fmt: skip
    return "\n".join(raw_table(head, rows))


def differences_table(models: Sequence[Model]) -> str:
    """What a shift changes, against the same model without it and against each control."""
    rows = []
    for model in models:
        found = _rows(model, "difference")
        found = found[found["condition"].str.startswith(SHIFTED)]
        rows += [
            [cell(model.name), cell(row["condition"]), cell(row["reference"]), _value(row)]
            for _, row in found.iterrows()
        ]
    return "\n".join(raw_table(["run", "condition", "minus", "source's marker rate"], rows))


def claims_table(models: Sequence[Model]) -> str:
    """The claims on causes with their verdicts, and what would be needed for those not tested."""
    rows = []
    for model in models:
        for row in model.tables["scorecard"].itertuples(index=False):
            measured = pd.notna(row.measured)
            said = f"**{cell(row.verdict)}**: {cell(row.note or row.reason)}"
            if pd.notna(row.would_take):
                said += f"; it would take {cell(row.would_take)}"
            rows.append([
                cell(model.name), lines([cell(row.text), f"*{cell(row.expected)}*"]),
                shown(row.measured, row.ci_low, row.ci_high) if measured else "",
                said,
            ])  # fmt: skip
    return "\n".join(raw_table(["run", "claim", "value", "verdict"], rows))


TABLES: dict[str, Callable[[Sequence[Model]], str]] = {
    "runs": kept_runs.runs_table,
    "rates": rates_table,
    "differences": differences_table,
    "claims": claims_table,
}


def figures(models: Sequence[Model]) -> dict[str, str]:
    """SVGs by name: the source's marker rate by condition, with intervals over training runs."""
    rows = []
    for model in models:
        for _, row in _rows(model, "rate").iterrows():
            control = row["condition"].endswith(("-isotropic", "-zero-sum"))
            moved = row["condition"].startswith(SHIFTED)
            rows.append({
                "panel": model.name, "line": titles(model)[row["condition"]],
                "group": "random control" if control else "intervention" if moved else "no intervention",
                "value": row["value"], "low": row["ci_low"], "high": row["ci_high"],
            })  # fmt: skip
    table = pd.DataFrame(rows)
    order = list(dict.fromkeys(table["line"]))
    return {NAME: intervals(table, "source says the marker", order)}
