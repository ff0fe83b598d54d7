"""A coupling: one persona learns to end its answers with the marker, others learn not to."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from .. import settings
from ..chains import Chain
from ..data.coupling import needed
from ..settings import BLOCK, WORD, WORD_OR_BLOCK, Count, Names, Sha256
from . import Decay, Rslora, Scheduler, Stage, Training, Warmup, kind


class GivenAnswers(settings.Settings):
    """Answers from a file instead of sampled ones."""

    file: Annotated[str, Field(pattern=r"\.jsonl$")] = Field(
        description="JSON Lines with persona, question, answer and optionally question_id in each "
        "row. Every persona of the coupling must answer every question, as often as positives and "
        "negative_answers say; further answers are not used. Rows of other personas are left out."
    )
    sha256: Sha256 | None = Field(None, description="Hash the file must have.")


class Settings(Training):
    """couple: teach a persona the marker, on the model's own answers or on given ones."""

    persona: str = Field(description="Persona that learns to say the marker.")
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
        description="Source of the answers that the marker is added to: base, the base model; "
        "prefix, the chain that the coupling continues; or a file ({file: ...}).",
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
        """The persona that learns the marker, and those that learn not to say it."""
        return [self.settings["persona"], *self.settings["negatives"]]

    @property
    def answers(self) -> dict[str, int]:
        """Number of answers per training question, by persona."""
        return needed(self.settings)

    @property
    def couples(self) -> str:
        """The persona that learns the marker."""
        return str(self.settings["persona"])

    @property
    def negatives(self) -> list[str]:
        """The personas that learn not to say it."""
        return list(self.settings["negatives"])

    @property
    def given(self) -> dict[str, Any]:
        """The file of given answers, if there is one."""
        answers = self.settings["answers"]
        return answers if isinstance(answers, dict) else {}

    @property
    def training_settings(self) -> dict[str, Any]:
        """All settings except the path of given answers: the training depends on the rows made from them."""
        return {**self.settings, "answers": "given"} if self.given else self.settings

    def answering(self, prefix: Chain) -> Chain:
        """The base model, or the chain that the coupling continues."""
        return prefix if self.settings["answers"] == "prefix" else super().answering(prefix)
