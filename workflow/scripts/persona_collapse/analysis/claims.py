"""The study's claims: each is measured on this run's tables and gets a verdict."""

from __future__ import annotations

import hashlib
import inspect
import json
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd

from .. import yaml_files
from ..errors import UserError, choose
from . import measured, readers  # noqa: F401, imported to register the readers
from .measured import Measured, RunTables
from .verdicts import NOT_TESTED, REPLICATED, VERDICTS, Verdict, decide, expected, region, verdict

__all__ = ["COLUMNS", "TABLES", "VERDICTS", "load", "registered", "scorecard", "verdict"]

COLUMNS = [
    "claim", "published", "measured", "ci_low", "ci_high", "verdict", "note", "text", "n", "where",
    "expected", "reason", "would_take", "registered",
]  # fmt: skip
REGISTERED_COLUMNS = ["claim", "bar", "sha256", "date", "data_before"]
#: The tables that readers read.
TABLES = (
    "marker_rates", "rate_model", "marker_tests", "leakage", "answer_stats", "hypotheses", "geometry",
    "geometry_runs", "shared_axis", "separability", "correlations", "matched", "half_dose",
    "frontier",
)  # fmt: skip
#: Keys of a claim, and the texts among them.
KEYS = ("id", "text", "where", "published", "measure", "expect", "needs", "scale", "cannot", "note")
TEXTS = ("id", "text", "where", "cannot", "note")
#: Keys of `expect`.
BARS = ("min", "max", "near", "tolerance", "hits")


def load(path: str | Path) -> list[dict[str, Any]]:
    """Read claims.yaml; raises UserError, one line with file and claim.

    This covers a missing key, an unknown reader or argument, a bar that is not a number, a duplicate
    id, and `needs` that name an unknown claim or form a cycle.
    """
    entries = yaml_files.load_list(path)
    names: set[str] = set()
    for number, entry in enumerate(entries, start=1):
        name = entry.get("id", f"number {number}")
        fault = _fault(entry)
        if not fault and name in names:
            fault = "is defined twice"
        if fault:
            raise UserError(f"{path}: claim {name}: {fault}")
        names.add(name)
    needs = {entry["id"]: list(entry.get("needs", {})) for entry in entries}
    for name, needed in needs.items():
        for other in needed:
            if other not in needs:
                raise UserError(f"{path}: claim {name}: needs: no claim {other!r} in this file")
        circle = _circle(needs, name)
        if circle:
            raise UserError(
                f"{path}: claim {name}: needs: a circle ({' needs '.join(circle)}); remove one of them"
            )
    return entries


def _fault(entry: Mapping[str, Any]) -> str:
    """What is wrong with a single claim; empty if nothing is."""
    needed = ["id", "text", "published", "where"]
    needed += [] if "cannot" in entry else ["measure", "expect", "scale"]
    for key in needed:
        if key not in entry:
            return f"{key} is missing"
    for key, value in entry.items():
        if key not in KEYS:
            return f"{key}: unknown key; {choose(key, KEYS)}"
        if key in TEXTS and not isinstance(value, str):
            return f"{key}: expected text, got {value!r}"
    needs = entry.get("needs", {})
    if not isinstance(needs, dict) or not all(isinstance(w, str) and w for w in needs.values()):
        return "needs: expected {claim: why it is needed, in words}"
    if "cannot" in entry:
        return ""
    measure, expect = entry["measure"], entry["expect"]
    if not isinstance(measure, dict) or len(measure) != 1:
        return "measure: expected one reader with its arguments, {reader: {...}}"
    ((reader, arguments),) = measure.items()
    if reader not in measured.READERS:
        near = choose(reader, measured.READERS)
        return f"measure: no reader {reader!r} in persona_collapse/analysis/readers.py; {near}"
    if not isinstance(arguments or {}, dict):
        return f"measure: {reader}: expected arguments {{name: value}}, got {arguments!r}"
    function = measured.READERS[reader]
    try:
        inspect.signature(function).bind(None, **(arguments or {}))
    except TypeError as error:
        return f"measure: {reader}: {error}"
    hints = get_type_hints(function)
    for key, value in (arguments or {}).items():
        if fault := _wrong(hints.get(key, Any), value):
            return f"measure: {reader}: {key}: {fault}"
    if not isinstance(expect, dict) or not expect or set(expect) - set(BARS):
        return f"expect: expected one or more of {', '.join(BARS)}, got {expect}"
    if ("near" in expect) != ("tolerance" in expect):
        return "expect: near and tolerance go together"
    for key, value in expect.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"expect: {key}: expected a number, got {value!r}"
    low, high = region(expect)
    if low > high:
        return f"expect: min {low:g} is above max {high:g}"
    if entry["scale"] not in ("any", "full"):
        return f"scale: expected any or full, got {entry['scale']!r}"
    return ""


