"""Losses on the tokens that carry loss, one file each.

A loss is a function with `@loss("its_name")` in a file of that name. A training depends only on the
file of its own loss. So a new file retrains nothing, and a changed file retrains only the stages that
name it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...plugins import Room

if TYPE_CHECKING:
    from torch import Tensor

#: (logits [n, vocabulary], labels [n], before) -> the sum over the n tokens. `before()` gives the
#: logits of the model before this stage at the same tokens, without gradients.
Loss = Callable[["Tensor", "Tensor", Callable[[], "Tensor"]], "Tensor"]

ROOM: Room[Loss] = Room(__name__, "loss")
names, get = ROOM.names, ROOM.get
#: Steps with this loss can be recorded: it ignores labels of -100.
DEFAULT = "cross_entropy"


def loss(name: str) -> Callable[[Loss], Loss]:
    """Register a function as the loss of this name."""

    def register(function: Loss) -> Loss:
        ROOM.add(name, function)
        return function

    return register
