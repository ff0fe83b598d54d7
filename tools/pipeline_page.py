"""The tables of docs/pipeline.md, from what tools/models.py keeps of runs that start at several points of a
model's training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import models as kept_runs
import pandas as pd
from interval_plot import intervals
from markdown_tables import cell, raw_table
from models import BLOCKS, Model
from models_page import Cell, blocks_table, conditions_table, level, modelled, rate
from persona_collapse import chains

NAME = "pipeline"
#: What the page needs of a run's tables.
ANSWERS = BLOCKS["answer_stats"]
KEPT = BLOCKS | {
    "answer_stats": replace(ANSWERS, columns=(*ANSWERS.columns, "marker_at_end", "looping"))
}
#: Kinds of chains, by the number of stages after the coupling: the groups of the figures.
UNCOUPLED, COUPLED, LATER = "not coupled", "coupled last", "trained on after the coupling"


def _pairs(model: Model) -> list[tuple[str, str]]:
    """Each condition and one that it is compared with, in the order of the design."""
    tables = [model.tables[name] for name in ("rate_model", "geometry_runs")]
    compared = pd.concat([t.loc[t["reference"] != "", ["condition", "reference"]] for t in tables])
    names = dict.fromkeys(model.tables["design"]["condition"])
    places = {name: place for place, name in enumerate(names)}
    pairs = set(compared.itertuples(index=False, name=None))
    # A reference may be a base model, or several conditions in one.
    return sorted(pairs, key=lambda pair: [(places.get(name, -1), name) for name in pair])


def differences_table(models: Sequence[Model]) -> str:
    """What a stage or a later start changes: marker rate of the source, and mean cosine."""
    rows = []
    for model in models:
        for name, other in _pairs(model):
            change = modelled(model, name, "difference", role="source", reference=other)
            cosine = level(model, name, "m1", reference=other)
            rows.append([cell(model.name), cell(name), cell(other), change.text(2), cosine.text(3)])
    head = ["run", "condition", "minus", "marker rate of the source", "mean cosine (M1)"]
    return "\n".join(raw_table(head, rows))


def _blocks(models: Sequence[Model]) -> str:
    return blocks_table(models, _pairs)


TABLES: dict[str, Callable[[Sequence[Model]], str]] = {
    "runs": kept_runs.runs_table,
    "conditions": conditions_table,
    "differences": differences_table,
    "blocks": _blocks,
}


def _lines(models: Sequence[Model], read: Callable[[Model, str], Cell]) -> pd.DataFrame:
    """One line per condition for `intervals`; with fewer than two training runs, the value alone.

    A condition stands below those whose chain it continues.
    """
    rows = []
    for model in models:
        design = model.tables["design"]
        stages = design["chain"].map(
            lambda name: [stage.name for stage in chains.parse(name).stages]
        )
        in_order = design.loc[stages.sort_values(kind="stable").index]
        for name, cells in in_order.groupby("condition", sort=False):
            found, first = read(model, str(name)), cells.iloc[0]
            after = first["stages_after_coupling"]
            kind = UNCOUPLED if pd.isna(after) else LATER if float(after) > 0 else COUPLED
            low, high = (found.low, found.high) if found.units > 1 else (None, None)
            if found.units:
                rows.append({
                    "panel": model.name, "line": f"{name}: {first['title']}", "group": kind,
                    "value": found.value, "low": low, "high": high,
                })  # fmt: skip
    return pd.DataFrame(rows)


def figures(models: Sequence[Model]) -> dict[str, str]:
    """SVGs by name: the source's marker rate, and the mean cosine, by condition."""
    rates = _lines(models, lambda model, name: rate(model, name, "source"))
    cosines = _lines(models, lambda model, name: level(model, name, "m1"))
    groups = [UNCOUPLED, COUPLED, LATER]
    return {
        NAME: intervals(
            rates, "source says the marker", list(dict.fromkeys(rates["line"])), groups=groups
        ),
        f"{NAME}_m1": intervals(
            cosines,
            "mean cosine between personas (M1)",
            list(dict.fromkeys(cosines["line"])),
            zero=False,
            groups=groups,
        ),
    }
