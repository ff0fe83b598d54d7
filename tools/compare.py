"""Two finished runs side by side: results/compare/<a>-<b>.html, in the report's style.

    python tools/compare.py A B [--results DIR]

Reads the tables in results/A and results/B; runs no rule. The runs differ in whatever their configs differ
in: the page says what each measured, and whether a claim's values differ by more than their intervals allow.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow" / "scripts"))

import numpy as np
import pandas as pd
from persona_collapse.errors import UserError
from persona_collapse.files import read_json, write_text
from persona_collapse.report import findings, page, provenance
from persona_collapse.report.figures import _render, catalogue
from persona_collapse.runtime import seals
from persona_collapse.tables_io import read_csv

TABLES = ("design", "marker_rates", "geometry", "headline", "scorecard", "training")


@dataclass(frozen=True)
class Run:
    """A finished run: its name, its base model in words, its tables."""

    name: str
    model: str
    tables: dict[str, pd.DataFrame]


def load(results: Path, name: str) -> Run:
    """Read a run's tables; raises UserError if it is not there or not finished."""
    folder = results / name
    if not folder.is_dir():
        others = sorted(p.parent.name for p in results.glob("*/tables"))
        there = ", ".join(others) or "none"
        raise UserError(f"no run {name!r} in {results}/ (there: {there})")
    missing = [t for t in TABLES if not (folder / f"tables/{t}.csv").is_file()]
    if missing:
        raise UserError(
            f"run {name!r} is not finished: {folder}/tables/{missing[0]}.csv is missing"
        )
    base = folder / "base/model.json"
    seals.check(folder, [base, *(folder / f"tables/{t}.csv" for t in TABLES)])
    model = provenance.model_label(read_json(base)) if base.is_file() else "not recorded"
    return Run(name, model, {t: read_csv(folder / f"tables/{t}.csv") for t in TABLES})


def facts(run: Run) -> dict[str, Any]:
    """What was run, in a few figures."""
    rates, grid = run.tables["marker_rates"], run.tables["design"]
    counted = rates.drop_duplicates(["chain", "persona"])
    return {
        "model": run.model,
        "conditions": grid["condition"].nunique(),
        "adapters trained": int((run.tables["training"]["tokens_seen"] > 0).sum()),
        "completions counted": f"{int(counted['n'].sum()):,}",
        "personas": rates["persona"].nunique(),
        "seeds": ", ".join(sorted({s for s in grid["seed"] if s}, key=int)),
    }


def _pair(tables: Sequence[pd.DataFrame], on: Sequence[str]) -> pd.DataFrame:
    """Rows of both runs by their key, in the left one's order; columns end in _a and _b."""
    left, right = tables
    both = left.merge(right, on=list(on), how="outer", suffixes=("_a", "_b"), sort=False)
    order = {key: i for i, key in enumerate([*left[on[0]], *right[on[0]]][::-1])}
    return both.sort_values(on[0], key=lambda column: -column.map(order), ignore_index=True)


def grids(runs: Sequence[Run]) -> pd.DataFrame:
    """Conditions of both runs: title and chains of each."""
    tables = [
        run.tables["design"]
        .groupby("condition", sort=False)
        .agg(title=("title", "first"), chains=("chain", lambda c: ", ".join(dict.fromkeys(c))))
        .reset_index()
        for run in runs
    ]
    return _pair(tables, on=["condition"]).fillna("")


def stages(runs: Sequence[Run]) -> pd.DataFrame:
    """Training stages of both runs in words, with their last loss, mean over chains: where presets and
    defences differ."""
    parts = []
    for run in runs:
        trained = run.tables["training"].groupby("stage", sort=False)
        words = [
            f"{row.objective} on {row.loss_on}, {row.rows:.0f} rows of {row.name}, "
            f"{row.schedule_steps:.0f} steps, rank {row.r:.0f}, scale {row.scale:.3g}"
            for row in trained.first().itertuples(index=False)
        ]
        losses = trained["final_loss"].mean().reset_index(name="loss")
        parts.append(losses.assign(training=words))
    return _pair(parts, on=["stage"])


