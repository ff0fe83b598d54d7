"""Rooms of plugins: a folder of modules, each of which is one thing and registers it by its file's name.

A module is imported when it is asked for. So a new file is known without a list, and what a job runs
depends on the plugins that it names and not on their neighbours (see `runtime.code_hash`).
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from .errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Reads:
    """What a plugin reads of the run's activations or personas, so that it is checked before any job starts.

    chains: whose activations. layers, method: as they are written under `measures: activations:`.
    personas: those of the geometry that are named. count: how many there must be. evaluated: must all
    personas be among them that answer?
    """

    chains: tuple[str, ...] = ()
    layers: tuple[int | float, ...] = ()
    method: Literal["A", "B"] | None = None
    personas: tuple[str, ...] = ()
    count: int = 1
    evaluated: bool = False


class Room(Generic[T]):
    """The plugins of a package, by name; `what` says what one of them is, for messages."""

    def __init__(self, package: str, what: str):
        self.package, self.what = package, what
        self._known: dict[str, T] = {}

    def names(self) -> list[str]:
        """Names of all plugins, sorted; modules whose names start with _ are none."""
        modules = pkgutil.iter_modules(sys.modules[self.package].__path__)
        return sorted(module.name for module in modules if not module.name.startswith("_"))

    def add(self, name: str, plugin: T) -> None:
        """Register a plugin; its module is called as it is."""
        self._known[name] = plugin

    def get(self, name: str) -> T:
        """The plugin of this name, its module imported.

        Raises UserError if there is no such module, or if it registers none of this name.
        """
        if name not in self._known:
            if name not in self.names():
                raise UserError(
                    f"expected a {self.what} ({', '.join(self.names())}), got {name!r}; choose one of "
                    f"them or write {self.package.replace('.', '/')}/{name}.py"
                )
            importlib.import_module(f"{self.package}.{name}")
            if name not in self._known:
                raise UserError(
                    f"{self.package.replace('.', '/')}/{name}.py: holds no {self.what} {name!r}; register it "
                    "there by its decorator, under the name of the file"
                )
        return self._known[name]
