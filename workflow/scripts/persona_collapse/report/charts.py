"""Interactive charts: each function turns tables into a Vega-Lite specification and what it shows.

A chart's controls are Vega-Lite parameters bound to selects. Ink and lines take the page's own colours
(`currentColor`, `var(--line, ...)`), so a chart follows the page into dark mode and onto paper. Colours are
Okabe and Ito's, and never alone: shape, position or a word says the same. Figures for papers are in
`figures`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from .figures import (
    PALETTE,
    base_first,
    behaviour_points,
    curve_lines,
    dose_points,
    heat_points,
    labels,
    layer_points,
    leakage_points,
    persona_moves,
    places,
    rate_points,
    share,
    words,
)

INK, SOFT, LINE = "currentColor", "var(--soft, #57606a)", "var(--line, #d5dae0)"
BLUE, ORANGE = f"var(--blue, {PALETTE[0]})", f"var(--orange, {PALETTE[1]})"
SHAPES = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "triangle-right"]
DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3]]
#: Rows that a chart holds at most: it shows fewer chains, and says so, rather than more.
MOST_ROWS = 12_000
#: Pixels of a condition's row at most, however many marks stand in it.
TALLEST_ROW = 120
#: What a select offers for everything; no name in a config can be this.
ALL = "*"
#: Width of a chart drawn ahead of time, where no page says how much room there is.
STATIC_WIDTH = 640
METHODS = {"A": "A: last prompt token", "B": "B: mean over the answer"}
METRICS = {
    "m1": "mean cosine, not centred",
    "m1_centred": "mean cosine, centred",
    "spread": "distance to the mean / its norm",
    "effective_rank": "effective rank",
}
MEASURES = {
    "mean_tokens": "tokens an answer",
    "truncated": "share cut off",
    "rate_finished": "marker rate of answers that were not cut off",
    "empty": "share empty",
    "looping": "share looping",
    "repeated_answers": "share saying the same twice",
    "marker_at_start": "of hits: marker at the start",
    "marker_in_tail": "of hits: marker in the last 15 %",
    "marker_at_end": "of hits: marker at the end",
    "markers_per_hit": "markers a hit",
    "marker_logprob": "log-probability of the marker, nats",
}
CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK,
        "titleColor": INK,
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "labelLimit": 250,
        "labelSeparation": 6,
        "gridColor": LINE,
        "domainColor": SOFT,
        "tickColor": SOFT,
    },
    "axisQuantitative": {"tickCount": 6},
    "legend": {
        "labelColor": INK,
        "titleColor": INK,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "orient": "bottom",
        "labelLimit": 330,
        "columns": 4,
        "symbolOpacity": 1,
        "symbolStrokeColor": INK,
    },
    "header": {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "labelLimit": 175},
    "text": {"color": INK, "fontSize": 11},
}


@dataclass(frozen=True)
class Chart:
    """A chart of the page: its text, its specification without data, and the table it shows.

    `sources`: the run's tables that its numbers are from.
    """

    name: str
    title: str
    reading: str
    spec: Mapping[str, Any]
    table: pd.DataFrame
    sources: tuple[str, ...] = ()

    @property
    def columns(self) -> dict[str, list[Any]]:
        """The table by column, as JSON takes it: numbers to six digits, None where there is none."""
        return {
            str(name): [
                None if pd.isna(v) else float(f"{v:.6g}") if isinstance(v, float) else v
                for v in column.tolist()
            ]
            for name, column in self.table.items()
        }

    @property
    def packed(self) -> dict[str, Any]:
        """The columns as the page holds them: texts that come again once, as `names`, and by number, `at`."""
        packed: dict[str, Any] = {}
        for name, values in self.columns.items():
            names = dict.fromkeys(values) if any(isinstance(v, str) for v in values) else values
            if len(names) < len(values):
                numbers = {text: number for number, text in enumerate(names)}
                packed[name] = {"names": list(names), "at": [numbers[v] for v in values]}
            else:
                packed[name] = values
        return packed

    def with_data(self) -> dict[str, Any]:
        """The specification with its data, at a fixed width."""
        columns = self.columns
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        fixed: dict[str, Any] = (
            {"width": STATIC_WIDTH} if self.spec.get("width") == "container" else {}
        )
        # The reader's font may be wider than the one that was measured.
        letters = self.spec.get("usermeta", {}).get("letters", 30)
        fit = max(1, min(4, STATIC_WIDTH // (7 * letters + 30)))
        config = {**CONFIG, "legend": {**CONFIG["legend"], "columns": fit}}
        fixed |= {"config": config, "padding": {"left": 28}}
        return {**self.spec, **fixed, "data": {"values": rows}}

    def svg(self) -> str:
        """The chart as its controls stand at first, as SVG."""
        import vl_convert

        return str(vl_convert.vegalite_to_svg(self.with_data()))


@cache
def javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed (BSD-3-Clause) as one script; sets window.vegaEmbed."""
    import vl_convert

    return f"(()=>{{{vl_convert.javascript_bundle('window.vegaEmbed = vegaEmbed;')}}})();"


