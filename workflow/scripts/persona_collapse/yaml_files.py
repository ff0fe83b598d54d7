"""YAML files that people write: read, or refused in one line that names file, line and key.

PyYAML keeps the last of two equal keys and reads `no` as false, `012` as ten and `1:30` as ninety. Here
each of these is an error. Snakemake reads config files itself, so `check` reads them again.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError, no_file
from .files import half_pair

#: The C parser if PyYAML has it: ten times faster for a config.
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DEEPEST = 100
_TAG = "tag:yaml.org,2002:"
_PAIR = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..")


def load(path: str | os.PathLike[str]) -> Any:
    """The content of a YAML (or JSON) file in plain types.

    Raises UserError, one line with file and line number, for a file that cannot be read or would be
    misread: duplicate keys, keys that are not text, numbers in base 8 or 60, tabs as indentation,
    halves of surrogate pairs, tags that are not YAML's own.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(no_file(Path(path))) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    try:
        value, is_json = json.loads(text), True
        # Used to find lines: in JSON tabs are white space, and two escapes make one character.
        text = _PAIR.sub(lambda pair: json.loads(f'"{pair[0]}"'), text.replace("\t", " "))
    except (ValueError, RecursionError):
        value, is_json = None, False
    loader = Loader(text)
    try:
        _check_depth(path, text)
        node = loader.get_single_node()
        for line, fault in _faults(node) if node is not None else ():
            raise UserError(f"{path}, line {line}: {fault}")
        if not is_json and node is not None:
            value = loader.construct_document(node)
    except UserError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}{_described(error, text)}") from error
    finally:
        loader.dispose()
    return value


def load_mapping(path: str | os.PathLike[str]) -> dict[str, Any]:
    """As `load`, for a file that must hold a mapping."""
    value = load(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a mapping (name: value) at the top level")
    return value


def load_list(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """As `load`, for a file that must hold a list of mappings."""
    value = load(path)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise UserError(f"{path}: expected a list of mappings (- key: value) at the top level")
    return value


def check(path: str | os.PathLike[str]) -> None:
    """Raise the errors of `load` for a file that another program reads."""
    load(path)


def _check_depth(path: str | os.PathLike[str], text: str) -> None:
    """Raise UserError for a text nested so deeply that a recursive parser may crash."""
    depth = 0
    for event in yaml.parse(text, Loader=Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise UserError(f"{path}: more than {DEEPEST} levels of lists and mappings")


def _described(error: Exception, text: str) -> str:
    """Message that says where and why a text is not YAML."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f": cannot be read ({str(error).splitlines()[0]})"
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    if (
        "\t" in line[: len(line) - len(line.lstrip())]
        or line[mark.column : mark.column + 1] == "\t"
    ):
        return f", line {mark.line + 1}: a tab; YAML is indented with spaces: replace it"
    problem = getattr(error, "problem", "")
    if "Unicode" in problem:
        problem += "; write the character itself"
    return f", line {mark.line + 1}: cannot be read as YAML ({problem})"


def _faults(root: Any) -> Iterator[tuple[int, str]]:
    """(line, what is wrong there) for everything in a node graph that YAML would silently accept."""
    todo, seen = [root], set()
    while todo:
        node = todo.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield from _key_faults(node)
            todo += [part for pair in reversed(node.value) for part in reversed(pair)]
        elif isinstance(node, yaml.SequenceNode):
            todo += reversed(node.value)
        else:
            fault = _scalar_fault(node)
            if fault:
                yield node.start_mark.line + 1, fault


def _key_faults(mapping: Any) -> Iterator[tuple[int, str]]:
    """Keys of a mapping that are duplicates or not text."""
    first: dict[str, int] = {}
    for key, _ in mapping.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            yield line, "a list or mapping as a key; put text that holds [ or { in quotes"
            continue
        name, kind = key.value, key.tag.removeprefix(_TAG)
        if kind not in ("str", "merge"):
            said = (
                "an empty key"
                if not name
                else f"the key {name} is not text but {_KINDS.get(kind, kind)}"
            )
            yield line, f'{said} in YAML; write "{name}" in quotes'
        if name in first:
            yield (
                line,
                f"duplicate key {name!r} (first in line {first[name]}); remove or rename one",
            )
        first.setdefault(name, line)


_KINDS = {
    "bool": "true or false",
    "null": "nothing",
    "int": "a number",
    "float": "a number",
    "timestamp": "a date",
}


def _scalar_fault(node: Any) -> str:
    """What is wrong with a single value; empty if nothing is."""
    text = node.value
    if half := half_pair(text):
        return (
            f"half a surrogate pair ({half}), which is not a character; write the character itself"
        )
    kind = node.tag.removeprefix(_TAG)
    if kind in ("int", "float") and not node.style:
        if re.fullmatch(r"[-+]?0[0-7_]+", text):
            return (
                f"{text} is the number {int(text.replace('_', ''), 8)} in YAML (base 8); write "
                f'{int(text.replace("_", ""))}, or "{text}" for text'
            )
        if ":" in text:
            return f'{text} is a number in base 60 in YAML; write "{text}" for text'
    return ""


def advice(value: Any, expected: Any) -> str:
    """What to write instead of a value that YAML read as another type; empty if that is not the cause.

    `expected`: type in a JSON schema, or another expectation that the value does not meet.
    """
    if isinstance(value, bool) and expected not in ("number", "integer", "array", "object"):
        return " (yes, no, on and off are true and false in YAML: write the word in quotes)"
    if expected == "string" and isinstance(value, int | float | datetime.date):
        return " (write it in quotes, as it should be read)"
    if expected == "boolean" and isinstance(value, str):
        return " (write true or false, without quotes)"
    if expected in ("number", "integer") and isinstance(value, str):
        try:
            number = float(value)
            whole = expected == "integer" and number == int(number)
        except (ValueError, OverflowError):
            return ""
        if math.isfinite(number):
            written = (
                int(number) if whole else _float_text(number) if "e" in value.lower() else value
            )
            return f" (text in YAML: write {written})"
    return ""


def _float_text(value: float) -> str:
    """A number in a form that YAML reads as one: `1e-4` and `1.0e5` are text, `1.0e-04` is a number."""
    digits, exponent = f"{value:e}".split("e")
    digits = digits.rstrip("0")
    return f"{digits + '0' if digits.endswith('.') else digits}e{exponent}"


if __name__ == "__main__":
    # Snakemake's own error for a config file that is not YAML does not name the file.
    for name in sys.argv[1:]:
        try:
            load_mapping(name)
        except UserError as error:
            sys.exit(str(error))
