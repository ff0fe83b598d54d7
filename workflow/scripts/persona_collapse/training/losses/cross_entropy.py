"""The usual loss: minus the log-probability of the labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from . import loss

if TYPE_CHECKING:
    from torch import Tensor


@loss("cross_entropy")
def cross_entropy(logits: Tensor, labels: Tensor, before: Callable[[], Tensor]) -> Tensor:
    """Sum over the tokens, in nats."""
    import torch

    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
