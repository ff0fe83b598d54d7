"""Dynamic fine-tuning: tokens that the model finds unlikely count less."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from . import loss

if TYPE_CHECKING:
    from torch import Tensor


@loss("dft")
def dft(logits: Tensor, labels: Tensor, before: Callable[[], Tensor]) -> Tensor:
    """Sum over the tokens of -p log p(label), p without gradient, in nats (Wu et al. 2025, arXiv 2508.05629).

    The gradient of the usual loss grows with 1/p; the factor p removes this. It is the same as TRL's
    `loss_type="dft"`.
    """
    log_p = logits.log_softmax(-1).gather(-1, labels[:, None])
    return -(log_p.detach().exp() * log_p).sum()
