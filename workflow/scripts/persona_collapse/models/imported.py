"""LoRA adapters that were trained elsewhere: fetched, checked, and converted to plain adapters of one
rank."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapter_files import CONFIG, WEIGHTS, effective_scale
from ..errors import UserError
from ..files import read_json, sha256
from . import adapters, fetching, loading

if TYPE_CHECKING:
    import torch

#: Settings of PEFT's LoRA that are read here, or that only matter during training or placement.
KNOWN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config",
    "megatron_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "runtime_config", "target_modules", "task_type", "use_rslora", "velora_config",
}  # fmt: skip
#: Initialisations that do not change the base model.
INITIALISED = (None, True, False, "eva", "gaussian", "orthogonal")
FACTOR = re.compile(rf"{re.escape(adapters.PREFIX)}(.+)\.lora_([AB])\.weight")
#: Folder of a model in the hub's cache.
CACHED = re.compile(r"(?:^|/)models--([^/]+?)--([^/]+)")


def located(folder: str | Path) -> Path:
    """A folder with an adapter as safetensors. Raises UserError for any other folder."""
    for name in (CONFIG, WEIGHTS):
        if not Path(folder, name).is_file():
            pickled = "; a pickle such as adapter_model.bin is not loaded, because it can run code"
            raise UserError(
                f"{folder}: no {name} there{pickled if name == WEIGHTS else ''}: give a folder or "
                "repository that has one"
            )
    return Path(folder)


def fetch(source: Mapping[str, Any], progress: Callable[[str], None]) -> Path:
    """Folder of the adapter that a stage uses (`Stage.source`); downloads it if needed."""
    if "path" in source:
        return located(source["path"])
    name, revision = source["hub"]["id"], source["hub"]["revision"]
    inside = source["hub"].get("subfolder", "").strip("/")
    progress(f"fetching {name} at {revision}")
    patterns = [f"{inside}/{file}".lstrip("/") for file in (CONFIG, WEIGHTS)]
    return located(fetching.snapshot(name, revision, patterns, "hub") / inside)


def read(
    source: Mapping[str, Any], folder: Path, base: str | Path
) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, Any]]:
    """An adapter's PEFT config, its float32 tensors by name, and its manifest entries.

    The update s B A stays the same. If modules have their own ranks or scales (`rank_pattern`,
    `alpha_pattern`), A and B are padded with zeros to the largest rank, and B is multiplied by the
    module's scale over the common one. Raises UserError if it is more than LoRA on linear layers, names
    another base model than `base` (model.json), or does not fit that model.
    """
    import torch

    config = read_json(folder / CONFIG)
    _check_plain(config)
    named = str(config.get("base_model_name_or_path") or "")
    _check_base(named, source.get("base"), read_json(base))
    factors = _factors(folder)
    ranks = {path: a.shape[0] for path, (a, _) in factors.items()}
    plain = {**_scaling(config), "r": max(ranks.values())}
    if plain["r"] > source["r"]:
        raise UserError(f"the adapter's rank is {plain['r']}; set r: {plain['r']}")
    outline = loading.outline(base)
    _check_shapes(factors, outline)
    placed = {path: adapters.projections(outline)[path] for path in sorted(factors)}
    if other := sorted({name for name, _ in placed.values()} - set(source["target_modules"])):
        raise UserError(f"the adapter is also on {', '.join(other)}; add that to target_modules")
    tensors, scale = {}, effective_scale(plain)
    for path, (a, b) in factors.items():
        own = _own(config, path)
        if own["r"] != ranks[path]:
            raise UserError(
                f"{path}: its weights have rank {ranks[path]}, and {CONFIG} says {own['r']}"
            )
        more = plain["r"] - own["r"]
        b = b * (effective_scale(own) / scale)
        name = f"{adapters.PREFIX}{path}.lora_"
        tensors[f"{name}A.weight"] = torch.nn.functional.pad(a, (0, 0, 0, more))
        tensors[f"{name}B.weight"] = torch.nn.functional.pad(b, (0, more)).contiguous()
    written = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "bias": "none",
        "lora_dropout": 0.0,
        "base_model_name_or_path": loading.path_of(base),
        "target_modules": adapters.named(outline, placed),
        **plain,
    }
    record = {
        "imported": {
            **{key: source[key] for key in ("hub", "path") if key in source},
            "files": {name: sha256(folder / name) for name in (CONFIG, WEIGHTS)},
            "base_model_name_or_path": named,
            "ranks": sorted(set(ranks.values())),
        },
        "lora": {
            "r": plain["r"],
            "alpha": plain["lora_alpha"],
            "dropout": config.get("lora_dropout", 0.0),
            "use_rslora": plain["use_rslora"],
            "scale": scale,
            "target_modules": list(adapters.by_block(placed)),
            "blocks": adapters.by_block(placed),
            "modules": len(placed),
            "parameters": sum(a.numel() + b.numel() for a, b in factors.values()),
        },
    }
    return written, tensors, record


def _check_plain(config: Mapping[str, Any]) -> None:
    """Raise UserError if an adapter does more to a model than adding s B A to linear layers."""
    from peft import LoraConfig

    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise UserError(f"{CONFIG}: expected peft_type LORA, got {kind!r}")
    defaults = {name: f.default for name, f in LoraConfig.__dataclass_fields__.items()}
    for key, value in sorted(config.items()):
        if value and key not in KNOWN and value != defaults.get(key):
            raise UserError(
                f"{CONFIG}: {key}: {str(value)[:60]}: only plain LoRA on linear layers can be measured"
            )
    for key, value in _scaling(config).items():
        if not isinstance(value, int | float):
            raise UserError(f"{CONFIG}: {key}: expected a number, got {value!r}")
    how = config.get("init_lora_weights")
    if how not in INITIALISED:
        raise UserError(
            f"{CONFIG}: init_lora_weights: {how}: it was trained on a base model that this changed; "
            "convert it to plain LoRA (PEFT: save_pretrained with path_initial_model_for_weight_conversion)"
        )


def _scaling(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that `effective_scale` reads, with PEFT's defaults."""
    defaults = {"r": 8, "lora_alpha": 8, "use_rslora": False}
    return {key: config.get(key, value) for key, value in defaults.items()}


