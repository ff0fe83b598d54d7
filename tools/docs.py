"""Write what is made of code: pages of docs/, the schema of the config, and the demo run's numbers.

    python tools/docs.py

docs/config.md and the schema come from the config's blocks, docs/errata.md from the published numbers,
and the table of docs/statistics.md from results/demo, if that run is there. docs/reading.md has the report's
glossary.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

import models as kept_runs
from markdown_tables import table, with_table
from persona_collapse.analysis import errata
from persona_collapse.measures import ROOM as MEASURES
from persona_collapse.report.page import glossary
from persona_collapse.stages import ROOM as STAGES
from persona_collapse.stages import Training
from persona_collapse.study.config import Config
from persona_collapse.tables_io import read_csv
from persona_collapse.training import defences

NULL = {"type": "null"}
NOTE = "<!-- Made by `make docs`; edit what it is made from. -->"

Schema = Mapping[str, Any]


def schema() -> dict[str, Any]:
    """JSON schema of a config or an overlay, for editors: any key may be left out, or taken away by null."""
    made = Config.model_json_schema()
    for name in STAGES.names():
        own = STAGES.get(name).Settings.model_json_schema()
        made["$defs"] |= own.pop("$defs", {})
        own["properties"] = {
            "kind": {"const": name, "description": "This kind."},
            **own["properties"],
        }
        if "defence" in own["properties"]:
            own["properties"]["defence"] |= {
                "additionalProperties": False,
                "properties": {
                    name: defences.settings(name).model_json_schema() for name in defences.names()
                },
            }
        made["$defs"][name] = own
    refs = {name: {"$ref": f"#/$defs/{name}"} for name in STAGES.names()}
    made["properties"]["measures"] |= {
        "additionalProperties": False,
        "properties": {name: _measure_schema(name) for name in MEASURES.names()},
    }
    made["properties"]["stages"]["additionalProperties"] = {"anyOf": list(refs.values())}
    made["properties"]["training"] |= {"additionalProperties": False, "properties": refs}
    for block in (made, *made["$defs"].values()):
        _loosen(block)
    return made


def _measure_schema(name: str) -> dict[str, Any]:
    """Schema of a measure's settings; of one without any, what the measure says of itself."""
    measure = MEASURES.get(name)
    made = measure.settings.model_json_schema()
    if not measure.settings.model_fields:
        made["description"] = str(measure.function.__doc__).splitlines()[0]
    return made


def _loosen(block: dict[str, Any]) -> None:
    """Require no key of a block's schema, let null take each away, and drop what repeats names."""
    block.pop("required", None)
    block.pop("title", None)
    if isinstance(block.get("additionalProperties"), dict):
        block["additionalProperties"] = _or_null(block["additionalProperties"])
    for kind in {"properties", "patternProperties"} & block.keys():
        block[kind] = {name: _or_null(value) for name, value in block[kind].items()}


def _or_null(value: dict[str, Any]) -> dict[str, Any]:
    """A schema that lets null through too."""
    _loosen(value)
    null = {"type": "null"}
    outer: dict[str, Any] = {
        key: value.pop(key) for key in ("description", "default") if key in value
    }
    branches = value.pop("anyOf", value.pop("oneOf", None)) or [value]
    return {"anyOf": [each for each in branches if each != null] + [null], **outer}


@dataclass(frozen=True)
class Key:
    """One key of the config: its dotted path, what it may hold, its default, what it is."""

    path: str
    kind: str
    default: str
    text: str


def resolved(node: Schema, root: Schema) -> dict[str, Any]:
    """A schema with its reference followed, and without the null that removes a key."""
    found = dict(node)
    if "$ref" in found:
        found = {**root["$defs"][found.pop("$ref").rpartition("/")[2]], **found}
    branches = [each for each in found.get("anyOf", []) if each != NULL]
    if len(branches) == 1:
        del found["anyOf"]
        found = {**resolved(branches[0], root), **found}
    return found


