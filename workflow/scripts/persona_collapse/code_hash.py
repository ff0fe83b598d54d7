"""Which code a result was made by: a hash of modules, comments and docstrings left out."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

from .files import sha256_text

SCRIPTS = Path(__file__).resolve().parents[1]
#: The modules by which completions are scored again: by the job of its own, or by one that has the model.
RESCORED = (
    "activations", "adapters", "carrier", "chat", "fused", "graphs", "matching", "models", "rescoring",
)  # fmt: skip


@functools.cache
def _syntax(file: str) -> str:
    """A file of workflow/scripts as the text of its syntax tree, comments and docstrings left out."""
    tree = ast.parse((SCRIPTS / file).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:]
    return ast.dump(tree)


def of_files(*files: str) -> str:
    """Hash of files of workflow/scripts."""
    return sha256_text("".join(map(_syntax, files)))[:16]


def of(*modules: str) -> str:
    """Hash of modules of the package, and of those that all of them use."""
    names = sorted({*modules, "files", "errors"})
    return of_files(*(f"persona_collapse/{name}.py" for name in names))
