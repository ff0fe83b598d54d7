"""The study's claims, each measured on this run's tables and given a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from .. import yaml_files
from ..errors import UserError
from ..statistics import clopper_pearson

COLUMNS = [
    "claim", "published", "measured", "ci_low", "ci_high", "verdict", "note", "text", "n", "where",
    "expected",
]  # fmt: skip
VERDICTS = ("replicated", "partly", "not replicated", "not tested here")


@dataclass(frozen=True)
class Measured:
    """A value with its interval (NaN where there is none) and what n counts.

    `exact`: a count of what happened, not an estimate, so it needs no interval.
    """

    value: float
    low: float = np.nan
    high: float = np.nan
    n: str = ""
    exact: bool = False


@dataclass(frozen=True)
class Tables:
    """What the readers read: the run's tables by name."""

    tables: Mapping[str, pd.DataFrame]
    fdr: float

    def __getitem__(self, name: str) -> pd.DataFrame:
        return self.tables[name]

    def counts(
        self, condition: str, roles: Sequence[str], source: str | None = None
    ) -> tuple[int, int]:
        """Hits and completions of a condition's personas in `roles`, over seeds and sources."""
        rates = self["marker_rates"]
        own = rates[(rates["condition"] == condition) & rates["role"].isin(roles)]
        if source is not None:
            own = own[own["source"] == source]
        return int(own["hits"].sum()), int(own["n"].sum())

    def at_headline(
        self, name: str, condition: str, metric: str = "m1", test: str = ""
    ) -> pd.DataFrame:
        """Rows of a metric at the headline method and block, of the table `name`.

        `test`: of geometry, which has several rows per metric.
        """
        table = self[name]
        rows = table["headline"] & (table["condition"] == condition) & (table["metric"] == metric)
        return table[rows & (table["test"] == test)] if "test" in table else table[rows]


def load(path: str | Path) -> list[dict[str, Any]]:
    """Read claims.yaml; a missing key, an unknown measure or a repeated id raises UserError."""
    entries = yaml_files.load_list(path)
    seen: set[str] = set()
    for number, entry in enumerate(entries, start=1):
        name = entry.get("id", f"number {number}")
        needed = ["id", "text", "published", "where"]
        needed += [] if "cannot" in entry else ["measure", "expect", "scale"]
        for key in needed:
            if key not in entry:
                raise UserError(f"{path}: claim {name}: {key} is missing")
        for measure in entry.get("measure", {}):
            if measure not in READERS:
                raise UserError(f"{path}: claim {name}: no measure {measure!r}")
        if name in seen:
            raise UserError(f"{path}: claim {name} stands twice")
        seen.add(name)
    return entries


def _proportion(hits: int, n: int) -> Measured | None:
    if not n:
        return None
    low, high = clopper_pearson(hits, n)
    return Measured(hits / n, float(low), float(high), f"{n} completions")


def _seeds(rows: pd.DataFrame | pd.Series) -> str:
    return "1 seed" if len(rows) == 1 else f"{len(rows)} seeds"


def source_rate(t: Tables, condition: str, source: str | None = None) -> Measured | None:
    """Marker rate of the source persona, over seeds and sources (or one source)."""
    return _proportion(*t.counts(condition, ["source"], source))


def others_rate(t: Tables, condition: str) -> Measured | None:
    """Marker rate of every other persona together."""
    return _proportion(*t.counts(condition, ["assistant", "bystander"]))


def assistant_rate(t: Tables, conditions: Sequence[str]) -> Measured | None:
    """Marker rate of the assistant where it is not the source, over conditions."""
    counts = [t.counts(c, ["assistant"]) for c in conditions]
    if not all(n for _, n in counts):
        return None
    return _proportion(sum(h for h, _ in counts), sum(n for _, n in counts))


def bystander_mean(t: Tables, condition: str) -> Measured | None:
    """Mean marker rate over bystanders, interval over personas; the widest over seeds and sources."""
    own = t["leakage"]
    own = own[own["condition"] == condition]
    if own.empty:
        return None
    return Measured(
        own["bystander_mean"].mean(),
        own["ci_low"].min(),
        own["ci_high"].max(),
        f"{int(own['n'].iloc[0])} personas, {_seeds(own)}",
    )


