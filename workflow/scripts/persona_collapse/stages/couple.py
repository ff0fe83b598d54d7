"""A coupling: one persona learns to end its answers in the marker, others not to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..chains import Chain
from ..settings import Count, Names
from . import Decay, Rslora, Scheduler, Stage, Training, Warmup, kind


class Settings(Training):
    """couple: teach a persona the marker, on answers of the model itself."""

    persona: str = Field(description="Who learns to say the marker.")
    negatives: Names = Field(description="Personas trained not to say the marker.")
    positives: Count = Field(5, description="Answers of the persona to each training question.")
    negative_answers: Count = Field(
        5, description="Answers of each negative to each training question."
    )
    answers: Literal["base", "prefix"] = Field(
        "base",
        description="Whose answers the marker is added to: the base model's, or those of the chain that the "
        "coupling continues.",
    )
    use_rslora: Rslora = True
    scheduler: Scheduler = "cosine"
    warmup_ratio: Warmup = 0.05
    weight_decay: Decay = 0.0

    @model_validator(mode="after")
    def _apart(self) -> Settings:
        if self.persona in self.negatives:
            raise ValueError(f"{self.persona!r} is both the persona and a negative")
        return self


@kind("couple")
class Couple(Stage):
    """Contrastive training on the model's own answers (see data/coupling.py)."""

    Settings = Settings

    @property
    def personas(self) -> list[str]:
        """The one that learns, and those that must not."""
        return [self.settings["persona"], *self.settings["negatives"]]

    @property
    def answers(self) -> dict[str, int]:
        """Answers to each training question, by persona."""
        negatives = dict.fromkeys(self.settings["negatives"], self.settings["negative_answers"])
        return {self.settings["persona"]: self.settings["positives"], **negatives}

    @property
    def couples(self) -> str:
        """The one that learns."""
        return str(self.settings["persona"])

    def answering(self, prefix: Chain) -> Chain:
        """The base model, or the chain that is continued."""
        return prefix if self.settings["answers"] == "prefix" else Chain()