def keys(node: Schema, root: Schema, path: str = "") -> Iterator[Key]:
    """Every key below a schema, outer ones first."""
    own = resolved(node, root)
    for name, value in own.get("properties", {}).items():
        inner = resolved(value, root)
        where = f"{path}.{name}".lstrip(".")
        yield Key(where, kind(inner, root), default(inner), inner.get("description", ""))
        yield from keys(inner, root, where)
    for branch in own.get("anyOf", []):
        yield from keys(branch, root, path)
    named = [own.get("additionalProperties"), *own.get("patternProperties", {}).values()]
    for value in named:
        if isinstance(value, Mapping):
            yield from keys(value, root, f"{path}.NAME")
    if own.get("items"):
        yield from keys(own["items"], root, f"{path}[]")


BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
WORDS = {"string": "text", "object": "mapping", "boolean": "true, false"}


def kind(own: Schema, root: Schema) -> str:
    """What a key may hold, in words."""
    if "enum" in own:
        return ", ".join(f"`{value}`" for value in own["enum"])
    if "const" in own:
        return f"`{own['const']}`"
    if "anyOf" in own or "oneOf" in own:
        branches = own.get("anyOf", own.get("oneOf", []))
        shown = [kind(resolved(each, root), root) for each in branches if each != NULL]
        return " or ".join(shown)
    if own.get("type") == "array":
        return f"list of {kind(resolved(own.get('items', {}), root), root)}"
    if "[0-9a-f]" in own.get("pattern", ""):
        return "hex digits"
    if own.get("properties"):
        names = list(own["properties"])
        return "{" + ", ".join(names) + "}" if len(names) < 4 else "mapping"
    bounds = [f"{sign} {own[bound]}" for bound, sign in BOUNDS.items() if bound in own]
    given = str(own.get("type", "any"))
    return " ".join([WORDS.get(given, given), ", ".join(bounds)]).strip()


def default(own: Schema) -> str:
    """The default of a key that is not a block."""
    value = own.get("default")
    return "" if value is None or "properties" in own else short(value)


def short(value: Any) -> str:
    """A value in YAML, if it is short."""
    if isinstance(value, Mapping) and value:
        return ""
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).splitlines()[0]
    return f"`{text}`" if len(text) < 90 else ""


def in_demo(given: Any, path: str) -> str:
    """The value of a key in config.yaml."""
    for part in path.split("."):
        if not isinstance(given, Mapping) or part not in given:
            return ""
        given = given[part]
    return short(given)


def keys_table(found: list[Key], demo: Any = None) -> list[str]:
    """Keys as a table; `demo`: the config whose values are shown too."""
    head = ["key", "value", "default", *(["demo"] if demo else []), "what it is"]
    rows = []
    for key in found:
        shown = [in_demo(demo, key.path)] if demo else []
        rows.append([f"`{key.path}`", key.kind, key.default, *shown, key.text])
    return table(head, rows)


TITLES = {"lora": "LoRA", "data": "Data sets", "conditions": "Conditions"}


def config_page() -> str:
    """docs/config.md: every key of the config, from the config's blocks."""
    root = schema()
    demo = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))
    lines = [
        NOTE,
        "# Config reference",
        "",
        "All keys. Any other key is an error, reported in one line before a job starts. A key without a",
        "default must be given, unless its text says what happens without it. *demo* is the value in",
        "`config/config.yaml`. A mapping in an overlay is merged key by key, a list is replaced, and",
        "`null` removes a key. Paths are relative to the folder that Snakemake runs in; `~` is your home,",
        "and what ships under `config/` and `workflow/` is found from every folder. An editor that knows",
        "YAML completes and checks an overlay whose first line is `# yaml-language-server: $schema=` and",
        "the path of `workflow/schemas/config.schema.json`.",
        "",
        "## The run",
        "",
    ]
    single, blocks = [], {}
    for name, value in root["properties"].items():
        inner = resolved(value, root)
        apart = {"properties": {name: value}}
        if name in ("training", "stages"):
            continue
        if inner.get("type") == "object":
            blocks[name] = (inner["description"], list(keys(apart, root))[1:])
        else:
            single += list(keys(apart, root))
    lines += keys_table(single, demo)
    for name, (text, found) in blocks.items():
        title = TITLES.get(name, name.capitalize())
        lines += ["", f"## {title}", "", f"`{name}:` {text}", ""]
        lines += keys_table(found, None if name in ("data", "conditions") else demo)
    lines += [
        "",
        "## Stages",
        "",
        f"`stages:` {root['properties']['stages']['description']} A stage takes what it leaves out from",
        "`training:` of its kind, then from `lora:`, then from these defaults.",
    ]
    shared = Training.model_json_schema()
    for name in STAGES.names():
        cls = STAGES.get(name)
        own = list(keys(root["$defs"][name], root))
        known = set(keys(shared, shared)) if issubclass(cls.Settings, Training) else set()
        text = " ".join(str(cls.Settings.__doc__).split()).removeprefix(f"{name}: ")
        lines += ["", f"### {name}", "", f"`kind: {name}`: {text}", ""]
        lines += keys_table([key for key in own if key not in known and key.path != "kind"])
        if known:
            lines += ["", "And [what every training may set](#what-every-training-may-set)."]
    lines += ["", "### What every training may set", "", *keys_table(list(keys(shared, shared)))]
    return "\n".join(lines) + "\n"


