"""Pages of docs/ that are made from the schemas, the config and the tables, so that they cannot drift."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ..analysis import errata
from ..analysis.tables import headline_cell
from ..tables_io import read_csv

ROOT = Path(__file__).resolve().parents[4]
SCHEMAS = ROOT / "workflow" / "schemas"
NOTE = "<!-- Made by `make docs`; edit what it is made from. -->"
#: Definitions that are a section of their own rather than repeated at each use.
SECTIONS = {
    "hyperparameters": "Hyper-parameters",
    "stage": "A stage",
    "questions": "Question files",
}

Schema = Mapping[str, Any]


def load_schema(name: str) -> dict[str, Any]:
    """A schema of workflow/schemas, as plain data."""
    loaded: dict[str, Any] = yaml.safe_load((SCHEMAS / name).read_text(encoding="utf-8"))
    return loaded


@dataclass(frozen=True)
class Key:
    """One key of the config: its dotted path, what it may hold, what it is."""

    path: str
    kind: str
    text: str


def keys(schema: Schema, root: Schema, path: str = "") -> Iterator[Key]:
    """Every key below a schema, outer ones first; definitions with a section are not entered."""
    own, name = _resolved(schema, root)
    text = schema.get("description", own.get("description", ""))
    if path and not (path.endswith("NAME") and not text):
        yield Key(path, kind(schema, root), text)
    if name in SECTIONS and path:
        return
    for branch in (own, *own.get("oneOf", [])):
        for key, value in branch.get("properties", {}).items():
            yield from keys(value, root, f"{path}.{key}".lstrip("."))
    more = own.get("additionalProperties")
    if isinstance(more, Mapping) and ("properties" in more or "$ref" in more):
        yield from keys(more, root, f"{path}.NAME")
    items = own.get("items", {})
    if "properties" in items:
        yield from (key for key in keys(items, root, f"{path}[]") if key.path != f"{path}[]")


def _resolved(schema: Schema, root: Schema) -> tuple[Schema, str]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return (root["$defs"][name], name) if name else (schema, "")


BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
WORDS = {"string": "text", "object": "mapping", "boolean": "true, false"}


def kind(schema: Schema, root: Schema) -> str:
    """What a key may hold, in words."""
    own, name = _resolved(schema, root)
    if name in SECTIONS:
        return f"[{SECTIONS[name].lower()}](#{SECTIONS[name].lower().replace(' ', '-')})"
    if "enum" in own:
        return ", ".join(f"`{value}`" for value in own["enum"])
    if "oneOf" in own:
        return " or ".join(kind(branch, root) for branch in own["oneOf"])
    if own.get("type") == "array":
        return f"list of {kind(own.get('items', {}), root)}"
    if "hex" in own.get("description", "") or "[0-9a-f]" in own.get("pattern", ""):
        return "hex digits"
    if own.get("type") == "object" and "properties" in own:
        return "{" + ", ".join(own["properties"]) + "}" if len(own["properties"]) < 4 else "mapping"
    bounds = [f"{sign} {own[bound]}" for bound, sign in BOUNDS.items() if bound in own]
    given = str(own.get("type", "any"))
    return " ".join([WORDS.get(given, given), ", ".join(bounds)]).strip()


def _value(config: Any, path: str) -> str:
    """The demo's value of a key, where it is short."""
    for part in path.split("."):
        if not isinstance(config, Mapping) or part not in config:
            return ""
        config = config[part]
    if isinstance(config, Mapping) or (isinstance(config, list) and len(str(config)) > 40):
        return ""
    text = yaml.safe_dump(config, default_flow_style=True).splitlines()[0]
    return f"`{text}`" if len(text) < 60 else ""


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(map(_cell, line))} |" for line in lines]


def _keys_table(found: list[Key], config: Any = None, prefix: str = "") -> list[str]:
    head = ["key", "value", *(["demo"] if config else []), "what it is"]
    rows: dict[str, list[str]] = {}
    for key in found:
        demo = [_value(config, key.path)] if config else []
        rows.setdefault(key.path, [f"`{key.path.removeprefix(prefix)}`", key.kind, *demo, key.text])
    return _table(head, list(rows.values()))


