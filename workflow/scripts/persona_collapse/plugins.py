"""Rooms of plugins: folders of modules, each of which registers one plugin under its file's name.

A module is imported when it is needed. So there is no list to extend, and a job depends only on the
plugins that it names (see `runtime.code_hash`).
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
    """Activations and personas of the run that a plugin reads; checked before any job starts.

    chains: chains whose activations it reads. layers, method: as written under `measures:
    activations:`. personas: names of personas of the geometry. count: number of personas that it needs.
    evaluated: must all evaluated personas be among them?
    """

    chains: tuple[str, ...] = ()
    layers: tuple[int | float, ...] = ()
    method: Literal["A", "B"] | None = None
    personas: tuple[str, ...] = ()
    count: int = 1
    evaluated: bool = False


class Room(Generic[T]):
    """The plugins of a package, by name; `what` is what messages call a plugin."""

    def __init__(self, package: str, what: str):
        self.package, self.what = package, what
        self._known: dict[str, T] = {}

    def names(self) -> list[str]:
        """Names of all plugins, sorted; modules whose names start with _ are not plugins."""
        modules = pkgutil.iter_modules(sys.modules[self.package].__path__)
        return sorted(module.name for module in modules if not module.name.startswith("_"))

    def add(self, name: str, plugin: T) -> None:
        """Register a plugin; its module must have the same name."""
        self._known[name] = plugin

    def get(self, name: str) -> T:
        """Import and return the plugin of this name.

        Raises UserError if there is no such module, or if it registers no plugin of this name.
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
