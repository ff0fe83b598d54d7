"""Mean off-diagonal cosine of every chain, one row per condition."""

from collections.abc import Mapping

import altair as alt
import pandas as pd

from ...chains import untrained
from ._frames import labels, titled
from ._style import BLUE, CENTRING, ORANGE, SOFT, Choices, slots, stacked, tip

TITLE = "How similar the personas are inside the model"
READING = (
    "Mean cosine over all pairs of persona vectors, one circle per training run; higher is more "
    "similar, 1 is the same direction. Diamonds and dashed lines are base models. Lines "
    "are 95 % intervals over questions (centred: and personas), for this one run. Centred: without "
    "the personas' mean, which is where personas can differ."
)
SECTION = "findings"
RANK = 2
TABLES = ("geometry", "design")
EMPTY = "No activations were measured."


def data(geometry: pd.DataFrame, design: pd.DataFrame) -> pd.DataFrame:
    """One row per condition, chain, method, block and metric (m1, m1_centred); `trained`: is it not a base
    model?"""
    table = geometry.query("metric in @CENTRING.keys() and test == '' and chain != ''")
    keys = ["condition", "chain", "seed", "method", "layer", "headline", "metric"]
    rows = titled(table[[*keys, "value", "ci_low", "ci_high"]], design)
    return rows.assign(trained=[not untrained(chain) for chain in rows["chain"]])


def draw(
    rows: pd.DataFrame,
    choose: Choices,
    domains: Mapping[str, tuple[float, float]] | None = None,
) -> alt.LayerChart:
    """Method, block and centring to choose.

    `domains` fixes the axis of each metric, so that the charts of two runs can be compared.
    """
    rows = rows.assign(_row=labels(rows))
    rows["_slot"] = slots(rows, "_row", "method", "layer", "metric")
    y, offset, height = stacked(rows)
    cell = choose.cell(rows)
    metric = choose("metric", CENTRING, "cosine")
    scale = alt.Scale(zero=False)
    if domains is not None:
        low, high = (
            {"expr": f"{metric} == 'm1' ? {domains['m1'][end]} : {domains['m1_centred'][end]}"}
            for end in (0, 1)
        )
        scale = alt.Scale(zero=False, domainMin=low, domainMax=high)
    x = alt.X("value:Q", title="mean cosine between persona vectors", scale=scale)
    is_base = "!datum.trained"
    # A value without an interval is drawn with one of zero length; the table keeps it empty.
    base = (
        alt.Chart(rows)
        .transform_filter(f"{cell} && datum.metric == {metric}")
        .transform_calculate(
            low="isValid(datum.ci_low) ? datum.ci_low : datum.value",
            high="isValid(datum.ci_high) ? datum.ci_high : datum.value",
        )
    )
    placed = base.encode(
        y=y,
        yOffset=offset,
        color=alt.condition(is_base, alt.value(ORANGE), alt.value(BLUE)),
        tooltip=tip("condition", "chain", "value", "ci_low:low", "ci_high:high"),
    )
    shape = alt.condition(is_base, alt.value("diamond"), alt.value("circle"))
    return (
        base.transform_filter(is_base).mark_rule(strokeDash=[4, 4], color=SOFT).encode(x=x)
        + placed.mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q")
        + placed.mark_point(size=60, filled=True, opacity=1).encode(x=x, shape=shape)
    ).properties(height=height)
