"""The effect of each property of the second stage, against the size of the update."""

import altair as alt
import pandas as pd

from ._style import Choices, beside, crossed, letters, looks, tip

TITLE = "Which property of the second stage moves personas"
READING = (
    "One named point per condition that is one stage after a coupling: how large its update became, and "
    "what changed. Its colour says in which setting it differs from the reference; the line joins the "
    "reference and its early stops. A point off that line changed more or less than stages of the same "
    "size. Lines through a point are 95 % intervals over training runs; an open point has one run and so "
    "no interval."
)
SECTION = "link"
RANK = 2
TABLES = ("why",)
PANELS = ("outcome",)
EMPTY = "No condition of this run is one stage after a coupling."
OUTCOMES = {
    "m1": "change of the mean cosine",
    "log_distance": "change of log(1 - mean cosine)",
    "angle": "change of the mean angle (degrees)",
    "rate": "marker rate of the source",
}
#: Labels of the reference and its early stops in the table.
CURVE = ("the reference", "stopped early")


def data(why: pd.DataFrame) -> pd.DataFrame:
    """One row per condition, step of early stopping and outcome: value, low and high, and the same for
    the update."""
    keys = ["condition", "title", "dose", "axis", "differs", "units", "steps"]
    sizes = ["update_norm", "update_low", "update_high"]
    parts = [
        why[[*keys, *sizes]].assign(
            outcome=words,
            value=why[name],
            low=why[f"{name}_low"],
            high=why[f"{name}_high"],
            verdict=why["marker_verdict" if name == "rate" else "cosine_verdict"],
        )
        for name, words in OUTCOMES.items()
    ]
    rows = pd.concat(parts, ignore_index=True)
    return rows[rows["value"].notna() & rows["update_norm"].notna()]


def draw(rows: pd.DataFrame, choose: Choices) -> alt.LayerChart:
    """The outcome to choose."""
    axes = list(dict.fromkeys(rows["axis"]))
    colours, shapes, _ = looks(axes, bases=CURVE[:1])
    legend = alt.Legend(title="differs in", columns=3, columnPadding=24)
    colour = alt.Color("axis:N", sort=axes, scale=colours, legend=legend)
    shape = alt.Shape("axis:N", sort=axes, scale=shapes, legend=legend)
    outcome = choose("outcome", rows["outcome"].unique(), "outcome")
    x = alt.X("update_norm:Q", title="size of the update").scale(type="log", nice=False, padding=12)
    y = alt.Y("value:Q", title=None).scale(zero=False, padding=8)
    base = alt.Chart(rows).transform_filter(f"datum.outcome == {outcome}")
    curve = base.transform_filter(f"indexof({list(CURVE)}, datum.axis) >= 0")
    said = tip(
        "condition", "title", "differs", "steps", "update_norm:size of the update", "value", "low",
        "high", "units:training runs", "verdict",
    )  # fmt: skip
    # Not a filter: a layer without rows has no extent, of which browsers' consoles warn.
    off_curve = f"indexof({list(CURVE)}, datum.axis) < 0 ? datum.condition : ''"
    return (
        curve.mark_line(color="var(--soft, #57606a)", strokeWidth=1).encode(
            x=x, y=y, order="update_norm:Q"
        )
        + crossed(base, x, y, ("update_low", "update_high"), colour, shape, said, size=70)
        + beside(base.transform_calculate(name=off_curve), x, y)
    ).properties(height=220 if choose.paper else 300, usermeta=letters(axes))
