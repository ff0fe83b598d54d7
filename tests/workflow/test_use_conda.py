"""--use-conda without conda: a stand-in for its command line, and a local channel (tests/conda).

Real: the environment files, the solver, the linking of packages, the versions from PyPI, and the rule
that runs in the environment. Not tested: conda itself, and conda-forge, from which only python and pip
are used.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from environments import ROOT
from runs import tiny_project

pytestmark = pytest.mark.slow

CONDA = Path(__file__).resolve().parents[1] / "conda"
#: Records which interpreter runs; the environment's python imports its own packages or, last,
#: Snakemake's.
WITNESS = 'import os, sys; open(os.environ["WITNESS"], "a").write(f"{sys.prefix}\\n")\n'


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A copy of the project in which nothing has run: the tested rule needs no other."""
    return tiny_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def conda(tmp_path_factory):
    """The stand-in on PATH, run by this interpreter, and a channel that it uses as conda-forge."""
    folder = tmp_path_factory.mktemp("conda")
    subprocess.run([sys.executable, CONDA / "channel.py", folder / "conda-forge"], check=True)
    path = [str(CONDA / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PATH", ":".join(path))
        monkeypatch.setenv("CONDA_CHANNEL_ALIAS", folder.as_uri())
        monkeypatch.setenv("RATTLER_CACHE_DIR", str(folder / "cache"))
        yield folder


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


def test_containerize_prints_a_recipe_with_each_environment(fresh, conda):
    recipe = fresh.snakemake("--containerize").stdout
    made = re.findall(r"conda env create --prefix (\S+) --file", recipe)
    copied = dict(re.findall(r"^COPY (\S+) (\S+)/environment.yaml$", recipe, re.M))
    assert sorted(copied) == [f"envs/{p.name}" for p in sorted((ROOT / "envs").iterdir())]
    assert sorted(copied.values()) == sorted(made)


def test_an_unknown_version_stops_the_run_before_any_job(fresh, conda):
    file = fresh.folder / "envs/analysis.yaml"
    before = file.read_text()
    file.write_text(before.replace("python =3.11", "python =9.99"))
    try:
        done = fresh.snakemake(
            *("--use-conda", "--forcerun", "errata", "--", "results/demo/tables/errata.csv"),
            check=False,
        )
    finally:
        file.write_text(before)
    assert done.returncode and "No candidates were found for python" in done.stdout
