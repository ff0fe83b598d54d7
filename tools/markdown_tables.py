"""Tables in Markdown, and their places on a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

END = "<!-- end -->"


def cell(text: Any) -> str:
    """A text as a cell of a table in Markdown."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def lines(texts: Sequence[Any]) -> str:
    """Several lines in one cell; they are not escaped, so pass results of `cell`."""
    return "<br>".join(map(str, texts))


def raw_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown, from escaped cells."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    return raw_table([cell(text) for text in head], [[cell(text) for text in row] for row in rows])


def mark(what: str) -> str:
    """The comment above a generated table."""
    return f"<!-- {what}, by `make docs` -->"


def with_table(page: str, what: str, table: str) -> str:
    """A page whose table between `<!-- what, by `make docs` -->` and the end mark is replaced."""
    before, rest = page.split(mark(what))
    return f"{before}{mark(what)}\n{table}\n{END}{rest.split(END, 1)[1]}"


def shown(value: float, low: float, high: float, digits: int = 2, without: str = "one run") -> str:
    """A value with its interval, or with a text instead of a missing interval."""
    if not np.isfinite(low) or not np.isfinite(high):
        return f"{value:.{digits}f} ({without})"
    # A bound that rounds to zero must not look like zero.
    top = f"{high:.1g}" if 0 < high < 0.5 * 10**-digits else f"{high:.{digits}f}"
    return f"{value:.{digits}f} ({low:.{digits}f} to {top})"