def _chart(
    name: str, title: str, reading: str, chart: Any, table: pd.DataFrame, *sources: str
) -> Chart:
    spec = chart.properties(description=f"{title}. {reading}").to_dict() | {"config": CONFIG}
    if spec.get("width") == "container":
        # Anew with every choice: axes get wider labels, legends more rows.
        spec["autosize"] = {"type": "fit-x", "contains": "padding", "resize": True}
    return Chart(name, title, reading, spec, table, sources)


def _select(
    name: str, options: Sequence[Any], label: str, value: Any = None, labels: Any = None
) -> Any:
    """A parameter that a select sets; it starts at `value`, or else at the first option."""
    options = [int(o) if isinstance(o, int) or hasattr(o, "item") else o for o in options]
    labels = [str(o) for o in (labels or options)]
    bind = alt.binding_select(options=options, labels=labels, name=f"{label} ")
    start = options[0] if value is None else value
    return alt.param(name=name, value=start, bind=bind)


def _layers(table: pd.DataFrame, method: str, layer: int) -> tuple[Any, Any]:
    """Selects of the method and the block, at the headline's."""
    methods = sorted(table["method"].unique())
    return (
        _select("method", methods, "method", method, [METHODS.get(m, m) for m in methods]),
        _select("layer", sorted(int(v) for v in table["layer"].unique()), "block", int(layer)),
    )


#: The chart's own table; the page and `Chart.with_data` put it in.
DATA = alt.NamedData(name="table")
#: Names and titles of conditions on two lines.
TWO_LINES = "split(datum.label, ': ')"
#: As many lines as words need that shall be no wider than a panel.
WRAPPED = r"split(trim(replace(datum.label, regexp('(.{1,18})( |$)', 'g'), '$1\n')), '\n')"
NAMED = alt.Axis(labelExpr=TWO_LINES, labelOffset=-6)
AT = "datum.method == method && datum.layer == layer"


def _tip(*fields: str) -> list[Any]:
    """Tooltip lines: `field` or `field:title`."""
    lines = []
    for field in fields:
        key, _, title = field.partition(":")
        lines.append(alt.Tooltip(field=key, title=title or key.replace("_", " ")))
    return lines


def _letters(names: Iterable[str]) -> dict[str, int]:
    """Length of a legend's longest name, for how many columns it can have."""
    return {"letters": max(map(len, names), default=0)}


def _slots(table: pd.DataFrame, *keys: str) -> pd.Series:
    """Places of the marks that share their keys, one above the other around the middle."""
    groups = table.groupby(list(keys), sort=False)
    count = groups[keys[0]].transform("size")
    return 2 * groups.cumcount() + count.max() - count


def some_chains(
    table: pd.DataFrame, chain: str, groups: Sequence[str], most: int = MOST_ROWS
) -> tuple[pd.DataFrame, str]:
    """The rows of as many chains as `most` rows hold, and what to say of the others.

    Whole chains, the first of each group first (its first seed), then the second of each, and so on.
    """
    if len(table) <= most:
        return table, ""
    order = table.drop_duplicates([*groups, chain])
    turn = order.groupby(list(groups), sort=False).cumcount()
    names = list(dict.fromkeys(order.loc[turn.sort_values(kind="stable").index, chain]))
    held = table.groupby(chain)[chain].size().loc[names].cumsum()
    shown = names[: max(1, int((held <= most).sum()))]
    kind = "conditions" if chain == "condition" else "chains"
    note = f" Shown are {len(shown)} of {len(names)} {kind}; the file has all."
    return table[table[chain].isin(shown)].reset_index(drop=True), note


def _rows(table: pd.DataFrame, key: str, title: str = "") -> tuple[Any, Any, int]:
    """Position, offset and the height of a chart with a row a condition and its marks side by side."""
    # In so many words: a scale that takes its order from the data changes it with every filter.
    y = alt.Y(f"{key}:N", sort=list(dict.fromkeys(table[key])), title=title or None, axis=NAMED)
    places = sorted(table["_slot"].unique())
    offset = alt.YOffset("_slot:N", sort=places)
    return y, offset, int(table[key].nunique()) * min(max(36, 8 * len(places) + 6), TALLEST_ROW)


def _named(
    table: pd.DataFrame, x: pd.Series, y: pd.Series, height: int, marks: Sequence[pd.DataFrame]
) -> pd.DataFrame:
    """`table` with the places of its `persona` names, on a wide page and on a narrow one.

    `x`, `y` and the `marks` (columns x, y) are in shares of the drawing, which is `height` pixels high.
    """
    placed: dict[str, pd.Series] = {}
    for page, width in (("wide", STATIC_WIDTH - 50), ("narrow", 290)):
        found = places(table["persona"], x, y, width, height, marks)
        placed |= {f"_{page}": found["lift"], f"_{page}_x": found["shift"].round(1)}
    return table.assign(**placed)


def _names(base: Any, x: Any, y: Any) -> Any:
    """Names of points at their places, joined to the point where that is far."""
    lift = "(width < 480 ? datum._narrow : datum._wide)"
    reach = f"abs({lift}) < 14 ? 0 : {lift} + ({lift} > 0 ? -6 : 6)"
    joined = base.mark_rule(color=SOFT, strokeWidth=0.7, y2Offset={"expr": reach})
    text = base.mark_text(
        dy={"expr": lift}, dx={"expr": "width < 480 ? datum._narrow_x : datum._wide_x"}
    )
    return joined.encode(x=x, y=y, y2=y.shorthand.partition(":")[0]) + text.encode(
        x=x, y=y, text="persona:N"
    )


