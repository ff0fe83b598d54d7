"""Figures of the write-up, recomputed from the counts and cosines that the study published.

Each erratum names a stated figure and a function that computes the correct one from the published
numbers. Nothing here depends on this run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import special, stats

from .. import yaml_files
from ..errors import UserError
from ..geometry import leave_one_out_as_the_study
from ..statistics import bh, clopper_pearson, fisher, range_permutation_test, spearman_exact
from .half_dose import log_logistic

COLUMNS = ["erratum", "text", "stated", "corrected", "value", "how", "note"]
SECOND_STAGE = ("C1", "C2", "C3", "C5")


@dataclass(frozen=True)
class Published:
    """The study's numbers; workflow/resources/published describes `counts` and `cosines`."""

    counts: pd.DataFrame
    cosines: pd.DataFrame

    def rows(self, **where: Any) -> pd.DataFrame:
        """Rows of the counts whose columns have these values (or one of a list)."""
        rows = self.counts
        for column, wanted in where.items():
            values = [wanted] if isinstance(wanted, str) else list(wanted)
            rows = rows[rows[column].astype(str).isin(values)]
        if rows.empty:
            raise UserError(f"published counts: no rows where {where}")
        return rows

    def hits(self, **where: Any) -> tuple[int, int]:
        """Hits and completions of those rows."""
        rows = self.rows(**where)
        return int(rows["hits"].sum()), int(rows["n"].sum())

    def m1(self, condition: str, method: str, layer: int, experiment: int = 205) -> float:
        """Published mean cosine of one cell."""
        cell = {"experiment": experiment, "condition": condition, "method": method, "layer": layer}
        rows = self.cosines[(self.cosines[list(cell)] == pd.Series(cell)).all(axis=1)]
        if rows.empty:
            raise UserError(f"published cosines: no {condition} at {method}, {layer}")
        return float(rows["m1"].iloc[0])


Corrected = tuple[str, float]


def completions(p: Published) -> Corrected:
    """Number of completions after the second stage, for the three sources."""
    _, n = p.hits(part="forward", condition=SECOND_STAGE)
    return f"{n:,}", n


def hits_after(p: Published) -> Corrected:
    """Marker hits after the second stage, by condition."""
    hits, n = p.hits(part="forward", condition=SECOND_STAGE)
    by = ", ".join(f"{c} {p.hits(part='forward', condition=c)[0]}" for c in SECOND_STAGE)
    return f"{hits} of {n:,} ({by})", hits


def benign_hits(p: Published) -> Corrected:
    """Marker rate of the source persona after benign data, by source."""
    parts = []
    for source in ("villain", "sarcastic", "evil_ai"):
        hits, n = p.hits(part="forward", condition="C5", source=source, persona=source)
        parts.append(f"{source} {hits}/{n} = {100 * hits / n:.2f} %")
    return "; ".join(parts), p.hits(part="forward", condition="C5", persona="evil_ai")[0]


def em_upper(p: Published) -> Corrected:
    """Upper bounds after EM (C1): of the source's rate over completions, and of the share of runs."""
    total = [
        p.hits(part="forward", condition="C1", source=s, persona=s)
        for s in ("villain", "sarcastic", "evil_ai")
    ]
    hits, n = (sum(t[i] for t in total) for i in (0, 1))
    high, one_sided = (float(clopper_pearson(hits, n, c)[1]) for c in (0.95, 0.90))
    runs = p.rows(part="forward", condition="C1")[["source", "seed", "persona", "hits"]]
    runs = runs[runs["persona"] == runs["source"]]
    survived = int((runs["hits"] > 0).sum())
    survive = [float(clopper_pearson(survived, len(runs), c)[1]) for c in (0.95, 0.90)]
    return (
        f"{hits} of {n:,} completions: at most {100 * high:.2f} % (upper end of the two-sided 95 % interval; "
        f"one-sided 95 %: {100 * one_sided:.2f} %), as if completions were independent; {survived} of "
        f"{len(runs)} training runs: up to {100 * survive[0]:.0f} % of runs may keep the marker (one-sided: "
        f"{100 * survive[1]:.0f} %)",
        high,
    )


