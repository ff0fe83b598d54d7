"""The default profile on a machine with several GPUs: as many jobs as devices, one job per device."""

import ast

import pandas as pd
import pytest
from runs import HANG

pytestmark = pytest.mark.slow

DEVICES = ["7", "GPU-8"]  # these devices do not exist: only their names are assigned
CHAINS = ["base", "couple-villain@42", "couple-villain@42+em@1", "couple-villain@42+benign@1"]
#: Records when a job begins its work, on which device, and when it ends.
WATCH = """
import os, sys, time
def note(what):
    with open(os.environ["NOTES"], "a") as file:
        print(time.monotonic(), what, os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), file=file)
def watch(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".lock") and "store/completions" in str(arguments[0]):
        if arguments[1] == "w" and not watch.begun:
            watch.begun = True
            note("begins")
            # The first waits for a second, however slow the machine is just now.
            until = time.monotonic() + float(os.environ["HANG"])
            while open(os.environ["NOTES"]).read().count("begins") < 2 and time.monotonic() < until:
                time.sleep(0.2)
    elif event == "os.utime" and watch.begun:  # the job's last act
        note("ends")
watch.begun = False
sys.addaudithook(watch)
"""


def test_two_gpus_run_two_jobs_at_a_time_each_on_its_own(project, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    overlay = tmp_path / "gpus.yaml"
    overlay.write_text("runtime: {gpus_per_job: 1}\n")
    notes = tmp_path / "notes"
    project.snakemake(
        *("--cores", "4", "--forcerun", "completions", "--"),
        *(f"results/demo/completions/{chain}.parquet" for chain in CHAINS),
        overlay=overlay,
        env={
            "PYTHONPATH": str(tmp_path),
            "NOTES": str(notes),
            "HANG": str(HANG),
            "CUDA_VISIBLE_DEVICES": ",".join(DEVICES),
        },
    )
    lines = sorted(line.split() for line in notes.read_text().splitlines())
    busy, most = {}, 0
    for _, what, job, device in sorted(lines, key=lambda line: float(line[0])):
        if what == "begins":
            assert device in DEVICES and device not in busy, "two jobs on one device"
            busy[device] = job
            most = max(most, len(busy))
        else:
            assert busy.pop(device) == job
    assert len(lines) == 2 * len(CHAINS) and not busy
    assert most == len(DEVICES)


def test_a_training_of_two_shares_is_left_to_a_job_that_holds_two(project, tmp_path):
    overlay = tmp_path / "shares.yaml"
    overlay.write_text(
        "runtime: {gpus_per_job: 1, jobs_per_gpu: 3}\n"
        "stages:\n"
        "  plain: {kind: sft, data: benign}\n"
        "  close: {kind: sft, data: benign, defence: {kl: {}}}\n"
        "conditions:\n"
        "  P: {title: plain, chain: couple-villain@42+plain@1}\n"
        "  P2: {title: plain, chain: couple-villain@42+plain@2}\n"
        "  K: {title: close, chain: couple-villain@42+close@1}\n"
    )
    names = ("plain@1", "plain@2", "close@1")
    cards = [f"results/demo/models/couple-villain@42+{name}/README.md" for name in names]
    env = {"CUDA_VISIBLE_DEVICES": DEVICES[0]}
    run = ("--benchmark-extended", "--")
    # The engine of a job with one share also trains what fits into one.
    project.snakemake(*run, cards[0], overlay=overlay, env=env)
    trained = {path.stem for path in project.path("store/train").glob("*.json")}
    assert {"couple-villain@42+plain@1", "couple-villain@42+plain@2"} <= trained
    assert "couple-villain@42+close@1" not in trained
    project.snakemake(*run, *cards, overlay=overlay, env=env)
    asked = {}
    for name in names:
        path = project.path(f"benchmarks/train/couple-villain@42+{name}.tsv")
        asked[name] = ast.literal_eval(pd.read_csv(path, sep="\t").loc[0, "resources"])["gpu"]
    assert asked == {"plain@1": 1, "plain@2": 1, "close@1": 2}
