"""What all rule scripts share: logging, progress, one-line errors, offline by default."""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ..errors import UserError
from . import devices, seals

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# PyTorch's threads spin while they wait for each other, which takes cores from other jobs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Turn off usage statistics of the hub, vLLM and other libraries.
os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}

#: Variables that keep the Hugging Face libraries offline, including old names.
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")

SECONDS_BETWEEN_LINES = 5.0
#: PyTorch raises OutOfMemoryError. CUDA's own libraries only say it in the message. So does vLLM if
#: other jobs hold too much memory when it starts.
GPU_FULL = ("out of memory", "is less than desired gpu memory utilization")
OUT_OF_MEMORY = (
    "the GPU's memory is full; under runtime: in the config lower, for training, max_batch_tokens (or "
    "raise accumulation_steps, or set gradient_checkpointing), for sampling gpu_memory_utilization or "
    "batch_size, for activations batch_size; or jobs_per_gpu. Finished work is kept"
)
#: Message of the C library: not every library raises an OSError with the number.
DISK_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


def _device(snakemake: Any) -> Any:
    """As many places on a GPU as a job asks for; nothing for others."""
    asked = getattr(snakemake.resources, "gpu", 0)
    if not asked:
        return nullcontext()
    places = snakemake.config["runtime"]["jobs_per_gpu"]
    return devices.lease(places, min(asked, places))


@contextmanager
def job(snakemake: Any, name: str, online: bool = False) -> Iterator[Callable[[str], None]]:
    """Run a rule's body. Output of libraries goes to the rule's log, progress also to the terminal.

    Only an `online` job may use the hub, unless the user has set HF_HUB_OFFLINE. Every other job is
    offline, whatever the environment says: otherwise even look-ups of local models try the network.
    Libraries read the variables at import, so the body imports them.

    A job whose rule asks for a GPU holds one (see `devices.lease`) and sees no other. A job refuses to
    read a table or record that was edited since it was made (see seals.py).

    Yields a function that logs one line of progress; the terminal gets at most one line in five
    seconds. A UserError ends the job with its one line and status 1. Any other exception leaves its
    traceback in the log and one line on the terminal.
    """
    if not online:
        os.environ |= dict.fromkeys(OFFLINE, "1")
    terminal = sys.stderr
    log = open(snakemake.log[0], "w", encoding="utf-8", buffering=1)  # noqa: SIM115
    sys.stdout = sys.stderr = log
    logging.basicConfig(stream=log, level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    last = 0.0

    def say(message: str) -> None:
        nonlocal last
        print(message, file=log)
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            print(f"  [{name}] {message}", file=terminal, flush=True)

    run = Path("results", snakemake.config["run"])
    try:
        seals.check(run, snakemake.input)
        with _device(snakemake):
            yield say
        seals.seal(run, snakemake.output)
    except UserError as error:
        print(f"error: {error}", file=log)
        print(f"  [{name}] error: {error}", file=terminal, flush=True)
        sys.exit(1)
    except Exception as error:
        traceback.print_exc(file=log)
        kind = type(error).__name__
        if any(text in str(error) for text in DISK_FULL):
            print(
                f"  [{name}] error: {error}; free some space and rerun", file=terminal, flush=True
            )
        elif kind == "OutOfMemoryError" or any(text in str(error).lower() for text in GPU_FULL):
            print(f"  [{name}] error: {OUT_OF_MEMORY}", file=terminal, flush=True)
        else:
            print(f"  [{name}] {kind}; see {snakemake.log[0]}", file=terminal, flush=True)
        sys.exit(1)
    finally:
        # Libraries may print while Python shuts down, so the streams stay redirected to the log.
        log.flush()
