"""Marker rate and mean cosine of chains whose last stage was also stopped early, by step."""

import altair as alt
import numpy as np
import pandas as pd

from ... import chains
from ...statistics import over_runs
from ._frames import words
from ._style import Choices, letters, looks, tip

TITLE = "How much of the last stage it takes"
READING = (
    "One line per training: the model before its last stage (step 0), stopped early, and whole; means "
    "over training runs. Vertical lines are 95 % intervals over training runs. An open point has one run; "
    "its interval is over completions or questions and says nothing about another run. A slow fall means "
    "that the marker is unlearnt gradually, a cliff that a few steps are enough."
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
    """One row per training (stages without seeds), source, step and outcome.

    Columns: series (the stages, with the source if there are several), source, steps of the last stage
    (0: the chain before it), metric (rate or m1), outcome (the same in words), value (mean over runs),
    low and high (95 % interval; for a rate clipped to 0 and 1), runs (chains), units (independent
    roots), interval (what it is over).
    """
    steps = training.drop_duplicates("chain").set_index("chain")["steps"]
    cells = design.assign(whole=[c.partition("~")[0] for c in design["chain"]])
    stopped = [c for c in design["chain"] if not chains.untrained(c) and chains.parse(c).last.stop]
    cells = cells[cells["whole"].isin({c.partition("~")[0] for c in stopped})]
    cells = cells.assign(
        series=[
            "+".join(
                [chain.model] * (chain.model != chains.BASE)
                + [stage.name + "!" * stage.left_out for stage in chain.stages]
            )
            for chain in map(chains.parse, cells["whole"])
        ]
    )
    several = cells.groupby("series")["source"].nunique()
    rates = rates.drop_duplicates(["chain", "persona"])
    cosines = geometry.query("headline and metric == 'm1' and test == ''").drop_duplicates("chain")
    rows = []
    for cell in cells.drop_duplicates(["chain", "source"]).itertuples(index=False):
        name = f" ({words(cell.source) or 'no source'})" if several[cell.series] > 1 else ""
        for chain, step in ((cell.before, 0), (cell.chain, steps.get(cell.chain))):
            if step is None:
                continue
            key = (cell.series + name, cell.source, int(step))
            hit = rates[(rates["chain"] == chain) & (rates["persona"] == cell.source)]
            for row in hit.itertuples(index=False):
                outcome = "marker rate of the source"
                rows.append((*key, "rate", outcome, chain, row.rate, row.ci_low, row.ci_high))
            for row in cosines[cosines["chain"] == chain].itertuples(index=False):
                outcome = f"mean cosine (method {row.method}, block {row.layer})"
                rows.append((*key, "m1", outcome, chain, row.value, row.ci_low, row.ci_high))
    keys = ["series", "source", "steps", "metric", "outcome"]
    each = pd.DataFrame(rows, columns=[*keys, "chain", "value", "low", "high"]).drop_duplicates()
    made = [
        dict(zip(keys, key, strict=True)) | _of_runs(own, str(key[3]))
        for key, own in each.groupby(keys, sort=False)
    ]
    columns = [*keys, "value", "low", "high", "runs", "units", "interval"]
    return pd.DataFrame(made, columns=columns)


def _of_runs(own: pd.DataFrame, metric: str) -> dict[str, object]:
    """Mean and interval over the chains of one step."""
    value, low, high = own[["value", "low", "high"]].astype(float).mean()
    runs, drawn = len(own), "completions" if metric == "rate" else "questions"
    units, interval = 1, f"over {drawn} of one run"
    if runs > 1:
        # Standard error within a run: each chain samples its own completions, but all share the
        # questions.
        within = (high - low) / (2 * 1.96) / np.sqrt(runs if metric == "rate" else 1)
        roots = [chains.root(chain) for chain in own["chain"]]
        over = over_runs(own["value"], roots, float(np.nan_to_num(within)))
        value, low, high, units = over.estimate, over.low, over.high, over.units
        interval = f"over {units} training runs" if np.isfinite(low) else "none"
    if metric == "rate":
        low, high = np.clip([low, high], 0, 1)
    ends = {"value": value, "low": low, "high": high}
    return ends | {"runs": runs, "units": units, "interval": interval}


def draw(rows: pd.DataFrame, choose: Choices) -> alt.LayerChart:
    """The outcome to choose."""
    lines = list(dict.fromkeys(rows["series"]))
    colours, shapes, dashes = looks(lines)
    legend = alt.Legend(title="stages", columns=1)
    colour = alt.Color("series:N", sort=lines, scale=colours, legend=legend)
    shape = alt.Shape("series:N", sort=lines, scale=shapes, legend=legend)
    x = alt.X("steps:Q", title="steps of the last stage")
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False))
    outcome = choose("outcome", rows["outcome"].unique(), "outcome")
    base = alt.Chart(rows).transform_filter(f"datum.outcome == {outcome}").encode(x=x, color=colour)
    return (
        base.mark_rule(opacity=0.5).encode(y=alt.Y("low:Q", title=None), y2="high:Q")
        + base.mark_line().encode(
            y=y, strokeDash=alt.StrokeDash("series:N", scale=dashes, legend=None)
        )
        + base.mark_point(size=60).encode(
            y=y,
            shape=shape,
            fillOpacity=alt.condition("datum.units > 1", alt.value(1), alt.value(0)),
            fill=colour.copy(),
            tooltip=tip(
                "series:stages", "source", "steps", "value", "low", "high", "runs", "interval"
            ),
        )
    ).properties(height=220 if choose.paper else 300, usermeta=letters(lines))
