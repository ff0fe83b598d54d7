"""The report: one self-contained HTML page that needs no network.

Every number comes from a table or manifest that a rule wrote. Model output is untrusted: the template
escapes it, and scripts get it as JSON and show it as text. The page's content security policy allows
only its own two scripts, by hash, and no requests. Without scripts, every chart is shown in its initial
state.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from .. import yaml_files
from ..analysis.verdicts import VERDICTS
from ..analysis.views import headline_cell
from . import findings
from .answers import answers_json, printable
from .figures import SECTIONS, catalogue
from .figures._render import Chart, javascript
from .figures._render import data as data_of
from .figures._render import page as chart_of
from .provenance import origin, short_commit

#: The tables that the page shows or describes; it also lists those of the claims and the figures.
TABLES = (
    "answer_stats", "contrasts", "correlations", "design", "errata", "frontier", "geometry", "geometry_runs",
    "half_dose", "headline", "hypotheses", "leakage", "leave_one_out", "leave_one_out_rates",
    "logprob_tests", "marker_rates", "marker_tests", "matched", "power", "prompt_audit", "rate_model",
    "registered_claims", "scorecard", "separability", "shared_axis", "simulation", "training",
    "updates", "variance_components", "variance_components_m1", "why",
)  # fmt: skip
RESOURCES = Path(__file__).resolve().parents[3] / "resources" / "report"
#: Largest number of answers shown without scripts.
PLAIN_ANSWERS = 300
#: Largest number of rows of a folded table on the page; the table's file has all.
MOST_ROWS = 200
#: Rows of a folded table in print; the page and the table's file have more.
MOST_ON_PAPER = 40
#: Bytes of paper figures embedded in the page; the other figures are in the folder next to it.
PAPER_BYTES = 600_000


@dataclass(frozen=True)
class Inputs:
    """The content of the page; `tables` by file name, as the rules wrote them.

    `model`: its label, and a `note` that a reader must know first, if any. `figures`: the file of each
    figure for papers. `samples`: answers to show (chain, persona, question, hit, text), out of
    `completions`. `commands`: commands that repeat and extend the run. `sources`: file, rule, rows and
    hash of every table. `costs`: one row per rule; see `costs`. `counted`: measures of answers other
    than the marker, and the question that each answers.
    """

    run: str
    judge: str
    marker: str
    model: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]
    data: Sequence[Mapping[str, Any]]
    figures: Mapping[str, Path]
    samples: pd.DataFrame
    completions: int
    margins: Mapping[str, float]
    config: str
    commands: Mapping[str, str]
    provenance: Mapping[str, str]
    sources: pd.DataFrame
    costs: pd.DataFrame
    spent: Mapping[str, str]
    counted: Mapping[str, str]


def number(value: Any) -> str:
    """A number for a table: integers in full, others with three significant digits, NaN as a dash."""
    if value is None or (isinstance(value, float) and pd.isna(value)) or value is pd.NA:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        whole = value.is_integer() or abs(value) >= 1e3
        return f"{value:.0f}" if whole and abs(value) < 1e6 else f"{value:.3g}"
    return str(value)


def interval(row: Mapping[str, Any], fields: Sequence[str]) -> str:
    """A value with its interval for a table; only the value if it has no interval."""
    value, low, high = (row[field] for field in fields)
    if pd.isna(low) or pd.isna(high):
        return number(value)
    return f"{number(value)} ({number(low)} to {number(high)})"


def environment() -> Environment:
    """Jinja environment of the pages: everything is escaped, and a missing name is an error."""
    made = Environment(
        loader=FileSystemLoader(RESOURCES),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(number=number, interval=interval, printable=printable, origin=origin)
    made.globals.update(most_rows=MOST_ROWS, most_on_paper=MOST_ON_PAPER)
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return made


def glossary() -> dict[str, str]:
    """Definitions of the page's terms, in the order of its sections."""
    words: dict[str, str] = yaml_files.load_mapping(RESOURCES / "glossary.yaml")
    return words


def page_parts() -> dict[str, Any]:
    """Style, scripts and the content security policy that allows only these scripts."""
    scripts = [javascript(), (RESOURCES / "report.js").read_text(encoding="utf-8")]
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return {
        "style": Markup((RESOURCES / "style.css").read_text(encoding="utf-8")),
        "scripts": [Markup(script) for script in scripts],
        "policy": Markup(
            f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
            "img-src data:; base-uri 'none'; form-action 'none'"
        ),
    }


