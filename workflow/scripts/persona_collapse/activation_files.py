"""Files of activations. Nothing here needs PyTorch, because the statistics read them without it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import UserError
from .files import atomic

METHODS = ("A", "B")


@dataclass(frozen=True)
class Activations:
    """Arrays by method, float32 [layer, persona, question, hidden], and the labels of the axes."""

    layers: list[int]
    personas: list[str]
    questions: list[str]
    arrays: dict[str, np.ndarray]
    model: str = ""


def save(activations: Activations, path: str | Path, dtype: str = "float16") -> None:
    """Write the arrays in 16 bit, with the axis labels as metadata.

    `bfloat16` keeps the range of large models whose activations overflow float16. An overflow in
    float16 raises UserError instead of storing infinities.
    """
    from safetensors import TensorSpec, serialize_file

    stored = {}
    for method, array in activations.arrays.items():
        stored[method] = _to_16_bit(array, dtype)
        if not np.isfinite(_to_float32(stored[method], dtype)).all():
            raise UserError(
                f"{activations.model}, method {method}: activations are not finite in {dtype}; "
                "set measures: activations: dtype: bfloat16"
            )
    metadata = {
        "model": activations.model,
        "axes": json.dumps(["layer", "persona", "question", "hidden"]),
        "layers": json.dumps(activations.layers),
        "layer_convention": "output of block L, 0-based; last block before the final norm",
        "personas": json.dumps(activations.personas),
        "questions": json.dumps(activations.questions),
        "methods": json.dumps(
            {
                "A": "last token of the prompt with generation prompt",
                "B": "mean over the answer's tokens without its end token",
            }
        ),
    }
    metadata["sha256"] = _content(stored)
    # Not safetensors.numpy, which has no bfloat16.
    tensors = {
        method: TensorSpec(
            dtype=dtype, shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes
        )
        for method, array in stored.items()
    }
    with atomic(path) as temporary:
        serialize_file(tensors, temporary, metadata=metadata)
        sort_metadata(temporary)


def load(path: str | Path) -> Activations:
    """Read a file written by `save`; float32 arrays. A damaged file raises UserError."""
    from safetensors import SafetensorError, deserialize

    # The library returns arrays in varying order; sort them, because tables follow this order.
    names = {"F16": "float16", "BF16": "bfloat16"}
    try:
        data = Path(path).read_bytes()
        tensors = {
            method: (names[tensor["dtype"]], tensor["shape"], np.frombuffer(tensor["data"], "<u2"))
            for method, tensor in sorted(deserialize(data), key=lambda pair: pair[0])
        }
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        seal = metadata["sha256"]
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path}: damaged or missing ({error}); delete it and rerun") from error
    if seal != _content({method: bits for method, (_, _, bits) in tensors.items()}):
        raise UserError(f"{path}: not the arrays that were written; delete it and rerun")
    return Activations(
        json.loads(metadata["layers"]),
        json.loads(metadata["personas"]),
        json.loads(metadata["questions"]),
        {m: _to_float32(bits, dtype).reshape(shape) for m, (dtype, shape, bits) in tensors.items()},
        metadata["model"],
    )


def loader(
    files: Iterable[str | Path], progress: Callable[[str], None]
) -> tuple[set[str], Callable[[str], Activations]]:
    """Names of the chains of these files, and a function that reads a chain's file on demand."""
    paths = {Path(path).stem: path for path in files}

    def read(chain: str) -> Activations:
        progress(f"reading {chain}")
        return load(paths[chain])

    return set(paths), read


def _to_16_bit(array: np.ndarray, dtype: str) -> np.ndarray:
    """Bits of the values rounded to `dtype`, ties to even; uint16."""
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(array, "<f2").view("<u2")
    # bfloat16 is the upper half of a float32.
    bits = np.ascontiguousarray(array, "<f4").view("<u4")
    return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype("<u2")


def _to_float32(bits: np.ndarray, dtype: str) -> np.ndarray:
    """The values that these 16 bits encode."""
    if dtype == "float16":
        return bits.view("<f2").astype(np.float32)
    return (bits.astype("<u4") << 16).view("<f4")


def sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file, because the library writes it in varying order."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:  # spaces at the end are the format's own padding
            file.seek(8)
            file.write(text.ljust(size))


def _content(stored: Mapping[str, np.ndarray]) -> str:
    """Hash of the arrays' bytes."""
    digest = hashlib.sha256()
    for method in sorted(stored):
        digest.update(stored[method].data)
    return digest.hexdigest()
