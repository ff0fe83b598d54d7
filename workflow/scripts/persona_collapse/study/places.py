"""Where in the config files an error is: messages name the key, this adds the file and the line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

import yaml

from .. import yaml_files
from ..errors import UserError

#: An entry of a list in a message.
ENTRY = r"(?:item|pair) (\d+)"


def placed(error: UserError, paths: Iterable[str | os.PathLike[str]]) -> str:
    """The message of a config error, with the file and line of the key that it names.

    `paths`: the config files, each over those before it. The deepest key that a file has counts, of
    several files the last. A list replaces that of the file before, so an entry is looked for in the
    last file that has the list. A message that does not begin with `config: ` stays as it is, and a file
    that is not YAML is passed over.
    """
    head, *keys = str(error).split(": ")
    if head != "config":
        return str(error)
    found, place = 0, ""
    lists = next((at for at, key in enumerate(keys) if re.fullmatch(ENTRY, key)), len(keys))
    for path in paths:
        try:
            with open(path, encoding="utf-8-sig") as file:
                root = yaml.compose(file, Loader=yaml_files.Loader)
        except (OSError, ValueError, yaml.YAMLError):
            continue
        depth, line = _deepest(root, keys)
        if depth and depth >= min(found, lists):
            found, place = depth, f" ({os.fspath(path)}, line {line})"
    return f"{error}{place}"


def _deepest(node: Any, keys: list[str]) -> tuple[int, int]:
    """How many of the keys lead into a node graph, one after the other, and the line of the last."""
    depth = line = 0
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            pairs = [pair for pair in node.value if pair[0].value == key]
            if not pairs:
                break
            line, node = pairs[0][0].start_mark.line + 1, pairs[0][1]
        elif isinstance(node, yaml.SequenceNode) and (item := re.fullmatch(ENTRY, key)):
            if int(item[1]) > len(node.value):
                break
            node = node.value[int(item[1]) - 1]
            line = node.start_mark.line + 1
        else:
            break
        depth += 1
    return depth, line
