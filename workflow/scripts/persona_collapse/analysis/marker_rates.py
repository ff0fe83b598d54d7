"""Marker rates of every cell of the design, and leakage of the marker to other personas."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from ..chains import ASSISTANT
from ..statistics import clopper_pearson, student_interval

RATE_COLUMNS = [
    "condition", "chain", "source", "seed", "persona", "role", "negative", "n", "hits", "rate",
    "ci_low", "ci_high", "mean_tokens", "at_end",
]  # fmt: skip
LEAKAGE_COLUMNS = [
    "condition", "chain", "source", "seed", "source_rate", "assistant_rate", "bystander_mean",
    "ci_low", "ci_high", "bystander_max", "bystander_max_persona", "n", "untrained_mean",
    "untrained",
]  # fmt: skip


def marker_rates(
    design: pd.DataFrame, markers: Mapping[str, pd.DataFrame], assistant: str = ASSISTANT
) -> pd.DataFrame:
    """Marker counts of every cell of the design, by persona and role.

    `markers` maps chain to its markers table. A chain in two conditions is listed in both, each time
    with the personas that the condition counts. Roles: the persona whose marker is followed is
    `source`, the persona `assistant` has the role `assistant`, the others are `bystander`. `negative`:
    the coupling trained this persona not to say the marker.
    """
    parts = []
    for cell in design.itertuples(index=False):
        if cell.chain not in markers:
            continue
        table = markers[cell.chain]
        table = table[table["persona"].isin(cell.personas.split())].copy()
        for column in ("condition", "source", "seed"):
            table[column] = getattr(cell, column)
        table["chain"] = cell.chain
        table["role"] = np.where(
            table["persona"] == cell.source,
            "source",
            np.where(table["persona"] == assistant, "assistant", "bystander"),
        )
        table["negative"] = table["persona"].isin(cell.negatives.split())
        parts.append(table)
    if not parts:
        return pd.DataFrame(columns=RATE_COLUMNS)
    return pd.concat(parts, ignore_index=True).reindex(columns=RATE_COLUMNS)


def leakage(rates: pd.DataFrame) -> pd.DataFrame:
    """Marker rates of all personas except the source, for each cell with a source.

    `bystander_mean`: mean over personas except source and assistant. Its interval covers Student's
    interval over personas and Clopper-Pearson's over completions, which has width even if no persona
    has a hit. `bystander_max`: largest rate, and its persona. `untrained_mean`: mean over the
    `untrained` bystanders, which were not negatives of the coupling; missing if there are none.
    """
    rows = []
    for keys, cell in rates[rates["source"] != ""].groupby(
        ["condition", "chain", "source", "seed"], sort=False
    ):
        roles = cell.set_index("role")
        others = cell[cell["role"] == "bystander"]
        if others.empty:
            continue
        values, untrained = others["rate"].to_numpy(), others.loc[~others["negative"], "rate"]
        low, high = map(float, clopper_pearson(others["hits"].sum(), others["n"].sum()))
        if len(values) > 1:
            narrow, wide = student_interval(values)
            low, high = max(0.0, min(low, narrow)), min(1.0, max(high, wide))
        top = others.loc[others["rate"].idxmax()]
        rows.append(
            dict(zip(("condition", "chain", "source", "seed"), keys, strict=True))
            | {
                "source_rate": roles["rate"].get("source", np.nan),
                "assistant_rate": roles["rate"].get("assistant", np.nan),
                "bystander_mean": values.mean(),
                "ci_low": low,
                "ci_high": high,
                "bystander_max": top["rate"],
                "bystander_max_persona": top["persona"] if top["rate"] > 0 else "",
                "n": len(values),
                "untrained_mean": untrained.mean(),
                "untrained": len(untrained),
            }
        )
    return pd.DataFrame(rows, columns=LEAKAGE_COLUMNS)
