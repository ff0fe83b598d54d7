"""Checks what a base model cannot do from the small files in its folder, before it is loaded.

A model in a local folder is checked with the config, any other as soon as it is fetched. Only JSON and
the headers of weight files are read, so this costs milliseconds and needs neither PyTorch nor transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import chains
from ..errors import UserError
from ..files import read_json
from ..measures import activations
from .plan import Plan

Config = Mapping[str, Any]
#: The longest row of the demo model, which the workflow pretrains.
DEMO_CONTEXT = 512
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
#: Attention layers, whose masks keep rows of one sequence apart.
ATTENTION = {"attention", "full_attention", "sliding_attention", "chunked_attention"}
#: Parts of a module's path that do not belong to the language model.
TOWERS = ("vision", "visual", "image", "audio", "multi_modal", "mtp")
#: Matrices in blocks that are not projections.
OTHERS = {"gate", "router", "conv1d", "conv", "A_log", "relative_attention_bias"}
#: The longest header of a safetensors file.
LONGEST_HEADER = 100_000_000
#: Quantised weights that transformers expands by itself.
EXPANDED = {"mxfp4"}


@dataclass(frozen=True)
class Facts:
    """Facts from the files of a model; None or empty where the files do not say."""

    name: str
    blocks: int | None = None
    context: int | None = None
    layer_types: frozenset[str] = frozenset()
    modules: frozenset[str] = field(default=frozenset(), repr=False)
    quantised: str = ""
    chat_template: bool = True

    @property
    def projections(self) -> list[str]:
        """Last part of the names of the blocks' modules, in order, without experts."""
        paths = (
            m for m in self.modules if not _in_experts(m) and any(p.isdigit() for p in m.split("."))
        )
        return sorted({path.rpartition(".")[2] for path in paths} - OTHERS)


def _in_experts(module: str) -> bool:
    return "experts" in module.split(".")[:-1]


