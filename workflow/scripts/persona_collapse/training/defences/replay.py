"""Go on learning other rows while a stage learns its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ...files import sha256
from ...settings import AS_GIVEN, NotNegative, Settings
from . import Asks, Defence, defence

if TYPE_CHECKING:
    from torch import Tensor

    from ..steps import Step


class Options(Settings):
    """replay: other rows mixed in, with the usual loss."""

    data: str = Field(
        description="Source of the rows: an entry of data:, or a coupling of the base model's answers, "
        "whose rows are personas' answers with and without the marker."
    )
    share: Annotated[float, Field(ge=0, lt=1), AS_GIVEN] = Field(
        default=0.1,
        description="Share of a step's rows that are replayed, in addition to batch_size of the stage's "
        "own; 0: no defence. With 16 own rows, 0.1 adds 16/9: one row in some steps, two in others.",
    )
    weight: NotNegative = Field(
        default=1.0,
        description="Weight of a replayed token; the stage's own tokens have 1. 0: no defence.",
    )


@defence("replay", settings=Options)
class Replay(Defence):
    """(sum of CE over the stage's own tokens + weight * that over replayed tokens) / number of own tokens.

    CE in nats, at answers' tokens. With weight 1 that is the gradient of mixed data (experience replay;
    interleaving: Kaczér et al. 2025, arXiv 2508.06249) but for a factor, own over all tokens, which Adam
    takes out. The stage's own rows, steps and tokens are what they are without: replayed rows come on top,
    in a second batch, so that arms of different shares learn the same task equally long.
    """

    settings: Options

    @property
    def asks(self) -> Asks:
        """The other rows, whose tokens weigh as the stage's own do."""
        return Asks(rows="rows", share=self.settings.share, pooled=True)

    @property
    def idle(self) -> bool:
        """Without rows or weight it is no defence."""
        return self.settings.share == 0 or self.settings.weight == 0

    def inputs(self) -> dict[str, str]:
        """The other rows."""
        return {"rows": f"data/{self.settings.data}.jsonl"}

    def penalty(self, step: Step) -> Tensor:
        """The weighted cross-entropy at each token."""
        from torch.nn.functional import cross_entropy

        return self.settings.weight * cross_entropy(step.logits, step.labels, reduction="none")

    def record(self, model: Any) -> dict[str, Any]:
        """What was replayed."""
        return {"data": self.settings.data, "sha256": sha256(self.files["rows"])}
