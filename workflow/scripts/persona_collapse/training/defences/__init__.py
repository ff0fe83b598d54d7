"""What a stage adds to its training so that it changes less of the model, one file per defence.

A defence is a subclass of `Defence` with `@defence("its_name", settings=Settings)` in a file of that
name; a stage names it, or several, under `defence:`. What a training depends on is the files of the
defences that it names, as with `losses`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import ValidationError

from ...errors import UserError
from ...plugins import Reads as Reads
from ...plugins import Room
from ...settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from ..steps import Step


@dataclass(frozen=True)
class Asks:
    """What has to be known of a defence before the first step.

    rows: the one of its `inputs` that holds chat rows for its penalty; those of the stage itself if
    empty. Each step then has a second batch, of these or of `groups`. share: of a step's chat rows, those
    of the second batch; by default it has as many as the stage's own. pooled: does a token of the second
    batch weigh as much as one of the stage's own with loss? If not, its penalties are averaged by
    themselves. tokens: `answer`, those that carry loss, or `all`. hidden: indices of the blocks whose
    outputs it reads; asked for again after `install`, which knows the model. embeddings: does it read
    those? adapters: does it read the earlier adapters' parameters? They are then not merged into the base.
    host: does its penalty look at values (`.item()`), at shapes that depend on them, or at anything
    that changes from step to step and is no tensor? Its steps are then not recorded (see `graphs`).
    """

    rows: str = ""
    share: float = 0.5
    pooled: bool = False
    tokens: Literal["answer", "all"] = "answer"
    hidden: tuple[int, ...] = ()
    embeddings: bool = False
    adapters: bool = False
    host: bool = False


class Defence:
    """The base of defences: each does nothing but what it overrides.

    settings: its block of the config. files: its `inputs`, where they lie. tokenizer: the model's.
    """

    #: Its block in the config, see `defence`.
    Options: type[Settings]
    #: Shares of a GPU (`runtime: jobs_per_gpu`) that a training with it takes: 2 if a step holds the logits
    #: of two passes, which are most of its memory.
    shares = 1

    def __init__(self, settings: Any):
        self.settings = settings
        self.files: Mapping[str, Path] = {}
        self.tokenizer: Any = None

    @property
    def asks(self) -> Asks:
        """What it needs in each step."""
        return Asks()

    @property
    def idle(self) -> bool:
        """Is it without effect, with these settings? It is then left out of the training."""
        return False

    @property
    def reads(self) -> Reads | None:
        """What it reads of activations or personas, if it does; their files are among its `inputs`."""
        return None

    def inputs(self) -> dict[str, str]:
        """Files that it reads, by names of its own: paths in the run's folder, as `data/benign.jsonl`."""
        return {}

    def groups(self) -> list[list[dict[str, list[int]]]] | None:
        """Rows of its second batch that it makes itself, of `input_ids` and `labels`; None: of chat rows.

        Each step has one of the groups, in shuffled passes, as a batch that is not cut. Asked for after
        `install`. `step.labels` are the rows' labels, which may be any numbers from 0 on.
        """
        return None

    def install(self, model: Any) -> None:
        """Change the model before the first step: hooks, parametrisations, initial values.

        `model`: a PeftModel whose adapter `default` is trained; earlier stages are in the adapter
        `prefix`, or merged into the base. Hooks act on the passes of the model before the stage too,
        unless they look at `model.before_stage` (see `steps.before_stage`).
        """

    def record(self, model: Any) -> dict[str, Any]:
        """What the manifest keeps of it, as JSON values; asked for after the last step, before `remove`."""
        return {}

    def remove(self, model: Any) -> None:
        """Take away what `install` added, after the last step: what is saved is a plain LoRA adapter."""

    def penalty(self, step: Step) -> Tensor | None:
        """What is added to the loss: a value per token of the step, [n], or one number, [].

        Values per token are averaged over all such tokens of an optimiser step, however it is cut into
        batches; if `pooled`, they are added up and divided by the number of the stage's own with loss. A
        number counts once for each step.
        """
        return None

    def project(self, parameters: Mapping[str, Tensor]) -> None:
        """Change the gradients (`.grad`) of the new adapter's parameters before the optimiser's step."""

    def after_step(self, parameters: Mapping[str, Tensor]) -> None:
        """Change the new adapter's parameters after the optimiser's step, in place."""


ROOM: Room[type[Defence]] = Room(__name__, "defence")
names, get = ROOM.names, ROOM.get
Kind = TypeVar("Kind", bound=type[Defence])


def defence(name: str, *, settings: type[Settings]) -> Callable[[Kind], Kind]:
    """Make a class known as the defence of this name, with these settings."""

    def register(cls: Kind) -> Kind:
        cls.Options = settings
        ROOM.add(name, cls)
        return cls

    return register


def settings(name: str) -> type[Settings]:
    """The model of a defence's block of the config. Raises UserError if there is no such defence."""
    return get(name).Options


def make(blocks: Mapping[str, Any]) -> dict[str, Defence]:
    """The defences of a stage by name, from their blocks of the config.

    Raises UserError for an unknown defence or a setting that is wrong.
    """
    made = {}
    for name, block in blocks.items():
        cls = get(name)
        try:
            made[name] = cls(cls.Options(**(block or {})))
        except ValidationError as error:
            first = error.errors()[0]
            where = ": ".join(map(str, (name, *first["loc"])))
            raise UserError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
    return made


def active(
    blocks: Mapping[str, Any], files: Mapping[str, Path], tokenizer: Any = None
) -> dict[str, Defence]:
    """Those that have an effect, with their files; `files`: by path in the run's folder."""
    chosen = {name: one for name, one in make(blocks).items() if not one.idle}
    for one in chosen.values():
        one.files = {own: files[path] for own, path in one.inputs().items()}
        one.tokenizer = tokenizer
    return chosen
