"""Renders a figure's rows and drawing: the page's chart, and the files for papers."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from ...files import atomic
from ...tables_io import write_csv
from . import Figure
from ._style import CONFIG, NARROW, Choices

#: Width of a drawing for papers, in pixels (96 per inch): both columns of a page.
PAPER_WIDTH = 640
#: Dots per inch of the PNG at that width.
PAPER_DOTS = 200
#: vl-convert ships a font with the same widths, so that figures are identical on every machine.
PAPER_FONT = "Helvetica, Arial, sans-serif"


def _named(rows: Any) -> Any:
    """Altair's data transformer: data is referenced by name, not embedded in the specification."""
    return {"name": "table"}


alt.data_transformers.register("table", _named)


@dataclass(frozen=True)
class Chart:
    """A chart of the page: a figure's text, its specification without data, and its table."""

    name: str
    title: str
    reading: str
    spec: Mapping[str, Any]
    table: pd.DataFrame
    sources: tuple[str, ...] = ()

    @property
    def columns(self) -> dict[str, list[Any]]:
        """The table by column for JSON: numbers with six digits, None for missing values."""
        return {
            str(name): [
                None if pd.isna(v) else float(f"{v:.6g}") if isinstance(v, float) else v
                for v in column.tolist()
            ]
            for name, column in self.table.items()
        }

    @property
    def packed(self) -> dict[str, Any]:
        """The columns as embedded in the page: repeated strings once in `names`, and their indices in
        `at`."""
        packed: dict[str, Any] = {}
        for name, values in self.columns.items():
            short = not any(isinstance(v, str | bool) for v in values)
            names = values if short else dict.fromkeys(values)
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
        fixed: dict[str, Any] = {"datasets": {"table": rows}}
        if self.spec.get("width") == "container":
            fixed["width"] = PAPER_WIDTH
        # The reader's font may be wider than the measured one.
        place = 7 * self.spec.get("usermeta", {}).get("letters", 30) + 30
        legend = {**self.spec["config"]["legend"], "columns": max(1, min(4, PAPER_WIDTH // place))}
        fixed["config"] = {**self.spec["config"], "legend": legend}
        return {"padding": {"left": 28}, **self.spec, **fixed}

    def svg(self) -> str:
        """The chart with the initial state of its selects, as SVG."""
        import vl_convert

        return quiet(vl_convert.vegalite_to_svg(self.with_data()))


def quiet(svg: str) -> str:
    """An SVG without Vega's ARIA label of every mark, which is half of the file and is never read out.

    Its ids are renumbered from 0, because Vega continues counting from one drawing to the next.
    """
    svg = re.sub(r' (?:role|aria-[a-z]+)="[^"]*"', "", svg)
    for number, name in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]+)"', svg))):
        svg = re.sub(rf'(\bid="|href="#|url\(#){re.escape(name)}(?=["\)])', rf"\g<1>i{number}", svg)
    return svg


@cache
def javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed (BSD-3-Clause) as one script; sets window.vegaEmbed."""
    import vl_convert

    return f"(()=>{{{vl_convert.javascript_bundle('window.vegaEmbed = vegaEmbed;')}}})();"


def data(figure: Figure, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The figure's numbers, from the run's tables by name; no rows if the run has none."""
    rows: pd.DataFrame = figure.module.data(*(tables[name] for name in figure.tables))
    return rows.reset_index(drop=True)


def some_chains(rows: pd.DataFrame, most: int) -> tuple[pd.DataFrame, str]:
    """The rows of as many chains (or else conditions) as fit into `most` rows, and a note on the
    others.

    Chains are kept whole: first the first chain (seed) of each condition, source and stage, then the
    second of each, and so on.
    """
    unit = next((name for name in ("chain", "condition") if name in rows), None)
    if len(rows) <= most or unit is None:
        return rows, ""
    groups = [n for n in ("condition", "source", "stage") if n in rows and n != unit]
    order = rows.drop_duplicates([*groups, unit])
    if groups:
        turn = order.groupby(groups, sort=False).cumcount()
        order = order.loc[turn.sort_values(kind="stable").index]
    names = list(dict.fromkeys(order[unit]))
    held = rows.groupby(unit)[unit].size().loc[names].cumsum()
    shown = names[: max(1, int((held <= most).sum()))]
    note = f" Shown are {len(shown)} of {len(names)} {unit}s; the file has all."
    return rows[rows[unit].isin(shown)].reset_index(drop=True), note


def page(figure: Figure, rows: pd.DataFrame, **options: Any) -> Chart | None:
    """The figure as a chart of the page; None if the run has no such data.

    `options` go to the figure's `draw`.
    """
    if rows.empty:
        return None
    rows, left_out = some_chains(rows, figure.most_rows)
    choices = Choices()
    chart = figure.module.draw(rows, choices, **options)
    reading = figure.reading + left_out
    faceted = isinstance(chart, alt.FacetChart)
    if not faceted:
        chart = chart.properties(width="container")
    spec = _spec(chart.add_params(*choices.params)) | {"config": CONFIG}
    spec["description"] = f"{figure.title}. {reading}"
    if not faceted:
        # Over every choice: axes may need wider labels, legends more rows.
        spec["autosize"] = {"type": "fit-x", "contains": "padding", "resize": True}
    return Chart(figure.name, figure.title, reading, spec, _frame(chart.data), figure.tables)


def _frame(rows: Any) -> pd.DataFrame:
    if not isinstance(rows, pd.DataFrame):
        raise TypeError("a figure's layers are all drawn from the same rows")
    return rows


def _spec(chart: Any) -> dict[str, Any]:
    """A chart's specification; its data is referenced by name."""
    with alt.data_transformers.enable("table"):
        spec: dict[str, Any] = chart.to_dict()
    return spec


def paper(figure: Figure, rows: pd.DataFrame) -> dict[str, Any]:
    """The figure for papers, as a specification with data: every select in its initial state or as panels."""
    choices = Choices({name: f"<{name}>" for name in figure.panels})
    chart = figure.module.draw(rows, choices)
    if not isinstance(chart, alt.FacetChart):
        chart = chart.properties(width=NARROW if figure.panels else PAPER_WIDTH - 170)
    spec = _spec(chart)
    outer = {key: spec.pop(key) for key in ("$schema", "config", "usermeta") if key in spec}
    if figure.panels:
        panels = [_panel(spec, choices, fixed) for fixed in _each(choices, figure.panels)]
        gaps = {"row": 85, "column": max(65, 7 * outer.get("usermeta", {}).get("beside", 0) + 20)}
        spec = {"concat": panels, "columns": 2, "bounds": "flush", "spacing": gaps}
    said = "; ".join(s for n, s in choices.said.items() if s and n not in figure.panels)
    spec |= outer | {"config": {**CONFIG, "font": PAPER_FONT, "background": "white"}}
    spec |= {"title": {"text": said, "offset": 12}} if said else {}
    whole = Chart(figure.name, figure.title, figure.reading, spec, _frame(chart.data))
    return dict(json.loads(plain(json.dumps(whole.with_data() | {"padding": 5}))))


def paper_svg(spec: Mapping[str, Any]) -> str:
    """A specification of `paper` as SVG."""
    import vl_convert

    return quiet(vl_convert.vegalite_to_svg(dict(spec)))


def _each(choices: Choices, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Every combination of the options of some choices."""
    for values in itertools.product(*(choices.options[name] for name in names)):
        yield dict(zip(names, values, strict=True))


def _panel(spec: Mapping[str, Any], choices: Choices, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """A panel: the drawing with these values instead of the chosen ones."""
    text = json.dumps(spec)
    for name, value in fixed.items():  # quoted, inside an expression that is a string itself
        place, own = (json.dumps(json.dumps(v))[1:-1] for v in (f"<{name}>", value))
        text = text.replace(place, own)
    named = [choices.options[name][value] for name, value in fixed.items()]
    return {**json.loads(text), "title": {"text": named, "frame": "group"}}


def plain(text: str) -> str:
    """Replace the page's colour variables by fixed colours for a file."""
    return re.sub(r"var\(--\w+, (#\w+)\)", r"\1", text).replace("currentColor", "#1b1f24")


def save(figure: Figure, rows: pd.DataFrame, stem: str | Path) -> None:
    """Write <stem>.svg (text as text), <stem>.png and <stem>.csv; the same numbers give the same bytes."""
    import vl_convert

    if rows.empty:
        shown = alt.Chart(pd.DataFrame([{"said": figure.empty}])).mark_text(fontSize=13)
        spec = shown.encode(text="said:N").properties(width=PAPER_WIDTH, height=120).to_dict()
        spec["config"] = {"font": PAPER_FONT, "view": {"stroke": None}}
    else:
        spec = paper(figure, rows)
    with atomic(f"{stem}.svg") as temporary:
        Path(temporary).write_text(paper_svg(spec), encoding="utf-8")
    with atomic(f"{stem}.png") as temporary:
        scale = PAPER_DOTS / 96
        Path(temporary).write_bytes(vl_convert.vegalite_to_png(spec, scale=scale))
    write_csv(f"{stem}.csv", rows)
