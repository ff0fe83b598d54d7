"""The jobs that a run still has to do, and what they will take: hours, disk and memory.

Times come from the benchmark files of this run, or of another run with the same model. Without any,
they come from the throughputs stated here, each with its origin, scaled to the size of the model.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from .. import chains
from ..data.questions import load_questions, normalise
from ..errors import UserError
from ..files import read_json, read_jsonl
from ..measures import ROOM as MEASURES
from ..models import gguf
from ..models.fetching import tensor_sizes
from ..stages import Stage
from .plan import Plan

#: Measured on one H100 80GB with one rank-32 LoRA (torch 2.11, vLLM 0.23): benchmarks/h100.jsonl. At
#: Qwen2.5-7B's shape, and on SmolLM2-135M with four trainings or one engine on the GPU.
STATED = {
    "training tokens a second": (13_700, 85_000),
    "sampled tokens a second": (25_800, 59_000),
    "prompts with activations a second": (196, 960),
    "training memory, GiB": (38, 6.3),
    "activations memory, GiB": (20, 3),
}
#: Numbers of weights of these two models.
WEIGHTS = (7.62e9, 0.135e9)
#: Seconds that do not depend on the model's size much.
ENGINE_START, LOAD = 28, 20
#: Memory of the GPU that these figures are of, GiB.
GPU_MEMORY = 80
#: Seconds assumed for a job that was never timed.
ASSUMED = 5.0
#: Tokens assumed per row or answer before anything was counted.
ROW_TOKENS, ANSWER_TOKENS = 129, 150
MODEL_RULES = (
    "write_questions",
    "sample_generated",
    "train",
    "sample_answers",
    "completions",
    "responses",
    "activations",
    "measure_model",
)


def measured_seconds(results: Path, run: str) -> dict[str, tuple[float, float, int]]:
    """{rule: (mean seconds, peak MiB, jobs)} from a run's benchmark files."""
    found: dict[str, list[tuple[float, float]]] = {}
    folder = results / run / "benchmarks"
    for path in sorted(folder.rglob("*.tsv")):
        rule = path.relative_to(folder).parts[0].removesuffix(".tsv")
        table = pd.read_csv(path, sep="\t")
        if len(table):
            peak = pd.to_numeric(table["max_rss"], errors="coerce").max()
            found.setdefault(_rule_of(rule), []).append((table["s"].mean(), peak))
    return {
        rule: (
            sum(s for s, _ in runs) / len(runs),
            max((p for _, p in runs if pd.notna(p)), default=0.0),
            len(runs),
        )
        for rule, runs in found.items()
    }


def _rule_of(folder: str) -> str:
    """Rule whose benchmarks a folder holds; the names can differ."""
    if folder in MEASURES.names() and folder not in MODEL_RULES:
        return "measure_model" if MEASURES.get(folder).of_model else "measure_answers"
    return {"answers": "sample_answers", "figures": "figure"}.get(folder, folder)


def stated_seconds(plan: Plan, results: Path) -> dict[str, float]:
    """{rule: seconds per job} from the stated throughputs, for rules that load a model.

    Jobs that share a GPU (`jobs_per_gpu`) divide its throughput. Tokens per row are those counted when
    the rows were prepared, if they were. `results` is the run's folder.
    """
    shape, shared = shape_of(plan, results), plan.config["runtime"]["jobs_per_gpu"]
    config = plan.config
    personas, sampling = config["personas"]["eval"], config["sampling"]
    geometry, train = len(plan.geometry_prompts), _count(config, "train")
    # One engine start serves several chains; the jobs of the other chains find their work done.
    served = min(config["runtime"]["chains_per_engine"], len(plan.chains_for("completions")))
    rate = shape.stated("sampled tokens a second") / shared
    prompts = shape.stated("prompts with activations a second") / shared
    start = ENGINE_START / served
    completions = len(personas) * _count(config, "eval") * sampling["completions"]["samples"]
    extraction = geometry * _count(config, "extraction")
    answer = min(ANSWER_TOKENS, sampling["completions"]["max_tokens"])
    response = min(ANSWER_TOKENS, sampling["responses"]["max_tokens"])
    trained = [_tokens(plan, job.name, train, results) for job in plan.trainings]
    written, generated = _generated_tokens(config)
    return {
        "write_questions": ENGINE_START + written / rate,
        "sample_generated": ENGINE_START + generated / rate,
        "train": LOAD
        + sum(trained) / max(1, len(trained)) * shared / shape.stated("training tokens a second"),
        "sample_answers": start + 10 * train * answer / rate,
        "completions": start + completions * answer / rate,
        "responses": start + extraction * response / rate,
        "activations": LOAD / served + extraction / prompts,
        # Two forward passes, each as long as that for activations.
        "measure_model": LOAD
        + 2
        * len(plan.chains_for("logprob_check"))
        * plan.measures.get("logprob_check", {"count": 0})["count"]
        / prompts,
    }


