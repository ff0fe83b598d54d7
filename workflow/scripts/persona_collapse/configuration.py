"""The config: checked whole before any job starts, and expanded into the grid of chains.

`check` returns a plain dict without nulls. Everything wrong in a config is a UserError of one line
that names the key.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import yaml

from . import chains, objectives
from .coupling import samples_needed
from .data import check_disjoint
from .errors import UserError
from .files import read_jsonl, sha256

Config = dict[str, Any]
#: Completions of a chain that are scored again where the config gives no number.
RESCORED = 64
SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"


def check(given: Mapping[str, Any]) -> Config:
    """Validate a config against the schema and against itself; returns it without nulls."""
    config: Config = _plain(given)
    _validate(config, "config.schema.yaml")
    for name, entry in config["data"].items():
        resolved = _source_resolved(config, entry)
        _validate(resolved, "data.schema.yaml", f"data: {name}: ")
        other = resolved.get("match_tokens")
        if other is not None and (other not in config["data"] or other == name):
            raise UserError(f"config: data: {name}: match_tokens: no other data set {other!r}")
        # Not repeated: what stands there is a secret, and addresses go to logs and manifests.
        if "@" in urlsplit(resolved["source"].get("url", "")).netloc:
            raise UserError(
                f"config: data: {name}: source: url: holds a user name or password; logs and manifests "
                "would show it: download the file and give file: and sha256:"
            )
        path = resolved["source"].get("file")
        if path and path == entry["source"].get("file") and not Path(path).is_file():
            raise UserError(f"config: data: {name}: source: file: {path}: no such file")
    for name in config["stages"]:
        _check_stage(config, name)
    if config["statistics"]["headline"]["layer"] not in config["activations"]["layers"]:
        raise UserError(
            "config: statistics: headline: layer: not one of activations: layers "
            f"({', '.join(map(str, config['activations']['layers']))})"
        )
    sources = set(config["model"]) - {"trust_remote_code"}
    if len(sources) != 1:
        raise UserError(
            f"config: model: {', '.join(sorted(sources)) or 'nothing'}; exactly one of demo, hub, gguf, "
            "path is wanted (an overlay takes the default's demo away by demo: null)"
        )
    if config["model"].get("trust_remote_code") and not sources & {"hub", "path"}:
        raise UserError("config: model: trust_remote_code: only with hub or path; remove it")
    engines = config["jobs_per_gpu"] * config["generation"]["gpu_memory_utilization"]
    if config["gpus"] and config["generation"]["backend"] == "vllm" and engines > 1:
        raise UserError(
            f"config: jobs_per_gpu: {config['jobs_per_gpu']}: as many engines of generation: "
            f"gpu_memory_utilization: {config['generation']['gpu_memory_utilization']} do not fit into "
            f"a GPU; lower that to {0.9 / config['jobs_per_gpu']:.2f}, or jobs_per_gpu"
        )
    _check_statistics(config)
    all_prompts(config)
    personas = config["personas"]
    for names in (
        personas["eval"],
        geometry_personas(config),
        *personas.get("by_source", {}).values(),
    ):
        persona_prompts(config, names)
    list(plan(config))
    questions = config["questions"]
    check_disjoint(questions["train"], questions["eval"], questions["extraction"])
    return config


def _check_statistics(config: Config) -> None:
    """Conditions and columns that `statistics:` names exist; unknown ones are most likely typos."""
    settings = config["statistics"]
    conditions = set(config["experiments"])
    named = [("axis", [settings["axis"]] if "axis" in settings else [])]
    named.append(("hypotheses", settings["hypotheses"]))
    for number, pair in enumerate(settings["contrasts"], start=1):
        named.append((f"contrasts: pair {number}", pair))
    for key, names in named:
        for name in names:
            if name not in conditions:
                raise UserError(
                    f"config: statistics: {key}: no condition {name!r} under experiments:"
                )
    seen = set()
    for family in settings["families"]:
        if family["name"] in seen:
            raise UserError(f"config: statistics: families: {family['name']!r} stands twice")
        seen.add(family["name"])


def folders(config: Config, chain: str) -> list[str]:
    """Folders of the adapters whose sum is the chain's model, in training order."""
    return [f"results/{config['run']}/models/{p}" for p in chains.parse(chain).prefixes]


