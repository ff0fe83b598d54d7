"""The study's claims, each measured on this run's tables and given a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from .errors import UserError
from .statistics import clopper_pearson
from .tables import headline_cell, newcombe

COLUMNS = ["claim", "published", "measured", "ci_low", "ci_high", "verdict", "note", "text", "n"]
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
    """What the measures read: the run's tables and its headline method and block."""

    rates: pd.DataFrame
    geometry: pd.DataFrame
    method: str
    layer: int
    fdr: float

    def counts(self, condition: str, roles: Sequence[str]) -> tuple[int, int]:
        """Hits and completions of a condition's personas in `roles`, over seeds and sources."""
        own = self.rates[(self.rates["condition"] == condition) & self.rates["role"].isin(roles)]
        return int(own["hits"].sum()), int(own["n"].sum())

    def metric(self, condition: str, metric: str = "m1") -> pd.DataFrame:
        """Rows of a metric at the headline method and block."""
        g = self.geometry
        return g[
            (g["condition"] == condition)
            & (g["metric"] == metric)
            & (g["method"] == self.method)
            & (g["layer"] == self.layer)
        ]


def load(path: str | Path) -> list[dict[str, Any]]:
    """Read claims.yaml; a missing key, an unknown measure or a repeated id raises UserError."""
    entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    seen: set[str] = set()
    for number, entry in enumerate(entries, start=1):
        name = entry.get("id", f"number {number}")
        for key in ("id", "text", "published", "measure", "expect", "scale"):
            if key not in entry:
                raise UserError(f"{path}: claim {name}: {key} is missing")
        (measure,) = entry["measure"]
        if measure not in MEASURES:
            raise UserError(f"{path}: claim {name}: no measure {measure!r}")
        if name in seen:
            raise UserError(f"{path}: claim {name} stands twice")
        seen.add(name)
    return list(entries)


def _proportion(hits: int, n: int) -> Measured | None:
    if not n:
        return None
    low, high = clopper_pearson(hits, n)
    return Measured(hits / n, float(low), float(high), f"{n} completions")


def _seeds(rows: pd.DataFrame | pd.Series) -> str:
    return "1 seed" if len(rows) == 1 else f"{len(rows)} seeds"


def source_rate(t: Tables, condition: str) -> Measured | None:
    """Marker rate of the source persona, over seeds and sources."""
    return _proportion(*t.counts(condition, ["source"]))


def others_rate(t: Tables, condition: str) -> Measured | None:
    """Marker rate of every other persona together."""
    return _proportion(*t.counts(condition, ["assistant", "bystander"]))


def rate_difference(t: Tables, condition: str, reference: str) -> Measured | None:
    """Difference of two conditions' source rates, with Newcombe's interval."""
    (hits, n), (hits_0, n_0) = t.counts(condition, ["source"]), t.counts(reference, ["source"])
    if not n or not n_0:
        return None
    low, high = newcombe(hits, n, hits_0, n_0)
    return Measured(hits / n - hits_0 / n_0, low, high, f"{n} and {n_0} completions")


def hits(t: Tables, conditions: Sequence[str]) -> Measured | None:
    """Number of completions with the marker, each chain counted once."""
    own = t.rates[t.rates["condition"].isin(conditions)].drop_duplicates(["model", "persona"])
    if set(conditions) - set(own["condition"]):
        return None
    return Measured(int(own["hits"].sum()), n=f"{int(own['n'].sum())} completions", exact=True)


def m1(t: Tables, condition: str) -> Measured | None:
    """Mean off-diagonal cosine, mean over seeds; the interval is over questions, of one seed only."""
    own = t.metric(condition)
    if own.empty:
        return None
    one = len(own) == 1
    low, high = (own["ci_low"].iloc[0], own["ci_high"].iloc[0]) if one else (np.nan, np.nan)
    return Measured(own["value"].mean(), low, high, _seeds(own))


