"""What a stage minimises on the tokens that carry loss (which those are, `loss_on:` says; see chat.py).

An objective is a function with `@objective` here and its name under `loss:` of a stage. Its
source is part of what a training depends on, so a new one retrains nothing and a changed one just
the stages that name it; therefore it calls nothing else of this file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..files import sha256_text

#: (logits [n, vocabulary], labels [n], before) -> the sum over the n tokens. `before()` gives the same
#: tokens' logits by the model as it was before this stage, without gradients.
Objective = Callable[[Any, Any, Callable[[], Any]], Any]
OBJECTIVES: dict[str, Objective] = {}
DEFAULT = "cross_entropy"


def objective(function: Objective) -> Objective:
    """Make a function known by its name."""
    OBJECTIVES[function.__name__] = function
    return function


def code_of(name: str) -> str:
    """Hash of an objective's source."""
    return sha256_text(inspect.getsource(OBJECTIVES[name]))[:16]


@objective
def cross_entropy(logits: Any, labels: Any, before: Callable[[], Any]) -> Any:
    """The usual loss: minus the log-probability of the labels."""
    import torch

    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
