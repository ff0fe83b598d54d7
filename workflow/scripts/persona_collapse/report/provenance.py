"""Provenance of the page's numbers: model, data, versions, and files with their hashes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..chains import BASE
from ..files import sha256
from ..runtime.version import commit


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
    if "random" in source:
        size = source["random"]
        return f"random weights: Qwen2's architecture, {size['blocks']} blocks of {size['hidden']}"
    if "gguf" in source:
        file = source["gguf"]
        origin = (
            f"the package {file['package']}" if "package" in file else Path(file["paths"][0]).name
        )
        return f"from {origin} (quantised weights, expanded)"
    if "demo_step" in source:
        return f"the demo model after {source['demo_step']} steps of its pretraining"
    return Path(source["path"]).name


def models_label(bases: Mapping[str, Mapping[str, Any]]) -> str:
    """The base models in a few words each, from their model.json; a single model without its name."""
    labels = {name: model_label(base) for name, base in bases.items()}
    if len(labels) == 1:
        return next(iter(labels.values()))
    return "; ".join(f"{name}: {label}" for name, label in labels.items())


def base_record(folder: Path) -> Path:
    """Record of the base model in a run's folder, or its former place in runs of earlier versions."""
    now, then = folder / f"bases/{BASE}/model.json", folder / "base/model.json"
    return then if then.is_file() and not now.is_file() else now


def device_of(training: Mapping[str, Any]) -> str:
    """Device and data type of a training, from its manifest; the GPU by name if the manifest has it."""
    return f"{training.get('gpu') or training['device']}, {training['dtype']}"


def provenance(training: Mapping[str, Any] | None, base: Mapping[str, Any]) -> dict[str, str]:
    """Versions, hashes and device, from a training manifest (None: nothing was trained) and the base
    model's record."""
    weights = next(h for name, h in base["files"].items() if name.endswith(".safetensors"))
    found = {
        "base weights, SHA-256": weights[:16],
        "code, commit": commit() or "not a git checkout",
    }
    if training is None:
        return found
    return found | {
        "chat template, SHA-256": training["template_sha256"][:16],
        "device": device_of(training),
        **training["versions"],
    }


def commands(made: str, config: Mapping[str, Any]) -> dict[str, str]:
    """Commands that repeat the run and that add a training seed; `made`: the command that made it.

    The new seed is the largest plus one. It is given in an overlay, because Snakemake reads a list
    after `--config` as text.
    """
    seeds = [*config["seeds"], max(config["seeds"], default=0) + 1]
    words = shlex.split(made)
    before = words.index("--config") if "--config" in words else len(words)
    first = [] if "--configfile" in words else ["--configfile"]
    more = shlex.join([*words[:before], *first, "seeds.yaml", *words[before:]])
    return {
        "again (a finished run has nothing left to do)": made,
        f"with one more training seed, {seeds[-1]}": f"echo 'seeds: {seeds}' > seeds.yaml && {more}",
    }


def sources(paths: Sequence[str], rules: Mapping[str, str]) -> pd.DataFrame:
    """Sources of the numbers: each table's file, the rule that made it, rows, SHA-256."""
    rows = []
    for path in sorted(paths):
        with open(path, "rb") as handle:
            lines = sum(1 for _ in handle) - 1
        rows.append(
            {"file": path, "rule": rules.get(path, ""), "rows": lines, "sha256": sha256(path)}
        )
    return pd.DataFrame(rows, columns=["file", "rule", "rows", "sha256"])


def origin(source: Mapping[str, Any]) -> str:
    """A data manifest's source in a few words, with hashes and commits shortened."""
    short = re.compile(r"(sha256|revision|commit)$")
    flat = {k: v for k, v in source.items() if not isinstance(v, Mapping)}
    return ", ".join(f"{k}: {str(v)[:12] if short.search(k) else v}" for k, v in flat.items())


def short_commit(commit: str) -> str:
    """A shortened commit; the mark for changed files is kept."""
    return re.sub(r"^([0-9a-f]{12})[0-9a-f]+", r"\1", commit)