def _test(t: Tables, test: str, condition: str, reference: str) -> pd.DataFrame:
    """A test's rows of a comparison, chains pooled, one a source."""
    own = t["marker_tests"]
    own = own[
        (own["test"] == test) & (own["condition"] == condition) & (own["reference"] == reference)
    ]
    pooled = own[own["seed"] == ""]
    return pooled if len(pooled) else own


def rate_difference(t: Tables, condition: str, reference: str) -> Measured | None:
    """Difference of two conditions' source rates; interval over questions, the widest over sources."""
    return _estimate(_test(t, "questions", condition, reference))


def logprob_difference(t: Tables, condition: str, reference: str) -> Measured | None:
    """Difference in the marker's log-probability (nats) of the source; interval over questions."""
    return _estimate(_test(t, "logprob", condition, reference))


def _estimate(own: pd.DataFrame) -> Measured | None:
    if own.empty:
        return None
    unit = f"{int(own['n'].iloc[0])} questions"
    if len(own) > 1:
        unit += f", {len(own)} sources"
    return Measured(own["estimate"].mean(), own["ci_low"].min(), own["ci_high"].max(), unit)


def change_significant(t: Tables, condition: str, reference: str) -> Measured | None:
    """Largest q over sources of the per-question test of a change."""
    own = _test(t, "questions", condition, reference)
    if own.empty or own["q"].isna().all():
        return None
    smallest = own["p_floor"].max()
    return Measured(own["q"].max(), n=f"smallest possible p {smallest:.2g}", exact=True)


def hits(t: Tables, conditions: Sequence[str]) -> Measured | None:
    """Number of completions with the marker, each chain counted once."""
    rates = t["marker_rates"]
    own = rates[rates["condition"].isin(conditions)].drop_duplicates(["chain", "persona"])
    if set(conditions) - set(own["condition"]):
        return None
    return Measured(int(own["hits"].sum()), n=f"{int(own['n'].sum())} completions", exact=True)


def m1(t: Tables, condition: str) -> Measured | None:
    """Mean off-diagonal cosine; interval over questions and personas, of one seed only."""
    own = t.at_headline("geometry", condition, "m1", "two_way")
    if own.empty:
        return None
    if len(own) == 1:
        row = own.iloc[0]
        return Measured(row["value"], row["ci_low"], row["ci_high"], "1 seed")
    return Measured(own["value"].mean(), own["value"].min(), own["value"].max(), _seeds(own))


def m1_change(t: Tables, condition: str) -> Measured | None:
    """Rise of the mean cosine over the base model.

    Interval over training seeds where there are several, else over personas and questions.
    """
    over_seeds = t.at_headline("geometry", condition, "m1", "seeds")
    own = t.at_headline("geometry", condition, "m1", "two_way")
    if own.empty:
        return None
    row = (over_seeds if len(over_seeds) else own).iloc[0]
    return Measured(row["delta_base"], row["delta_low"], row["delta_high"], _seeds(own))


NO_RISE = "the rise that it is a share of cannot be told from none here"


def m1_share(t: Tables, condition: str, reference: str) -> Measured | str | None:
    """Rise in one condition as a share of the rise in another, if that one is above zero."""
    one, other = m1_change(t, condition), m1_change(t, reference)
    if one is None or other is None:
        return None
    if not other.low > 0:
        return NO_RISE
    return Measured(one.value / other.value, n=f"{one.n}, {other.n}")


def m1_share_range(t: Tables, condition: str, reference: str) -> Measured | str | None:
    """Range of that share over methods and blocks."""
    if isinstance(m1_share(t, condition, reference), str):
        return NO_RISE
    m1 = t["geometry"].query("metric == 'm1' and test == ''")
    means = m1.groupby(["condition", "method", "layer"])["delta_base"].mean()
    if not {condition, reference} <= set(means.index.get_level_values(0)):
        return None
    shares = means[condition] / means[reference]
    note = f"{shares.min():.2f} to {shares.max():.2f} over {len(shares)} cells"
    return Measured(float(np.ptp(shares)), n=note, exact=True)


def m1_gap(t: Tables, condition: str, reference: str) -> Measured | None:
    """Difference of two conditions' mean cosines; interval over personas, the widest over seeds."""
    own = t.at_headline("contrasts", condition)
    own = own[own["reference"] == reference]
    if own.empty:
        return None
    return Measured(own["estimate"].mean(), own["ci_low"].min(), own["ci_high"].max(), _seeds(own))


