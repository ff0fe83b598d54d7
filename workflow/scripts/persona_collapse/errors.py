"""The one exception that stands for bad input."""

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
    """A training row that cannot be used; where `on_bad: drop` says so, it is left out and counted."""


def choose(name: str, known: Collection[str], there: str = "available:") -> str:
    """What to write instead of an unknown name: the known one that looks like it, or else one of all."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"{there} {', '.join(known) or 'none'}"


def no_file(path: Path) -> str:
    """That there is no such file, in which folder, and which one there has a name like it."""
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"{path}: no such file: no folder {folder}"
    near = difflib.get_close_matches(path.name, (one.name for one in folder.iterdir()), n=1)
    return f"{path}: no such file in {folder}" + (f"; did you mean {near[0]}?" if near else "")
