"""Constants read from a Python file's syntax tree, without running its imports.

Snakemake's own environment may have neither pandas nor Altair, but rules need to know which tables a
module reads.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import Any

from .errors import UserError


@functools.cache
def constants(path: Path) -> dict[str, Any]:
    """{NAME: value} of a file's literal constants; computed ones are left out."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


def constant(module: str, name: str) -> Any:
    """One constant of a module of the package: `constant("analysis.claims", "TABLES")`."""
    path = Path(__file__).parent.joinpath(*module.split(".")).with_suffix(".py")
    try:
        return constants(path)[name]
    except KeyError as error:
        raise UserError(f"{path}: expected {name} written out as a literal") from error
