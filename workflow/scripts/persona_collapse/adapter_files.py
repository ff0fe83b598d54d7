"""Files of an adapter's folder, and the hash that stands for what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from .files import read_json, sha256

WEIGHTS = "adapter_model.safetensors"


CONFIG = "adapter_config.json"


def content_hash(directories: Sequence[str | Path]) -> str:
    """Hash of a chain's weights and configs, short enough for an engine's adapter name.

    The weights' own hash is read from the manifest beside them, which `load` holds them to.
    """
    digest = hashlib.sha256()
    for directory in map(Path, directories):
        manifest = directory / "manifest.json"
        named = read_json(manifest).get("adapter_sha256") if manifest.is_file() else None
        weights = named or sha256(directory / WEIGHTS)
        digest.update((directory / CONFIG).read_bytes() + weights.encode())
    return digest.hexdigest()[:16]
