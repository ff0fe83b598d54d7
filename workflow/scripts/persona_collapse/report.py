"""The report: one HTML page that holds everything it shows and needs no network.

Every number comes from a table or manifest that a rule wrote; the sentences are computed from them
and hold whichever way the numbers fall. Model output is hostile text: the template escapes all.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

RESOURCES = Path(__file__).resolve().parents[2] / "resources" / "report"
LONGEST_ANSWER = 600


@dataclass(frozen=True)
class Figure:
    """A figure of the page: files written by the figure rule, and how to read it."""

    name: str
    title: str
    reading: str
    svg: Path
    csv: Path


@dataclass(frozen=True)
class Inputs:
    """What the page is made of; tables as the rules wrote them."""

    run: str
    scale: str
    marker: str
    model: Mapping[str, Any]
    grid: pd.DataFrame
    rates: pd.DataFrame
    tests: pd.DataFrame
    leakage: pd.DataFrame
    geometry: pd.DataFrame
    scorecard: pd.DataFrame
    training: pd.DataFrame
    audit: pd.DataFrame
    data: Sequence[Mapping[str, Any]]
    figures: Sequence[Figure]
    samples: pd.DataFrame
    completions: int
    method: str
    layer: int
    config: str
    provenance: Mapping[str, str]


def percent(value: float) -> str:
    """A share as a percentage with as many digits as make sense."""
    return (
        "n/a"
        if pd.isna(value)
        else f"{100 * value:.0f} %"
        if value in (0, 1)
        else f"{100 * value:.1f} %"
    )


def number(value: Any) -> str:
    """A number for a table: integers whole, others to four significant digits, NaN as a dash."""
    if value is None or (isinstance(value, float) and pd.isna(value)) or value is pd.NA:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.4g}"
    return str(value)


def printable(text: str) -> str:
    """An answer as it can be shown: control characters named, long ones cut with a note."""
    shown = re.sub(r"[^\S\n]|[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]",
                   lambda m: " " if m.group().isspace() else f"<U+{ord(m.group()):04X}>", text)  # fmt: skip
    if len(shown) > LONGEST_ANSWER:
        return f"{shown[:LONGEST_ANSWER]} [... {len(shown) - LONGEST_ANSWER} more characters]"
    return shown


def origin(source: Mapping[str, Any]) -> str:
    """A data manifest's source in a few words, hashes and commits cut to their first digits."""
    short = re.compile(r"(sha256|revision)$")
    flat = {k: v for k, v in source.items() if not isinstance(v, Mapping)}
    return ", ".join(f"{k}: {str(v)[:12] if short.search(k) else v}" for k, v in flat.items())


def findings(given: Inputs) -> list[str]:
    """Sentences about the two arms, computed from the tables."""
    sentences = []
    source = given.rates[given.rates["role"] == "source"]
    by_condition = source.groupby("condition")[["hits", "n"]].sum()
    share = by_condition["hits"] / by_condition["n"]
    for cell in given.grid.drop_duplicates("condition").itertuples(index=False):
        if cell.kind != "couple_then_sft" or cell.condition not in share:
            continue
        before = given.rates[
            (given.rates["model"] == cell.before) & (given.rates["persona"] == cell.source)
        ]
        if before.empty:
            continue
        was = before["hits"].iloc[0] / before["n"].iloc[0]
        sentences.append(
            f"{cell.condition} ({cell.title}): the source said the marker in {percent(was)} of its answers "
            f"before the second fine-tuning and in {percent(share[cell.condition])} after it "
            f"(n = {by_condition.loc[cell.condition, 'n']})."
        )
    means = _headline(given, ["m1"]).groupby("condition", sort=False)["value"].mean()
    if "base" in means and len(means) > 1:
        parts = ", ".join(f"{c} {v:.3f}" for c, v in means.items() if c != "base")
        sentences.append(
            f"Mean cosine between persona vectors (method {given.method}, block {given.layer}): base "
            f"{means['base']:.3f}; {parts}."
        )
    verdicts = given.scorecard["verdict"].value_counts()
    sentences.append(
        "Of the study's claims, "
        + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
        + "."
    )
    return sentences


def _headline(given: Inputs, metrics: Sequence[str]) -> pd.DataFrame:
    """Rows of geometry.csv at the headline method and block."""
    g = given.geometry
    return g[
        (g["method"] == given.method) & (g["layer"] == given.layer) & g["metric"].isin(metrics)
    ]


def _data_uri(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _inline_svg(path: Path, name: str, title: str) -> Markup:
    """An SVG as markup for the page: no prologue, ids made unique, sized by the page, named.

    Matplotlib reuses ids such as `p1a2b` in every file; two inline figures must not share them. An
    image's id is the hash of its pixels, which equal panels share, and nothing refers to it.
    """
    svg = path.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r' id="image\w+"', "", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{name}-", svg)
    head = re.match(r"<svg[^>]*>", svg)
    assert head is not None
    # Keep the viewBox alone: width and height follow the page.
    tag = re.sub(r'\s(width|height)="[^"]*"', "", head.group())
    label = str(Markup.escape(title))
    return Markup(tag[:-1] + f' role="img" aria-label="{label}">' + svg[head.end() :])


def render(given: Inputs) -> str:
    """The whole page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(RESOURCES),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {"number": number, "printable": printable, "origin": origin}
    environment.filters.update(filters)
    figures = [
        {
            "name": f.name,
            "title": f.title,
            "reading": f.reading,
            "markup": _inline_svg(f.svg, f.name, f.title),
            "svg": _data_uri(f.svg, "image/svg+xml"),
            "csv": _data_uri(f.csv, "text/csv"),
        }
        for f in given.figures
    ]
    return environment.get_template("report.html.j2").render(
        given=given,
        figures={f["name"]: f for f in figures},
        findings=findings(given),
        headline=_headline(given, ["m1", "m1_by_persona"]),
        style=Markup((RESOURCES / "style.css").read_text(encoding="utf-8")),
        substituted=[d for d in given.data if d.get("substituted")],
        seeds=sorted({s for s in given.grid["seed"] if s}, key=int),
        personas=list(dict.fromkeys(given.rates["persona"])),
        trained=list(given.training["chain"]),
    )


def model_label(base: Mapping[str, Any]) -> str:
    """The base model in a few words, from its model.json."""
    source = base["source"]
    if "hub" in source:
        return f"{source['hub']['id']} at {source['hub']['revision'][:10]}"
    if "demo" in source:
        size = source["demo"]
        return (
            f"demo model, {size['blocks']} blocks of {size['hidden']}, pretrained by this workflow"
        )
    if "gguf" in source:
        return f"from the package {source['gguf']['package']} (quantised weights, expanded)"
    return Path(source["path"]).name


def provenance(training: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, str]:
    """Versions, hashes and device, from a training manifest and the base model's record."""
    weights = next(h for name, h in base["files"].items() if name.endswith(".safetensors"))
    return {
        "base weights, SHA-256": weights[:16],
        "chat template, SHA-256": training["template_sha256"][:16],
        "device": f"{training['device']}, {training['dtype']}",
        **training["versions"],
    }