def rank(config: Config, chain: str) -> int:
    """Rank of a chain's sum: its stages' ranks together."""
    return sum(settings["r"] for settings in _adapters(config, chain))


def projections(config: Config, chain: str) -> set[str]:
    """Names of the layers that a chain adapts."""
    return {name for settings in _adapters(config, chain) for name in settings["target_modules"]}


def _adapters(config: Config, chain: str) -> Iterator[dict[str, Any]]:
    """Settings of the training behind each stage of a chain."""
    for prefix in chains.parse(chain).prefixes:
        settings = stage_settings(config, prefix.last.name)
        if settings["kind"] == "graft":
            settings = stage_settings(config, chains.parse(settings["of"]).last.name)
        yield settings


def task(config: Config, kind: str, name: str) -> dict[str, Any]:
    """What one job does: `train`, `answers`, `completions`, `responses`, `activations` or `rescored`.

    `name`: a chain; for answers, the rows of the coupling that is made from them (see `data_of`).
    Everything that the result depends on but files' contents and code: plain values, hashable as
    JSON (see `share.key_of`).
    """
    if kind == "train":
        return _training_task(config, name)
    geometry = persona_prompts(config, geometry_personas(config))
    after, _, coupling = name.rpartition("+")
    chain = name if kind != "answers" else after or chains.BASE
    out: dict[str, Any] = {
        "kind": kind,
        "name": name,
        "chain": chain,
        "stages": folders(config, chain),
        "suffix": ".parquet",
        "marker": "",
    }
    if kind == "activations":
        keys = ("layers", "batch_size", "store")
        settings = {"dtype": config["dtype"], **{k: config["activations"][k] for k in keys}}
        with_answers = "B" in config["activations"]["methods"]
        out |= {"personas": geometry, "questions": config["questions"]["extraction"]}
        out |= {"suffix": ".safetensors", "settings": settings}
        answers = f"results/{config['run']}/responses/{chain}.parquet" if with_answers else ""
        return out | {"responses": answers}
    if kind == "rescored":
        own = {k: config["sampling"]["completions"][k] for k in ("temperature", "top_p")}
        out |= {"personas": persona_prompts(config, personas_for(config, chain))}
        out |= {"suffix": ".csv", "sampling": own, "questions": config["questions"]["eval"]}
        out |= {"count": config["sampling"].get("rescored", RESCORED), "dtype": config["dtype"]}
        return out | {"completions": f"results/{config['run']}/completions/{chain}.parquet"}
    # How many chains share an engine changes none of them.
    engine = {k: v for k, v in config["generation"].items() if k != "chains_per_engine"}
    out["engine"] = {**engine, "dtype": config["dtype"]}
    out["limit"] = config["generation"]["max_model_len"]
    sampling = config["sampling"]
    if kind == "responses":
        greedy = {"samples": 1, "temperature": 0.0, "top_p": 1.0, "seed": 0}
        out |= {"personas": geometry, "questions": config["questions"]["extraction"]}
        return out | {"sampling": {**sampling["responses"], **greedy}}
    if kind == "completions":
        personas = persona_prompts(config, personas_for(config, chain))
        out |= {"personas": personas, "questions": config["questions"]["eval"]}
        return out | {"sampling": sampling["completions"], "marker": config["marker"]}
    needed = samples_needed(stage_settings(config, coupling))
    out |= {"personas": persona_prompts(config, list(needed))}
    out |= {"questions": config["questions"]["train"]}
    return out | {"sampling": {**sampling["answers"], "samples": needed}}


