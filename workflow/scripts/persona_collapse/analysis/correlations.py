"""Is geometry correlated with behaviour? Correlations over conditions, and over personas within a
condition.

Chains of a condition share data, and often stages: they are not independent points. So the unit is the
condition, averaged over its chains and sources. None of this shows a cause. Evidence for a cause would
be a stage that changes one of the two, and then the other changes as well.
"""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from .. import chains
from ..statistics import Families, adjust

COLUMNS = [
    "analysis", "condition", "source", "outcome", "predictor", "controls", "left_out", "rho", "ci_low",
    "ci_high", "n", "p", "p_floor", "q", "family", "note",
]  # fmt: skip
CHAIN_COLUMNS = [
    "condition", "chain", "source", "seed", "rate", "marker_logprob", "m1", "delta_m1", "spread",
    "source_cosine", "mean_tokens", "final_loss", "stages_after", "steps_after",
]  # fmt: skip


def chain_table(
    design: pd.DataFrame,
    answers: pd.DataFrame,
    geometry: pd.DataFrame,
    cosines: pd.DataFrame,
    training: pd.DataFrame,
) -> pd.DataFrame:
    """One row per chain with a coupling: its behaviour, geometry and covariates.

    `source_cosine`: mean cosine of the source's vector with the others. `stages_after`, `steps_after`:
    stages and steps after the coupling (0: the coupling came last; the steps of an imported stage are
    unknown). `final_loss`: last training loss of the last stage, without a defence's penalty.
    """
    coupled = design[design["stages_after_coupling"].notna()]
    coupled = coupled.drop_duplicates(["chain", "source"])
    values = geometry[geometry["headline"] & (geometry["test"] == "")]
    by_metric = values.drop_duplicates(["chain", "metric"]).set_index(["chain", "metric"])
    near = cosines[cosines["headline"] & (cosines["persona_a"] != cosines["persona_b"])]
    near = near.drop_duplicates(["chain", "persona_a", "persona_b"])
    source_cosine = near.groupby(["chain", "persona_a"])["cosine"].mean()
    runs = training.drop_duplicates("chain").set_index("chain")
    sources = answers[answers["role"] == "source"].drop_duplicates(["chain", "source"])
    measured = sources.set_index(["chain", "source"])
    rows = []
    for cell in coupled.itertuples(index=False):
        key = cell.chain, cell.source
        if key not in measured.index or (cell.chain, "m1") not in by_metric.index:
            continue
        m1 = by_metric.loc[cell.chain, "m1"]
        stages = [str(prefix) for prefix in chains.parse(cell.chain).measured]
        after = stages[len(stages) - int(cell.stages_after_coupling) :]
        rows.append(
            {
                "condition": cell.condition,
                "chain": cell.chain,
                "source": cell.source,
                "seed": cell.seed,
                "rate": measured.loc[key, "rate"],
                "marker_logprob": measured.loc[key, "marker_logprob"],
                "m1": m1["value"],
                "delta_m1": m1["delta_base"],
                "spread": by_metric.loc[(cell.chain, "spread"), "value"],
                "source_cosine": source_cosine.get(key, np.nan),
                "mean_tokens": measured.loc[key, "mean_tokens"],
                "final_loss": runs["final_loss"].get(cell.chain, np.nan),
                "stages_after": len(after),
                "steps_after": sum(runs["steps"].get(name, 0) for name in after),
            }
        )
    return pd.DataFrame(rows, columns=CHAIN_COLUMNS)


def residuals(values: ArrayLike, controls: ArrayLike) -> np.ndarray:
    """Residuals of the ranks of `values` after a least-squares fit on the ranks of `controls` [n, k]."""
    y = stats.rankdata(np.asarray(values, float))
    ranks = [stats.rankdata(column) for column in np.asarray(controls, float).T]
    design = np.column_stack([np.ones(len(y)), *ranks])
    fit, *_ = np.linalg.lstsq(design, y, rcond=None)
    out: np.ndarray = y - design @ fit
    return out


