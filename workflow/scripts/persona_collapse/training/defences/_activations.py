"""What defences take from the run's activations, and how they act on blocks' outputs while training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ...chains import BASE
from ...models import directions
from ...models.directions import Change as Change
from ...settings import DISTINCT, NotNegative, Seed, Settings
from . import Defence, Reads

if TYPE_CHECKING:
    from torch import Tensor

    from ...activation_files import Activations


class Options(Settings):
    """What such defences have in common."""

    layers: Annotated[list[NotNegative], Field(min_length=1), DISTINCT] = Field(
        description="Blocks whose outputs are changed, written as under measures: activations: layers."
    )
    method: Literal["A", "B"] = Field(
        default="A",
        description="Activations to use. A: last prompt token. B: mean over the answer.",
    )
    before: str = Field(
        default=BASE, description="The chain whose persona centroids are subtracted."
    )
    seed: Seed = Field(default=42, description="Seed of a random direction.")


class OnBlocks(Defence):
    """A defence that changes blocks' outputs at all positions while training, by what activations say.

    Activations are of the geometry's personas on the extraction questions, which the geometry of the
    defended chain is measured on too; the manifest's record names them.
    """

    settings: Any

    def __init__(self, settings: Any):
        super().__init__(settings)
        self._read: dict[str, Activations] = {}

    def changes(self, blocks: int, device: Any) -> dict[int, Change]:
        """What is done at the output of which block, of so many; [..., hidden] to [..., hidden]."""
        raise NotImplementedError

    @property
    def chains(self) -> dict[str, str]:
        """The chains whose activations it reads, by names of its own."""
        return {"before": self.settings.before, "after": self.settings.after}

    @property
    def reads(self) -> Reads:
        """The chains, at its layers."""
        own = self.settings
        return Reads(tuple(self.chains.values()), tuple(own.layers), own.method)

    def inputs(self) -> dict[str, str]:
        """The chains' activations."""
        return {name: f"activations/{chain}.safetensors" for name, chain in self.chains.items()}

    def states(self, name: str, blocks: int) -> dict[int, Tensor]:
        """Activations of a chain by block, of so many: [persona, question, hidden], in 32 bits."""
        import torch

        own = self.settings
        found = directions.states(self.activations(name), own.method, own.layers, blocks)
        return {layer: torch.from_numpy(array) for layer, array in found.items()}

    def activations(self, name: str) -> Activations:
        """The activations of one of its chains, read once."""
        from ... import activation_files

        if name not in self._read:
            self._read[name] = activation_files.load(self.files[name])
        return self._read[name]

    def install(self, model: Any) -> None:
        """Hook the blocks. The model before the stage stays as it is."""
        from ...models.loading import blocks_of

        changes = self.changes(len(blocks_of(model)), model.device)
        self._hooks = directions.hook(model, changes, lambda: getattr(model, "before_stage", False))

    def remove(self, model: Any) -> None:
        """Take the hooks away."""
        for one in self._hooks:
            one.remove()

    def read(self, by_block: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
        """A record: numbers by block, and what was read, on which geometry is measured too."""
        found = self.activations("before")
        return {
            "blocks": {str(block): dict(numbers) for block, numbers in by_block.items()},
            "activations_of": self.chains,
            "personas": found.personas,
            "questions": found.questions,
        }
