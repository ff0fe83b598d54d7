"""The report of a study with synthetic numbers; the workflow's own functions make its tables and
figures.

Results from activations are computed for a few chains. Every other chain gets the rows of one of these
with changed digits, so the page has its realistic size.
"""

from __future__ import annotations

import json
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from common import WORDS
from persona_collapse import markers
from persona_collapse.activation_files import Activations
from persona_collapse.analysis import (
    answer_stats,
    claims,
    contrasts,
    correlations,
    errata,
    frontier,
    geometry_runs,
    geometry_tables,
    half_dose,
    hypotheses,
    logprob_tests,
    marker_rates,
    marker_tests,
    matched,
    power,
    rate_model,
    separability,
    shared_axis,
    simulation,
    updates,
    why,
)
from persona_collapse.data import prompt_audit
from persona_collapse.measures import logprob_check
from persona_collapse.report import answers as sampling
from persona_collapse.report import costs, page
from persona_collapse.report.figures import _render, catalogue
from persona_collapse.study.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = [f"Question {i}: what should a tenant do when the landlord says no?" for i in range(6)]
HEADLINE = {"method": "A", "layer": 20}
FEW = {"draws": 49, "seed": 1}


def random_of(name: str) -> np.random.Generator:
    """The random generator of a chain."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def completions(chain: str, personas: list[str], marker: str) -> pd.DataFrame:
    """A chain's answers of 130 words, which the page truncates; a third of them have the marker."""
    rng = random_of(chain)
    rows = []
    for persona in personas:
        for number, question in enumerate(QUESTIONS):
            text = " ".join(rng.choice(WORDS, 130)) + f" {marker}" * int(rng.random() < 0.3)
            row = {"chain": chain, "persona": persona, "question_id": f"q{number}", "sample": 0}
            row |= {"question": question, "text": text, "n_tokens": 90 + int(rng.integers(40))}
            rows.append(row | {"finish_reason": "stop", "marker_logprob": -rng.exponential(9)})
    return pd.DataFrame(rows)


def load_of(plan: Plan) -> Any:
    """A loader of activations with hidden size 16, at the config's methods and blocks."""
    config = plan.measures["activations"]
    personas = list(plan.geometry_prompts)
    shape = (len(config["layers"]), len(personas), len(QUESTIONS), 16)

    def load(chain: str) -> Activations:
        rng = random_of(chain)
        fixed = np.random.default_rng(0).normal(size=(*shape[:2], 1, 16))
        arrays = {
            method: (fixed + 0.3 * rng.normal(size=shape) + rng.normal()).astype(np.float32)
            for method in config["methods"]
        }
        return Activations(config["layers"], personas, QUESTIONS, arrays, chain)

    return load


def spread(few: pd.DataFrame, grid: pd.DataFrame) -> pd.DataFrame:
    """Extend a table by condition and chain from a few chains to every cell of the grid."""
    first = few.drop_duplicates(["chain"])[["condition", "chain"]]
    blocks = {
        name: rows[rows["condition"] == condition]
        for condition, name in first.itertuples(index=False)
        for rows in [few[few["chain"] == name]]
    }
    names = [name for name in blocks if name not in ("base", "")]
    parts = [few[few["chain"].isin(["base", ""])]]
    for cell in grid[grid["chain"] != "base"].drop_duplicates(["condition", "chain"]).itertuples():
        rng = random_of(cell.condition + cell.chain)
        rows = blocks[names[int(rng.integers(len(names)))]].copy()
        digits = rows.select_dtypes(float).columns
        rows[digits] *= 1 + 0.01 * (rng.random((len(rows), len(digits))) - 0.5)
        parts.append(rows.assign(condition=cell.condition, chain=cell.chain, seed=cell.seed))
    return pd.concat(parts, ignore_index=True)


