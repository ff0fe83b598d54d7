"""A graft: another chain's last adapter put in as it is."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from .. import settings
from ..adapter_files import CONFIG, WEIGHTS
from ..chains import Chain
from ..files import atomic, read_json
from . import Stage, kind


class Settings(settings.Settings):
    """graft: put in another chain's last adapter as it is."""

    of: str = Field(description="The chain whose last adapter is put in.")


@kind("graft")
class Graft(Stage):
    """A test of the adapter, not of the training: nothing is trained."""

    Settings = Settings
    trains = False

    @property
    def origin(self) -> str:
        """The chain whose last adapter it is."""
        return str(self.settings["of"])

    def inputs(self, prefix: Chain) -> dict[str, str]:
        """That adapter, and its record."""
        names = {"weights": WEIGHTS, "config": CONFIG, "manifest": "manifest.json"}
        return {key: f"models/{self.origin}/{name}" for key, name in names.items()}

    def make(self, chain: Chain, files: Mapping[str, Path], folder: Path) -> dict[str, Any]:
        """Copy it; its record is the other's, of which nothing was trained here."""
        for name in ("weights", "config"):
            with atomic(folder / files[name].name) as temporary:
                shutil.copyfile(files[name], temporary)
        return self.record(files)

    def record(self, files: Mapping[str, Path]) -> dict[str, Any]:
        """What its manifest says: what the other's does."""
        return {**read_json(files["manifest"]), "graft_of": self.origin}
