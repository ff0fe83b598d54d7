"""Length, position and quality of the answers, chain by chain."""

import altair as alt
import pandas as pd

from ._frames import labels, titled
from ._style import TWO_LINES, Choices, looks, tip

TITLE = "What else could explain a rate"
READING = (
    "One point per chain. If a stage makes answers shorter, cut off or repetitive, the marker at their "
    "end can disappear without being unlearnt."
)
SECTION = "behaviour"
RANK = 4
TABLES = ("answer_stats", "design")
PANELS = ("measure",)
EMPTY = "No answers were counted."
MEASURES = {
    "mean_tokens": "tokens per answer",
    "truncated": "share cut off",
    "rate_finished": "marker rate of answers that were not cut off",
    "empty": "share empty",
    "looping": "share looping",
    "repeated_answers": "share saying the same twice",
    "marker_at_start": "of hits: marker at the start",
    "marker_in_tail": "of hits: marker in the last 15 %",
    "marker_at_end": "of hits: marker at the end",
    "markers_per_hit": "markers per hit",
    "marker_logprob": "log-probability of the marker, nats",
}


def data(answer_stats: pd.DataFrame, design: pd.DataFrame) -> pd.DataFrame:
    """One row per condition, chain, role (the source, the others) and measure with a value."""
    measures = [name for name in MEASURES if name in answer_stats]
    keys = ["condition", "chain", "source", "seed", "role"]
    table = answer_stats.melt(keys, measures, "measure", "value").dropna(subset=["value"])
    return titled(table.astype({"value": float}), design)


def draw(rows: pd.DataFrame, choose: Choices) -> alt.Chart:
    """The measure to choose."""
    # Sources are identified by pointing at their marks.
    rows = rows.assign(_row=labels(rows.drop(columns="source")))
    roles = list(dict.fromkeys(rows["role"]))
    colours, shapes, _ = looks(roles)
    measures = {k: v for k, v in MEASURES.items() if k in set(rows["measure"])}
    measure = choose("measure", measures, "measure")
    if choose.paper:  # where panels are next to each other
        rows["_row"] = rows["condition"]
    order = list(dict.fromkeys(rows["_row"]))
    return (
        alt.Chart(rows)
        .transform_filter(f"datum.measure == {measure}")
        .mark_point(filled=True, size=65, opacity=0.9)
        .encode(
            y=alt.Y(
                "_row:N",
                scale=alt.Scale(domain=order),
                title=None,
                axis=alt.Axis() if choose.paper else TWO_LINES,
            ),
            x=alt.X("value:Q", title=None),
            color=alt.Color("role:N", sort=roles, scale=colours, title="who"),
            shape=alt.Shape("role:N", sort=roles, scale=shapes),
            tooltip=tip("condition", "source", "chain", "role:who", "value"),
        )
        .properties(
            height=(18 if choose.paper else 36) * len(order),
            usermeta={"beside": max(map(len, rows["condition"]))},
        )
    )
