"""Tests on marker rates: as in the study, and with questions, seeds and personas as units.

Completions of one question resemble each other, and every chain answers the same questions. So the
difference between two chains is a set of per-question differences: about a dozen independent numbers,
not hundreds. Fisher's test on completions is included because the study used it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ..chains import root, untrained
from ..statistics import (
    Families,
    OverRuns,
    adjust,
    compare_runs,
    firth,
    fisher,
    newcombe,
    over_runs,
    sign_flip_interval,
    sign_flip_units,
    student_interval,
    tost_proportions,
    tost_units,
    welch_conjunction,
)

TEST_COLUMNS = [
    "condition", "reference", "source", "seed", "test", "unit", "scale", "estimate", "ci_low", "ci_high",
    "n", "p", "p_floor", "q", "family", "margin", "p_equivalent", "note", "asks", "pool", "chains",
    "reference_chains",
]  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One persona's completions in two sets of chains.

    `seed` is empty if chains are pooled; `whole`: no larger pool of the same comparison exists. `asks`:
    `install` if the last stage teaches the marker, `erase` if a stage follows the coupling, `null` if
    no stage taught the marker (so nothing can happen by design), `contrast` between conditions.
    """

    condition: str
    reference: str
    source: str
    seed: str
    after: tuple[str, ...]
    before: tuple[str, ...]
    whole: bool = True
    asks: str = "contrast"


def comparisons(design: pd.DataFrame, contrasts: Sequence[Sequence[str]]) -> Iterator[Comparison]:
    """The comparisons: each chain with the chain that it continues, the same with the chains of a
    condition pooled, and the pairs of conditions in `contrasts`.
    """
    names = design.drop_duplicates("chain").set_index("chain")["condition"]
    cells = design[(design["source"] != "") & (design["chain"] != design["before"])]
    for (condition, source), group in cells.groupby(["condition", "source"], sort=False):
        after = group["stages_after_coupling"].astype(float)
        asks = "install" if (after == 0).any() else "erase" if (after > 0).any() else "null"
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
                asks=asks,
            )
        if len(group) > 1:
            yield Comparison(
                str(condition),
                reference,
                str(source),
                "",
                tuple(group["chain"]),
                befores,
                asks=asks,
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

    `scored`: output of `markers.answers` for all chains. Tests (column `test`), each with its unit and
    the smallest p that it can give:

    fisher          as in the study, with independent completions; Newcombe's interval of the difference
    questions       sign flips of the per-question differences; Student interval over questions
    firth           penalised logistic regression with question clusters: the log odds ratio, finite at
                    rates of 0 and 1 too; see `statistics.firth`
    firth_length    the same with the log of the answer's tokens as a covariate
    logprob         per-question differences in the marker's log-probability at the end of the answer,
                    in nats: still moves where both rates are at the floor; the interval holds the
                    values that the sign flips do not reject
    seeds           training runs as units, each side's spread in the interval; see
                    `statistics.compare_runs`. Runs that start from one adapter are one unit
    welch           the study's pre-registered one-sided Welch test over runs with a margin of .15:
                    is the first rate larger than the second by more than that?

    `asks` and `pool` (whole: all runs of the comparison; part: one of several) keep families apart.
    `p_equivalent` is TOST: small if the difference is within +- `margin`. q is
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
            "asks": case.asks,
            "pool": "whole" if case.whole else "part",
            "chains": " ".join(sorted(case.after)),
            "reference_chains": " ".join(sorted(case.before)),
        }
        rows.append(key | _fisher(after, before, margin))
        for values, name in (("hit", "questions"), ("marker_logprob", "logprob")):
            result = question_test(after, before, values, margin, draws, seed)
            if result is not None:
                rows.append(key | {"test": name} | result)
        if not case.whole:
            continue
        rows.append(key | {"test": "firth"} | odds_ratio(after, before))
        rows.append(key | {"test": "firth_length"} | odds_ratio(after, before, "n_tokens"))
        rows += [key | result for result in _seeds(after, before, margin)]
    table = pd.DataFrame(rows, columns=TEST_COLUMNS)
    labels = ("condition", "reference", "seed")
    return adjust(table, families, labels).reindex(columns=TEST_COLUMNS)


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
    """Sign-flip test over questions for the mean of `values` (hit or marker_logprob).

    If all questions differ by the same amount (all hits before, none after), their spread is 0 and
    Student's interval has no width. Then Newcombe's interval with one trial per question is given
    instead, with the equivalence test of two proportions.
    """
    one, two = (t.groupby("question_id")[values].mean().dropna() for t in (after, before))
    one, two = one.align(two, join="inner")
    n = len(one)
    if n < 2:
        return None
    d = (one - two).to_numpy(float)
    p, p_floor = sign_flip_units(d, draws, seed)
    equivalent, note = tost_units(d, margin), ""
    if values == "marker_logprob":
        low, high = sign_flip_interval(d, draws, seed)
        note = "" if np.isfinite(low) else "too few questions for an interval"
    else:
        low, high = student_interval(d)
        if np.ptp(d) == 0:
            counts = round(float(one.sum())), n, round(float(two.sum())), n
            low, high = newcombe(*counts)
            equivalent = tost_proportions(*counts, margin)
            note = "no spread over questions: one trial per question instead"
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


