"""LoRA adapters of a chain: reading, effective scale, and the exact sum of several stages.

The folder of a trained chain holds only the adapter of its last stage. The model of a chain is the base
plus the sum of its stages, and a sum of LoRA updates is itself a LoRA update:

    sum_i s_i B_i A_i  =  [s_1 B_1 | s_2 B_2 | ...] [A_1; A_2; ...]

So a chain is one adapter whose rank is the sum of its stages' ranks, and nothing is merged into the
base weights on disk. A stage that trained all weights holds their change. It is added to the base
weights in memory (`load_base`), and the adapters of the other stages are put on that sum.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapter_files import ALL_WEIGHTS, CONFIG, WEIGHTS
from ..adapter_files import effective_scale as effective_scale
from ..adapter_files import split as split
from ..errors import UserError
from ..files import atomic, read_json, sha256, write_json
from .loading import bare, blocks_of, load_model

if TYPE_CHECKING:
    import torch

#: What PEFT puts before a module's path in an adapter file.
PREFIX = "base_model.model."


#: By module path: name of the projection, and block; None for the output head, which is in no block.
Modules = Mapping[str, tuple[str, int | None]]


def projections(model: Any) -> Modules:
    """The modules that can get an adapter: linear layers in a language model's blocks, and its output
    head.

    `model`: with or without adapters. Image and audio towers are left out, because they get no input
    here. So are weights that are not separate linear layers, such as fused experts of a mixture.
    """
    from peft.tuners.lora import LoraLayer
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    inner = bare(model)
    inside: dict[int, int | None] = {
        id(m): i for i, b in enumerate(blocks_of(inner)) for m in b.modules()
    }
    inside |= {id(inner.get_output_embeddings()): None}
    return {
        path: (path.rpartition(".")[2], inside[id(module)])
        for path, module in inner.named_modules()
        if isinstance(module, Linear | Conv1D | LoraLayer)
        and id(module) in inside
        and not {"base_layer", "lora_A", "lora_B"}
        & set(path.split("."))  # parts of a layer with LoRA
    }


def targets(model: Any, names: Sequence[str], blocks: Sequence[float] | None = None) -> Modules:
    """The modules that get an adapter, given names of projections; see `projections`.

    `blocks`: range of relative depths; None for all blocks. Raises UserError for a name that the
    model's blocks do not have, and for a range that contains no block.
    """
    every = projections(model)
    there = dict.fromkeys(name for name, block in every.values() if block is not None)
    missing = sorted(set(names) - {name for name, _ in every.values()})
    if missing:
        raise UserError(
            f"config: target_modules: {type(model).__name__} has no {', '.join(missing)}; the projections "
            f"of its blocks are [{', '.join(there)}]; name those to adapt"
        )
    chosen = {path: found for path, found in every.items() if found[0] in names}
    if blocks is None:
        return chosen
    count = len(blocks_of(model))
    low, high = (depth * count for depth in blocks)
    # Rounded, because a third of 30 blocks would be 9.999.
    inside = [i for i in range(count) if round(low, 6) <= i < round(high, 6)]
    if not inside:
        raise UserError(
            f"config: blocks: {list(blocks)} holds none of the {count} blocks; widen it"
        )
    return {path: found for path, found in chosen.items() if found[1] in inside}


def adapted(tensors: Mapping[str, Any], wanted: Modules) -> Modules:
    """The modules that an adapter has weights for.

    Raises UserError if they differ from the `wanted` ones.
    """
    paths = _paths(tensors)
    if paths != set(wanted):
        other = sorted(paths ^ set(wanted))
        raise UserError(
            f"config: target_modules: {len(paths)} modules were adapted and {len(wanted)} were asked for; "
            f"they differ in {other[0]}, ..."
        )
    return wanted


def named(model: Any, modules: Modules) -> list[str]:
    """Modules for adapter_config.json: projection names, or full paths if the names also match other
    modules.

    `model`: with or without adapters.
    """
    names = {name for name, _ in modules.values()}
    matching = {path for path, _ in bare(model).named_modules() if path.rpartition(".")[2] in names}
    return sorted(names if matching == set(modules) else modules)


def by_block(modules: Modules) -> dict[str, list[int]]:
    """The blocks in which each projection is adapted, by name."""
    found: dict[str, set[int]] = {name: set() for name, _ in sorted(modules.values(), key=str)}
    for name, block in modules.values():
        found[name] |= {block} if block is not None else set()
    return {name: sorted(blocks) for name, blocks in found.items()}


def partly(modules: Modules, blocks: int) -> list[str]:
    """One line for each projection that only some of the model's blocks have."""
    return [
        f"{name} is in {len(own)} of {blocks} blocks: {', '.join(map(str, own))}"
        for name, own in by_block(modules).items()
        if 0 < len(own) < blocks
    ]


