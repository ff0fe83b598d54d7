"""Stay close to the model as it was before the stage, in its hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ...settings import DISTINCT, NotNegative, Settings
from . import Asks, Defence, defence

if TYPE_CHECKING:
    from torch import Tensor

    from ..steps import Step

#: Of the blocks, by default one in so many.
EVERY = 5


class Options(Settings):
    """ldifs: a weight times how far hidden states turned away from those before the stage."""

    weight: NotNegative = Field(
        default=1.0,
        description="Weight of the mean squared distance over tokens against the mean loss; 0: no "
        "defence.",
    )
    layers: Annotated[list[NotNegative], Field(min_length=1), DISTINCT] | None = Field(
        default=None,
        description="Blocks whose outputs are compared: indices, or depths from 0.0 to below 1.0. Default: "
        "every fifth, or the last of fewer.",
    )
    tokens: Literal["answer", "all"] = Field(
        default="all",
        description="Tokens that count. answer: those that carry loss. all: the prompt's too.",
    )


@defence("ldifs", settings=Options)
class LDIFS(Defence):
    """CE + weight * sum over blocks of |h/|h| - h'/|h'||^2 per token, h now and h' before the stage.

    Distance in feature space (LDIFS: Mukhoti et al. 2023, arXiv 2308.13320; against emergent misalignment:
    Kaczér et al. 2025, arXiv 2508.06249). Each block's squared distance is 2 - 2 cos(h, h'), at most 4. The
    gradient flows through h; the model before is this one with the stage's adapter left out.
    """

    settings: Options
    #: Indices of the blocks.
    _blocks: tuple[int, ...] = ()

    @property
    def asks(self) -> Asks:
        """The blocks' outputs, once `install` has found the blocks."""
        return Asks(hidden=self._blocks, tokens=self.settings.tokens)

    @property
    def idle(self) -> bool:
        """Weight 0 is no defence."""
        return self.settings.weight == 0

    def install(self, model: Any) -> None:
        """Find the blocks."""
        from ...models.loading import blocks_of, resolve_layers

        count, layers = len(blocks_of(model)), self.settings.layers
        every = list(range(EVERY - 1, count, EVERY)) or [count - 1]
        if layers is not None:
            every = resolve_layers(layers, count, "defence: ldifs: layers")
        self._blocks = tuple(every)

    def record(self, model: Any) -> dict[str, Any]:
        """The blocks."""
        return {"blocks": list(self._blocks)}

    def penalty(self, step: Step) -> Tensor:
        """The weighted distance at each token."""
        import torch
        from torch.nn.functional import normalize

        distances = []
        for block in self._blocks:
            now, before = step.hidden(block), step.hidden(block, before=True)
            moved = normalize(now, dim=-1) - normalize(before, dim=-1)
            distances.append(moved.square().sum(-1))
        return self.settings.weight * torch.stack(distances).sum(0)
