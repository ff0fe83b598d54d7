"""Tests on marker rates: as the study did, and with questions, seeds and personas as units.

Completions of one question resemble each other, and every chain answers the same questions. So a
difference between two chains is a difference question by question: a dozen or so independent
numbers, not hundreds. Fisher's test on completions stands beside, for it is what the study used.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ..statistics import (
    Families,
    adjust,
    fisher,
    newcombe,
    sign_flip_units,
    student_interval,
    tost_proportions,
    tost_units,
    welch_conjunction,
)

TEST_COLUMNS = [
    "condition", "reference", "source", "seed", "test", "unit", "scale", "estimate", "ci_low", "ci_high",
    "n", "p", "p_floor", "q", "family", "margin", "p_equivalent", "note",
]  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One persona's completions in two sets of chains.

    `seed` is empty where chains are pooled; `whole`: no larger pool of the same comparison exists.
    """

    condition: str
    reference: str
    source: str
    seed: str
    after: tuple[str, ...]
    before: tuple[str, ...]
    whole: bool = True


def comparisons(design: pd.DataFrame, contrasts: Sequence[Sequence[str]]) -> Iterator[Comparison]:
    """What is compared: each chain with the chain it continues, its condition's chains pooled with
    theirs, and the pairs of conditions in `contrasts`.
    """
    names = design.drop_duplicates("chain").set_index("chain")["condition"]
    cells = design[(design["source"] != "") & (design["chain"] != design["before"])]
    for (condition, source), group in cells.groupby(["condition", "source"], sort=False):
        befores = tuple(dict.fromkeys(group["before"]))
        reference = ", ".join(dict.fromkeys(str(names.get(b, b)) for b in befores))
        for cell in group.itertuples(index=False):
            yield Comparison(
                condition=str(condition),
                reference=str(names.get(cell.before, cell.before)),
                source=str(source),
                seed=str(cell.seed),
                after=(cell.chain,),
                before=(cell.before,),
                whole=len(group) == 1,
            )
        if len(group) > 1:
            yield Comparison(
                str(condition), reference, str(source), "", tuple(group["chain"]), befores
            )
    for condition, reference in contrasts:
        for source, group in cells[cells["condition"] == condition].groupby("source", sort=False):
            other = cells[(cells["condition"] == reference) & (cells["source"] == source)]
            if len(other):
                yield Comparison(
                    condition,
                    reference,
                    str(source),
                    "",
                    tuple(group["chain"]),
                    tuple(other["chain"]),
                )


def marker_tests(
    design: pd.DataFrame,
    scored: pd.DataFrame,
    *,
    contrasts: Sequence[Sequence[str]] = (),
    margin: float = 0.15,
    draws: int = 10_000,
    seed: int = 42,
    families: Families = (),
) -> pd.DataFrame:
    """Marker rate of the source persona in one set of chains against another, test by test.

    `scored`: what `markers.answers` gives, of all chains. Tests (column `test`), each with its unit and
    the smallest p it can give:

    fisher          as the study: completions as independent; Newcombe's interval of the difference
    questions       sign flips of the per-question differences; Student interval over questions
    gee             logit GEE, exchangeable within question, standard errors after Mancl and DeRouen
                    (few clusters), log odds ratio; none where one side is all hits or all misses
    gee_length      the same with the log of the answer's tokens as a covariate
    logprob         per-question differences in the marker's log-probability at the end of the answer,
                    in nats: still moves where both rates are at the floor
    seeds           one difference a training seed, t test
    welch           the study's pre-registered one-sided Welch test over seeds with a margin of .15:
                    is the first rate larger than the second by more than that?

    `p_equivalent` is TOST: small where the difference is within +- `margin`. q is
    Benjamini-Hochberg within `families`.
    """
    by_chain = dict(tuple(scored.groupby("chain", sort=False)))
    rows: list[dict[str, Any]] = []
    for case in comparisons(design, contrasts):
        after, before = (_take(by_chain, c, case.source) for c in (case.after, case.before))
        if after is None or before is None:
            continue
        key = {
            "condition": case.condition,
            "reference": case.reference,
            "source": case.source,
            "seed": case.seed,
        }
        rows.append(key | _fisher(after, before, margin))
        for values, name in (("hit", "questions"), ("marker_logprob", "logprob")):
            result = question_test(after, before, values, margin, draws, seed)
            if result is not None:
                rows.append(key | {"test": name} | result)
        if not case.whole:
            continue
        rows.append(key | {"test": "gee"} | gee(after, before))
        rows.append(key | {"test": "gee_length"} | gee(after, before, covariate="n_tokens"))
        rows += [key | result for result in _seeds(after, before, margin)]
    table = pd.DataFrame(rows, columns=TEST_COLUMNS)
    return adjust(table, families).reindex(columns=TEST_COLUMNS)


def _take(
    by_chain: Mapping[str, pd.DataFrame], chains: Sequence[str], persona: str
) -> pd.DataFrame | None:
    """A persona's completions in some chains; None if a chain does not have them."""
    parts = []
    for chain in chains:
        rows = by_chain.get(chain)
        rows = None if rows is None else rows[rows["persona"] == persona]
        if rows is None or rows.empty:
            return None
        parts.append(rows)
    return pd.concat(parts)


