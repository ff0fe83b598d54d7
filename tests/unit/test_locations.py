import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from persona_collapse.study import configuration, locations

ROOT = Path(__file__).resolve().parents[2]


def config():
    return yaml.safe_load((ROOT / "config/config.yaml").read_text())


def test_in_the_workflow_s_own_folder_nothing_changes(monkeypatch):
    monkeypatch.chdir(ROOT)
    checked = configuration.check(config())
    assert checked["personas"]["file"] == "config/personas.yaml"
    assert checked["model"]["demo"]["world"] == "workflow/resources/demo/world.yaml"


def test_elsewhere_the_workflow_s_files_are_its_own_and_the_user_s_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checked = configuration.check(config())
    assert checked["personas"]["file"] == str(ROOT / "config/personas.yaml")
    for name in ("train", "eval", "extraction"):
        assert Path(checked["questions"][name]["file"]).is_file()
    assert Path(checked["claims"]).is_file() and Path(checked["errata"]).is_file()
    assert Path(checked["model"]["demo"]["world"]).is_file()
    (tmp_path / "config").mkdir()
    (tmp_path / "config/personas.yaml").write_bytes((ROOT / "config/personas.yaml").read_bytes())
    assert configuration.check(config())["personas"]["file"] == "config/personas.yaml"
    # Only files that ship are found there, not another run's results, for example.
    assert locations.resolve("README.md") == "README.md"
    assert locations.resolve("config/mine.yaml") == "config/mine.yaml"


@pytest.mark.parametrize("home", ["HOME", "password file"])
def test_a_tilde_is_the_user_s_home_in_every_path(tmp_path, monkeypatch, home):
    if home == "HOME":
        monkeypatch.setenv("HOME", str(tmp_path))
    else:
        monkeypatch.delenv("HOME")
    expected = os.path.expanduser("~")
    given = {
        "model": {"path": "~/m", "demo": {"world": "~/w.yaml"}},
        "personas": {"file": "~/p.yaml"},
        "questions": {"eval": {"file": "~/q.jsonl"}},
        "data": {
            "a": {"from": {"file": "~/d.jsonl"}},
            "b": {"from": {"hub": {"id": "~/sets/x"}}},
        },
        "claims": "~/c.yaml",
        "errata": "~/e.yaml",
        "measures": {"preference": {"file": "~/p.jsonl"}},
        "marker": "~/x",
    }
    locations.resolve_all(given)
    text = repr(given)
    assert text.count("~") == 1 and given["marker"] == "~/x"
    assert text.count(expected + "/") == 9


def test_an_anchored_config_means_the_same_files_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "mine.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    given = {
        "data": {
            "a": {"from": {"file": "mine.jsonl"}},
            "b": {"from": {"hub": {"id": "owner/name"}}},
        },
        "model": {"gguf": {"paths": ["mine.jsonl", "none.gguf"]}},
    }
    locations.anchor_all(given)
    assert given["data"]["a"]["from"]["file"] == str(tmp_path / "mine.jsonl")
    assert given["data"]["b"]["from"]["hub"]["id"] == "owner/name"
    assert given["model"]["gguf"]["paths"] == [str(tmp_path / "mine.jsonl"), "none.gguf"]


def test_snakemake_runs_from_any_folder(tmp_path):
    """A dry run without data sets finds the default config, its files and the user's overlay."""
    there = tmp_path / "elsewhere"
    there.mkdir()
    (there / "mine.yaml").write_bytes((ROOT / "config/personas.yaml").read_bytes())
    (tmp_path / "my.yaml").write_text(
        "personas: {file: mine.yaml}\ndata: {em: null, benign: null}\n"
        "stages: {em: null, benign: null}\nconditions: {C1: null, C5: null}\n"
        "statistics: {contrasts: [], matched: []}\n"
    )
    command = [sys.executable, "-m", "snakemake", "-n", "-s", str(ROOT / "Snakefile")]
    overlays = [str(ROOT / "tests/workflow/tiny.yaml"), "my.yaml"]
    done = subprocess.run(
        [*command, "--directory", "elsewhere", "--configfile", *overlays],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert "results/tiny/report.html" in said and "couple-villain@42" in said
    assert "Exception" not in said and "Error" not in said
