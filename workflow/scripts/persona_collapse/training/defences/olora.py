"""Learn in directions that the earlier stages' adapters do not use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ...errors import UserError
from ...settings import NotNegative, Settings
from . import Asks, Defence, defence

if TYPE_CHECKING:
    from torch import Tensor

    from ..steps import Step


class Options(Settings):
    """olora: a weight times how far the new adapter overlaps with the earlier ones."""

    weight: NotNegative = Field(
        default=0.5,
        description="Weight of the overlap, a sum over modules and over pairs of rows of A_old and A_new. At "
        "rank 32 on all projections it is in the thousands at first, and 1.0e-3 makes it about as large as "
        "the loss; the authors' 0.5 is for rank 8 on query and value. No defence if this and lambda2 are 0.",
    )
    variant: Literal["code", "paper"] = Field(
        default="code",
        description="code: sum of |A_old A_new'|, as in the authors' program. paper: squared sum of "
        "B_old' B_new, as in their paper; it is 0 until the first step, because B_new is 0.",
    )
    lambda2: NotNegative = Field(
        default=0.0,
        description="Weight of the new adapter's length, the sum of its matrices' Frobenius norms.",
    )


@defence("olora", settings=Options)
class OLora(Defence):
    """CE + weight * sum over modules of sum_ij |A_old A_new^T|_ij + lambda2 * sum ||P|| over A_new, B_new.

    Of O-LoRA (Wang et al. 2023, arXiv 2310.14152) by their program; A [rank, in], B [out, rank] as PEFT
    names them. The paper's A is PEFT's B, and its overlap is squared: sum_ij (B_old^T B_new)_ij^2. Here
    B_old holds the scales of the earlier stages, which are one adapter of scale 1.

    The first stage of a chain has nothing to be orthogonal to: it is trained without the overlap, as the
    first task is in O-LoRA, and its record says so. With earlier stages, an overlap that is 0 from the
    start is an error: it would stay 0 unseen.
    """

    settings: Options

    @property
    def asks(self) -> Asks:
        """The earlier stages' adapters."""
        return Asks(adapters=True)

    @property
    def idle(self) -> bool:
        """Without either term it is no defence."""
        return self.settings.weight == 0 and self.settings.lambda2 == 0

    def install(self, model: Any) -> None:
        """Raises UserError if there are earlier adapters and nothing of them to be orthogonal to."""
        earlier, new = _adapters(model)
        self._start = self.overlap(earlier, new).item()
        # B_new is zero as yet, and the paper's overlap with it.
        paper = self.settings.variant == "paper"
        there = any(old.any() for old, _ in self._pairs(earlier, new)) if paper else self._start > 0
        if self.settings.weight and earlier and not there:
            raise UserError(
                "defence: olora: the penalty would be 0: the earlier stages' adapters have no module in "
                "common with this stage's, or nothing in it; name the same target_modules, or leave olora out"
            )

    def record(self, model: Any) -> dict[str, Any]:
        """Modules in common, and the overlap without its weight, before the first step and after the last."""
        earlier, new = _adapters(model)
        return {
            "modules": len(list(self._pairs(earlier, new))),
            "overlap_at_start": self._start,
            "overlap_at_end": self.overlap(earlier, new).item(),
        }

    def penalty(self, step: Step) -> Tensor | None:
        """Both terms; None where there is neither."""
        own, found = self.settings, None
        if own.weight and step.earlier:
            found = own.weight * self.overlap(step.earlier, step.new)
        if own.lambda2:
            length = own.lambda2 * sum(p.float().norm() for p in step.new.values())
            found = length if found is None else found + length
        return found

    def overlap(self, earlier: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> Tensor:
        """The sum over modules, [], by the names of their parameters."""
        import torch

        paper = self.settings.variant == "paper"
        found = [
            (old.T @ own).square().sum() if paper else (old @ own.T).abs().sum()
            for old, own in self._pairs(earlier, new)
        ]
        return torch.stack(found).sum() if found else torch.zeros(())

    def _pairs(
        self, earlier: Mapping[str, Tensor], new: Mapping[str, Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """What is compared of each module that both adapt, old and new, in 32 bits."""
        factor = "lora_B" if self.settings.variant == "paper" else "lora_A"
        for name, own in new.items():
            if factor in name and name in earlier:
                yield earlier[name].float(), own.float()


def _adapters(model: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    from ..steps import EARLIER, NEW, parameters

    return parameters(model, EARLIER), parameters(model, NEW)
