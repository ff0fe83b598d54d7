import os
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from persona_collapse.files import write_json, write_jsonl
from persona_collapse.runtime import seals
from persona_collapse.runtime.job import job
from persona_collapse.tables_io import write_csv

RUN = Path("results/demo")
NAMES = ["tables/rates.csv", "models/em@1/manifest.json", "data/em.jsonl"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a job with inputs and outputs of the run; returns its terminal output."""
    monkeypatch.chdir(tmp_path)

    def run(capsys, read=(), write=()):
        given = SimpleNamespace(log=["log"], resources=SimpleNamespace(), config={"run": "demo"})
        given.input, given.output = list(read), list(write)
        with monkeypatch.context() as kept:
            for stream in ("stdout", "stderr"):
                kept.setattr(f"sys.{stream}", getattr(__import__("sys"), stream))
            try:
                with job(given, "x"):
                    for path in map(Path, write):
                        rows = [{"persona": "villain", "rate": 0.5}]
                        if path.suffix == ".csv":
                            write_csv(path, pd.DataFrame(rows))
                        elif path.suffix == ".jsonl":
                            write_jsonl(path, rows)
                        else:
                            write_json(path, rows[0])
            except SystemExit as ended:
                assert ended.code == 1
        return capsys.readouterr().err

    return run


def test_what_a_job_wrote_the_next_one_reads(run, capsys):
    paths = [str(RUN / name) for name in NAMES]
    assert run(capsys, write=paths) == "" == run(capsys, read=paths)
    for path in paths:
        os.utime(path)
    assert run(capsys, read=paths) == ""
    # No extra files next to them, because people read these folders with glob patterns.
    for path in map(Path, paths):
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", NAMES)
def test_an_edited_file_is_one_line_until_it_is_made_again(run, capsys, name):
    path = RUN / name
    run(capsys, write=[path])
    made = path.read_text()
    path.write_text(made.replace("villain", "nobody").replace("0.5", "0.9"))
    said = run(capsys, read=[path])
    assert (
        said == f"  [x] error: {path}: edited or damaged since it was made; delete it and rerun\n"
    )
    path.unlink()
    assert run(capsys, write=[path]) == "" == run(capsys, read=[path])
    assert path.read_text() == made


def test_only_the_run_s_own_tables_and_records_are_sealed(run, capsys):
    outside = Path("config/questions.jsonl")
    run(capsys, write=[outside])
    outside.write_text("{}\n")
    assert run(capsys, read=[outside, RUN / "tables/absent.csv"]) == ""
    figure = RUN / "figures/rates.svg"
    figure.parent.mkdir(parents=True)
    figure.write_text("<svg/>")
    seals.seal(RUN, [figure])
    assert not (RUN / "seals").exists()
    # Runs of earlier versions have no seals.
    old = RUN / "tables/old.csv"
    old.parent.mkdir()
    old.write_text("a\n1\n")
    assert run(capsys, read=[old]) == ""