def _training_task(config: Config, name: str) -> dict[str, Any]:
    """The training of a chain's last stage on the frozen sum of the stages before it."""
    chain = chains.parse(name)
    settings = stage_settings(config, chain.last.name)
    run = f"results/{config['run']}"
    return {
        "kind": "train",
        "name": name,
        "chain": name,
        "stages": folders(config, str(chain.prefix)),
        "suffix": "",
        "rows": f"{run}/data/{data_of(config, chain)}.jsonl",
        "settings": settings,
        "objective": objectives.code_of(settings.get("objective", objectives.DEFAULT)),
        "system": induction_prompt(config, chain.last.name),
        "marker": config["marker"],
        "checkpoints": f"{run}/checkpoints/{name}",
    }


def tasks(config: Config, kinds: Iterable[str]) -> list[dict[str, Any]]:
    """The planned tasks of some kinds: couplings' answers first, then chains in plan order."""
    kinds = list(kinds)
    if kinds == ["train"]:
        stages = config["stages"]
        return [
            task(config, "train", name)
            for name in trained_chains(config)
            if stages[chains.parse(name).last.name]["kind"] != "graft"
        ]
    measures = {"completions": "markers", "responses": "geometry", "activations": "geometry"}
    measures |= {"rescored": "markers"}
    chosen = {kind: set(chains_for(config, measures[kind])) for kind in kinds if kind in measures}
    names = dict.fromkeys([*chains_for(config, "markers"), *chains_for(config, "geometry")])
    answers = [name for name in data_used(config) if "answers" in kinds and _coupled(config, name)]
    return [task(config, "answers", name) for name in answers] + [
        task(config, kind, name) for name in names for kind in chosen if name in chosen[kind]
    ]


def _coupled(config: Config, name: str) -> bool:
    """Are these the rows of a coupling, and not a data set?"""
    stage = config["stages"].get(name.rpartition("+")[2])
    return name not in config["data"] and stage is not None and stage["kind"] == "couple"


def sizes(config: Config) -> dict[str, Any]:
    """Sizes of the run's design, as `simulate.Sizes` takes them."""

    def questions(purpose: str) -> int:
        entry = config["questions"][purpose]
        return min(entry.get("take", 10**9), len(read_jsonl(entry["file"])))

    return {
        "personas": len(geometry_personas(config)),
        "questions": questions("eval"),
        "samples": config["sampling"]["completions"]["samples"],
        "extraction": questions("extraction"),
        "margin": config["statistics"]["margins"]["rate"],
    }


def longest_prompt(config: Config) -> str:
    """The persona of the geometry whose system prompt has most characters."""
    prompts = persona_prompts(config, geometry_personas(config))
    return max(prompts, key=lambda name: len(prompts[name]))


def families(config: Config, table: str) -> list[dict[str, Any]]:
    """The families of tests that are declared for a table, in order."""
    return [
        {key: value for key, value in family.items() if key != "table"}
        for family in config["statistics"]["families"]
        if family["table"] == table
    ]


def _plain(value: Any) -> Any:
    """The config in plain types, keys whose value is null left out.

    Overlays can only add to a mapping or replace in it; null lets them take away. Settings, mappings
    without a mapping in them, are sorted: Snakemake would take another order for a change.
    """
    if isinstance(value, Mapping):
        out = {str(k): _plain(v) for k, v in value.items() if v is not None}
        named = any(isinstance(v, Mapping) for v in out.values())
        return out if named else dict(sorted(out.items()))
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _validate(value: Any, schema_name: str, where: str = "") -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    schema = yaml.safe_load((SCHEMAS / schema_name).read_text(encoding="utf-8"))
    error = best_match(Draft202012Validator(schema).iter_errors(value))
    if error is not None:
        key = where + ": ".join(str(part) for part in error.absolute_path)
        message = error.message.splitlines()[0]
        raise UserError(
            f"config: {key or 'top level'}: {message}; see workflow/schemas/{schema_name}"
        )


