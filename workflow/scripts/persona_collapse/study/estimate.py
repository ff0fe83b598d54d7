"""What is left of a run, and what it will take: jobs, hours, disk, memory.

Times come from the benchmark files of this run or of another run of the same config's model where
there are any, and otherwise from throughputs stated here with their origin.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from .. import chains
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
#: Tokens that a row or an answer is taken to have where nothing was counted yet.
ROW_TOKENS, ANSWER_TOKENS, PROMPT_TOKENS = 129, 150, 64
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
    """Rule whose benchmarks lie in a folder, where the names differ."""
    return {"answers": "sample_answers", "figures": "figure"}.get(folder, folder)


def stated_seconds(plan: Plan) -> dict[str, float]:
    """{rule: seconds a job} from the stated throughputs; only rules that hold a model."""
    config = plan.config
    personas, sampling = config["personas"]["eval"], config["sampling"]
    geometry, train = len(plan.geometry_prompts), _count(config, "train")
    # A start serves several chains; the jobs of the others find their work done.
    start = STATED["engine start, seconds"] / config["runtime"]["chains_per_engine"]
    completions = len(personas) * _count(config, "eval") * sampling["completions"]["samples"]
    extraction = geometry * _count(config, "extraction")
    answer = min(ANSWER_TOKENS, sampling["completions"]["max_tokens"])
    response = min(ANSWER_TOKENS, sampling["responses"]["max_tokens"])
    load = STATED["model load and imports, seconds"]
    steps = [_tokens(plan, name, train) for name in plan.trained_chains]
    return {
        "train": load + sum(steps) / max(1, len(steps)) / STATED["training tokens a second"],
        "sample_answers": start + 10 * train * answer / STATED["sampled tokens a second"],
        "completions": start + completions * answer / STATED["sampled tokens a second"],
        "responses": start + extraction * response / STATED["sampled tokens a second"],
        "activations": load / config["runtime"]["chains_per_engine"]
        + extraction / STATED["prompts with activations a second"],
        # Two forward passes, of which each is what an activation takes.
        "measure_model": load
        + 2
        * len(plan.chains_for("logprob_check"))
        * plan.measures.get("logprob_check", {"count": 0})["count"]
        / STATED["prompts with activations a second"],
    }


def _count(config: Mapping[str, Any], purpose: str) -> int:
    from ..data.questions import load_questions

    return len(load_questions(config["questions"][purpose]))


def _tokens(plan: Plan, name: str, questions: int) -> float:
    """Tokens that a chain's last stage trains on, by the row counts of the config."""
    stage = chains.parse(name).last
    planned = plan.stages[stage.name]
    settings = planned.settings
    if not planned.trains:
        return 0.0
    rows = sum(planned.answers.values()) * questions
    if planned.data is not None:
        rows = plan.config["data"][planned.data].get("select", {}).get("take", 6000)
    whole = settings.get("steps") or rows * settings["epochs"] / settings["batch_size"]
    return float(min(stage.stop or whole, whole) * settings["batch_size"] * ROW_TOKENS)


def disk_bytes(plan: Plan, jobs: Mapping[str, int], hidden: int) -> dict[str, float]:
    """Bytes that the jobs left will write: adapters, activations, answers.

    Adapters: rank x (in + out) of the seven projections is about rank x 23 x hidden a block at the
    Qwen2.5 shapes, stored in 32 bit. Activations: exact, 16 bit.
    """
    config, geometry = plan.config, len(plan.geometry_prompts)
    blocks = max(1, round(hidden / 128))
    layers, methods = (
        len(plan.measures["activations"]["layers"]),
        len(plan.measures["activations"]["methods"]),
    )
    each = {
        "train": config["lora"]["r"] * 23.0 * hidden * blocks * 4,
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
    memory, basis. Totals: jobs, hours of jobs that hold a model (GPU-hours where `gpus_per_job` is not 0),
    other hours, gigabytes of disk.
    """
    measured, stated = measured_seconds(results, plan.config["run"]), stated_seconds(plan)
    memory = {
        "train": STATED["training memory, GiB"],
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
            seconds, basis, held = 5.0, "assumed", "under 4 GiB"
        rows.append((rule, count, seconds, count * seconds / 3600, held, basis))
    columns = ["rule", "jobs", "seconds_each", "hours", "memory", "basis"]
    table = pd.DataFrame(rows, columns=columns)
    held_model = table["rule"].isin(MODEL_RULES)
    return table, {
        "jobs": int(table["jobs"].sum()),
        "model hours": float(table.loc[held_model, "hours"].sum()),
        "other hours": float(table.loc[~held_model, "hours"].sum()),
        "gigabytes": sum(disk_bytes(plan, jobs, hidden).values()) / 1e9,
    }
