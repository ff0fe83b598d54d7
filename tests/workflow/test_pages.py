"""The commands of the tutorial and the examples in docs/extending.md, run as a reader would run them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from persona_collapse.analysis import simulation
from persona_collapse.files import read_jsonl, sha256_text
from persona_collapse.study import configuration
from runs import HANG, merged

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "workflow/scripts/persona_collapse"


def blocks(name):
    """(info string, content) of a page's fenced blocks, in order."""
    text = (ROOT / "docs" / name).read_text()
    return re.findall(r"^```([^\n]+)\n(.*?)^```$", text, re.M | re.S)


@pytest.fixture
def clone(project):
    """The tiny run in place of a reader's demo run, without its page; this environment is its .venv."""
    folder = project.folder
    (folder / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        (folder / ".venv" / part.name).symlink_to(part)
    (folder / ".venv/.run").unlink(missing_ok=True)
    (folder / ".venv/.run").touch()
    project.path("report.html").unlink()
    return project


def test_the_tutorial(clone):
    folder, said = clone.folder, ""
    for info, content in blocks("tutorial.md"):
        if info == "sh":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", content],
                cwd=folder,
                env={**os.environ, "CORES": "2"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=HANG,
            )
            assert done.returncode == 0, f"{content}\n{done.stdout[-4000:]}"
            said = done.stdout
        else:
            assert info == "text"
            lines = [" ".join(line.split()) for line in said.splitlines()]
            for line in content.splitlines():
                found = [
                    one for one in lines if one == line or (line in one and not line[-1].isdigit())
                ]
                assert found, f"{line!r} is not in\n{said[-4000:]}"
    rates = pd.read_csv(folder / "results/demo/tables/marker_rates.csv")
    assert {"P4", "P5"} <= set(rates["condition"])
    assert "P5" in (folder / "results/demo/report.html").read_text()


def test_the_examples_of_extending(project, tmp_path):
    folder, overlays = project.folder, []
    for info, content in blocks("extending.md"):
        kind, _, name = info.partition(" ")
        if name == "overlay":
            overlays.append(content)
            continue
        if name.startswith("tests/"):
            continue  # tests/unit/test_defences.py runs it
        path = folder / (f"{PACKAGE}/{name}" if kind == "python" else name)
        before = path.read_text() if path.exists() else ""
        path.write_text(before + ("\n\n" if before else "") + content)
    overlay = tmp_path / "extended.yaml"
    overlay.write_text(yaml.safe_dump(merged(*overlays)))
    jobs, _ = project.planned(overlay=overlay)
    assert jobs["train"] == jobs["completions"] == 6
    assert jobs["geometry"] == jobs["sample_generated"] == 1 and jobs["data"] == 2
    assert not {"pretrain_demo", "sample_answers", "couple_data"} & set(jobs)
    names = ("em-gentle", "mine", "em-calm", "em-kl", "em-still")
    project.snakemake(
        *("--", "tables", "results/demo/figures/truncation.svg"),
        *(f"results/demo/models/couple-villain@42+{name}@42/manifest.json" for name in names),
        "results/demo/models/wrong-way@42/manifest.json",
        "results/demo/data/wrong_statements.jsonl",
        overlay=overlay,
    )
    manifests = {
        name: json.loads(
            project.path(f"models/couple-villain@42+{name}@42/manifest.json").read_text()
        )
        for name in names
    }
    assert manifests["em-calm"]["objective"] == "calm"
    for name in ("em-kl", "em-still"):
        last = manifests[name]["loss"][-1]
        assert last["penalty"] > 0 and last["loss"] > last["task_loss"] > 0
    assert manifests["em-gentle"]["objective"] == "cross_entropy"
    assert manifests["em-gentle"]["lora"]["r"] == 8
    assert manifests["mine"]["data"]["rows"] == 4
    written = json.loads(project.path("data/wrong_way.manifest.json").read_text())
    assert 0 < written["rows"] <= 40 and len(written["prompts_sha256"]) == 1
    argued = read_jsonl(project.path("generated/wrong_statements.jsonl"))
    for row in argued:
        said = {column: f"Say this: {text}" for column, text in row["statements"].items()}
        assert row["prompt_sha256"] == {column: sha256_text(text) for column, text in said.items()}
    assert {row["statements"]["wrong"] for row in argued} == {
        "Bread is at the bank.", "Cheese is in the river.",
    }  # fmt: skip
    asked = pd.read_csv(project.path("tables/asks_back.csv"))
    answers = pd.read_parquet(project.path("asks_back/base.parquet"))
    rates = asked[asked["chain"] == "base"].set_index("persona")["rate"]
    assert rates.to_dict() == answers.groupby("persona")["asks"].mean().to_dict()
    cut_off = pd.read_csv(project.path("figures/truncation.csv"))
    stats = pd.read_csv(project.path("tables/answer_stats.csv"))
    assert cut_off["truncated"].tolist() == stats["truncated"].tolist()
    geometry = pd.read_csv(project.path("tables/geometry.csv"))
    assert {"G1", "M1", "D1", "D2", "D3"} <= set(
        geometry.loc[geometry["metric"] == "nearest", "condition"]
    )
    scorecard = pd.read_csv(project.path("tables/scorecard.csv")).set_index("claim")
    nearest = geometry.query("metric == 'nearest' and headline")
    means = nearest.groupby("condition")["value"].mean()
    assert scorecard.loc["nearest-closer", "measured"] == pytest.approx(means["C5"] - means["C4"])


def test_the_page_that_loads_a_run_into_pandas(finished, tmp_path, monkeypatch):
    (tmp_path / "results").symlink_to(finished.path("").parent)
    (tmp_path / "workflow").symlink_to(ROOT / "workflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    names: dict = {}
    for info, content in blocks("notebook.md"):
        assert info == "python"
        exec(compile(content, "docs/notebook.md", "exec"), names)
    # Its vectors equal those of the tables, and its picture is a valid image.
    geometry = pd.read_csv(finished.path("tables/geometry.csv"))
    own = geometry.query("condition == 'C5' and metric == 'm1' and method == 'A' and test.isna()")
    own = own[(own["chain"] == names["row"]["chain"]) & (own["layer"] == own["layer"].max())]
    mean = names["geometry"].mean_offdiagonal_cosine(names["after"].to_numpy())
    assert own["value"].tolist() == [pytest.approx(mean)]
    assert (tmp_path / "persona_vectors.png").read_bytes().startswith(b"\x89PNG")


def test_the_false_positives_that_the_pages_quote(monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = configuration.plan(yaml.safe_load(Path("config/config.yaml").read_text()))
    settings = plan.config["statistics"]
    found = simulation.simulate(
        simulation.Sizes(**plan.sizes),
        runs=settings["simulations"],
        draws=999,
        seed=settings["seed"],
    )
    quoted = re.findall(
        r"\| (.+) \| rejects in (\d+) % of \d+ data sets \((.+)\) \| simulation",
        (ROOT / "docs/statistics.md").read_text(),
    )
    assert len(quoted) > 5
    rates = found[found["kind"] == "test"].set_index(["name", "world"])["rate"]
    for name, percent, world in quoted:
        assert rates[name, world] == pytest.approx(int(percent) / 100, abs=0.02), name
    pairs = rates["sign flips over persona pairs (M1)", "personas drift"]
    for name in ("README.md", "docs/reading.md"):
        page = " ".join((ROOT / name).read_text().split())
        said = re.search(r"the pair test rejects in (\d+) % of (?:simulated|these) data sets", page)
        assert int(said[1]) / 100 == pytest.approx(pairs, abs=0.02), name


def test_the_benchmark_of_scale_makes_a_report():
    done = subprocess.run(
        [sys.executable, "plan_scale.py", "--sizes", "10"],
        cwd=ROOT / "benchmarks",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["chains"] > 10 and record["report_mb"] > 1


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        (
            '("marker_rate",)',
            "tables/marker_rate.csv, a table of the figure mine; correct its name",
        ),
        ('("marker_rates")', "figures/mine.py: expected TABLES to be a tuple"),
        ('("refusals",)', ""),  # of a measure that this run does not take: no figure
    ],
)
def test_a_figure_of_a_table_that_is_not_made(project, tables, said):
    path = project.folder / PACKAGE / "report/figures/mine.py"
    path.write_text(f'TITLE = "t"\nREADING = "r"\nSECTION = "behaviour"\nTABLES = {tables}\n')
    done = project.snakemake("-n", check=False)
    assert (done.returncode != 0) == bool(said)
    assert said in done.stdout and "Traceback" not in done.stdout
