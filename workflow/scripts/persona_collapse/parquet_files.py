"""Parquet files that hold a hash of their own content: sampled answers and what is measured of them."""

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


def write_parquet(path: str | os.PathLike[str], table: pd.DataFrame) -> None:
    """Write a table as Parquet with a hash of its content in the metadata, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = pa.Table.from_pandas(table, preserve_index=False)
    seal = {b"content_sha256": _hash(content).encode()}
    with atomic(path) as temporary:
        pq.write_table(
            content.replace_schema_metadata({**(content.schema.metadata or {}), **seal}), temporary
        )


def read_parquet(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a table of `write_parquet`; raises UserError if it was damaged or edited."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: damaged or missing ({error}); delete it and rerun") from error
    if (table.schema.metadata or {}).get(b"content_sha256") != _hash(table).encode():
        raise UserError(
            f"{path}: its content is not what was written (edited by hand or damaged); "
            "delete it and rerun"
        )
    return table.to_pandas()


def _hash(table: pa.Table) -> str:
    """Hash of a table's column names and values, without types, whose names can change in a file."""
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