def _count(config: Mapping[str, Any], purpose: str) -> int:
    return len(load_questions(config["questions"][purpose]))


def _generated_tokens(config: Mapping[str, Any]) -> tuple[float, float]:
    """Mean number of tokens sampled for a generated data set: for its questions and for its answers.

    This assumes that every question is kept.
    """
    found = []
    for entry in config["data"].values():
        if source := entry["from"].get("generated"):
            asked, own = len(load_questions(source["questions"])), source.get("written")
            questions = asked * own["samples"] if own else asked
            answers = questions * source["samples"] * len(source["system"])
            found.append(
                (
                    questions * own["max_tokens"] if own else 0,
                    answers * min(ANSWER_TOKENS, source["max_tokens"]),
                )
            )
    written, generated = zip(*found, strict=True) if found else ((0,), (0,))
    return sum(written) / len(written), sum(generated) / len(generated)


def _tokens(plan: Plan, name: str, questions: int, results: Path) -> float:
    """Tokens that a chain's last stage trains on, by the row counts of the config."""
    chain = chains.parse(name)
    stage, planned = chain.last, plan.stages[chain.last.name]
    settings = planned.settings
    if planned.given:
        found = read_jsonl(planned.given["file"])
        questions = len(
            {normalise(r["question"]) for r in found if r["persona"] in planned.answers}
        )
    rows = sum(planned.answers.values()) * questions
    if planned.data is not None:
        entry = plan.config["data"][planned.data]
        rows = entry.get("select", {}).get("take", 6000) - entry.get("held_out", 0)
    whole = settings.get("steps") or rows * settings["epochs"] / settings["batch_size"]
    counted = results / f"data/{plan.data_of(chain)}.manifest.json"
    tokens = read_json(counted).get("tokens") if counted.is_file() else None
    each = tokens["mean"] if tokens else ROW_TOKENS
    return float(min(stage.stop or whole, whole) * settings["batch_size"] * each)


@dataclass(frozen=True)
class Shape:
    """Size of a base model: width of its residual stream, number of blocks, number of weights."""

    hidden: float
    blocks: float
    weights: float

    def stated(self, name: str) -> float:
        """A stated figure at this size: a power law of the number of weights through both models.

        A model smaller than both counts as the smaller one.
        """
        large, small = STATED[name]
        power = math.log(large / small) / math.log(WEIGHTS[0] / WEIGHTS[1])
        return large * (max(self.weights, WEIGHTS[1]) / WEIGHTS[0]) ** power

    @property
    def basis(self) -> str:
        """Where the stated figures are from."""
        if abs(self.weights / WEIGHTS[0] - 1) < 0.15:
            return "stated, one H100 at 7B"
        millions = max(self.weights, WEIGHTS[1]) / 1e6
        size = f"{millions / 1000:.2g}B" if millions >= 1000 else f"{millions:.0f}M"
        return f"one H100, scaled to {size}"


