"""A training that is told to end, as at a cluster's time limit, saves where it is."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: SLURM's before it kills, and what `sbatch --signal` is often given.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def asked(tell: Callable[[str], None]) -> Iterator[None]:
    """While inside, one of `SIGNALS` does not end the process: `tell` gets its name."""
    before = {
        one: signal.signal(one, lambda number, frame: tell(signal.Signals(number).name))
        for one in SIGNALS
    }
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
