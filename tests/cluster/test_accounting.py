"""SLURM with an accounting database: job status by sacct, and by squeue as in the profile."""

import os
import shutil
import subprocess

import pytest
from test_slurm import HERE, Workflow, missing, rules, started, until

reason = missing("slurmdbd", "mariadbd", "sacct")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.skipif(reason is not None, reason=str(reason)),
]
#: Without the stand-in on PATH a run would wait forever for a cancelled job: see there.
WITH_SACCT = {"PATH": f"{HERE / 'bin'}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with started(tmp_path_factory.mktemp("accounted"), "accounting") as root:
        yield root


def recorded():
    """{id: (state, comment)} of all jobs in the database."""
    asked = ["sacct", "--noheader", "-P", "-X", "-o", "JobID,State,Comment,AllocTRES"]
    lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    return {job: more for job, *more in (line.split("|") for line in lines)}


def test_with_a_database_jobs_are_followed_by_sacct_or_by_squeue(cluster):
    for name in ("by-sacct", "by-squeue"):
        shutil.copytree(HERE / "small", cluster / name)
    profile = Workflow(cluster / "by-squeue")
    other = profile.start("--", "trained/two.txt")
    small = Workflow(cluster / "by-sacct", "--slurm-status-command", "sacct")
    for fate in ("fails", "hangs"):
        (small.folder / f"{fate}.{fate}").touch()
    targets = [f"trained/{name}.txt" for name in ("one", "hangs", "fails")]
    process = small.start("--retries", "1", "--", *targets, env=WITH_SACCT)
    until((small.folder / "hanging").exists)
    cancelled = small.job_of("hangs")
    subprocess.run(["scancel", cancelled], check=True)
    status, said = profile.end(other)
    assert status == 0, said[-6000:]
    status, said = small.end(process)

    assert status == 1
    assert "deliberate failure" in said and "Trying to restart" in said
    made = {path.stem: path.read_text() for path in (small.folder / "trained").iterdir()}
    assert set(made) == {"one", "hangs"}
    assert "tried=2" in made["hangs"] and "tried=1" in made["one"]
    twice = ["train_fails", "train_hangs"] * 2
    assert rules(small.jobs()) == sorted(["prepare", "train_one", *twice])

    # The database has all of them, with rule, state and device.
    seen = recorded()
    assert {job["id"] for job in [*small.jobs(), *profile.jobs()]} == set(seen)
    state, comment, _ = seen[cancelled]
    assert state.startswith("CANCELLED by") and comment == "rule_train_wildcards_hangs"
    ended = sorted(state for state, comment, _ in seen.values() if "fails" in comment)
    assert ended == ["FAILED", "FAILED"]
    trained = [devices for _, comment, devices in seen.values() if "train" in comment]
    assert all("gres/gpu=1" in devices.split(",") for devices in trained)
    assert len(trained) == 6
