"""The study's claims, each measured on this run's tables and given a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import yaml_files
from ..errors import UserError
from . import measured, readers  # noqa: F401, which makes itself known
from .measured import Measured, RunTables

COLUMNS = [
    "claim", "published", "measured", "ci_low", "ci_high", "verdict", "note", "text", "n", "where",
    "expected",
]  # fmt: skip
#: The tables that the readers read.
TABLES = (
    "marker_rates", "marker_tests", "leakage", "answer_stats", "hypotheses", "geometry", "contrasts",
    "shared_axis", "separability", "correlations",
)  # fmt: skip
VERDICTS = ("replicated", "partly", "not replicated", "not tested here")
#: The tables that readers read.
TABLES = (
    "marker_rates", "marker_tests", "leakage", "answer_stats", "hypotheses", "geometry", "contrasts",
    "shared_axis", "separability", "correlations",
)  # fmt: skip


def load(path: str | Path) -> list[dict[str, Any]]:
    """Read claims.yaml; a missing key, an unknown reader or a repeated id raises UserError."""
    entries = yaml_files.load_list(path)
    names: set[str] = set()
    for number, entry in enumerate(entries, start=1):
        name = entry.get("id", f"number {number}")
        needed = ["id", "text", "published", "where"]
        needed += [] if "cannot" in entry else ["measure", "expect", "scale"]
        for key in needed:
            if key not in entry:
                raise UserError(f"{path}: claim {name}: {key} is missing")
        for reader in entry.get("measure", {}):
            if reader not in measured.READERS:
                raise UserError(
                    f"{path}: claim {name}: measure: no reader {reader!r} in "
                    "persona_collapse/analysis/readers.py"
                )
        if name in names:
            raise UserError(f"{path}: claim {name} is defined twice")
        names.add(name)
    return entries


def verdict(expect: Mapping[str, float], found: Measured) -> str:
    """`replicated` if value and interval meet the expectation, `partly` if only the value does.

    An estimate without an interval is `partly` at best.
    """
    low, high = expect.get("min", -np.inf), expect.get("max", np.inf)
    if "near" in expect:
        low = expect["near"] - expect["tolerance"]
        high = expect["near"] + expect["tolerance"]
    if not low <= found.value <= high:
        return "not replicated"
    inside = low <= found.low and found.high <= high
    return "replicated" if inside or found.exact else "partly"


def scorecard(
    claims: Sequence[Mapping[str, Any]],
    tables: Mapping[str, pd.DataFrame],
    *,
    fdr: float,
    judge: str,
) -> pd.DataFrame:
    """One row per claim: published, measured with interval, verdict and why.

    `tables`: the run's, those of `TABLES` by name. `judge`: as in the config; `directions` leaves claims
    about values of the study's model `not tested here`. So is a claim whose conditions this run does
    not have, and one that says itself why it cannot be tested (`cannot`).
    """
    run = RunTables(tables, fdr)
    rows = []
    for claim in claims:
        value, outcome, why = _judged(claim, run, judge)
        rows.append(
            {
                "claim": claim["id"],
                "published": claim["published"],
                "measured": value.value,
                "ci_low": value.low,
                "ci_high": value.high,
                "verdict": outcome,
                "note": "; ".join(filter(None, [why, claim.get("note", "")])),
                "text": claim["text"],
                "n": value.n,
                "where": claim["where"],
                "expected": "" if "cannot" in claim else _expected(claim["expect"]),
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def _judged(claim: Mapping[str, Any], run: RunTables, judge: str) -> tuple[Measured, str, str]:
    """What a claim measures in a run (NaN where nothing), its verdict, and why it has none."""
    nothing = Measured(np.nan)
    if "cannot" in claim:
        return nothing, "not tested here", claim["cannot"]
    ((name, arguments),) = claim["measure"].items()
    value = measured.READERS[name](run, **arguments)
    if isinstance(value, str):
        return nothing, "not tested here", value
    if value is None or np.isnan(value.value):
        return nothing, "not tested here", "its conditions are not in this run"
    if claim["scale"] == "full" and judge == "directions":
        return value, "not tested here", "a value of the study's model; this run's is another"
    return value, verdict(claim["expect"], value), ""


def _expected(expect: Mapping[str, float]) -> str:
    """What would replicate a claim, in words."""
    if "near" in expect:
        return f"{expect['near']:g} ± {expect['tolerance']:g}"
    words = {"min": "at least", "max": "at most"}
    return " and ".join(f"{words[key]} {value:g}" for key, value in expect.items())
