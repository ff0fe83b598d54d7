"""Lets a training save its state when it gets a signal to end, as at a cluster's time limit."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: SLURM's signal before it kills, and the usual choice for `sbatch --signal`.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def asked(tell: Callable[[str], None]) -> Iterator[None]:
    """Context in which `SIGNALS` do not end the process: `tell` gets the signal's name."""
    before = {
        one: signal.signal(one, lambda number, frame: tell(signal.Signals(number).name))
        for one in SIGNALS
    }
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
