"""The source's marker rate against the mean cosine of the same chain."""

import altair as alt
import pandas as pd

from ._frames import titled
from ._style import CENTRING, PERCENT, Choices, letters, looks, tip

TITLE = "Do more similar personas lose the marker?"
READING = (
    "One point per chain whose marker was coupled. If collapse erased markers, points would fall from left "
    "to right. A correlation, whatever it shows, is not a cause."
)
SECTION = "link"
RANK = 1
TABLES = ("marker_rates", "geometry", "design")
EMPTY = "No coupled chain was measured both ways."


def data(rates: pd.DataFrame, geometry: pd.DataFrame, design: pd.DataFrame) -> pd.DataFrame:
    """One row per condition, chain, source, method, block and metric (m1, m1_centred): rate and value."""
    coupled = design.loc[design["stages_after_coupling"].notna(), "chain"]
    source = rates[(rates["role"] == "source") & rates["chain"].isin(coupled)]
    cosine = geometry.query("metric in @CENTRING.keys() and test == ''")
    table = source[["condition", "chain", "source", "seed", "rate"]].merge(
        cosine[["condition", "chain", "method", "layer", "headline", "metric", "value"]],
        on=["condition", "chain"],
    )
    return titled(table, design)


def draw(rows: pd.DataFrame, choose: Choices) -> alt.Chart:
    """Method, block and centring to choose."""
    rows = rows.assign(_named=rows["condition"] + ": " + rows["title"])
    order = list(dict.fromkeys(rows["_named"]))
    colours, shapes, _ = looks(order)
    cell = choose.cell(rows)
    metric = choose("metric", CENTRING, "cosine")
    return (
        alt.Chart(rows)
        .transform_filter(f"{cell} && datum.metric == {metric}")
        .mark_point(filled=True, size=80, opacity=1)
        .encode(
            x=alt.X("value:Q", title="mean cosine between persona vectors").scale(
                zero=False, padding=15
            ),
            y=alt.Y("rate:Q", title="marker rate of the source", **PERCENT),
            color=alt.Color("_named:N", sort=order, scale=colours, title="condition"),
            shape=alt.Shape("_named:N", sort=order, scale=shapes, title="condition"),
            tooltip=tip("_named:condition", "chain", "source", "rate", "value:mean cosine"),
        )
        .properties(height=300, usermeta=letters(order))
    )
