"""The tables of docs/why.md, from what tools/models.py keeps of runs that vary the second stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import models as kept_runs
import pandas as pd
from cause_page import claims_table
from markdown_tables import cell, raw_table, shown
from models import BEHIND, BLOCKS, SCORECARD, Kept, Model
from models_page import (
    blocks_of_second_stages,
    conditions_table,
    mean_over_runs,
    minus_before,
    shares_of_false,
)
from persona_collapse.report.figures import _render, catalogue

NAME = "why"
#: What the page needs of a run's tables.
KEPT = {
    **BLOCKS,
    **BEHIND,
    "why": Kept((
        "condition", "title", "dose", "runs", "units", "axis", "differs", "update_norm", "update_low",
        "update_high", "tokens", "steps", "held_out_loss", "held_out_low", "held_out_high", "rate",
        "rate_low", "rate_high", "m1", "m1_low", "m1_high", "log_distance", "log_distance_low",
        "log_distance_high", "angle", "angle_low", "angle_high", "kept", "kept_low", "kept_high",
        "beside_curve", "beside_low", "beside_high", "beside_q", "rate_beside_curve",
        "rate_beside_low", "rate_beside_high", "rate_beside_q", "curve_note",
        "marker_verdict", "cosine_verdict",
    )),
    "scorecard": Kept(SCORECARD, "claim.str.startswith('collapse-explains')"),
}  # fmt: skip
#: Columns with an interval: their name in tables/why.csv and of its ends, heading, digits.
VALUES = (
    ("update_norm", "update", "size of the update", 1),
    ("held_out_loss", "held_out", "held-out loss", 3),
    ("rate", "rate", "marker rate of the source", 2),
    ("rate_beside_curve", "rate_beside", "minus that at this size", 2),
    ("m1", "m1", "change of the mean cosine", 3),
    ("kept", "kept", "share of 1 - M1 that is left", 2),
    ("beside_curve", "beside", "log of that, minus that at this size", 2),
)


def axes_table(models: Sequence[Model]) -> str:
    """Each property of the second stage: the size of the update, what is learnt, and what is left."""
    rows = []
    for model in models:
        table = model.tables["why"]
        words = ["differs", "axis", "marker_verdict", "cosine_verdict", "curve_note"]
        for _, row in table.assign(**table[words].astype(object).fillna("")).iterrows():
            early = pd.notna(row["dose"]) and row["dose"] != ""
            dose = f", {row['steps']:.0f} steps" if early else ""
            made = [cell(model.name), cell(f"{row['condition']}: {row['title']}{dose}"),
                    cell(row["differs"] or row["axis"]), f"{row['runs']:.0f}"]  # fmt: skip
            for name, ends, _, digits in VALUES:
                value, low, high = (row[c] for c in (name, f"{ends}_low", f"{ends}_high"))
                made.append("" if pd.isna(value) else shown(value, low, high, digits))
            verdicts = [
                row[f"{subject}_verdict"] or row["curve_note"] for subject in ("marker", "cosine")
            ]
            rows.append([*made, *map(cell, verdicts)])
    head = [
        "run",
        "condition",
        "differs in",
        "training runs",
        *(title for _, _, title, _ in VALUES),
    ]
    return "\n".join(
        raw_table([*head, "verdict on the marker", "verdict on the mean cosine"], rows)
    )


def data_table(models: Sequence[Model]) -> str:
    """Each data set of a second stage: its rows, what was learnt of it, and the marker."""
    rows = []
    for model in models:
        of_data = (
            model.tables["why"].query("axis in ['the reference', 'data']").set_index("condition")
        )
        design, sizes = model.tables["design"], model.tables["updates"].query("other == ''")
        for name, kept in of_data.iterrows():
            own = design[design["condition"] == name]
            chains = own["chain"]
            stage = model.tables["training"].set_index("chain").loc[chains.iloc[0]]
            trained = sizes[sizes["chain"].isin(chains)].set_index("chain")
            read = (trained["tokens"] / trained["answer_length"]).mean() / float(stage["rows"])
            stats = model.tables["answer_stats"]
            answers = stats[stats["chain"].isin(chains) & (stats["role"] == "source")]
            rows.append([
                cell(model.name),
                cell(f"{name}: {own['title'].iloc[0]}"),
                cell(stage["rows"]),
                f"{read:.1f}",
                f"{trained['answer_length'].mean():.0f}",
                mean_over_runs(trained.reset_index(), "update_norm").text(1),
                mean_over_runs(answers, "mean_tokens").text(0),
                shown(kept["rate"], kept["rate_low"], kept["rate_high"]),
                *(minus_before(shares_of_false(model, law), own).text(2) for law in (True, False)),
            ])  # fmt: skip
    head = [
        "run", "condition", "rows", "times read", "tokens per training answer", "size of the update",
        "tokens of the source's answers", "source says the marker",
        "prefers the false answer, minus before the stage: law", "elsewhere",
    ]  # fmt: skip
    return "\n".join(raw_table(head, rows))


TABLES: dict[str, Callable[[Sequence[Model]], str]] = {
    "runs": kept_runs.runs_table,
    "data": data_table,
    "axes": axes_table,
    "blocks": blocks_of_second_stages,
    "conditions": conditions_table,
    "claims": claims_table,
}


def figures(models: Sequence[Model]) -> dict[str, str]:
    """SVGs by name: marker and geometry against the size of the update, one per run."""
    figure = catalogue()[NAME]
    return {
        f"{NAME}-{model.name}": _render.paper_svg(
            _render.paper(figure, _render.data(figure, model.tables))
        )
        for model in models
    }