def shape_of(plan: Plan, results: Path) -> Shape:
    """Shape of the base model: read once it is fetched, else from the config, else guessed.

    A model that the run makes has its shape in the config. Of a GGUF file the size is known; quantised to
    4 bits, a weight takes about 0.6 bytes. Other models say their size in their name
    (`Qwen2.5-Coder-1.5B-Instruct`). The shape is then that of a transformer with 28 blocks, which has
    about 540 x hidden^2 weights in the Qwen2.5 family. A model without a size in its name, or in a package
    that is not installed yet, counts as one of 7B. `results`: the run's folder.
    """
    record = results / f"bases/{chains.BASE}/model.json"
    if record.is_file() and (folder := Path(read_json(record)["path"])).is_dir():
        config = read_json(folder / "config.json")
        config = config.get("text_config", config)
        counts = [sum(tensor_sizes(path).values()) for path in folder.glob("*.safetensors")]
        return Shape(config["hidden_size"], config["num_hidden_layers"], sum(counts))
    model = plan.config["model"]
    if made := model.get("demo") or model.get("random"):
        width, blocks = made["hidden"], made["blocks"]
        # models/demo.py: feed-forward layers of 3 x hidden, half as many heads of keys and values.
        inner = made.get("intermediate", 3 * width)
        values = width * made.get("kv_heads", made["heads"] / 2) / made["heads"]
        each = 2 * width**2 + 2 * width * values + 3 * width * inner
        embeddings = 1 if made.get("tied", True) else 2
        return Shape(width, blocks, blocks * each + embeddings * made["vocabulary"] * width)
    if source := model.get("gguf"):
        weights = _file_size(source) / 0.6
    else:
        weights = _named_size(Path(model.get("path") or model["hub"]["id"]).name)
    return Shape(math.sqrt(weights / 540), 28, weights)


def _file_size(source: Mapping[str, Any]) -> float:
    """Bytes of a GGUF file, also in parts; those of 7B's if it is not there yet."""
    try:
        return float(sum(path.stat().st_size for path in gguf.files_of(source)[0]))
    except UserError:
        return 0.6 * WEIGHTS[0]


