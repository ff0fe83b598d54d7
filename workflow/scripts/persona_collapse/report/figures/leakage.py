"""Marker rate of the other personas against their cosine with the source in the base model."""

import altair as alt
import numpy as np
import pandas as pd

from ... import chains
from ...analysis.views import untrained
from ._frames import titled, words
from ._style import BLUE, PERCENT, TIGHT, Choices, named, names, tip

TITLE = "Does the marker leak to the personas that were close?"
READING = (
    "One point per persona other than the source, seeds pooled. Points that rise to the right would be a "
    "leakage gradient. The p permutes personas within one condition and is corrected over conditions; "
    "each condition is one or a few training runs, and no p accounts for the variation between runs."
)
SECTION = "behaviour"
RANK = 3
TABLES = ("marker_rates", "cosines", "correlations", "design")
PANELS = ("cell",)
EMPTY = "No condition follows a source persona, or no activations were measured."


def data(
    rates: pd.DataFrame,
    cosines: pd.DataFrame,
    correlations: pd.DataFrame,
    design: pd.DataFrame,
) -> pd.DataFrame:
    """One row per condition, source and other persona, with the correlation of its condition.

    Columns: condition, title, source, persona, hits, n, rate, cosine (of the base model, at the headline's
    method and block), rho, ci_low, ci_high, p, q, personas: the correlation's.
    """
    base = cosines[untrained(cosines["chain"]) & cosines["headline"]]
    base = base[["chain", "persona_a", "persona_b", "cosine"]].drop_duplicates()
    near = ["model", "persona", "source"]
    base = base.set_axis([*near, "cosine"], axis=1)
    others = rates[(rates["role"] != "source") & (rates["source"] != "")]
    others = others.assign(model=others["chain"].map(chains.model_of))
    keys = ["condition", "model", "source", "persona"]
    table = others.groupby(keys, sort=False)[["hits", "n"]].sum().reset_index()
    table["rate"] = table["hits"] / table["n"]
    table = table.merge(base, on=near).drop(columns="model")
    tests = correlations[correlations["analysis"] == "personas"].drop_duplicates(
        ["condition", "source"]
    )
    tests = tests[["condition", "source", "rho", "ci_low", "ci_high", "p", "q", "n"]]
    tests = tests.rename(columns={"n": "personas"})
    return titled(table.merge(tests, on=["condition", "source"], how="left"), design)


def said(row: pd.Series) -> str:
    """A condition's correlation in words."""
    if pd.isna(row["rho"]):
        return "no correlation: no spread, or too few personas"
    return (
        f"Spearman {row['rho']:.2f} ({row['ci_low']:.2f} to {row['ci_high']:.2f}); p {row['p']:.2g}, "
        f"q {row['q']:.2g}, {row['personas']:.0f} personas"
    )


def draw(rows: pd.DataFrame, choose: Choices) -> alt.LayerChart:
    """A select for condition and source; starts at the one with the most leakage."""
    height = 220 if choose.paper else 320
    heads = rows["condition"] + np.where(rows["title"] == "", "", ": " + rows["title"])
    rows = rows.assign(
        _cell=heads + " (" + rows["source"].map(words) + ")",
        _persona=rows["persona"].map(words),
        _test=rows.apply(said, axis=1),
    )
    parts = []
    for _, group in rows.groupby("_cell", sort=False):
        at = group[["cosine", "rate"]].set_axis(["x", "y"], axis=1)
        parts.append(named(group, at, at, height, ends=(0, 1)))
    rows = pd.concat(parts)
    leakiest = rows.loc[[rows["rate"].idxmax()], "_cell"]
    cell = choose("cell", rows["_cell"].unique(), "condition", leakiest)
    base = alt.Chart(rows).transform_filter(f"datum._cell == {cell}")
    x = alt.X("cosine:Q", title="cosine to the source in the base model").scale(**TIGHT)
    y = alt.Y("rate:Q", title="share of answers with the marker", **PERCENT)
    return (
        base.mark_point(filled=True, size=60, color=BLUE, opacity=1).encode(
            x=x, y=y, tooltip=tip("_persona", "cosine", "hits", "n", "rate")
        )
        + names(base, x, y, choose.narrow)
        + base.transform_aggregate(points="count()", groupby=["_test"])
        .mark_text(align="left", baseline="top", fontWeight="bold", lineBreak="; ")
        .encode(x=alt.value(4), y=alt.value(2), text="_test:N")
    ).properties(height=height)
