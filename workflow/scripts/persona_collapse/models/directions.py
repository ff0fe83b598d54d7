"""Directions in the residual stream: read from the run's activations, and applied to the outputs of
blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .loading import blocks_of, resolve_layers

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..activation_files import Activations

#: A function that changes a block's output, [..., hidden] -> [..., hidden].
Change = Callable[["Tensor"], "Tensor"]
#: [persona, question, hidden] or [persona, hidden], in NumPy or PyTorch.
Array = TypeVar("Array", "np.ndarray", "Tensor")


def states(
    found: Activations, method: str, layers: Sequence[int | float], blocks: int
) -> dict[int, np.ndarray]:
    """Activations by block of a model with this many blocks; float32 [persona, question, hidden].

    `layers`: as written in the config. Raises UserError for a block that the model does not have.
    """
    array = found.arrays[method]
    return {layer: array[found.layers.index(layer)] for layer in resolve_layers(layers, blocks)}


def displacements(before: Array, after: Array) -> Array:
    """Movement of each persona's centroid, [persona, hidden]; from states [persona, question, hidden]."""
    return after.mean(1) - before.mean(1)


def drawn(
    vectors: np.ndarray, seed: int, block: int, within: np.ndarray | None = None
) -> np.ndarray:
    """Random directions with the lengths of these, [row, hidden], as a control; drawn by seed and
    block.

    within: centroids [persona, hidden]; directions are sums of them with random weights that add up to
    0. None: directions are uniform.
    """
    import numpy as np

    rng = np.random.default_rng([seed, block])
    if within is None:
        found = rng.normal(size=vectors.shape)
    else:
        weights = rng.normal(size=(len(vectors), len(within)))
        found = (weights - weights.mean(1, keepdims=True)) @ within
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return found * (lengths / np.linalg.norm(found, axis=1, keepdims=True))


def hook(model: Any, changes: Mapping[int, Change], off: Callable[[], bool]) -> list[Any]:
    """Change the outputs of blocks, except in passes while `off`; returns the hooks, which the caller
    removes."""

    def hooked(change: Change) -> Callable[..., Any]:
        def changed(module: Any, given: Any, out: Any) -> Any:
            if off():
                return out
            return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

        return changed

    blocks = blocks_of(model)
    return [blocks[layer].register_forward_hook(hooked(one)) for layer, one in changes.items()]
