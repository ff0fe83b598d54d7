"""Marker rate and mean cosine of chains whose last stage was also stopped early."""

import altair as alt
import pandas as pd

from ... import chains
from ._frames import words
from ._style import Choices, letters, looks, tip

TITLE = "How much of the last stage it takes"
READING = (
    "A line per chain: the model before its last stage (step 0), stopped on the way, and whole; vertical "
    "lines are 95 % intervals. A slow fall says the marker is unlearnt by degrees, a cliff that a few "
    "steps are enough."
)
SECTION = "behaviour"
RANK = 2
TABLES = ("marker_rates", "geometry", "training", "design")
PANELS = ("outcome",)
EMPTY = "No chain's last stage was stopped early: this run has no doses."


def data(
    rates: pd.DataFrame,
    geometry: pd.DataFrame,
    training: pd.DataFrame,
    design: pd.DataFrame,
) -> pd.DataFrame:
    """One row per chain, source and outcome.

    Columns: series (the whole chain, with its source where several are followed), source, chain, steps
    of the last stage (0: the chain before it), metric (rate or m1), outcome (the same in words), value,
    low and high: the 95 % interval.
    """
    columns = ["series", "source", "chain", "steps", "metric", "outcome", "value", "low", "high"]
    steps = training.drop_duplicates("chain").set_index("chain")["steps"]
    cells = design.assign(series=[c.partition("~")[0] for c in design["chain"]])
    stopped = [c for c in design["chain"] if c != "base" and chains.parse(c).last.stop]
    cells = cells[cells["series"].isin({c.partition("~")[0] for c in stopped})]
    several = cells.groupby("series")["source"].nunique()
    rates = rates.drop_duplicates(["chain", "persona"])
    cosines = geometry.query("headline and metric == 'm1' and test == ''").drop_duplicates("chain")
    rows = []
    for cell in cells.drop_duplicates(["chain", "source"]).itertuples(index=False):
        name = f" ({words(cell.source) or 'no source'})" if several[cell.series] > 1 else ""
        for chain, step in ((cell.before, 0), (cell.chain, steps.get(cell.chain))):
            if step is None:
                continue
            key = (cell.series + name, cell.source, chain, int(step))
            hit = rates[(rates["chain"] == chain) & (rates["persona"] == cell.source)]
            for row in hit.itertuples(index=False):
                outcome = "marker rate of the source"
                rows.append((*key, "rate", outcome, row.rate, row.ci_low, row.ci_high))
            for row in cosines[cosines["chain"] == chain].itertuples(index=False):
                outcome = f"mean cosine (method {row.method}, block {row.layer})"
                rows.append((*key, "m1", outcome, row.value, row.ci_low, row.ci_high))
    return pd.DataFrame(rows, columns=columns).drop_duplicates()


def draw(rows: pd.DataFrame, choose: Choices) -> alt.LayerChart:
    """The outcome to choose."""
    lines = list(dict.fromkeys(rows["series"]))
    colours, shapes, dashes = looks(lines)
    legend = alt.Legend(title="chain", columns=1)
    colour = alt.Color("series:N", sort=lines, scale=colours, legend=legend)
    shape = alt.Shape("series:N", sort=lines, scale=shapes, legend=legend)
    x = alt.X("steps:Q", title="steps of the last stage")
    y = alt.Y("value:Q", title=None)
    outcome = choose("outcome", rows["outcome"].unique(), "outcome")
    base = alt.Chart(rows).transform_filter(f"datum.outcome == {outcome}").encode(x=x, color=colour)
    return (
        base.mark_rule(opacity=0.5).encode(y=alt.Y("low:Q", title=None), y2="high:Q")
        + base.mark_line().encode(
            y=y, strokeDash=alt.StrokeDash("series:N", scale=dashes, legend=None)
        )
        + base.mark_point(filled=True, size=60).encode(
            y=y, shape=shape, tooltip=tip("chain", "source", "steps", "value", "low", "high")
        )
    ).properties(height=220 if choose.paper else 300, usermeta=letters(lines))
