"""--use-conda without conda: a stand-in for its command line, and a channel made here (tests/conda).

Real: the environment files, the solver, the packages' linking, the versions from PyPI, the rule that
runs in the environment. Not tried: conda itself, and conda-forge, of which only python and pip are used.
"""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import Project, copy_project

pytestmark = pytest.mark.slow

CONDA = Path(__file__).resolve().parents[1] / "conda"
#: Notes which interpreter runs; what the environment's python imports is its own or, last, Snakemake's.
WITNESS = 'import os, sys; open(os.environ["WITNESS"], "a").write(f"{sys.prefix}\\n")\n'


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A copy of the project in which nothing has run: the rule that is tried needs no other."""
    folder = copy_project(tmp_path_factory.mktemp("project"))
    return Project(folder, folder / "tests/workflow/tiny.yaml")


@pytest.fixture
def conda(tmp_path, monkeypatch):
    """The stand-in on the path, run by this interpreter, and a channel that it takes for conda-forge."""
    subprocess.run([sys.executable, CONDA / "channel.py", tmp_path / "conda-forge"], check=True)
    path = [str(CONDA / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", ":".join(path))
    monkeypatch.setenv("CONDA_CHANNEL_ALIAS", tmp_path.as_uri())
    monkeypatch.setenv("RATTLER_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def test_use_conda_is_the_same_dag_and_a_rule_runs_in_its_environment(fresh, conda):
    without, _ = fresh.planned("--forceall")
    assert fresh.planned("--forceall", "--use-conda")[0] == without

    table = fresh.path("tables/errata.csv")
    (conda / "sitecustomize.py").write_text(WITNESS)
    fresh.snakemake(
        *("--use-conda", "--", str(table.relative_to(fresh.folder))),
        env={"PYTHONPATH": str(conda), "WITNESS": str(conda / "seen")},
    )
    [made] = (fresh.folder / ".snakemake/conda").glob("*_/")
    assert str(made) in (conda / "seen").read_text().splitlines()
    assert (made / "conda-meta").is_dir() and list(made.glob("lib/python*/site-packages/scipy"))
    assert len(pd.read_csv(table)) > 3


def test_an_unknown_version_stops_the_run_before_any_job(fresh, conda):
    file = fresh.folder / "envs/analysis.yaml"
    before = file.read_text()
    file.write_text(before.replace("python =3.11", "python =9.99"))
    try:
        done = fresh.snakemake(
            *("--use-conda", "--forcerun", "errata", "--", "results/tiny/tables/errata.csv"),
            check=False,
        )
    finally:
        file.write_text(before)
    assert done.returncode and "No candidates were found for python" in done.stdout
