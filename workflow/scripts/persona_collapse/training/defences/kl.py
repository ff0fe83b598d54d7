"""Stay close to the model as it was before the stage, in what it predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ...settings import NotNegative, Settings
from . import Asks, Defence, defence

if TYPE_CHECKING:
    from torch import Tensor

    from ..steps import Step


class Options(Settings):
    """kl: a weight times the Kullback-Leibler divergence between the model now and before the stage."""

    weight: NotNegative = Field(
        default=0.1,
        description="Weight of the mean divergence against the mean loss, both in nats per token; 0: no "
        "defence.",
    )
    direction: Literal["now_before", "before_now"] = Field(
        default="now_before",
        description="now_before: KL(now || before), which punishes what the model before would not say. "
        "before_now: KL(before || now), which punishes what it would no longer say.",
    )
    tokens: Literal["answer", "all"] = Field(
        default="answer",
        description="Tokens that count. answer: those that carry loss. all: the prompt's too.",
    )
    data: str | None = Field(
        default=None,
        description="An entry of data: whose rows the divergence is taken on, as many per step as the stage "
        "trains on. Default: the stage's own rows.",
    )


@defence("kl", settings=Options)
class KL(Defence):
    """CE + weight * KL per token, over the whole vocabulary (Kaczér et al. 2025, arXiv 2508.06249).

    The model before is this one with the stage's adapter left out, so that earlier stages act.
    """

    settings: Options
    shares = 2

    @property
    def asks(self) -> Asks:
        """The tokens, and the other data set if one is named."""
        return Asks(rows="rows" if self.settings.data else "", tokens=self.settings.tokens)

    @property
    def idle(self) -> bool:
        """Weight 0 is no defence."""
        return self.settings.weight == 0

    def inputs(self) -> dict[str, str]:
        """The other data set."""
        return {"rows": f"data/{self.settings.data}.jsonl"} if self.settings.data else {}

    def penalty(self, step: Step) -> Tensor:
        """The weighted divergence at each token."""
        from torch.nn.functional import kl_div

        now, before = step.logits.log_softmax(-1), step.before.log_softmax(-1)
        # kl_div(q, p) is the sum of p (log p - log q).
        of, other = (now, before) if self.settings.direction == "now_before" else (before, now)
        divergence = kl_div(other, of, log_target=True, reduction="none").sum(-1)
        return self.settings.weight * divergence