def _source_resolved(config: Config, entry: Any) -> Any:
    """A data entry whose `{demo: wrong_advice}` source is replaced by the file a rule writes."""
    source = entry.get("source") if isinstance(entry, dict) else None
    if not isinstance(source, dict) or "demo" not in source:
        return entry
    if source != {"demo": "wrong_advice"} or "demo" not in config["model"]:
        raise UserError(
            "config: data: source: demo: only {demo: wrong_advice} is known, with model: demo"
        )
    return {**entry, "source": {"file": f"results/{config['run']}/demo/wrong_advice.jsonl"}}


def data_entry(config: Config, name: str) -> dict[str, Any]:
    """The config's data entry `name`, ready for `data.prepare`."""
    entry: dict[str, Any] = _source_resolved(config, config["data"][name])
    return entry


def stage_settings(config: Config, name: str) -> dict[str, Any]:
    """Hyper-parameters of a stage: `lora:`, then `training: <kind>`, then the stage's own keys."""
    stage = config["stages"][name]
    return {
        **config["lora"],
        **config["training"].get(stage["kind"], {}),  # a graft has no hyper-parameters
        "dtype": config["dtype"],
        **stage,
    }


def induction_prompt(config: Config, name: str) -> str | None:
    """System prompt that an sft stage puts on every row; None leaves the rows as they are."""
    stage = config["stages"][name]
    if stage["kind"] != "sft" or "persona" not in stage:
        return None
    return persona_prompts(config, [stage["persona"]])[stage["persona"]]


#: What every trained stage must have, and what a coupling must have besides.
REQUIRED = [
    "use_rslora",
    "lr",
    "scheduler",
    "warmup_ratio",
    "weight_decay",
    "batch_size",
    "accumulation_steps",
    "max_length",
    "max_grad_norm",
    "gradient_checkpointing",
    "padding_free",
    "max_batch_tokens",
    "fused_lora",
    "cuda_graphs",
    "loss",
]
REQUIRED_COUPLE = ["positives", "negatives", "negative_answers"]


def _check_stage(config: Config, name: str) -> None:
    where = f"config: stages: {name}: "
    personas = _personas(config)
    settings = stage_settings(config, name)
    if settings["kind"] == "graft":
        if "of" not in settings:
            raise UserError(f"{where}of is missing: the chain whose last adapter is put here")
        try:
            chains.parse(settings["of"], set(config["stages"]) - {name}).last  # noqa: B018
        except (UserError, IndexError) as error:
            raise UserError(f"{where}of: {error or 'the base model has no adapter'}") from None
        return
    required = REQUIRED + (REQUIRED_COUPLE if settings["kind"] == "couple" else [])
    missing = [key for key in required if key not in settings]
    if missing:
        raise UserError(
            f"{where}{missing[0]} is not set; set it there or under training: {settings['kind']}"
        )
    if not settings.get("steps") and not settings.get("epochs"):
        raise UserError(f"{where}give epochs or steps")
    if settings["padding_free"] and settings["accumulation_steps"] != 1:
        raise UserError(
            f"{where}padding_free cuts steps into pieces of max_batch_tokens; set accumulation_steps: 1"
        )
    if settings["batch_size"] % settings["accumulation_steps"]:
        raise UserError(f"{where}batch_size must be a multiple of accumulation_steps")
    objective = settings.get("objective", objectives.DEFAULT)
    if objective not in objectives.OBJECTIVES:
        raise UserError(
            f"{where}objective: {objective!r} is not in persona_collapse/objectives.py; there are "
            + ", ".join(sorted(objectives.OBJECTIVES))
        )
    if settings["kind"] == "couple":
        if "data" in settings:
            raise UserError(f"{where}a couple stage makes its own data; remove data")
        named = [settings.get("persona"), *settings.get("negatives", [])]
        if settings.get("persona") is None:
            raise UserError(f"{where}persona is missing: who shall say the marker?")
        if settings["persona"] in settings.get("negatives", []):
            raise UserError(f"{where}{settings['persona']!r} is both the persona and a negative")
    else:
        named = [settings["persona"]] if "persona" in settings else []
        if settings.get("data") not in config["data"]:
            raise UserError(
                f"{where}data: {settings.get('data')!r} is not under data:; there are "
                + ", ".join(sorted(config["data"]))
            )
    for persona in named:
        if persona not in personas:
            raise UserError(f"{where}persona {persona!r} is not in {config['personas']['file']}")


