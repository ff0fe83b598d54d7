"""The source's marker rate before and after the last stage, one row per condition and source."""

import altair as alt
import pandas as pd

from ._frames import labels, titled
from ._style import BLUE, ORANGE, PERCENT, SOFT, Choices, slots, stacked, tip

TITLE = "How often the source persona says the marker"
READING = (
    "A diamond is the model before its last training stage, a circle after it, one per chain, each with "
    "its 95 % Clopper-Pearson interval; the grey tick is the mean of all other personas. An erased marker "
    "is a circle at 0 under a diamond near 100 %."
)
SECTION = "findings"
RANK = 1
TABLES = ("marker_rates", "design")
EMPTY = "No condition follows a source persona."


def data(rates: pd.DataFrame, design: pd.DataFrame) -> pd.DataFrame:
    """One row per condition, source and chain, before and after its last stage.

    Columns: condition, title, source, seed, chain, n, hits, rate, ci_low, ci_high, others_mean (mean rate
    of all other personas; after the stage only), when. A chain that several others continue is listed
    once per condition and source; one that was not measured is left out.
    """
    columns = ["n", "hits", "rate", "ci_low", "ci_high"]
    counts = rates.drop_duplicates(["chain", "persona"]).set_index(["chain", "persona"])[columns]
    others = rates[rates["role"] != "source"].groupby(["condition", "chain", "source"])["rate"]
    means = others.mean()
    rows = []
    for cell in design[design["source"] != ""].itertuples(index=False):
        for when, chain in (("before", cell.before), ("after", cell.chain)):
            if (chain, cell.source) not in counts.index or (when, chain) == ("before", cell.chain):
                continue
            after = when == "after"
            rows.append(
                {"condition": cell.condition, "source": cell.source}
                | {"seed": cell.seed if after else "", "chain": chain}
                | counts.loc[(chain, cell.source)].to_dict()
                | {
                    "others_mean": means.get((cell.condition, chain, cell.source))
                    if after
                    else None
                }
                | {"when": when}
            )
    names = ["condition", "source", "seed", "chain", *columns, "others_mean", "when"]
    table = pd.DataFrame(rows, columns=names)
    table = table.drop_duplicates(["condition", "source", "chain"])
    return titled(table.astype({"n": int, "hits": int, "others_mean": float}), design)


def draw(rows: pd.DataFrame, choose: Choices) -> alt.LayerChart:
    """A select for the source, if there are several."""
    rows = rows.assign(_row=labels(rows))
    rows["_slot"] = slots(rows, "_row")
    y, offset, height = stacked(rows)
    when = ["before", "after"]
    colour = alt.Color("when:N", title="the last stage", sort=None).scale(
        domain=when, range=[ORANGE, BLUE]
    )
    shape = alt.Shape("when:N", sort=None).scale(domain=when, range=["diamond", "circle"])
    x = alt.X("rate:Q", title="share of answers with the marker", **PERCENT)
    tips = tip("chain", "source", "hits", "n", "rate", "ci_low:low", "ci_high:high", "others_mean")
    base = alt.Chart(rows).encode(y=y, yOffset=offset, tooltip=tips)
    chart = (
        base.mark_rule(strokeWidth=2).encode(x="ci_low:Q", x2="ci_high:Q", color=colour)
        + base.mark_tick(thickness=2, size=12, color=SOFT).encode(x="others_mean:Q")
        + base.mark_point(size=70, filled=True, opacity=1).encode(x=x, color=colour, shape=shape)
    )
    sources = list(dict.fromkeys(rows["source"]))
    if len(sources) > 1:
        chart = chart.transform_filter(choose.all_or("source", "source", sources, "source"))
    return chart.properties(height=height)