def _fisher(after: pd.DataFrame, before: pd.DataFrame, margin: float) -> dict[str, Any]:
    counts = int(after["hit"].sum()), len(after), int(before["hit"].sum()), len(before)
    p, p_floor = fisher(*counts)
    low, high = newcombe(*counts)
    return {
        "test": "fisher",
        "unit": "completion",
        "scale": "rate difference",
        "estimate": counts[0] / counts[1] - counts[2] / counts[3],
        "ci_low": low,
        "ci_high": high,
        "n": counts[1] + counts[3],
        "p": p,
        "p_floor": p_floor,
        "margin": margin,
        "p_equivalent": tost_proportions(*counts, margin),
        "note": f"{counts[0]}/{counts[1]} after, {counts[2]}/{counts[3]} before",
    }


def question_test(
    after: pd.DataFrame, before: pd.DataFrame, values: str, margin: float, draws: int, seed: int
) -> dict[str, Any] | None:
    """Sign-flip test over questions of the mean of `values` (hit or marker_logprob).

    Where all questions differ by the same amount (all hits before, none after) their spread is 0 and
    Student's interval has no width; Newcombe's with one trial a question is given instead, and the
    equivalence test of two proportions likewise.
    """
    one, two = (t.groupby("question_id")[values].mean().dropna() for t in (after, before))
    one, two = one.align(two, join="inner")
    n = len(one)
    if n < 2:
        return None
    d = (one - two).to_numpy(float)
    p, p_floor = sign_flip_units(d, draws, seed)
    low, high = student_interval(d)
    equivalent, note = tost_units(d, margin), ""
    if values == "hit":
        if np.ptp(d) == 0:
            counts = round(float(one.sum())), n, round(float(two.sum())), n
            low, high = newcombe(*counts)
            equivalent = tost_proportions(*counts, margin)
            note = "no spread over questions: one trial a question instead"
        low, high = max(low, -1.0), min(high, 1.0)
    return {
        "unit": "question",
        "scale": "rate difference" if values == "hit" else "nats",
        "estimate": d.mean(),
        "ci_low": low,
        "ci_high": high,
        "n": n,
        "p": p,
        "p_floor": p_floor,
        "margin": margin if values == "hit" else np.nan,
        "p_equivalent": equivalent if values == "hit" else np.nan,
        "note": note,
    }


def gee(after: pd.DataFrame, before: pd.DataFrame, covariate: str | None = None) -> dict[str, Any]:
    """Log odds ratio of a hit by statsmodels' GEE with question clusters; see `marker_tests`.

    p from a t distribution with as many degrees of freedom as questions less coefficients: normal
    quantiles are too sure with a dozen clusters. `covariate` enters as its logarithm.
    """
    import statsmodels.api as sm

    data = pd.concat([after.assign(after=1.0), before.assign(after=0.0)])
    out = {"unit": "question", "scale": "log odds ratio", "n": data["question_id"].nunique()}
    shares = data.groupby("after")["hit"].mean()
    if shares.isin([0.0, 1.0]).any():
        return out | {"note": "a rate of 0 or 1: no finite odds ratio"}
    design = pd.DataFrame({"intercept": 1.0, "after": data["after"]})
    if covariate:
        logs = np.log(data[covariate].clip(lower=1).astype(float))
        if np.ptp(logs) == 0:
            return out | {"note": f"{covariate} does not vary"}
        design[covariate] = logs - logs.mean()
    degrees = out["n"] - design.shape[1]
    if degrees < 1:
        return out | {"note": "too few questions"}
    groups = data["question_id"].astype("category").cat.codes.to_numpy()
    order = np.argsort(groups, kind="stable")
    model = sm.GEE(
        data["hit"].to_numpy(float)[order],
        design.to_numpy()[order],
        groups=groups[order],
        family=sm.families.Binomial(),
        cov_struct=sm.cov_struct.Exchangeable(),
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fit = model.fit(cov_type="bias_reduced")
            estimate, error = float(fit.params[1]), float(fit.bse[1])
    except (Warning, np.linalg.LinAlgError, ValueError, FloatingPointError) as problem:
        return out | {"note": f"did not converge ({str(problem).splitlines()[0][:80]})"}
    if not np.isfinite(error) or error <= 0:
        return out | {"note": "no standard error"}
    half = stats.t.ppf(0.975, degrees) * error
    return out | {
        "estimate": estimate,
        "ci_low": estimate - half,
        "ci_high": estimate + half,
        "p": float(2 * stats.t.sf(abs(estimate / error), degrees)),
        "note": f"adjusted for log {covariate}" if covariate else "",
    }


def _seeds(after: pd.DataFrame, before: pd.DataFrame, margin: float) -> Iterator[dict[str, Any]]:
    """Tests with training runs as units; nothing with fewer than two of them."""
    one, two = (t.groupby("chain", sort=False)["hit"].mean().to_numpy() for t in (after, before))
    if len(one) < 2:
        return
    common = {"unit": "seed", "scale": "rate difference", "n": len(one)}
    if len(two) in (1, len(one)):
        d = one - two
        low, high = student_interval(d)
        p = float(stats.ttest_1samp(d, 0).pvalue) if np.ptp(d) > 0 else np.nan
        yield common | {
            "test": "seeds",
            "estimate": d.mean(),
            "ci_low": max(-1.0, low),
            "ci_high": min(1.0, high),
            "p": p,
            "margin": margin,
            "p_equivalent": tost_units(d, margin),
            "note": "no spread over seeds" if np.isnan(p) else "",
        }
    if len(two) > 1:
        verdict = welch_conjunction(one, [two])
        note = (
            "" if verdict["informative"] else "first rate below .5: uninformative by its own rule"
        )
        yield common | {
            "test": "welch",
            "estimate": one.mean() - two.mean(),
            "p": verdict["p"],
            "margin": 0.15,
            "note": note,
        }
