"""How often is each claim's verdict wrong? Whole synthetic runs, scored as a run is.

    python tools/verdicts.py [--world FILE ...] [--configfile OVERLAY ...] [--runs N] [--jobs N] [--out FILE]

For every world, completions and activations are drawn by the file contract; the workflow's own scripts,
with the inputs and params that Snakemake gives them, compute markers, tables and scorecard. The CSV has
one row per world, design and claim, with the share of each outcome.
"""

from __future__ import annotations

import argparse
import os
import pickle
import runpy
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent
sys.path[:0] = [str(ROOT / "workflow" / "scripts"), str(TOOLS)]

import pandas as pd
import synthetic
import yaml
from persona_collapse import yaml_files
from persona_collapse.analysis.claims import VERDICTS
from persona_collapse.errors import UserError
from persona_collapse.statistics import clopper_pearson
from persona_collapse.study import configuration
from snakemake.utils import update_config

COLUMNS = [
    "world", "design", "claim", "truth", "runs", *(v.replace(" ", "_") for v in VERDICTS), "wrong",
    "wrong_high", "would_take",
]  # fmt: skip
RUN = "synthetic"
#: Of each run only what decides the verdicts: the headline's method, its block and one more.
LAYERS = [10, 20]
#: Smaller where it costs time and decides nothing.
REDUCED: dict[str, Any] = {
    "run": RUN,
    "statistics": {"draws": 2000, "separability": {"folds": 4, "shuffles": 5}},
}
#: What a world writes; the jobs that make it in a run are left out.
WRITTEN = ("completions/", "activations/", "tables/headline.csv", "tables/training.csv")
#: The tables of adapters, which a world has none of.
ABSENT = ("tables/training_curves.csv", "tables/updates.csv")


class Named(list[Any]):
    """A job's inputs, outputs or params: by position and by name."""

    def __init__(self, items: Sequence[Any], names: dict[str, Any]):
        super().__init__(items)
        self.names = names

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["names"][name]
        except KeyError:
            raise AttributeError(name) from None

    def items(self) -> Iterator[tuple[str, Any]]:
        """Names with their values."""
        yield from self.names.items()

    def __getitem__(self, key: Any) -> Any:
        return self.names[key] if isinstance(key, str) else super().__getitem__(key)

    def __reduce__(self) -> Any:
        return Named, (list(self), self.names)


@dataclass(frozen=True)
class Job:
    """One job of a dry run, as its script sees it."""

    rule: str
    script: str
    input: Named
    output: Named
    params: Named
    wildcards: Named


@dataclass(frozen=True)
class Design:
    """A config and the jobs from its completions and activations to its scorecard, in order."""

    name: str
    config: dict[str, Any]
    jobs: list[Job]


def merged(configfiles: Sequence[str], changes: dict[str, Any]) -> dict[str, Any]:
    """The config of these files, with changes on top."""
    config: dict[str, Any] = {}
    for path in dict.fromkeys(["config/config.yaml", *configfiles]):
        update_config(config, yaml_files.load_mapping(path))
    update_config(config, changes)
    return config


def design(name: str, configfiles: Sequence[str], changes: dict[str, Any]) -> Design:
    """Ask Snakemake which jobs lead to the scorecard of a config."""
    with tempfile.TemporaryDirectory() as folder:
        overlay, found = Path(folder, "overlay.yaml"), Path(folder, "jobs.pickle")
        overlay.write_text(yaml.safe_dump(changes), encoding="utf-8")
        command = [sys.executable, __file__, "--dag", str(found), *configfiles, str(overlay)]
        done = subprocess.run(command, capture_output=True, text=True)
        if not found.is_file():
            said = (done.stderr or done.stdout).strip().splitlines()[-1]
            raise UserError(said.removeprefix("persona-collapse: "))
        jobs = pickle.loads(found.read_bytes())
    return Design(name, merged(configfiles, changes), jobs)


def _write_dag(target: str, configfiles: list[str]) -> None:
    """In a process of its own: the jobs of a dry run, pickled to `target`."""
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import (
        ConfigSettings,
        DAGSettings,
        ExecutionSettings,
        OutputSettings,
        Quietness,
        ResourceSettings,
    )  # fmt: skip

    table = f"results/{RUN}/tables/scorecard.csv"
    with SnakemakeApi(OutputSettings(dryrun=True, quiet={Quietness.ALL})) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(configfiles=[Path(path) for path in configfiles]),
            snakefile=Path("Snakefile"),
        )
        dag = workflow.dag(dag_settings=DAGSettings(targets={table}, forceall=True))
        dag.execute_workflow("dryrun", execution_settings=ExecutionSettings(lock=False))
        found = list(_jobs(workflow._workflow.dag, table))
    Path(target).write_bytes(pickle.dumps(found))


