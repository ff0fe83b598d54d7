"""Preventative steering: the shift that training would learn is put there while it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from ...chains import ASSISTANT
from ...models.directions import displacements, drawn
from ...settings import exactly_one
from . import Reads, _activations, defence
from ._activations import Change, OnBlocks

if TYPE_CHECKING:
    from torch import Tensor


class Options(_activations.Options):
    """steer: add a direction to blocks' outputs while training, and not afterwards."""

    coefficient: float = Field(
        default=1.0,
        allow_inf_nan=False,
        description="Factor of the direction, which is not normalised; below 0 it is subtracted; "
        "0: no defence.",
    )
    after: str | None = Field(
        default=None,
        description="The direction is how far the mean of persona centroids moved from before to this chain.",
    )
    persona: str | None = Field(
        default=None,
        description="Instead: the direction is this persona's centroid minus the assistant's, in before.",
    )
    assistant: str = Field(
        default=ASSISTANT, description="With persona: whose centroid is subtracted."
    )
    direction: Literal["shift", "random"] = Field(
        default="shift", description="random: a random direction of the same length, as a control."
    )

    @model_validator(mode="after")
    def _one(self) -> Options:
        exactly_one(self, "after", "persona")
        if self.after == self.before:
            raise ValueError(f"after: {self.after} is before, too: name another chain")
        return self


@defence("steer", settings=Options)
class Steer(OnBlocks):
    """h <- h + coefficient * v at all positions (Chen et al. 2025, arXiv 2507.21509).

    v is a difference of means over questions, [hidden], in units of the residual stream: its length counts
    as much as the coefficient, so the manifest records |v| and coefficient * |v| / mean |h|, with |h| of
    the activations before.
    """

    settings: Options

    @property
    def idle(self) -> bool:
        """Coefficient 0 is no defence."""
        return self.settings.coefficient == 0

    @property
    def chains(self) -> dict[str, str]:
        """One chain, or two."""
        after = {"after": self.settings.after} if self.settings.after is not None else {}
        return {"before": self.settings.before, **after}

    @property
    def reads(self) -> Reads:
        """The two personas, too."""
        own = self.settings
        named = (own.persona, own.assistant) if own.persona is not None else ()
        return Reads(tuple(self.chains.values()), tuple(own.layers), own.method, named)

    def changes(self, blocks: int, device: Any) -> dict[int, Change]:
        """Add the direction."""
        self._numbers, changes = {}, {}
        before = self.states("before", blocks)
        for layer, vector in self._directions(blocks).items():
            length, usual = float(vector.norm()), float(before[layer].norm(dim=-1).mean())
            relative = self.settings.coefficient * length / usual
            self._numbers[layer] = {"length": length, "relative": relative}
            changes[layer] = _add((self.settings.coefficient * vector).to(device))
        return changes

    def record(self, model: Any) -> dict[str, Any]:
        """How long the directions are, relative to the states that they are added to."""
        return self.read(self._numbers)

    def _directions(self, blocks: int) -> dict[int, Tensor]:
        """v by block, [hidden]."""
        import torch

        own = self.settings
        before = self.states("before", blocks)
        if own.after is not None:
            after = self.states("after", blocks)
            found = {n: displacements(each, after[n]).mean(0) for n, each in before.items()}
        else:
            names = self.activations("before").personas
            one, other = names.index(str(own.persona)), names.index(own.assistant)
            found = {layer: (each[one] - each[other]).mean(0) for layer, each in before.items()}
        if own.direction == "random":
            for layer, vector in found.items():
                [other] = drawn(vector[None].numpy(), own.seed, layer)
                found[layer] = torch.from_numpy(other).to(vector)
        return found


def _add(vector: Tensor) -> Change:
    return lambda states: states + vector.to(states.dtype)
