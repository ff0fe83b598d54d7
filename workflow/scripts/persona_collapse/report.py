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
#: Headings of the scorecard, by the `where` of claims.yaml, in reading order.
CLAIM_GROUPS = {
    "takeaway 1": "Any fine-tuning destroys the marker",
    "takeaway 2": "Any fine-tuning raises the cosines",
    "takeaway 3": "The one explains the other",
    "takeaway 4": "The induction persona does not matter",
    "takeaway 5": "Leakage has a gradient",
    "table": "Figures of the headline tables",
    "caveat": "Caveats that the study names",
    "later": "What the same project found later",
}


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
    """What the page is made of; `tables` by file name, as the rules wrote them."""

    run: str
    scale: str
    marker: str
    model: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]
    data: Sequence[Mapping[str, Any]]
    figures: Sequence[Figure]
    samples: pd.DataFrame
    completions: int
    method: str
    layer: int
    margins: Mapping[str, float]
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
    shown = re.sub(r"[^\S\n]|[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff"
                  r"\U000e0000-\U000e007f]",
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
    rates, grid = given.tables["marker_rates"], given.tables["grid"]
    source = rates[rates["role"] == "source"]
    by_condition = source.groupby("condition")[["hits", "n"]].sum()
    share = by_condition["hits"] / by_condition["n"]
    for cell in grid.drop_duplicates("condition").itertuples(index=False):
        if cell.kind != "couple_then_sft" or cell.condition not in share:
            continue
        before = rates[(rates["model"] == cell.before) & (rates["persona"] == cell.source)]
        if before.empty:
            continue
        was = before["hits"].iloc[0] / before["n"].iloc[0]
        sentences.append(
            f"{cell.condition} ({cell.title}): the source said the marker in {percent(was)} of its answers "
            f"before the second fine-tuning and in {percent(share[cell.condition])} after it "
            f"(n = {by_condition.loc[cell.condition, 'n']})."
        )
    own = _headline(given.tables["geometry"], given)
    means = own[own["metric"] == "m1"].groupby("condition", sort=False)["value"].mean()
    if "base" in means and len(means) > 1:
        parts = ", ".join(f"{c} {v:.3f}" for c, v in means.items() if c != "base")
        sentences.append(
            f"Mean cosine between persona vectors (method {given.method}, block {given.layer}): base "
            f"{means['base']:.3f}; {parts}."
        )
    verdicts = given.tables["scorecard"]["verdict"].value_counts()
    sentences.append(
        f"Of the study's {verdicts.sum()} claims, "
        + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
        + "."
    )
    loud = given.tables["simulation"]
    loud = loud[(loud["kind"] == "test") & loud["as_study"] & (loud["verdict"] == "too many")]
    if len(loud):
        worst = loud.loc[loud["rate"].idxmax()]
        sentences.append(
            f"Where nothing happens, {loud['name'].nunique()} of the study's tests reject more often than "
            f"their 5 %; at worst {percent(worst['rate'])} ({worst['name']}, {worst['world']})."
        )
    return sentences


def tests_side_by_side(tests: pd.DataFrame) -> pd.DataFrame:
    """One row a comparison of pooled chains: the difference, and every test's p beside the others'."""
    if tests.empty:
        return pd.DataFrame()
    key = ["condition", "reference", "source"]
    pooled = tests[
        (tests["seed"] == "") | ~tests.duplicated([*key, "test"], keep=False)
    ].drop_duplicates([*key, "test"])
    wide = pooled.set_index([*key, "test"])
    shown: dict[str, tuple[str, str]] = {
        "difference": ("questions", "estimate"),
        "low": ("questions", "ci_low"),
        "high": ("questions", "ci_high"),
        "p_fisher": ("fisher", "p"),
        "p_questions": ("questions", "p"),
        "p_min": ("questions", "p_min"),
        "p_gee": ("gee", "p"),
        "p_gee_length": ("gee_length", "p"),
        "p_seeds": ("seeds", "p"),
        "p_equivalent": ("questions", "p_equivalent"),
        "nats": ("logprob", "estimate"),
        "p_nats": ("logprob", "p"),
    }
    rows = []
    for values in pooled[key].drop_duplicates().itertuples(index=False):
        row = dict(zip(key, values, strict=True))
        for name, (test, column) in shown.items():
            at = (*values, test)
            row[name] = wide.loc[at, column] if at in wide.index else float("nan")
        rows.append(row)
    return pd.DataFrame(rows)


def geometry_side_by_side(given: Inputs) -> pd.DataFrame:
    """One row a chain at the headline method and block: M1 and what each choice makes of it."""
    own = _headline(given.tables["geometry"], given)
    own = own[own["model"] != ""]
    wide = own.set_index(["condition", "model", "metric"])
    axis = _headline(given.tables["axis"], given).set_index(["condition", "model", "metric"])
    classes = _headline(given.tables["separability"], given)
    classes = classes.set_index(["condition", "model", "metric"])
    shown = {
        "m1": (wide, "m1", "value"),
        "change": (wide, "m1", "delta_base"),
        "q_low": (wide, "m1", "delta_low"),
        "q_high": (wide, "m1", "delta_high"),
        "both_low": (wide, "m1_two_way", "delta_low"),
        "both_high": (wide, "m1_two_way", "delta_high"),
        "p_pairs": (wide, "m1", "p"),
        "p_personas": (wide, "m1_by_persona", "p"),
        "p_swap": (wide, "m1_label_swap", "p"),
        "p_min": (wide, "m1_label_swap", "p_min"),
        "without_longest": (wide, "m1_without_longest", "delta_base"),
        "centred": (wide, "m1_centred", "value"),
        "rank": (wide, "effective_rank", "value"),
        "spread": (wide, "spread", "value"),
        "cka": (wide, "cka_base", "value"),
        "split_half": (wide, "m1_split_half", "value"),
        "p_axis": (axis, "m2_anchored", "p"),
        "axis": (axis, "m2_held_out", "value"),
        "accuracy": (classes, "m3_accuracy", "value"),
    }
    rows = []
    for condition, model in own[["condition", "model"]].drop_duplicates().itertuples(index=False):
        row = {"condition": condition, "model": model}
        for name, (table, metric, column) in shown.items():
            at = (condition, model, metric)
            row[name] = table.loc[at, column] if at in table.index else float("nan")
        rows.append(row)
    return pd.DataFrame(rows)


def _headline(table: pd.DataFrame, given: Inputs) -> pd.DataFrame:
    """Rows of a table at the headline method and block."""
    return table[(table["method"] == given.method) & (table["layer"] == given.layer)]


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
        tables=given.tables,
        claim_groups=CLAIM_GROUPS,
        side_by_side=tests_side_by_side(given.tables["marker_tests"]),
        geometry=geometry_side_by_side(given),
        contrasts=_headline(given.tables["contrasts"], given),
        over_seeds=_headline(given.tables["geometry"], given).query("metric == 'm1_over_seeds'"),
        style=Markup((RESOURCES / "style.css").read_text(encoding="utf-8")),
        substituted=[d for d in given.data if d.get("substituted")],
        seeds=sorted({s for s in given.tables["grid"]["seed"] if s}, key=int),
        personas=list(dict.fromkeys(given.tables["marker_rates"]["persona"])),
        trained=list(given.tables["training"]["chain"]),
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