def m1_change(t: Tables, condition: str) -> Measured | None:
    """Rise of the mean cosine over the base model.

    The interval is over questions, from the chain's own (the base's is left out); several seeds
    give the range instead.
    """
    own = t.metric(condition)
    if own.empty:
        return None
    change = own["delta_base"]
    if len(own) > 1:
        return Measured(change.mean(), change.min(), change.max(), _seeds(own))
    base = own["value"].iloc[0] - change.iloc[0]
    low, high = own["ci_low"].iloc[0] - base, own["ci_high"].iloc[0] - base
    return Measured(change.iloc[0], low, high, _seeds(own))


def m1_share(t: Tables, condition: str, reference: str) -> Measured | None:
    """Rise in one condition as a share of the rise in another."""
    one, other = m1_change(t, condition), m1_change(t, reference)
    if one is None or other is None or other.value == 0:
        return None
    return Measured(one.value / other.value, n=f"{one.n}, {other.n}")


def m1_gap(t: Tables, condition: str, reference: str) -> Measured | None:
    """Difference of two conditions' mean cosines."""
    one, other = t.metric(condition)["value"], t.metric(reference)["value"]
    if one.empty or other.empty:
        return None
    return Measured(one.mean() - other.mean(), n=f"{_seeds(one)}, {_seeds(other)}")


def m1_fires(t: Tables, conditions: Sequence[str]) -> Measured | None:
    """Share of cells (layers x methods x seeds) where the study's test is significant."""
    own = t.geometry[(t.geometry["metric"] == "m1") & t.geometry["condition"].isin(conditions)]
    if set(conditions) - set(own["condition"]):
        return None
    return Measured((own["q"] < t.fdr).mean(), n=f"{len(own)} cells", exact=True)


def link(t: Tables, conditions: Sequence[str]) -> Measured | None:
    """Spearman correlation, over chains, of mean cosine and source marker rate.

    The interval is Fisher's z with the variance of Bonett and Wright 2000; chains share stages, so
    it is too narrow if anything.
    """
    parts = []
    for condition in conditions:
        source = t.rates[(t.rates["condition"] == condition) & (t.rates["role"] == "source")]
        parts.append(source[["model", "rate"]].merge(t.metric(condition)[["model", "value"]]))
    both = pd.concat(parts).drop_duplicates()
    if len(both) < 4 or both["rate"].nunique() < 2:
        return None
    rho = stats.spearmanr(both["value"], both["rate"]).statistic
    half = stats.norm.ppf(0.975) * np.sqrt((1 + rho**2 / 2) / (len(both) - 3))
    z = np.arctanh(np.clip(rho, -0.9999, 0.9999))
    return Measured(float(rho), np.tanh(z - half), np.tanh(z + half), f"{len(both)} chains")


MEASURES = {
    f.__name__: f
    for f in (
        source_rate, others_rate, rate_difference, hits, m1, m1_change, m1_share, m1_gap, m1_fires, link,
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
    *,
    marker_rates: pd.DataFrame,
    geometry: pd.DataFrame,
    headline: Mapping[str, Any],
    fdr: float,
    scale: str,
) -> pd.DataFrame:
    """One row a claim: published, measured with interval, verdict and why.

    `scale: demo` leaves claims about values of the study's model `not tested here`; so is a claim
    whose conditions this run does not have.
    """
    tables = Tables(marker_rates, geometry, fdr=fdr, **headline_cell(geometry, **headline))
    rows = []
    for claim in claims:
        ((name, arguments),) = claim["measure"].items()
        measured = MEASURES[name](tables, **arguments)
        note = claim.get("note", "")
        if measured is None:
            outcome, why = "not tested here", "its conditions are not in this run"
            measured = Measured(np.nan)
        elif claim["scale"] == "full" and scale == "demo":
            outcome, why = "not tested here", "a value of the study's model; this run's is another"
        else:
            outcome, why = verdict(claim["expect"], measured), ""
        rows.append(
            {
                "claim": claim["id"],
                "published": claim["published"],
                "measured": measured.value,
                "ci_low": measured.low,
                "ci_high": measured.high,
                "verdict": outcome,
                "note": "; ".join(filter(None, [why, note])),
                "text": claim["text"],
                "n": measured.n,
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)
