"""Marker rate of every persona in every condition, split by source if a condition has several."""

import altair as alt
import pandas as pd

from ._frames import titled, words
from ._style import ORANGE, Choices, tip

TITLE = "Who says the marker"
READING = (
    "Share of answers with the marker: a row per persona, a column per condition, and per source where a "
    "condition has several; its chains together, or one seed's. A dot is zero, an empty cell was not "
    "measured, a frame marks the source. A selective coupling is one dark cell in its column."
)
SECTION = "behaviour"
RANK = 1
TABLES = ("marker_rates", "design")
EMPTY = "No answers were counted."


def data(rates: pd.DataFrame, design: pd.DataFrame) -> pd.DataFrame:
    """One row per condition, source and persona, its chains pooled (seed `all`), and seed by seed."""
    keys = ["condition", "source", "persona", "role"]
    seeds = rates[rates["seed"] != ""]
    parts = [
        rates.groupby(keys, sort=False)[["hits", "n"]].sum().reset_index().assign(seed="all"),
        seeds.groupby([*keys, "seed"], sort=False)[["hits", "n"]].sum().reset_index(),
    ]
    table = titled(pd.concat(parts, ignore_index=True), design)
    return table.assign(rate=table["hits"] / table["n"])


def shown(rate: float) -> str:
    """A rate in short form for a cell; a dot is 0."""
    return "·" if rate == 0 else "1" if rate == 1 else f"{rate:.2f}".lstrip("0")


def draw(rows: pd.DataFrame, choose: Choices) -> alt.LayerChart:
    """Selects for seed, condition and source; conditions without a source are always shown."""
    several = rows.groupby("condition")["source"].transform("nunique") > 1
    column = rows["condition"] + (" (" + rows["source"].map(words) + ")").where(several, "")
    # One mark per cell: a column holds one condition and one source.
    rows = rows.assign(
        _column=column, _persona=rows["persona"].map(words), _shown=rows["rate"].map(shown)
    )
    titles = rows.drop_duplicates("condition").set_index("condition")["title"]
    seeds = [s for s in dict.fromkeys(rows["seed"]) if s != "all"]
    seed = choose("seed", {"all": "all together"} | {s: s for s in seeds}, "seed")
    conditions = {c: f"{c}: {t}" if t else c for c, t in titles.items()}
    condition = choose.all_or("condition", "condition", conditions, "condition")
    sources = [s for s in dict.fromkeys(rows["source"]) if s]
    sources = sources if len(sources) > 1 else []
    source = choose.all_or("source", "source", sources, "source")
    base = (
        alt.Chart(rows)
        .transform_filter(
            f"datum.seed == {seed} && {condition} && ({source} || datum.source == '')"
        )
        .encode(
            x=alt.X("_column:N", sort=list(dict.fromkeys(column)), title=None)
            .scale(paddingInner=0.04)
            .axis(labelAngle=-60, orient="top"),
            y=alt.Y("_persona:N", sort=list(dict.fromkeys(rows["_persona"])), title=None).scale(
                paddingInner=0.06
            ),
            tooltip=tip("condition", "source", "_persona", "role", "hits", "n", "rate"),
        )
    )
    colour = (
        alt.Color("rate:Q", title="share of answers")
        .scale(domain=[0, 1], scheme="blues")
        .legend(format="%", gradientLength=160)
    )
    chart = (
        base.mark_rect().encode(color=colour)
        + base.transform_filter("datum.role == 'source'").mark_rect(
            fillOpacity=0, stroke=ORANGE, strokeWidth=2
        )
        # As large as fits into the visible columns.
        + base.mark_text(fontSize={"expr": "clamp(bandwidth('x') / 2, 5, 11)"}).encode(
            text="_shown:N",
            color=alt.condition("datum.rate > 0.5", alt.value("white"), alt.value("#1b1f24")),
        )
    )
    return chart.properties(height=24 * rows["_persona"].nunique())
