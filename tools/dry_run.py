"""The jobs of a dry run, as their scripts see them.

Snakemake runs in a separate process, because it changes settings of its process.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow" / "scripts"))

import yaml
from persona_collapse.errors import UserError


class Named(list[Any]):
    """A job's inputs, outputs or params, by position and by name."""

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

    def get(self, name: str, default: Any = None) -> Any:
        """A named value, or the default."""
        return self.names.get(name, default)

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


def jobs(target: str, configfiles: Sequence[str], changes: dict[str, Any]) -> list[Job]:
    """The jobs that lead to a file, in topological order.

    `changes`: on top of the config files. A mistake in them raises UserError with Snakemake's own
    message.
    """
    with tempfile.TemporaryDirectory() as folder:
        overlay, found = Path(folder, "overlay.yaml"), Path(folder, "jobs.pickle")
        overlay.write_text(yaml.safe_dump(changes), encoding="utf-8")
        code = "import dry_run, sys; dry_run.write(*sys.argv[1:3], sys.argv[3:])"
        command = [sys.executable, "-c", code, str(found), target, *configfiles, str(overlay)]
        paths = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if not found.is_file():
            said = (done.stderr or done.stdout).strip().splitlines()[-1]
            raise UserError(said.removeprefix("persona-collapse: "))
        jobs: list[Job] = pickle.loads(found.read_bytes())
    return jobs


def write(path: str, target: str, configfiles: Sequence[str]) -> None:
    """Write the jobs that lead to `target`; runs in its own process."""
    from snakemake.api import SnakemakeApi
    from snakemake.settings import types as settings

    with SnakemakeApi(settings.OutputSettings(dryrun=True, quiet={settings.Quietness.ALL})) as api:
        workflow = api.workflow(
            resource_settings=settings.ResourceSettings(cores=1),
            config_settings=settings.ConfigSettings(configfiles=[Path(p) for p in configfiles]),
            snakefile=Path("Snakefile"),
        )
        dag = workflow.dag(dag_settings=settings.DAGSettings(targets={target}, forceall=True))
        dag.execute_workflow("dryrun", execution_settings=settings.ExecutionSettings(lock=False))
        levels = workflow._workflow.dag.toposorted()
        found = [_job(job) for level in levels for job in level]
    Path(path).write_bytes(pickle.dumps(found))


def _job(job: Any) -> Job:
    folder = Path(job.rule.basedir.get_path_or_uri(secret_free=True))
    script = str(folder / job.rule.script) if job.rule.script else ""
    parts = [_named(values) for values in (job.input, job.output, job.params, job.wildcards)]
    return Job(job.rule.name, script, *parts)


def _named(values: Any) -> Named:
    def plain(value: Any) -> Any:
        if isinstance(value, list | tuple) and not isinstance(value, str):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, str) else value

    names = {name: plain(value) for name, value in values.items()}
    return Named([plain(value) for value in values], names)