def schema_text() -> str:
    """workflow/schemas/config.schema.json."""
    made = schema()
    parts = [
        f'"{name}": {json.dumps(text)}' for name, text in made.items() if isinstance(text, str)
    ]
    for name in ("properties", "$defs"):
        lines = (f"{json.dumps(key)}: {json.dumps(own)}" for key, own in made[name].items())
        parts.append(f'"{name}": {{\n ' + ",\n ".join(lines) + "}")
    return "{" + ",\n".join([*parts, '"additionalProperties": false']) + "}\n"


def errata_page() -> str:
    """docs/errata.md: the write-up's own figures next to what its published numbers give."""
    folder = ROOT / "workflow/resources/published"
    published = errata.Published(
        *(read_csv(folder / f"{name}.csv") for name in ("counts", "cosines"))
    )
    found = errata.errata_table(errata.load(ROOT / "config/errata.yaml"), published)
    rows = [
        [row.text, row.stated, row.corrected, row.note] for row in found.itertuples(index=False)
    ]
    lines = [
        NOTE,
        "# Errata of the study",
        "",
        f"{len(rows)} figures of the write-up that the study's own published counts and cosines",
        "(`workflow/resources/published/`) do not support, or make complete.",
        "`persona_collapse/analysis/errata.py` computes the figures in the third column, for the entries of",
        "`config/errata.yaml`. None of them depends on a run of this workflow.",
        "",
        *table(["figure", "as stated", "from the published numbers", "note"], rows),
    ]
    return "\n".join(lines) + "\n"


def verdicts_table(found: pd.DataFrame) -> str:
    """docs/verdicts.csv by world and design: how often a verdict was wrong, how often a true claim found."""
    rows = []
    for (world, design), group in found.groupby(["world", "design"], sort=False):
        known = group[group["truth"].isin(["holds", "fails"])]
        tested = known[known["not_tested"].astype(float) < 1]
        if tested.empty:
            continue
        worst = known.loc[known["wrong"].astype(float).idxmax()]
        true = tested[tested["truth"] == "holds"].sort_values("replicated", kind="stable")
        found_of = [
            f"{row.claim} {100 * float(row.replicated):.0f} %"
            for row in true.itertuples()
            if float(row.replicated) < 0.8
        ]
        enough = f"{(true['replicated'].astype(float) >= 0.8).sum()} of {len(true)}"
        rows.append(
            [
                world,
                design,
                f"{group['runs'].iloc[0]}",
                f"{100 * float(worst['wrong']):.1f} % ({worst['claim']})"
                if float(worst["wrong"]) > 0
                else f"0 % of {len(known)} claims",
                enough if len(true) else "–",
                ", ".join(found_of) or "–",
            ]
        )
    head = ["world", "design", "runs", "wrong at worst", "true claims found in 80 %", "the others"]
    return "\n".join(table(head, rows))