def load(
    directory: str | Path, device: str = "cpu"
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Config and tensors of one adapter, or of a stage that trained all weights.

    Raises UserError if it is missing or damaged, or if its hash differs from that in its manifest.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    directory = Path(directory)
    config = read_json(directory / CONFIG)
    plain = not (config.get("use_dora") or config.get("rank_pattern"))
    if config.get("peft_type") not in ("LORA", ALL_WEIGHTS) or not plain:
        raise UserError(f"{directory}: only plain LoRA adapters with one rank can be chained")
    try:
        tensors = load_file(directory / WEIGHTS, device)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{directory / WEIGHTS}: damaged or missing ({error}); delete it and rerun"
        ) from error
    manifest = directory / "manifest.json"
    # The folder of a stage has a manifest; the summed adapter that an engine gets has none.
    if manifest.is_file() and sha256(directory / WEIGHTS) != read_json(manifest).get(
        "adapter_sha256"
    ):
        raise UserError(
            f"{directory / WEIGHTS}: not the weights that its manifest.json names (damaged or exchanged); "
            "delete it and rerun"
        )
    return config, tensors


def concatenate(
    directories: Sequence[str | Path], device: str = "cpu"
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """One adapter equal to the sum of several, with an effective scale of 1.

    Shapes, per module: A [r, in], B [out, r] -> A [sum r, in], B [out, sum r]. A module that a stage
    does not adapt gets zeros. B includes the scales, in float32.
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
    """Write an adapter in PEFT's format; each file is written atomically."""
    from safetensors.torch import save_file

    with atomic(directory / WEIGHTS) as temporary:
        save_file(dict(tensors), temporary, metadata={"format": "pt"})
    write_json(directory / CONFIG, dict(config))


def load_base(base: Path, stages: Sequence[Path], dtype: str, device: str) -> Any:
    """The base model plus the weight changes of stages that trained all weights, added in 32 bits and
    rounded once.

    Raises UserError for a stage of another base model.
    """
    import torch

    model = load_model(base, dtype, device)
    changes: dict[str, torch.Tensor] = {}
    for stage in stages:
        for name, change in load(stage, device)[1].items():
            changes[name] = changes[name] + change.float() if name in changes else change.float()
    parameters = dict(model.named_parameters())
    if changes and changes.keys() != parameters.keys():
        odd = min(changes.keys() ^ parameters.keys())
        raise UserError(
            f"{stages[-1]}: weights of other layers than the base model has ({odd}, ...): was it trained on "
            "another base?"
        )
    with torch.no_grad():
        for name, change in changes.items():
            parameters[name].copy_(parameters[name].float() + change)
    return model


def apply(model: Any, directories: Sequence[str | Path], *, merge: bool) -> Any:
    """Put a chain's stages on a base model, or on one that carries another chain's stages; returns the
    model to run.

    If the model carries an adapter of the same shape, only its weights are replaced, which is much
    faster than making PEFT's layers. `merge` adds the sum to the weights in memory, which is faster and
    exact up to rounding in float32. Do not merge in 16 bit: small updates would be rounded away.
    """
    carries = hasattr(model, "peft_config")
    if not directories:
        return model.unload() if carries else model
    # Summed on the model's device: hundreds of small operations, slow on a CPU.
    config, tensors = concatenate(directories, str(model.device))
    paths = _fitting(model, config, tensors, directories[-1])
    if carries and (merge or (config["r"], paths) != _carried(model)):
        model, carries = model.unload(), False
    if not carries:
        model = _wrap(model, config["r"], paths, "default")
    _fill(model, tensors, "default", directories[-1])
    return model.merge_and_unload() if merge else model


def attach(model: Any, directories: Sequence[str | Path], *, name: str) -> Any:
    """Wrap `model` as a PeftModel with the chain's summed adapter, frozen and called `name`."""
    config, tensors = concatenate(directories, str(model.device))
    paths = _fitting(model, config, tensors, directories[-1])
    peft_model = _wrap(model, config["r"], paths, name)
    _fill(peft_model, tensors, name, directories[-1])
    return peft_model


def _paths(tensors: Mapping[str, Any]) -> set[str]:
    """Paths of the modules that an adapter has weights for."""
    return {key.rpartition(".lora_")[0].removeprefix(PREFIX) for key in tensors}


def _fitting(
    model: Any, config: Mapping[str, Any], tensors: Mapping[str, Any], of: str | Path
) -> set[str]:
    """Paths of the modules that an adapter is for; raises UserError if its weights are for others."""
    names = set(config["target_modules"])
    every = projections(model).items()
    paths = {path for path, (name, _) in every if name in names or path in names}
    if other := sorted(paths ^ _paths(tensors)):
        raise UserError(
            f"{of}: the adapter does not fit the base model ({other[0]}, ...): was it trained on another "
            "base?"
        )
    return paths


def _carried(model: Any) -> tuple[int, set[str]]:
    """Rank and modules of the adapter on a PeftModel."""
    from peft.tuners.lora import LoraLayer

    layers = model.get_base_model().named_modules()
    paths = {path for path, m in layers if isinstance(m, LoraLayer) and "default" in m.r}
    return model.peft_config["default"].r, paths


def _wrap(model: Any, rank: int, paths: Collection[str], name: str) -> Any:
    """A PeftModel with an adapter of scale 1 on these modules, without weights yet."""
    from peft import LoraConfig, PeftModel

    lora = LoraConfig(
        r=rank,
        lora_alpha=rank,
        # Exact paths, because other modules may have the same names (see `projections`).
        target_modules=sorted(paths),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    return PeftModel(model, lora, adapter_name=name, low_cpu_mem_usage=True)


def _fill(peft_model: Any, tensors: dict[str, torch.Tensor], name: str, of: str | Path) -> None:
    """Set all weights of an adapter, frozen, so that none of another chain's remain."""
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
