"""Checkpoints of a killed training, in a folder named by the hash of everything that the training
depends on.

The folder is not an output of a rule, because Snakemake deletes a job's outputs before it reruns the
job.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files import sha256, sha256_text, write_json

SEAL = "sealed.json"


def folder_of(saved: Path, parts: Mapping[str, Any]) -> Path:
    """Folder of the checkpoints of one training; `parts`: what it depends on, as JSON values."""
    return saved / sha256_text(json.dumps(parts, sort_keys=True))[:16]


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def seal(checkpoint: Path, **more: Any) -> None:
    """Seal a checkpoint as complete with the hashes of its files; written after all of them."""
    files = {path.name: sha256(path) for path in sorted(checkpoint.iterdir())}
    write_json(checkpoint / SEAL, {"files": files, **more})


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The last complete checkpoint and its seal; None without one.

    Incomplete and damaged checkpoints are skipped: starting from an earlier step, or from scratch,
    gives the same adapter.
    """
    for path in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        try:
            mark = json.loads((path / SEAL).read_text(encoding="utf-8"))
            if all(sha256(path / name) == known for name, known in mark["files"].items()):
                return path, mark
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


@contextmanager
def opened(
    saved: Path | None, parts: Mapping[str, Any]
) -> Iterator[tuple[Path, tuple[Path, dict[str, Any]] | None]]:
    """Context with a training's folder and its `newest` checkpoint; all checkpoints are removed at the
    end.

    If no folder is given, it is a temporary one.
    """
    if saved is None:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch), None
        return
    folder = folder_of(saved, parts)
    resumed = newest(folder)
    clear(saved, keep=resumed[0] if resumed else None)
    yield folder, resumed
    clear(saved)


def clear(saved: Path, keep: Path | None = None) -> None:
    """Remove all checkpoints of a chain except one."""
    for path in (*saved.glob("*"), *saved.glob("*/checkpoint-*")):
        if keep is None or path not in (keep, keep.parent):
            shutil.rmtree(path, ignore_errors=True)
    if keep is None:
        shutil.rmtree(saved, ignore_errors=True)
