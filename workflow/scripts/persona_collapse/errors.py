"""The one exception that stands for bad input."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can fix: bad config, data or arguments.

    The message is a single line that says what is wrong, where, and what to do. Rule scripts and
    the Snakefile print it without a traceback.
    """


class BadRow(UserError):
    """A training row that cannot be used; where `on_bad: drop` says so, it is left out and counted."""