def odds_ratio(
    after: pd.DataFrame, before: pd.DataFrame, covariate: str | None = None
) -> dict[str, Any]:
    """Log odds ratio of a hit by Firth's regression with question clusters; see `statistics.firth`.

    p comes from a t distribution whose degrees of freedom are questions minus coefficients, because
    normal quantiles are overconfident with a dozen clusters. `covariate` enters as its logarithm.
    """
    data = pd.concat([after.assign(after=1.0), before.assign(after=0.0)])
    out = {"unit": "question", "scale": "log odds ratio", "n": data["question_id"].nunique()}
    columns = [np.ones(len(data)), data["after"].to_numpy()]
    if covariate:
        logs = np.log(data[covariate].clip(lower=1).to_numpy(float))
        if np.ptp(logs) == 0:
            return out | {"note": f"{covariate} does not vary"}
        columns.append(logs - logs.mean())
    degrees = out["n"] - len(columns)
    if degrees < 1:
        return out | {"note": "too few questions"}
    fit = firth(
        np.column_stack(columns), data["hit"].to_numpy(float), data["question_id"].to_numpy()
    )
    if fit is None:
        return out | {"note": "did not converge"}
    estimate, error = float(fit[0][1]), float(fit[1][1])
    half = stats.t.ppf(0.975, degrees) * error
    return out | {
        "estimate": estimate,
        "ci_low": estimate - half,
        "ci_high": estimate + half,
        "p": float(2 * stats.t.sf(abs(estimate / error), degrees)),
        "note": f"adjusted for log {covariate}" if covariate else "",
    }


def _seeds(after: pd.DataFrame, before: pd.DataFrame, margin: float) -> Iterator[dict[str, Any]]:
    """Tests with training runs as units; none if both sides have one run."""
    one, two = (t.groupby("chain")["hit"].mean().rename(index=root) for t in (after, before))
    if max(len(one), len(two)) < 2:
        return
    questions = [t.groupby("question_id")["hit"].mean() for t in (after, before)]
    apart = (questions[0] - questions[1]).dropna()
    within = float(apart.sem()) if len(apart) > 1 else 0.0

    def compared(shift: float) -> OverRuns:
        # A base model is fixed: it has no variation between runs.
        if all(map(untrained, two.index)):
            return over_runs(one - shift - two.mean(), list(one.index), within, len(apart))
        return compare_runs(one - shift, two, within, len(apart))

    found = compared(0.0)
    side = np.sign(found.estimate) or 1.0
    beyond = compared(side * margin).p / 2
    yield {
        "test": "seeds",
        "unit": "training run",
        "scale": "rate difference",
        "n": found.units,
        "estimate": found.estimate,
        "ci_low": float(np.clip(found.low, -1, 1)),
        "ci_high": float(np.clip(found.high, -1, 1)),
        "p": found.p,
        "margin": margin,
        "p_equivalent": beyond if abs(found.estimate) < margin else 1 - beyond,
        "note": ""
        if np.isfinite(found.p)
        else "one independent training run on a side"
        if found.units < 2
        else "no spread over runs or questions",
    }
    rates = [side.groupby(level=0).mean() for side in (one, two)]
    if min(map(len, rates)) > 1:
        verdict = welch_conjunction(rates[0], [rates[1]])
        note = (
            "" if verdict["informative"] else "first rate below .5: uninformative by its own rule"
        )
        yield {
            "test": "welch",
            "unit": "training run",
            "scale": "rate difference",
            "n": min(map(len, rates)),
            "estimate": rates[0].mean() - rates[1].mean(),
            "p": verdict["p"],
            "margin": 0.15,
            "note": "; ".join(filter(None, ["one-sided", note])),
        }
