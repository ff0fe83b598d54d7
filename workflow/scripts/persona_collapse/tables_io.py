"""Tables on disk: CSV files whose names stay text."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .files import atomic

if TYPE_CHECKING:
    import pandas as pd


def write_csv(path: str | os.PathLike[str], table: pd.DataFrame) -> None:
    """Write a table as CSV with a header and without its index, atomically."""
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


#: Columns of names, which may look like other types ("None", "NA", "007", "1e5", "true").
NAMES = (
    "chain", "reference_chain", "before", "anchor", "source", "persona", "persona_a",
    "persona_b", "personas", "bystander_max_persona", "induction", "negatives", "left_out", "condition",
    "title", "reference", "stage", "name", "seed", "question_id", "test", "unit", "family", "note",
    "controls", "commit", "adapter_sha256", "dose", "chains", "reference_chains", "other", "pair",
    "data", "defence", "setting", "undefended", "axis", "differs", "measures",
)  # fmt: skip


#: Columns of other text; an empty cell is a missing value.
TEXTS = (
    "system_seen", "first_with_loss", "last_with_loss", "claim", "erratum", "text", "stated",
    "corrected", "expected", "reason", "would_take", "registered", "bar", "date",
)  # fmt: skip


#: Boolean columns, also in a table without rows.
FLAGS = ("headline",)


def read_csv(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a table that `write_csv` wrote; only an empty cell is a missing value.

    Columns in `NAMES` and `TEXTS` always stay text, and an empty cell of `NAMES` is an empty string.
    """
    import pandas as pd

    columns = pd.read_csv(path, nrows=0).columns
    return pd.read_csv(
        path,
        dtype={c: bool if c in FLAGS else str for c in columns if c in NAMES + TEXTS + FLAGS},
        keep_default_na=False,
        na_values={c: [""] for c in columns if c not in NAMES},
    )
