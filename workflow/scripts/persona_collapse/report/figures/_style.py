"""Shared style of the figures: colours, scales, selects, names next to points.

Colours are Okabe and Ito's (2008, "Color Universal Design"), which colour-blind readers can
distinguish. Colour is never the only cue: shape, position or a word says the same. On the page, text
and lines use the page's own colours, so a chart follows it into dark mode.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from ._frames import places

PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#A6761D", "#7570B3"]
SHAPES = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "triangle-right"]
DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3]]
INK, SOFT, LINE = "currentColor", "var(--soft, #57606a)", "var(--line, #d5dae0)"
BLUE, ORANGE = f"var(--blue, {PALETTE[0]})", f"var(--orange, {PALETTE[1]})"
#: The option of a select for everything; no name in a config can be this.
ALL = "*"
#: Width of a chart on a wide page, in pixels, and of a panel next to others or on a narrow page.
WIDE, NARROW = 590, 290
#: Largest height of a condition's row in pixels, however many marks are in it.
TALLEST_ROW = 120
METHODS = {"A": "A: last prompt token", "B": "B: mean over the answer"}
METRICS = {
    "m1": "mean cosine, not centred",
    "m1_centred": "mean cosine, centred",
    "spread": "distance to the mean / its norm",
    "effective_rank": "effective rank",
}
CENTRING = {"m1": "not centred", "m1_centred": "centred"}
TEXT = {
    "labelColor": INK,
    "titleColor": INK,
    "labelFontSize": 12,
    "titleFontSize": 12,
    "titleFontWeight": "normal",
}
CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        **TEXT,
        "labelLimit": 250,
        "labelSeparation": 6,
        "gridColor": LINE,
        "domainColor": SOFT,
        "tickColor": SOFT,
    },
    "axisQuantitative": {"tickCount": 6},
    "legend": {
        **TEXT,
        "orient": "bottom",
        "labelLimit": 330,
        "columns": 4,
        "symbolOpacity": 1,
        "symbolStrokeColor": INK,
    },
    "header": {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "labelLimit": 175},
    "title": {"color": INK, "fontSize": 12, "fontWeight": "normal", "anchor": "start"},
    "text": {"color": INK, "fontSize": 11},
}
#: The axis of a share, and names of conditions on two lines.
PERCENT: dict[str, Any] = {
    "axis": alt.Axis(format="%"),
    "scale": alt.Scale(domain=[0, 1]),
}
TWO_LINES = alt.Axis(labelExpr="split(datum.label, ': ')", labelOffset=-6)


class Choices:
    """A reader's choices: a select on the page; for papers a fixed value, or one value per panel.

    Called with a name and its options, it gives the Vega expression of the chosen value. The initial
    value is the first of `start`, or else of the options. `fixed`: values of a panel for papers; None
    for the page.
    """

    def __init__(self, fixed: Mapping[str, Any] | None = None) -> None:
        self.fixed = fixed
        self.params: list[alt.Parameter] = []
        self.options: dict[str, dict[Any, str]] = {}
        self.said: dict[str, str] = {}

    @property
    def paper(self) -> bool:
        """Whether this is a drawing for papers."""
        return self.fixed is not None

    @property
    def narrow(self) -> str:
        """Vega expression: is the layout narrow?"""
        return "true" if self.paper else "width < 480"

    def __call__(
        self, name: str, options: Iterable[Any], label: str, start: Sequence[Any] = ()
    ) -> str:
        """Offer `options`, or a mapping of values to labels; see the class."""
        spoken = options if isinstance(options, Mapping) else {o: o for o in options}
        words = {getattr(o, "item", lambda o=o: o)(): str(word) for o, word in spoken.items()}
        first = next(iter([*start, *words]))
        self.options[name] = words
        self.said[name] = "" if first == ALL else f"{label} {words[first]}"
        if self.fixed is not None:
            return json.dumps(self.fixed.get(name, first))
        bind = alt.binding_select(
            options=list(words), labels=list(words.values()), name=f"{label} "
        )
        self.params.append(alt.param(name=name, value=first, bind=bind))
        return name

    def all_or(self, name: str, field: str, options: Iterable[Any], label: str) -> str:
        """Filter: all rows (initially), or those with one of the `options` in `field`."""
        spoken = options if isinstance(options, Mapping) else {o: o for o in options}
        chosen = self(name, {ALL: "all", **spoken}, label)
        return f"({chosen} == '{ALL}' || datum.{field} == {chosen})"

    def method(self, rows: pd.DataFrame) -> str:
        """Filter: rows of the chosen method; starts at the headline's."""
        options = {m: METHODS.get(m, m) for m in sorted(rows["method"].unique())}
        chosen = self("method", options, "method", rows.loc[rows["headline"], "method"].tolist())
        return f"datum.method == {chosen}"

    def cell(self, rows: pd.DataFrame) -> str:
        """Filter: rows of the chosen method and block; starts at the headline's."""
        method, blocks = self.method(rows), sorted(rows["layer"].unique())
        chosen = self("layer", blocks, "block", rows.loc[rows["headline"], "layer"].tolist())
        return f"{method} && datum.layer == {chosen}"


def tip(*fields: str) -> list[alt.Tooltip]:
    """Tooltip lines: `field` or `field:title`."""
    parts = [field.partition(":") for field in fields]
    return [
        alt.Tooltip(field=key, title=title or key.strip("_").replace("_", " "))
        for key, _, title in parts
    ]


def letters(names: Iterable[str]) -> dict[str, int]:
    """Length of a legend's longest name, which decides its number of columns."""
    return {"letters": max(map(len, names), default=0)}


