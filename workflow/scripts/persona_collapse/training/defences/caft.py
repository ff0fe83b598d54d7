"""Concept ablation fine-tuning: training cannot use the directions in which personas were shifted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from ...models.directions import displacements
from . import Reads, _activations, defence
from ._activations import Change, OnBlocks

if TYPE_CHECKING:
    from torch import Tensor


class Options(_activations.Options):
    """caft: take some directions out of blocks' outputs while training, and not afterwards."""

    after: str = Field(
        description="The directions are those in which persona centroids moved from before to this chain."
    )
    rank: Annotated[int, Field(ge=0)] = Field(
        default=2,
        description="Number of directions, those with the longest shifts first; 0: no defence.",
    )
    ablation: Literal["zero", "mean"] = Field(
        default="zero",
        description="Value that states get in these directions: zero, or the mean of the activations "
        "before. Zero can be far from the states' usual values, and then steers the model.",
    )
    direction: Literal["shift", "random"] = Field(
        default="shift", description="random: the same number of random directions, as a control."
    )

    @model_validator(mode="after")
    def _two(self) -> Options:
        if self.after == self.before:
            raise ValueError(f"after: {self.after} is before, too: name another chain")
        return self


@defence("caft", settings=Options)
class Caft(OnBlocks):
    """h <- h - (h Q) Q^T at all positions; `mean` adds (m Q) Q^T (Casademunt et al. 2025, arXiv 2507.16795).

    Q [hidden, rank]: the first left singular vectors of the matrix [hidden, personas] of shifts, each
    persona's centroid after minus before, not centred. So they are chosen by a rule, where the paper
    chooses components of a PCA by hand. m [hidden]: mean of the activations before, over personas and
    questions. Gradients flow through the projection.
    """

    settings: Options

    @property
    def idle(self) -> bool:
        """Without directions it is no defence."""
        return self.settings.rank == 0

    @property
    def reads(self) -> Reads:
        """As many personas as directions, too."""
        own = self.settings
        return Reads(
            tuple(self.chains.values()), tuple(own.layers), own.method, count=own.rank or 1
        )

    def changes(self, blocks: int, device: Any) -> dict[int, Change]:
        """Take the directions out."""
        import torch

        own, generator = self.settings, torch.Generator().manual_seed(self.settings.seed)
        self._numbers, changes = {}, {}
        before, after = self.states("before", blocks), self.states("after", blocks)
        for layer, states in before.items():
            shifts = displacements(states, after[layer])
            if own.direction == "random":
                drawn = torch.randn(shifts.shape[1], own.rank, generator=generator)
                axes = torch.linalg.qr(drawn).Q
            else:
                axes = torch.linalg.svd(shifts.T, full_matrices=False).U[:, : own.rank]
            inside = (states @ axes).norm(dim=-1) / states.norm(dim=-1)
            self._numbers[layer] = {
                # Of the shifts' squared lengths, what lies in the directions.
                "share_of_shift": float((shifts @ axes).norm() ** 2 / shifts.norm() ** 2),
                # Of a state's length, what lies in them, on average.
                "share_of_state": float(inside.mean()),
            }
            mean = states.mean((0, 1)) if own.ablation == "mean" else torch.zeros(len(axes))
            changes[layer] = _without(axes.to(device), (mean @ axes @ axes.T).to(device))
        return changes

    def record(self, model: Any) -> dict[str, Any]:
        """How much of shifts and of states the directions hold."""
        return self.read(self._numbers)


def _without(axes: Tensor, mean: Tensor) -> Change:
    def change(states: Tensor) -> Tensor:
        wide = states.float()
        return (wide - (wide @ axes) @ axes.T + mean).to(states.dtype)

    return change
