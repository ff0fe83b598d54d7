"""The plan: a config worked out into chains, their data and what each job does.

Everything is computed once, when it is first needed, so the time that a plan takes grows linearly with
the number of chains. A job builds its plan from the config that was checked before the first job
started (see `configuration.plan`). It does not check the config again.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import chains, yaml_files
from ..data.questions import load_questions
from ..errors import UserError, choose
from ..files import half_pair, read_jsonl, sha256
from ..jobs import MeasureJob, SamplingJob, TrainingJob
from ..measures import ANSWERS
from ..measures import ROOM as MEASURES
from ..models import chat_template
from ..runtime import code_hash
from ..stages import ROOM as STAGES
from ..stages import Stage
from ..training import defences
from . import locations

if TYPE_CHECKING:  # Jobs that need no table do not have to import pandas.
    import pandas as pd

Config = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One row of the grid: a condition's chain, and the persona whose marker it follows.

    kinds: kinds of its stages. model: the base model that it starts from. stages_after_coupling: number
    of stages after the last coupling; None without a coupling. negatives: the personas that this
    coupling trained not to say the marker.
    """

    condition: str
    title: str
    measures: str
    kinds: str
    stages_after_coupling: int | None
    chain: str
    source: str
    seed: str
    before: str
    personas: str
    induction: str
    negatives: str
    model: str


def _listed(path: Path) -> dict[str, Any]:
    """Persona entries of JSON Lines with `persona` and `system`."""
    loaded: dict[str, Any] = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        name = row.get("persona")
        if not isinstance(name, str) or name in loaded:
            fault = "duplicate persona" if name in loaded else "persona: expected text, got"
            raise UserError(f"{path}, row {number}: {fault} {name!r}")
        loaded[name] = {"prompt": row.get("system")}
    return loaded


def _stems(paths: Iterable[str], folder: str) -> list[str]:
    """Names, without suffixes, of those of these files that lie in a folder of the run."""
    found = map(Path, paths)
    return [path.stem for path in found if path.parent.name == folder]