def partial_spearman(
    x: ArrayLike,
    y: ArrayLike,
    controls: ArrayLike | None = None,
    draws: int = 10_000,
    seed: int = 42,
) -> dict[str, float]:
    """Spearman's rho, or the partial rho given controls [n, k], with interval and permutation p.

    Partial rho: Pearson correlation of the residuals of ranks. p: two-sided, by permuting the residuals
    of y (Freedman and Lane 1983). Permuted residuals are no longer orthogonal to the controls, so each
    permutation is regressed on them again, like the data. All n! permutations are used if there are no
    more than `draws`, else `draws` random ones with the + 1. `p_floor`: the p of the most extreme
    order; ties and controls raise it. Interval: Fisher's z with the variance of Bonett and Wright 2000,
    (1 + rho^2 / 2) / (n - 3 - k). NaN with fewer than 4 + k points, or a constant.
    """
    a, b = np.asarray(x, float), np.asarray(y, float)
    covariates = np.zeros((len(a), 0)) if controls is None else np.asarray(controls, float)
    k = covariates.shape[1]
    nothing = dict.fromkeys(("rho", "ci_low", "ci_high", "p", "p_floor"), np.nan)
    if len(a) < 4 + k or np.ptp(a) == 0 or np.ptp(b) == 0:
        return nothing
    u, v = residuals(a, covariates), residuals(b, covariates)
    # If the controls explain everything, only rounding errors are left.
    if np.sqrt((u @ u) * (v @ v)) < 1e-9 * len(a):
        return nothing
    ranks = [stats.rankdata(column) for column in covariates.T]
    basis = np.linalg.qr(np.column_stack([np.ones(len(a)), *ranks]))[0]
    u = u / np.linalg.norm(u)

    def rhos(rows: np.ndarray) -> np.ndarray:
        """Partial correlations with `u` of permuted residuals [permutations, n]."""
        rows = rows - rows @ basis @ basis.T
        norms = np.linalg.norm(rows, axis=1)
        # A permutation that the controls explain completely has no correlation.
        found: np.ndarray = rows @ u / np.where(norms < 1e-9 * len(a), np.inf, norms)
        return found

    rho = float(rhos(v[None])[0])
    exact = math.factorial(min(len(a), 20)) <= draws
    if exact:
        shuffled = v[np.array(list(permutations(range(len(a)))))]
    else:
        shuffled = np.random.default_rng(seed).permuted(np.tile(v, (draws, 1)), axis=1)
    null = np.abs(rhos(shuffled))
    # Include the orders that agree best with u, because random permutations may miss them.
    ordered = np.empty((2, len(a)))
    ordered[:, np.argsort(u)] = np.sort(v), np.sort(v)[::-1]
    largest = max(float(null.max()), abs(rho), *np.abs(rhos(ordered)))
    extra = 0 if exact else 1

    def p_of(value: float) -> float:
        return (int(np.sum(null >= value - 1e-12)) + extra) / (len(null) + extra)

    half = stats.norm.ppf(0.975) * np.sqrt((1 + rho**2 / 2) / max(len(a) - 3 - k, 1))
    z = np.arctanh(np.clip(rho, -0.9999, 0.9999))
    return {
        "rho": rho,
        "ci_low": min(rho, float(np.tanh(z - half))),
        "ci_high": max(rho, float(np.tanh(z + half))),
        "p": p_of(abs(rho)),
        "p_floor": p_of(largest),
    }


def by_condition(by_chain: pd.DataFrame) -> pd.DataFrame:
    """Means over each condition's chains and sources: one point per condition."""
    numbers = [c for c in by_chain.columns if c not in ("condition", "chain", "source", "seed")]
    if by_chain.empty:
        return by_chain[["condition", *numbers]]
    return by_chain.groupby("condition", sort=False)[numbers].mean().reset_index()


def correlation_table(
    by_chain: pd.DataFrame,
    rates: pd.DataFrame,
    base_cosines: pd.DataFrame,
    *,
    draws: int,
    seed: int,
    families: Families = (),
) -> pd.DataFrame:
    """Correlations of geometry with marker survival; see the columns.

    Analysis `conditions`: over the conditions of `by_chain`, each averaged over its chains and sources.
    Chains stopped early are left out: their trainings have points already, and a mean over several stops
    is the value of none. The outcome is rate or marker log-probability; predictors are m1 and the
    source's own cosine. It is done without controls, with controls (length, loss, steps after the
    coupling), and leaving out one source at a time (`left_out`). Collapse predicts a negative rho.
    Analysis `personas`: within each `condition` and `source`, over the bystanders, marker rate against
    the base model's cosine with the source (`base_cosines`, where `chain` is the model): does the marker
    leak to personas that were close?
    """
    rows: list[dict[str, Any]] = []
    stopped = [chains.parse(name).last.stop is not None for name in by_chain["chain"]]
    by_chain = by_chain[~np.array(stopped, bool)]

    def add(
        table: pd.DataFrame, outcome: str, predictor: str, controls: list[str], left: str
    ) -> None:
        known = by_condition(table).dropna(subset=[outcome, predictor, *controls])
        covariates = known[controls].to_numpy(float) if controls else None
        result = partial_spearman(known[predictor], known[outcome], covariates, draws, seed)
        note = "" if not np.isnan(result["rho"]) else "too few conditions, or no spread"
        rows.append(
            {
                "analysis": "conditions",
                "condition": "",
                "source": "",
                "outcome": outcome,
                "predictor": predictor,
                "controls": " ".join(controls),
                "left_out": left,
                "n": len(known),
                "note": note,
            }
            | result
        )

    for outcome in ("rate", "marker_logprob"):
        for predictor in ("m1", "source_cosine"):
            for controls in ([], ["mean_tokens"], ["mean_tokens", "final_loss"], ["steps_after"]):
                add(by_chain, outcome, predictor, controls, "")
        sources = by_chain["source"].unique()
        if len(sources) > 1:
            for source in sources:
                add(by_chain[by_chain["source"] != source], outcome, "m1", [], str(source))
    cosine = base_cosines.set_index(["chain", "persona_a", "persona_b"])["cosine"]
    for (condition, source), group in rates[rates["role"] != "source"].groupby(
        ["condition", "source"], sort=False
    ):
        if not source or source not in set(base_cosines["persona_b"]):
            continue
        by_persona = group.groupby("persona")["rate"].mean()
        model = chains.model_of(group["chain"].iloc[0])
        near = {p: cosine.get((model, p, source), np.nan) for p in by_persona.index}
        near = pd.Series(near).dropna()
        result = partial_spearman(near, by_persona[near.index], None, draws, seed)
        rows.append(
            {
                "analysis": "personas",
                "condition": condition,
                "source": source,
                "outcome": "rate",
                "predictor": "cosine to the source in the base model",
                "left_out": "",
                "controls": "",
                "n": len(near),
                "note": "too few personas, or no spread" if np.isnan(result["rho"]) else "",
            }
            | result
        )
    return adjust(pd.DataFrame(rows, columns=COLUMNS), families).reindex(columns=COLUMNS)
