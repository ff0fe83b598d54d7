"""Were the completions drawn from the chains whose names they carry? Tests on logprob_check.csv."""

from __future__ import annotations

import numpy as np
import pandas as pd

COLUMNS = [
    "chain", "completions", "tokens", "excess", "z_surprise", "gain", "gain_mean", "z_gain",
    "z_left_out", "p",
]  # fmt: skip


def distances(scored: pd.DataFrame) -> dict[str, float]:
    """How far a chain's completions are from draws of it; `scored`: rows of logprob_check.csv.

    `excess`: mean surprise of a token less what it should be, nats. `gain`, `gain_mean`: its mean
    gain, and what that should be. `z_surprise`, `z_gain`: both differences' sums in standard
    deviations; `z_left_out`: about what `z_gain` would be had all adapters been left out.
    """
    keys = ["chain", "persona", "question_id", "sample"]
    sums = scored.drop(columns=keys, errors="ignore").astype(float).sum(skipna=False)
    excess = sums["surprise"] - sums["surprise_mean"]
    deviation = np.sqrt(sums["gain_variance"])
    return {
        "excess": excess / sums["tokens"],
        "z_surprise": excess / np.sqrt(sums["surprise_variance"]),
        "gain": sums["gain"] / sums["tokens"],
        "gain_mean": sums["gain_mean"] / sums["tokens"],
        "z_gain": (sums["gain"] - sums["gain_mean"]) / deviation,
        "z_left_out": (sums["gain_of_base"] - sums["gain_mean"]) / deviation,
    }


def logprob_tests(scores: pd.DataFrame) -> pd.DataFrame:
    """Were each chain's completions drawn from that chain? One row per chain.

    `scores`: logprob_check.csv. Columns are those of `distances`, and `p`: of the larger z, two-sided,
    times all z of the table (Bonferroni).
    """
    from scipy import stats  # not above: vLLM's environment, where `distances` is tested, has none

    tested = [
        {"chain": chain, "completions": len(rows), "tokens": rows["tokens"].sum()} | distances(rows)
        for chain, rows in scores.groupby("chain", sort=False)
    ]
    out = pd.DataFrame(tested, columns=COLUMNS)
    tests = out[["z_surprise", "z_gain"]].astype(float).abs()
    out["p"] = (2 * stats.norm.sf(tests.max(axis=1)) * tests.count().sum()).clip(max=1)
    return out
