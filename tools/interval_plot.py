"""Values with their intervals, a line each: the figure of the pages of real runs."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd
import vl_convert
from persona_collapse.report.figures._render import PAPER_FONT, quiet
from persona_collapse.report.figures._style import PALETTE


def intervals(
    table: pd.DataFrame,
    axis: str,
    order: Sequence[str],
    zero: bool = True,
    groups: Sequence[str] = (),
) -> str:
    """An SVG, a panel per `panel` of the table, of columns `line`, `value`, `low`, `high`, `group`.

    axis: title of the x axis. order: the lines from the top. zero: the axis begins at 0. groups: all
    groups of several figures, which have the same colours in each.
    """
    there = list(dict.fromkeys(table["group"]))
    groups = list(groups) or there
    colour = alt.Color(
        "group:N",
        sort=groups,
        scale=alt.Scale(domain=groups, range=PALETTE[: len(groups)]),
        legend=alt.Legend(
            orient="bottom",
            title=None,
            labelLimit=320,
            columnPadding=40,
            values=[group for group in groups if group in there],
        ),
    )
    panels = []
    with alt.data_transformers.enable("default"):
        for title, part in table.groupby("panel", sort=False):
            base = alt.Chart(part, width=360, height=alt.Step(24), title=str(title)).encode(
                y=alt.Y("line:N", sort=list(order), title=None, axis=alt.Axis(labelLimit=360)),
                color=colour,
            )
            ticks = alt.Axis(title=axis, tickCount=6, labelFlush=False)
            x = alt.X("value:Q", axis=ticks).scale(zero=zero)
            lines = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", axis=ticks), x2="high:Q")
            panels.append(lines + base.mark_point(size=70, filled=True, opacity=1).encode(x=x))
        # The reader's font may be wider than the one that is measured here.
        room = {"left": 70, "right": 20, "top": 5, "bottom": 5}
        chart = alt.vconcat(*panels, padding=room).configure(background="white", font=PAPER_FONT)
        return quiet(vl_convert.vegalite_to_svg(chart.to_dict()))