def _own(config: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Rank and alpha of a module."""
    from peft.utils.other import get_pattern_key

    own = _scaling(config)
    for key, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        given = config.get(pattern) or {}
        own[key] = given.get(get_pattern_key(list(given), path), own[key])
    return own


def _check_base(named: str, said: str | None, base: Mapping[str, Any]) -> None:
    """Raise UserError unless an adapter names this run's model, or the name that the config gives."""
    if said is not None:
        if named != said:
            raise UserError(f"base: {said!r}: {CONFIG} names {named!r} as its base model")
        return
    here = base["source"].get("hub", {}).get("id", base["path"])
    if set(_names(named)).isdisjoint([*_names(here), *_names(base["path"])]):
        raise UserError(
            f"{CONFIG} names {named!r} as its base model, and this run's is {here!r}; if both are the same "
            f"weights, set base: {named or repr('')}"
        )


def _names(model: str) -> Iterator[str]:
    """Name of a model for comparison: its id on the hub in lower case, or its folder."""
    if cached := CACHED.search(model):
        yield "/".join(cached.groups()).lower()
    elif model:
        yield str(Path(model).resolve()) if Path(model).exists() else model.lower()


def _factors(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A [rank, in] and B [out, rank] of each module, by its path; float32."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS}: damaged ({error}); fetch it again") from error
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        match = FACTOR.fullmatch(name)
        if match is None or tensor.ndim != 2:
            raise UserError(f"{WEIGHTS}: {name} is not a LoRA weight of a linear layer")
        if not tensor.isfinite().all():
            raise UserError(f"{WEIGHTS}: {name} holds numbers that are not finite")
        found.setdefault(match[1], {})[match[2]] = tensor.float().contiguous()
    if not found:
        raise UserError(f"{WEIGHTS}: holds no weights")
    if half := next((path for path, pair in found.items() if len(pair) < 2), None):
        raise UserError(f"{WEIGHTS}: {half} has lora_A or lora_B alone")
    return {path: (pair["A"], pair["B"]) for path, pair in found.items()}


def _check_shapes(factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]], outline: Any) -> None:
    """Raise UserError for a module that the base model does not have, or that has another size there."""
    from torch.nn import Linear

    there = adapters.projections(outline)
    for path, (a, b) in factors.items():
        if path not in there:
            raise UserError(
                f"{WEIGHTS}: the base model has no linear layer {path}; was it trained on another?"
            )
        layer = outline.get_submodule(path)
        size = tuple(layer.weight.shape)
        size = size if isinstance(layer, Linear) else size[::-1]  # GPT-2's are transposed
        if (b.shape[0], a.shape[1]) != size or b.shape[1] != a.shape[0]:
            raise UserError(
                f"{WEIGHTS}: {path}: an update of {b.shape[0]} x {a.shape[1]} (ranks {b.shape[1]} and "
                f"{a.shape[0]}) for a layer of {size[0]} x {size[1]}; was it trained on another base model?"
            )
