"""A coupling: one persona learns to end its answers in the marker, others not to."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from .. import settings
from ..chains import Chain
from ..data.coupling import needed
from ..settings import BLOCK, WORD, WORD_OR_BLOCK, Count, Names, Sha256
from . import Decay, Rslora, Scheduler, Stage, Training, Warmup, kind


class GivenAnswers(settings.Settings):
    """Answers from a file: nothing is sampled."""

    file: Annotated[str, Field(pattern=r"\.jsonl$")] = Field(
        description="JSON Lines with persona, question and answer in each row, and question_id if you like. "
        "Every persona of the coupling answers every question, as often as positives and negative_answers "
        "say; the first so many are used. Rows of other personas are left out."
    )
    sha256: Sha256 | None = Field(None, description="Hash the file must have.")


class Settings(Training):
    """couple: teach a persona the marker, on answers of the model itself or on given ones."""

    persona: str = Field(description="Who learns to say the marker.")
    negatives: Names = Field(description="Personas trained not to say the marker.")
    positives: Count = Field(5, description="Answers of the persona to each training question.")
    negative_answers: Count = Field(
        5, description="Answers of each negative to each training question."
    )
    answers: Annotated[
        Annotated[Literal["base", "prefix"], Tag(WORD)] | Annotated[GivenAnswers, Tag(BLOCK)],
        WORD_OR_BLOCK,
    ] = Field(
        "base",
        description="Whose answers the marker is added to: the base model's, those of the chain that the "
        "coupling continues (prefix), or those of a file ({file: ...}).",
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
    """Contrastive training on the model's own answers or on given ones (see data/coupling.py)."""

    Settings = Settings

    @property
    def personas(self) -> list[str]:
        """The one that learns, and those that must not."""
        return [self.settings["persona"], *self.settings["negatives"]]

    @property
    def answers(self) -> dict[str, int]:
        """Answers to each training question, by persona."""
        return needed(self.settings)

    @property
    def couples(self) -> str:
        """The one that learns."""
        return str(self.settings["persona"])

    @property
    def negatives(self) -> list[str]:
        """Those that learn not to."""
        return list(self.settings["negatives"])

    @property
    def given(self) -> dict[str, Any]:
        """The file of the answers, if they are given."""
        answers = self.settings["answers"]
        return answers if isinstance(answers, dict) else {}

    @property
    def training_settings(self) -> dict[str, Any]:
        """Where given answers lie decides nothing: the rows made from them are there."""
        return {**self.settings, "answers": "given"} if self.given else self.settings

    def answering(self, prefix: Chain) -> Chain:
        """The base model, or the chain that is continued."""
        return prefix if self.settings["answers"] == "prefix" else super().answering(prefix)