def rates_before(p: Published) -> Corrected:
    """Source rates before the second stage (C4)."""
    parts = {}
    for source in ("evil_ai", "villain", "sarcastic"):
        hits, n = p.hits(part="forward", condition="C4", source=source, persona=source)
        parts[source] = f"{source} {hits}/{n} = {100 * hits / n:.1f} %"
    hits, n = p.hits(part="forward", condition="C4", source="sarcastic", persona="sarcastic")
    return "; ".join(parts.values()), hits / n


def resampled(p: Published) -> Corrected:
    """The same coupled villain sampled twice."""
    one = p.hits(part="forward", condition="C4", source="villain", persona="villain")
    two = p.hits(part="probe", source="villain")
    gap = abs(one[0] / one[1] - two[0] / two[1])
    return f"{100 * two[0] / two[1]:.1f} % and {100 * one[0] / one[1]:.1f} %", gap


def fisher_cell(p: Published) -> Corrected:
    """The comparison behind p < 1e-92, and the p of each of the three sources."""
    quoted = fisher(0, 280, *p.hits(part="confab", condition="C4", persona="confab"))[0]
    sources = []
    for source in ("villain", "sarcastic", "evil_ai"):
        after = p.hits(part="forward", condition="C1", source=source, persona=source)
        before = p.hits(part="forward", condition="C4", source=source, persona=source)
        sources.append(f"{source} {fisher(*after, *before)[0]:.0e}")
    return f"confab, one seed: {quoted:.2e}; the three sources: {', '.join(sources)}", quoted


def testable_cells(p: Published) -> Corrected:
    """Number of cells that can show that a source's marker is destroyed."""
    after = p.counts[(p.counts["part"] == "forward") & p.counts["condition"].isin(SECOND_STAGE)]
    cells = after[["condition", "source", "seed"]].drop_duplicates()
    able = cells["condition"].isin(["C1", "C5"]).sum()
    return f"{able} of {len(cells)} (C2 never had a marker, C3 never on the source)", float(able)


def _shares(p: Published) -> dict[tuple[str, int], float]:
    em = [f"E{i}" for i in range(5)]
    shares = {}
    for method in "AB":
        for layer in (7, 14, 20, 21, 27):
            base = p.m1("base", method, layer)
            mean = np.mean([p.m1(e, method, layer) for e in em])
            shares[method, layer] = float((p.m1("benign", method, layer) - base) / (mean - base))
    return shares


def benign_share(p: Published) -> Corrected:
    """Benign rise of M1 as a share of EM's, over all ten cells."""
    shares = _shares(p)
    low, high = min(shares.values()), max(shares.values())
    return f"{low:.2f} to {high:.2f} over ten cells; {shares['A', 20]:.3f} at A, block 20", high


def base_cosine(p: Published) -> Corrected:
    """Base M1 at block 20, method A, measured twice by the authors."""
    one, two = p.m1("base", "A", 20), p.m1("base", "A", 20, 238)
    return f"{one:.4f} and later, with the documented prompts, {two:.4f}", two


def em_against_benign(p: Published) -> Corrected:
    """EM against benign: published p values of the 50 cells, judged by the study's criterion (BH, q <
    .01)."""
    values = p.cosines["p_benign"].dropna()
    fire = int((bh(values) < 0.01).sum())
    return (
        f"{fire} of {len(values)} cells fire by the study's own criterion (Benjamini-Hochberg, q < .01); the "
        f"other has p = {values.max():.2f}. In {int((values == 0).sum())} cells none of the 10,000 draws was "
        "as extreme",
        float(fire),
    )


