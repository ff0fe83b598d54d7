"""Writing files so that a killed job never leaves a half-written result, and hashing them."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` only if the block succeeds.

    The temporary file keeps the suffix, because some writers choose the format by it. It is removed if
    the block raises. `os.replace` is atomic within a file system, so a reader sees the old file or the
    new one, never a part.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    # Left by a killed job. A job that outlived its Snakemake may still be writing.
    for left in target.parent.glob(f".{glob.escape(target.stem)}.[0-9]*.tmp{target.suffix}"):
        if not Path(
            "/proc", left.name.removesuffix(f".tmp{target.suffix}").rpartition(".")[2]
        ).exists():
            left.unlink(missing_ok=True)
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: str | os.PathLike[str], *, wait: bool) -> Iterator[bool]:
    """Hold a lock file; yields False if another job has it and `wait` is off.

    The kernel releases the lock when its job ends, however it ends. If the file system has no locks,
    `wait` is yielded: the caller does its own work and nothing more.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            mine = True
        except BlockingIOError:
            mine = False
        except OSError:
            mine = wait
        yield mine


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text with LF line ends, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON (NaN is refused: it is not JSON), atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def half_pair(text: str) -> str:
    """The first half of a surrogate pair in a text, as `\\ud83d`; empty without one.

    A text that was cut in the middle of an emoji holds one, as an escape in JSON. It is not a
    character: no tokenizer accepts it and no UTF-8 file can hold it.
    """
    found = re.search("[\ud800-\udfff]", text)
    return f"\\u{ord(found[0]):04x}" if found else ""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of a JSON object as a dict (`object_pairs_hook`); ValueError for a duplicate key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"duplicate key {name[:80]!r}")
    return found


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; a damaged one, or one with a duplicate key, raises UserError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=unique_keys)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); delete it and rerun") from error


def write_jsonl(path: str | os.PathLike[str], rows: list[dict[str, Any]]) -> None:
    """Write rows as canonical JSON Lines: sorted keys, UTF-8, LF, one object a line."""
    lines = (json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) for row in rows)
    write_text(path, "".join(line + "\n" for line in lines))


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read JSON Lines of objects; blank lines are skipped.

    Raises UserError with file and line number for a line that is not a JSON object, or holds one with
    a duplicate key.
    """
    rows: list[dict[str, Any]] = []
    try:
        with open(path, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line, object_pairs_hook=unique_keys)
                except (ValueError, RecursionError) as error:
                    raise UserError(
                        f"{path}, line {number}: cannot be read as JSON ({error})"
                    ) from error
                if not isinstance(row, dict):
                    raise UserError(f"{path}, line {number}: expected a JSON object on each line")
                rows.append(row)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    return rows


def sha256(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """Hex SHA-256 of a string's UTF-8 bytes."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
