"""How often is each claim's verdict wrong? Scores complete synthetic runs like real runs.

    python tools/verdicts.py [--world FILE ...] [--configfile OVERLAY ...] [--runs N] [--jobs N]

For every world, completions and activations are simulated in the run's file formats. The workflow's own
scripts, with the inputs and params that Snakemake gives them, compute markers, tables and scorecard.
The CSV has one row per world, design and claim, with the share of each outcome.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent
sys.path[:0] = [str(ROOT / "workflow" / "scripts"), str(TOOLS)]

import dry_run
import nulls
import pandas as pd
import world as worlds
from persona_collapse import yaml_files
from persona_collapse.analysis.claims import VERDICTS
from persona_collapse.errors import UserError
from persona_collapse.statistics import clopper_pearson
from persona_collapse.study import configuration, locations
from persona_collapse.tables_io import read_csv
from snakemake.utils import update_config

COLUMNS = [
    "world", "design", "claim", "truth", "runs", *(v.replace(" ", "_") for v in VERDICTS), "wrong",
    "wrong_high", "would_take",
]  # fmt: skip
RUN = "synthetic"
SCORED = ["claim", "verdict", "would_take", "note"]
#: Only what the verdicts depend on: the headline's method, its block and one more.
LAYERS = [10, 20]
#: Smaller values where they cost time and do not matter.
REDUCED: dict[str, Any] = {
    "run": RUN,
    "statistics": {"draws": 1000, "separability": {"folds": 4, "shuffles": 5}},
}
#: Files that a world writes; the jobs that make them in a run are left out.
WRITTEN = (
    "completions/",
    "activations/",
    "tables/headline.csv",
    "tables/training.csv",
    "tables/updates.csv",
    *(f"tables/{name}.csv" for name in worlds.MEASURED),
)


@dataclass(frozen=True)
class Design:
    """A config, and the jobs from completions and activations to the scorecard, in order."""

    name: str
    config: dict[str, Any]
    jobs: list[dry_run.Job]


#: Jobs by config: most worlds share them.
_JOBS: dict[str, list[dry_run.Job]] = {}


def merged(configfiles: Sequence[str], changes: dict[str, Any]) -> dict[str, Any]:
    """The config from these files, with changes on top, for any working directory."""
    config: dict[str, Any] = {}
    for path in dict.fromkeys(["config/config.yaml", *configfiles]):
        update_config(config, yaml_files.load_mapping(path))
    update_config(config, changes)
    locations.anchor_all(config)
    return config


def design(name: str, configfiles: Sequence[str], changes: dict[str, Any]) -> Design:
    """A config's jobs, except those whose outputs a world writes."""
    target = f"results/{RUN}/tables/scorecard.csv"
    key = json.dumps([configfiles, changes], sort_keys=True)
    if key not in _JOBS:
        _JOBS[key] = dry_run.jobs(target, configfiles, changes)
    found = _JOBS[key]
    makers = {path: job for job in found for path in job.output}
    needed, todo = set(), [target]
    while todo:
        path = todo.pop()
        written = path.removeprefix(f"results/{RUN}/").startswith(WRITTEN)
        if path in makers and makers[path].output[0] not in needed and not written:
            needed.add(makers[path].output[0])
            todo += makers[path].input
    jobs = [job for job in found if job.output and job.output[0] in needed]
    return Design(name, merged(configfiles, changes), jobs)


Counted = list[tuple[tuple[str, ...], int, int]]


def run_once(
    made: Design, world: worlds.World, number: int
) -> tuple[list[dict[str, Any]], Counted]:
    """Simulate one run and score it: the scorecard's rows, and `nulls.counts` for a null world."""
    import numpy as np

    here, streams = Path.cwd(), (sys.stdout, sys.stderr)
    seed = [zlib.crc32(world.text.encode()), zlib.crc32(made.name.encode()), number]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("config", "workflow"):
            os.symlink(ROOT / name, Path(folder, name))
        os.chdir(folder)
        try:
            plan = configuration.plan(made.config)
            run = Path("results", RUN)
            drawn = worlds.Drawn(world, plan, np.random.default_rng(seed))
            worlds.write(drawn, run, LAYERS)
            for job in made.jobs:
                _execute(job, made.config, streams)
            tables = {p.stem: read_csv(p) for p in (run / "tables").glob("*.csv")}
            counted = [] if world.null is None else list(nulls.counts(tables, world.null))
            card = tables["scorecard"]
            card = card[card.columns.intersection(SCORED)].astype(object).fillna("")
            return card.to_dict("records"), counted
        finally:
            sys.stdout, sys.stderr = streams
            os.chdir(here)


def _execute(job: dry_run.Job, config: dict[str, Any], streams: tuple[Any, Any]) -> None:
    """Run a job's script in this process."""
    for path in job.output:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    stub = SimpleNamespace(
        input=job.input, output=job.output, params=job.params, wildcards=job.wildcards, threads=1,
        resources=dry_run.Named([], {}), config=config, log=["log.txt"], rule=job.rule,
    )  # fmt: skip
    with open(os.devnull, "w") as nothing:
        sys.stderr = nothing
        try:
            runpy.run_path(job.script, init_globals={"snakemake": stub})
        except SystemExit:
            raise RuntimeError(f"{job.rule}: {Path('log.txt').read_text()[-2000:]}") from None
        finally:
            if sys.stdout is not streams[0]:
                sys.stdout.close()
            sys.stdout, sys.stderr = streams


