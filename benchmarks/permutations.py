"""The study's permutation tests, 10,000 draws for 160 cells of 66 pairs: a Python loop against one
matrix product.

python benchmarks/permutations.py
"""

from __future__ import annotations

import time

import numpy as np
from common import arguments, record
from persona_collapse.statistics import sign_flip_many


def loop(differences: np.ndarray, draws: int) -> float:
    """One cell as the study computed it: one draw at a time."""
    rng = np.random.RandomState(42)
    observed = abs(differences.mean())
    count = 0
    for _ in range(draws):
        signs = rng.choice([-1, 1], size=len(differences))
        count += abs((signs * differences).mean()) >= observed
    return count / draws


def main() -> None:
    """160 cells vectorised; the loop on a few cells, extrapolated."""
    args = arguments(__doc__ or "")
    cells = np.random.default_rng(0).normal(0.05, 0.2, (160, 66))
    started = time.perf_counter()
    p = sign_flip_many(cells, 10_000)
    seconds = time.perf_counter() - started
    record(
        args.out, benchmark="statistics", name="one product", cells=160, seconds=round(seconds, 2)
    )
    started = time.perf_counter()
    slow = [loop(row, 10_000) for row in cells[:4]]
    seconds = time.perf_counter() - started
    record(
        args.out,
        benchmark="statistics",
        name="Python loop",
        cells=4,
        seconds=round(seconds, 2),
        seconds_160=round(seconds * 40, 1),
        largest_difference=round(float(np.abs(p[:4] - slow).max()), 4),
    )


if __name__ == "__main__":
    main()
