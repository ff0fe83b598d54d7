"""Geometry by block, one line per condition."""

import json

import altair as alt
import pandas as pd

from ...analysis.views import untrained
from ._frames import base_first, labels, titled
from ._style import METRICS, Choices, letters, looks, tip

TITLE = "Block by block"
READING = (
    "One line per condition, the mean of its chains; thick bars span the chains. Mean cosine: "
    "higher is more similar. Distance from the mean, relative to the mean: lower is more similar. "
    "Conditions that move together at every block move for a common reason."
)
SECTION = "geometry"
RANK = 2
TABLES = ("geometry", "design")
PANELS = ("metric", "method")
EMPTY = "No activations were measured."


def data(geometry: pd.DataFrame, design: pd.DataFrame) -> pd.DataFrame:
    """One row per condition, method, block and metric: mean, smallest and largest over its chains.

    Columns: condition, title, base (is it the base model?), method, layer, metric, value, low, high,
    chains (number of chains), headline (is it at the headline's method and block?). The base model
    comes first.
    """
    table = geometry.query("metric in @METRICS.keys() and test == '' and chain != ''")
    table = table.assign(base=untrained(table["chain"]))
    table = base_first(table, table["base"])
    keys = ["condition", "base", "method", "layer", "headline", "metric"]
    means = table.groupby(keys, sort=False)["value"]
    table = means.agg(value="mean", low="min", high="max", chains="count").reset_index()
    return titled(table, design)


def draw(rows: pd.DataFrame, choose: Choices) -> alt.LayerChart:
    """Metric and method to choose, and a condition to highlight."""
    spoken = dict(zip(rows["condition"], labels(rows), strict=True))
    order, bases = list(spoken), list(dict.fromkeys(rows.loc[rows["base"], "condition"]))
    metric = choose("metric", METRICS, "measure")
    method = choose.method(rows)
    names = {c: spoken[c] for c in order if c not in bases}
    lit = f"datum.base || {choose.all_or('highlight', 'condition', names, 'highlight')}"
    colours, shapes, dashes = looks(order, bases)
    named = alt.Legend(title=None, labelExpr=f"({json.dumps(spoken)})[datum.label]")
    base = (
        alt.Chart(rows)
        .transform_filter(f"{method} && datum.metric == {metric}")
        .encode(
            x=alt.X("layer:O", title="block, counted from 0").axis(labelAngle=0),
            color=alt.Color("condition:N", sort=order, scale=colours, legend=named),
        )
    )
    y = alt.Y("value:Q", title=None).scale(zero=False)
    clear = alt.condition(lit, alt.value(1), alt.value(0.12))
    tips = tip(
        "condition", "layer:block", "value", "low:lowest chain", "high:highest chain", "chains"
    )
    return (
        base.mark_rule(strokeWidth=5).encode(
            y=alt.Y("low:Q", title=None),
            y2="high:Q",
            opacity=alt.condition(lit, alt.value(0.35), alt.value(0.05)),
        )
        + base.mark_line(strokeWidth=2).encode(
            y=y,
            strokeDash=alt.StrokeDash("condition:N", scale=dashes, legend=None),
            opacity=clear,
        )
        + base.mark_point(filled=True, size=60).encode(
            y=y,
            shape=alt.Shape("condition:N", sort=order, scale=shapes, legend=named),
            tooltip=tips,
            opacity=clear,
        )
    ).properties(height=180 if choose.paper else 300, usermeta=letters(spoken.values()))
