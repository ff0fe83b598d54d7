"""Tables on disk: CSV whose names stay text, and Parquet that knows its own content."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

from .errors import UserError
from .files import atomic

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def write_csv(path: str | os.PathLike[str], table: pd.DataFrame) -> None:
    """Write a table as CSV with a header and without its index, atomically."""
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


#: Columns of names, which may look like anything ("None", "NA", "007", "1e5", "true").
NAMES = (
    "chain", "reference_chain", "before", "anchor", "source", "persona", "persona_a",
    "persona_b", "personas", "bystander_max_persona", "induction", "left_out", "condition", "title",
    "reference", "stage", "name", "seed", "question_id", "test", "unit", "family", "note", "controls",
    "commit", "adapter_sha256",
)  # fmt: skip


#: Columns of other text; an empty cell is a missing value.
TEXTS = (
    "system_seen", "first_with_loss", "last_with_loss", "claim", "erratum", "text", "stated",
    "corrected", "expected",
)  # fmt: skip


#: Columns of yes and no, also in a table without rows.
FLAGS = ("headline",)


def read_csv(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a table as `write_csv` wrote it; only an empty cell is a missing value.

    Columns in `NAMES` and `TEXTS` stay text whatever it looks like, and an empty cell of `NAMES` is an
    empty string.
    """
    import pandas as pd

    columns = pd.read_csv(path, nrows=0).columns
    return pd.read_csv(
        path,
        dtype={c: bool if c in FLAGS else str for c in columns if c in NAMES + TEXTS + FLAGS},
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
            f"{path}: its content is not what was written (edited by hand or damaged); "
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
