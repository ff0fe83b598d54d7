"""Print the remaining jobs of a run, what they will take, and which claims the run cannot decide.

    python tools/estimate.py [--configfile OVERLAY ...] [--claims RUNS]
    python tools/estimate.py [--configfile OVERLAY ...] --against RUN

It counts the jobs of a dry run, so finished work costs nothing. --claims: the plan is run RUNS times
(default: 5; 0: not at all) on synthetic data in which the study is right. --against: measured times of
the jobs of a run of this config, next to the estimates.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent
sys.path[:0] = [str(TOOLS.parent / "workflow" / "scripts"), str(TOOLS)]

import verdicts
from persona_collapse import yaml_files
from persona_collapse.errors import UserError
from persona_collapse.report import provenance
from persona_collapse.study import configuration, estimate, model_checks, places
from snakemake.utils import update_config


def jobs_left(configfiles: Sequence[str]) -> dict[str, int]:
    """{rule: jobs} of a dry run; ends with Snakemake's own message if it fails."""
    command = [sys.executable, "-m", "snakemake", "-n", "--configfile", *configfiles]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        first = next(
            (n for n, line in enumerate(said) if "Error" in line or "Exception" in line), -1
        )
        sys.exit("\n".join(said[first:]))
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
    """Parse the arguments, estimate, and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--configfile", nargs="+", default=["config/config.yaml"])
    parser.add_argument("--claims", type=int, default=5, metavar="RUNS")
    parser.add_argument("--against", metavar="RUN", help="a run in results/, compared with this")
    given = parser.parse_args()
    files = given.configfile
    read = list(dict.fromkeys(["config/config.yaml", *files]))
    config: dict[str, Any] = {}
    try:
        for path in read:
            update_config(config, yaml_files.load_mapping(path))
        plan = configuration.plan(config)
        model_checks.check_plan(plan)
        if given.against:
            table = estimate.against(plan, Path("results"), given.against)
            print(table.to_string(index=False, float_format=lambda value: f"{value:,.2f}"))
            return
    except UserError as error:
        sys.exit(f"persona-collapse: {places.placed(error, read)}")
    config = plan.config
    jobs = jobs_left(files)
    if not jobs:
        print("Nothing is left to do.")
        return
    table, totals = estimate.estimate(plan, jobs, Path("results"))
    bases = {name: {"source": plan.models[name]} for name in plan.models_used}
    words = [("model", provenance.models_label(bases)), *estimate.in_words(plan, jobs)]
    print("\n".join(f"{verb:9} {rest}" for verb, rest in words), end="\n\n")
    known = table["basis"] != "assumed"
    if not config["runtime"]["gpus_per_job"]:
        # The stated times are for a GPU.
        table.loc[known & table["memory"].str.endswith("GPU"), "memory"] = "not measured"
    print(table[known].to_string(index=False, float_format=lambda value: f"{value:,.2f}"))
    if not known.all():
        print(
            f"and {table.loc[~known, 'jobs'].sum()} jobs of {(~known).sum()} other rules, "
            f"at {estimate.ASSUMED:g} seconds each until one has run"
        )
    kind = "GPU-hours" if config["runtime"]["gpus_per_job"] else "hours of one core or two"
    print(
        f"\n{totals['jobs']} jobs: {totals['model hours']:.2f} {kind} with a model loaded, "
        f"{totals['other hours']:.2f} hours otherwise, {totals['gigabytes']:.2f} GB of disk"
    )
    if not config["runtime"]["gpus_per_job"] and table["basis"].str.startswith("stated").any():
        print(
            "Nothing like it has run here: times stated are a GPU's, and those assumed are guesses."
        )
    if given.claims and config["judge"] != "nothing":
        print_undecided(files, given.claims)


def print_undecided(configfiles: Sequence[str], runs: int) -> None:
    """Print the claims that the plan would leave open even if they hold, and what would decide them."""
    print(
        f"\nSimulating {runs} runs of this plan, to see which claims it would leave open. That takes "
        "minutes; tools/estimate.py --claims 0 does without.",
        flush=True,
    )
    found = verdicts.undecided(configfiles, runs, os.cpu_count() or 1)
    print(
        f"\nIn {runs} synthetic runs of this plan in which the study is right (in brackets: what would "
        "decide a claim, or why it stays open):"
    )
    if found.empty:
        print("  every claim that it can measure is decided")
    for row in found.itertuples(index=False):
        print(f"  {row.claim}: replicated in {row.replicated:.0%} ({row.would_take})")


if __name__ == "__main__":
    main()
