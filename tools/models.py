"""What finished runs found, kept for the pages of docs/ where runs on several models stand together.

    python tools/models.py add RUN NAME [--page PAGE] [--configfile PRESET ...]
    make docs

`add` copies to docs/PAGE/NAME what the page needs of results/RUN: rows and columns of its tables, cell by
cell as they are, and a record of where they are from. The folders are the list of models; their order is
that of their numbers of parameters. `make docs` writes the page's tables from these files alone.
"""

from __future__ import annotations

import argparse
import html
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

import pandas as pd
import yaml
from markdown_tables import cell, raw_table, with_table
from persona_collapse import yaml_files
from persona_collapse.errors import UserError
from persona_collapse.files import read_json, sha256, write_json, write_text
from persona_collapse.models import fetching
from persona_collapse.report import provenance
from persona_collapse.runtime import seals
from persona_collapse.study import config as blocks
from persona_collapse.study.only import narrowed
from persona_collapse.study.reading import read
from persona_collapse.tables_io import read_csv, write_csv

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
#: A model's folder holds less, in bytes.
MOST_BYTES = 300_000


@dataclass(frozen=True)
class Kept:
    """What is kept of a table: these columns, of the rows that a query finds (empty: all).

    measure: the table is there only in runs that have this measure.
    """

    columns: tuple[str, ...]
    rows: str = ""
    measure: str = ""


SCORECARD = (
    "claim", "published", "measured", "ci_low", "ci_high", "verdict", "note", "text", "n", "where",
    "expected", "reason", "would_take", "registered",
)  # fmt: skip
RATES = (
    "condition", "reference", "source", "role", "quantity", "value", "ci_low", "ci_high", "units", "n",
    "hits",
)  # fmt: skip
EVERY_PERSONA = "persona == '' and "
#: What prose about second stages is checked against, without a table on the page.
BEHIND = {
    "matched": Kept((
        "condition", "reference", "matched_on", "outcome", "estimate", "ci_low", "ci_high", "units", "note",
        "at",
    )),
    "updates": Kept((
        "chain", "other", "pair", "update_norm", "cosine", "overlap_a", "overlap_b", "baseline_a",
        "baseline_b", "tokens", "loss", "steps", "answer_length",
    )),
    "task_loss": Kept(
        ("chain", "data", "own", "rows", "tokens", "loss", "ci_low", "ci_high"), measure="task_loss"
    ),
}  # fmt: skip

#: What a table of all conditions needs (`models_page.conditions_table`).
CONDITIONS = {
    "design": Kept(("condition", "title", "stages_after_coupling", "chain", "source", "seed", "before")),
    "training": Kept(("chain", "name", "rows", "loss_on", "objective", "steps", "final_loss")),
    "rate_model": Kept(RATES, EVERY_PERSONA + "quantity != 'overdispersion'"),
    "answer_stats": Kept((
        "condition", "chain", "source", "role", "n", "rate", "mean_tokens", "truncated", "rate_finished",
        "marker_logprob",
    )),
    "geometry_runs": Kept(
        ("condition", "reference", "dose", "method", "layer", "metric", "value", "estimate", "ci_low",
         "ci_high", "runs", "units", "note"),
        "headline and metric in ['m1', 'log_distance', 'm3_accuracy']",
    ),
    "preference": Kept(
        ("chain", "group", "n", "preferred"), "persona == 'assistant'", measure="preference"
    ),
}  # fmt: skip
#: The same, with the mean cosine at every block (`models_page.blocks_table`).
GEOMETRY = CONDITIONS["geometry_runs"]
BLOCKS = CONDITIONS | {
    "geometry_runs": Kept((*GEOMETRY.columns, "headline"), f"metric == 'm1' or ({GEOMETRY.rows})")
}


@dataclass(frozen=True)
class Model:
    """A run on the page: its name, its record, its tables as they were kept."""

    name: str
    record: dict[str, Any]
    tables: dict[str, pd.DataFrame]