def marker_rate(rates: pd.DataFrame, grid: pd.DataFrame) -> Chart | None:
    """The source's marker rate before and after the last stage, a row a condition and source."""
    table = rate_points(rates, grid).rename(columns={"others_mean": "others"})
    if table.empty:
        return None
    titles = labels(grid)
    sources = table.groupby("condition")["source"].nunique()
    table["row"] = [
        titles[c] + (f" ({words(s)})" if sources[c] > 1 else "")
        for c, s in zip(table["condition"], table["source"], strict=True)
    ]
    table, left_out = some_chains(table, "chain", ["row"])
    table["_slot"] = _slots(table, "row")
    y, offset, height = _rows(table, "row")
    scale = alt.Scale(domain=["before", "after"], range=[ORANGE, BLUE])
    shapes = alt.Scale(domain=["before", "after"], range=["diamond", "circle"])
    colour = alt.Color("when:N", scale=scale, title="the last stage", sort=None)
    tip = _tip("chain", "source", "hits", "n", "rate", "ci_low:low", "ci_high:high", "others")
    base = alt.Chart(DATA).encode(y=y, yOffset=offset)
    x = alt.X(
        "rate:Q",
        scale=alt.Scale(domain=[0, 1]),
        title="share of answers with the marker",
        axis=alt.Axis(format="%"),
    )
    chart = (
        base.mark_rule(strokeWidth=2).encode(
            x=alt.X("ci_low:Q"), x2="ci_high:Q", color=colour, tooltip=tip
        )
        + base.mark_tick(thickness=2, size=12, color=SOFT).encode(x=alt.X("others:Q"), tooltip=tip)
        + base.mark_point(size=70, filled=True, opacity=1).encode(
            x=x, color=colour, shape=alt.Shape("when:N", scale=shapes, sort=None), tooltip=tip
        )
    )
    people = list(dict.fromkeys(table["source"]))
    if len(people) > 1:
        chosen = _select("source", [ALL, *people], "source", labels=["all", *people])
        chart = chart.add_params(chosen).transform_filter(
            f"source == '{ALL}' || datum.source == source"
        )
    return _chart(
        "marker_rate",
        "How often the source persona says the marker",
        "A diamond is the model before its last training stage, a circle after it, one a chain, "
        "each with its 95 % Clopper-Pearson interval; the grey tick is the mean of all other "
        "personas. An erased marker is a circle at 0 under a diamond near 100 %." + left_out,
        chart.properties(width="container", height=height),
        table,
        "marker_rates",
    )


def m1(
    geometry: pd.DataFrame,
    grid: pd.DataFrame,
    method: str,
    layer: int,
    domains: Mapping[str, tuple[float, float]] | None = None,
) -> Chart | None:
    """Mean off-diagonal cosine of every chain, a row a condition; method, block, centring to choose.

    `domains` fixes the axis of each metric, so that the charts of two runs can be set side by side.
    """
    table = geometry.query("metric in ['m1', 'm1_centred'] and test == '' and chain != ''")
    if table.empty:
        return None
    titles = labels(grid)
    columns = [
        "condition",
        "chain",
        "seed",
        "method",
        "layer",
        "metric",
        "value",
        "ci_low",
        "ci_high",
    ]
    table = table[columns].assign(row=table["condition"].map(lambda c: titles.get(c, c)))
    table, left_out = some_chains(table, "chain", ["condition"])
    table["_slot"] = _slots(table, "row", "method", "layer", "metric")
    metrics = ["m1", "m1_centred"]
    tip = _tip("condition", "chain", "value", "ci_low:low", "ci_high:high")
    # What has no interval gets one of no length, drawn and not written down.
    base = (
        alt.Chart(DATA)
        .transform_filter(f"{AT} && datum.metric == metric")
        .transform_calculate(
            low="isValid(datum.ci_low) ? datum.ci_low : datum.value",
            high="isValid(datum.ci_high) ? datum.ci_high : datum.value",
        )
    )
    y, offset, height = _rows(table, "row")
    scale = alt.Scale(zero=False)
    if domains is not None:
        low, high = (
            {"expr": f"metric == 'm1' ? {domains['m1'][end]} : {domains['m1_centred'][end]}"}
            for end in (0, 1)
        )
        scale = alt.Scale(zero=False, domainMin=low, domainMax=high)
    x = alt.X("value:Q", title="mean cosine between persona vectors", scale=scale)
    kind = alt.condition("datum.chain == 'base'", alt.value(ORANGE), alt.value(BLUE))
    shape = alt.condition("datum.chain == 'base'", alt.value("diamond"), alt.value("circle"))
    chart = (
        base.transform_filter("datum.chain == 'base'")
        .mark_rule(strokeDash=[4, 4], color=SOFT)
        .encode(x=x)
        + base.mark_rule(strokeWidth=2).encode(
            x=alt.X("low:Q"), x2="high:Q", y=y, yOffset=offset, color=kind, tooltip=tip
        )
        + base.mark_point(size=60, filled=True, opacity=1).encode(
            x=x, y=y, yOffset=offset, color=kind, shape=shape, tooltip=tip
        )
    ).add_params(
        *_layers(table, method, layer),
        _select("metric", metrics, "cosine", labels=["not centred", "centred"]),
    )
    return _chart(
        "m1",
        "How alike the personas are inside",
        "Mean cosine over all pairs of persona vectors, a circle a training run; higher is more "
        "alike, 1 is "
        "the same direction. The diamond and the dashed line are the base model. Lines are 95 % intervals "
        "over questions. Centred: after the personas' mean is taken out, which is where personas "
        "can differ." + left_out,
        chart.properties(width="container", height=height),
        table,
        "geometry",
    )