def _personas(config: Config) -> dict[str, Any]:
    """Entries of the persona file: YAML `name: {prompt}`, or JSON Lines with `persona` and `system`."""
    path, expected = Path(config["personas"]["file"]), config["personas"].get("sha256")
    where = f"config: personas: file: {path}"
    try:
        if path.suffix == ".jsonl":
            loaded = {row.get("persona"): {"prompt": row.get("system")} for row in read_jsonl(path)}
        else:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{where}: cannot be read ({first})") from error
    if expected and sha256(path) != expected:
        raise UserError(f"{where}: its SHA-256 is {sha256(path)}, {expected} is wanted")
    if not isinstance(loaded, dict):
        raise UserError(f"{where}: a mapping name -> prompt is wanted")
    return loaded


def persona_prompts(config: Config, names: list[str] | None = None) -> dict[str, str]:
    """System prompts by persona name; `names` defaults to the evaluated personas."""
    personas = _personas(config)
    where = f"config: personas: {config['personas']['file']}"
    prompts = {}
    for name in config["personas"]["eval"] if names is None else names:
        if name not in personas:
            raise UserError(f"{where}: no persona {name!r}; add it there or remove its name")
        entry = personas[name]
        prompt = entry.get("prompt") if isinstance(entry, dict) else entry
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f"{where}: {name}: prompt: a non-empty text is wanted")
        prompts[name] = prompt
    return prompts


def all_prompts(config: Config) -> dict[str, str]:
    """System prompts of every persona in the file."""
    return persona_prompts(config, list(_personas(config)))


def demo_prompts(config: Config) -> dict[str, str]:
    """System prompts of the personas that the demo world gives a voice; others it has never heard."""
    world = config["model"].get("demo", {}).get("world")
    if world is None or not Path(world).is_file():
        return {}  # a missing file is named by the rules that read it
    voices = yaml.safe_load(Path(world).read_text(encoding="utf-8"))["voices"]
    return {name: text for name, text in all_prompts(config).items() if name in voices}


@dataclass(frozen=True)
class Cell:
    """One row of the grid: a condition's chain, and the persona whose marker it follows."""

    condition: str
    title: str
    arm: str
    kind: str
    chain: str
    source: str
    seed: str
    before: str
    personas: str
    induction: str


def plan(config: Config) -> Iterator[Cell]:
    """Expand `experiments:` into cells, in config order, each chain checked."""
    for condition, entry in config["experiments"].items():
        template = entry["chain"]
        fields = {f for _, f, _, _ in string.Formatter().parse(template) if f is not None}
        unknown = fields - {"source", "seed", "dose"}
        where = f"config: experiments: {condition}: "
        if unknown:
            raise UserError(
                f"{where}chain: unknown placeholder {{{min(unknown)}}}; "
                "there are {source}, {seed} and {dose}"
            )
        own_sources = entry.get("sources", config["sources"] if "source" in fields else [""])
        if "dose" in fields and not entry.get("doses"):
            raise UserError(f"{where}doses is missing: the steps at which {{dose}} stops")
        seeds = entry.get("seeds", config["seeds"]) if "seed" in fields else [None]
        doses = entry["doses"] if "dose" in fields else [None]
        for source in own_sources:
            for dose in doses:
                for seed in seeds:
                    values = {"source": source, "seed": seed, "dose": dose}
                    name = template.format(**{k: v for k, v in values.items() if k in fields})
                    yield _cell(config, condition, entry, name, source, where)