def nulls_table(found: pd.DataFrame) -> str:
    """docs/nulls.csv: one line per p and interval, its share in each null world and design."""
    columns = [" ".join(key) for key in found.groupby(["world", "design"], sort=True).groups]
    rows = []
    for (name, test, kind), group in found.groupby(["table", "name", "kind"], sort=True):
        shares = {
            f"{row.world} {row.design}": f"{100 * float(row.share):.0f} %"
            + ("" if row.said == "as it should be" else f" ({row.said})")
            for row in group.itertuples()
        }
        what = "p < .05" if kind == "p" else "interval holds"
        rows.append([name, test, what, *(shares.get(column, "–") for column in columns)])
    return "\n".join(table(["table", "test", "share", *columns], rows))


def demo_table(tables: Mapping[str, pd.DataFrame]) -> str:
    """The numbers of a run that docs/statistics.md speaks of, as a table in Markdown.

    `tables`: marker_tests, geometry, correlations and simulation of the demo run.
    """
    tests, g, correlations = tables["marker_tests"], tables["geometry"], tables["correlations"]
    g = g[g["headline"] & (g["test"].fillna("") == "")]
    rows: list[list[str]] = []
    for test in ("fisher", "questions", "seeds"):
        own = tests[
            (tests["test"] == test) & (tests["condition"] == "C1") & (tests["reference"] == "C5")
        ]
        for row in own[own["seed"].fillna("") == ""].itertuples(index=False):
            least = "" if pd.isna(row.p_floor) else f", smallest possible {row.p_floor:.2g}"
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
    own = correlations[correlations["analysis"] == "conditions"]
    own = own[own["predictor"] == "m1"]
    own = own[(own["left_out"].fillna("") == "") & (own["outcome"] == "rate")]
    for row in own[own["controls"].fillna("") == ""].itertuples(index=False):
        text = f"rho {row.rho:.2f}, {row.ci_low:.2f} to {row.ci_high:.2f}, {row.n:.0f} conditions"
        rows.append(["M1 against the marker rate, over conditions", text, "correlations"])
    for row in tables["simulation"].itertuples(index=False):
        if row.kind == "test" and row.arm == "geometry":
            text = f"rejects in {100 * row.rate:.0f} % of {row.runs} data sets ({row.world})"
            rows.append([row.name, text, "simulation"])
    return "\n".join(table(["what", "in the demo run", "table"], rows))


def glossary_table() -> str:
    """What the report's words mean, as a table in Markdown."""
    return "\n".join(table(["word", "what it means"], [list(row) for row in glossary().items()]))


#: What is made, by its path.
PAGES = {
    "docs/config.md": config_page,
    "docs/errata.md": errata_page,
    "workflow/schemas/config.schema.json": schema_text,
}


def main() -> None:
    """Write every page, and the tables within pages."""
    for name, page in PAGES.items():
        (ROOT / name).write_text(page(), encoding="utf-8")
    _put("docs/reading.md", "glossary", glossary_table())
    for name, module in kept_runs.pages().items():
        text = kept_runs.page(ROOT / "docs", name)
        if text is not None:
            (ROOT / f"docs/{name}.md").write_text(text, encoding="utf-8")
            for drawn, svg in module.figures(kept_runs.load(ROOT / "docs", name)).items():
                (ROOT / f"docs/images/{drawn}.svg").write_text(svg, encoding="utf-8")
    tables = ROOT / "results/demo/tables"
    # The scorecard comes last of the tables: where it is, the run is whole.
    if (tables / "scorecard.csv").is_file():
        read = {path.stem: read_csv(path) for path in tables.glob("*.csv")}
        _put("docs/statistics.md", "demo run", demo_table(read))
    for name, made in (("verdicts", verdicts_table), ("nulls", nulls_table)):
        counted = ROOT / f"docs/{name}.csv"
        if counted.is_file():
            _put("docs/verdicts.md", name, made(pd.read_csv(counted, keep_default_na=False)))


def _put(path: str, what: str, table: str) -> None:
    page = ROOT / path
    page.write_text(with_table(page.read_text(encoding="utf-8"), what, table), encoding="utf-8")


if __name__ == "__main__":
    main()
