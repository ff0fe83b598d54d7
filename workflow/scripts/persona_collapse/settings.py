"""The base of every block of settings: typed, frozen, and without unknown keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A block of the config. A subclass's docstring and its fields' descriptions are its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def files(self) -> dict[str, str]:
        """Files that a plugin with these settings reads, by name."""
        return {}

    def unread(self) -> set[str]:
        """What the plugin could ask for and, with these settings, does not read."""
        return set()
