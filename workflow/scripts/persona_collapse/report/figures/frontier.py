"""Cost and benefit of defences: held-out loss of the stage's own data against what personas keep."""

import altair as alt
import pandas as pd

from ._style import Choices, beside, crossed, letters, looks, tip

TITLE = "What a defence costs, and what it keeps"
READING = (
    "One point per condition with a defence in a stage on the chosen data, and the one without; named "
    "where there is room. "
    "Further left, the stage's own data are learnt better, by the loss on held-out rows. Further up, more "
    "is kept; for the mean cosine, further down. Both are differences from the stage without a defence, "
    "paired by coupling and seed, or values. Lines are 95 % intervals over training runs; an open point "
    "has one run and so no interval. Tooltip and table say whether a defence is on the frontier, off it, "
    "or not decided."
)
SECTION = "link"
RANK = 3
TABLES = ("frontier",)
PANELS = ("data", "kept", "shown")
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
#: What is shown, with the columns of frontier.csv that hold it and its interval.
SHOWN = {
    "minus no defence": ("difference", "difference_low", "difference_high"),
    "values": ("value", "ci_low", "ci_high"),
}


def data(frontier: pd.DataFrame) -> pd.DataFrame:
    """One row per condition, outcome and way of showing it: value, low and high, and the same for the
    held-out loss. `name`: for the point, where there is room."""
    key = ["condition", "undefended", "data", "defence", "setting"]
    parts = []
    for shown, columns in SHOWN.items():
        own = frontier.assign(shown=shown)
        values = own[list(columns)].set_axis(["value", "low", "high"], axis=1)
        own = own.drop(columns="value").join(values)
        if shown != "values":
            if own["value"].isna().all():
                continue
            bare = (own["condition"] == own["undefended"]) & (own["defence"] == "")
            own.loc[bare, "value"] = 0.0  # what the others are compared with
            own = own[own["value"].notna()]
        loss = own[own["outcome"] == "held_out_loss"]
        ends = {"value": "loss", "low": "loss_low", "high": "loss_high"}
        loss = loss[[*key, *ends]].rename(columns=ends)
        parts.append(own[own["outcome"].isin(list(OUTCOMES))].merge(loss, on=key))
    rows = pd.concat(parts, ignore_index=True)
    rows = rows.assign(
        defence=rows["defence"].where(rows["defence"] != "", NONE),
        kept=rows["outcome"].map(OUTCOMES),
    )
    return rows.assign(name=rows["condition"].where(_alone(rows), ""))[
        [
            "condition", "title", "data", "defence", "setting", "units", "shown", "loss", "loss_low",
            "loss_high", "kept", "value", "low", "high", "verdict", "name",
        ]
    ]  # fmt: skip


def draw(rows: pd.DataFrame, choose: Choices) -> alt.LayerChart:
    """Selects for the second stage's data, the outcome, and differences or values."""
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
    shown = choose("shown", rows["shown"].unique(), "shown")
    x = alt.X("loss:Q", title="held-out loss of its own data (nats)").scale(zero=False, padding=40)
    y = alt.Y("value:Q", title=None).scale(zero=False, padding=8)
    chosen = f"datum.kept == {kept} && datum.data == {trained} && datum.shown == {shown}"
    base = alt.Chart(rows).transform_filter(chosen)
    said = tip(
        "condition", "title", "data", "defence", "setting", "loss", "value", "low", "high",
        "units:training runs", "verdict",
    )  # fmt: skip
    points = crossed(base, x, y, ("loss_low", "loss_high"), colour, shape, said, size=80)
    return (points + beside(base, x, y)).properties(
        height=220 if choose.paper else 300, usermeta=letters(names)
    )


def _alone(rows: pd.DataFrame) -> pd.Series:
    """Is there room for a name: no other point of the panel near, by the panel's ranges?"""
    alone = pd.Series(True, index=rows.index)
    for _, panel in rows.groupby(list(PANELS)):
        points = panel[["loss", "value"]]
        near = (points.max() - points.min()).to_numpy() * (0.2, 0.05)
        for at, point in points.iterrows():
            others = (points.drop(index=at) - point).abs()
            alone[at] = not (others <= near).all(axis=1).any()
    return alone
