"""What a stage minimises on the tokens that carry loss, a file each.

A loss is a function with `@loss("its_name")` in a file of that name. What a training depends on is the
file of its own loss, so a new file retrains nothing and a changed one just the stages that name it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...plugins import Room

if TYPE_CHECKING:
    from torch import Tensor

#: (logits [n, vocabulary], labels [n], before) -> the sum over the n tokens. `before()` gives the same
#: tokens' logits by the model as it was before this stage, without gradients.
Loss = Callable[["Tensor", "Tensor", Callable[[], "Tensor"]], "Tensor"]

ROOM: Room[Loss] = Room(__name__, "loss")
names, get = ROOM.names, ROOM.get
#: Steps of this one can be recorded: it counts a label of -100 for nothing.
DEFAULT = "cross_entropy"


def loss(name: str) -> Callable[[Loss], Loss]:
    """Make a function known as the loss of this name."""

    def register(function: Loss) -> Loss:
        ROOM.add(name, function)
        return function

    return register