def start(pool: Executor, made: Design, world: worlds.World, runs: int) -> list[Future[Any]]:
    """Start `runs` synthetic runs of a world and a design."""
    return [pool.submit(run_once, made, world, number) for number in range(runs)]


def calibrate(
    made: Design, name: str, world: worlds.World, started: Sequence[Future[Any]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Share of each outcome per claim over synthetic runs (`COLUMNS`), and the nulls of a null world."""
    counted: list[Counted] = []
    counts: dict[str, Counter[str]] = {}
    takes: dict[str, Counter[str]] = {}
    runs = len(started)
    for future in started:
        card, tested = future.result()
        counted.append(tested)
        for row in card:
            counts.setdefault(row["claim"], Counter())[row["verdict"]] += 1
            if row["verdict"] in ("inconclusive", "not tested"):
                said = row.get("would_take") or row["note"]
                takes.setdefault(row["claim"], Counter())[said] += 1
    rows = []
    for claim, found in counts.items():
        truth = "holds" if claim in world.holds else "fails" if claim in world.fails else ""
        row = {"world": name, "design": made.name, "claim": claim, "truth": truth, "runs": runs}
        row |= {v.replace(" ", "_"): found[v] / runs for v in VERDICTS}
        if truth:
            wrong = found["replicated" if truth == "fails" else "contradicted"]
            row |= {"wrong": wrong / runs, "wrong_high": float(clopper_pearson(wrong, runs)[1])}
        common = takes.get(claim, Counter()).most_common(1)
        rows.append(row | {"would_take": common[0][0] if common else ""})
    unknown = {*world.holds, *world.fails} - set(counts)
    if unknown:
        raise UserError(f"world {name}: holds or fails: no claim {min(unknown)!r}")
    return pd.DataFrame(rows, columns=COLUMNS), nulls.summary(name, made.name, counted)


#: Share of synthetic runs in which an adequate plan finds a true claim replicated.
ENOUGH = 0.8


def _pool(processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))


def undecided(configfiles: Sequence[str], runs: int, processes: int) -> pd.DataFrame:
    """Claims that a plan would not find replicated although they hold; columns as in `calibrate`.

    Synthetic runs of the plan in the world of the study's own effect (worlds/study.yaml). A claim is
    listed if a share below `ENOUGH` of them finds it replicated, with the scorecard's most frequent
    statement of what it would take.
    """
    world = worlds.load(TOOLS / "worlds/study.yaml")
    made = design("plan", configfiles, REDUCED)
    with _pool(processes) as pool:
        found, _ = calibrate(made, "study", world, start(pool, made, world, runs))
    return found[(found["truth"] == "holds") & (found["replicated"] < ENOUGH)]


def main() -> None:
    """Parse the arguments, run the worlds, write the CSV."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    shipped = sorted(map(str, TOOLS.glob("worlds/*.yaml")))
    parser.add_argument("--world", nargs="+", default=shipped, help="default: all of tools/worlds")
    parser.add_argument("--configfile", nargs="+", help="a design; default: those of tools/designs")
    parser.add_argument("--runs", type=int, default=200, help="synthetic runs of each")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at a time")
    parser.add_argument("--out", default="docs/verdicts.csv", help="other worlds' rows in it stay")
    parser.add_argument(
        "--nulls", default="docs/nulls.csv", help="the null worlds' p and intervals"
    )
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    designs = {path.stem: [str(path)] for path in sorted(TOOLS.glob("designs/*.yaml"))}
    if given.configfile:
        designs = {Path(given.configfile[-1]).stem: given.configfile}
    try:
        found_worlds = {Path(path).stem: worlds.load(path) for path in given.world}
        with _pool(given.jobs) as pool:
            groups = []
            for name, world in found_worlds.items():
                for label, configfiles in designs.items():
                    changes = worlds.overlay(world, merged(configfiles, {}))
                    update_config(changes, REDUCED)
                    made = design(label, configfiles, changes)
                    groups.append((made, name, world, start(pool, made, world, given.runs)))
            for group in groups:
                found, tests = calibrate(*group)
                _merge(given.out, found, ["world", "design", "claim"])
                if len(tests):
                    _merge(given.nulls, tests, ["world", "design", "table", "name", "kind"])
                _say(found)
    except UserError as error:
        sys.exit(f"persona-collapse: {error}")


def _merge(path: str, rows: pd.DataFrame, keys: list[str]) -> None:
    """Write rows to a CSV in place of those with the same world and design; other rows are kept."""
    if Path(path).is_file():
        there = pd.read_csv(path, keep_default_na=False)
        same = (there["world"] == rows["world"][0]) & (there["design"] == rows["design"][0])
        rows = pd.concat([there[~same], rows], ignore_index=True)
    rows.sort_values(keys, kind="stable").to_csv(path, index=False, float_format="%.4g")


def _say(found: pd.DataFrame) -> None:
    """One line with the wrong verdicts in a world and design, and the true claims that were not found."""
    first = found.iloc[0]
    wrong = found.loc[found["wrong"] > 0.05, "claim"]
    missed = found.loc[(found["truth"] == "holds") & (found["replicated"] < ENOUGH), "claim"]
    print(
        f"{first['world']}, {first['design']}, {first['runs']} runs: wrong in more than 5 %: "
        f"{', '.join(wrong) or 'none'}; true and not found: {', '.join(missed) or 'none'}",
        flush=True,
    )


if __name__ == "__main__":
    main()
