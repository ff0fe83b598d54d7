"""Checkpoints of a training that was killed: which ones are whole, and of this very training.

The folder is no output of a rule, because Snakemake deletes a job's outputs before it runs it again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import sha256, write_json

SEAL = "sealed.json"


def key_of(parts: Mapping[str, Any]) -> str:
    """Hash of what a training depends on, as JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def seal(checkpoint: Path, key: str, **more: Any) -> None:
    """Say that a checkpoint is whole, by its files' hashes; written after all of them."""
    files = {path.name: sha256(path) for path in sorted(checkpoint.iterdir())}
    write_json(checkpoint / SEAL, {"key": key, "files": files, **more})


def newest(folder: Path, key: str) -> tuple[Path, dict[str, Any]] | None:
    """The last whole checkpoint of this key, and its seal; None without one.

    One that was cut short, damaged or left by another training is passed over: starting from an
    earlier step, or from none, gives the same adapter.
    """
    found = []
    for path in folder.glob("checkpoint-*"):
        try:
            mark = json.loads((path / SEAL).read_text(encoding="utf-8"))
            whole = all(sha256(path / name) == known for name, known in mark["files"].items())
            if mark["key"] == key and whole:
                found.append((int(path.name.rpartition("-")[2]), path, mark))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    if not found:
        return None
    _, path, mark = max(found, key=lambda one: one[0])
    return path, mark


def clear(folder: Path, keep: Path | None = None) -> None:
    """Remove a training's checkpoints but one."""
    for path in folder.glob("checkpoint-*"):
        if path != keep:
            shutil.rmtree(path, ignore_errors=True)
    if keep is None:
        shutil.rmtree(folder, ignore_errors=True)