def pages() -> dict[str, Any]:
    """The pages by name: every module tools/NAME_page.py.

    A page has KEPT (what it needs of a run's tables), TABLES (what is made, by its mark in the text) and
    `figures` (SVGs by name).
    """
    modules = sorted(Path(__file__).parent.glob("*_page.py"))
    return {path.stem.removesuffix("_page"): import_module(path.stem) for path in modules}


def add(
    results: Path,
    run: str,
    docs: Path,
    name: str,
    configfiles: Sequence[str] = (),
    page: str = "models",
) -> dict[str, Path]:
    """Copy what a page needs of results/RUN to docs/PAGE/NAME, whole or not at all; returns the files.

    `configfiles`: presets of this repository that the run was made with; the rest of its config is kept as
    an overlay over them. Raises UserError for a name that is none, and for a run that is not there, not
    finished, edited, or too large.
    """
    if not re.fullmatch(NAME, name):
        raise UserError(f"{name!r} is not a name: use letters, digits, '_', '.' and '-'")
    folder = results / run
    report, needed = folder / "report.html", pages()[page].KEPT
    tables = {table: folder / f"tables/{table}.csv" for table in needed}
    tables = {t: path for t, path in tables.items() if path.is_file() or not needed[t].measure}
    base = provenance.base_record(folder)
    manifests = sorted(folder.glob("models/*/manifest.json"))
    for path in (report, base, *tables.values()):
        if not path.is_file():
            raise UserError(
                f"run {run!r} is not finished: {path} is missing; finish it, then add it"
            )
    if not manifests:
        raise UserError(f"run {run!r}: no {folder}/models/*/manifest.json there; copy them as well")
    seals.check(folder, [base, *tables.values(), *manifests])
    text = report.read_text(encoding="utf-8")
    for table, path in tables.items():
        listed = re.search(rf'id="table-{table}".*?<code>([0-9a-f]{{64}})</code>', text, re.S)
        if listed is not None and listed[1] != sha256(path):
            raise UserError(f"{report} was made before {path}; rerun, then add it")
    target = docs / page / name
    # The kept overlay, of a run that is added again, is written here, not read.
    own = (target / "overlay.yaml").resolve()
    configfiles = [file for file in configfiles if Path(file).resolve() != own]
    overlay = _overlay(_config(report, text), configfiles)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as scratch:
        new = Path(scratch) / name
        new.mkdir()
        for table, path in tables.items():
            write_csv(new / path.name, kept(path, needed[table]))
        files = list(configfiles)
        if overlay:
            files.append(f"docs/{page}/{name}/overlay.yaml")
            write_text(new / "overlay.yaml", _commented(overlay, files))
        record = _record(
            run, read_json(base), _trainings(manifests, folder / "tables/training.csv"), folder
        )
        record["command"] = _command(files)
        record["full tables"] = {
            table: {"rows": len(read_csv(path)), "sha256": sha256(path)}
            for table, path in tables.items()
        }
        record["kept"] = {path.name: sha256(path) for path in sorted(new.iterdir())}
        write_json(new / "record.json", record)
        size = sum(path.stat().st_size for path in new.iterdir())
        if size > MOST_BYTES:
            raise UserError(
                f"run {run!r}: {size:,} bytes to keep, expected {MOST_BYTES:,} at most; run fewer "
                "conditions with only: [...]"
            )
        shutil.rmtree(target, ignore_errors=True)
        new.rename(target)
    return {path.name: path for path in sorted(target.iterdir())}


def kept(path: Path, spec: Kept) -> pd.DataFrame:
    """The rows and columns of a table that are kept, every cell as text, as it is in the file."""
    texts = pd.read_csv(path, dtype=str, keep_default_na=False)
    missing = [column for column in spec.columns if column not in texts]
    if missing:
        raise UserError(f"{path}: no column {missing[0]!r}; rerun with this version, then add it")
    typed = read_csv(path)
    rows = typed.query(spec.rows).index if spec.rows else typed.index
    return texts.loc[rows, list(spec.columns)]