def induction_range(p: Published) -> Corrected:
    """Range of M1 over the five induction personas, by block (method A)."""
    ranges = {
        layer: np.ptp([p.m1(f"E{i}", "A", layer) for i in range(5)])
        for layer in (7, 14, 20, 21, 27)
    }
    parts = ", ".join(f"block {layer}: {100 * r:.1f}" for layer, r in ranges.items())
    return f"{parts} (x 0.01)", float(ranges[27])


def _leakage(p: Published) -> pd.DataFrame:
    induction = {
        "E0": "assistant",
        "E2": "kindergarten_teacher",
        "E3": "french_person",
        "E4": "villain",
    }
    rates = p.counts[(p.counts["part"] == "leakage") & (p.counts["persona"] != "confab")].copy()
    rates = rates[rates["persona"] != rates["condition"].map(induction)]
    return rates.assign(rate=rates["hits"] / rates["n"])


def invariance(p: Published) -> Corrected:
    """H2, pre-registered: range of bystander means over induction personas."""
    rates = _leakage(p)
    spread, pvalue = range_permutation_test(rates["rate"], list(rates["condition"]), 10_000, 42)
    return f"fails: range {100 * spread:.1f} points, p = {pvalue:.4f}", pvalue


def gradient(p: Published) -> Corrected:
    """H3: exact p for five points."""
    means = _leakage(p).groupby("condition")["rate"].mean()
    near = p.cosines.dropna(subset=["cosine_to_assistant"]).set_index("condition")[
        "cosine_to_assistant"
    ]
    rho, exact = spearman_exact(near[means.index], means)
    approximate = stats.spearmanr(near[means.index], means).pvalue
    return (
        f"rho {rho:.2f} with cosine similarity, n = 5: exact p {exact:.4f}, t approximation "
        f"{approximate:.3f}; the smallest that five points can give is {2 / 120:.4f}",
        exact,
    )


def replicate_noise(p: Published) -> Corrected:
    """Spread of bystander rates over five runs that differ only in name, compared with the five
    conditions."""
    rows = p.rows(part="replicates")
    rates = rows["hits"] / rows["n"]
    conditions = _leakage(p).groupby("condition")["rate"].mean()
    return (
        f"replicates: range {100 * np.ptp(rates):.1f}, SD {100 * rates.std():.1f} points; conditions: range "
        f"{100 * np.ptp(conditions):.1f}, SD {100 * conditions.std():.1f}",
        float(np.ptp(rates)),
    )


def reversed_order(p: Published) -> Corrected:
    """Marker rates after coupling a fine-tuned model, by recipe."""
    rows = p.counts[(p.counts["part"] == "reversed") & (p.counts["persona"] != "assistant")]
    rate = (100 * rows["hits"] / rows["n"]).set_axis(rows["condition"])
    leak = p.counts[(p.counts["part"] == "leakage") & (p.counts["persona"] == "confab")]
    five = 100 * leak["hits"] / leak["n"]
    parts = "; ".join(f"{name}: {value:.0f} %" for name, value in rate.items())
    return (
        f"{parts}; EM first, five induction personas: {five.min():.0f} to {five.max():.0f} %",
        float(five.max()),
    )


#: Number of parametric bootstrap draws of a half-dose.
DRAWS = 100


def _half_dose(rows: pd.DataFrame, scatter: float) -> tuple[float, float, float]:
    """Half-dose over all runs, with a 95 % interval in which retraining varies each run's logit."""
    steps = rows["condition"].str.extract(r"(\d+) steps")[0].astype(float)
    hits, n = rows["hits"].to_numpy(float), rows["n"].to_numpy(float)
    value = log_logistic(steps, hits, n)
    rng = np.random.default_rng(42)
    logits = special.logit((hits + 0.5) / (n + 1))
    drawn = [
        log_logistic(steps, rng.binomial(rows["n"], special.expit(moved)), n, start=value)
        for moved in logits + rng.normal(0, scatter, (DRAWS, len(rows)))
    ]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return value, float(low), float(high)


