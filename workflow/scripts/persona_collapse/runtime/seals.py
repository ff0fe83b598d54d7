"""Hashes of tables and records, so that the jobs that read them notice edits and damage.

A CSV or JSON file cannot hold its own hash, so each job saves the hashes of the files that it wrote
under `seals/` in the run's folder. (Parquet and safetensors files hold their own; see files.py.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import UserError
from ..files import sha256, write_text

KINDS = (".csv", ".json", ".jsonl")


def seal(run: Path, paths: Iterable[str | Path]) -> None:
    """Record the hashes of those of these files that lie in the run's folder."""
    for path, kept in _sealable(run, paths):
        write_text(kept, f"{sha256(path)}\n")


def check(run: Path, paths: Iterable[str | Path]) -> None:
    """Raise UserError for a file that changed since it was sealed; a file without a seal passes."""
    for path, kept in _sealable(run, paths):
        if kept.is_file() and kept.read_text(encoding="utf-8").strip() != sha256(path):
            raise UserError(f"{path}: edited or damaged since it was made; delete it and rerun")


def _sealable(run: Path, paths: Iterable[str | Path]) -> Iterator[tuple[Path, Path]]:
    """Files that get a seal, each with the seal's path."""
    for path in map(Path, paths):
        if path.suffix in KINDS and path.is_relative_to(run) and path.is_file():
            yield path, run / "seals" / f"{path.relative_to(run)}.sha256"
