"""False-positive rate of each test, and coverage of each interval, on simulated data.

Data are simulated without an effect, with this run's sizes (personas, questions, samples), and every
test is applied to them as to the real data. A test at level .05 should reject in .05 of the data sets.
`WORLDS` describes the simulated worlds. Their noise levels are round numbers of the size seen in the
study's replicates, not fitted to this run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from .. import geometry as geo
from ..statistics import (
    clopper_pearson,
    fisher,
    newcombe,
    range_permutation_test,
    sign_flip_test,
    sign_flip_units,
    spearman_exact,
    student_interval,
    tost_units,
    welch_margin,
)
from .marker_tests import odds_ratio
from .shared_axis import anchored, held_out_cosines

COLUMNS = [
    "kind", "arm", "name", "as_study", "world", "runs", "level", "rate", "rate_low", "rate_high",
    "rate_at_01", "verdict", "note",
]  # fmt: skip

WORLDS = {
    "personas drift": "each persona's vector is measured twice, with new noise of its own each time",
    "model drifts": "in addition, each of the two models moves all personas together along one direction",
    "questions differ": "rates differ from question to question; both chains share them",
    "runs differ": "in addition, each training run has its own level (SD .03 to .04 on the rate)",
    "nothing moves": "rates are equal and completions independent",
    "at the margin": "the true difference is the equivalence margin itself",
    "unrelated shift": "the chain moves all personas along a direction of its own",
    "own shift": "the anchor chain against its own axis; all personas moved by the same vector",
}


@dataclass(frozen=True)
class Sizes:
    """Sizes of the simulated run."""

    personas: int
    questions: int
    samples: int
    extraction: int
    margin: float
    hidden: int = 64


def simulate(sizes: Sizes, *, runs: int, draws: int, seed: int) -> pd.DataFrame:
    """False-positive rate of each test and coverage of each interval; one row each.

    kind `test`: `rate` is the share of `runs` null data sets with p < .05 (`rate_at_01`: < .01); it
    should be at most .05. kind `interval`: `rate` is the share of 95 % intervals that contain the true
    value; it should be at least .95. `arm`: geometry or behaviour. The bounds of the rate are
    Clopper-Pearson's; the verdict compares them with the level. `draws`: draws per permutation test.
    """
    rows: list[dict[str, Any]] = []
    worlds = (
        ("geometry", _geometry),
        ("behaviour", _rates),
        ("behaviour", _ranks),
        ("geometry", _axes),
    )
    for number, (arm, world) in enumerate(worlds):
        rng = np.random.default_rng([seed, number])
        results: dict[tuple[str, str, str, bool, str], list[float]] = {}
        for _ in range(runs):
            for key, value in world(sizes, draws, rng):
                results.setdefault(key, []).append(value)
        for (kind, name, where, as_study, note), values in results.items():
            summary = _summary(kind, name, where, as_study, note, np.asarray(values))
            rows.append({"arm": arm} | summary)
    return pd.DataFrame(rows, columns=COLUMNS)


Found = tuple[tuple[str, str, str, bool, str], float]


def _summary(
    kind: str, name: str, world: str, as_study: bool, note: str, values: np.ndarray
) -> dict[str, Any]:
    known = values[~np.isnan(values)]
    row = {
        "kind": kind,
        "name": name,
        "as_study": as_study,
        "world": world,
        "runs": len(known),
        "level": 0.05 if kind == "test" else 0.95,
        "note": note,
    }
    if not len(known):
        return row | {"verdict": "never applicable"}
    events = known < 0.05 if kind == "test" else known > 0.5
    low, high = (float(bound) for bound in clopper_pearson(events.sum(), len(known)))
    if kind == "test":
        verdict = "too many" if low > 0.05 else "conservative" if high < 0.05 else "as it should be"
    else:
        verdict = "too narrow" if high < 0.95 else "wide" if low > 0.95 else "as it should be"
    return row | {
        "rate": float(events.mean()),
        "rate_low": low,
        "rate_high": high,
        "rate_at_01": float((known < 0.01).mean()) if kind == "test" else np.nan,
        "verdict": verdict,
    }


def _geometry(sizes: Sizes, draws: int, rng: np.random.Generator) -> Iterator[Found]:
    """M1 before and after: tests of a change, and intervals of the level."""
    n, q, hidden = sizes.personas, sizes.extraction, sizes.hidden
    common = 2.0 * rng.normal(size=hidden)
    truth = common + rng.normal(size=(n, hidden))
    for world, drift in (("personas drift", 0.0), ("model drifts", 0.5)):
        one, two = (
            truth + 0.5 * rng.normal(size=(n, hidden)) + drift * rng.normal(size=hidden)
            for _ in range(2)
        )
        pairs = geo.pair_cosines(one) - geo.pair_cosines(two)
        key = "test", "sign flips over persona pairs (M1)", world, True, WORLDS[world]
        yield key, sign_flip_test(pairs, None, draws, int(rng.integers(2**31)))
        if n > 2:
            effects = geo.persona_effects(one, two)
            p, _ = sign_flip_units(effects, draws, int(rng.integers(2**31)))
            yield ("test", "sign flips over persona effects (M1)", world, False, WORLDS[world]), p
            if world == "personas drift":
                # The true mean is 0; shift it to a margin of .02.
                key = "test", "TOST over persona effects (M1)", "at the margin", False, ""
                yield key, tost_units(effects + 0.02, 0.02)
        p, _ = geo.swap_test(one, two, draws, int(rng.integers(2**31)))
        yield ("test", "persona-label swap (M1)", world, False, WORLDS[world]), p
    stack = truth[:, None] + rng.normal(size=(q, hidden)) + 1.0 * rng.normal(size=(n, q, hidden))
    true = geo.mean_offdiagonal_cosine(truth)
    if q > 1:
        cosines = geo.resampled_cosines(stack, 200, int(rng.integers(2**31)))
        estimate = geo.mean_offdiagonal_cosine(stack.mean(axis=1))
        where = "questions vary", "personas fixed"
        for name, (low, high) in {
            "percentile bootstrap over questions (M1)": geo.percentiles(geo.mean_pairs(cosines)),
            "basic bootstrap over questions (M1)": geo.basic_interval(
                estimate, geo.mean_pairs(cosines)
            ),
        }.items():
            yield ("interval", name, where[0], False, where[1]), float(low <= true <= high)
    pairs = geo.pair_cosines(truth)
    picks = rng.integers(0, len(pairs), (200, len(pairs)))
    low, high = geo.percentiles(pairs[picks].mean(axis=1))
    # Personas are drawn from a population of directions around a common direction.
    population = float(np.dot(common, common) / (np.dot(common, common) + hidden))
    new = "personas are redrawn", "M1 of the population of personas"
    key = "interval", "percentile bootstrap over pairs (M1)", new[0], True, new[1]
    yield key, float(low <= population <= high)
    if n > 2:
        low, high = geo.jackknife_interval(geo.persona_effects(truth))
        key = "interval", "jackknife over personas (M1)", new[0], False, new[1]
        yield key, float(low <= population <= high)


def _rates(sizes: Sizes, draws: int, rng: np.random.Generator) -> Iterator[Found]:
    """Marker rates of two chains on the same questions."""
    q, m = sizes.questions, sizes.samples
    seeds = 3
    by_question = rng.beta(1.5, 1.5, q)
    flat = np.full(q, 0.3)
    for world, rate, run in (
        ("nothing moves", flat, 0.0),
        ("questions differ", by_question, 0.0),
        ("runs differ", by_question, 0.15),
    ):
        # Effects of the run and of run x question, on the logit scale: .15 there is .04 at a rate of
        # one half.
        def hits(rate: np.ndarray = rate, run: float = run) -> np.ndarray:
            logit = np.log(rate / (1 - rate)) + run * rng.normal() + 2 * run * rng.normal(size=q)
            return rng.binomial(m, 1 / (1 + np.exp(-logit)))

        one, two = hits(), hits()
        p, _ = fisher(int(one.sum()), m * q, int(two.sum()), m * q)
        yield ("test", "Fisher on completions", world, True, WORLDS[world]), p
        d = (one - two) / m
        p, _ = sign_flip_units(d, draws, int(rng.integers(2**31)))
        yield ("test", "sign flips over questions", world, False, WORLDS[world]), p
        if world != "nothing moves":
            p = odds_ratio(_as_completions(one, m), _as_completions(two, m)).get("p", np.nan)
            yield ("test", "Firth, question clusters", world, False, WORLDS[world]), float(p)
        many = np.stack([[hits().mean() / m for _ in range(seeds)] for _ in range(2)])
        key = "test", "Welch over 3 seeds, margin 0", world, False, WORLDS[world]
        yield key, welch_margin(many[0], many[1], 0.0)
        shift = np.clip(rate + sizes.margin, 0.001, 0.999)
        if world == "nothing moves":
            moved = rng.binomial(m, shift)
            yield (
                ("test", "TOST over questions", "at the margin", False, ""),
                tost_units((moved - one) / m, sizes.margin),
            )
        low, high = (float(b) for b in clopper_pearson(one.sum(), m * q))
        # The target is the rate over questions like these, by design .3 or one half.
        true = 0.3 if world == "nothing moves" else 0.5
        if world != "runs differ":
            key = "interval", "Clopper-Pearson on completions", world, True, WORLDS[world]
            yield key, float(low <= true <= high)
            low, high = student_interval(one / m)
            key = "interval", "Student over questions", world, False, WORLDS[world]
            yield key, _covers(low, true, high)
        low, high = newcombe(int(one.sum()), m * q, int(two.sum()), m * q)
        key = "interval", "Newcombe on completions (difference)", world, False, WORLDS[world]
        yield key, float(low <= 0 <= high)
        low, high = student_interval(d)
        key = "interval", "Student over questions (difference)", world, False, WORLDS[world]
        yield key, _covers(low, 0.0, high)


def _covers(low: float, true: float, high: float) -> float:
    """1 if an interval holds the true value, else 0; NaN without an interval (of one question)."""
    return float(low <= true <= high) if np.isfinite(low + high) else np.nan


def _as_completions(hits: np.ndarray, samples: int) -> pd.DataFrame:
    """Counts by question, expanded to one row per completion."""
    hit = (np.arange(samples) < hits[:, None]).ravel()
    return pd.DataFrame({"question_id": np.repeat(np.arange(len(hits)), samples), "hit": hit})


def _ranks(sizes: Sizes, draws: int, rng: np.random.Generator) -> Iterator[Found]:
    """H2 and H3: five conditions, one training run each, ten bystanders."""
    conditions, personas = 5, max(3, sizes.personas - 2)
    persona = rng.normal(0.5, 0.05, personas)
    for world, run in (("nothing moves", 0.0), ("runs differ", 0.03)):
        means = persona + run * rng.normal(size=(conditions, 1))
        values = rng.normal(means, 0.03)
        labels = np.repeat(np.arange(conditions), personas)
        _, p = range_permutation_test(values.ravel(), list(labels), 999, int(rng.integers(2**31)))
        yield ("test", "range of means, labels permuted (H2)", world, True, WORLDS[world]), p
        averages, distance = values.mean(axis=1), np.arange(conditions, dtype=float)
        key = "test", "Spearman, five points, t approximation (H3)", world, True, ""
        yield key, float(stats.spearmanr(distance, averages).pvalue)
        _, p = spearman_exact(distance, averages)
        yield ("test", "Spearman, five points, exact (H3)", world, False, ""), p


def _axes(sizes: Sizes, draws: int, rng: np.random.Generator) -> Iterator[Found]:
    """M2: a chain whose shift is unrelated to the anchor's, and the anchor itself."""
    n, hidden = max(4, sizes.personas), sizes.hidden
    before = 2.0 * rng.normal(size=hidden) + rng.normal(size=(n, hidden))

    def shift() -> np.ndarray:
        out: np.ndarray = 1.5 * rng.normal(size=hidden) + 0.5 * rng.normal(size=(n, hidden))
        return out

    anchor = shift()
    axis = anchor[0]
    for world, moved in (("own shift", anchor), ("unrelated shift", shift())):
        _, p = anchored(before[1:] + moved[1:], before[1:], axis, 999, int(rng.integers(2**31)))
        yield ("test", "anchored axis, raw vectors (M2)", world, True, WORLDS[world]), p
        if world == "unrelated shift":
            cosines = held_out_cosines(moved, anchor)
            p, _ = sign_flip_units(cosines, draws, int(rng.integers(2**31)))
            yield (
                ("test", "held-out axis, sign flips (M2, not used)", world, False, WORLDS[world]),
                p,
            )