def _config(page: Path, text: str) -> dict[str, Any]:
    """The run's config, from its report."""
    found = re.search(
        r"<summary>Configuration of this run</summary><pre[^>]*>(.*?)</pre>", text, re.S
    )
    if found is None:
        raise UserError(
            f"{page}: its configuration was not found; rerun with this version, then add it"
        )
    config: dict[str, Any] = yaml.safe_load(html.unescape(found[1]))
    return config


def _overlay(config: Mapping[str, Any], configfiles: Sequence[str]) -> dict[str, Any]:
    """What a run's config has beyond config/config.yaml and these files."""
    from snakemake.utils import update_config

    given: dict[str, Any] = {}
    for path in ("config/config.yaml", *configfiles):
        if not (ROOT / path).is_file():
            raise UserError(
                f"--configfile {path}: no such file in this repository; leave it out, and its keys are "
                "kept in the overlay"
            )
        update_config(given, yaml_files.load_mapping(ROOT / path))
    less = read(given)
    # What falls away by only: needs no null.
    only = [name for name in config.get("only", ()) if name in less["conditions"]]
    if only and less.get("only") != config["only"]:
        less = narrowed({**less, "only": only})
        del less["only"]
    sources = blocks.Model.sources
    use = next(key for key in sources if key in config["model"])
    there, used = given["model"].get(use), config["model"][use]
    # Weights of one hash are the same weights: where they lay on that machine is not kept.
    if _hash(there) and _hash(there) == _hash(used):
        config = {**config, "model": {**config["model"], use: there}}
        used = there
    overlay = beyond(narrowed(less), config)
    if "model" in overlay:
        own = {key: value for key, value in overlay["model"].items() if key not in sources}
        if isinstance(there, Mapping) and isinstance(used, Mapping):
            used = beyond(there, used)
        overlay["model"] = {"use": use, **({use: used} if used else {}), **own}
    update_config(given, overlay)
    if narrowed(read(given)) != config:
        raise UserError(
            "the run's configuration is not an overlay over these files; give --configfile those that "
            "it was run with, or none"
        )
    return overlay


def _hash(source: Any) -> str | None:
    """The SHA-256 that a source of weights names, if it is one that does."""
    return source.get("sha256") if isinstance(source, Mapping) else None


