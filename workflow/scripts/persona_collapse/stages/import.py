"""Somebody else's adapter, from the hub or a folder."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from .. import settings
from ..models import imported
from ..settings import Count, exactly_one
from . import Lora, Stage, kind


class HubAdapter(settings.Settings):
    """An adapter on the Hugging Face hub, at a commit."""

    id: str = Field(description="owner/name")
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] = Field(
        description="Commit, 40 hex digits. A branch name would not be reproducible."
    )
    subfolder: str = Field("", description="Folder of the adapter in the repository.")


class Settings(settings.Settings):
    """import: insert a LoRA adapter that was trained elsewhere. Exactly one of hub, path."""

    hub: HubAdapter | None = Field(None, description="An adapter on the Hugging Face hub.")
    path: str | None = Field(
        None, description="Folder with adapter_config.json and adapter_model.safetensors."
    )
    base: str | None = Field(
        None,
        description="Name of the base model in its adapter_config.json, if it differs from this "
        "run's. Setting it asserts that both have the same weights; shapes are checked in any case.",
    )
    r: Count = Field(
        32,
        description="Largest rank that the adapter may have: engines reserve memory before it is "
        "fetched.",
    )
    target_modules: Annotated[list[str], Field(min_length=1)] = Field(
        Lora.model_fields["target_modules"].default,
        description="Projections that the adapter may change, for the same reason.",
    )
    couples: str = Field("", description="Persona that the adapter taught the marker, if any.")

    @model_validator(mode="after")
    def _one(self) -> Settings:
        exactly_one(self, "hub", "path")
        return self


@kind("import")
class Import(Stage):
    """Nothing is trained: the adapter is fetched, checked and saved as one of this run's."""

    Settings = Settings
    trains = False

    @property
    def personas(self) -> list[str]:
        """The persona that it taught the marker."""
        return [self.couples] if self.couples else []

    @property
    def couples(self) -> str:
        """The persona that it taught the marker, according to the config."""
        return str(self.settings["couples"])

    @property
    def source(self) -> dict[str, Any]:
        """Its source and limits."""
        names = ("hub", "path", "base", "r", "target_modules")
        return {name: self.settings[name] for name in names if name in self.settings}

    def check(self) -> None:
        """Check that an adapter in a folder exists."""
        if "path" in self.settings:
            imported.located(self.settings["path"])