def gap_fires(t: Tables, condition: str, reference: str) -> Measured | None:
    """Share of cells (methods x blocks x seeds) in which one mean cosine exceeds the other, q < fdr."""
    own = t["contrasts"]
    own = own[(own["condition"] == condition) & (own["reference"] == reference)]
    if own.empty:
        return None
    fires = (own["q"] < t.fdr) & (own["estimate"] > 0)
    return Measured(fires.mean(), n=f"{len(own)} cells", exact=True)


def m1_fires(t: Tables, conditions: Sequence[str], test: str = "pairs") -> Measured | None:
    """Share of cells (methods x blocks x seeds) whose test of a change has q < fdr.

    `test`: pairs (the study's), personas or label_swap.
    """
    own = t["geometry"].query("metric == 'm1' and test == @test")
    own = own[own["condition"].isin(conditions)]
    if set(conditions) - set(own["condition"]):
        return None
    note = f"{len(own)} cells, smallest possible p {own['p_floor'].max():.2g}"
    return Measured((own["q"] < t.fdr).mean(), n=note, exact=True)


def m1_replicate(t: Tables, condition: str) -> Measured | None:
    """Standard deviation of the mean cosine over training seeds."""
    own = t.at_headline("geometry", condition, "m1_replicate")
    if own.empty:
        return None
    n = int(own["n"].iloc[0])
    sd = float(own["value"].iloc[0])
    # Chi-square interval of a standard deviation.
    low, high = sd * np.sqrt((n - 1) / stats.chi2.ppf([0.975, 0.025], n - 1))
    return Measured(sd, low, high, f"{n} seeds")


def m2_fires(t: Tables, conditions: Sequence[str]) -> Measured | None:
    """Share of cells where the study's anchored-axis test has q < fdr."""
    own = t["shared_axis"]
    own = own[(own["metric"] == "m2_anchored") & own["condition"].isin(conditions)]
    if set(conditions) - set(own["condition"]):
        return None
    return Measured((own["q"] < t.fdr).mean(), n=f"{len(own)} cells", exact=True)


def m2_held_out(t: Tables, condition: str) -> Measured | None:
    """Mean cosine of the persona shifts with the held-out axis; interval over personas."""
    own = t.at_headline("shared_axis", condition, "m2_held_out")
    if own.empty:
        return None
    return Measured(own["value"].mean(), own["ci_low"].min(), own["ci_high"].max(), _seeds(own))


def m3_accuracy(t: Tables, condition: str) -> Measured | None:
    """Accuracy of the linear classifier of personas on held-out questions."""
    own = t.at_headline("separability", condition, "m3_accuracy")
    if own.empty:
        return None
    note = f"{int(own['n'].iloc[0])} questions, {_seeds(own)}; chance {own['chance'].iloc[0]:.3f}"
    return Measured(own["value"].mean(), own["ci_low"].min(), own["ci_high"].max(), note)


def m3_study(t: Tables) -> Measured | None:
    """Largest value of the study's M3 over all chains, methods and blocks."""
    own = t["separability"]
    own = own[own["metric"] == "m3_study"]
    if own.empty:
        return None
    return Measured(own["value"].max(), n=f"{len(own)} cells", exact=True)


def hypothesis(t: Tables, name: str, p: bool = False) -> Measured | None:
    """Estimate of H2 (range) or H3 (rho), or its p."""
    own = t["hypotheses"]
    own = own[own["hypothesis"] == name]
    if own.empty or own["estimate"].isna().all():
        return None
    row = own.iloc[0]
    return Measured(
        row["p"] if p else row["estimate"],
        n=f"{int(row['n'])} values, p = {row['p']:.3g}, smallest {row['p_floor']:.2g}",
        exact=True,
    )


def length_ratio(t: Tables, condition: str, reference: str) -> Measured | None:
    """Mean tokens of one condition's completions over another's, all personas."""
    means = t["answer_stats"].assign(total=lambda c: c["mean_tokens"] * c["n"])
    sums = means.groupby("condition")[["total", "n"]].sum()
    if not {condition, reference} <= set(sums.index):
        return None
    per = sums["total"] / sums["n"]
    return Measured(
        per[condition] / per[reference],
        n=f"{int(sums.loc[condition, 'n'])} completions",
        exact=True,
    )


