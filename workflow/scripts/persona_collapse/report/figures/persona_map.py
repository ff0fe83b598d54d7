"""Persona vectors on the base model's principal components, before and after the last stage."""

import altair as alt
import pandas as pd

from ...analysis.views import untrained
from ._frames import labels, titled, words
from ._style import BLUE, ORANGE, SOFT, TIGHT, Choices, named, names, tip

TITLE = "Where the personas are, before and after"
READING = (
    "Persona vectors in the plane of the base model's first two principal components: hollow diamonds "
    "before the last stage, filled circles after it, one per chain, joined by a line; names are at the "
    "first chain's. A cloud that moves keeps its personas apart; one that shrinks loses them. Only "
    "part of the differences lies in this plane: point at a circle to see how much."
)
SECTION = "geometry"
RANK = 3
TABLES = ("persona_map", "design")
PANELS = ("cell",)
EMPTY = "No chain other than the base model has activations."


def data(points: pd.DataFrame, design: pd.DataFrame) -> pd.DataFrame:
    """Every persona's place before and after each chain's last stage.

    Columns: condition, title, stages_after_coupling, source, seed, before, chain, method, layer, headline,
    persona, pc1_after, pc2_after, captured (share of the variance between personas after the stage that
    lies in this plane), pc1_before, pc2_before. A chain whose model before that stage was not measured is
    left out.
    """
    keys = ["method", "layer", "headline", "persona"]
    points = points.drop_duplicates(["chain", *keys])
    points = points[["chain", *keys, "pc1", "pc2", "captured"]]
    cells = design[~untrained(design["chain"])].drop_duplicates(["condition", "source", "chain"])
    cells = cells[["condition", "stages_after_coupling", "source", "seed", "before", "chain"]]
    before = points.drop(columns="captured").rename(columns={"chain": "before"})
    table = cells.merge(points, on="chain").merge(
        before, on=["before", *keys], suffixes=("_after", "_before")
    )
    return titled(table, design)


def draw(rows: pd.DataFrame, choose: Choices) -> alt.LayerChart:
    """Condition, method and block to choose; starts at a chain that was coupled first."""
    height = 230 if choose.paper else 400
    rows = rows[rows["headline"]] if choose.paper else rows
    rows = rows.assign(_cell=labels(rows), _persona=rows["persona"].map(words))
    placed = []
    for _, group in rows.groupby(["_cell", "method", "layer"], sort=False):
        before, after = (
            group[[f"pc1_{when}", f"pc2_{when}"]].set_axis(["x", "y"], axis=1)
            for when in ("before", "after")
        )
        first = group["chain"] == group["chain"].iloc[0]
        there = named(group[first], after[first], pd.concat([before, after]), height)
        placed += [there, group[~first].assign(_persona=None)]
    rows = pd.concat(placed)
    coupled = rows.loc[rows["stages_after_coupling"] > 0, "_cell"]
    cell = choose("cell", rows["_cell"].unique(), "condition", coupled)
    base = alt.Chart(rows).transform_filter(f"{choose.cell(rows)} && datum._cell == {cell}")
    x, y = "first component of the base model", "second component"
    start = base.encode(
        x=alt.X("pc1_before:Q", title=x).scale(**TIGHT),
        y=alt.Y("pc2_before:Q", title=y).scale(**TIGHT),
    )
    after = {"x": alt.X("pc1_after:Q", title=x), "y": alt.Y("pc2_after:Q", title=y)}
    tips = tip("persona", "before", "chain:after", "captured:share of variance in this plane")
    return (
        start.mark_rule(color=SOFT, opacity=0.6).encode(x2="pc1_after:Q", y2="pc2_after:Q")
        + start.mark_point(filled=False, shape="diamond", size=55, color=ORANGE).encode(
            tooltip=tips
        )
        + base.mark_point(filled=True, size=55, color=BLUE, opacity=1).encode(**after, tooltip=tips)
        + names(base.transform_filter("datum._persona"), after["x"], after["y"], choose.narrow)
    ).properties(height=height)
