"""The report: one HTML page that holds everything it shows and needs no network.

Every number comes from a table or manifest that a rule wrote. Model output is hostile text: the template
escapes all, and scripts are given it as JSON and show it as text. The page's policy lets its own two
scripts run, by their hashes, and nothing be fetched. Without scripts every chart is there as it first
stands.
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

#: The tables that the page shows or words; it names those of the claims and the figures too.
TABLES = (
    "answer_stats", "contrasts", "correlations", "design", "errata", "frontier", "geometry", "geometry_runs",
    "half_dose", "headline", "hypotheses", "leakage", "leave_one_out", "leave_one_out_rates",
    "logprob_tests", "marker_rates", "marker_tests", "matched", "power", "prompt_audit", "rate_model",
    "registered_claims", "scorecard", "separability", "shared_axis", "simulation", "training",
    "updates", "variance_components", "variance_components_m1", "why",
)  # fmt: skip
RESOURCES = Path(__file__).resolve().parents[3] / "resources" / "report"
#: Answers that a reader without scripts sees at most.
PLAIN_ANSWERS = 300
#: Rows of a folded table that the page holds at most; the table's file has all.
MOST_ROWS = 200
#: Rows of a folded table that is printed; the page and the table's file have more.
MOST_ON_PAPER = 40
#: Bytes of the figures for papers that the page holds; the others are in the folder beside it.
PAPER_BYTES = 600_000


@dataclass(frozen=True)
class Inputs:
    """What the page is made of; `tables` by file name, as the rules wrote them.

    `model`: its label, and as `note` what a reader must know of it first, if anything. `figures`: the file
    of each figure for papers. `samples`: answers to show (chain, persona, question, hit, text), out of
    `completions`. `commands`: what repeats the run and what extends it. `sources`: file, rule, rows and hash
    of every table. `costs`: one row per rule; see `costs`. `counted`: measures of answers but for the
    marker, and what each asks.
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
    """A number for a table: integers whole, others to three significant digits, NaN as a dash."""
    if value is None or (isinstance(value, float) and pd.isna(value)) or value is pd.NA:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        whole = value.is_integer() or abs(value) >= 1e3
        return f"{value:.0f}" if whole and abs(value) < 1e6 else f"{value:.3g}"
    return str(value)


def interval(row: Mapping[str, Any], fields: Sequence[str]) -> str:
    """A value with its interval for a table: the value alone where it has none."""
    value, low, high = (row[field] for field in fields)
    if pd.isna(low) or pd.isna(high):
        return number(value)
    return f"{number(value)} ({number(low)} to {number(high)})"


def environment() -> Environment:
    """Jinja as the pages need it: everything escaped, a missing name an error."""
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
    """What the page's words mean, in the order of its sections."""
    words: dict[str, str] = yaml_files.load_mapping(RESOURCES / "glossary.yaml")
    return words


def page_parts() -> dict[str, Any]:
    """Style, scripts and the policy that lets these scripts run and nothing else."""
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
    """An SVG as markup for the page: no prologue, ids made unique, sized by the page, named.

    Vega numbers its ids from 0 in every file; two inline figures must not share them. To a screen reader
    the whole is one image.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{name}-", svg)
    head = re.match(r"<svg[^>]*>", svg)
    assert head is not None
    # Keep the viewBox alone: width and height follow the page.
    tag = re.sub(r'\s(width|height)="[^"]*"', "", head.group())
    label = str(Markup.escape(title))
    return Markup(tag[:-1] + f' role="img" aria-label="{label}">' + svg[head.end() :])


def held(figures: Mapping[str, Path]) -> set[str]:
    """Names of the figures for papers that the page holds: the smallest, as many as PAPER_BYTES."""
    found, left = set(), PAPER_BYTES
    for name in sorted(figures, key=lambda name: figures[name].stat().st_size):
        left -= figures[name].stat().st_size
        if left < 0:
            break
        found.add(name)
    return found


def drawn(chart: Chart, paper: str = "") -> dict[str, Any]:
    """A chart for the template: text, data for the script, and how it looks without the script.

    `paper`: address of the figure as a file for papers.
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
    """Every figure that the tables allow, for the template, by section of the page.

    `files`: each figure for papers; offered inside the page, or else in the folder beside it.
    """
    inside = held(files)
    found: dict[str, list[dict[str, Any]]] = {section: [] for section in SECTIONS}
    for name, figure in catalogue().items():
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
            adapters=tables["training"].assign(
                commit=tables["training"]["commit"].fillna("").astype(str).map(short_commit)
            ),
            **headline_cell(tables["headline"]),
            **page_parts(),
        )
    )