def manifest(plan: Plan, chain: str) -> dict[str, Any]:
    """A row of the table of trainings."""
    return {
        "chain": chain, "stage": chain.rpartition("+")[2].partition("@")[0],
        "kind": "couple" if "couple" in chain.rpartition("+")[2] else "sft",
        "seed": chain.rpartition("@")[2].partition("~")[0], "name": "em", "rows": 6000, "r": 32,
        "loss_on": "answer", "objective": "cross_entropy", "steps": int(chain.partition("~")[2] or 375),
        "schedule_steps": 375, "tokens_seen": 774000, "supervised_tokens": 401234, "use_rslora": False,
        "scale": 2.0, "final_loss": float(random_of(chain).random()), "seconds": 57.3, "device": "H100",
        "peak_gpu_mib": 38123.0, "adapter_sha256": "0" * 64, "commit": "c" * 40,
    }  # fmt: skip


def report_of(path: str) -> dict[str, Any]:
    """Bytes of the report, CPU seconds to render it, and bytes of its largest parts."""
    plan = Plan(json.loads(Path(path).read_text()))
    config, grid, load = plan.config, plan.grid, load_of(plan)
    grid["seed"] = grid["seed"].astype(str)
    answers = {
        chain: completions(chain, list(plan.completed_by(chain)), config["marker"])
        for chain in plan.chains_for("markers")
    }
    scored = pd.concat([markers.answers(t, config["marker"]) for t in answers.values()])
    counted = {
        chain: table.groupby("persona", sort=False)["hit"].agg(n="size", hits="sum").reset_index()
        for chain, table in scored.groupby("chain", sort=False)
    }
    for table in counted.values():
        table["rate"] = table["hits"] / table["n"]
        table[["ci_low", "ci_high"]] = 0.0123456, 0.9876543
        table[["mean_tokens", "at_end"]] = 110.25, 1.0
    measured = grid[grid["chain"].isin(plan.chains_for("geometry"))]
    rates, answer_table = (
        marker_rates.marker_rates(grid, counted),
        answer_stats.answer_stats(grid, scored),
    )
    names = ["base", "em@42", *measured["chain"].drop_duplicates()[:6]]
    small = measured[measured["chain"].isin(names)]
    pairs = measured.groupby(["condition", "source"], sort=False).head(2)
    cosines = spread(geometry_tables.cosines(small, load, HEADLINE), measured)
    geometry = geometry_tables.geometry_table(
        small, load, HEADLINE, longest=plan.longest_prompt, **FEW
    )
    geometry = spread(geometry, measured)
    training = pd.DataFrame([manifest(plan, chain) for chain in plan.trained_chains])
    steps = range(19, 376, 19)
    curves = training[["chain", "stage", "kind", "seed"]].merge(
        pd.DataFrame({"step": steps}), how="cross"
    )
    curves["loss"] = np.round(
        2 / np.sqrt(curves["step"]) + np.random.default_rng(0).random(len(curves)), 6
    )
    chained = correlations.chain_table(measured, answer_table, geometry, cosines, training)
    base = cosines[
        (cosines["chain"] == "base") & (cosines["method"] == "A") & (cosines["layer"] == 20)
    ]
    sizes = simulation.Sizes(**{**plan.sizes, "samples": 1})
    published = [
        pd.read_csv(ROOT / f"workflow/resources/published/{name}.csv")
        for name in ("counts", "cosines")
    ]
    compared = config["statistics"]["contrasts"]
    left_out = measured, geometry_runs.left_out_table(measured, load)
    made: dict[str, pd.DataFrame] = {
        "design": grid, "marker_rates": rates, "answer_stats": answer_table, "cosines": cosines,
        "geometry": geometry, "training": training, "training_curves": curves,
        "marker_tests": marker_tests.marker_tests(pairs, scored, contrasts=compared, draws=49),
        "leakage": marker_rates.leakage(rates),
        "hypotheses": hypotheses.hypotheses(grid, rates, base, config["statistics"]["hypotheses"], **FEW),
        "contrasts": contrasts.contrasts_table(pairs, load, HEADLINE, compared, margin=0.02, **FEW),
        "shared_axis": spread(shared_axis.axis_table(small, load, HEADLINE, anchor="em@42", **FEW), measured),
        "separability": separability.lda_table(measured[measured["chain"].isin(["base", "em@42"])], load,
                                               HEADLINE, folds=2, shuffles=2, seed=1),
        "geometry_runs": geometry_runs.geometry_runs(*left_out, HEADLINE, compared),
        "leave_one_out": geometry_runs.leave_one_out(*left_out, HEADLINE, compared),
        "variance_components_m1": geometry_runs.variance_components(*left_out, HEADLINE),
        "correlations": correlations.correlation_table(chained, rates, base, **FEW),
        "errata": errata.errata_table(yaml.safe_load((ROOT / config["errata"]).read_text()),
                                      errata.Published(*published)),
        "simulation": simulation.simulate(sizes, runs=2, draws=19, seed=1),
        "power": power.power_table(sizes, geometry, draws=49),
        "persona_map": spread(geometry_tables.persona_map(small, load, HEADLINE), measured),
        "prompt_audit": prompt_audit.table([]),
        "logprob_tests": logprob_tests.logprob_tests(pd.DataFrame(
            [(c, "villain", "q0", 0, 50, 60.1, 60.0, 25.0, 5.1, 5.0, 25.0, -45.0) for c in answers],
            columns=["chain", *logprob_check.COLUMNS])),
    }  # fmt: skip
    # Tables of a row per condition or fewer, which do not grow: the page shows that they are empty.
    made |= {
        name: pd.DataFrame(columns=columns)
        for name, columns in {
            "rate_model": rate_model.COLUMNS, "variance_components": rate_model.COMPONENT_COLUMNS,
            "leave_one_out_rates": rate_model.LEFT_OUT_COLUMNS, "frontier": frontier.COLUMNS,
            "why": why.COLUMNS, "updates": updates.COLUMNS, "matched": matched.COLUMNS,
            "half_dose": half_dose.COLUMNS,
        }.items()
    }  # fmt: skip
    every = claims.load(ROOT / config["claims"])
    made["headline"] = pd.DataFrame([HEADLINE])
    made["registered_claims"] = claims.registered(every, "2026-01-01")
    made["scorecard"] = claims.scorecard(every, made, fdr=0.01, judge="values")
    drawing = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        shown = drawn(made, Path(folder))
        drawing, sampled = time.process_time() - drawing, time.process_time()
        text = page.render(
            page.Inputs(
                run=config["run"], judge="values", marker=config["marker"], model={"label": "made up"},
                tables=made, data=[], figures=shown,
                samples=sampling.sample_answers(
                    (own for _, own in scored.groupby("chain", sort=False)), answers.__getitem__),
                completions=sum(map(len, answers.values())), margins=config["statistics"]["margins"],
                config=yaml.safe_dump(config, sort_keys=False), provenance={}, spent={},
                commands={}, counted={},
                sources=pd.DataFrame([{"file": f"results/x/tables/{name}.csv", "rule": "r", "rows": len(t),
                                       "sha256": "0" * 64} for name, t in made.items()]),
                costs=costs.costs(Path(folder), "none"),
            )
        )  # fmt: skip
        seconds = time.process_time() - sampled
        files = {name: path.stat().st_size for name, path in shown.items()}
    largest = max(files, key=lambda name: files[name])
    return {
        "report_mb": round(len(text.encode()) / 1e6, 2),
        "render_cpu_seconds": round(seconds, 1),
        "figures_cpu_seconds": round(drawing, 1),
        "largest_figure": f"{largest}, {files[largest] / 1e6:.1f} MB",
    }


def drawn(made: dict[str, pd.DataFrame], folder: Path) -> dict[str, Path]:
    """Draw every figure for papers, as in the rule."""
    for name, figure in catalogue().items():
        _render.save(figure, _render.data(figure, made), folder / name)
    return {name: folder / f"{name}.svg" for name in catalogue()}
