"""Faults injected into real runs; after each, the files are byte for byte those of an undisturbed run.

Each fault is injected into a copy of one finished run. Afterwards everything in the copy is compared.
Each test case is one fault: docs/faults.md lists them, and the end of the test run says how many were
repaired.
"""

import contextlib
import hashlib
import http.server
import os
import shutil
import signal
import subprocess
import threading
import time

import pandas as pd
import pytest
from runs import HANG

pytestmark = pytest.mark.slow

CHAIN = "couple-villain@42+em@1"
OTHER = "couple-villain@42+benign@1"

#: Injects a fault into a process when a file of this name is half written under its temporary name; or,
#: if a tensor operation of PyTorch is named, at its next call.
FAULT = """
import os, signal, sys, time
what, _, where = os.environ["FAULT"].partition(" in ")
def strike(*_, **__):
    if what == "no memory":
        import torch
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    if what == "waits":
        open(os.environ["GO"] + ".waiting", "w").close()
        while not os.path.exists(os.environ["GO"]):
            time.sleep(0.05)
    elif what == "all die":
        os.killpg(0, signal.SIGKILL)
    else:
        os.kill(os.getpid(), signal.SIGKILL)
def watch(event, arguments):
    if event == "os.rename" and os.fsdecode(arguments[1]).endswith(os.environ["WRITING"]):
        if where:
            setattr(sys.modules["torch"].Tensor, where, strike)
            return
        if what != "waits":
            os.truncate(arguments[0], os.path.getsize(arguments[0]) // 2)
        strike()
sys.addaudithook(watch)
"""


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(project):
    """{name: hash} of the run's results, without files that record times, which differ from run to run."""
    timed = {"manifest.json", "training.csv", "report.html", "pretraining.json"}
    return {
        str(path.relative_to(project.path(""))): digest(path)
        for folder in ("models", "data", "completions", "responses", "activations", "markers",
                       "answers", "tables")
        for path in project.path(folder).rglob("*")
        if path.is_file() and path.name not in timed
    }  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(finished):
    return contents(finished)


@pytest.fixture
def fault(tmp_path):
    """Environment that injects a fault into the process that writes a file of this name."""

    def environment(writing, what="dies", **more):
        (tmp_path / "sitecustomize.py").write_text(FAULT)
        return {"PYTHONPATH": str(tmp_path), "WRITING": writing, "FAULT": what, **more}

    return environment


@pytest.fixture
def often(tmp_path):
    """An overlay with a checkpoint after each step."""
    path = tmp_path / "often.yaml"
    path.write_text("runtime: {checkpoint_steps: 1}\n")
    return path


def lose(project, *names):
    """Delete results, including their copies in the store."""
    for name in names:
        project.path(name).unlink(missing_ok=True)
        # A file and its record, or an adapter's folder and its record.
        kept = project.path("store") / name.replace("models/", "train/")
        kept = kept.parent if name.startswith("models/") else kept.with_suffix("")
        shutil.rmtree(kept, ignore_errors=True)
        for path in kept.parent.glob(f"{kept.name}.*"):
            path.unlink()


def in_store(name):
    """The end of a result's name, which is the same in the store, where it is written first."""
    return name.removeprefix("models/")


def make(project, *names, **how):
    """Run Snakemake for some results."""
    return project.snakemake("--", *(f"results/demo/{name}" for name in names), **how)


def temporaries(project):
    return list(project.path("").rglob(".*.tmp*"))


def until(condition):
    """Wait for something."""
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def whole_again(project, undisturbed, *names):
    """Rebuild the results, and compare everything with the undisturbed run."""
    done = make(project, *names)
    assert contents(project) == undisturbed
    assert not temporaries(project)
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
    project, undisturbed, fault, name
):
    lose(project, name)
    done = make(project, name, env=fault(in_store(name)), check=False)
    assert done.returncode == 1
    assert not project.path(name).exists() and temporaries(project)
    whole_again(project, undisturbed, name)


def test_a_machine_that_dies_leaves_a_lock_that_unlock_removes(project, undisturbed, fault):
    # Both outputs of the job: of one that is there, Snakemake would say that it may be incomplete.
    name = f"markers/{CHAIN}.csv"
    lose(project, name, f"markers/{CHAIN}.parquet")
    done = make(project, name, env=fault(name, "all die"), under=["setsid", "--wait"], check=False)
    assert done.returncode and "Trying to restart" not in done.stdout
    assert not project.path(name).exists()
    again = make(project, name, check=False)
    assert again.returncode == 1 and "--unlock" in again.stdout
    project.snakemake("--unlock")
    whole_again(project, undisturbed, name)


