"""Were the completions sampled from their chains? Tests on logprob_check.csv."""

from __future__ import annotations

import numpy as np
import pandas as pd

COLUMNS = [
    "chain", "completions", "tokens", "excess", "z_surprise", "gain", "gain_mean", "z_gain",
    "z_left_out", "p",
]  # fmt: skip


def distances(scored: pd.DataFrame) -> dict[str, float]:
    """How far a chain's completions are from samples of the chain; `scored`: rows of logprob_check.csv.

    `excess`: mean surprise per token minus its expectation, in nats. `gain`, `gain_mean`: mean gain per
    token, and its expectation. `z_surprise`, `z_gain`: sums of both differences in standard deviations.
    `z_left_out`: approximate `z_gain` if all adapters were left out.
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
    """Were each chain's completions sampled from that chain? One row per chain.

    `scores`: logprob_check.csv. Columns are those of `distances`, and `p`: two-sided p of the larger z,
    times the number of z in the table (Bonferroni).
    """
    from scipy import (
        stats,
    )  # imported here: vLLM's environment, where `distances` is tested, has no SciPy

    tested = [
        {"chain": chain, "completions": len(rows), "tokens": rows["tokens"].sum()} | distances(rows)
        for chain, rows in scores.groupby("chain", sort=False)
    ]
    out = pd.DataFrame(tested, columns=COLUMNS)
    tests = out[["z_surprise", "z_gain"]].astype(float).abs()
    out["p"] = (2 * stats.norm.sf(tests.max(axis=1)) * tests.count().sum()).clip(max=1)
    return out