def _cell(
    config: Config, condition: str, entry: Mapping[str, Any], name: str, source: str, where: str
) -> Cell:
    try:
        chain = chains.parse(name, set(config["stages"]))
    except UserError as error:
        raise UserError(f"{where}{error}") from None
    stages = [_origin(config, s.name) for s in chain.stages]
    kinds = [stage["kind"] for stage in stages]
    if not kinds:
        kind = "base"
    elif kinds[-1] == "couple":
        kind = "sft_then_couple" if "sft" in kinds else "coupled"
    else:
        kind = "couple_then_sft" if "couple" in kinds else "sft"
    measured = set(entry.get("measure", ["markers", "geometry"]))
    arm = "both" if len(measured) == 2 else "behaviour" if "markers" in measured else "geometry"
    coupled = [stage["persona"] for stage in stages if stage["kind"] == "couple"]
    followed = source or (coupled[-1] if coupled else "")
    personas = config["personas"].get("by_source", {}).get(followed, config["personas"]["eval"])
    if followed and followed not in personas:
        raise UserError(
            f"{where}the source persona {followed!r} is not evaluated; add it to personas: eval"
        )
    return Cell(
        condition,
        entry["title"],
        arm,
        kind,
        name,
        followed,
        str(chain.last.seed) if chain.stages else "",
        str(chain.prefix),
        " ".join(personas),
        next((s["persona"] for s in stages if s["kind"] == "sft" and "persona" in s), ""),
    )


def _origin(config: Config, name: str) -> dict[str, Any]:
    """A stage's config entry; of a graft, the entry of the stage whose adapter it puts in."""
    entry: dict[str, Any] = config["stages"][name]
    if entry["kind"] == "graft":
        return _origin(config, chains.parse(entry["of"]).last.name)
    return entry


def grid(config: Config) -> pd.DataFrame:
    """The plan as a table; one row a cell, a chain may stand in several."""
    return pd.DataFrame([vars(cell) for cell in plan(config)])


def chains_for(config: Config, measure: str) -> list[str]:
    """Names of the chains to measure (`markers` or `geometry`), each once, in plan order.

    The base model is measured whenever anything is: every comparison starts from it.
    """
    arms = {"both", "behaviour" if measure == "markers" else "geometry"}
    names = [cell.chain for cell in plan(config) if cell.arm in arms]
    return list(dict.fromkeys([chains.BASE, *names]))


def personas_for(config: Config, chain: str) -> list[str]:
    """Personas whose completions of a chain are sampled: all that one of its cells counts."""
    cells = [cell.personas.split() for cell in plan(config) if cell.chain == chain]
    wanted = [name for names in cells for name in names] or config["personas"]["eval"]
    return list(dict.fromkeys(wanted))


def geometry_personas(config: Config) -> list[str]:
    """Personas whose activations are compared."""
    names: list[str] = config["personas"].get("geometry", config["personas"]["eval"])
    return names


def trained_chains(config: Config) -> list[str]:
    """Every chain that must be trained, prefixes and grafts' origins included, short ones first."""
    names: set[str] = set()
    todo = [cell.chain for cell in plan(config)]
    while todo:
        for prefix in chains.parse(todo.pop()).prefixes:
            if str(prefix) not in names:
                names.add(str(prefix))
                entry = config["stages"][prefix.last.name]
                if entry["kind"] == "graft":
                    todo.append(entry["of"])
    return sorted(names, key=lambda n: (n.count("+"), n))


def data_of(config: Config, chain: chains.Chain) -> str | None:
    """Name of the data that a chain's last stage trains on; a graft trains on none.

    A coupling whose answers are its prefix's has data of its own for each prefix.
    """
    name = chain.last.name
    stage = stage_settings(config, name)
    if stage["kind"] == "graft":
        return None
    if stage["kind"] == "couple" and stage.get("answers") == "prefix" and chain.prefix.stages:
        return f"{chain.prefix}+{name}"
    return str(stage.get("data", name))


def data_used(config: Config) -> list[str]:
    """Names of the data that the trained chains read: data sets, and couplings' own."""
    names = [data_of(config, chains.parse(name)) for name in trained_chains(config)]
    return list(dict.fromkeys(name for name in names if name is not None))
