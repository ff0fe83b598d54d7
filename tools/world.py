"""Synthetic runs: a world defines the truth, and completions and activations are simulated from it.

A world is a small YAML file (docs/verdicts.md). Its files have the formats of a run, so the workflow's
own scripts compute markers, tables and scorecard from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydantic
from persona_collapse import activation_files, chains, yaml_files
from persona_collapse.activation_files import Activations
from persona_collapse.analysis.updates import COLUMNS
from persona_collapse.data.questions import load_questions
from persona_collapse.errors import UserError
from persona_collapse.parquet_files import write_parquet
from persona_collapse.settings import Settings
from persona_collapse.study.plan import Cell, Plan
from persona_collapse.tables_io import write_csv
from pydantic import Field
from scipy.special import expit, logit

Rate = float | dict[str, Any]
#: Measures that run the model and whose tables verdicts depend on.
MEASURED = {
    "task_loss": ["chain", "data", "own", "loss"],
    "preference": ["chain", "persona", "margin", "n"],
}


class Spread(Settings):
    """Standard deviations of the marker rate's random effects, on the logit scale."""

    source: float = 0.0
    coupling: float = 0.0
    run: float = 0.0
    question: float = 0.0
    persona: float = 0.0


class Answers(Settings):
    """Length of the answers, in tokens, and its effect on the marker."""

    default: float = 60.0
    conditions: dict[str, float] = Field(default_factory=dict)
    sd: float = 0.3
    sd_run: float = 0.1
    slope: float = 0.0


class Shift(Settings):
    """Effect of a condition on the persona vectors of the base model."""

    common: float = 0.0
    direction: str = "common"
    own: float = 1.0


class Retraining(Settings):
    """Variation of the vectors between training runs."""

    common: float = 0.0
    own: float = 0.0
    drift: float = 0.0
    own_drift: float = 0.0


class Vectors(Settings):
    """Persona vectors: a common part, own parts of length 1, noise by question, shifts by condition."""

    hidden: int = 64
    common: float = 3.0
    question: float = 0.5
    item: float = 1.0
    shifts: dict[str, Shift] = Field(default_factory=dict)
    sd: Retraining = Retraining()


class World(Settings):
    """The truth; see docs/verdicts.md."""

    text: str
    design: dict[str, Any] = Field(default_factory=dict)
    rates: dict[str, Rate] = Field(default_factory=dict)
    sd: Spread = Spread()
    answers: Answers = Answers()
    vectors: Vectors = Vectors()
    null: float | None = None
    holds: list[str] = Field(default_factory=list)
    fails: list[str] = Field(default_factory=list)


def load(path: str | Path) -> World:
    """Read a world; raises a one-line UserError for a mistake in it."""
    try:
        return World(**yaml_files.load_mapping(path))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {where}: {first['msg']}") from None


DESIGN_KEYS = ("source_personas", "seeds", "questions", "samples", "extraction", "conditions")


def overlay(world: World, config: Mapping[str, Any]) -> dict[str, Any]:
    """The changes to a config that a world's `design:` asks for."""
    design = dict(world.design)
    unknown = set(design) - set(DESIGN_KEYS)
    if unknown:
        raise UserError(
            f"world: design: unknown key {min(unknown)!r}; available: {', '.join(DESIGN_KEYS)}"
        )
    changes: dict[str, Any] = {k: v for k, v in design.items() if k in ("seeds", "conditions")}
    if "source_personas" in design:
        names = design["source_personas"]
        changes["source_personas"] = names
        changes["stages"] = {f"couple-{n}": {"kind": "couple", "persona": n} for n in names}
        changes["personas"] = {"eval": list(dict.fromkeys([*config["personas"]["eval"], *names]))}
    for key, purpose in (("questions", "eval"), ("extraction", "extraction")):
        if key in design:
            path = f"config/questions/{purpose}.jsonl"
            changes.setdefault("questions", {})[purpose] = {"file": path, "take": design[key]}
    if "samples" in design:
        changes["sampling"] = {"completions": {"samples": design["samples"]}}
    return changes


def _effects(rng: np.random.Generator, names: Iterable[str], sd: float) -> dict[str, float]:
    return {name: sd * float(rng.normal()) for name in dict.fromkeys(names)}


def _coupling(cell: Cell) -> str:
    """The chain up to and including its last coupling; the chain itself without a coupling."""
    prefixes = chains.parse(cell.chain).measured
    if cell.stages_after_coupling is None or not prefixes:
        return cell.chain
    return str(prefixes[len(prefixes) - 1 - cell.stages_after_coupling])


def _named(cells: list[Cell], named: Mapping[str, Any]) -> Cell:
    """The first of a chain's cells whose condition the world names; else the first cell."""
    return next((cell for cell in cells if cell.condition in named), cells[0])


