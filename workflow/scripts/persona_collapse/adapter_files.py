"""Files of an adapter's folder, and the hash of their content."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .files import read_json, sha256

if TYPE_CHECKING:  # code that only reads hashes does not import it
    import numpy as np

WEIGHTS = "adapter_model.safetensors"


CONFIG = "adapter_config.json"
#: Manifest entries of an adapter that was not trained.
UNTRAINED: Mapping[str, Any] = {
    **dict.fromkeys(("rows_seen", "tokens_seen", "supervised_tokens", "epochs_seen"), 0),
    **dict.fromkeys(("seconds", "seconds_total"), 0.0),
    "loss": [],
}
#: `peft_type` in the config of a stage that trained all weights. Its tensors are the change W' - W of
#: every parameter, by name, instead of factors.
ALL_WEIGHTS = "ALL_WEIGHTS"


def split(
    directories: Sequence[str | Path], kind: str = ALL_WEIGHTS
) -> tuple[list[Path], list[Path]]:
    """A chain's folders, split into those of a kind (`peft_type` in their config) and the others."""
    found: tuple[list[Path], list[Path]] = [], []
    for directory in map(Path, directories):
        found[read_json(directory / CONFIG).get("peft_type") != kind].append(directory)
    return found


def content_hash(directories: Sequence[str | Path]) -> str:
    """Hash of a chain's weights and configs, short enough for an engine's adapter name.

    The hash of the weights is read from the manifest in the same folder; `load` compares the weights
    with it.
    """
    digest = hashlib.sha256()
    for directory in map(Path, directories):
        manifest = directory / "manifest.json"
        named = read_json(manifest).get("adapter_sha256") if manifest.is_file() else None
        weights = named or sha256(directory / WEIGHTS)
        digest.update((directory / CONFIG).read_bytes() + weights.encode())
    return digest.hexdigest()[:16]


def effective_scale(config: Mapping[str, Any]) -> float:
    """Factor on B A: alpha / sqrt(r) with rank-stabilised LoRA, alpha / r without.

    rsLoRA: Kalajdzievski 2023, arXiv 2312.03732.
    """
    rank = config["r"]
    return float(config["lora_alpha"] / (math.sqrt(rank) if config["use_rslora"] else rank))


def arrays(directory: str | Path) -> tuple[float, dict[str, np.ndarray]]:
    """An adapter's factor on B A, and its float32 arrays by name, without PyTorch.

    For a stage that trained all weights: 1 and the weight changes. A damaged file raises UserError.
    """
    import numpy as np
    from safetensors import SafetensorError, deserialize

    path = Path(directory) / WEIGHTS
    try:
        tensors = deserialize(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged or missing ({error}); delete it and rerun") from error
    found = {}
    for name, tensor in tensors:
        if tensor["dtype"] == "BF16":  # the upper half of a float32
            numbers = (np.frombuffer(tensor["data"], "<u2").astype("<u4") << 16).view("<f4")
        else:
            kind = {"F32": "<f4", "F16": "<f2"}[tensor["dtype"]]
            numbers = np.frombuffer(tensor["data"], kind).astype("<f4")
        found[name] = numbers.reshape(tensor["shape"])
    config = read_json(Path(directory) / CONFIG)
    return 1.0 if config.get("peft_type") == ALL_WEIGHTS else effective_scale(config), found
