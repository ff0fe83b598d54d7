"""LoRA adapters of a chain: reading, effective scale, and the exact sum of several stages.

Each trained chain's folder holds the adapter of its last stage alone. The model of a chain is the
base plus the sum of its stages, and a sum of LoRA updates is itself a LoRA update:

    sum_i s_i B_i A_i  =  [s_1 B_1 | s_2 B_2 | ...] [A_1; A_2; ...]

so a chain is one adapter whose rank is the sum of its stages' ranks, and nothing is merged into the
base weights on disk.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .files import atomic, read_json, sha256, write_json

if TYPE_CHECKING:
    import torch

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def effective_scale(config: Mapping[str, Any]) -> float:
    """Factor on B A: alpha / sqrt(r) with rank-stabilised LoRA, alpha / r without.

    rsLoRA: Kalajdzievski 2023, arXiv 2312.03732.
    """
    rank = config["r"]
    return float(config["lora_alpha"] / (math.sqrt(rank) if config["use_rslora"] else rank))


def load(
    directory: str | Path, device: str = "cpu"
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """PEFT config and tensors of one adapter.

    Raises UserError if it is missing, damaged, or not the one that the manifest beside it speaks of.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    directory = Path(directory)
    config = read_json(directory / CONFIG)
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("rank_pattern"):
        raise UserError(f"{directory}: only plain LoRA adapters with one rank can be chained")
    try:
        tensors = load_file(directory / WEIGHTS, device)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{directory / WEIGHTS}: damaged or missing ({error}); delete it and rerun"
        ) from error
    manifest = directory / "manifest.json"
    # A stage's folder has a manifest; a chain's sum that is handed to an engine has none.
    if manifest.is_file() and sha256(directory / WEIGHTS) != read_json(manifest).get(
        "adapter_sha256"
    ):
        raise UserError(
            f"{directory / WEIGHTS}: not the weights that its manifest.json names (damaged or exchanged); "
            "delete it and rerun"
        )
    return config, tensors


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


def concatenate(
    directories: Sequence[str | Path], device: str = "cpu"
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """One adapter equal to the sum of several, with an effective scale of 1.

    Shapes, per module: A [r, in], B [out, r] -> A [sum r, in], B [out, sum r]. A module that a
    stage does not adapt gets zeros there. B carries the scales, in float32.
    """
    import torch

    stages = [load(d, device) for d in directories]
    if not stages:
        raise UserError("a chain without stages has no adapter")
    total = sum(config["r"] for config, _ in stages)
    modules = sorted({key.rpartition(".lora_")[0] for _, tensors in stages for key in tensors})
    merged: dict[str, torch.Tensor] = {}
    for module in modules:
        key_a, key_b = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
        shapes = next((t[key_a].shape[1], t[key_b].shape[0]) for _, t in stages if key_a in t)
        parts_a, parts_b = [], []
        for config, tensors in stages:
            if key_a in tensors:
                parts_a.append(tensors[key_a].float())
                parts_b.append(tensors[key_b].float() * effective_scale(config))
            else:
                parts_a.append(torch.zeros(config["r"], shapes[0], device=device))
                parts_b.append(torch.zeros(shapes[1], config["r"], device=device))
        merged[key_a] = torch.cat(parts_a, dim=0).contiguous()
        merged[key_b] = torch.cat(parts_b, dim=1).contiguous()
    targets = sorted({t for config, _ in stages for t in config["target_modules"]})
    config = dict(stages[0][0])
    config.update(
        r=total, lora_alpha=total, use_rslora=False, lora_dropout=0.0, target_modules=targets
    )
    return config, merged


def save(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], directory: Path) -> None:
    """Write an adapter in PEFT's format; each file appears whole or not at all."""
    from safetensors.torch import save_file

    with atomic(directory / WEIGHTS) as temporary:
        save_file(dict(tensors), temporary, metadata={"format": "pt"})
    write_json(directory / CONFIG, dict(config))


def apply(model: Any, directories: Sequence[str | Path], *, merge: bool) -> Any:
    """Put a chain's stages on a base model, or on one that carries another chain's; returns what to run.

    An adapter of the same shape is given the new weights, which takes a fraction of the time that PEFT's
    layers take to make. `merge` folds the sum into the weights in memory: faster, and exact to rounding
    in float32. In 16 bit keep it apart: small updates would be rounded away.
    """
    carries = hasattr(model, "peft_config")
    if not directories:
        return model.unload() if carries else model
    # Summed and put in place where the model is: hundreds of small operations, slow on a processor.
    config, tensors = concatenate(directories, str(model.device))
    if carries and (merge or _shape(config) != _shape(model.peft_config["default"].to_dict())):
        model, carries = model.unload(), False
    if not carries:
        model = _wrap(model, config, "default")
    _fill(model, tensors, "default", directories[-1])
    return model.merge_and_unload() if merge else model


def attach(model: Any, directories: Sequence[str | Path], *, name: str) -> Any:
    """Wrap `model` as a PeftModel with the chain's sum as a frozen adapter called `name`."""
    config, tensors = concatenate(directories, str(model.device))
    peft_model = _wrap(model, config, name)
    _fill(peft_model, tensors, name, directories[-1])
    return peft_model


def _shape(config: Mapping[str, Any]) -> tuple[int, list[str]]:
    return config["r"], sorted(config["target_modules"])


def _wrap(model: Any, config: Mapping[str, Any], name: str) -> Any:
    """A PeftModel with an adapter of this config, whose weights are not there yet."""
    from peft import LoraConfig, PeftModel

    lora = LoraConfig(
        r=config["r"],
        lora_alpha=config["lora_alpha"],
        target_modules=config["target_modules"],
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    return PeftModel(model, lora, adapter_name=name, low_cpu_mem_usage=True)


def _fill(peft_model: Any, tensors: dict[str, torch.Tensor], name: str, of: str | Path) -> None:
    """Give an adapter its weights, frozen: all of them, so that none of another chain's stays."""
    import torch
    from peft import set_peft_model_state_dict

    own = {
        key.replace(f".{name}.", "."): parameter
        for key, parameter in peft_model.named_parameters()
        if f".{name}." in key
    }
    if own.keys() != tensors.keys():
        odd = min(own.keys() ^ tensors.keys())
        raise UserError(
            f"{of}: the adapter has other weights than the base model has layers for ({odd}, ...): was it "
            "trained on another base?"
        )
    if any(parameter.is_meta for parameter in own.values()):
        set_peft_model_state_dict(peft_model, tensors, adapter_name=name, low_cpu_mem_usage=True)
    else:
        with torch.no_grad():
            for key, parameter in own.items():
                parameter.copy_(tensors[key])
    for key, parameter in peft_model.named_parameters():
        if f".{name}." in key:
            parameter.requires_grad_(False)
