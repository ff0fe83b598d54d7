"""Print what is left of a run and what it will take.

    python workflow/scripts/estimate.py [--configfile OVERLAY ...]

Counts the jobs of a dry run, so what is done already costs nothing.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from persona_collapse import yaml_files
from persona_collapse.errors import UserError
from persona_collapse.study import configuration, estimate, model_checks

#: Hidden sizes of the models the presets name; read from the model's own config once it is there.
HIDDEN = {"Qwen/Qwen2.5-7B-Instruct": 3584}


def merge(base, overlay):
    """Overlay over base, mapping by mapping, as Snakemake merges config files."""
    for key, value in overlay.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        base[key] = merge(base[key], value) if both else value
    return base


def jobs_left(configfiles):
    """{rule: jobs} of a dry run; ends with Snakemake's own message if it fails."""
    command = [sys.executable, "-m", "snakemake", "-n", "--configfile", *configfiles]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit((done.stderr or done.stdout).strip().splitlines()[-1])
    counts, inside = {}, False
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


def main():
    """Parse the arguments, estimate, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configfile", nargs="+", default=["config/config.yaml"])
    files = parser.parse_args().configfile
    config = {}
    try:
        for path in dict.fromkeys(["config/config.yaml", *files]):
            merge(config, yaml_files.load_mapping(path))
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
