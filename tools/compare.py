"""Compare finished runs: results/compare/<a>-<b>.html, in the report's style.

    python tools/compare.py A B [C ...] [--results DIR]

Reads the tables in results/A, results/B and so on; runs no rule. The configs may differ in anything.
The page shows what each run measured, and whether a claim's value differs from the first run's by more
than their intervals allow.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
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
from persona_collapse.statistics import combined
from persona_collapse.tables_io import read_csv

#: Possible statements about the difference between a claim's values, the strongest first.
VALUES = ["differ", "no difference shown", "unknown"]
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
    base = provenance.base_record(folder)
    seals.check(folder, [base, *(folder / f"tables/{t}.csv" for t in TABLES)])
    model = provenance.model_label(read_json(base)) if base.is_file() else "not recorded"
    return Run(name, model, {t: read_csv(folder / f"tables/{t}.csv") for t in TABLES})


def facts(run: Run) -> dict[str, Any]:
    """A summary of the run in a few numbers."""
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


def _joined(tables: Sequence[pd.DataFrame], on: Sequence[str]) -> pd.DataFrame:
    """Rows of all runs joined by key, in order of first appearance; columns end in _0, _1, ..."""
    numbered = [
        table.rename(columns={c: f"{c}_{number}" for c in table if c not in on})
        for number, table in enumerate(tables)
    ]
    joined = reduce(lambda one, two: one.merge(two, on=list(on), how="outer", sort=False), numbered)
    order = {key: at for at, key in enumerate(dict.fromkeys(k for t in tables for k in t[on[0]]))}
    return joined.sort_values(
        on[0], key=lambda column: column.map(order), kind="stable", ignore_index=True
    )


def grids(runs: Sequence[Run]) -> pd.DataFrame:
    """Conditions of all runs: title and chains of each."""
    tables = [
        run.tables["design"]
        .groupby("condition", sort=False)
        .agg(title=("title", "first"), chains=("chain", lambda c: ", ".join(dict.fromkeys(c))))
        .reset_index()
        for run in runs
    ]
    return _joined(tables, on=["condition"]).fillna("")


def stages(runs: Sequence[Run]) -> pd.DataFrame:
    """Training stages of all runs in words, with their last loss (mean over chains), to show where
    presets and defences differ."""
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
    return _joined(parts, on=["stage"])


def scorecards(runs: Sequence[Run]) -> pd.DataFrame:
    """Claims of all runs: measured and verdict of each, and whether its value differs from the first run's.

    Equal verdicts do not imply equal values, nor the reverse. `difference_i`, run i minus the first
    run, has an interval if both values have one (see `statistics.combined`). `values_i` is `differ` if
    the interval excludes 0, else `no difference shown`, and `unknown` without an interval. `values`:
    the same for all runs together.
    """
    columns = ["claim", "text", "measured", "ci_low", "ci_high", "verdict"]
    both = _joined([run.tables["scorecard"][columns] for run in runs], on=["claim"])
    last = range(1, len(runs))
    both["text"] = both[[f"text_{i}" for i in range(len(runs))]].bfill(axis=1).iloc[:, 0]
    first = both[[f"{c}_0" for c in columns[2:5]]].astype(float).to_numpy().T
    for i in last:
        own = both[[f"{c}_{i}" for c in columns[2:5]]].astype(float).to_numpy().T
        parts = np.stack([first, own], axis=1)
        both[f"difference_{i}"], low, high = combined([-1, 1], *parts)
        both[f"low_{i}"], both[f"high_{i}"] = low, high
        known = np.isfinite(low) & np.isfinite(high)
        differ = known & ((low > 0) | (high < 0))
        both[f"values_{i}"] = np.select([differ, known], VALUES[:2], VALUES[2])
    said = both[[f"values_{i}" for i in last]]
    both["values"] = np.select([said.eq(v).any(axis=1) for v in VALUES[:2]], VALUES[:2], VALUES[2])
    verdicts = both[[f"verdict_{i}" for i in range(len(runs))]].fillna("")
    both["same"] = verdicts.nunique(axis=1) == 1
    return both.sort_values(
        ["values", "same"], key=lambda c: c != VALUES[0] if c.name == "values" else c,
        kind="stable", ignore_index=True,
    )  # fmt: skip


def rates(runs: Sequence[Run]) -> pd.DataFrame:
    """The source's marker rate by condition and source, seeds pooled, and minus the first run's."""
    parts = []
    for run in runs:
        table = run.tables["marker_rates"]
        own = table[table["role"] == "source"].groupby(["condition", "source"], sort=False)
        pooled = own[["hits", "n"]].sum().reset_index()
        parts.append(pooled.assign(rate=pooled["hits"] / pooled["n"]))
    both = _joined(parts, on=["condition", "source"])
    less = {f"difference_{i}": both[f"rate_{i}"] - both["rate_0"] for i in range(1, len(runs))}
    return both.assign(**less)


def _extents(runs: Sequence[Run]) -> dict[str, tuple[float, float]]:
    """By metric, the smallest and largest mean cosine over the runs, including intervals, for a common
    axis."""
    every = pd.concat([run.tables["geometry"] for run in runs])
    found = {}
    for metric in ("m1", "m1_centred"):
        plain = (every["metric"] == metric) & (every["test"] == "")
        values = every.loc[plain, ["value", "ci_low", "ci_high"]]
        found[metric] = float(values.min().min()), float(values.max().max())
    return found


def _charts(
    run: Run, suffix: str, extents: dict[str, tuple[float, float]]
) -> list[dict[str, Any] | None]:
    """A run's headline charts (None: nothing to draw), with names that differ from those of other runs."""
    charts = []
    for name, options in (("marker_rate", {}), ("m1", {"domains": extents})):
        figure = catalogue()[name]
        charts.append(_render.page(figure, _render.data(figure, run.tables), **options))
    return [
        page.drawn(replace(one, name=f"{one.name}_{suffix}")) if one else None for one in charts
    ]


