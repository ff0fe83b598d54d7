"""Paths of the config: the user's are relative to the working directory, the workflow's own ship with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: The root of the workflow: where its `config/` and `workflow/` are.
ROOT = Path(__file__).resolve().parents[4]
#: Keys of the config that hold paths; `*` is any name.
PATHS = (
    ("model", "path"),
    ("model", "demo", "world"),
    ("model", "gguf", "paths"),
    ("model", "random", "tokenizer", "path"),
    ("model", "random", "tokenizer", "gguf", "paths"),
    ("models", "*", "path"),
    ("models", "*", "gguf", "paths"),
    ("models", "*", "random", "tokenizer", "path"),
    ("models", "*", "random", "tokenizer", "gguf", "paths"),
    ("personas", "file"),
    ("questions", "*", "file"),
    ("measures", "*", "file"),
    ("data", "*", "from", "file"),
    ("data", "*", "from", "generated", "questions", "file"),
    ("data", "*", "from", "hub", "id"),  # may be a folder
    ("training", "*", "answers", "file"),
    ("stages", "*", "answers", "file"),
    ("stages", "*", "path"),
    ("claims",),
    ("errata",),
)


def resolve(path: str) -> str:
    """A path of the config as the jobs use it.

    `~` is the user's home. A file that is not in the working directory but ships with the workflow,
    under `config/` or `workflow/`, is taken from the workflow. Other paths stay as they are.
    """
    path = os.path.expanduser(path)
    shipped = ROOT / path
    if not os.path.exists(path) and Path(path).parts[:1] in (("config",), ("workflow",)):
        return str(shipped) if shipped.exists() else path
    return path


def resolve_all(config: dict[str, Any]) -> None:
    """Resolve every path of a config, in place; values of another type are left alone."""
    for keys in PATHS:
        _change(config, keys, resolve)


def anchor_all(config: dict[str, Any]) -> None:
    """Make every path of a config that leads to something absolute, in place.

    The config then means the same files in another working directory.
    """
    for keys in PATHS:
        _change(config, keys, lambda path: os.path.abspath(path) if os.path.exists(path) else path)


def _change(node: Any, keys: tuple[str, ...], change: Callable[[str], str]) -> None:
    if not isinstance(node, dict):
        return
    for key in node if keys[0] == "*" else {keys[0]} & node.keys():
        if len(keys) > 1:
            _change(node[key], keys[1:], change)
        elif isinstance(node[key], str):
            node[key] = change(node[key])
        elif isinstance(node[key], list):
            node[key] = list(map(change, node[key]))