def _jobs(dag: Any, target: str) -> Iterator[Job]:
    """The jobs that lead from what a world writes to the target, in order."""
    in_order = [job for level in dag.toposorted() for job in level]
    makers = {str(path): job for job in in_order for path in job.output}
    needed, todo = set(), [target]
    while todo:
        path = todo.pop().removeprefix(f"results/{RUN}/")
        job = makers.get(f"results/{RUN}/{path}")
        if job is None or job in needed or path.startswith((*WRITTEN, *ABSENT)):
            continue
        needed.add(job)
        todo += map(str, job.input)
    for job in in_order:
        if job in needed:
            parts = [_named(n) for n in (job.input, job.output, job.params, job.wildcards)]
            folder = Path(job.rule.basedir.get_path_or_uri(secret_free=True))
            yield Job(job.rule.name, str(folder / job.rule.script), *parts)


def _named(values: Any) -> Named:
    def plain(value: Any) -> Any:
        if isinstance(value, list | tuple) and not isinstance(value, str):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, str) else value

    names = {name: plain(value) for name, value in values.items()}
    return Named([plain(value) for value in values], names)


def run_once(made: Design, world: synthetic.World, number: int) -> pd.DataFrame:
    """Draw one synthetic run and score it: tables/scorecard.csv."""
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
            drawn = synthetic.Drawn(world, plan, np.random.default_rng(seed))
            synthetic.write(drawn, run, LAYERS)
            for job in made.jobs:
                _execute(job, made.config, streams)
            return pd.read_csv(run / "tables/scorecard.csv", keep_default_na=False)
        finally:
            sys.stdout, sys.stderr = streams
            os.chdir(here)


def _execute(job: Job, config: dict[str, Any], streams: tuple[Any, Any]) -> None:
    """Run a job's script in this process."""
    for path in job.output:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    stub = SimpleNamespace(
        input=job.input, output=job.output, params=job.params, wildcards=job.wildcards, threads=1,
        resources=Named([], {}), config=config, log=["log.txt"], rule=job.rule,
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


def calibrate(
    made: Design, name: str, world: synthetic.World, runs: int, processes: int
) -> pd.DataFrame:
    """Share of each outcome per claim over `runs` synthetic runs; `COLUMNS`."""
    counts: dict[str, Counter[str]] = {}
    takes: dict[str, Counter[str]] = {}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        repeated = [made] * runs, [world] * runs, range(runs)
        for card in pool.map(run_once, *repeated):
            for row in card.to_dict("records"):
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
    return pd.DataFrame(rows, columns=COLUMNS)


def main() -> None:
    """Parse the arguments, run the worlds, write the CSV."""
    if sys.argv[1:2] == ["--dag"]:
        _write_dag(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--world", nargs="+", default=sorted(map(str, TOOLS.glob("worlds/*.yaml"))))
    parser.add_argument("--configfile", nargs="+", default=[])
    parser.add_argument("--design", default="", help="name of the design in the CSV")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--out", default="docs/verdicts.csv")
    parser.add_argument("--append", action="store_true", help="keep the rows that are there")
    given = parser.parse_args()
    if shutil.which("snakemake") is None:
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    parts = []
    try:
        for path in given.world:
            world, name = synthetic.load(path), Path(path).stem
            changes = synthetic.overlay(world, merged(given.configfile, {}))
            update_config(changes, REDUCED)
            label = given.design or (
                Path(given.configfile[-1]).stem if given.configfile else "demo"
            )
            made = design(label, given.configfile, changes)
            parts.append(calibrate(made, name, world, given.runs, given.jobs))
            wrong = parts[-1].loc[parts[-1]["wrong"] > 0.05, "claim"]
            print(
                f"{name}: {given.runs} runs; wrong in more than 5 %: {', '.join(wrong) or 'none'}"
            )
    except UserError as error:
        sys.exit(f"persona-collapse: {error}")
    table = pd.concat(parts, ignore_index=True)
    if given.append and Path(given.out).is_file():
        table = pd.concat([pd.read_csv(given.out), table], ignore_index=True)
        table = table.drop_duplicates(["world", "design", "claim"], keep="last")
    table.to_csv(given.out, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
