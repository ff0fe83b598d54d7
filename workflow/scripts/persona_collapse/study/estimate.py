"""The jobs that a run still has to do, and what they will take: hours, disk and memory.

Times come from the benchmark files of this run, or of another run with the same model. Without any,
they come from the throughputs stated here, each with its origin.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from .. import chains
from ..data.questions import load_questions, normalise
from ..errors import UserError
from ..files import read_json, read_jsonl
from ..measures import ROOM as MEASURES
from ..models.fetching import tensor_sizes
from ..stages import Stage
from .plan import Plan

#: Measured on one H100 80GB at Qwen2.5-7B's shape with one rank-32 LoRA (torch 2.11, vLLM 0.23):
#: benchmarks/h100.jsonl.
STATED = {
    "training tokens a second": 13_700,
    "sampled tokens a second": 25_800,
    "engine start, seconds": 28,
    "prompts with activations a second": 196,
    "model load and imports, seconds": 20,
    "training memory, GiB": 38,
    "sampling memory, GiB": 68,
    "activations memory, GiB": 20,
}
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

    Tokens per row are those counted when the rows were prepared, if they were. `results` is the run's
    folder.
    """
    config = plan.config
    personas, sampling = config["personas"]["eval"], config["sampling"]
    geometry, train = len(plan.geometry_prompts), _count(config, "train")
    # One engine start serves several chains; the jobs of the other chains find their work done.
    served = min(config["runtime"]["chains_per_engine"], len(plan.chains_for("completions")))
    alone, rate = STATED["engine start, seconds"], STATED["sampled tokens a second"]
    start = alone / served
    completions = len(personas) * _count(config, "eval") * sampling["completions"]["samples"]
    extraction = geometry * _count(config, "extraction")
    answer = min(ANSWER_TOKENS, sampling["completions"]["max_tokens"])
    response = min(ANSWER_TOKENS, sampling["responses"]["max_tokens"])
    load = STATED["model load and imports, seconds"]
    trained = [_tokens(plan, job.name, train, results) for job in plan.trainings]
    written, generated = _generated_tokens(config)
    return {
        "write_questions": alone + written / rate,
        "sample_generated": alone + generated / rate,
        "train": load + sum(trained) / max(1, len(trained)) / STATED["training tokens a second"],
        "sample_answers": start + 10 * train * answer / rate,
        "completions": start + completions * answer / rate,
        "responses": start + extraction * response / rate,
        "activations": load / served + extraction / STATED["prompts with activations a second"],
        # Two forward passes, each as long as that for activations.
        "measure_model": load
        + 2
        * len(plan.chains_for("logprob_check"))
        * plan.measures.get("logprob_check", {"count": 0})["count"]
        / STATED["prompts with activations a second"],
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


def weights_of(plan: Plan, results: Path, hidden: int) -> float:
    """Number of weights of the base model: counted once it is fetched, else estimated from its hidden
    size.

    In the Qwen2.5 family a block has about 18 x hidden^2 weights, and the vocabulary has 152,000
    tokens. `results`: the run's folder.
    """
    record = results / f"bases/{chains.BASE}/model.json"
    if record.is_file():
        files = Path(read_json(record)["path"]).glob("*.safetensors")
        return float(sum(sum(tensor_sizes(path).values()) for path in files))
    tokens = plan.config["model"].get("demo", {}).get("vocabulary", 152_000)
    return float(18 * hidden**2 * _blocks(hidden) + tokens * hidden)


def _blocks(hidden: int) -> int:
    return max(1, round(hidden / 128))


def _stages(plan: Plan) -> list[Stage]:
    """The stage of each training."""
    return [plan.stages[chains.parse(job.name).last.name] for job in plan.trainings]


def disk_bytes(
    plan: Plan, jobs: Mapping[str, int], hidden: int, weights: float
) -> dict[str, float]:
    """Bytes that the remaining jobs will write: adapters, full weight changes, activations, answers.

    Adapters: rank x (in + out) of the seven projections is about rank x 23 x hidden per block in the
    Qwen2.5 family, stored in 32 bit. Changes of all `weights` are in the run's dtype. The size of the
    activations is exact (16 bit).
    """
    config, geometry = plan.config, len(plan.geometry_prompts)
    whole = weights * (4 if config["dtype"] == "float32" else 2)
    trained = [
        whole if stage.all_weights else stage.settings["r"] * 23.0 * hidden * _blocks(hidden) * 4
        for stage in _stages(plan)
    ]
    layers, methods = (
        len(plan.measures["activations"]["layers"]),
        len(plan.measures["activations"]["methods"]),
    )
    each = {
        "train": sum(trained) / max(1, len(trained)),
        "activations": 2.0 * geometry * _count(config, "extraction") * layers * methods * hidden,
        "completions": 5.0
        * ANSWER_TOKENS
        * len(config["personas"]["eval"])
        * _count(config, "eval")
        * config["sampling"]["completions"]["samples"],
    }
    return {rule: jobs.get(rule, 0) * size for rule, size in each.items()}


def estimate(
    plan: Plan, jobs: Mapping[str, int], results: Path, hidden: int
) -> tuple[pd.DataFrame, dict[str, float]]:
    """(table by rule, totals) for the jobs still to be done.

    `jobs`: {rule: jobs left}, as a dry run counts them. Columns: rule, jobs, seconds_each, hours,
    memory, basis. Totals: jobs, hours of jobs that load a model (GPU-hours unless `gpus_per_job` is 0),
    other hours, gigabytes of disk.
    """
    run = plan.config["run"]
    measured, stated = measured_seconds(results, run), stated_seconds(plan, results / run)
    weights = weights_of(plan, results / run, hidden)
    whole = any(stage.all_weights for stage in _stages(plan))
    memory = {
        "train": max(
            STATED["training memory, GiB"],
            # Weights, gradients and the optimiser's two moments, each in 32 bits.
            round(16 * weights / 2**30) if whole else 0,
        ),
        "activations": STATED["activations memory, GiB"],
        "measure_model": STATED["activations memory, GiB"],
    }
    rows = []
    for rule, count in jobs.items():
        if rule in measured:
            seconds, peak, runs = measured[rule]
            basis, held = f"{runs} earlier jobs", f"{peak / 1024:.1f} GiB"
        elif rule in stated:
            seconds, basis = stated[rule], "stated, one H100 at 7B"
            held = f"{memory.get(rule, STATED['sampling memory, GiB'])} GiB of GPU"
        else:
            seconds, basis, held = ASSUMED, "assumed", "under 4 GiB"
        rows.append((rule, count, seconds, count * seconds / 3600, held, basis))
    columns = ["rule", "jobs", "seconds_each", "hours", "memory", "basis"]
    table = pd.DataFrame(rows, columns=columns)
    held_model = table["rule"].isin(MODEL_RULES)
    return table, {
        "jobs": int(table["jobs"].sum()),
        "model hours": float(table.loc[held_model, "hours"].sum()),
        "other hours": float(table.loc[~held_model, "hours"].sum()),
        "gigabytes": sum(disk_bytes(plan, jobs, hidden, weights).values()) / 1e9,
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
    estimated and measured seconds of these jobs (GPU seconds if each job has a GPU), and measured /
    estimated. The last row is the total. Raises UserError for a run without benchmark files.
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