def looks(names: Sequence[str], bases: Sequence[str] = ()) -> tuple[Any, Any, Any]:
    """Scales of colour, shape and dash: no two names share all three; `bases` are grey."""
    others = [name for name in names if name not in bases]
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(others)}
    colour = alt.Scale(domain=list(names), range=[colours.get(name, SOFT) for name in names])
    shapes = [SHAPES[i % len(SHAPES)] for i in range(len(names))]
    # An extra name, because Vega-Lite would merge the legends of scales with equal domains.
    dashes = [DASHES[(i + i // len(PALETTE)) % len(DASHES)] for i in range(len(names) + 1)]
    dash = alt.Scale(domain=[*names, ""], range=dashes)
    return colour, alt.Scale(domain=list(names), range=shapes), dash


def crossed(
    base: alt.Chart,
    x: Any,
    y: Any,
    across: tuple[str, str],
    colour: Any,
    shape: Any,
    said: list[alt.Tooltip],
    size: int,
) -> alt.LayerChart:
    """Points with vertical (`low` to `high`) and horizontal (`across`) intervals; open for a single run."""
    # A point without an interval gets one of zero length: Vega warns about a layer without data.
    points = {"low": y, "high": y} | dict.fromkeys(across, x)
    ends = {
        f"_{end}": f"isValid(datum.{end}) ? datum.{end} : datum.{point.shorthand.removesuffix(':Q')}"
        for end, point in points.items()
    }
    lines = base.mark_rule(opacity=0.6).transform_calculate(**ends)
    low, high = (f"_{end}" for end in across)
    return (
        lines.encode(x=x, y=alt.Y("_low:Q", title=None), y2="_high:Q", color=colour)
        + lines.encode(x=f"{low}:Q", x2=f"{high}:Q", y=y, color=colour)
        + base.mark_point(size=size).encode(
            x=x,
            y=y,
            color=colour,
            shape=shape,
            fill=colour.copy(),
            fillOpacity=alt.condition("datum.units > 1", alt.value(1), alt.value(0)),
            tooltip=said,
        )
    )


def beside(base: alt.Chart, x: Any, y: Any) -> alt.Chart:
    """The `name` of each point, to its upper right; without one, nothing."""
    text = base.mark_text(
        align="left", baseline="bottom", dx=6, dy=-3, fontSize=10, color="var(--soft, #57606a)"
    )
    return text.encode(x=x, y=y, text="name:N")


def slots(rows: pd.DataFrame, *keys: str) -> pd.Series:
    """Slots of marks that share their keys, stacked around the middle."""
    groups = rows.groupby(list(keys), sort=False)
    count = groups[keys[0]].transform("size")
    return 2 * groups.cumcount() + count.max() - count


def stacked(rows: pd.DataFrame) -> tuple[Any, Any, int]:
    """Position, offset and height of a drawing with one row per `_row` and marks at their `_slot`."""
    # An explicit domain: a scale that takes its order from the data changes it with every filter.
    y = alt.Y("_row:N", sort=list(dict.fromkeys(rows["_row"])), title=None, axis=TWO_LINES)
    numbers = sorted(int(slot) for slot in rows["_slot"].unique())
    height = min(max(36, 8 * len(numbers) + 6), TALLEST_ROW)
    return y, alt.YOffset("_slot:N", sort=numbers), int(rows["_row"].nunique()) * height


#: Pixels between the outermost points and the frame, if names are next to points.
MARGIN = 20
#: The scale of such a drawing, as `named` assumes it.
TIGHT: dict[str, Any] = {"zero": False, "nice": False, "padding": MARGIN}


def named(
    rows: pd.DataFrame,
    points: pd.DataFrame,
    marks: pd.DataFrame,
    height: int,
    ends: tuple[float, float] | None = None,
) -> pd.DataFrame:
    """`rows` with the positions of their `_persona` names, in a wide and a narrow drawing.

    `points`: position of each row's mark; `marks`: positions of all marks (columns x, y, in data
    values). Scales are `TIGHT`, or the y scale runs between the two `ends`. The drawing is `height`
    pixels high.
    """

    def share(at: pd.DataFrame, width: int) -> pd.DataFrame:
        low, span = marks.min(), (marks.max() - marks.min()).replace(0, 1)
        edge = pd.Series({"x": MARGIN / width, "y": MARGIN / height})
        if ends is not None:
            low["y"], span["y"], edge["y"] = ends[0], ends[1] - ends[0], 0
        at = edge + (1 - 2 * edge) * (at - low) / span
        return at.assign(y=1 - at["y"])

    placed: dict[str, pd.Series] = {}
    for size, width in (("wide", WIDE), ("narrow", NARROW)):
        at = share(points, width)
        found = places(rows["_persona"], at["x"], at["y"], width, height, share(marks, width))
        placed |= {f"_{size}": found["lift"], f"_{size}_x": found["shift"].round(1)}
    return rows.assign(**placed)


def names(base: alt.Chart, x: Any, y: Any, narrow: str) -> alt.LayerChart:
    """Names of points at the positions from `named`, with a line to the point if it is far away."""
    lift = f"({narrow} ? datum._narrow : datum._wide)"
    reach = f"abs({lift}) < 14 ? 0 : {lift} + ({lift} > 0 ? -6 : 6)"
    joined = base.mark_rule(color=SOFT, strokeWidth=0.7, y2Offset={"expr": reach})
    at: dict[str, Any] = {
        "dy": {"expr": lift},
        "dx": {"expr": f"{narrow} ? datum._narrow_x : datum._wide_x"},
    }
    spoken = base.encode(x=x, y=y, text="_persona:N")
    # On the background colour, because another name's line may pass behind.
    return (
        joined.encode(x=x, y=y, y2=y.shorthand.partition(":")[0])
        + spoken.mark_text(stroke="var(--paper, #ffffff)", strokeWidth=3, aria=False, **at)
        + spoken.mark_text(**at)
    )
