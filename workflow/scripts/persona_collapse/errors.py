"""The exceptions for bad input."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path


class UserError(ValueError):
    """Something the user can fix: bad config, data or arguments.

    The message is a single line that says what is wrong, where, and what to do. Rule scripts and
    the Snakefile print it without a traceback.
    """


class BadRow(UserError):
    """A training row that cannot be used; with `on_bad: drop` it is left out and counted."""


def choose(name: str, known: Collection[str], there: str = "available:") -> str:
    """Advice for an unknown name: the most similar known name, or else all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"{there} {', '.join(known) or 'none'}"


def no_file(path: Path) -> str:
    """Message for a missing file: its folder, and a file there with a similar name."""
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"{path}: no such file: no folder {folder}"
    near = difflib.get_close_matches(path.name, (one.name for one in folder.iterdir()), n=1)
    return f"{path}: no such file in {folder}" + (f"; did you mean {near[0]}?" if near else "")
