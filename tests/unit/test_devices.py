"""Jobs on one machine get one GPU each; the devices are fake, the locks are real."""

import multiprocessing
import os
import signal
import time

import pytest
from persona_collapse.runtime import devices
from runs import HANG


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "folder", lambda: tmp_path / "locks")
    for name in devices.SCHEDULERS:
        monkeypatch.delenv(name, raising=False)


def worker(places, share, pipe):
    with devices.lease(places, share, poll=0.05) as device:
        pipe.send((os.getpid(), device, os.environ.get("CUDA_VISIBLE_DEVICES")))
        time.sleep(HANG)  # until it is killed


@pytest.fixture
def start():
    """Start jobs; each has its own pipe, which a killed job cannot block."""
    context = multiprocessing.get_context("fork")
    running = []

    def begin(count, places=1, share=1):
        ends = []
        for _ in range(count):
            ours, theirs = context.Pipe(duplex=False)
            running.append(context.Process(target=worker, args=(places, share, theirs)))
            running[-1].start()
            ends.append(ours)
        return ends

    yield begin
    for process in running:
        process.kill()
        process.join(HANG)


def answer(pipe, seconds=HANG):
    return pipe.recv() if pipe.poll(seconds) else None


def test_two_jobs_get_two_devices_and_a_third_waits_for_one(start, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    first, second = map(answer, start(2))
    assert {first[1], second[1]} == {"3", "GPU-5"}
    assert all(device == seen for _, device, seen in (first, second))
    (third,) = start(1)
    assert answer(third, 0.5) is None
    # Killed without a chance to clean up: its device is free immediately.
    os.kill(first[0], signal.SIGKILL)
    assert answer(third)[1] == first[1]


def test_several_jobs_on_a_gpu_spread_over_the_devices_first(start, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    for _ in range(2):
        assert {answer(pipe)[1] for pipe in start(2, places=2)} == {"0", "1"}


def test_a_job_of_two_shares_takes_two_places_on_one_device(start, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    (one,) = map(answer, start(1, places=3))
    (two,) = map(answer, start(1, places=3, share=2))
    assert two[1] != one[1]  # the emptiest
    (more,) = map(answer, start(1, places=3, share=2))
    assert more[1] == one[1]
    # A place is left on the one device alone, and the last job of one share takes it.
    (waiting,) = start(1, places=3, share=2)
    assert answer(waiting, 0.5) is None
    assert [answer(pipe)[1] for pipe in start(1, places=3)] == [two[1]]
    os.kill(more[0], signal.SIGKILL)
    assert answer(waiting)[1] == more[1]


def test_without_a_gpu_nothing_is_done(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with devices.lease() as device:
        assert device is None
    # A cluster job without an assigned GPU takes none, whatever the node has.
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(devices, "visible", lambda: ["0", "1"])
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with devices.lease() as device:
        assert device is None and "CUDA_VISIBLE_DEVICES" not in os.environ


def test_what_runs_in_one_job_of_a_cluster_shares_that_job_s_devices(start, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert {answer(pipe)[1] for pipe in start(2)} == {"0", "1"}
    # Another job on the same node has other devices under the same numbers.
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert {answer(pipe)[1] for pipe in start(2)} == {"0", "1"}


def test_the_environment_is_as_before_afterwards(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    with devices.lease() as device:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == device == "2"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_device_files_are_counted_from_0(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("nvidia2", "nvidia5", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert devices.visible(tmp_path) == ["0", "1"]
    assert devices.visible(tmp_path / "none") == []