def test_a_job_that_outlives_its_snakemake_is_waited_for(project, undisturbed, fault, tmp_path):
    folder = f"models/{CHAIN}"
    name = f"{folder}/adapter_model.safetensors"
    log = project.folder / f"logs/demo/train/{CHAIN}.log"
    lose(project, name)
    go = tmp_path / "go"
    first = project.start(
        *("--", f"results/demo/{name}"), env=fault(in_store(name), "waits", GO=str(go))
    )
    again = None
    try:
        until((tmp_path / "go.waiting").exists)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        project.snakemake("--unlock")
        again = project.start("--", f"results/demo/{name}")
        # The second has reached its training, while the first is about to write.
        until(lambda: log.is_file() and "waiting for its end" in log.read_text())
        assert not project.path(name).exists()
        go.touch()
        assert again.wait(HANG) == 0
    finally:
        for process in filter(None, (first, again)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert digest(project.path(name)) == undisturbed[name]
    whole_again(project, undisturbed, name)


@pytest.mark.parametrize(
    ("writing", "what", "after"),
    [
        pytest.param("checkpoint-2/sealed.json", "dies", 1, id="at a checkpoint"),
        pytest.param("checkpoint-2/sealed.json", "dies in backward", 2, id="in a step"),
    ],
)
def test_a_killed_training_goes_on_from_its_last_whole_checkpoint(
    project, undisturbed, fault, often, writing, what, after
):
    name = f"models/{CHAIN}/adapter_model.safetensors"
    lose(project, name)
    done = make(project, name, env=fault(writing, what), check=False, overlay=often)
    assert done.returncode == 1 and not project.path(name).exists()
    kept = project.path(f"checkpoints/{CHAIN}")
    assert list(kept.glob(f"*/checkpoint-{after}/sealed.json"))
    whole_again(project, undisturbed, name)
    manifest = project.path(f"models/{CHAIN}/manifest.json").read_text()
    assert f'"resumed_after_step": {after}' in manifest
    assert not project.path(f"checkpoints/{CHAIN}").exists()


def test_a_full_gpu_is_one_line_and_a_rerun_goes_on(project, undisturbed, fault, often):
    name = f"models/{CHAIN}/adapter_model.safetensors"
    lose(project, name)
    full = fault("checkpoint-1/sealed.json", "no memory in backward")
    done = make(project, name, env=full, check=False, overlay=often)
    assert done.returncode == 1 and not project.path(name).exists()
    said = [line for line in done.stdout.splitlines() if "the GPU's memory is full" in line]
    assert len(said) == 1 and "max_batch_tokens" in said[0]
    whole_again(project, undisturbed, name)
    manifest = project.path(f"models/{CHAIN}/manifest.json").read_text()
    assert '"resumed_after_step": 1' in manifest


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
    """Damage one byte, and keep the modification time that Snakemake checks."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.unlink()  # the hard link in the store stays intact
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def cut(path):
    """Lose the second half."""
    os.truncate(path, path.stat().st_size // 2)


def edit(path):
    """Put the marker into every answer, as a user could with pandas."""
    table = pd.read_parquet(path)
    table["text"] += " [ZLT]"
    table.to_parquet(path, index=False)


def alter(path):
    """Change a number, as a user could in a spreadsheet."""
    table = pd.read_csv(path)
    table["rate"] = 1 - table["rate"]
    table.to_csv(path, index=False)


@pytest.mark.parametrize(
    ("damage", "name", "needed_for"),
    [
        (flip, f"models/{CHAIN}/adapter_model.safetensors", f"completions/{CHAIN}.parquet"),
        (cut, f"models/{CHAIN}/adapter_model.safetensors", f"completions/{CHAIN}.parquet"),
        (edit, f"completions/{CHAIN}.parquet", f"markers/{CHAIN}.csv"),
        (cut, f"completions/{CHAIN}.parquet", f"markers/{CHAIN}.csv"),
        (flip, f"activations/{CHAIN}.safetensors", "tables/separability.csv"),
        (cut, f"activations/{CHAIN}.safetensors", "tables/separability.csv"),
        (alter, "tables/marker_rates.csv", "tables/scorecard.csv"),
    ],
)
def test_a_damaged_file_is_named_and_made_again(project, undisturbed, damage, name, needed_for):
    lose(project, needed_for)
    damage(project.path(name))
    done = make(project, needed_for, check=False)
    assert done.returncode == 1 and not project.path(needed_for).exists()
    lines = [line for line in done.stdout.splitlines() if "delete it and rerun" in line]
    assert lines and f"results/demo/{name}" in lines[0]
    project.path(name).unlink()  # exactly what the message says
    whole_again(project, undisturbed, name, needed_for)


def test_a_base_model_that_changes_is_named_and_made_again(project, undisturbed):
    name, base = f"completions/{CHAIN}.parquet", project.path("bases/base/model.json")
    weights, before = project.path("bases/base/model.safetensors"), digest(base)
    lose(project, name)
    flip(weights)
    done = make(project, name, check=False)
    assert done.returncode == 1 and not project.path(name).exists()
    line = next(s for s in done.stdout.splitlines() if "not the bytes that were fetched" in s)
    assert str(weights) in line and f"delete it and {base.relative_to(project.folder)}" in line
    weights.unlink()
    base.unlink()
    make(
        project, "bases/base/model.json"
    )  # as the message says: on its own, so that Snakemake sees that it is unchanged
    assert digest(base) == before
    whole_again(project, undisturbed, name)
    assert "Nothing to be done" in project.snakemake("-n").stdout


@pytest.fixture
def server(tmp_path):
    """Serves a folder on loopback."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def __init__(self, *given):
            super().__init__(*given, directory=tmp_path)

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def test_a_download_that_was_cut_short_is_refused_and_is_not_left_as_done(
    project, undisturbed, server, tmp_path
):
    name = "data/benign.jsonl"
    builtin = project.folder / "workflow/resources/data/benign_instruct.jsonl"
    served = tmp_path / "rows.jsonl"
    # Whole lines and enough of them: only the hash reveals it.
    served.write_text("".join(builtin.read_text().splitlines(True)[:100]))
    source = f"{{builtin: null, url: '{server}/rows.jsonl', sha256: {digest(builtin)}}}"
    overlay = tmp_path / "served.yaml"
    overlay.write_text(f"data: {{benign: {{from: {source}}}}}\n")
    lose(project, name)
    done = make(project, name, overlay=overlay, check=False)
    assert done.returncode == 1 and not project.path(name).exists()
    [said] = {line.strip() for line in done.stdout.splitlines() if "SHA-256" in line}
    assert "data: benign: from: http" in said and "another version, or damaged" in said
    served.write_bytes(builtin.read_bytes())
    make(project, name, overlay=overlay)
    assert digest(project.path(name)) == undisturbed[name]


def test_an_engine_that_dies_in_its_second_chain_has_kept_the_first(project, undisturbed, fault):
    names = [f"completions/{chain}.parquet" for chain in (CHAIN, OTHER)]
    lose(project, *names)
    # The first job also serves the second's chain, and dies in the middle of that batch.
    dies = fault(f"store/{names[0]}", "dies in exponential_")
    done = make(project, names[0], env=dies, check=False)
    assert done.returncode == 1
    assert project.path(f"store/{names[0]}").is_file()
    assert not project.path(f"store/{names[1]}").exists()
    whole_again(project, undisturbed, *names)
    log = (project.folder / f"logs/demo/completions/{CHAIN}.log").read_text()
    assert "made by an earlier job" in log


def test_two_snakemakes_at_once_do_not_meet(project, undisturbed, fault, tmp_path):
    # Both outputs of the job: of one that is there, Snakemake would say that it may be incomplete.
    name = f"markers/{CHAIN}.csv"
    lose(project, name, f"markers/{CHAIN}.parquet")
    go = tmp_path / "go"
    first = project.start("--", f"results/demo/{name}", env=fault(name, "waits", GO=str(go)))
    try:
        until((tmp_path / "go.waiting").exists)  # its job is about to write
        second = make(project, name, check=False)
        assert second.returncode == 1 and "cannot be locked" in second.stdout
        go.touch()
        assert first.wait(HANG) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
    whole_again(project, undisturbed, name)


def test_a_file_from_tomorrow_is_named_and_made_use_of_once_it_is_touched(project, undisturbed):
    name, result = f"completions/{CHAIN}.parquet", f"markers/{CHAIN}.csv"
    os.utime(project.path(name), (time.time() + 24 * 3600,) * 2)
    lose(project, result)
    done = make(project, result, check=False)
    assert done.returncode == 1 and not project.path(result).exists()
    assert f"{name} (" in done.stdout and "clock skew" in done.stdout
    os.utime(project.path(name))
    whole_again(project, undisturbed, result)
    assert digest(project.path(name)) == undisturbed[name]


def test_a_file_that_seems_too_old_is_not_made_over_and_over(project, undisturbed):
    name, result = f"completions/{CHAIN}.parquet", f"markers/{CHAIN}.csv"
    for made in (name, result):
        os.utime(project.path(made), (time.time() - 365 * 24 * 3600,) * 2)
    whole_again(project, undisturbed, name, result)
    assert "Nothing to be done" in make(project, name, result).stdout


def test_after_many_faults_at_once_the_whole_run_is_the_undisturbed_one(project, undisturbed):
    lose(project, f"models/{CHAIN}/adapter_model.safetensors", "tables/marker_rates.csv")
    project.path(f"completions/{OTHER}.parquet").unlink()
    project.path(f"activations/{OTHER}.safetensors").unlink()
    project.path(f"markers/{OTHER}.csv").unlink()
    project.snakemake()
    assert contents(project) == undisturbed
    assert "Nothing to be done" in project.snakemake("-n").stdout
