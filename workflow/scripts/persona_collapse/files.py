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
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place only if the block succeeds.

    The temporary file keeps the suffix (writers such as matplotlib choose the format by it) and is
    removed when the block raises. `os.replace` is atomic within a file system, so a reader sees
    the old file or the new one, never a part.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    # What a killed job left. One that outlived its Snakemake may still be writing.
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

    The kernel lets go of the lock when its job ends, however it ends. Where the file system has no
    locks, `wait` is yielded: do what one was asked to do, and no more.
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
    """The first half of a surrogate pair in a text, as `\\ud83d`; empty where there is none.

    Texts cut in the middle of an emoji hold one, as an escape in JSON. It is no character: no
    tokenizer takes it and no file in UTF-8 holds it.
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
        with open(path, encoding="utf-8") as lines:
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
                    raise UserError(f"{path}, line {number}: a JSON object is wanted on each line")
                rows.append(row)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    return rows


def write_csv(path: str | os.PathLike[str], table: pd.DataFrame) -> None:
    """Write a table as CSV with a header and without its index, atomically."""
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


#: Columns of names, which may look like anything ("None", "NA", "007", "1e5", "true").
NAMES = (
    "chain", "model", "reference_model", "before", "anchor", "source", "persona", "persona_a",
    "persona_b", "personas", "bystander_max_persona", "induction", "left_out", "condition", "title",
    "reference", "stage", "name", "seed", "question_id", "family", "note", "controls", "commit",
    "adapter_sha256",
)  # fmt: skip
#: Columns of other text; an empty cell is a missing value.
TEXTS = (
    "system_seen", "first_with_loss", "last_with_loss", "claim", "erratum", "text", "stated",
    "corrected", "expected",
)  # fmt: skip


def read_csv(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a table as `write_csv` wrote it; only an empty cell is a missing value.

    Columns in `NAMES` and `TEXTS` stay text whatever it looks like, and an empty cell of `NAMES` is an
    empty string.
    """
    import pandas as pd

    columns = pd.read_csv(path, nrows=0).columns
    return pd.read_csv(
        path,
        dtype={c: str for c in columns if c in NAMES or c in TEXTS},
        keep_default_na=False,
        na_values={c: [""] for c in columns if c not in NAMES},
    )


def write_parquet(path: str | os.PathLike[str], table: pd.DataFrame) -> None:
    """Write a table as Parquet with a hash of its content in the metadata, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = pa.Table.from_pandas(table, preserve_index=False)
    seal = {b"content_sha256": _content(made).encode()}
    with atomic(path) as temporary:
        pq.write_table(
            made.replace_schema_metadata({**(made.schema.metadata or {}), **seal}), temporary
        )


def read_parquet(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a table of `write_parquet`; one damaged or edited since raises UserError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: damaged or missing ({error}); delete it and rerun") from error
    if (table.schema.metadata or {}).get(b"content_sha256") != _content(table).encode():
        raise UserError(
            f"{path}: its content is not what was sampled (edited by hand or damaged); "
            "delete it and rerun"
        )
    return table.to_pandas()


def _content(table: pa.Table) -> str:
    """Hash of a table's column names and values; types may change their names on the way through a file."""
    import pyarrow as pa

    digest = hashlib.sha256()
    for name, column in zip(table.column_names, table.columns, strict=True):
        values = column.combine_chunks()
        digest.update(f"{name}: {len(values)}\n".encode())
        while pa.types.is_list(values.type):
            digest.update(values.value_lengths().to_numpy(zero_copy_only=False).tobytes())
            values = values.flatten()
        if pa.types.is_floating(values.type) or pa.types.is_integer(values.type):
            digest.update(values.to_numpy(zero_copy_only=False).tobytes())
        else:
            digest.update(json.dumps(values.to_pylist()).encode())
    return digest.hexdigest()


def sha256(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """Hex SHA-256 of a string's UTF-8 bytes."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
