"""A graft: another chain's last adapter, inserted unchanged."""

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
    """graft: insert another chain's last adapter unchanged."""

    of: str = Field(description="The chain whose last adapter is inserted.")


@kind("graft")
class Graft(Stage):
    """Nothing is trained: this tests the adapter, not the training."""

    Settings = Settings
    trains = False

    @property
    def origin(self) -> str:
        """The chain that the adapter comes from."""
        return str(self.settings["of"])

    def inputs(self, prefix: Chain) -> dict[str, str]:
        """That adapter and its manifest."""
        names = {"weights": WEIGHTS, "config": CONFIG, "manifest": "manifest.json"}
        return {key: f"models/{self.origin}/{name}" for key, name in names.items()}

    def make(self, chain: Chain, files: Mapping[str, Path], folder: Path) -> dict[str, Any]:
        """Copy the adapter; the manifest is the original's, marked as not trained here."""
        for name in ("weights", "config"):
            with atomic(folder / files[name].name) as temporary:
                shutil.copyfile(files[name], temporary)
        return self.record(files)

    def record(self, files: Mapping[str, Path]) -> dict[str, Any]:
        """Manifest entries, taken from the original's manifest."""
        return {**read_json(files["manifest"]), "graft_of": self.origin}