class Plan:
    """What a config asks for. `config` must not change afterwards."""

    def __init__(self, config: Config):
        self.config = config

    # Personas

    @cached_property
    def personas(self) -> dict[str, Any]:
        """Entries of the persona file (YAML `name: {prompt}`, or JSON Lines with `persona` and
        `system`), and the config's own entries (`more: {name: prompt}`).

        Raises UserError if the file cannot be read, if its hash differs from the config's, or if a
        persona is in both.
        """
        path = Path(self.config["personas"]["file"])
        expected = self.config["personas"].get("sha256")
        where = f"config: personas: file: {path}"
        try:
            loaded = _listed(path) if path.suffix == ".jsonl" else yaml_files.load_mapping(path)
        except UserError as error:
            raise UserError(f"config: personas: file: {error}") from None
        if expected and sha256(path) != expected:
            raise UserError(f"{where}: expected SHA-256 {expected}, got {sha256(path)}")
        more = self.config["personas"].get("more", {})
        if twice := loaded.keys() & more.keys():
            raise UserError(
                f"config: personas: more: {min(twice)}: {path} has this persona; choose another name"
            )
        if taken := {"chain", "condition"} & (loaded | more).keys():
            raise UserError(
                f"{where}: {min(taken)!r} cannot be a persona: a column of tables by persona; rename it"
            )
        return loaded | more

    def prompts(self, names: Iterable[str], asked: str = "") -> dict[str, str]:
        """System prompts by persona name; a UserError names a persona that has none.

        `asked`: the key that names them, for the message; default: the personas' own place.
        """
        personas = self.config["personas"]
        prompts = {}
        for name in names:
            own = name in personas.get("more", {})
            where = f"config: personas: {'more' if own else personas['file']}"
            if name not in self.personas:
                hint = choose(name, self.personas)
                under = "personas: more:" if asked else "more:"
                raise UserError(
                    f"{asked or where}: no persona {name!r}; correct it ({hint}) or add it under {under}"
                )
            entry = self.personas[name]
            prompt = entry.get("prompt") if isinstance(entry, dict) else entry
            if not isinstance(prompt, str) or not prompt.strip():
                raise UserError(f"{where}: {name}: prompt: expected non-empty text")
            if half := half_pair(prompt):
                raise UserError(
                    f"{where}: {name}: prompt: half a surrogate pair ({half}), which is not a character; "
                    "fix the text"
                )
            prompts[name] = prompt
        return prompts

    @cached_property
    def all_prompts(self) -> dict[str, str]:
        """System prompts of all personas."""
        return self.prompts(self.personas)

    @cached_property
    def eval_prompts(self) -> dict[str, str]:
        """System prompts of the evaluated personas."""
        return self.prompts(self.config["personas"]["eval"])

    @cached_property
    def geometry_prompts(self) -> dict[str, str]:
        """System prompts of the personas whose activations are compared."""
        personas = self.config["personas"]
        return self.prompts(personas.get("geometry", personas["eval"]))

    @cached_property
    def demo_prompts(self) -> dict[str, str]:
        """System prompts of the personas that have a voice in the demo world. The demo model has never
        seen the others."""
        world = self.config["model"].get("demo", {}).get("world")
        if world is None or not Path(world).is_file():
            return {}  # a missing file is named by the rules that read it
        voices = yaml_files.load_mapping(world).get("voices", {})
        return {name: text for name, text in self.all_prompts.items() if name in voices}

    @property
    def runtime(self) -> dict[str, Any]:
        """Settings that bound memory and time. They change no result, so they are part of no job."""
        runtime: dict[str, Any] = self.config["runtime"]
        return runtime

    @property
    def assistant(self) -> str:
        """The persona that stands for the unchanged model: `assistant` in the tables, the origin of the
        axis."""
        name: str = self.config["personas"].get("assistant", chains.ASSISTANT)
        return name

    @property
    def defence_questions(self) -> dict[str, Any]:
        """The questions that defences ask the personas."""
        questions: dict[str, dict[str, Any]] = self.config["questions"]
        return questions.get("defence", questions["train"])

    @property
    def longest_prompt(self) -> str:
        """The persona of the geometry whose system prompt is longest, in characters."""
        prompts = self.geometry_prompts
        return max(prompts, key=lambda name: len(prompts[name]))

    # Base models

    @cached_property
    def models(self) -> dict[str, dict[str, Any]]:
        """The config's base models by name, `base` first: the source of each and how its chat template
        is used.

        Template settings under `model:` are the defaults of the others.
        """
        first = self.config["model"]
        shared = {key: first[key] for key in chat_template.SETTINGS if key in first}
        others = {name: shared | entry for name, entry in self.config["models"].items()}
        return {chains.BASE: first, **others}

    @cached_property
    def models_used(self) -> list[str]:
        """Names of the base models that the run needs: `base`, and every model that a chain starts from."""
        names = {chains.BASE, *(cell.model for cell in self.cells)}
        names |= {chains.model_of(name) for name in self.trained_chains}
        return [name for name in self.models if name in names]

    def base(self, chain: str) -> str:
        """Record (model.json) of the base model that a chain starts from."""
        return self._path(f"bases/{chains.model_of(chain)}/model.json")

    def template(self, chain: str) -> str:
        """Record of what the chat template of that model does."""
        return self._path(f"bases/{chains.model_of(chain)}/template.json")

    @property
    def demo_steps(self) -> dict[str, int]:
        """Pretraining steps of the demo model at which a checkpoint is kept as a base model."""
        models = self.models.items()
        return {name: entry["demo_step"] for name, entry in models if "demo_step" in entry}

    def parse(self, name: str, without: str = "") -> chains.Chain:
        """A chain of the config's models and stages, except one stage; see `chains.parse`."""
        return chains.parse(name, self.config["stages"].keys() - {without}, self.models)

    # Stages and their data

    @cached_property
    def stages(self) -> dict[str, Stage]:
        """The config's stages by name.

        Settings come from `lora:`, then `training: <kind>`, then the stage itself. Later ones win: a
        stage's own epochs also over the steps of its kind.
        """
        config = self.config
        made = {}
        for name, stage in config["stages"].items():
            defaults = {**config["lora"], **config["training"].get(stage["kind"], {})}
            if "epochs" in stage and "steps" not in stage:
                defaults.pop("steps", None)
            settings = {**defaults, "dtype": config["dtype"], **stage}
            made[name] = STAGES.get(stage["kind"])(name, settings)
        return made

    def stage_settings(self, name: str) -> dict[str, Any]:
        """Settings of a stage."""
        return self.stages[name].settings

    @property
    def trained_settings(self) -> dict[str, dict[str, Any]]:
        """Settings of the stages that train.

        They include the persona whose system prompt is put on every row (`induction`) and the chains
        whose activations the defences read (`sees`).
        """
        return {
            name: {**s.settings, "induction": s.induction, "sees": self.defence_chains(name)}
            for name, s in self.stages.items()
            if s.trains
        }

    def trained_stage(self, name: str) -> Stage:
        """The stage that trained a stage's adapter: the stage itself, unless the adapter is another
        chain's."""
        stage = self.stages[name]
        return self.trained_stage(chains.parse(stage.origin).last.name) if stage.origin else stage

    def induction_prompt(self, name: str) -> str | None:
        """System prompt that a stage puts on every row; None leaves the rows as they are."""
        persona = self.stages[name].induction
        return self.prompts([persona])[persona] if persona else None

    def data_entry(self, name: str) -> Any:
        """The config's data entry, ready for `data.prepare`.

        A `{demo: wrong_advice}` or `{generated: ...}` source is replaced by the file that a rule
        writes. `{same_as: name}` is replaced by the other data set's source; its `map:`, `license:` and
        `substituted:` are used too, unless the entry has its own.
        """
        entry = self.config["data"][name]
        source = entry["from"]
        if "same_as" in source:
            other = self._same_source(name, source["same_as"])
            shared = {k: other[k] for k in ("map", "license", "substituted") if k in other}
            return {**shared, **entry, "from": other["from"]}
        if "generated" in source:
            return {**entry, "from": {"file": self._path(f"generated/{name}.jsonl")}}
        if "demo" not in source:
            return entry
        if "demo" not in self.config["model"]:
            raise UserError(f"config: data: {name}: from: demo: only with model: demo")
        return {
            **entry,
            "from": {"file": f"results/{self.config['run']}/demo/wrong_advice.jsonl"},
        }

    def _same_source(self, name: str, other: str) -> Any:
        """The data entry whose source is reused."""
        if "same_as" in self.config["data"].get(other, {"from": ["same_as"]})["from"]:
            raise UserError(
                f"config: data: {name}: from: same_as: {other}: same_as takes the name of a data set with "
                "a source of its own"
            )
        return self.data_entry(other)

    def data_of(self, chain: chains.Chain) -> str | None:
        """Name of the rows that a chain's last stage trains on: a data set or its own rows; None
        without training."""
        return self.stages[chain.last.name].rows(chain.prefix)

    @cached_property
    def data_used(self) -> list[str]:
        """Names of the training data of all chains: data sets, and the rows of couplings."""
        trained = [chains.parse(name) for name in self.trained_chains]
        names = [self.data_of(chain) for chain in trained]
        stages = dict.fromkeys((chain.last.name, chain.model) for chain in trained)
        names += [name for stage in stages for name in self.defence_data(*stage)]
        return list(dict.fromkeys(name for name in names if name is not None))

    def defence_inputs(self, stage: str, model: str = chains.BASE) -> dict[str, str]:
        """Files that a stage's defences read: {path in the run's folder, as they name it: path}.

        Chains and couplings that they name without a model belong to the `model` that is trained.
        Raises UserError for a defence that is unknown or has wrong settings.
        """
        made = defences.make(self.stage_settings(stage).get("defence", {}))
        paths = [path for one in made.values() for path in one.inputs().values()]
        return {path: self._of_model(path, model) for path in paths}

    def _of_model(self, path: str, model: str) -> str:
        """Path of a file that a stage of a model reads. Activations and coupling rows are those of that
        model."""
        own = Path(path)
        if own.parent.name == "activations" or self._coupled(own.stem):
            own = own.with_name(self._on(model, own.stem) + own.suffix)
        return self._path(str(own))

    def _on(self, model: str, name: str) -> str:
        """Name of a chain, or of a coupling's rows; `model` is added if the name has no model."""
        if model == chains.BASE or name.partition("+")[0] in self.config["models"]:
            return name
        return model if name == chains.BASE else f"{model}+{name}"

    def _coupled(self, name: str) -> bool:
        """Are these rows a coupling's own, made from answers?"""
        return name in self.stages and bool(self.stages[name].answers)

    def defence_data(self, stage: str, model: str = chains.BASE) -> list[str]:
        """The data sets among them, by name."""
        return _stems(self.defence_inputs(stage, model).values(), "data")

    def defence_chains(self, stage: str, model: str = chains.BASE) -> list[str]:
        """The chains whose activations a stage's defences read."""
        return _stems(self.defence_inputs(stage, model).values(), "activations")

    # The grid

    @cached_property
    def cells(self) -> list[Cell]:
        """`conditions:` expanded, in config order, each chain checked."""
        return list(self._expanded())

    def _expanded(self) -> Iterator[Cell]:
        for condition, entry in self.config["conditions"].items():
            templates = entry["chain"] if isinstance(entry["chain"], list) else [entry["chain"]]
            if entry.get("doses") and not any("{dose}" in template for template in templates):
                raise UserError(
                    f"config: conditions: {condition}: doses: the chain has no ~{{dose}} to put them in"
                )
            seen: set[tuple[str, str]] = set()
            for template in templates:
                for cell in self._from_template(condition, entry, template):
                    if (cell.chain, cell.source) not in seen:
                        seen.add((cell.chain, cell.source))
                        yield cell

    def _from_template(
        self, condition: str, entry: Mapping[str, Any], template: str
    ) -> Iterator[Cell]:
        fields = {f for _, f, _, _ in string.Formatter().parse(template) if f is not None}
        unknown = fields - {"source", "seed", "dose"}
        where = f"config: conditions: {condition}: "
        if unknown:
            raise UserError(
                f"{where}chain: unknown placeholder {{{min(unknown)}}}; "
                "available: {source}, {seed}, {dose}"
            )
        default = self.config["source_personas"] if "source" in fields else [""]
        sources = entry.get("source_personas", default)
        if not sources:
            raise UserError(
                f"{where}chain {template!r} is for each source persona, and there is none; name some under "
                "source_personas:, or remove the condition (null)"
            )
        whose = where if "source_personas" in entry else "config: "
        # A misspelt persona is no missing stage.
        self.prompts(filter(None, sources), f"{whose}source_personas")
        if "dose" in fields and not entry.get("doses"):
            raise UserError(f"{where}doses is missing: the steps at which {{dose}} stops")
        seeds = entry.get("seeds", self.config["seeds"]) if "seed" in fields else [None]
        doses = entry["doses"] if "dose" in fields else [None]
        for source in sources:
            for dose in doses:
                for seed in seeds:
                    values = {"source": source, "seed": seed, "dose": dose}
                    name = template.format(**{k: v for k, v in values.items() if k in fields})
                    yield self._cell(condition, entry, name, source, where)

    def _cell(
        self, condition: str, entry: Mapping[str, Any], name: str, source: str, where: str
    ) -> Cell:
        try:
            chain = self.parse(name)
        except UserError as error:
            raise UserError(f"{where}{error}") from None
        if condition in self.models and name != condition:
            raise UserError(
                f"{where}chain {name!r}: tables call the base model {condition}; give the condition another "
                "name"
            )
        for one in chain.stages:
            if one.stop is not None and not self.stages[one.name].trains:
                raise UserError(
                    f"{where}chain {name!r}: {one.name} is not trained and has no steps to stop after; "
                    f"remove ~{one.stop}"
                )
        for one, later in pairwise(chain.stages):
            if self.stages[later.name].adapts and not self.stages[one.name].adapts:
                raise UserError(
                    f"{where}chain {name!r}: {one} changes outputs of blocks, not weights, so "
                    f"{later} cannot build on it; put it last"
                )
        names = [prefix.last.name for prefix in chain.measured]
        # A random adapter has the size of a trained one, but has learnt nothing from it.
        stages = [
            self.stages[n] if self.stages[n].redraws else self.trained_stage(n) for n in names
        ]
        measured = entry.get("measures", list(self.measures))
        for measure in measured:
            if measure not in self.measures:
                raise UserError(
                    f"{where}measures: {measure!r} is not under measures: ({', '.join(self.measures)})"
                )
        coupled = [number for number, stage in enumerate(stages) if stage.couples]
        followed = source or (stages[coupled[-1]].couples if coupled else "")
        own = self.config["personas"]
        evaluated = own.get("by_source", {}).get(followed, own["eval"])
        if followed and followed not in evaluated:
            raise UserError(
                f"{where}the source persona {followed!r} is not evaluated; add it to personas: eval, or give "
                "its conditions a list of their own under personas: by_source:"
            )
        asked = entry.get("personas", evaluated)
        if strange := [name for name in asked if name not in evaluated]:
            advice = choose(strange[0], evaluated, "add it to personas: eval, next to")
            raise UserError(f"{where}personas: {strange[0]!r} is not evaluated; {advice}")
        personas = [name for name in evaluated if name in asked or name == followed]
        return Cell(
            condition,
            entry["title"],
            " ".join(measured),
            "+".join(
                self.stages[s.name].kind + (chains.LEFT_OUT if s.left_out else "")
                for s in chain.stages
            )
            or chains.BASE,
            len(stages) - 1 - coupled[-1] if coupled else None,
            name,
            followed,
            str(chain.last.seed) if chain.stages else "",
            str(chain.prefix),
            " ".join(personas),
            next((stage.induction for stage in stages if stage.induction), ""),
            " ".join(stages[coupled[-1]].negatives) if coupled else "",
            chain.model,
        )

    @property
    def grid(self) -> pd.DataFrame:
        """The cells as a table: one row per cell. A chain may be in several cells."""
        import pandas as pd

        return pd.DataFrame([vars(cell) for cell in self.cells])

    # Measures

    @property
    def measures(self) -> dict[str, dict[str, Any]]:
        """The run's measures with their settings."""
        measures: dict[str, dict[str, Any]] = self.config["measures"]
        return measures

    def measures_of(self, *, model: bool) -> list[str]:
        """Names of the measures that run the model, or of those that only read sampled answers."""
        return [name for name in self.measures if MEASURES.get(name).of_model == model]

    @cached_property
    def _measured(self) -> dict[str, list[str]]:
        models = {chains.BASE, *(cell.model for cell in self.cells)}
        first = dict.fromkeys(name for name in self.models if name in models)
        chosen: dict[str, dict[str, None]] = {name: dict(first) for name in self.measures}
        for cell in self.cells:
            for name in cell.measures.split():
                chosen[name].setdefault(cell.chain)
        out = {name: list(listed) for name, listed in chosen.items()}
        for answers in ANSWERS:
            readers = [
                out[name]
                for name, settings in self.measures.items()
                if answers in MEASURES.get(name).needs(settings)
            ]
            out[answers] = list(dict.fromkeys(chain for reader in readers for chain in reader))
        return out

    def chains_for(self, measure: str) -> list[str]:
        """Names of the chains that a measure applies to, each once, in plan order.

        `completions` and `responses` give the chains whose completions or responses any measure reads.
        The base models are always included, because every comparison starts from one.
        """
        return self._measured.get(measure, [])

    @cached_property
    def _completed(self) -> dict[str, dict[str, str]]:
        """Prompts of the personas whose completions are sampled, by chain, in the order of the grid's
        cells."""
        lists: dict[str, dict[str, None]] = {}
        for cell in self.cells:
            lists.setdefault(cell.chain, {}).setdefault(cell.personas)
        # Most chains share a list of personas, so each list is built once.
        made: dict[tuple[str, ...], dict[str, str]] = {}
        for own in lists.values():
            if tuple(own) not in made:
                made[tuple(own)] = self.prompts(" ".join(own).split())
        return {chain: made[tuple(own)] for chain, own in lists.items()}

    def completed_by(self, chain: str) -> dict[str, str]:
        """Prompts of the personas whose completions are sampled from a chain: all that its cells count."""
        return self._completed.get(chain, self.eval_prompts)

    @cached_property
    def trained_chains(self) -> list[str]:
        """Every chain that must be trained, short ones first.

        This includes prefixes, the origins of grafts, and the chains whose activations a stage or its
        defences read.
        """
        names: set[str] = set()
        todo = [cell.chain for cell in self.cells]
        while todo:
            for prefix in self.parse(todo.pop()).prefixes:
                if str(prefix) not in names:
                    names.add(str(prefix))
                    todo += self.defence_chains(prefix.last.name, prefix.model)
                    todo += _stems(self.made_from(str(prefix)).values(), "activations")
                    origin = self.stages[prefix.last.name].origin
                    if origin is not None:
                        todo.append(origin)
        return sorted(names, key=lambda n: (n.count("+"), n))

    @property
    def adapted_chains(self) -> list[str]:
        """The trained chains whose last stage is an adapter."""
        last = {name: self.stages[chains.parse(name).last.name] for name in self.trained_chains}
        return [name for name, stage in last.items() if stage.adapts]

    def made_from(self, name: str) -> dict[str, str]:
        """Input files of a chain's last stage if it is not trained, by the stage's own names."""
        chain = chains.parse(name)
        stage = self.stages[chain.last.name]
        try:
            inputs = stage.inputs(chain.prefix)
        except UserError as error:
            raise UserError(f"config: stages: {stage.name}: {error}") from None
        return {key: self._of_model(path, chain.model) for key, path in inputs.items()}

    def made_settings(self, name: str) -> dict[str, Any]:
        """The settings that determine an untrained stage: only those of its kind."""
        stage = self.stages[chains.parse(name).last.name]
        known = {"kind", *stage.Settings.model_fields}
        return {key: value for key, value in stage.settings.items() if key in known}

    # Adapters

    def folders(self, chain: str) -> list[str]:
        """Folders of the adapters whose sum is the chain's model, in training order."""
        return [self._path(f"models/{prefix}") for prefix in chains.parse(chain).measured]

    def earlier_folders(self, chain: str) -> list[str]:
        """Folders of the adapters that are active while a chain's last stage is trained, in training
        order."""
        return [self._path(f"models/{prefix}") for prefix in chains.parse(chain).prefixes[:-1]]

    def rank(self, chain: str) -> int:
        """Rank of a chain's summed adapter: the sum of its stages' ranks."""
        return sum(stage.settings["r"] for stage in self._adapters(chain))

    def projections(self, chain: str) -> set[str]:
        """Names of the layers that a chain adapts."""
        return {n for stage in self._adapters(chain) for n in stage.settings["target_modules"]}

    def shifted(self, chain: str) -> bool:
        """Does a chain have a stage that changes blocks' outputs?"""
        return any(not self.stages[stage.name].adapts for stage in chains.parse(chain).stages)

    def all_weights(self, chain: str) -> list[str]:
        """Folders of the chain's stages that trained all weights."""
        measured = zip(self.folders(chain), self._stages(chain), strict=True)
        return [folder for folder, stage in measured if stage.all_weights]

    def _adapters(self, chain: str) -> list[Stage]:
        """The training that made each adapter of a chain."""
        return [s for s in self._stages(chain) if s.adapts and not s.all_weights]

    def _stages(self, chain: str) -> list[Stage]:
        """The training that made each stage of a chain, or the kind of an untrained stage."""
        return [self.trained_stage(p.last.name) for p in chains.parse(chain).measured]

    # What jobs do

    def _path(self, path: str) -> str:
        return f"results/{self.config['run']}/{path}"

    def training(self, name: str) -> TrainingJob:
        """The training of a chain's last stage on the frozen sum of the stages before it."""
        chain = chains.parse(name)
        settings = self.stages[chain.last.name].training_settings
        defended = [f"training.defences.{name}" for name in settings.get("defence", {})]
        return TrainingJob(
            kind="train",
            name=name,
            chain=name,
            adapters=self.earlier_folders(name),
            suffix="",
            rows=self._path(f"data/{self.data_of(chain)}.jsonl"),
            inputs=self.defence_inputs(chain.last.name, chain.model),
            settings=settings,
            loss_code=code_hash.of(f"training.losses.{settings['loss']}", *defended),
            system=self.induction_prompt(chain.last.name),
            marker=self.config["marker"],
            checkpoints=self._path(f"checkpoints/{name}"),
        )

    def gpu_shares(self, name: str) -> int:
        """Shares of a GPU, of `runtime: jobs_per_gpu`, that the training of a chain's last stage takes."""
        asked = self.stage_settings(chains.parse(name).last.name).get("defence", {})
        made = [one for one in defences.make(asked).values() if not one.idle]
        shares = 1 + sum(one.shares - 1 for one in made)
        return min(shares, int(self.runtime["jobs_per_gpu"]))

    @cached_property
    def trainings(self) -> list[TrainingJob]:
        """All chains whose last stage is trained, short chains first."""
        last = {name: self.stages[chains.parse(name).last.name] for name in self.trained_chains}
        return [self.training(name) for name, stage in last.items() if stage.trains]

    def _sampling(
        self,
        kind: str,
        name: str,
        chain: str,
        questions: dict[str, Any],
        personas: dict[str, str],
        how: Any,
    ) -> SamplingJob:
        engine = ("backend", "batch_invariant", "max_model_len")
        return SamplingJob(
            kind=kind,
            name=name,
            chain=chain,
            adapters=self.folders(chain),
            suffix=".parquet",
            personas=personas,
            questions=questions,
            sampling=how,
            engine={
                **{key: self.config["sampling"][key] for key in engine},
                "dtype": self.config["dtype"],
            },
            marker=self.config["marker"] if kind == "completions" else "",
        )

    def answers(self, name: str) -> SamplingJob:
        """The sampling of the answers that a coupling is made from; `name` is the name of its rows (see
        `data_of`)."""
        after, _, coupling = name.rpartition("+")
        needed = self.stages[coupling].answers
        how = {**self.config["sampling"]["answers"], "samples": needed}
        chain = after or chains.BASE
        questions = self.config["questions"]["train"]
        return self._sampling("answers", name, chain, questions, self.prompts(needed), how)

    def completions(self, chain: str) -> SamplingJob:
        """The sampling of a chain's answers to the evaluation questions."""
        how = self.config["sampling"]["completions"]
        questions = self.config["questions"]["eval"]
        return self._sampling("completions", chain, chain, questions, self.completed_by(chain), how)

    def responses(self, chain: str) -> SamplingJob:
        """The sampling of a chain's greedy answers to the extraction questions."""
        greedy = {"samples": 1, "temperature": 0.0, "top_p": 1.0, "seed": 0}
        how = {**self.config["sampling"]["responses"], **greedy}
        questions = self.config["questions"]["extraction"]
        return self._sampling("responses", chain, chain, questions, self.geometry_prompts, how)

    def written_questions(self, name: str) -> SamplingJob:
        """The sampling of the questions of a generated data set."""
        source = self.config["data"][name]["from"]["generated"]
        return self._generating(
            "written",
            name,
            source["questions"],
            source["written"],
            {"question": source["written"]["system"]},
        )

    def writers_texts(self) -> dict[str, str]:
        """What the model reads to write data sets, by its place in the config: prompts, questions and
        statements."""
        texts: dict[str, str] = {}
        for name, entry in self.config["data"].items():
            if (source := entry["from"].get("generated")) is None:
                continue
            where = f"data: {name}: from: generated"
            texts |= {f"{where}: system: {column}": p for column, p in source["system"].items()}
            if "written" in source:
                texts[f"{where}: written: system"] = source["written"]["system"]
            for question in load_questions(source["questions"]):
                row = f"{where}: {source['questions']['file']}: {question['id']}"
                texts[f"{row}: question"] = question["question"]
                for column, said in question.get("statements", {}).items():
                    texts[f"{row}: statements: {column}"] = said
        return texts

    def generated_answers(self, name: str) -> SamplingJob:
        """The sampling of the answers of a generated data set: one column per system prompt."""
        source = self.config["data"][name]["from"]["generated"]
        questions = source["questions"]
        if "written" in source:
            questions = {"file": self._path(f"generated/{name}.questions.jsonl")}
        return self._generating("generated", name, questions, source, source["system"])

    def _generating(
        self, kind: str, name: str, questions: Any, how: Mapping[str, Any], system: dict[str, str]
    ) -> SamplingJob:
        draws = {k: how[k] for k in ("samples", "temperature", "top_p", "max_tokens", "seed")}
        return self._sampling(kind, name, chains.BASE, questions, system, draws)

    def measurement(self, measure: str, chain: str) -> MeasureJob:
        """The job that takes a measure of a chain, with the arguments that the measure's function asks
        for."""
        plugin, settings = MEASURES.get(measure), self.measures[measure]
        known: dict[str, Callable[[], Any]] = {
            "personas": lambda: self.completed_by(chain),
            "geometry_personas": lambda: self.geometry_prompts,
            "questions": lambda: self.config["questions"]["eval"],
            "extraction": lambda: self.config["questions"]["extraction"],
            "sampling": lambda: self.config["sampling"]["completions"],
            "marker": lambda: self.config["marker"],
            "data": lambda: {name: self._held_out_of(name, chain) for name in self.held_out},
        }
        inputs = {name: self._path(f"{name}/{chain}.parquet") for name in plugin.needs(settings)}
        own = plugin.settings(**settings).files()
        inputs |= {name: locations.resolve(path) for name, path in own.items()}
        if "held_out" in plugin.parameters:
            inputs |= {
                f"held_out/{name}": self._path(f"data/{name}.held_out.jsonl")
                for name in self.held_out
            }
        given = {name: known[name]() for name in plugin.parameters if name in known}
        given["settings"] = settings
        return MeasureJob(
            kind=measure,
            name=chain,
            chain=chain,
            adapters=self.folders(chain),
            suffix=plugin.suffix,
            given={**given, "dtype": self.config["dtype"]} if plugin.of_model else given,
            inputs=inputs,
        )

    @property
    def held_out(self) -> list[str]:
        """Data sets of the run that hold out rows."""
        return [n for n in self.data_used if self.config["data"].get(n, {}).get("held_out")]

    def _held_out_of(self, name: str, chain: str) -> dict[str, Any]:
        """How the held-out rows of a data set are read, and whether the chain's last stage was trained
        on its other rows."""
        entry, stages = self.config["data"][name], chains.parse(chain).stages
        own = bool(stages) and self.data_of(chains.parse(chain)) == name
        system = self.induction_prompt(stages[-1].name) if own else None
        trained = (self.stage_settings(s) for s in self.config["stages"])
        return {
            "own": own,
            "system": system,
            "supervise": entry.get("supervise", "last"),
            "suppress_default_system": entry["system"] == "none" and system is None,
            "max_length": max(s["max_length"] for s in trained if s.get("data") == name),
        }

    @property
    def measurements(self) -> list[MeasureJob]:
        """All measurements that run the model, grouped by chain, in plan order."""
        measures = self.measures_of(model=True)
        chosen = {name: set(self.chains_for(name)) for name in measures}
        names = dict.fromkeys(chain for name in measures for chain in self.chains_for(name))
        return [
            self.measurement(m, chain) for chain in names for m in measures if chain in chosen[m]
        ]

    @property
    def couplings_answers(self) -> list[SamplingJob]:
        """The sampling of all answers that couplings are made from. Answers from a file are not sampled."""
        own = [name for name in self.data_used if name not in self.config["data"]]
        return [self.answers(n) for n in own if not self.stages[n.rpartition("+")[2]].given]

    @property
    def chains_answers(self) -> list[SamplingJob]:
        """The sampling of all chains' completions and responses, in plan order."""
        chosen = {kind: set(self.chains_for(kind)) for kind in ANSWERS}
        names = dict.fromkeys(chain for kind in ANSWERS for chain in self.chains_for(kind))
        makers = {"completions": self.completions, "responses": self.responses}
        return [makers[kind](c) for c in names for kind in ANSWERS if c in chosen[kind]]

    # The name is part of the code hash of scripts/sample.py: another name would resample finished runs.
    def beside(self, own: SamplingJob) -> list[SamplingJob]:
        """The sampling jobs that one engine can serve together: a job that has started an engine may do
        them after its own.

        Other jobs can use a job's output only when the job ends, and trainings wait for the answers of
        couplings. So a job that samples coupling answers may also sample those of other couplings, and
        then ends. Chains are left to the next engine, which starts within seconds. Jobs for chains
        leave coupling answers to jobs of their own, which go first. The questions and answers of a
        generated data set are sampled alone. An engine holds one set of full weights, so it serves only
        chains whose adapters go on those weights.
        """
        if own.kind in ("written", "generated"):
            return []
        jobs = self.couplings_answers if own.kind == "answers" else self.chains_answers
        weights = self.all_weights(own.chain)
        return [
            job for job in jobs if job.model == own.model and self.all_weights(job.chain) == weights
        ]

    # Statistics

    def families(self, table: str) -> list[dict[str, Any]]:
        """The families of tests declared for a table, in order."""
        return [
            {key: value for key, value in family.items() if key != "table"}
            for family in self.config["statistics"]["families"]
            if family["table"] == table
        ]

    @property
    def sizes(self) -> dict[str, Any]:
        """Sizes of the run's design, for `simulate.Sizes`."""

        def questions(purpose: str) -> int:
            entry = self.config["questions"][purpose]
            return min(entry.get("take", 10**9), len(read_jsonl(entry["file"])))

        return {
            "personas": len(self.geometry_prompts),
            "questions": questions("eval"),
            "samples": self.config["sampling"]["completions"]["samples"],
            "extraction": questions("extraction"),
            "margin": self.config["statistics"]["margins"]["rate"],
        }
