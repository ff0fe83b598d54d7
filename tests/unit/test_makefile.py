import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "requirements-torch.lock")


@pytest.fixture
def make_run(tmp_path):
    """`make run` with a fake Snakemake that only records its arguments; returns them and the last line."""

    def run(*arguments):
        for name in ("Makefile", *LOCKS, "config/config.yaml"):
            target = tmp_path / name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
        bin_folder = tmp_path / "venv/bin"
        bin_folder.mkdir(parents=True, exist_ok=True)
        (bin_folder / "python").unlink(missing_ok=True)
        (bin_folder / "python").symlink_to(sys.executable)
        if not (tmp_path / "workflow").exists():
            (tmp_path / "workflow").symlink_to(ROOT / "workflow")
        (bin_folder / "snakemake").write_text('#!/bin/sh\necho "$@" > asked\n')
        (bin_folder / "snakemake").chmod(0o755)
        (tmp_path / "venv/.run").touch()
        done = subprocess.run(
            ["make", "run", "VENV=venv", "CORES=1", *arguments],
            cwd=tmp_path,
            env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},
            capture_output=True,
            text=True,
            check=True,
        )
        return (tmp_path / "asked").read_text().strip(), done.stdout.splitlines()[-1]

    run.folder = tmp_path
    return run


def report(folder, run):
    (folder / f"results/{run}").mkdir(parents=True)
    (folder / f"results/{run}/report.html").touch()


def test_make_run_without_more_is_the_demo(make_run):
    report(make_run.folder, "demo")
    assert make_run() == ("--cores 1", "Report: results/demo/report.html")
    # A call with nothing to do, or one that ends before the report, names no page of another run.
    assert make_run("TARGETS=fetch")[0] == "--cores 1 fetch"


@pytest.mark.parametrize(
    "line", ["run: mine  # so", "run: 'mine'", '{"run": "mine",\n"seeds": [1]}', "{run: mine}"]
)
def test_make_run_takes_the_config_and_names_its_report(make_run, line):
    report(make_run.folder, "demo")
    report(make_run.folder, "mine")
    (make_run.folder / "my.yaml").write_text(line + "\n")
    (make_run.folder / "over.yaml").write_text("seeds: [1]\n")
    assert make_run("CONFIG=my.yaml over.yaml", "TARGETS=fetch") == (
        "--cores 1 fetch --configfile my.yaml over.yaml",
        "Report: results/mine/report.html",
    )


def test_make_run_names_no_report_that_is_not_there(make_run):
    assert not make_run()[1].startswith("Report")


def test_make_run_names_a_config_that_is_not_there(make_run):
    with pytest.raises(subprocess.CalledProcessError) as raised:
        make_run("CONFIG=none.yaml")
    assert raised.value.stderr.startswith("none.yaml: no such file in ")
    assert not (make_run.folder / "asked").exists()


def test_make_run_names_a_config_that_is_not_yaml(make_run):
    (make_run.folder / "bad.yaml").write_text("run: [a\nseeds: [1]\n")
    with pytest.raises(subprocess.CalledProcessError) as raised:
        make_run("CONFIG=config/config.yaml bad.yaml")
    assert raised.value.stderr.startswith("bad.yaml, line 2: cannot be read as YAML")
    assert not (make_run.folder / "asked").exists()