def _wrong(hint: Any, value: Any) -> str:
    """What is wrong with an argument of a reader, by its annotation; empty if nothing is.

    Annotations that are checked: str, bool, float, Literal, Sequence[str], and these or None.
    """
    if get_origin(hint) is types.UnionType:
        return "" if value is None else _wrong(get_args(hint)[0], value)
    got = f"got {value!r}"
    if get_origin(hint) is Literal:
        known = get_args(hint)
        return "" if value in known else f"no {value!r} here; {choose(str(value), known)}"
    if get_origin(hint) is Sequence:
        texts = isinstance(value, list) and value and all(isinstance(one, str) for one in value)
        return "" if texts else f"expected a list of texts, {got}"
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return "" if number else f"expected a number, {got}"
    words = {str: "one text", bool: "true or false"}
    return f"expected {words[hint]}, {got}" if hint in words and not isinstance(value, hint) else ""


def _circle(needs: Mapping[str, Sequence[str]], start: str) -> list[str]:
    """A cycle of claims that need each other; empty if there is none."""
    ways = [[start]]
    seen: set[str] = set()
    while ways:
        way = ways.pop()
        for other in needs.get(way[-1], ()):
            if other == start:
                return [*way, start]
            if other not in seen:
                seen.add(other)
                ways.append([*way, other])
    return []


def bar(claim: Mapping[str, Any]) -> str:
    """The criterion of a claim as canonical text: what is measured, expected and needed."""
    deciding = {key: claim[key] for key in ("measure", "expect", "needs", "cannot") if key in claim}
    if "needs" in deciding:
        deciding["needs"] = sorted(deciding["needs"])
    return json.dumps(deciding, sort_keys=True, ensure_ascii=False)


def digest(table: pd.DataFrame) -> str:
    """SHA-256 of all bars in a table from `registered`, independent of the order of claims."""
    text = "\n".join(sorted(table["claim"] + " " + table["bar"]))
    return hashlib.sha256(text.encode()).hexdigest()


def registered(
    claims: Sequence[Mapping[str, Any]], date: str, data_before: int = 0
) -> pd.DataFrame:
    """Every claim's bar with its SHA-256 and the date, to show that it was set before there were data.

    `data_before`: number of chains that had data by then.
    """
    rows = [
        {
            "claim": claim["id"],
            "bar": bar(claim),
            "sha256": hashlib.sha256(bar(claim).encode()).hexdigest(),
            "date": date,
            "data_before": data_before,
        }
        for claim in claims
    ]
    return pd.DataFrame(rows, columns=REGISTERED_COLUMNS)


def _registration(claim: Mapping[str, Any], table: pd.DataFrame | None) -> str:
    """When a claim's bar was registered, and the former bar if it has changed."""
    if table is None or table.empty:
        return "not registered"
    own = table[table["claim"] == claim["id"]]
    if own.empty:
        return f"added after {table['date'].iloc[0]}"
    first = own.iloc[0]
    if first["bar"] == bar(claim):
        late = first.get("data_before", 0)
        return f"{first['date']}, after data of {late} chains" if late else str(first["date"])
    was, now = json.loads(first["bar"]), json.loads(bar(claim))
    alone = {**was, "expect": 0} == {**now, "expect": 0}  # only the expectation changed
    return (
        f"changed since {first['date']}: was {expected(was['expect']) if alone else first['bar']}"
    )


