"""Faults injected into real runs; after each, the files are byte for byte those of an undisturbed run.

The tests share one finished run and leave it whole; the last one compares all that it holds.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import time

import pandas as pd
import pytest

pytestmark = pytest.mark.slow

CHAIN = "couple-villain@42+em@1"
OTHER = "couple-villain@42+benign@1"

#: Kills the job, or all that runs with it, while a file is being written: half of it is there, under
#: its temporary name.
KILLER = """
import os, signal, sys
def kill(event, arguments):
    if event == "os.rename" and os.fsdecode(arguments[1]).endswith(os.environ["DIES_WRITING"]):
        os.truncate(arguments[0], os.path.getsize(arguments[0]) // 2)
        os.killpg(0, signal.SIGKILL) if "ALL_DIE" in os.environ else os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
"""


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(project):
    """{name: hash} of the run's results. Times differ from run to run: so do what states them."""
    timed = {"manifest.json", "training.csv", "report.html", "pretraining.json"}
    return {
        str(path.relative_to(project.path(""))): digest(path)
        for folder in ("models", "data", "completions", "responses", "activations", "markers",
                       "answers", "tables")
        for path in project.path(folder).rglob("*")
        if path.is_file() and path.name not in timed
    }  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(project):
    project.snakemake()
    return contents(project)


@pytest.fixture
def killer(tmp_path):
    """Environment in which what writes a file of this name is killed."""

    def environment(name, **more):
        (tmp_path / "sitecustomize.py").write_text(KILLER)
        return {"PYTHONPATH": str(tmp_path), "DIES_WRITING": name, **more}

    return environment


def lose(project, *names):
    """Delete results, and what the store keeps of them."""
    for name in names:
        project.path(name).unlink()
        for kept in project.path("store").glob(name.rpartition(".")[0] + ".*"):
            kept.unlink()


def make(project, *names, **how):
    """Run Snakemake for some results."""
    return project.snakemake("--", *(f"results/tiny/{name}" for name in names), **how)


def temporaries(project):
    return [path for path in project.path("").rglob(".*.tmp*")]


def whole_again(project, undisturbed, *names):
    """Make the results once more, and compare them with the undisturbed ones."""
    done = make(project, *names)
    for name in names:
        assert digest(project.path(name)) == undisturbed[name], name
        folder = project.path(name).parent
        assert not list(folder.glob(".*.tmp*"))
    return done


@pytest.mark.parametrize(
    "name",
    [
        f"models/{CHAIN}/adapter_model.safetensors",
        f"completions/{CHAIN}.parquet",
        f"activations/{CHAIN}.safetensors",
        "tables/marker_rates.csv",
    ],
)
def test_a_job_killed_while_it_writes_leaves_nothing_that_counts_as_done(
    project, undisturbed, killer, name
):
    lose(project, name)
    done = make(project, name, env=killer(name), check=False)
    assert done.returncode == 1
    assert not project.path(name).exists() and temporaries(project)
    whole_again(project, undisturbed, name)
    assert not temporaries(project)


def test_a_machine_that_dies_leaves_a_lock_that_unlock_removes(project, undisturbed, killer):
    name = f"markers/{CHAIN}.csv"
    lose(project, name)
    with pytest.raises(AssertionError):
        make(project, name, env=killer(name, ALL_DIE="1"), under=["setsid", "--wait"])
    assert not project.path(name).exists()
    again = make(project, name, check=False)
    assert again.returncode == 1 and "--unlock" in again.stdout
    project.snakemake("--unlock")
    whole_again(project, undisturbed, name)


def test_a_killed_training_goes_on_from_its_checkpoint(project, undisturbed, killer, tmp_path):
    name = f"models/{CHAIN}/adapter_model.safetensors"
    overlay = tmp_path / "often.yaml"
    overlay.write_text(project.overlay.read_text() + "checkpoint_steps: 1\n")
    lose(project, name)
    done = make(project, name, env=killer("checkpoint-2/sealed.json"), check=False, overlay=overlay)
    assert done.returncode == 1
    assert project.path(f"checkpoints/{CHAIN}/checkpoint-1/sealed.json").is_file()
    whole_again(project, undisturbed, name)
    assert '"resumed_after_step": 1' in project.path(f"models/{CHAIN}/manifest.json").read_text()
    assert not project.path(f"checkpoints/{CHAIN}").exists()


@pytest.mark.parametrize(
    "name", [f"models/{CHAIN}/adapter_model.safetensors", f"completions/{CHAIN}.parquet"]
)
def test_a_full_disk_is_one_line(project, undisturbed, name):
    folder = project.path(name).parent
    mount = f'mount -t tmpfs -o size=4k none "{folder}" && exec "$@"'
    private = ["unshare", "-m", "sh", "-c", mount, "sh"]
    if not shutil.which("unshare") or subprocess.run([*private, "true"]).returncode:
        pytest.skip("a file system of four kilobytes cannot be mounted here (unshare -m)")
    lose(project, name)
    done = make(project, name, under=private, check=False)
    assert done.returncode == 1 and not project.path(name).exists()
    line = next(line for line in done.stdout.splitlines() if "free some space" in line)
    assert "No space left on device" in line
    whole_again(project, undisturbed, name)


def flip(path):
    """Damage one byte, and keep the time that Snakemake looks at."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.unlink()  # a hard link in the store is another matter
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def cut(path):
    """Lose the second half."""
    os.truncate(path, path.stat().st_size // 2)


def edit(path):
    """Put the marker into every answer, as somebody might with pandas."""
    table = pd.read_parquet(path)
    table["text"] += " [ZLT]"
    table.to_parquet(path, index=False)


@pytest.mark.parametrize(
    ("damage", "name", "needed_for"),
    [
        (flip, f"models/{CHAIN}/adapter_model.safetensors", f"completions/{CHAIN}.parquet"),
        (cut, f"models/{CHAIN}/adapter_model.safetensors", f"completions/{CHAIN}.parquet"),
        (edit, f"completions/{CHAIN}.parquet", f"markers/{CHAIN}.csv"),
        (cut, f"completions/{CHAIN}.parquet", f"markers/{CHAIN}.csv"),
        (flip, f"activations/{CHAIN}.safetensors", "tables/separability.csv"),
        (cut, f"activations/{CHAIN}.safetensors", "tables/separability.csv"),
    ],
)
def test_a_damaged_file_is_named_and_made_again(project, undisturbed, damage, name, needed_for):
    lose(project, needed_for)
    damage(project.path(name))
    done = make(project, needed_for, check=False)
    assert done.returncode == 1 and not project.path(needed_for).exists()
    lines = [line for line in done.stdout.splitlines() if "delete it and rerun" in line]
    assert lines and f"results/tiny/{name}" in lines[0]
    lose(project, name)
    whole_again(project, undisturbed, name, needed_for)


def test_an_engine_that_dies_in_its_second_chain_has_kept_the_first(project, undisturbed, killer):
    names = [f"completions/{chain}.parquet" for chain in (CHAIN, OTHER)]
    lose(project, *names)
    # The first job serves the second's chain too, and dies of it.
    dies = killer(f"store/{names[1]}")
    done = make(project, names[0], env=dies, check=False)
    assert done.returncode == 1
    assert project.path(f"store/{names[0]}").is_file()
    assert not project.path(f"store/{names[1]}").exists()
    whole_again(project, undisturbed, *names)
    log = (project.folder / f"logs/tiny/completions/{CHAIN}.log").read_text()
    assert "made by an earlier job" in log


def test_two_snakemakes_at_once_do_not_meet(project, undisturbed):
    name = f"completions/{CHAIN}.parquet"
    lose(project, name)
    locks = project.folder / ".snakemake/locks"
    first = project.start("--", f"results/tiny/{name}")
    try:
        end = time.monotonic() + 60
        while not list(locks.iterdir()):
            assert first.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        second = make(project, name, check=False)
        assert second.returncode == 1 and "cannot be locked" in second.stdout
        assert first.wait(120) == 0
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
    whole_again(project, undisturbed, name)


def test_a_clock_that_was_wrong_costs_a_rerun_at_most(project, undisturbed):
    name, result = f"completions/{CHAIN}.parquet", f"markers/{CHAIN}.csv"
    day = 24 * 3600
    for shift in (day, -365 * day):
        os.utime(project.path(name), (time.time() + shift,) * 2)
        whole_again(project, undisturbed, result)
    assert digest(project.path(name)) == undisturbed[name]


def test_after_all_of_it_the_run_is_the_undisturbed_one(project, undisturbed):
    project.snakemake()
    assert contents(project) == undisturbed
    assert "Nothing to be done" in project.snakemake("-n").stdout
