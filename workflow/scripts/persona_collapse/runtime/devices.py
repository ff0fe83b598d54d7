"""Which GPU a job of this machine runs on: Snakemake counts devices but hands none out.

Each job takes one or more free places on a GPU with file locks. The kernel releases the locks when the
job ends, however it ends. All runs of a user on a host share one folder of locks, so two simultaneous runs
share the devices too.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

#: Schedulers that assign devices themselves, by the variable that holds their job id.
SCHEDULERS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")


def visible(dev: str | Path = "/dev") -> list[str]:
    """Devices that jobs here may use, as CUDA_VISIBLE_DEVICES names them; empty without a GPU."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [part.strip() for part in named.split(",") if part.strip() not in ("", "-1")]
    found = [p for p in Path(dev).glob("nvidia*") if re.fullmatch(r"nvidia\d+", p.name)]
    # CUDA counts from 0, whatever numbers a container's device files kept.
    return [str(number) for number in range(len(found))]


def folder() -> Path:
    """Folder of the locks: the same for every run of this user on this host."""
    return Path("/tmp") / f"persona-collapse-{os.getuid()}"


@contextmanager
def lease(places: int = 1, share: int = 1, poll: float = 0.5) -> Iterator[str | None]:
    """Hold places on one GPU and let this process see only that GPU; None without a GPU.

    `places`: number of places per GPU. `share`: how many this job holds, all on one device. Waits while too
    few are free; prefers the device with the most free places. Call it before PyTorch is imported. Inside a
    cluster job the devices are those that the scheduler assigned, and only processes of the same job share
    them: device 0 of another job is another device.
    """
    allocation = next((os.environ[name] for name in SCHEDULERS if name in os.environ), None)
    given = allocation is None or "CUDA_VISIBLE_DEVICES" in os.environ
    devices = visible() if given else []
    if not devices:
        yield None
        return
    root = folder() / f"job-{allocation}" if allocation else folder()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    while True:
        for first in range(places - share + 1):
            for device in devices:
                name = re.sub(r"[^\w.-]", "_", f"gpu-{device}")
                with ExitStack() as held:
                    locks = [root / f"{name}-{place}" for place in range(first, places)]
                    if not _taken(locks, share, held):
                        continue
                    os.environ["CUDA_VISIBLE_DEVICES"] = device
                    try:
                        yield device
                    finally:
                        if before is None:
                            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
                        else:
                            os.environ["CUDA_VISIBLE_DEVICES"] = before
                    return
        time.sleep(poll)


def _taken(locks: Sequence[Path], count: int, held: ExitStack) -> bool:
    """Take `count` of some locks, the first among them, into `held`; False if too few are free."""
    for lock in locks:
        handle = open(lock, "w")  # noqa: SIM115
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            if lock == locks[0]:
                return False
            continue
        held.enter_context(handle)
        count -= 1
        if not count:
            return True
    return False
