"""Hash of the code that made a result: a script or module and everything that it imports from this
package.

Imports are read from the syntax trees, including imports inside functions. Comments, docstrings,
descriptions of settings and imports under TYPE_CHECKING do not change the hash.

`study` and `runtime` are left out. The plan's decisions reach a job as params, which Snakemake compares
itself. How a job logs, finds its GPU or shares an engine changes no result. Plugins of a folder are
left out too: a rule names the one that it runs (`of("measures.refusals")`), so a new file in the folder
reruns nothing.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from ..files import sha256_text

SCRIPTS = Path(__file__).resolve().parents[2]
PACKAGE = "persona_collapse"
#: Sub-packages that results depend on only through params.
APART = ("study", "runtime")


@functools.cache
def _tree(path: Path) -> ast.Module:
    """The syntax tree of a file without docstrings and descriptions of settings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:]
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Field":
            node.keywords = [word for word in node.keywords if word.arg != "description"]
    return tree


@functools.cache
def _code(path: Path) -> str:
    """The code of a file as text."""
    return ast.dump(_tree(path))


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs: all except those under `if TYPE_CHECKING:`."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo.extend(node.orelse)
        else:
            todo.extend(ast.iter_child_nodes(node))


def _file(parts: tuple[str, ...]) -> Path | None:
    """The file of a module of the package (`("models", "adapters")`), if it is one."""
    path = SCRIPTS.joinpath(PACKAGE, *parts)
    if (path / "__init__.py").is_file():
        return path / "__init__.py"
    return path.with_suffix(".py") if parts and path.with_suffix(".py").is_file() else None


@functools.cache
def imports(path: Path) -> frozenset[Path]:
    """Files of the package that a file imports itself."""
    inside = path.is_relative_to(SCRIPTS / PACKAGE)
    package = path.relative_to(SCRIPTS / PACKAGE).parent.parts if inside else ()
    found = set()
    for node in _nodes(_tree(path)):
        if isinstance(node, ast.Import):
            named = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                parts = (PACKAGE, *package[: len(package) + 1 - node.level], *parts)
            named = [parts, *((*parts, alias.name) for alias in node.names)]
        else:
            continue
        for parts in named:
            if parts[:1] == (PACKAGE,) and (file := _file(parts[1:])):
                found.add(file)
    return frozenset(found)


@functools.cache
def closure(*paths: Path) -> frozenset[Path]:
    """These files and all package files that they import, directly or indirectly, without `APART`."""
    found: set[Path] = set()
    todo = list(paths)
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo.extend(
                file
                for file in imports(path)
                if file.relative_to(SCRIPTS / PACKAGE).parts[0] not in APART
            )
    return frozenset(found)


def _hash(*paths: Path) -> str:
    files = sorted(closure(*paths))
    texts = (f"{file.relative_to(SCRIPTS)}\n{_code(file)}\n" for file in files)
    return sha256_text("".join(texts))[:16]


def of_script(path: str | Path) -> str:
    """Hash of a rule's script and of what it imports."""
    return _hash(SCRIPTS / Path(path).name)


@functools.cache
def of(*modules: str) -> str:
    """Hash of modules of the package (`measures.activations`) and of what they import.

    Raises ValueError for a name that is no module.
    """
    paths = [_file(tuple(module.split("."))) for module in modules]
    if None in paths:
        raise ValueError(f"not in {PACKAGE}: {modules[paths.index(None)]}")
    return _hash(*(path for path in paths if path))