def _inline_svg(svg: str, name: str, title: str) -> Markup:
    """An SVG as markup for the page: without prologue, with unique ids, sized by the page, and with a
    label.

    Vega numbers its ids from 0 in every file, and two inline figures must not share ids. A screen
    reader sees a single image.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{name}-", svg)
    head = re.match(r"<svg[^>]*>", svg)
    assert head is not None
    # Keep only the viewBox: width and height follow the page.
    tag = re.sub(r'\s(width|height)="[^"]*"', "", head.group())
    label = str(Markup.escape(title))
    return Markup(tag[:-1] + f' role="img" aria-label="{label}">' + svg[head.end() :])


def held(figures: Mapping[str, Path]) -> set[str]:
    """Names of the paper figures embedded in the page: the smallest ones that fit into PAPER_BYTES."""
    found, left = set(), PAPER_BYTES
    for name in sorted(figures, key=lambda name: figures[name].stat().st_size):
        left -= figures[name].stat().st_size
        if left < 0:
            break
        found.add(name)
    return found


def drawn(chart: Chart, paper: str = "") -> dict[str, Any]:
    """A chart for the template: text, data for the script, and an SVG for readers without scripts.

    `paper`: link to the figure's file for papers.
    """
    return {
        "name": chart.name,
        "title": chart.title,
        "reading": chart.reading,
        "sources": chart.sources,
        "data": {"spec": chart.spec, "columns": chart.packed},
        "markup": _inline_svg(chart.svg(), chart.name, chart.title),
        "paper": paper,
    }


def by_section(
    tables: Mapping[str, pd.DataFrame], files: Mapping[str, Path]
) -> dict[str, list[dict[str, Any]]]:
    """Every figure that the tables have data for, for the template, by section of the page.

    `files`: each figure for papers; embedded in the page, or else in the folder next to it.
    """
    inside = held(files)
    found: dict[str, list[dict[str, Any]]] = {section: [] for section in SECTIONS}
    for name, figure in catalogue().items():
        if not set(figure.tables) <= set(tables):
            continue  # of a measure that this run does not take
        chart = chart_of(figure, data_of(figure, tables))
        if chart is not None:
            address = f"figures/{name}.svg" if name in files else ""
            if name in inside:
                coded = base64.b64encode(files[name].read_bytes()).decode()
                address = f"data:image/svg+xml;base64,{coded}"
            found[figure.section].append(drawn(chart, address))
    return found


def render(given: Inputs) -> str:
    """The whole page as HTML."""
    tables = given.tables
    scorecard = findings.worded(tables["scorecard"])
    own = scorecard["where"]
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            given=given,
            figures=by_section(tables, given.figures),
            findings=findings.findings(tables),
            in_numbers=findings.in_numbers(tables),
            glossary=glossary(),
            tables=tables,
            scorecard=scorecard,
            decided=findings.decided(scorecard),
            undecided=findings.undecided(scorecard),
            takeaways=findings.takeaways(scorecard),
            registration=findings.registration(scorecard, tables["registered_claims"]),
            simulated=findings.simulated(tables["simulation"]),
            verdicts=VERDICTS,
            claim_groups={
                w: findings.CLAIM_GROUPS.get(w, w) for w in [*findings.CLAIM_GROUPS, *own]
            },
            answers=answers_json(given.samples),
            first_answers=given.samples.drop_duplicates(["chain", "persona"]).head(PLAIN_ANSWERS),
            side_by_side=findings.tests_side_by_side(tables["marker_tests"]),
            geometry=findings.geometry_side_by_side(tables),
            contrasts=findings.headline(tables["contrasts"]),
            second_opinion=findings.second_opinion(tables["logprob_tests"]),
            over_runs=findings.over_runs(tables["geometry_runs"]),
            equivalence=findings.equivalence(tables["geometry_runs"]),
            left_out=findings.left_out(tables["leave_one_out"]),
            components=findings.components(tables["variance_components"]),
            left_out_rates=findings.left_out(tables["leave_one_out_rates"]),
            matched=findings.matched(tables["matched"]),
            half_doses=findings.half_doses(tables["half_dose"]),
            update_sizes=findings.update_sizes(tables["updates"]),
            update_overlaps=findings.update_overlaps(tables["updates"]),
            counted={
                name: findings.counted(tables[name], tables["design"]) for name in given.counted
            },
            unrelated=findings.unrelated(tables["geometry"]),
            causes=findings.causes(tables),
            models=data_of(catalogue()["base_models"], tables),
            substituted=[d for d in given.data if d.get("substituted")],
            seeds=sorted({s for s in tables["design"]["seed"] if s}, key=int),
            personas=list(dict.fromkeys(tables["marker_rates"]["persona"])),
            told_apart=findings.told_apart(tables["separability"]),
            adapters=tables["training"].assign(
                commit=tables["training"]["commit"].fillna("").astype(str).map(short_commit)
            ),
            **headline_cell(tables["headline"]),
            **page_parts(),
        )
    )
