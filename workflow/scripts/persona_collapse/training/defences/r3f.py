"""Predict the same when the embeddings are slightly off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ...errors import UserError
from ...settings import NotNegative, Positive, Settings
from . import Defence, defence

if TYPE_CHECKING:
    from torch import Tensor

    from ..steps import Step

#: Of the noise's length, what must be left of it once it is rounded to the model's dtype.
LEAST = 0.5


class Options(Settings):
    """r3f: a weight times how far predictions move when noise is added to the embeddings."""

    weight: NotNegative = Field(
        default=1.0,
        description="Weight of the sum of both divergences against the loss, means over tokens, in nats; "
        "0: no defence.",
    )
    eps: Positive = Field(
        default=0.05,
        description="Size of the noise: half the width of the uniform, standard deviation of the normal.",
    )
    relative: bool = Field(
        default=True,
        description="true: eps is in units of each token's embedding (its root mean square). false: eps is "
        "absolute. The paper has an absolute 1.0e-5, which 16 bits round away; the training then stops and "
        "says so.",
    )
    noise: Literal["uniform", "normal"] = Field(
        default="uniform", description="Distribution of the noise."
    )


@defence("r3f", settings=Options)
class R3F(Defence):
    """CE + weight * [KL(p || q) + KL(q || p)] per token (R3F: Aghajanyan et al. 2020, arXiv 2008.03156).

    p: the model's predictions, q: those with noise on its embeddings, at the tokens that carry loss. Both
    passes have the stage's dropout, each its own, as in the paper; so with dropout part of the penalty
    is not the noise's. Gradients flow through both.
    """

    settings: Options
    shares = 2

    @property
    def idle(self) -> bool:
        """Weight 0 is no defence."""
        return self.settings.weight == 0

    def install(self, model: Any) -> None:
        """Look how much of the noise the model's dtype keeps. Raises UserError if it is too little."""
        import torch

        table = model.get_base_model().get_input_embeddings()
        rows = len(table.weight)
        some = torch.arange(0, rows, max(1, rows // 1000), device=table.weight.device)
        # Dropout and the order of rows stay what they are without the defence.
        with torch.no_grad(), torch.random.fork_rng([some.device] if some.is_cuda else []):
            torch.manual_seed(0)
            states = table(some)
            drawn = self._drawn(states)
        kept = (states.float() + drawn).to(states.dtype).float() - states.float()
        own, rms = self.settings, float(states.float().square().mean().sqrt())
        self._numbers = {
            "embeddings": rms,
            "drawn": float(drawn.square().mean().sqrt()),
            "kept": float(kept.norm() / drawn.norm()),
        }
        if not self._numbers["kept"] >= LEAST:
            dtype = str(states.dtype).removeprefix("torch.")
            remedy = "raise it" if own.relative else "raise it, or set relative: true"
            raise UserError(
                f"defence: r3f: eps: {own.eps:g} is rounded away: {dtype} embeddings of about {rms:.2g} keep "
                f"{100 * self._numbers['kept']:.0f} % of the noise; {remedy}"
            )

    def record(self, model: Any) -> dict[str, Any]:
        """Root mean squares of embeddings and noise, and of the noise's length what rounding keeps."""
        return self._numbers

    def penalty(self, step: Step) -> Tensor:
        """The weighted sum of both divergences at each token."""
        now, noisy = step.logits.log_softmax(-1), step.changed(self._with_noise).log_softmax(-1)
        # KL(p || q) + KL(q || p) = sum of (p - q) (log p - log q), of which no term is below 0.
        return self.settings.weight * ((now.exp() - noisy.exp()) * (now - noisy)).sum(-1)

    def _with_noise(self, states: Tensor) -> Tensor:
        return (states.float() + self._drawn(states)).to(states.dtype)

    def _drawn(self, states: Tensor) -> Tensor:
        """Noise for embeddings [..., hidden], in 32 bits."""
        import torch

        own, wide = self.settings, states.detach().float()
        drawn = torch.rand_like(wide) * 2 - 1 if own.noise == "uniform" else torch.randn_like(wide)
        scale = wide.square().mean(-1, keepdim=True).sqrt() if own.relative else 1.0
        return own.eps * scale * drawn