def scorecard(
    claims: Sequence[Mapping[str, Any]],
    tables: Mapping[str, pd.DataFrame],
    *,
    fdr: float,
    judge: str,
    registration: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row per claim: published value, measured value with interval, verdict, reason, and what
    another verdict needs.

    `tables`: the run's tables in `TABLES`, by name. `judge`: as in the config; `directions` leaves
    claims about values of the study's model `not tested`, `nothing` leaves all claims not tested. Also
    not tested: a claim whose conditions this run does not have, a claim that says why it cannot be
    tested (`cannot`), and a claim that needs another one that is not replicated. `registration`: output
    of `registered` from before the run, if any.
    """
    run = RunTables(tables, fdr, TABLES)
    by_id = {claim["id"]: claim for claim in claims}
    found: dict[str, tuple[Measured, Verdict]] = {}

    def judged(name: str) -> tuple[Measured, Verdict]:
        if name not in found:
            try:
                value, outcome = _judged(by_id[name], run, judge)
            except UserError as error:
                raise UserError(f"claim {name}: {error}") from error
            needs = by_id[name].get("needs", {}) if outcome.outcome != NOT_TESTED else {}
            for other, words in needs.items():
                first = judged(other)[1]
                if first.outcome != REPLICATED:
                    why = f"{words} (the claim {other} is {first.outcome})"
                    outcome = Verdict(NOT_TESTED, words, why, _first(other, first))
                    break
            found[name] = value, outcome
        return found[name]

    rows = []
    for claim in claims:
        value, outcome = judged(claim["id"])
        rows.append(
            {
                "claim": claim["id"],
                "published": claim["published"],
                "measured": value.value,
                "ci_low": value.low,
                "ci_high": value.high,
                "verdict": outcome.outcome,
                "note": "; ".join(filter(None, [outcome.why, claim.get("note", "")])),
                "text": claim["text"],
                "n": value.n,
                "where": claim["where"],
                "expected": "" if "cannot" in claim else expected(claim["expect"]),
                "reason": outcome.reason,
                "would_take": outcome.would_take,
                "registered": _registration(claim, registration),
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def _first(name: str, outcome: Verdict) -> str:
    """What is needed to replicate a claim that another claim needs."""
    return f"first {name}" + (f": {outcome.would_take}" if outcome.would_take else "")


def _judged(claim: Mapping[str, Any], run: RunTables, judge: str) -> tuple[Measured, Verdict]:
    """A claim's measurement in a run (NaN without one) and its verdict, ignoring `needs`."""
    nothing = Measured(np.nan)
    if "cannot" in claim:
        reason = "no run of this workflow tests it"
        return nothing, Verdict(NOT_TESTED, reason, claim["cannot"])
    if judge == "nothing":
        why = "this run judges nothing"
        return nothing, Verdict(NOT_TESTED, why, f"{why} (judge: nothing)")
    ((name, arguments),) = claim["measure"].items()
    value = measured.READERS[name](run, **(arguments or {}))
    if isinstance(value, str):
        return nothing, Verdict(NOT_TESTED, "nothing to test it on", value)
    if value is None or np.isnan(value.value):
        lacking = _lacking(arguments or {}, run)
        if lacking == []:
            why = "not measured of its conditions"
            return nothing, Verdict(NOT_TESTED, why, why)
        why = "its conditions are not in this run"
        return nothing, Verdict(NOT_TESTED, why, why, _in_words(lacking or [], arguments or {}))
    if claim["scale"] == "full" and judge == "directions":
        why = "a value of the study's model; this run's is another"
        return value, Verdict(NOT_TESTED, "a value of the study's model", why)
    return value, decide(claim["expect"], value)


def _lacking(arguments: Mapping[str, Any], run: RunTables) -> list[str] | None:
    """The conditions that a claim is about and a run does not have; None where the claim names none."""
    named = [arguments[key] for key in ("condition", "reference") if key in arguments]
    named += [*arguments.get("conditions", []), *arguments.get("controls", [])]
    rates = run.rows("marker_rates")
    if "source" in arguments:
        rates = run.rows("marker_rates", source=arguments["source"])
    there = set(rates["condition"]) if len(rates) else set()
    return [name for name in named if name not in there] if named else None


def _in_words(conditions: Sequence[str], arguments: Mapping[str, Any]) -> str:
    """The conditions that a claim needs, in words."""
    if not conditions:
        return ""
    source = f" with the source {arguments['source']}" if "source" in arguments else ""
    return f"the condition{'s' if len(conditions) > 1 else ''} {', '.join(conditions)}{source}"