def beside(runs: Sequence[Run], frame: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, Any]:
    """A table of all runs for the template: first the keys, then the columns of each run.

    `columns`: from the part of a column's name before the run's number to the words after the run's
    name in the heading.
    """
    fields = {name: name for name in frame if not name[-1].isdigit()}
    for number, run in enumerate(runs):
        own = {f"{column}_{number}": f"{run.name} {words}" for column, words in columns.items()}
        fields |= {name: words.strip() for name, words in own.items() if name in frame}
    return {"frame": frame, "fields": list(fields), "names": list(fields.values())}


def render(runs: Sequence[Run]) -> str:
    """The page that compares runs, as HTML."""
    extents = _extents(runs)
    drawn = [_charts(run, str(number), extents) for number, run in enumerate(runs)]
    return (
        page.environment()
        .get_template("compare.html.j2")
        .render(
            runs=runs,
            facts=[facts(run) for run in runs],
            figures=[pair for pair in zip(*drawn, strict=True) if any(pair)],
            summaries=[findings.summary(run.tables["scorecard"]) for run in runs],
            scorecards=scorecards(runs),
            rates=beside(
                runs, rates(runs), {"rate": "", "n": "n", "difference": f"minus {runs[0].name}"}
            ),
            grids=beside(runs, grids(runs), {"title": "", "chains": "chains"}),
            stages=beside(runs, stages(runs), {"training": "", "loss": "last loss"}),
            **page.page_parts(),
        )
    )


def main() -> None:
    """Parse the arguments, compare, write the page and print its path."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help="name of a run in results/")
    parser.add_argument("--results", type=Path, default=Path("results"))
    given = parser.parse_args()
    try:
        if len(given.runs) < 2 or len(set(given.runs)) < len(given.runs):
            raise UserError('expected two or more different runs: make compare RUNS="a b"')
        runs = [load(given.results, name) for name in given.runs]
    except UserError as error:
        sys.exit(f"persona-collapse: {error}")
    path = given.results / "compare" / f"{'-'.join(given.runs)}.html"
    write_text(path, render(runs))
    print(path)


if __name__ == "__main__":
    main()
