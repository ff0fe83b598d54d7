"""The workflow on real SLURM: a cluster on this machine with two fake GPUs (make cluster)."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from runs import HANG, ROOT

HERE = ROOT / "tests/cluster"
GOING = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}
# The profile, changed only where that saves the tests minutes of waiting.
QUICK = [
    *("--slurm-init-seconds-before-status-checks", "2"),
    *("--seconds-between-status-checks", "2"),
    *("--latency-wait", "10"),
]


def missing(*more):
    """What the tests need that is missing on this machine."""
    for program in ("sbatch", "squeue", "slurmctld", "slurmd", "munged", *more):
        if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
            return f"no {program} here: see tests/cluster/install.sh"
    if os.getuid() != 0:
        return "a cluster of one machine is started as root"
    if Path("/etc/slurm/slurm.conf").exists():
        return "this machine has a cluster already (/etc/slurm/slurm.conf)"
    return None


pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


class Workflow:
    """A folder with a workflow in it, run through the project's SLURM profile."""

    def __init__(self, folder, *arguments):
        self.folder = folder
        self.command = [sys.executable, "-m", "snakemake", "--workflow-profile"]
        self.command += [str(ROOT / "workflow/profiles/slurm"), *QUICK, *arguments]

    def start(self, *arguments, env=None):
        """Start Snakemake in a process group of its own."""
        self.said = self.folder / f"said-{time.monotonic_ns()}.log"
        return subprocess.Popen(
            [*self.command, *arguments],
            cwd=self.folder,
            env=os.environ | (env or {}),
            stdout=open(self.said, "w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A test runner in the background ignores SIGINT, and so would its child processes.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def end(self, process):
        """(exit status, output) of a started run; a run that does not end is killed."""
        try:
            status = process.wait(HANG)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(self.said.read_text()[-6000:]) from None
        return status, self.said.read_text()

    def run(self, *arguments):
        """Run Snakemake to its end."""
        return self.end(self.start(*arguments))

    def jobs(self):
        """This folder's SLURM jobs, including old ones, oldest first."""
        columns = {
            "id": "JobID:.12",
            "state": "State:.15",
            "memory": "MinMemory:.15",
            "time": "TimeLimit:.15",
            "gpus": "tres-per-job:.25",
            "folder": "WorkDir:.200",
            "comment": "Comment:.250",
        }
        done = subprocess.run(
            ["squeue", "--noheader", "--states=all", "-O", ",".join(columns.values())],
            capture_output=True,
            text=True,
            check=True,
        )
        found = [dict(zip(columns, line.split(), strict=False)) for line in done.stdout.split("\n")]
        found = [job for job in found if job.get("folder") == str(self.folder)]
        return sorted(found, key=lambda job: int(job["id"]))

    def job_of(self, name):
        """Id of the SLURM job that last worked on a job of the small workflow."""
        return (self.folder / f"logs/{name}.log").read_text().split()[2]


def rules(jobs):
    """Sorted labels of jobs: their comments without `rule_` and `wildcards_`."""
    return sorted(job["comment"].removeprefix("rule_").replace("_wildcards", "") for job in jobs)


def until(condition):
    """Wait for something, ten minutes at most."""
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.3)


def processes(folder):
    """Processes whose working directory is in a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(entry / "cwd")).is_relative_to(folder):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@contextlib.contextmanager
def started(root, *more):
    """A cluster whose workflows all lie in one folder, so that processes left there are ours."""
    pytest.importorskip(
        "snakemake_executor_plugin_slurm",
        reason="pip install --no-deps -r requirements-slurm.lock",
    )
    # To a file: daemons inherit the output, so a pipe would never close.
    with open(root / "up.log", "w") as log:
        command = [HERE / "slurm_up.sh", root / "slurm", "2", *more]
        up = subprocess.run(command, stdout=log, stderr=log)
    try:
        assert up.returncode == 0, (root / "up.log").read_text()
        yield root
    finally:
        subprocess.run([HERE / "slurm_down.sh", root / "slurm"], check=False)
        for process in processes(root):
            os.kill(process, signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Without an accounting database."""
    with started(tmp_path_factory.mktemp("cluster")) as root:
        yield root


@pytest.fixture(scope="module")
def tiny(cluster, finished):
    """The finished tiny run with an added condition, and one GPU for each job that loads a model."""
    folder = finished.copy(cluster / "project").folder
    (folder / "more.yaml").write_text(
        "runtime: {gpus_per_job: 1}\n"
        "stages: {couple-librarian: {kind: couple, persona: librarian, negatives: [assistant]}}\n"
        "conditions: {L: {title: new, chain: couple-librarian@42}}\n"
    )
    return Workflow(folder, "--configfile", "more.yaml")


@pytest.fixture
def small(cluster, request):
    """The small workflow, in a folder of its own."""
    folder = cluster / request.node.name
    shutil.copytree(HERE / "small", folder)
    return Workflow(folder)


def test_lost_jobs_are_tried_again_and_a_failing_one_stops_only_what_needs_it(small):
    for fate in ("fails", "hangs", "dies"):
        (small.folder / f"{fate}.{fate}").touch()
    # Two jobs that wait for each other run simultaneously, however busy the cluster is.
    for name in ("one", "two"):
        (small.folder / f"meets.{name}").touch()
    process = small.start("--retries", "1")
    until((small.folder / "hanging").exists)
    cancelled = small.job_of("hangs")
    subprocess.run(["scancel", cancelled], check=True)
    status, said = small.end(process)

    assert status == 1
    assert "deliberate failure" in said and "Trying to restart" in said
    made = {path.stem: path.read_text() for path in (small.folder / "trained").iterdir()}
    assert set(made) == {"one", "two", "hangs", "dies"}
    assert "tried=2" in made["hangs"] and "tried=2" in made["dies"] and "tried=1" in made["one"]
    jobs = {job["id"]: job for job in small.jobs()}
    twice = sorted(["train_dies", "train_fails", "train_hangs"] * 2)
    assert rules(jobs.values()) == sorted(["prepare", "train_one", "train_two", *twice])
    assert jobs[cancelled]["state"] == "CANCELLED"
    first, second = (
        (j["memory"], j["time"]) for j in jobs.values() if j["comment"].endswith("hangs")
    )
    assert (first, second) == (("32000M", "2:00:00"), ("62.50G", "4:00:00"))  # that is 64000M
    # One GPU for each job with a model, none for others, and never the same GPU for two at once.
    asked = {job["comment"]: job["gpus"] for job in jobs.values()}
    assert asked.pop("rule_prepare") == "N/A"
    assert set(asked.values()) == {"gres:gpu:1"}
    assert {made[name].split()[2] for name in ("one", "two")} == {"gpu=0", "gpu=1"}
    # SLURM's completion log has them too.
    listed = ["sacct", "-c", "-n", "-P", "-o", "JobID,State"]
    log = dict(
        line.split("|")
        for line in subprocess.run(listed, capture_output=True, text=True, check=True)
        .stdout.strip()
        .split("\n")
    )
    assert log[cancelled] == "CANCELLED"
    assert log[made["one"].split("job=")[1].split()[0]] == "COMPLETED"

    (small.folder / "fails.fails").unlink()
    status, said = small.run()
    assert status == 0, said[-6000:]
    assert rules(job for job in small.jobs() if job["id"] not in jobs) == ["merge", "train_fails"]
    assert len((small.folder / "merged.txt").read_text().splitlines()) == 5


#: An squeue that takes its time, so that Ctrl-C comes while Snakemake waits for it.
SLOW_SQUEUE = """#!/bin/sh
touch asking
sleep 5
exec {squeue} "$@"
"""


@pytest.mark.parametrize("asking", [False, True])
def test_after_ctrl_c_a_second_run_does_what_is_missing(small, asking):
    (small.folder / "hangs.hangs").touch()
    env = {}
    if asking:
        program = small.folder / "bin/squeue"
        program.parent.mkdir()
        program.write_text(SLOW_SQUEUE.format(squeue=shutil.which("squeue")))
        program.chmod(0o755)
        env["PATH"] = f"{program.parent}:{os.environ['PATH']}"
    process = small.start(env=env)
    until((small.folder / "hanging").exists)
    # The file alone is not enough: Snakemake must also have noticed that its job is done, and it polls
    # less and less often. The other jobs take turns on the device that the hanging job leaves free.
    until(lambda: "(Rule: train)" in small.said.read_text())
    if asking:
        (small.folder / "asking").unlink()
        until((small.folder / "asking").exists)
    process.send_signal(signal.SIGINT)
    status, said = small.end(process)
    assert status == 1
    if asking:  # nothing was cancelled: the jobs asked about are not on Snakemake's list meanwhile
        assert [job for job in small.jobs() if job["state"] == "RUNNING"]
    [name] = re.findall(r"SLURM run ID: (\S+)", said)
    subprocess.run(["scancel", "--name", name], check=True)  # as docs/faults.md says
    until(lambda: not [job for job in small.jobs() if job["state"] in GOING])
    assert "CANCELLED" in {job["state"] for job in small.jobs()}
    until(lambda: not processes(small.folder))
    made = {path.stem for path in (small.folder / "trained").iterdir()}
    assert made and "hangs" not in made

    before = {job["id"] for job in small.jobs()}
    (small.folder / "hangs.hangs").unlink()
    status, said = small.run()
    assert status == 0, said[-6000:]
    again = rules(job for job in small.jobs() if job["id"] not in before)
    wanted = {"one", "two", "fails", "hangs", "dies"} - made
    assert again == sorted(["merge", *(f"train_{name}" for name in wanted)])


def test_the_workflow_s_jobs_are_few_and_pass_to_the_report(tiny):
    # From scratch: one job per training, the rest in groups. Jobs of a group are indented.
    status, plan = tiny.run("--dry-run", "--forceall")
    assert status == 0, plan[-6000:]
    groups = Counter(re.findall(r"Group job (\w+)", plan))
    assert groups == {"answers": 2, "measure": 2, "statistics": 1}
    alone = Counter(m.split()[0] for m in re.findall(r"^Job \d+: (.*)", plan, re.M))
    here = {"Fetching", "Writing", "Preparing", "Resolving"}  # on the login node
    assert {kind: n for kind, n in alone.items() if kind not in here} == {
        "Pretraining": 1,
        "Registering": 1,  # here: it is to say when, before anything is trained
        "Training": 6,
        "logprob_check": 1,
    }

    # The jobs of a new condition, run for real.
    status, said = tiny.run()
    assert status == 0, said[-6000:]
    results = tiny.folder / "results/demo"
    assert "couple-librarian@42" in (results / "report.html").read_text()
    assert len(pd.read_csv(results / "markers/couple-librarian@42.csv"))
    scorecard = results / "tables/scorecard.csv"
    assert len(pd.read_csv(scorecard))
    jobs = sorted(tiny.jobs(), key=lambda job: job["comment"])
    assert {job["state"] for job in jobs} == {"COMPLETED"}
    # 25 or more Snakemake jobs: the light ones are grouped, or ran here.
    kinds = [rule.split("_")[0] for rule in rules(jobs)]
    assert kinds == ["answers", "measure", "measure", "statistics", "train"]
    for job, kind in zip(jobs, kinds, strict=True):
        assert (job["gpus"] == "gres:gpu:1") == (kind != "statistics"), job


#: A training waits, once it can handle the signal, until it gets it; the second attempt does not wait.
WAITS = """
import os, pathlib, signal
handle = signal.signal

def wait(number, handler):
    before = handle(number, handler)
    ready = pathlib.Path(os.environ["WAITS"])
    if number == signal.SIGUSR1 and getattr(handler, "__module__", "").endswith("training.stopping"):
        if not ready.exists():
            ready.touch()
            signal.pause()
    return before

signal.signal = wait
"""


def test_a_training_at_its_time_limit_saves_and_the_next_attempt_goes_on(cluster, finished):
    project = finished.copy(cluster / "limited")
    chain = "couple-villain@42"
    folder = project.path(f"models/{chain}")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in (folder, project.path(f"store/train/{chain}")):
        shutil.rmtree(path)
    (project.folder / "sitecustomize.py").write_text(WAITS)
    ready = project.folder / "ready"
    workflow = Workflow(project.folder)
    target = f"results/demo/models/{chain}/adapter_model.safetensors"
    env = {"PYTHONPATH": str(project.folder), "WAITS": str(ready)}
    process = workflow.start("--", target, env=env)
    until(ready.exists)
    [job] = workflow.jobs()
    # The job waits; a controller that is busy may refuse the first call.
    update = ["scontrol", "update", f"JobId={job['id']}", "EndTime=now"]
    until(lambda: subprocess.run(update).returncode == 0)
    status, said = workflow.end(process)
    assert status == 0, said[-6000:]
    first, second = workflow.jobs()
    assert (first["state"], second["state"]) == ("TIMEOUT", "COMPLETED")
    assert second["time"] == "4:00:00"  # twice the first's
    assert "SIGTERM ended it after step 1 of 3" in said
    assert json.loads((folder / "manifest.json").read_text())["resumed_after_step"] == 1
    weights = "adapter_model.safetensors"
    assert (folder / weights).read_bytes() == before[weights]
