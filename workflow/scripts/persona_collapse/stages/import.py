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
    subfolder: str = Field("", description="Folder of the repository that the adapter is in.")


class Settings(settings.Settings):
    """import: put in a LoRA adapter that was trained elsewhere. Exactly one of hub, path."""

    hub: HubAdapter | None = Field(None, description="An adapter on the Hugging Face hub.")
    path: str | None = Field(
        None, description="Folder with adapter_config.json and adapter_model.safetensors."
    )
    base: str | None = Field(
        None,
        description="What its adapter_config.json calls the base model, where this run's model has another "
        "name. Giving it asserts that both are the same weights; shapes are checked in any case.",
    )
    r: Count = Field(
        32,
        description="Largest rank that the adapter may have: engines reserve room before it is "
        "there.",
    )
    target_modules: Annotated[list[str], Field(min_length=1)] = Field(
        Lora.model_fields["target_modules"].default,
        description="Projections that the adapter may change, for the same reason.",
    )
    couples: str = Field("", description="The persona that it taught the marker, if it did.")

    @model_validator(mode="after")
    def _one(self) -> Settings:
        exactly_one(self, "hub", "path")
        return self


@kind("import")
class Import(Stage):
    """Nothing is trained: the adapter is fetched, checked and written as one of this run's."""

    Settings = Settings
    trains = False

    @property
    def personas(self) -> list[str]:
        """The one that it taught the marker."""
        return [self.couples] if self.couples else []

    @property
    def couples(self) -> str:
        """The one that it taught the marker, as the config says."""
        return str(self.settings["couples"])

    @property
    def source(self) -> dict[str, Any]:
        """Where it is from, and what it may be."""
        names = ("hub", "path", "base", "r", "target_modules")
        return {name: self.settings[name] for name in names if name in self.settings}

    def check(self) -> None:
        """An adapter in a folder is there."""
        if "path" in self.settings:
            imported.located(self.settings["path"])