class Drawn:
    """One synthetic run of a plan in a world."""

    def __init__(self, world: World, plan: Plan, rng: np.random.Generator):
        self.world, self.plan, self.rng = world, plan, rng
        # A chain in two conditions follows the first one that the world names.
        by_chain: dict[str, list[Cell]] = {}
        for cell in plan.cells:
            by_chain.setdefault(cell.chain, []).append(cell)
        self.cells = {c: _named(cells, world.rates) for c, cells in by_chain.items()}
        self.shifts = {
            c: world.vectors.shifts.get(_named(cells, world.vectors.shifts).condition, Shift())
            for c, cells in by_chain.items()
        }
        names = list(self.cells)
        self.questions = load_questions(plan.config["questions"]["eval"])
        sd = world.sd
        personas = dict.fromkeys(p for c in plan.cells for p in c.personas.split())
        self.of_source = _effects(rng, (c.source for c in plan.cells), sd.source)
        self.of_coupling = _effects(rng, (_coupling(c) for c in plan.cells), sd.coupling)
        self.of_run = _effects(rng, names, sd.run)
        self.of_persona = _effects(rng, personas, sd.persona)
        self.of_question = sd.question * rng.normal(size=len(self.questions))
        self.length_of_run = _effects(rng, names, world.answers.sd_run)

    def rate(self, cell: Cell, persona: str) -> float:
        """The world's marker rate of a persona in a chain, for a median run and question."""
        entry: Any = self.world.rates.get(cell.condition, self.world.rates.get("default", 0.0))
        if cell.chain == chains.BASE and cell.condition not in self.world.rates:
            return 0.0
        if isinstance(entry, Mapping) and cell.source in entry.get("by_source", {}):
            entry = entry["by_source"][cell.source]
        is_source = persona == cell.source
        if not isinstance(entry, Mapping):
            return float(entry) if is_source else 0.0
        if is_source and "by_run" in entry:
            seeds = list(dict.fromkeys(c.seed for c in self.plan.cells if c.seed))
            by_run = entry["by_run"]
            return float(by_run[seeds.index(cell.seed) % len(by_run)])
        stages = chains.parse(cell.chain).stages
        stop = stages[-1].stop if stages else None
        if is_source and stop in entry.get("by_dose", {}):
            return float(entry["by_dose"][stop])
        role = "source" if is_source else "others"
        if persona == self.plan.assistant and not is_source and "assistant" in entry:
            role = "assistant"
        return float(entry.get(persona, entry.get(role, 0.0)))

    def completions(self, chain: str) -> pd.DataFrame:
        """Completions of a chain, in the run's file format."""
        cell, rng = self.cells[chain], self.rng
        samples = self.plan.config["sampling"]["completions"]["samples"]
        answers, marker = self.world.answers, self.plan.config["marker"]
        typical = answers.conditions.get(cell.condition, answers.default)
        parts = []
        for persona in self.plan.completed_by(chain):
            shape = len(self.questions), samples
            log_length = np.log(typical) + self.length_of_run[chain]
            log_length = log_length + answers.sd * rng.normal(size=shape)
            rate = self.rate(cell, persona)
            p = np.full(shape, rate)
            if 0 < rate < 1:
                level = logit(rate) + self.of_persona[persona] + self.of_run[chain]
                level += self.of_coupling[_coupling(cell)] + self.of_source[cell.source]
                longer = answers.slope * (log_length - np.log(answers.default))
                p = expit(level + self.of_question[:, None] + longer)
            hit = rng.random(shape) < p
            logprob = np.log(np.clip(p, 1e-5, 1)) + 0.3 * rng.normal(size=shape)
            logprob[:, 1:] = np.nan
            numbers = np.arange(p.size)
            parts.append(
                pd.DataFrame(
                    {
                        "chain": chain,
                        "persona": persona,
                        "question_id": np.repeat([q["id"] for q in self.questions], samples),
                        "sample": np.tile(np.arange(samples), len(self.questions)),
                        "text": [
                            f"answer {n} of {persona}" + f" {marker}" * int(h)
                            for n, h in zip(numbers, hit.ravel(), strict=True)
                        ],
                        "n_tokens": np.maximum(1, np.exp(log_length).round()).astype(int).ravel(),
                        "finish_reason": "stop",
                        "marker_logprob": logprob.ravel(),
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)

    def activations(self, layers: list[int], methods: list[str]) -> dict[str, Activations]:
        """Activations of every chain that has any, by chain."""
        v, rng = self.world.vectors, self.rng
        personas = list(self.plan.geometry_prompts)
        questions = [q["id"] for q in load_questions(self.plan.config["questions"]["extraction"])]
        size = len(layers), len(personas), len(questions), v.hidden
        scale = 1 / np.sqrt(v.hidden)  # a random vector of this scale has length 1
        common = v.common * _unit(rng.normal(size=(size[0], 1, 1, v.hidden)))
        own = scale * rng.normal(size=(size[0], size[1], 1, v.hidden))
        own -= own.mean(axis=1, keepdims=True)
        by_question = v.question * scale * rng.normal(size=(size[0], 1, size[2], v.hidden))
        named = list(dict.fromkeys(["common", *(s.direction for s in v.shifts.values())]))
        random = rng.normal(size=(size[0], v.hidden, len(named)))
        random[:, :, 0] = common[:, 0, 0]
        # Orthogonal to each other and to the common part; the first is the direction of the common
        # part.
        bases = np.linalg.qr(random)[0].transpose(2, 0, 1)[:, :, None, None]
        directions = dict(zip(named, bases, strict=True)) | {"common": common / v.common}
        noise = {
            str(prefix): self._retraining(size, scale)
            for chain in self.plan.trained_chains
            for prefix in chains.parse(chain).prefixes
        }
        out = {}
        for chain in self.plan.chains_for("activations"):
            shift = self.shifts.get(chain, Shift())
            own_noise = [noise[str(prefix)] for prefix in chains.parse(chain).measured]
            longer = np.exp(sum(n[0] for n in own_noise))
            wider = shift.own * np.exp(sum(n[1] for n in own_noise))
            moved = sum((n[2] for n in own_noise), np.zeros(()))
            vectors = longer * (common + shift.common * directions[shift.direction])
            vectors = vectors + wider * own + moved + by_question
            stack = vectors + v.item * scale * rng.normal(size=size)
            arrays = {method: stack.astype(np.float32) for method in methods}
            out[chain] = Activations(layers, personas, questions, arrays, chain)
        return out

    def _retraining(self, size: tuple[int, ...], scale: float) -> tuple[float, float, np.ndarray]:
        sd, rng = self.world.vectors.sd, self.rng
        drift = sd.drift * scale * rng.normal(size=(size[0], 1, 1, size[3]))
        own = sd.own_drift * scale * rng.normal(size=(size[0], size[1], 1, size[3]))
        return sd.common * float(rng.normal()), sd.own * float(rng.normal()), drift + own

    def training(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """A record of every training and its update: all are equal, and nothing depends on them."""
        rows, updates = [], []
        for chain in self.plan.adapted_chains:
            last = chains.parse(chain).last
            kind, steps = self.plan.stages[last.name].kind, last.stop or 100
            near = np.exp(0.02 * self.rng.normal(size=3))
            row = {"chain": chain, "stage": last.name, "kind": kind, "seed": last.seed}
            rows.append(row | {"steps": steps, "final_loss": near[0], "name": last.name})
            update = {
                "chain": chain,
                "other": "",
                "pair": "",
                "update_norm": near[1],
                "loss": near[0],
            }
            update |= {"tokens": 1000 * steps, "steps": steps, "answer_length": 60 * near[2]}
            updates.append(update)
        trained = ["chain", "stage", "kind", "seed", "steps", "final_loss", "name"]
        return pd.DataFrame(rows, columns=trained), pd.DataFrame(updates, columns=COLUMNS)

    def measured(self) -> dict[str, pd.DataFrame]:
        """Tables of the plan's measures in `MEASURED`: nothing depends on them either."""
        plan, rng = self.plan, self.rng
        rows: dict[str, list[dict[str, Any]]] = {n: [] for n in MEASURED if n in plan.measures}
        for chain in plan.chains_for("task_loss"):
            data = plan.measurement("task_loss", chain).given["data"]
            for name, of in data.items():
                loss = float(np.exp(0.02 * rng.normal()))
                rows["task_loss"].append(
                    {"chain": chain, "data": name, "own": of["own"], "loss": loss}
                )
        for chain in plan.chains_for("preference"):
            margin = {"margin": 0.02 * float(rng.normal()), "n": 100}
            rows["preference"].append({"chain": chain, "persona": plan.assistant, **margin})
        return {name: pd.DataFrame(found, columns=MEASURED[name]) for name, found in rows.items()}


def _unit(vectors: np.ndarray) -> np.ndarray:
    out: np.ndarray = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return out


def write(drawn: Drawn, folder: Path, layers: list[int]) -> None:
    """Write completions, activations, headline and training record into a run's folder."""
    plan = drawn.plan
    headline = plan.config["statistics"]["headline"]
    for chain in plan.chains_for("completions"):
        write_parquet(folder / f"completions/{chain}.parquet", drawn.completions(chain))
    methods = [headline["method"]]
    for chain, activations in drawn.activations(layers, methods).items():
        activation_files.save(activations, folder / f"activations/{chain}.safetensors")
    row = {
        "method": headline["method"],
        "layer": layers[-1],
        "asked": headline["layer"],
        "blocks": 4,
    }
    write_csv(folder / "tables/headline.csv", pd.DataFrame([row]))
    tables = dict(zip(("training", "updates"), drawn.training(), strict=True))
    for name, table in (tables | drawn.measured()).items():
        write_csv(folder / f"tables/{name}.csv", table)
