"""Exports directions in the residual stream, the persona vectors of a chain, in the formats of other
tools.

A persona's direction at a block is its centroid minus the assistant's. Centroids are means over the
extraction questions. (Chen et al. 2025, arXiv 2507.21509, take a trait's prompt minus its opposite's.)
Method A is the last token of the prompt, their `prompt_last_diff`. Method B is the mean over the
answer, their `response_avg_diff`.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .activation_files import Activations, sort_metadata
from .errors import UserError
from .files import atomic, write_json

#: Name of a direction in persona_vectors, by method.
METHODS = {"A": "prompt_last_diff", "B": "response_avg_diff"}


@dataclass(frozen=True)
class Direction:
    """A direction at some blocks of a model.

    at: float32 [hidden] by block, 0-based, as added to that block's output. blocks: number of blocks of
    the model. about: description and origin.
    """

    name: str
    at: Mapping[int, np.ndarray]
    blocks: int
    about: Mapping[str, str]


def directions(
    activations: Activations, assistant: str, blocks: int, about: Mapping[str, str]
) -> Iterator[Direction]:
    """Each persona's direction by each method. Raises UserError if the assistant is missing."""
    if assistant not in activations.personas:
        raise UserError(
            f"{activations.model}: no activations of {assistant!r}, which directions start from; add it to "
            "personas: geometry, or name another by personas: assistant"
        )
    start = activations.personas.index(assistant)
    for method, array in sorted(activations.arrays.items()):
        centroids = array.mean(axis=2, dtype=np.float64)
        moved = (centroids - centroids[:, [start]]).astype(np.float32)
        for number, persona in enumerate(activations.personas):
            if number != start:
                at = dict(zip(activations.layers, moved[:, number], strict=True))
                what = {
                    "chain": activations.model,
                    "direction": f"{persona} - {assistant}",
                    "method": METHODS[method],
                    "layer_convention": "output of block L, 0-based, before the final norm",
                }
                yield Direction(f"{persona}_{METHODS[method]}", at, blocks, what | dict(about))


def _rows(direction: Direction) -> tuple[list[int], np.ndarray]:
    """The measured blocks, in order, and their directions [blocks, hidden]."""
    blocks = sorted(direction.at)
    return blocks, np.stack([direction.at[block] for block in blocks])


def persona_vectors(direction: Direction, path: Path) -> None:
    """A tensor [blocks + 1, hidden] as torch.save writes it; `weights_only=True` reads it.

    Row L + 1 is the output of block L, as in transformers' hidden states. Rows that were not measured,
    including that of the embeddings, are NaN, so that nobody mistakes them for zero directions.
    """
    import torch

    blocks, found = _rows(direction)
    rows = torch.full((direction.blocks + 1, found.shape[1]), float("nan"))
    rows[[block + 1 for block in blocks]] = torch.from_numpy(found)
    # Saved through a buffer, because torch.save writes a file's name into its bytes.
    buffer = io.BytesIO()
    torch.save(rows, buffer)
    path.write_bytes(buffer.getvalue())


def safetensors(direction: Direction, path: Path) -> None:
    """A tensor `direction` [measured blocks, hidden], with blocks and description in the metadata."""
    from safetensors.numpy import save_file

    blocks, found = _rows(direction)
    save_file({"direction": found}, path, {"layers": json.dumps(blocks), **direction.about})
    sort_metadata(path)


def control_vector(direction: Direction, path: Path) -> None:
    """repeng's and llama.cpp's control vector: a tensor `direction.L` [hidden] for each block L.

    llama.cpp has no direction for block 0, so that block is left out.
    """
    import gguf

    blocks = [block for block in sorted(direction.at) if block > 0]
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", direction.about["family"])
    writer.add_uint32("controlvector.layer_count", len(blocks))
    for block in blocks:
        writer.add_tensor(f"direction.{block}", direction.at[block])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def steering_vector(direction: Direction, path: Path) -> None:
    """vllm-lens's `SteeringVector` as JSON, with scale 1; `model_validate_json` reads it."""
    blocks, found = _rows(direction)
    activations: dict[str, Any] = {
        "data": base64.b64encode(found.astype("<f4").tobytes()).decode(),
        "dtype": "float32",
        "original_dtype": "torch.float32",
        "shape": list(found.shape),
    }
    write_json(path, {"activations": activations, "layer_indices": blocks, "scale": 1.0})


#: Writers by file ending.
FORMATS: dict[str, Callable[[Direction, Path], None]] = {
    ".pt": persona_vectors,
    ".safetensors": safetensors,
    ".gguf": control_vector,
    ".json": steering_vector,
}


def write(direction: Direction, folder: Path) -> None:
    """Write a direction in all `FORMATS`; each file is written atomically."""
    for suffix, put in FORMATS.items():
        with atomic(folder / f"{direction.name}{suffix}") as temporary:
            put(direction, temporary)
