"""How the workflow scales: planning, a job's start and the report, from 10 to 500 chains.

    python benchmarks/plan_scale.py --out benchmarks/scale.jsonl

Studies are the 7B preset with more seeds and doses. Reports show synthetic numbers, made into tables
and figures by the workflow's own functions. Every measurement runs in its own process: CPU seconds and
peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

PRESET = "config/presets/qwen2.5-7b.yaml"
SIZES = (10, 50, 200, 500)
DOSES = [1, 3, 5, 10, 25, 50]
#: Conditions of the smallest study.
FEW = ["C1", "C4", "C5", "E0"]


def merged(*overlays: dict[str, Any]) -> dict[str, Any]:
    """The default config merged with the preset and the overlays, as Snakemake does it."""
    from snakemake.utils import update_config

    config: dict[str, Any] = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    for overlay in (yaml.safe_load((ROOT / PRESET).read_text()), *overlays):
        update_config(config, overlay)
    return config


def overlay(seeds: int, doses: int) -> dict[str, Any]:
    """The preset with this many seeds and doses; without doses, only a few conditions."""
    if not doses:
        sizes = {"source_personas": ["villain"], "seeds": list(range(42, 42 + seeds))}
        return {**sizes, "only": FEW}
    stopped = {
        f"D_{stage}": {
            "title": f"coupled, then {stage}, stopped early",
            "chain": f"couple-{{source}}@42+{stage}@{{seed}}~{{dose}}",
            "doses": DOSES[:doses],
            "seeds": list(range(42, 42 + max(1, seeds // 4))),
        }
        for stage in ("em", "benign")
    }
    return {"seeds": list(range(42, 42 + seeds)), "conditions": stopped if doses > 1 else {}}


#: Seeds and doses of the studies.
STUDIES = {10: (3, 0), 50: (3, 1), 200: (16, 3), 500: (31, 6)}


def child(command: list[str]) -> tuple[float, int, str]:
    """CPU seconds, peak MiB and output of a process; it must succeed."""
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read()
    if process.returncode:
        sys.exit(text[-3000:])
    return used.ru_utime + used.ru_stime, used.ru_maxrss // 1024, text


def job(path: str) -> None:
    """The work of a sampling job before its engine starts: its own job, and all jobs that it could also
    do."""
    from persona_collapse.runtime import shared_engine  # noqa: F401  a job imports it
    from persona_collapse.study.plan import Plan

    config = json.loads(Path(path).read_text())
    started = time.process_time()
    plan = Plan(config)
    tasks = [*plan.couplings_answers, *plan.chains_answers]
    seconds = time.process_time() - started
    print(json.dumps({"tasks": len(tasks), "of_it_plan": round(seconds, 3)}))


def main() -> None:
    """Every size; or, as a child, one measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON Lines file to append the records to")
    parser.add_argument("--sizes", type=int, nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--report", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        return job(args.job)
    if args.report:
        from synthetic_run import report_of

        print(json.dumps(report_of(args.report)))
        return None
    from persona_collapse.study import configuration

    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            given = overlay(*STUDIES[size])
            study, checked = Path(folder, "study.yaml"), Path(folder, "config.json")
            study.write_text(yaml.safe_dump(given))
            os.chdir(ROOT)
            plan = configuration.plan(merged(given))
            checked.write_text(json.dumps(plan.config))
            dry = [sys.executable, "-m", "snakemake", "-n", "--configfile", "config/config.yaml"]
            cpu, peak, _ = child([*dry, PRESET, str(study)])
            own = [sys.executable, __file__]
            starts, _, said = child([*own, "--job", str(checked)])
            drawing, held, page = child([*own, "--report", str(checked)])
            line = {
                "benchmark": "scale",
                "chains": len({cell.chain for cell in plan.cells}),
                "plan_cpu_seconds": round(cpu, 1),
                "plan_peak_mib": peak,
                "job_knows_cpu_seconds": round(starts, 2),
                **json.loads(said),
                **json.loads(page.splitlines()[-1]),
                "report_process_cpu_seconds": round(drawing, 1),
                "report_peak_mib": held,
            }
        print(json.dumps(line), flush=True)
        if args.out:
            with open(args.out, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(line) + "\n")
    return None


if __name__ == "__main__":
    main()
