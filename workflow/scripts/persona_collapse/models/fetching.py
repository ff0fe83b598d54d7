"""Fetches the base model from the hub, a folder or a GGUF file, and records its files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_json, sha256
from . import gguf

#: Files about the model that do not decide it; one holds the time that pretraining took.
RECORDS = {"model.json", "pretraining.json", "expanded.json"}


def manifest(directory: str | Path, source: dict[str, Any]) -> dict[str, Any]:
    """Record of a local model folder: path, source, size, and SHA-256 of every file that determines it.

    Weights that are missing or cut short raise UserError, because a recorded model counts as fetched.
    """
    folder = Path(directory)
    kept: tuple[str, ...] = (".json", ".safetensors", ".jinja", ".txt", ".model")
    if source.get("trust_remote_code"):
        kept += (".py",)
    files = sorted(
        p for p in folder.iterdir() if p.suffix in kept and p.name not in RECORDS and p.is_file()
    )
    weights = {p.name for p in files if p.suffix == ".safetensors"}
    if not weights:
        raise UserError(f"{folder}: no .safetensors weights there; pickled weights are not loaded")
    index = folder / "model.safetensors.index.json"
    listed = set(read_json(index)["weight_map"].values()) if index.is_file() else set()
    sizes: dict[str, int] = {}
    for name in sorted(weights | listed):
        sizes |= tensor_sizes(folder / name)
    card = folder / "config.json"
    read = read_json(card) if card.is_file() else {}
    config = read if isinstance(read, dict) else {}  # the loader reports what is not a config
    if config.get("tie_word_embeddings"):  # some files hold tied weights twice
        sizes.pop("lm_head.weight", None)
    return {
        "path": str(directory),
        "source": source,
        "family": config.get("model_type", ""),
        "parameters": sum(sizes.values()),
        "files": {p.name: sha256(p) for p in files},
    }


def tensor_sizes(weights: Path) -> dict[str, int]:
    """Number of elements of each tensor in a safetensors file, by name.

    Raises UserError for a file whose size differs from its header.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(weights), framework="pt") as file:
            names = file.keys()
            return {name: math.prod(file.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{weights}: missing, damaged or cut short ({error}); delete it and fetch it again"
        ) from error


def expand_gguf(file: Path, folder: Path) -> None:
    """Write the chat model of a GGUF file into a folder, as safetensors.

    Transformers expands the quantised weights to float32; the loss of precision remains. Raises
    UserError for a file that transformers cannot convert.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, name = str(file.parent), file.name
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where, gguf_file=name, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
    except (ImportError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"config: model: gguf: {name} cannot be expanded ({first})") from error
    config = loaded.config
    # The config still says "quantised", and such a model cannot be saved. So build one without that
    # entry, without weights, and give it these.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tokenizer(source: dict[str, Any], progress: Callable[[str], None]) -> Any:
    """The tokenizer of a model without its weights; `source`: see `Tokenizer` in study/config.py.

    Raises UserError if there is none.
    """
    from transformers import AutoTokenizer

    try:
        if "gguf" in source:
            with gguf.located(source["gguf"], gguf.cache()) as file:
                return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        folder = (
            Path(source["path"]) if "path" in source else fetch(source, progress, weights=False)
        )
        if not (folder / "tokenizer_config.json").is_file():
            raise UserError(f"{folder}: no tokenizer_config.json there")
        return AutoTokenizer.from_pretrained(folder)
    except UserError:
        raise
    except (ImportError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"config: model: random: tokenizer: cannot be read ({first})") from error


def fetch(source: dict[str, Any], progress: Callable[[str], None], *, weights: bool = True) -> Path:
    """Folder of the model that the config's `model:` names; downloads it from the hub if needed.

    Only safetensors weights, configs and tokenizer files are fetched, and Python files if they are
    trusted. Without `weights`, no weights are fetched. A gated or missing model raises UserError that
    says what to do.
    """
    if "path" in source:
        folder = Path(source["path"])
        if not (folder / "config.json").is_file():
            raise UserError(f"config: model: path: {folder}: no config.json there")
        return folder.resolve()
    name, revision = source["hub"]["id"], source["hub"]["revision"]
    patterns = ["*.json", "*.jinja", "*.txt", "*.model"]
    if weights:
        patterns.append("*.safetensors")
    if source.get("trust_remote_code"):
        patterns.append("*.py")
    progress(f"fetching {name} at {revision}")
    return snapshot(name, revision, patterns, "config: model: hub")


def snapshot(name: str, revision: str, patterns: Sequence[str], where: str) -> Path:
    """Folder with the matching files of a repository on the hub; downloads missing ones.

    `where`: its place in the config. A gated or missing repository raises UserError that says what to
    do.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise UserError(
            f"{where}: {name} at {revision} could not be downloaded ({type(error).__name__}): check id and "
            "revision, set HF_TOKEN if it is gated, or give a local path"
        ) from error
