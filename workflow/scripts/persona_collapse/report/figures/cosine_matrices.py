"""Cosine of every two personas, one panel per condition, on one colour scale."""

import json

import altair as alt
import pandas as pd

from ...analysis.views import untrained
from ._frames import base_first, labels, titled, words
from ._style import Choices, tip

TITLE = "Cosine between every two personas"
READING = (
    "One panel per condition, averaged over its chains, on one colour scale; personas are in the same order "
    "down and across, and a cell is the pair of its row and column. A panel brighter than the "
    "base model's has personas that became similar. Centred: the personas' mean is subtracted, so a bright "
    "cell is a pair that is more similar than most pairs."
)
SECTION = "geometry"
RANK = 1
TABLES = ("cosines", "design")
EMPTY = "No activations were measured."
#: Rows on the page: the limit is higher, because cells are small and few conditions say little.
MOST_ROWS = 24_000
#: Vega expression that wraps a panel's title.
WRAPPED = r"split(trim(replace(datum.label, regexp('(.{1,18})( |$)', 'g'), '$1\n')), '\n')"


def data(cosines: pd.DataFrame, design: pd.DataFrame) -> pd.DataFrame:
    """One row per condition, method, block and pair of personas: mean cosine over the condition's
    chains.

    Columns: condition, title, method, layer, headline, persona_a, persona_b, cosine, centred. Every pair
    is listed once. Base models come first.
    """
    cosines = base_first(cosines, untrained(cosines["chain"]))
    order = {p: i for i, p in enumerate(dict.fromkeys(cosines["persona_a"]))}
    below = cosines["persona_a"].map(order) > cosines["persona_b"].map(order)
    keys = ["condition", "method", "layer", "headline", "persona_a", "persona_b"]
    table = cosines[below].groupby(keys, sort=False)[["cosine", "centred"]].mean().reset_index()
    return titled(table, design)


def draw(rows: pd.DataFrame, choose: Choices) -> alt.FacetChart:
    """Method, block, centring and condition to choose; the base model's panel stays."""
    rows = rows.assign(_panel=labels(rows))
    panels = list(dict.fromkeys(rows["_panel"]))
    people = list(dict.fromkeys(map(words, [*rows["persona_b"], *rows["persona_a"]])))
    cell = choose.cell(rows)
    kinds = {"cosine": "not centred", "centred": "centred"}
    kind = choose("centring", kinds, "cosine")
    others = {panel: f"{panel}, with the base" for panel in panels[1:]}
    one = choose.all_or("shown", "_panel", others, "condition")
    lows = {kind: min(0.0, float(rows[kind].min())) for kind in kinds}
    bottom = {"expr": f"{kind} == 'centred' ? {lows['centred']:.3g} : {lows['cosine']:.3g}"}
    side = 118 if choose.paper else 165
    return (
        alt.Chart(rows)
        # Made in Vega, because the page embeds every column of every pair.
        .transform_calculate(
            seen=f"datum[{kind}]",
            _a="replace(datum.persona_a, regexp('_', 'g'), ' ')",
            _b="replace(datum.persona_b, regexp('_', 'g'), ' ')",
        )
        .mark_rect()
        .encode(
            x=alt.X("_b:N", sort=people, title=None).axis(
                ticks=False, domain=False, labelAngle=-90
            ),
            y=alt.Y("_a:N", sort=people, title=None).axis(ticks=False),
            color=alt.Color("seen:Q", title="cosine")
            .scale(domainMin=bottom, domainMax=1, scheme="viridis")
            .legend(gradientLength=200),
            tooltip=tip("condition", "_a:persona", "_b:with", "cosine", "centred"),
        )
        .properties(width=side, height=side)
        .facet(
            facet=alt.Facet("_panel:N", sort=panels, title=None).header(labelExpr=WRAPPED),
            columns=4 if choose.paper else 3,
        )
        .transform_filter(f"{cell} && ({one} || datum._panel == {json.dumps(panels[0])})")
    )