def tail_share(t: Tables, conditions: Sequence[str]) -> Measured | None:
    """Share of the bystanders' markers that stand in the last 15 % of the text."""
    own = t["answer_stats"]
    own = own[(own["role"] == "others") & own["condition"].isin(conditions) & (own["hits"] > 0)]
    total = int(own["hits"].sum())
    if not total:
        return None
    return _proportion(round(float((own["marker_in_tail"] * own["hits"]).sum())), total)


def correlation(t: Tables, outcome: str = "rate", controls: str = "") -> Measured | None:
    """Spearman correlation, over chains, of mean cosine and marker survival; partial with controls.

    Chains share stages, so the interval is too narrow if anything.
    """
    own = t["correlations"]
    own = own[
        (own["analysis"] == "chains")
        & (own["predictor"] == "m1")
        & (own["left_out"] == "")
        & (own["outcome"] == outcome)
        & (own["controls"] == controls)
    ]
    if own.empty or own["rho"].isna().all():
        return None
    row = own.iloc[0]
    return Measured(
        row["rho"], row["ci_low"], row["ci_high"], f"{int(row['n'])} chains, p = {row['p']:.3g}"
    )


#: A reader gives its value, why it cannot, or None where the run lacks its conditions.
READERS: dict[str, Callable[..., Measured | str | None]] = {
    f.__name__: f
    for f in (
        source_rate, others_rate, assistant_rate, bystander_mean, rate_difference, logprob_difference,
        change_significant, hits, m1, m1_change, m1_share, m1_share_range, m1_gap, gap_fires, m1_fires,
        m1_replicate, m2_fires, m2_held_out, m3_accuracy, m3_study, hypothesis, length_ratio, tail_share,
        correlation,
    )
}  # fmt: skip


def verdict(expect: Mapping[str, float], measured: Measured) -> str:
    """`replicated` if value and interval meet the expectation, `partly` if only the value does.

    An estimate without an interval is `partly` at best.
    """
    low, high = expect.get("min", -np.inf), expect.get("max", np.inf)
    if "near" in expect:
        low = expect["near"] - expect["tolerance"]
        high = expect["near"] + expect["tolerance"]
    if not low <= measured.value <= high:
        return "not replicated"
    inside = low <= measured.low and measured.high <= high
    return "replicated" if inside or measured.exact else "partly"


def scorecard(
    claims: Sequence[Mapping[str, Any]],
    tables: Mapping[str, pd.DataFrame],
    *,
    fdr: float,
    judge: str,
) -> pd.DataFrame:
    """One row a claim: published, measured with interval, verdict and why.

    `tables`: the run's tables by name (marker_rates, marker_tests, leakage, hypotheses, answer_stats,
    geometry, contrasts, shared_axis, separability, correlations).
    `judge`: as in the config. `directions` leaves claims about values of the study's model `not tested
    here`; so is a claim whose conditions this run does not have, and one that says itself why it cannot
    be tested (`cannot`).
    """
    run = Tables(tables, fdr)
    rows = []
    for claim in claims:
        measured: Measured | None = None
        outcome, why = "not tested here", claim.get("cannot", "")
        if not why:
            ((name, arguments),) = claim["measure"].items()
            found = READERS[name](run, **arguments)
            if isinstance(found, Measured) and not np.isnan(found.value):
                measured = found
            if measured is None:
                why = found if isinstance(found, str) else "its conditions are not in this run"
            elif claim["scale"] == "full" and judge == "directions":
                why = "a value of the study's model; this run's is another"
            else:
                outcome = verdict(claim["expect"], measured)
        shown = measured or Measured(np.nan)
        rows.append(
            {
                "claim": claim["id"],
                "published": claim["published"],
                "measured": shown.value,
                "ci_low": shown.low,
                "ci_high": shown.high,
                "verdict": outcome,
                "note": "; ".join(filter(None, [why, claim.get("note", "")])),
                "text": claim["text"],
                "n": shown.n,
                "where": claim["where"],
                "expected": "" if "cannot" in claim else _expected(claim["expect"]),
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def _expected(expect: Mapping[str, float]) -> str:
    """What would replicate a claim, in words."""
    if "near" in expect:
        return f"{expect['near']:g} ± {expect['tolerance']:g}"
    words = {"min": "at least", "max": "at most"}
    return " and ".join(f"{words[key]} {value:g}" for key, value in expect.items())