def demo_facts(settings: Mapping[str, Any]) -> Facts:
    """Facts of the demo model from its settings; raises UserError for sizes that do not fit together."""
    hidden, heads = settings["hidden"], settings["heads"]
    where = "config: model: demo: "
    if hidden % heads or hidden // heads % 2:
        raise UserError(
            f"{where}hidden: {hidden}: expected an even multiple of heads: {heads}, such as "
            f"{max(1, round(hidden / heads / 2)) * 2 * heads}"
        )
    if heads % max(1, heads // 2):
        raise UserError(
            f"{where}heads: {heads}: expected an even number (or 1 or 3); two share a key"
        )
    return _qwen2("the demo model", settings["blocks"], DEMO_CONTEXT)


def _qwen2(name: str, blocks: int, context: int) -> Facts:
    """Facts of a Qwen2 model that the workflow makes itself."""
    modules = {f"model.layers.0.{name}" for name in PROJECTIONS} | {"lm_head"}
    return Facts(name, blocks, context, modules=frozenset(modules))


def facts(folder: str | Path, loaded: Mapping[str, Any] | None = None) -> Facts:
    """Facts of a model folder in Hugging Face format.

    `loaded`: its config as transformers loads it, with defaults filled in, if it was loaded. Raises
    UserError if the folder holds no model.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"config: model: path: {folder}: no config.json there")
    own = loaded or read_json(folder / "config.json")
    text = {**own, **next((own[k] for k in ("text_config", "llm_config") if own.get(k)), {})}
    tokenizer = folder / "tokenizer_config.json"
    templates = [folder / "chat_template.jinja", folder / "chat_template.json"]
    quantised = (own.get("quantization_config") or text.get("quantization_config") or {}).get(
        "quant_method", ""
    )
    return Facts(
        name=next(iter(own.get("architectures") or []), str(own.get("model_type", folder.name))),
        blocks=_first(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        context=_context(text),
        layer_types=frozenset(text.get("layer_types") or []),
        modules=frozenset(_modules(folder)),
        quantised="" if quantised in EXPANDED else str(quantised),
        chat_template=any(path.is_file() for path in templates)
        or not tokenizer.is_file()  # reported when the model is loaded
        or bool(read_json(tokenizer).get("chat_template")),
    )


def _first(values: Mapping[str, Any], *keys: str) -> int | None:
    return next((values[key] for key in keys if isinstance(values.get(key), int)), None)


def _context(text: Mapping[str, Any]) -> int | None:
    """Longest sequence; with scaled rotary positions, the scaled length."""
    most = _first(text, "max_position_embeddings", "n_positions")
    scaling = text.get("rope_scaling") or text.get("rope_parameters") or {}
    original, factor = scaling.get("original_max_position_embeddings"), scaling.get("factor")
    if most is not None and original and factor:
        return max(most, int(original * factor))
    return most


def _modules(folder: Path) -> Iterator[str]:
    """Paths of the language model's modules that hold a matrix, from the headers of its weights."""
    index = folder / "model.safetensors.index.json"
    listed = set(read_json(index)["weight_map"].values()) if index.is_file() else set()
    names = sorted(listed | {path.name for path in folder.glob("*.safetensors")})
    if not names:
        raise UserError(f"{folder}: no .safetensors weights there; pickled weights are not loaded")
    for path in (folder / name for name in names):
        try:
            with open(path, "rb") as file:
                size = int.from_bytes(file.read(8), "little")
                if size > LONGEST_HEADER:
                    raise ValueError("no header")
                header = json.loads(file.read(size))
            matrices = [name for name, entry in header.items() if len(entry.get("shape", ())) > 1]
        except (OSError, ValueError, RecursionError, AttributeError) as error:
            raise UserError(f"{path}: missing, damaged or cut short; fetch it again") from error
        for name in matrices:
            if not any(tower in name for tower in TOWERS):
                yield name.removesuffix(".weight")


@contextmanager
def about(name: str) -> Iterator[None]:
    """Context whose errors name the config's model that they are about."""
    try:
        yield
    except UserError as error:
        if name == chains.BASE:
            raise
        said = str(error).replace("config: model:", f"config: models: {name}:")
        raise UserError(said) from error.__cause__


def known(plan: Plan, name: str = chains.BASE) -> Facts | None:
    """Facts of a model of the config, as far as they are known before a job; None if it is not fetched
    yet."""
    model = plan.models[name]
    if "demo" in model or "demo_step" in model:
        return demo_facts(plan.config["model"]["demo"])
    if "random" in model:
        return _qwen2("the random model", model["random"]["blocks"], model["random"]["context"])
    if "path" in model:
        return facts(model["path"])
    try:
        record = read_json(plan.base(name))
        return facts(record["path"]) if record["source"] == model else None
    except (UserError, KeyError, TypeError):
        return None  # the jobs that read it report the error


def check_plan(plan: Plan) -> None:
    """Raise UserError if a plan asks for something that its base models, as far as known, cannot do."""
    for name in plan.models_used:
        with about(name):
            found = known(plan, name)
            if found is not None:
                check(plan, found, name)


def check(plan: Plan, facts: Facts, model: str = chains.BASE) -> None:
    """Raise UserError if a plan asks for something that a base model with these facts cannot do."""
    trained = [chains.parse(chain) for chain in plan.trained_chains]
    names = sorted({chain.last.name for chain in trained if chain.model == model})
    stages = {name: plan.stage_settings(name) for name in names if plan.stages[name].trains}
    if not facts.chat_template and plan.models[model].get("chat_template") != "plain":
        raise UserError(
            f"config: model: {facts.name} has no chat template; set chat_template: plain, for every model "
            "that is compared with it"
        )
    if facts.quantised:
        raise UserError(
            f"config: model: the weights of {facts.name} are quantised ({facts.quantised}); use the model "
            "they were made from"
        )
    layers = plan.measures["activations"]["layers"]
    _check_layers(facts, layers, plan.config["statistics"]["headline"])
    _check_lengths(facts, plan.config, stages)
    others = sorted(facts.layer_types - ATTENTION)
    if others and stages and plan.runtime["training"]["padding_free"]:
        raise UserError(
            "config: runtime: training: padding_free: rows of one sequence would leak into each other in "
            f"the {others[0]} layers of {facts.name}; set padding_free: false"
        )
    for name, one in stages.items():
        _check_projections(
            facts, one.get("target_modules", []), f"config: target_modules of stage {name}: "
        )


def _check_layers(facts: Facts, layers: Sequence[int | float], headline: Mapping[str, Any]) -> None:
    asked = [("measures: activations: layers", layer) for layer in layers]
    asked.append(("statistics: headline: layer", headline["layer"]))
    for where, layer in asked:
        whole = not isinstance(layer, float)
        if (whole and facts.blocks is not None and layer >= facts.blocks) or (
            not whole and layer >= 1
        ):
            blocks = f"the {facts.blocks} blocks of {facts.name}" if facts.blocks else facts.name
            raise UserError(
                f"config: {where}: {layer} is outside {blocks}; give a whole number below that, or a "
                "depth from 0.0 to below 1.0"
            )
    if facts.blocks is not None:
        activations.headline(headline, layers, facts.blocks)


def _check_lengths(facts: Facts, config: Config, stages: Mapping[str, Mapping[str, Any]]) -> None:
    if facts.context is None:
        return
    asked = [(f"stages: {name}: max_length", s["max_length"]) for name, s in stages.items()]
    # A prompt has at least one token.
    asked += [
        (f"sampling: {name}: max_tokens", config["sampling"][name]["max_tokens"] + 1)
        for name in ("answers", "completions", "responses")
    ]
    sampling, gpus = config["sampling"], config["runtime"]["gpus_per_job"]
    if sampling["backend"] == "vllm" or (sampling["backend"] == "auto" and gpus):
        asked.append(("sampling: max_model_len", sampling["max_model_len"]))
    for where, tokens in asked:
        if tokens > facts.context:
            raise UserError(
                f"config: {where}: {tokens} tokens do not fit into the {facts.context} of {facts.name}; "
                "lower it"
            )


def _check_projections(facts: Facts, names: Sequence[str], where: str) -> None:
    def found(name: str) -> list[str]:
        return [m for m in facts.modules if m == name or m.endswith(f".{name}")]

    # The output head is a module of its own even where it shares the embeddings' weights.
    missing = [name for name in names if name != "lm_head" and not found(name)]
    experts = [name for name in names if any(map(_in_experts, found(name)))]
    if experts:
        raise UserError(
            f"{where}{', '.join(experts)} are experts in {facts.name}, which get no "
            f"adapter; name among [{', '.join(facts.projections)}] those to adapt"
        )
    if missing:
        raise UserError(
            f"{where}{facts.name} has no {', '.join(missing)}; the projections of its "
            f"blocks are [{', '.join(facts.projections)}]; name those to adapt"
        )