def config_page() -> str:
    """docs/config.md: every key of the config and of a data set, from the schemas."""
    root, data = load_schema("config.schema.yaml"), load_schema("data.schema.yaml")
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))
    lines = [
        NOTE,
        "# Config reference",
        "",
        "Every key there is; any other is an error, told in one line before a job starts. *demo* is the",
        "value in `config/config.yaml`. A mapping in an overlay is merged key by key, a list replaced, and",
        "`null` takes a key away. Paths are relative to the folder that Snakemake runs in, `~` is your home,",
        "and what ships under `config/` and `workflow/` is found from every folder.",
        "",
        "## The run",
    ]
    sections: dict[str, list[Key]] = {"": []}
    for key in keys(root, root):
        top = key.path.split(".")[0]
        sections.setdefault(top, []).append(key)
    for top in [top for top, found in sections.items() if len(found) == 1 and top != "data"]:
        sections[""] += sections.pop(top)
    lines += ["", *_keys_table(sections.pop(""), config)]
    titles = {"lora": "LoRA", "data": "Data sets", "experiments": "Conditions"}
    for top, (first, *rest) in sections.items():
        lines += ["", f"## {titles.get(top, top.capitalize())}", "", f"`{top}:` {first.text}", ""]
        if top == "data":
            rest = list(keys(data, data, "data.NAME"))[1:]
        lines += _keys_table(rest, None if top == "data" else config, f"{top}.NAME.")
    stage, shared = root["$defs"]["stage"], root["$defs"]["hyperparameters"]["properties"]
    for name, title in SECTIONS.items():
        own = root["$defs"][name]
        found = [key for key in keys(own, root) if own is not stage or key.path not in shared]
        lines += ["", f"## {title}", "", own["description"], "", *_keys_table(found)]
        if own is stage:
            lines += [
                "",
                "And every [hyper-parameter](#hyper-parameters): it goes before `training:` and `lora:`.",
            ]
    return "\n".join(lines) + "\n"


def errata_page() -> str:
    """docs/errata.md: the write-up's own figures beside what its published numbers give."""
    folder = ROOT / "workflow/resources/published"
    published = errata.Published(
        *(read_csv(folder / f"{name}.csv") for name in ("counts", "cosines"))
    )
    table = errata.errata_table(errata.load(ROOT / "config/errata.yaml"), published)
    rows = [
        [row.text, row.stated, row.corrected, row.note] for row in table.itertuples(index=False)
    ]
    lines = [
        NOTE,
        "# Errata of the study",
        "",
        f"{len(rows)} figures of the write-up that the study's own published counts and cosines",
        "(`workflow/resources/published/`) do not bear out. The right-hand figures are computed by",
        "`persona_collapse/analysis/errata.py` from the entries of `config/errata.yaml`. None depends on a",
        "run of this workflow.",
        "",
        *_table(["figure", "as stated", "from the published numbers", "note"], rows),
    ]
    return "\n".join(lines) + "\n"


MARKS = "<!-- demo run, by `make docs` -->", "<!-- end -->"


def demo_table(tables: Mapping[str, pd.DataFrame]) -> str:
    """The numbers of a run that docs/statistics.md speaks of, as a table in Markdown.

    `tables`: marker_tests, geometry, headline, link and simulation of the demo run.
    """
    tests, g, link = tables["marker_tests"], tables["geometry"], tables["link"]
    at = headline_cell(tables["headline"])
    g = g[(g["method"] == at["method"]) & (g["layer"] == at["layer"])]
    rows: list[list[str]] = []
    for test in ("fisher", "questions", "seeds"):
        own = tests[
            (tests["test"] == test) & (tests["condition"] == "C1") & (tests["reference"] == "C5")
        ]
        for row in own[own["seed"].fillna("") == ""].itertuples(index=False):
            least = "" if pd.isna(row.p_min) else f", smallest possible {row.p_min:.2g}"
            text = f"difference {row.estimate:.2f}, p = {row.p:.2g}{least}"
            rows.append([f"C1 against C5, {row.unit}s as the unit", text, "marker_tests"])
    for metric, what in (
        ("m1", "M1"),
        ("m1_centred", "M1, centred"),
        ("mean_distance", "mean distance"),
        ("spread", "spread"),
        ("cka_base", "CKA with the base"),
    ):
        means = g[g["metric"] == metric].groupby("condition")["value"].mean()
        shown = [f"{name} {means[name]:.3f}" for name in ("base", "C1", "C5") if name in means]
        rows.append([what, ", ".join(shown), "geometry"])
    for metric, what in (
        ("m1_split_half", "noise of M1 from the questions"),
        ("m1_replicate", "noise of M1 from retraining"),
    ):
        values = g[g["metric"] == metric]["value"]
        rows.append([what, f"{values.min():.4f} to {values.max():.4f}", "geometry"])
    own = link[(link["analysis"] == "chains") & (link["predictor"] == "m1")]
    own = own[(own["left_out"].fillna("") == "") & (own["outcome"] == "rate")]
    for row in own[own["controls"].fillna("") == ""].itertuples(index=False):
        text = f"rho {row.rho:.2f}, {row.ci_low:.2f} to {row.ci_high:.2f}, {row.n:.0f} chains"
        rows.append(["M1 against the marker rate, over chains", text, "link"])
    for row in tables["simulation"].itertuples(index=False):
        if row.kind == "test" and row.arm == "geometry":
            text = f"rejects in {100 * row.rate:.0f} % of {row.runs} data sets ({row.world})"
            rows.append([row.name, text, "simulation"])
    return "\n".join(_table(["what", "in the demo run", "table"], rows))


def with_demo_table(page: str, table: str) -> str:
    """docs/statistics.md with its table of the demo run replaced."""
    before, rest = page.split(MARKS[0])
    return f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{rest.split(MARKS[1])[1]}"


#: Pages by file name.
PAGES = {"config.md": config_page, "errata.md": errata_page}
