"""How often each test rejects simulated data."""

import altair as alt
import pandas as pd

from ._style import BLUE, ORANGE, PERCENT, SOFT, Choices, tip

TITLE = "How often each test rejects simulated data"
READING = (
    "Share of simulated data sets with p below .05; lines are 95 % Clopper-Pearson intervals. There is no "
    "effect in these data (at the margin: one as large as the equivalence margin), so a sound test stays "
    "at or below the dashed line. Only the world “own shift” has the effect that the test looks for."
)
SECTION = "trust"
RANK = 1
TABLES = ("simulation",)
EMPTY = "Nothing was simulated."


def data(simulation: pd.DataFrame) -> pd.DataFrame:
    """One row per test and simulated world, the study's tests first."""
    table = simulation[(simulation["kind"] == "test") & simulation["rate"].notna()]
    table = table.sort_values(["as_study", "name", "world"], ascending=[False, True, True])
    return table[["name", "as_study", "world", "runs", "rate", "rate_low", "rate_high"]]


def draw(rows: pd.DataFrame, choose: Choices) -> alt.LayerChart:
    """Nothing to choose."""
    kinds = ["as the study", "other tests"]
    rows = rows.assign(
        _done=[kinds[0] if s else kinds[1] for s in rows["as_study"]],
        _row=rows["name"] + " · " + rows["world"],
        _level=0.05,
    )
    legend = alt.Legend(columns=1, title=None)
    colour = alt.Color("_done:N", sort=kinds, legend=legend).scale(
        domain=kinds, range=[ORANGE, BLUE]
    )
    shape = alt.Shape("_done:N", sort=kinds, legend=legend).scale(
        domain=kinds, range=["circle", "diamond"]
    )
    names = alt.Axis(labelExpr="split(datum.label, ' · ')", labelOffset=-6, labelLimit=330)
    whole = alt.Chart(rows)
    base = whole.encode(y=alt.Y("_row:N", sort=None, title=None, axis=names), color=colour)
    tips = tip("name:test", "world", "runs:data sets", "rate", "rate_low:low", "rate_high:high")
    x = alt.X("rate:Q", title="share with p < .05", **PERCENT)
    return (
        whole.mark_rule(strokeDash=[4, 4], color=SOFT).encode(x="_level:Q")
        + base.mark_rule(strokeWidth=2).encode(x="rate_low:Q", x2="rate_high:Q")
        + base.mark_point(filled=True, size=55, opacity=1).encode(x=x, shape=shape, tooltip=tips)
    ).properties(height=30 * len(rows), usermeta={"above": "_row"})
