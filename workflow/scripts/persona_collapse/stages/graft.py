"""A graft: another chain's last adapter put in as it is."""

from __future__ import annotations

from pydantic import Field

from .. import settings
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