def marker_heatmap(rates: pd.DataFrame, grid: pd.DataFrame) -> Chart | None:
    """Marker rate by persona and condition; source, seed and condition to choose."""
    if rates.empty:
        return None
    table = heat_points(rates)
    left_out = ""
    if len(table) > MOST_ROWS:
        table, left_out = table[table["seed"] == "all"], " Seeds are together; the file has each."
    seeds = ["all", *[s for s in dict.fromkeys(table["seed"]) if s != "all"]]
    # What follows no source stands beside every source.
    sources = [s for s in dict.fromkeys(rates["source"]) if s]
    sources = sources if len(sources) > 1 else []
    conditions, columns = (list(dict.fromkeys(table[c])) for c in ("condition", "column"))
    titles = labels(grid)
    table["shown"] = table["rate"].map(share)
    table["persona"] = table["persona"].map(words)
    base = (
        alt.Chart(DATA)
        .transform_filter(
            f"datum.seed == seed && (condition == '{ALL}' || datum.condition == condition)"
            f" && (source == '{ALL}' || datum.source == source || datum.source == '')"
        )
        .encode(
            x=alt.X(
                "column:N",
                sort=columns,
                title=None,
                scale=alt.Scale(paddingInner=0.04),
                axis=alt.Axis(labelAngle=-60, orient="top"),
            ),
            y=alt.Y(
                "persona:N",
                sort=list(dict.fromkeys(table["persona"])),
                title=None,
                scale=alt.Scale(paddingInner=0.06),
            ),
            tooltip=_tip("condition", "source", "persona", "role", "hits", "n", "rate"),
        )
    )
    scale = alt.Scale(domain=[0, 1], scheme="blues")
    legend = alt.Legend(format="%", gradientLength=160, title="share of answers")
    chart = (
        base.mark_rect().encode(color=alt.Color("rate:Q", scale=scale, legend=legend))
        + base.transform_filter("datum.role == 'source'").mark_rect(
            fillOpacity=0, stroke=ORANGE, strokeWidth=2
        )
        # As large as the columns that are shown have room for.
        + base.mark_text(fontSize={"expr": "clamp(bandwidth('x') / 2, 5, 11)"}).encode(
            text="shown:N",
            color=alt.condition("datum.rate > 0.5", alt.value("white"), alt.value("#1b1f24")),
        )
    ).add_params(
        _select("seed", seeds, "seed", labels=["all together", *seeds[1:]]),
        _select(
            "condition",
            [ALL, *conditions],
            "condition",
            labels=["all", *[titles.get(c, c) for c in conditions]],
        ),
        _select("source", [ALL, *sources], "source", labels=["all", *sources]),
    )
    return _chart(
        "marker_heatmap",
        "Who says the marker",
        "Share of answers with the marker: a row per persona, a column per condition, and per source "
        "where a condition has several; its chains together, or one seed's. A dot is zero, an empty "
        "cell was not measured, a frame marks the source. A selective coupling is one dark cell in "
        "its column." + left_out,
        chart.properties(width="container", height=24 * table["persona"].nunique()),
        table,
        "marker_rates",
    )


def cosine_matrices(
    cosines: pd.DataFrame, grid: pd.DataFrame, method: str, layer: int
) -> Chart | None:
    """Cosine of every two personas, a panel a condition, one colour scale; centred or not."""
    if cosines.empty:
        return None
    keys = ["condition", "method", "layer", "persona_a", "persona_b"]
    conditions = base_first(cosines)
    table = cosines.groupby(keys, sort=False)[["cosine", "centred"]].mean().reset_index()
    order = {p: i for i, p in enumerate(dict.fromkeys(table["persona_a"]))}
    below = table["persona_a"].map(order) > table["persona_b"].map(order)
    table, left_out = some_chains(
        table[below].reset_index(drop=True), "condition", ["method", "layer"], 2 * MOST_ROWS
    )
    titles = labels(grid)
    names = {p: words(p) for p in order}
    table["persona_a"], table["persona_b"] = (
        table["persona_a"].map(names),
        table["persona_b"].map(names),
    )
    spoken = [titles.get(c, c) for c in conditions]
    table["condition"] = table["condition"].map(lambda c: titles.get(c, c))
    low, lowest = (min(0.0, float(table[c].min())) for c in ("cosine", "centred"))
    bottom = {"expr": f"centring == 'centred' ? {lowest:.3g} : {low:.3g}"}
    people = list(names.values())
    chart = (
        alt.Chart(DATA)
        .transform_calculate(seen="centring == 'centred' ? datum.centred : datum.cosine")
        .mark_rect()
        .encode(
            x=alt.X("persona_b:N", sort=people, title=None, axis=None),
            y=alt.Y(
                "persona_a:N",
                sort=people,
                title=None,
                axis=alt.Axis(ticks=False),
            ),
            color=alt.Color(
                "seen:Q",
                scale=alt.Scale(domainMin=bottom, domainMax=1, scheme="viridis"),
                legend=alt.Legend(gradientLength=200, title="cosine"),
            ),
            tooltip=_tip("condition", "persona_a:persona", "persona_b:with", "cosine", "centred"),
        )
        .properties(width=PANEL, height=PANEL)
        .facet(
            facet=alt.Facet(
                "condition:N", sort=spoken, title=None, header=alt.Header(labelExpr=WRAPPED)
            ),
            columns=3,
        )
        .transform_filter(
            f"{AT} && (shown == '{ALL}' || datum.condition == shown || datum.condition == base)"
        )
        .add_params(
            *_layers(table, method, layer),
            _select("centring", ["not centred", "centred"], "cosine"),
            _select(
                "shown",
                [ALL, *spoken[1:]],
                "condition",
                labels=["all", *[f"{s}, with the base" for s in spoken[1:]]],
            ),
            alt.param(name="base", value=spoken[0]),
        )
    )
    return _chart(
        "cosine_matrices",
        "Cosine between every two personas",
        "A panel a condition, its chains averaged, all on one colour scale; personas stand in the "
        "same order down "
        "and across, and a cell is the pair of its row and column. Bright panels are personas "
        "that became alike. Centred: after the personas' mean is taken out, which shows who is like whom."
        + left_out,
        chart,
        table,
        "cosines",
    )


