"""Cost and benefit of defences: held-out loss of the stage's own data against what personas keep."""

import altair as alt
import pandas as pd

from ._style import Choices, crossed, letters, looks, tip

TITLE = "What a defence costs, and what it keeps"
READING = (
    "One point per condition with a defence in a stage on the chosen data, and the one without. Further "
    "left, the stage's own data are learnt better, by the loss on held-out rows. Further up, more is kept; "
    "for the mean cosine, further down. Lines are 95 % intervals over training runs; an open point has "
    "one run and so no interval. Tooltip and table say whether a defence is on the frontier, off it, or "
    "not decided."
)
SECTION = "link"
RANK = 3
TABLES = ("frontier",)
PANELS = ("data", "kept")
EMPTY = (
    "No condition of this run has a defence and a held-out loss: that takes the measure task_loss and "
    "held_out rows of the data."
)
OUTCOMES = {
    "rate": "marker rate of the source",
    "marker_logprob": "log-probability of the marker",
    "m1": "mean cosine",
    "angle": "mean angle (degrees)",
    "m3_accuracy": "personas told apart (accuracy)",
}
NONE = "no defence"


def data(frontier: pd.DataFrame) -> pd.DataFrame:
    """One row per condition and outcome: value, low and high, and the held-out loss."""
    ends = {"value": "loss", "ci_low": "loss_low", "ci_high": "loss_high"}
    key = ["condition", "undefended", "data", "defence", "setting"]
    loss = frontier[frontier["outcome"] == "held_out_loss"].rename(columns=ends)
    rows = frontier[frontier["outcome"].isin(list(OUTCOMES))].merge(
        loss[[*key, *ends.values()]], on=key
    )
    rows = rows.rename(columns={"ci_low": "low", "ci_high": "high"})
    return rows.assign(
        defence=rows["defence"].where(rows["defence"] != "", NONE),
        kept=rows["outcome"].map(OUTCOMES),
    )[
        [
            "condition", "title", "data", "defence", "setting", "units", *ends.values(), "kept", "value",
            "low", "high", "verdict",
        ]
    ]  # fmt: skip


def draw(rows: pd.DataFrame, choose: Choices) -> alt.LayerChart:
    """Selects for the second stage's data and the outcome."""
    names = list(dict.fromkeys(rows["defence"]))
    colours, shapes, _ = looks(names, bases=[NONE])
    # The same legend for both, because there are more defences than colours.
    legend = alt.Legend(title="defence", columns=3, columnPadding=30)
    colour = alt.Color("defence:N", sort=names, scale=colours, legend=legend)
    shape = alt.Shape("defence:N", sort=names, scale=shapes, legend=legend)
    # Data with a defence first: of the others there is nothing to compare.
    defended = rows.loc[rows["defence"] != NONE, "data"]
    trained = choose("data", list(dict.fromkeys([*defended, *rows["data"]])), "trained on")
    kept = choose("kept", rows["kept"].unique(), "kept")
    x = alt.X("loss:Q", title="held-out loss of its own data (nats per token)").scale(
        zero=False, padding=12
    )
    y = alt.Y("value:Q", title=None).scale(zero=False, padding=8)
    base = alt.Chart(rows).transform_filter(f"datum.kept == {kept} && datum.data == {trained}")
    said = tip(
        "condition", "title", "data", "defence", "setting", "loss", "value", "low", "high",
        "units:training runs", "verdict",
    )  # fmt: skip
    return crossed(base, x, y, ("loss_low", "loss_high"), colour, shape, said, size=80).properties(
        height=220 if choose.paper else 300, usermeta=letters(names)
    )