def _named_size(name: str) -> float:
    """Number of weights that a model's name states, as 1.5B or 270m; 7B's if it states none."""
    found = re.search(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", name, re.IGNORECASE)
    if not found:
        return WEIGHTS[0]
    return float(found[1]) * (1e9 if found[2] in "bB" else 1e6)


def _stages(plan: Plan) -> list[Stage]:
    """The stage of each training."""
    return [plan.stages[chains.parse(job.name).last.name] for job in plan.trainings]


def disk_bytes(plan: Plan, jobs: Mapping[str, int], shape: Shape) -> dict[str, float]:
    """Bytes that the remaining jobs will write: adapters, full weight changes, activations, answers.

    Adapters: rank x (in + out) of the seven projections is about rank x 23 x hidden per block in the
    Qwen2.5 family, stored in 32 bit. Changes of all weights are in the run's dtype. The size of the
    activations is exact (16 bit).
    """
    config, geometry = plan.config, len(plan.geometry_prompts)
    whole = shape.weights * (4 if config["dtype"] == "float32" else 2)
    trained = [
        whole if stage.all_weights else stage.settings["r"] * 23.0 * shape.hidden * shape.blocks * 4
        for stage in _stages(plan)
    ]
    layers, methods = (
        len(plan.measures["activations"]["layers"]),
        len(plan.measures["activations"]["methods"]),
    )
    each = {
        "train": sum(trained) / max(1, len(trained)),
        "activations": 2.0
        * geometry
        * _count(config, "extraction")
        * layers
        * methods
        * shape.hidden,
        "completions": 5.0
        * ANSWER_TOKENS
        * len(config["personas"]["eval"])
        * _count(config, "eval")
        * config["sampling"]["completions"]["samples"],
    }
    return {rule: jobs.get(rule, 0) * size for rule, size in each.items()}


def estimate(
    plan: Plan, jobs: Mapping[str, int], results: Path
) -> tuple[pd.DataFrame, dict[str, float]]:
    """(table by rule, totals) for the jobs still to be done.

    `jobs`: {rule: jobs left}, as a dry run counts them. Columns: rule, jobs, seconds_each, hours,
    memory, basis. Hours of jobs that share a GPU are divided among them. Totals: jobs, hours of jobs that
    load a model (GPU-hours unless `gpus_per_job` is 0), other hours, gigabytes of disk.
    """
    run, runtime = plan.config["run"], plan.config["runtime"]
    measured, stated = measured_seconds(results, run), stated_seconds(plan, results / run)
    shape = shape_of(plan, results / run)
    whole = any(stage.all_weights for stage in _stages(plan))
    memory = {
        "train": max(
            shape.stated("training memory, GiB"),
            # Weights, gradients and the optimiser's two moments, each in 32 bits.
            16 * shape.weights / 2**30 if whole else 0,
        ),
        "activations": shape.stated("activations memory, GiB"),
        "measure_model": shape.stated("activations memory, GiB"),
    }
    engine = runtime["sampling"]["gpu_memory_utilization"] * GPU_MEMORY
    rows = []
    for rule, count in jobs.items():
        if rule in measured:
            seconds, peak, runs = measured[rule]
            basis, held = f"{runs} earlier jobs", f"{peak / 1024:.1f} GiB"
        elif rule in stated:
            seconds, basis = stated[rule], shape.basis
            held = f"{memory.get(rule, engine):.0f} GiB of GPU"
        else:
            seconds, basis, held = ASSUMED, "assumed", "under 4 GiB"
        shared = runtime["jobs_per_gpu"] if rule in MODEL_RULES else 1
        rows.append((rule, count, seconds, count * seconds / shared / 3600, held, basis))
    columns = ["rule", "jobs", "seconds_each", "hours", "memory", "basis"]
    table = pd.DataFrame(rows, columns=columns)
    held_model = table["rule"].isin(MODEL_RULES)
    return table, {
        "jobs": int(table["jobs"].sum()),
        "model hours": float(table.loc[held_model, "hours"].sum()),
        "other hours": float(table.loc[~held_model, "hours"].sum()),
        "gigabytes": sum(disk_bytes(plan, jobs, shape).values()) / 1e9,
    }


def in_words(plan: Plan, jobs: Mapping[str, int]) -> list[tuple[str, str]]:
    """What a run trains, samples, measures and still misses, and which data are stand-ins: (verb, the
    rest).

    `jobs`: {rule: jobs left}, as a dry run counts them.
    """

    def left(rule: str, whole: int) -> str:
        count = min(jobs.get(rule, 0), whole)
        return "all left" if count == whole else f"{count} left" if count else "none left"

    config, kinds = plan.config, Counter(stage.kind for stage in _stages(plan))
    trained = sum(kinds.values())
    said = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    seeds = sorted({cell.seed for cell in plan.cells if cell.seed}, key=int)
    lines = []
    if trained:
        lines += [("trains", f"{trained} stages ({said}), {left('train', trained)}")]
    if seeds:
        lines += [("", f"seeds {', '.join(seeds)}")]
    if couplings := len(plan.couplings_answers):
        rest = left("sample_answers", couplings)
        lines += [
            ("samples", f"training answers of {couplings} coupling{'s' * (couplings > 1)}, {rest}")
        ]
    if completed := plan.chains_for("completions"):
        each = _count(config, "eval") * config["sampling"]["completions"]["samples"]
        count = each * sum(len(plan.completed_by(chain)) for chain in completed)
        rest = left("completions", len(completed))
        lines += [
            (
                "samples",
                f"{count:,} completions of {len(completed)} chains for marker rates, {rest}",
            )
        ]
    if responded := len(plan.chains_for("responses")):
        count = responded * len(plan.geometry_prompts) * _count(config, "extraction")
        rest = left("responses", responded)
        lines += [("samples", f"{count:,} responses of {responded} chains for activations, {rest}")]
    lines += [("measures", ", ".join(plan.measures))]
    for name in plan.data_used:
        if other := config["data"].get(name, {}).get("substituted"):
            lines += [("stand-in", f"{name}: {other.strip()}")]
    for stage in plan.stages.values():
        if other := stage.missing(plan.stages.values()):
            lines += [("lacks", f"{stage.name}: {other}")]
    return lines


def against(plan: Plan, results: Path, run: str) -> pd.DataFrame:
    """Measured next to estimated times of the jobs of a run that load a model, by kind.

    `run`: a run in `results` with finished jobs; the plan is that of its config. Columns: rule, jobs,
    estimated and measured seconds of these jobs, and measured / estimated. The last row is the total.
    Raises UserError for a run without benchmark files.
    """
    measured, stated = measured_seconds(results, run), stated_seconds(plan, results / run)
    rows = []
    for rule in MODEL_RULES:
        if rule in measured:
            seconds, _, jobs = measured[rule]
            rows.append((rule, jobs, jobs * stated.get(rule, ASSUMED), jobs * seconds))
    if not rows:
        raise UserError(
            f"{results / run}/benchmarks: no job with a model has run there; run one first, or fix the name"
        )
    table = pd.DataFrame(rows, columns=["rule", "jobs", "estimated", "measured"])
    table.loc[len(table)] = ["all", *table[["jobs", "estimated", "measured"]].sum()]
    return table.astype({"jobs": int}).assign(ratio=table["measured"] / table["estimated"])
