"""Kinds of stages, one file each. A stage is everything about a training run except its seed, which the
chain gives.

A kind is a subclass of `Stage` with the decorator `@kind("name")`, in a file of this folder. Nothing
else names it: the plan, the rules and the checks use only the properties below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from .. import settings
from ..chains import Chain
from ..plugins import Reads, Room
from ..settings import AS_GIVEN, Count, NotNegative, Positive, Share


class Lora(settings.Settings):
    """Defaults for the adapter of every stage."""

    r: Count = Field(32, description="Rank.")
    alpha: Positive = Field(
        64, description="Scale numerator: alpha/r, or alpha/sqrt(r) with use_rslora."
    )
    dropout: Annotated[float, Field(ge=0, lt=1), AS_GIVEN] = Field(
        0.05, description="Dropout before A."
    )
    target_modules: Annotated[list[str], Field(min_length=1)] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        description="Projections that get an adapter, by their names in the model's blocks. A name that "
        "the model does not have stops the run; the message lists the names that it has.",
    )
    blocks: Annotated[list[Share], Field(min_length=2, max_length=2)] | None = Field(
        None,
        description="Blocks that get an adapter, as a range of relative depths: of 28 blocks, [0, 0.5] "
        "takes 0 to 13. Default: all.",
    )

    @model_validator(mode="after")
    def _a_part(self) -> Lora:
        if self.blocks and not self.blocks[0] < self.blocks[1]:
            raise ValueError(f"blocks: expected a lower and a higher depth, got {self.blocks}")
        return self


#: Settings whose default differs between kinds.
Rslora = Annotated[bool, Field(description="Scale alpha/sqrt(r) (true) or alpha/r (false).")]
Scheduler = Annotated[
    Literal["linear", "cosine", "constant", "constant_with_warmup"],
    Field(description="Learning-rate schedule."),
]
Warmup = Annotated[Share, Field(description="Share of the steps to warm up.")]
Decay = Annotated[NotNegative, Field(description="AdamW's weight decay.")]


class Training(Lora):
    """Settings of a training run."""

    adapter: Literal["lora", "none"] = Field(
        "lora",
        description="What is trained. lora: an adapter on the frozen model. none: all weights of a "
        "small model; this takes 16 bytes of memory per weight and as much disk as the model. "
        "Settings of adapters (r to blocks, use_rslora) then have no effect, and no defence can be used.",
    )
    use_rslora: Rslora = False
    lr: Positive = Field(description="Peak learning rate.")
    scheduler: Scheduler = "linear"
    warmup_ratio: Warmup = 0.03
    weight_decay: Decay = 0.01
    epochs: Positive | None = Field(None, description="Passes over the data.")
    steps: Count | None = Field(None, description="Optimiser steps, instead of epochs.")
    batch_size: Count = Field(16, description="Rows per optimiser step.")
    max_length: Annotated[int, Field(ge=8)] = Field(
        2048, description="Longer rows are cut to this many tokens."
    )
    max_grad_norm: Positive = Field(1.0, description="Gradient clipping.")
    loss_on: Literal["answer", "answer_text", "answer_tail", "marker"] = Field(
        "answer",
        description="Tokens with loss. answer: the answer and its end token. answer_text: the answer "
        "without its end token, so that nothing is learnt about where answers end. answer_tail: also the "
        "template's tail. marker: only the marker and the last token (the study's coupling).",
    )
    loss: str = Field(
        "cross_entropy",
        description="Loss on those tokens: a file of persona_collapse/training/losses/.",
    )
    defence: dict[str, dict[str, Any]] = Field(
        {},
        description="Methods that make the stage change less of the model: {name: settings}. Each "
        "is a file of persona_collapse/training/defences/.",
    )

    @model_validator(mode="after")
    def _long_enough(self) -> Training:
        if self.epochs is None and self.steps is None:
            raise ValueError("give epochs or steps")
        return self


#: Settings that only concern an adapter.
OF_ADAPTERS = (*Lora.model_fields, "use_rslora")


class Stage:
    """A stage of a config: its name and its settings, including the defaults of its kind and adapter.

    The settings are plain values that `Settings` has checked, plus `kind` and `dtype`.
    """

    #: The kind's name in the config and in tables, and its block of settings.
    kind: ClassVar[str]
    Settings: ClassVar[type[settings.Settings]]
    #: Is it trained? If not, it is made from files (see `inputs`, `make`).
    trains: ClassVar[bool] = True
    #: Does it only take the shape and size of the adapter of `origin`, and draw a new one?
    redraws: ClassVar[bool] = False
    #: Is it an adapter? If not, it changes the outputs of blocks during sampling and measuring.
    adapts: ClassVar[bool] = True

    def __init__(self, name: str, settings: dict[str, Any]):
        self.name = name
        self.settings = settings
        if self.all_weights:
            self.settings = {k: v for k, v in settings.items() if k not in OF_ADAPTERS}

    @property
    def all_weights(self) -> bool:
        """Does it train all weights of the model instead of an adapter?"""
        return bool(self.settings.get("adapter") == "none")

    def missing(self, others: Iterable[Stage]) -> str:
        """Controls that are missing among the run's `others` to interpret this stage, in words; else
        empty."""
        return ""

    @property
    def personas(self) -> list[str]:
        """Personas whose system prompts it uses."""
        return []

    @property
    def data(self) -> str | None:
        """The entry of `data:` that it trains on; None without one."""
        return None

    @property
    def origin(self) -> str | None:
        """The chain whose last adapter it uses; None without one."""
        return None

    @property
    def source(self) -> dict[str, Any]:
        """Source and limits of an adapter that was trained elsewhere; empty for other stages."""
        return {}

    @property
    def answers(self) -> dict[str, int]:
        """Number of answers per training question that its rows are made from, by persona; empty for
        most kinds."""
        return {}

    @property
    def given(self) -> dict[str, Any]:
        """The file that the `answers` are read from ({file, sha256}); empty if they are sampled."""
        return {}

    @property
    def training_settings(self) -> dict[str, Any]:
        """The settings that its training depends on, in addition to its rows."""
        return self.settings

    @property
    def couples(self) -> str:
        """The persona that learns to say the marker; empty without one."""
        return ""

    @property
    def negatives(self) -> list[str]:
        """Personas that learn not to say the marker."""
        return []

    @property
    def induction(self) -> str:
        """The persona whose system prompt is put on every row; empty if rows stay as they are."""
        return ""

    def check(self) -> None:
        """Raise UserError for a mistake that can be found before a job runs."""

    @property
    def reads(self) -> Reads | None:
        """The activations and personas that it reads, apart from those of the chain before it; None
        without any."""
        return None

    def inputs(self, prefix: Chain) -> dict[str, str]:
        """Input files of an untrained stage after a prefix: paths in the run's folder, by name.

        Raises UserError if the stage cannot follow this prefix.
        """
        return {}

    def make(self, chain: Chain, files: Mapping[str, Path], folder: Path) -> dict[str, Any]:
        """Write weights and config (see `adapter_files`) of an untrained stage, the last of a chain.

        files: its `inputs`. Returns the manifest's entries in addition to chain, stage and kind.
        """
        raise NotImplementedError

    def answering(self, prefix: Chain) -> Chain:
        """The chain that gives the `answers` for its rows, after a prefix."""
        return Chain((), prefix.model)

    def rows(self, prefix: Chain) -> str | None:
        """Name of its training rows after a prefix: a data set, or its own rows; None without training."""
        if self.answers:
            answering = self.answering(prefix)
            return self.name if answering == Chain() else f"{answering}+{self.name}"
        return self.data


ROOM: Room[type[Stage]] = Room(__name__, "kind of stage")


def kind(name: str) -> Callable[[type[Stage]], type[Stage]]:
    """Register a class as a kind of stage; its module must have the same name."""

    def register(cls: type[Stage]) -> type[Stage]:
        cls.kind = name
        ROOM.add(name, cls)
        return cls

    return register