def beyond(less: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The overlay that makes one config of another: what differs, and null for what is gone."""
    found: dict[str, Any] = {key: None for key in less if key not in more}
    for key, value in more.items():
        if isinstance(value, Mapping) and isinstance(less.get(key), Mapping):
            found |= {key: own} if (own := beyond(less[key], value)) else {}
        elif key not in less or less[key] != value:
            found[key] = value
    return found


def _command(configfiles: Sequence[str]) -> str:
    return " ".join(
        ["snakemake --cores all", *(["--configfile"] if configfiles else []), *configfiles]
    )


def _commented(overlay: Mapping[str, Any], files: Sequence[str]) -> str:
    text = yaml.safe_dump(dict(overlay), sort_keys=False, allow_unicode=True, width=100)
    return f"# What the run's config has beyond the files before it:\n#   {_command(files)}\n{text}"


def _trainings(manifests: Sequence[Path], table: Path) -> list[dict[str, Any]]:
    """The manifests of the adapters in a run's training table.

    The run's folder may also hold adapters of other conditions, and shifts, which train nothing.
    """
    trained = set(read_csv(table)["chain"])
    return [read_json(path) for path in manifests if path.parent.name in trained]


def _record(
    run: str, base: Mapping[str, Any], manifests: Sequence[Mapping[str, Any]], folder: Path
) -> dict[str, Any]:
    """Where a run is from: model and size, devices, versions, code."""
    if "parameters" not in base:  # recorded by an earlier version
        places = [
            own for own in (folder / "base", Path(base["path"])) if any(own.glob("*.safetensors"))
        ]
        if not places:
            raise UserError(
                f"{folder}/base/model.json does not give the number of parameters, and the model is not at "
                f"{base['path']}; copy it there, then add the run"
            )
        base = {**fetching.manifest(places[0], {}), **base}
    versions: dict[str, set[str]] = {}
    for manifest in manifests:
        for library, version in manifest["versions"].items():
            versions.setdefault(library, set()).add(version)
    commits = sorted({provenance.short_commit(m["commit"]) for m in manifests if m["commit"]})
    return {
        "run": run,
        "model": provenance.model_label(base),
        "family": base["family"],
        "parameters": base["parameters"],
        "weights": {n: h for n, h in base["files"].items() if n.endswith(".safetensors")},
        "devices": sorted(set(map(provenance.device_of, manifests))),
        "versions": {library: ", ".join(sorted(own)) for library, own in versions.items()},
        "commits": commits,
        "trainings": len(manifests),
    }


def load(docs: Path, page: str = "models") -> list[Model]:
    """The models of a page, small ones first; raises UserError for a file that is not as it was added."""
    found, needed = [], pages()[page].KEPT
    for path in sorted((docs / page).glob("*/record.json")):
        record = read_json(path)
        for name, digest in record["kept"].items():
            file = path.with_name(name)
            if not file.is_file() or sha256(file) != digest:
                raise UserError(f"{file}: missing, or not as it was added; add the run again")
        tables = {
            table: read_csv(path.with_name(f"{table}.csv"))
            for table in needed
            if f"{table}.csv" in record["kept"]
        }
        found.append(Model(path.parent.name, record, tables))
    return sorted(found, key=lambda model: (model.record["parameters"], model.name))


def runs_table(models: Sequence[Model]) -> str:
    """What was run, with what, and the command."""
    rows = [
        [
            cell(f"{m.name}, {m.record['parameters']:,} parameters"),
            f"{m.record['trainings']}",
            cell("; ".join(m.record["devices"])),
            cell(", ".join(f"{name} {version}" for name, version in m.record["versions"].items())),
            f"`{m.record['command']}`",
        ]
        for m in models
    ]
    return "\n".join(raw_table(["run", "adapters", "device", "versions", "command"], rows))


def page(docs: Path, name: str) -> str | None:
    """The text of docs/NAME.md with its tables made, by their marks; None where no run was added.

    What is written between its tables stays. Another folder gets the text of this repository's page.
    """
    models = load(docs, name)
    if not models:
        return None
    path = docs / f"{name}.md"
    text = (path if path.is_file() else ROOT / f"docs/{name}.md").read_text("utf-8")
    for what, make in pages()[name].TABLES.items():
        text = with_table(text, what, make(models))
    return text


def main() -> None:
    """Parse the arguments, copy, say what is there."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    adding = parser.add_subparsers(dest="do", required=True).add_parser(
        "add", help="copy what the page needs of a finished run"
    )
    adding.add_argument("run", metavar="RUN", help="name of a run in results/")
    adding.add_argument("name", metavar="NAME", help="its name on the page and under docs/PAGE/")
    adding.add_argument(
        "--page", choices=pages(), default="models", help="of docs/; default: models"
    )
    adding.add_argument("--configfile", nargs="+", default=[], metavar="PRESET")
    adding.add_argument("--results", type=Path, default=Path("results"))
    adding.add_argument("--docs", type=Path, default=ROOT / "docs")
    given = parser.parse_args()
    try:
        files = add(given.results, given.run, given.docs, given.name, given.configfile, given.page)
    except UserError as error:
        sys.exit(f"persona-collapse: {error}")
    for path in files.values():
        print(f"{path}: {path.stat().st_size:,} bytes")
    print("Now: make docs")


if __name__ == "__main__":
    import models  # the module that the pages import, which this one is not

    models.main()