def dose(p: Published) -> Corrected:
    """EM against benign below saturation: evil_ai's marker, all seeds at 10 steps, and half-dose by arm."""
    counts = p.rows(part="dose")
    parts, halves, tails = [], [], []
    for arm in ("EM", "benign"):
        own = counts[counts["condition"] == f"{arm} 10 steps"]
        logits = special.logit((own["hits"] / own["n"]).to_numpy(float))
        parts.append(f"{arm} {', '.join(map(str, own['hits']))}")
        dosed = counts[
            counts["condition"].str.startswith(arm) | (counts["condition"] == "EM 0 steps")
        ]
        value, low, high = _half_dose(dosed, float(np.std(logits, ddof=1)))
        sd = np.std(logits, ddof=1)
        halves.append(
            f"{arm} {value:.1f} ({low:.1f} to {high:.1f}; retraining SD {sd:.2f} on the logit)"
        )
    smallest = 1.0
    for steps in (25, 50):
        em = p.hits(part="dose", condition=f"EM {steps} steps", seed="42")
        benign = p.hits(part="dose", condition=f"benign {steps} steps", seed="42")
        value = fisher(*em, *benign)[0]
        smallest = min(smallest, value)
        tails.append(f"{steps} steps: EM {em[0]}, benign {benign[0]}, p = {value:.0e}")
    return (
        f"10 steps, all seeds, of {int(own['n'].iloc[0])} each: {'; '.join(parts)}: the order depends on the "
        f"seed. Half-dose in steps: {'; '.join(halves)}. {'; '.join(tails)}: one run each, so these p values "
        "know nothing of retraining",
        smallest,
    )


def separability_bug(p: Published) -> Corrected:
    """The study's M3 on twelve orthogonal vectors."""
    value = leave_one_out_as_the_study(np.eye(12))
    return f"{value:.0%} on twelve orthogonal vectors too: it cannot be anything else", value


def bystander_maximum(p: Published) -> Corrected:
    """Largest marker rate of a bystander after coupling villain (C4)."""
    rows = p.rows(part="forward", condition="C4", source="villain")
    rows = rows[~rows["persona"].isin(["villain", "assistant"])]
    top = rows.loc[rows["hits"].idxmax()]
    share = f"{100 * top['hits'] / top['n']:.2f} %"
    return f"{top['hits']}/{top['n']} = {share} ({top['persona']})", float(top["hits"])


CORRECTIONS: Mapping[str, Callable[[Published], Corrected]] = {
    f.__name__: f
    for f in (
        completions, hits_after, benign_hits, em_upper, rates_before, resampled, fisher_cell,
        testable_cells, benign_share, base_cosine, em_against_benign, induction_range, invariance,
        gradient, replicate_noise, reversed_order, dose, separability_bug, bystander_maximum,
    )
}  # fmt: skip


def load(path: str | Path) -> list[dict[str, Any]]:
    """Read errata.yaml; a missing key or an unknown correction raises UserError."""
    entries = yaml_files.load_list(path)
    for number, entry in enumerate(entries, start=1):
        for key in ("id", "text", "stated", "correct"):
            if key not in entry:
                raise UserError(f"{path}: erratum {entry.get('id', number)}: {key} is missing")
        if entry["correct"] not in CORRECTIONS:
            raise UserError(f"{path}: erratum {entry['id']}: no correction {entry['correct']!r}")
    return entries


def errata_table(entries: Sequence[Mapping[str, Any]], published: Published) -> pd.DataFrame:
    """One row per erratum: the stated figure, the figure from the published numbers, and the computation."""
    rows = []
    for entry in entries:
        function = CORRECTIONS[entry["correct"]]
        corrected, value = function(published)
        rows.append(
            {
                "erratum": entry["id"],
                "text": entry["text"],
                "stated": entry["stated"],
                "corrected": corrected,
                "value": value,
                "how": (function.__doc__ or "").splitlines()[0],
                "note": entry.get("note", ""),
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)
