"""Supervised fine-tuning on a data set."""

from __future__ import annotations

from pydantic import Field

from . import Stage, Training, kind


class Settings(Training):
    """sft: fine-tune on data."""

    data: str = Field(description="The entry of data: to train on.")
    persona: str | None = Field(
        None, description="The persona whose system prompt is put on every row."
    )


@kind("sft")
class Sft(Stage):
    """Training on the rows of a data set, as they are or under a persona's system prompt."""

    Settings = Settings

    @property
    def personas(self) -> list[str]:
        """The persona whose prompt is put on the rows."""
        return [self.induction] if self.induction else []

    @property
    def data(self) -> str:
        """The data set."""
        return str(self.settings["data"])

    @property
    def induction(self) -> str:
        """The persona whose prompt is put on the rows, if any."""
        return self.settings.get("persona") or ""