def scorecards(runs: Sequence[Run]) -> pd.DataFrame:
    """Claims of both runs: measured and verdict of each, and whether their values differ.

    Equal verdicts are not equal values, nor the other way round. `difference`, second less first, has an
    interval where both values have (Zou and Donner 2008, Statistics in Medicine 27:1693); `values` is
    `differ` where it leaves out 0, else `no difference shown`, and `unknown` without an interval.
    """
    columns = ["claim", "text", "measured", "ci_low", "ci_high", "verdict"]
    both = _pair([run.tables["scorecard"][columns] for run in runs], on=["claim"])
    both["text"] = both["text_a"].fillna(both["text_b"])
    one, two = (both[[f"{c}_{s}" for c in columns[2:5]]].astype(float).to_numpy().T for s in "ab")
    difference = two[0] - one[0]
    both["low"] = difference - np.hypot(two[0] - two[1], one[2] - one[0])
    both["high"] = difference + np.hypot(two[2] - two[0], one[0] - one[1])
    both["difference"] = difference
    known = both["low"].notna() & both["high"].notna()
    differ = known & ((both["low"] > 0) | (both["high"] < 0))
    both["values"] = np.select([differ, known], ["differ", "no difference shown"], "unknown")
    both["same"] = both["verdict_a"] == both["verdict_b"]
    return both.sort_values(
        ["values", "same"], key=lambda c: c != "differ" if c.name == "values" else c,
        kind="stable", ignore_index=True,
    )  # fmt: skip


def rates(runs: Sequence[Run]) -> pd.DataFrame:
    """The source's marker rate by condition and source in both runs, seeds pooled."""
    parts = []
    for run in runs:
        table = run.tables["marker_rates"]
        own = table[table["role"] == "source"].groupby(["condition", "source"], sort=False)
        pooled = own[["hits", "n"]].sum().reset_index()
        parts.append(pooled.assign(rate=pooled["hits"] / pooled["n"]))
    both = _pair(parts, on=["condition", "source"])
    return both.assign(difference=both["rate_b"] - both["rate_a"])


def _extents(runs: Sequence[Run]) -> dict[str, tuple[float, float]]:
    """By metric, the smallest and largest mean cosine of the runs, intervals included: one axis for both."""
    every = pd.concat([run.tables["geometry"] for run in runs])
    found = {}
    for metric in ("m1", "m1_centred"):
        plain = (every["metric"] == metric) & (every["test"] == "")
        values = every.loc[plain, ["value", "ci_low", "ci_high"]]
        found[metric] = float(values.min().min()), float(values.max().max())
    return found


def _charts(run: Run, suffix: str, extents: dict[str, tuple[float, float]]) -> list[dict[str, Any]]:
    """A run's headline charts, named apart from the other run's."""
    charts = []
    for name, options in (("marker_rate", {}), ("m1", {"domains": extents})):
        figure = catalogue()[name]
        charts.append(_render.page(figure, _render.data(figure, run.tables), **options))
    return [page.drawn(replace(one, name=f"{one.name}_{suffix}")) for one in charts if one]


def render(runs: Sequence[Run]) -> str:
    """The page that compares two runs, as HTML."""
    extents = _extents(runs)
    drawn = [_charts(run, suffix, extents) for run, suffix in zip(runs, "ab", strict=True)]
    return (
        page.environment()
        .get_template("compare.html.j2")
        .render(
            runs=runs,
            facts=[facts(run) for run in runs],
            figures=list(zip(*drawn, strict=False)),
            summaries=[findings.summary(run.tables["scorecard"]) for run in runs],
            scorecards=scorecards(runs),
            rates=rates(runs),
            grids=grids(runs),
            stages=stages(runs),
            **page.page_parts(),
        )
    )


def main() -> None:
    """Parse the arguments, compare, write, say where."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help="name of a run in results/")
    parser.add_argument("--results", type=Path, default=Path("results"))
    given = parser.parse_args()
    try:
        if len(set(given.runs)) != 2 or len(given.runs) != 2:
            raise UserError('expected two different runs: make compare RUNS="a b"')
        runs = [load(given.results, name) for name in given.runs]
    except UserError as error:
        sys.exit(f"persona-collapse: {error}")
    path = given.results / "compare" / f"{'-'.join(given.runs)}.html"
    write_text(path, render(runs))
    print(path)


if __name__ == "__main__":
    main()
