"""Tables and records that somebody edits, or a disk damages, are noticed by what reads them.

A CSV or JSON file has no room for a hash of itself, so each job leaves the hashes of those it wrote
under `seals/` of the run. (Parquet and safetensors files hold their own; see files.py.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import UserError
from ..files import sha256, write_text

KINDS = (".csv", ".json", ".jsonl")


def seal(run: Path, paths: Iterable[str | Path]) -> None:
    """Record what is in these files of the run's folder; others are left out."""
    for path, kept in _sealable(run, paths):
        write_text(kept, f"{sha256(path)}\n")


def check(run: Path, paths: Iterable[str | Path]) -> None:
    """Raise UserError for a file that is not as it was sealed; one without a seal passes."""
    for path, kept in _sealable(run, paths):
        if kept.is_file() and kept.read_text(encoding="utf-8").strip() != sha256(path):
            raise UserError(f"{path}: edited or damaged since it was made; delete it and rerun")


def _sealable(run: Path, paths: Iterable[str | Path]) -> Iterator[tuple[Path, Path]]:
    """Files that a seal is for, each with the seal's path."""
    for path in map(Path, paths):
        if path.suffix in KINDS and path.is_relative_to(run) and path.is_file():
            yield path, run / "seals" / f"{path.relative_to(run)}.sha256"
