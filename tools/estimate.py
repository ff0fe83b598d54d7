"""Print what is left of a run and what it will take.

    python tools/estimate.py [--configfile OVERLAY ...]

Counts the jobs of a dry run, so what is done already costs nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow" / "scripts"))

from persona_collapse import yaml_files
from persona_collapse.errors import UserError
from persona_collapse.study import configuration, estimate, model_checks
from snakemake.utils import update_config

#: Hidden sizes of the models the presets name; read from the model's own config once it is there.
HIDDEN = {"Qwen/Qwen2.5-7B-Instruct": 3584}


def jobs_left(configfiles: Sequence[str]) -> dict[str, int]:
    """{rule: jobs} of a dry run; ends with Snakemake's own message if it fails."""
    command = [sys.executable, "-m", "snakemake", "-n", "--configfile", *configfiles]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit((done.stderr or done.stdout).strip().splitlines()[-1])
    counts: dict[str, int] = {}
    inside = False
    for line in (done.stdout + done.stderr).splitlines():
        words = line.split()
        if words == ["job", "count"]:
            inside = True
        elif inside and words[:1] == ["total"]:
            break
        elif inside and len(words) == 2 and words[1].isdigit():
            counts[words[0]] = int(words[1])
    counts.pop("all", None)
    return counts


def main() -> None:
    """Parse the arguments, estimate, print."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--configfile", nargs="+", default=["config/config.yaml"])
    files = parser.parse_args().configfile
    config: dict[str, Any] = {}
    try:
        for path in dict.fromkeys(["config/config.yaml", *files]):
            update_config(config, yaml_files.load_mapping(path))
        plan = configuration.plan(config)
        model_checks.check_plan(plan)
    except UserError as error:
        sys.exit(f"persona-collapse: {error}")
    config, model = plan.config, plan.config["model"]
    hidden = (
        model["demo"]["hidden"]
        if "demo" in model
        else HIDDEN.get(model.get("hub", {}).get("id"), 3584)
    )
    jobs = jobs_left(files)
    if not jobs:
        print("Nothing is left to do.")
        return
    table, totals = estimate.estimate(plan, jobs, Path("results"), hidden)
    print(table.to_string(index=False, float_format=lambda value: f"{value:,.2f}"))
    kind = "GPU-hours" if config["runtime"]["gpus_per_job"] else "hours of one core or two"
    print(
        f"\n{totals['jobs']} jobs; {totals['model hours']:.2f} {kind} with a model loaded, "
        f"{totals['other hours']:.2f} hours otherwise; {totals['gigabytes']:.2f} GB of disk"
    )


if __name__ == "__main__":
    main()