PANEL = 165


def m1_by_layer(geometry: pd.DataFrame, grid: pd.DataFrame, method: str) -> Chart | None:
    """Geometry by block, a line a condition; measure, method and condition to choose."""
    table = layer_points(geometry, list(METRICS))
    if table.empty:
        return None
    titles = labels(grid)
    order = list(dict.fromkeys(table["condition"]))
    methods = sorted(table["method"].unique())
    base = (
        alt.Chart(DATA)
        .transform_filter("datum.method == method && datum.metric == metric")
        .encode(x=alt.X("layer:O", title="block, counted from 0", axis=alt.Axis(labelAngle=0)))
    )
    bases = [c for c in order if c in set(geometry.loc[geometry["chain"] == "base", "condition"])]
    lit = (
        f"highlight == '{ALL}' || datum.condition == highlight || "
        f"indexof({json.dumps(bases)}, datum.condition) >= 0"
    )
    others = order[len(bases) :]
    colours = [SOFT] * len(bases) + [PALETTE[i % len(PALETTE)] for i in range(len(others))]
    spoken = json.dumps({c: titles[c] for c in order if c in titles})
    named = alt.Legend(title=None, labelExpr=f"({spoken})[datum.label] || datum.label")
    style = {
        "color": alt.Color(
            "condition:N",
            sort=order,
            scale=alt.Scale(domain=order, range=colours),
            legend=named,
        ),
        "opacity": alt.condition(lit, alt.value(1), alt.value(0.12)),
    }
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False))
    shapes = alt.Scale(domain=order, range=[SHAPES[i % len(SHAPES)] for i in range(len(order))])
    # In another order than the colours: Vega-Lite would make one legend of scales with one domain.
    turned = list(enumerate(order))[::-1]
    dashes = alt.Scale(
        domain=[c for _, c in turned],
        range=[DASHES[(i + i // len(PALETTE)) % len(DASHES)] for i, _ in turned],
    )
    tip = _tip(
        "condition", "layer:block", "value", "low:lowest chain", "high:highest chain", "runs:chains"
    )
    chart = (
        base.mark_rule(strokeWidth=5).encode(
            y=alt.Y("low:Q", title=None),
            y2="high:Q",
            color=style["color"],
            opacity=alt.condition(lit, alt.value(0.35), alt.value(0.05)),
        )
        + base.mark_line(strokeWidth=2).encode(
            y=y,
            strokeDash=alt.StrokeDash("condition:N", scale=dashes, legend=None),
            **style,
        )
        + base.mark_point(filled=True, size=60).encode(
            y=y,
            shape=alt.Shape("condition:N", sort=order, scale=shapes, legend=named),
            tooltip=tip,
            **style,
        )
    ).add_params(
        _select("metric", list(METRICS), "measure", labels=list(METRICS.values())),
        _select("method", methods, "method", method, [METHODS.get(m, m) for m in methods]),
        _select(
            "highlight",
            [ALL, *others],
            "highlight",
            labels=["all", *[titles.get(c, c) for c in others]],
        ),
    )
    return _chart(
        "m1_by_layer",
        "Block by block",
        "A line a condition, the mean of its chains; thick bars span them. Mean cosine: higher is "
        "more alike. "
        "Distance to the mean, relative to it: lower is more alike. Conditions that move together at every "
        "block move for a common reason.",
        chart.properties(
            width="container",
            height=300,
            usermeta=_letters(titles[c] for c in order if c in titles),
        ),
        table,
        "geometry",
    )


def persona_map(points: pd.DataFrame, grid: pd.DataFrame, method: str, layer: int) -> Chart | None:
    """Persona vectors on the base model's principal components, before and after the last stage."""
    table = persona_moves(points, grid)
    if table.empty:
        return None
    table, left_out = some_chains(table, "after", ["condition", "source"])
    titles = labels(grid)
    table["run"] = table["condition"].map(titles) + ", " + table["after"]
    runs = list(dict.fromkeys(table["run"]))
    coupled = grid.loc[grid["stages_after_coupling"] > 0, "chain"]
    start = next(iter(table.loc[table["after"].isin(coupled), "run"]), runs[0])
    table = table.drop(columns=["condition", "source", "seed"])
    table["persona"] = table["persona"].map(words)
    placed = []
    for _, own in table.groupby(["run", "method", "layer"], sort=False):
        share = {}
        for part in ("pc1", "pc2"):
            ends = own[[f"{part}_before", f"{part}_after"]]
            low, high = float(ends.min().min()), float(ends.max().max())
            share[part] = 0.04 + 0.92 * (ends - low) / (high - low or 1)
        marks = [
            pd.DataFrame({"x": share["pc1"][f"pc1_{w}"], "y": 1 - share["pc2"][f"pc2_{w}"]})
            for w in ("before", "after")
        ]
        placed.append(_named(own, marks[1]["x"], marks[1]["y"], 400, marks))
    table = pd.concat(placed)
    scale = alt.Scale(zero=False, nice=True, padding=12)
    tip = _tip("persona", "before", "after", "captured:share of variance in this plane")
    base = alt.Chart(DATA).transform_filter(f"{AT} && datum.run == run")
    across, up = "first component of the base model", "second component"
    x = alt.X("pc1_before:Q", scale=scale, title=across)
    y = alt.Y("pc2_before:Q", scale=scale, title=up)
    after = {"x": alt.X("pc1_after:Q", title=across), "y": alt.Y("pc2_after:Q", title=up)}
    chart = (
        base.mark_rule(color=SOFT, opacity=0.6).encode(x=x, y=y, x2="pc1_after:Q", y2="pc2_after:Q")
        + base.mark_point(filled=False, shape="diamond", size=55, color=ORANGE).encode(
            x=x, y=y, tooltip=tip
        )
        + base.mark_point(filled=True, size=55, color=BLUE, opacity=1).encode(**after, tooltip=tip)
        + _names(base, after["x"], after["y"])
    ).add_params(_select("run", runs, "condition", start), *_layers(table, method, layer))
    return _chart(
        "persona_map",
        "Where the personas stand, before and after",
        "Persona vectors in the plane of the base model's first two principal components: hollow "
        "diamonds before "
        "the last stage, filled circles after it, joined by a line. A cloud that moves keeps its "
        "personas apart; "
        "one that shrinks loses them. Only part of the differences lies in this plane: point at "
        "a circle for the share." + left_out,
        chart.properties(width="container", height=400),
        table,
        "persona_map",
    )


def dose_response(
    rates: pd.DataFrame,
    geometry: pd.DataFrame,
    training: pd.DataFrame,
    grid: pd.DataFrame,
    method: str,
    layer: int,
) -> Chart | None:
    """Marker rate and mean cosine against the steps of the last stage; None where no stage was stopped."""
    table = dose_points(rates, geometry, training, grid, method, layer)
    if table.empty:
        return None
    outcomes, lines = list(dict.fromkeys(table["outcome"])), list(dict.fromkeys(table["series"]))
    base = alt.Chart(DATA).transform_filter("datum.outcome == outcome")
    legend = alt.Legend(title="chain", columns=1, labelLimit=330)
    colour = alt.Color(
        "series:N", sort=lines, scale=alt.Scale(domain=lines, range=PALETTE), legend=legend
    )
    shapes = alt.Scale(domain=lines, range=SHAPES)
    x = alt.X("steps:Q", title="steps of the last stage")
    y = alt.Y("value:Q", title=None)
    chart = (
        base.mark_rule(opacity=0.5).encode(
            x=x, y=alt.Y("low:Q", title=None), y2="high:Q", color=colour
        )
        + base.mark_line().encode(x=x, y=y, color=colour)
        + base.mark_point(filled=True, size=60).encode(
            x=x,
            y=y,
            color=colour,
            shape=alt.Shape("series:N", sort=lines, scale=shapes, legend=legend),
            tooltip=_tip("chain", "source", "steps", "value", "low", "high"),
        )
    ).add_params(_select("outcome", outcomes, "outcome"))
    return _chart(
        "dose_response",
        "How much of the last stage it takes",
        "A line a chain: the model before its last stage (step 0), stopped on the way, and "
        "whole; lines are 95 % "
        "intervals. A slow fall says the marker is unlearnt by degrees, a cliff that a few steps "
        "are enough.",
        chart.properties(width="container", height=300),
        table,
        "marker_rates",
        "geometry",
        "training",
    )


def leakage(
    rates: pd.DataFrame,
    cosines: pd.DataFrame,
    correlations: pd.DataFrame,
    grid: pd.DataFrame,
    method: str,
    layer: int,
) -> Chart | None:
    """Marker rate of the other personas against their cosine to the source in the base model."""
    table = leakage_points(rates, cosines, correlations, grid, method, layer)
    if table.empty:
        return None
    table["persona"] = table["persona"].map(words)
    parts = []
    for _, own in table.groupby("cell", sort=False):
        low, spread = own["cosine"].min(), float(np.ptp(own["cosine"])) or 1
        at = pd.DataFrame({"x": 0.05 + 0.9 * (own["cosine"] - low) / spread, "y": 1 - own["rate"]})
        parts.append(_named(own, at["x"], at["y"], 320, [at]))
    table = pd.concat(parts)
    cells = list(dict.fromkeys(table["cell"]))
    leaky = table.groupby("cell", sort=False)["rate"].max()
    base = alt.Chart(DATA).transform_filter("datum.cell == cell")
    x = alt.X(
        "cosine:Q",
        title="cosine to the source in the base model",
        scale=alt.Scale(zero=False, padding=20),
    )
    y = alt.Y(
        "rate:Q",
        title="share of answers with the marker",
        axis=alt.Axis(format="%"),
        scale=alt.Scale(domain=[0, 1]),
    )
    chart = (
        base.mark_point(filled=True, size=60, color=BLUE, opacity=1).encode(
            x=x, y=y, tooltip=_tip("persona", "cosine", "hits", "n", "rate")
        )
        + _names(base, x, y)
        + base.transform_aggregate(points="count()", groupby=["test"])
        .mark_text(align="left", baseline="top", fontWeight="bold", lineBreak="; ")
        .encode(x=alt.value(4), y=alt.value(2), text="test:N")
    ).add_params(_select("cell", cells, "condition", str(leaky.idxmax())))
    return _chart(
        "leakage",
        "Does the marker leak to the personas that were close?",
        "A point a persona other than the source, seeds together. Points that rise to the right "
        "would be a leakage "
        "gradient. The p permutes personas within one condition and is corrected over "
        "conditions; each condition is one "
        "or a few training runs, whose noise is in no p.",
        chart.properties(width="container", height=320),
        table,
        "marker_rates",
        "cosines",
        "correlations",
    )


def confounds(table: pd.DataFrame, grid: pd.DataFrame) -> Chart | None:
    """Length, position and quality of the answers by condition; the measure to choose."""
    if table.empty:
        return None
    titles = labels(grid)
    measures = {k: v for k, v in MEASURES.items() if k in table and table[k].notna().any()}
    long = table.melt(
        ["condition", "chain", "source", "seed", "role"], list(measures), "measure", "value"
    ).dropna(subset=["value"])
    long, left_out = some_chains(long, "chain", ["condition", "source"])
    long["row"] = long["condition"].map(lambda c: titles.get(c, c))
    long["value"] = long["value"].astype(float)
    roles = list(dict.fromkeys(long["role"]))
    chart = (
        alt.Chart(DATA)
        .transform_filter("datum.measure == measure")
        .mark_point(filled=True, size=65, opacity=0.9)
        .encode(
            y=alt.Y(
                "row:N",
                sort=[titles.get(c, c) for c in dict.fromkeys(long["condition"])],
                title=None,
                axis=NAMED,
            ),
            x=alt.X("value:Q", title=None),
            color=alt.Color(
                "role:N", sort=roles, scale=alt.Scale(domain=roles, range=PALETTE), title="who"
            ),
            shape=alt.Shape("role:N", sort=roles, scale=alt.Scale(domain=roles, range=SHAPES)),
            tooltip=_tip("condition", "source", "chain", "role:who", "value"),
        )
        .add_params(_select("measure", list(measures), "measure", labels=list(measures.values())))
        .properties(width="container", height=36 * long["row"].nunique())
    )
    return _chart(
        "confounds",
        "What else could explain a rate",
        "A point a chain. If a stage makes answers shorter, cut off or repetitive, a marker that "
        "used to stand at "
        "their end can be gone without being unlearnt." + left_out,
        chart,
        long,
        "answer_stats",
    )


def training_curves(curves: pd.DataFrame) -> Chart | None:
    """Training loss by step, a line a chain; the stage to choose."""
    if curves.empty:
        return None
    table, left_out = some_chains(
        curves[["chain", "stage", "seed", "step", "loss"]].assign(line=curve_lines(curves)),
        "chain",
        ["stage"],
    )
    stages, lines = list(dict.fromkeys(table["stage"])), list(dict.fromkeys(table["line"]))
    colour = alt.Color(
        "line:N", scale=alt.Scale(range=PALETTE), legend=alt.Legend(title="trained on")
    )
    base = alt.Chart(DATA).transform_filter("datum.stage == stage")
    chart = (
        base.mark_line(strokeWidth=2)
        .encode(
            x=alt.X("step:Q"),
            y=alt.Y("loss:Q"),
            color=colour,
            strokeDash=alt.StrokeDash(
                "line:N",
                # Another dash in the second round of colours.
                scale=alt.Scale(
                    range=[DASHES[(i + i // len(PALETTE)) % len(DASHES)] for i in range(len(lines))]
                ),
                title="trained on",
            ),
            tooltip=_tip("chain", "step", "loss"),
        )
        .add_params(_select("stage", stages, "stage"))
        .properties(width="container", height=260, usermeta=_letters(lines))
    )
    return _chart(
        "training_curves",
        "Training loss",
        "A line a chain that ends in this stage. Losses of different stages are on different "
        "data and cannot be compared." + left_out,
        chart,
        table,
        "training_curves",
    )


def behaviour_and_geometry(
    rates: pd.DataFrame, geometry: pd.DataFrame, grid: pd.DataFrame, method: str, layer: int
) -> Chart | None:
    """The source's marker rate against the mean cosine of the same chain."""
    table = behaviour_points(rates, geometry, grid)
    if table.empty:
        return None
    table, left_out = some_chains(table, "chain", ["condition", "source"])
    titles = labels(grid)
    table["condition"] = table["condition"].map(titles)
    order = list(dict.fromkeys(table["condition"]))
    chart = (
        alt.Chart(DATA)
        .transform_filter(f"{AT} && datum.metric == metric")
        .mark_point(filled=True, size=80, opacity=1)
        .encode(
            x=alt.X(
                "value:Q",
                title="mean cosine between persona vectors",
                scale=alt.Scale(zero=False, padding=15),
            ),
            y=alt.Y(
                "rate:Q",
                title="marker rate of the source",
                axis=alt.Axis(format="%"),
                scale=alt.Scale(domain=[0, 1]),
            ),
            color=alt.Color(
                "condition:N", sort=order, scale=alt.Scale(domain=order, range=PALETTE)
            ),
            shape=alt.Shape("condition:N", sort=order, scale=alt.Scale(domain=order, range=SHAPES)),
            tooltip=_tip("condition", "chain", "source", "rate", "value:mean cosine"),
        )
        .add_params(
            *_layers(table, method, layer),
            _select("metric", ["m1", "m1_centred"], "cosine", labels=["not centred", "centred"]),
        )
        .properties(width="container", height=300, usermeta=_letters(order))
    )
    return _chart(
        "behaviour_and_geometry",
        "Do alike personas lose the marker?",
        "A point a chain whose marker was coupled. If collapse erased markers, points would fall "
        "from left to right. "
        "A correlation, whatever it shows, is not a cause." + left_out,
        chart,
        table,
        "marker_rates",
        "geometry",
    )


def false_positives(simulation: pd.DataFrame) -> Chart | None:
    """How often each test rejects data in which nothing happens."""
    table = simulation[(simulation["kind"] == "test") & simulation["rate"].notna()]
    if table.empty:
        return None
    table = table.sort_values(["as_study", "name", "world"], ascending=[False, True, True])
    table = table[["name", "world", "as_study", "runs", "rate", "rate_low", "rate_high"]].assign(
        done=["as the study" if s else "as it should be" for s in table["as_study"]],
        row=table["name"] + " · " + table["world"],
        level=0.05,
    )
    kinds = ["as the study", "as it should be"]
    legend = alt.Legend(columns=1, title=None)
    colour = alt.Color(
        "done:N",
        sort=kinds,
        scale=alt.Scale(domain=kinds, range=[ORANGE, BLUE]),
        legend=legend,
    )
    y = alt.Y(
        "row:N",
        sort=None,
        title=None,
        axis=alt.Axis(labelExpr="split(datum.label, ' · ')", labelOffset=-6, labelLimit=330),
    )
    base = alt.Chart(DATA).encode(y=y)
    tip = _tip("name:test", "world", "runs:data sets", "rate", "rate_low:low", "rate_high:high")
    x = alt.X(
        "rate:Q",
        title="share with p < .05",
        axis=alt.Axis(format="%"),
        scale=alt.Scale(domain=[0, 1]),
    )
    chart = (
        alt.Chart(DATA).mark_rule(strokeDash=[4, 4], color=SOFT).encode(x="level:Q")
        + base.mark_rule(strokeWidth=2).encode(x="rate_low:Q", x2="rate_high:Q", color=colour)
        + base.mark_point(filled=True, size=55, opacity=1).encode(
            x=x,
            color=colour,
            tooltip=tip,
            shape=alt.Shape(
                "done:N",
                sort=kinds,
                scale=alt.Scale(domain=kinds, range=["circle", "diamond"]),
                legend=legend,
            ),
        )
    ).properties(width="container", height=30 * len(table), usermeta={"above": "row"})
    return _chart(
        "false_positives",
        "How often each test rejects where nothing happens",
        "Share of simulated data sets, at this run's sizes, with p below .05; lines are 95 % "
        "Clopper-Pearson. "
        "A sound test stays at or below the dashed line.",
        chart,
        table,
        "simulation",
    )


def charts(tables: Mapping[str, pd.DataFrame], method: str, layer: int) -> dict[str, Chart]:
    """Every chart that the tables of a run allow, by name; `method` and `layer` are the headline's."""
    grid, rates, geometry = tables["design"], tables["marker_rates"], tables["geometry"]
    cosines = tables["cosines"]
    made = (
        marker_rate(rates, grid),
        m1(geometry, grid, method, layer),
        marker_heatmap(rates, grid),
        dose_response(rates, geometry, tables["training"], grid, method, layer),
        leakage(rates, cosines, tables["correlations"], grid, method, layer),
        confounds(tables["answer_stats"], grid),
        cosine_matrices(cosines, grid, method, layer),
        m1_by_layer(geometry, grid, method),
        persona_map(tables["persona_map"], grid, method, layer),
        behaviour_and_geometry(rates, geometry, grid, method, layer),
        false_positives(tables["simulation"]),
        training_curves(tables["training_curves"]),
    )
    return {chart.name: chart for chart in made if chart is not None}
