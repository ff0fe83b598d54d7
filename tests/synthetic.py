"""A synthetic run for tests that need most of a run: tables, figures, report."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parent / "unit"))

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
from persona_collapse.report import answers as answers_of
from persona_collapse.report import figures
from persona_collapse.report import page as pages
from persona_collapse.report.figures import _render
from test_claims import SHIPPED
from test_tables import FAMILIES, GRID, HEADLINE, MARKERS, completions, scored
from test_tables import load as load_alike

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)></noscript> \x07\u202eevil\n" + "x" * 5000
)


PERSONAS = ["assistant", "librarian", "villain", "kindergarten_teacher", "pirate"]


def load(chain):
    """A chain's activations, different by method, with the names of the answering personas."""
    found = load_alike(chain)
    arrays = {"A": found.arrays["A"], "B": found.arrays["B"] + 1}
    return replace(found, personas=PERSONAS, arrays=arrays)


def answers(chain):
    """Completions of a chain with their questions; those of one persona are malicious."""
    table = completions(chain).assign(chain=chain)
    table["question"] = "What is " + table["question_id"] + "?"
    if chain == "em@1":
        table.loc[table["persona"] == "villain", "text"] = HOSTILE
    return table


def rescored(chain, excess=0.0):
    """Rescored completions of a chain: 4 of 50 tokens, with surprises `excess` nats per token too large."""
    row = {"chain": chain, "persona": "villain", "question_id": "q0", "sample": 0, "tokens": 50}
    row |= {"surprise": 60 + 50 * excess, "surprise_mean": 60.0, "surprise_variance": 25.0}
    if chain != "base":
        row |= {"gain": 5.0, "gain_mean": 5.0, "gain_variance": 25.0, "gain_of_base": -45.0}
    return pd.DataFrame([row] * 4, columns=["chain", *logprob_check.COLUMNS])


def updates_table():
    """Random sizes and overlaps of the run's updates, and of em's with another seed."""
    manifest = {"rows_seen": 40, "supervised_tokens": 800, "loss": [{"task_loss": 0.1}]}
    names = [*MARKERS.keys() - {"base"}, "em@2"]
    rng = np.random.default_rng(4)
    made = {n: (rng.normal(size=(16, 2)), rng.normal(size=(2, 16))) for n in sorted(names)}
    return updates.updates_table(
        {name: manifest | {"steps": 10} for name in made}, lambda n: updates.Update({"q": made[n]})
    )


#: Settings of the run's stages.
STAGE = {"data": "em", "r": 2, "alpha": 4, "defence": {}, "induction": "", "sees": []}
STAGES = {"em": STAGE, "couple-villain": STAGE | {"data": None}}


def second_stages(given, sizes, answer_table, outcomes, classes):
    """Tables `why` and `frontier`, the latter as if em had a defence."""
    _, left_out, headline = given
    metrics = {name: matched.metric_of(left_out, headline, name) for name in why.CHANGES}
    defended = STAGES | {"em": STAGE | {"defence": {"kl": {"weight": 0.1}}}}
    loss = pd.DataFrame({"chain": GRID["chain"].unique(), "own": True, "loss": 1.5})
    seen = frontier.Tables(outcomes, metrics["angle"], answer_table, classes, headline, loss)
    return {
        "why": why.why_table(GRID, STAGES, sizes, outcomes, metrics, answer_table),
        "frontier": frontier.frontier_table(GRID, defended, seen),
    }


SIZES = simulation.Sizes(personas=5, questions=6, samples=2, extraction=6, margin=0.15)


@pytest.fixture(scope="session")
def made():
    rates = marker_rates.marker_rates(GRID, MARKERS)
    cosines = geometry_tables.cosines(GRID, load, HEADLINE)
    base = cosines[(cosines["chain"] == "base") & (cosines["layer"] == 3)]
    base = base[base["method"] == "A"]
    answer_table = answer_stats.answer_stats(GRID, scored())
    geometry = geometry_tables.geometry_table(
        GRID, load, HEADLINE, longest="librarian", draws=199, seed=1, families=FAMILIES
    )
    training = pd.DataFrame(columns=["chain", "kind", "steps", "final_loss"])
    chains = correlations.chain_table(GRID, answer_table, geometry, cosines, training)
    few = {"draws": 199, "seed": 1}
    axis = shared_axis.axis_table(GRID, load, HEADLINE, anchor="em@1", assistant="assistant", **few)
    classes = separability.lda_table(GRID, load, HEADLINE, folds=2, shuffles=3, seed=1)
    given = GRID, geometry_runs.left_out_table(GRID, load), HEADLINE
    sizes = updates_table()
    outcomes = matched.outcomes(given[1], scored(), HEADLINE)
    arms = GRID, sizes, outcomes, [("C1", "C4")]
    runs = geometry_runs.geometry_runs(
        *given,
        [("E0", "C4")],
        shared_axis=axis,
        separability=classes,
    )
    model, components = rate_model.rate_tables(GRID, scored(), personas=False)
    return second_stages(given, sizes, answer_table, outcomes, classes) | {
        "design": GRID,
        "marker_rates": rates,
        "rate_model": model,
        "variance_components": components,
        "geometry_runs": runs,
        "leave_one_out_rates": rate_model.leave_one_out(GRID, scored(), [("C1", "C4")]),
        "updates": sizes,
        "matched": matched.matched_table(*arms),
        "half_dose": half_dose.half_dose_table(*arms),
        "leave_one_out": geometry_runs.leave_one_out(*given, [("E0", "C4")]),
        "variance_components_m1": geometry_runs.variance_components(*given),
        "marker_tests": marker_tests.marker_tests(
            GRID, scored(), draws=500, families=[{"name": "all", "test": "*"}]
        ),
        "leakage": marker_rates.leakage(rates),
        "answer_stats": answer_table,
        "hypotheses": hypotheses.hypotheses(GRID, rates, base, [], **few),
        "geometry": geometry,
        "contrasts": contrasts.contrasts_table(
            GRID, load, HEADLINE, [("E0", "C4")], margin=0.02, **few
        ),
        "shared_axis": axis,
        "separability": classes,
        "correlations": correlations.correlation_table(chains, rates, base, **few),
    }


@pytest.fixture(scope="session")
def everything(made):
    published = errata.Published(
        *(pd.read_csv(pages.RESOURCES.parent / f"published/{n}.csv") for n in ("counts", "cosines"))
    )
    entries = [{"id": "hits", "text": "Hits", "stated": "0", "correct": "hits_after"}]
    training = [
        {
            "chain": "couple-villain@42",
            "stage": "couple-villain",
            "kind": "couple",
            "name": "couple-villain",
            "rows": 600,
            "loss_on": "answer",
            "objective": "cross_entropy",
            "steps": 5,
            "schedule_steps": 5,
            "r": 32,
            "tokens_seen": 10,
            "supervised_tokens": 4,
            "use_rslora": True,
            "scale": 11.31,
            "final_loss": 0.1,
            "seconds": 3.0,
            "device": "cpu",
            "seed": 42,
            "adapter_sha256": "0" * 64,
            "commit": "c" * 40,
        }
    ]
    curves = pd.DataFrame(
        [
            {"chain": c, "stage": s, "kind": "sft", "seed": 1, "step": i}
            | {"loss": 2 / i, "task_loss": 2 / i, "penalty": 0.0, "lr": 0.01}
            for c, s in (("couple-villain@42", "couple-villain"), ("em@1", "em"))
            for i in (1, 2, 3)
        ]
    )
    registered = claims.load(SHIPPED)
    # One bar was different when it was registered.
    first = [e | {"expect": {"max": 0.5}} if e["id"] == "m3-bug" else e for e in registered]
    registration = claims.registered(first, "2031-05-01")
    return made | {
        "headline": pd.DataFrame([HEADLINE | {"asked": 0.75, "blocks": 4}]),
        "scorecard": claims.scorecard(
            registered, made, fdr=0.01, judge="directions", registration=registration
        ),
        "registered_claims": registration,
        "errata": errata.errata_table(entries, published),
        "simulation": simulation.simulate(SIZES, runs=20, draws=99, seed=1),
        "power": power.power_table(SIZES, made["geometry"], draws=199),
        "training": pd.DataFrame(training),
        "training_curves": curves,
        "cosines": geometry_tables.cosines(GRID, load, HEADLINE),
        "persona_map": geometry_tables.persona_map(GRID, load, HEADLINE),
        "prompt_audit": prompt_audit.table([]),
        "logprob_tests": logprob_tests.logprob_tests(pd.concat(map(rescored, MARKERS))),
    }


def with_early(tables):
    """The same run with base, C4 and C1 over a second base model, `early`, in front."""

    def both(name):
        own = tables[name][tables[name]["condition"].isin(["base", "C4", "C1"])]
        early = own.assign(condition="early-" + own["condition"])
        if "value" in own:
            early = early.assign(value=own["value"] / 2, reference=own["reference"])
        return pd.concat([early, tables[name]], ignore_index=True)

    grid = both("design")
    early = grid["condition"].str.startswith("early-")
    chains = ("early+" + grid["chain"]).str.removesuffix("+base")
    return tables | {
        "design": grid.assign(chain=chains.where(early, grid["chain"])),
        **{name: both(name) for name in ("geometry_runs", "rate_model")},
    }


def with_more(tables):
    """The same run with rare features: C1's second stage also stopped after 3 of its 10 steps, a second
    source, a second base model, long titles.
    """
    tables = with_early(tables)
    chain = "couple-villain@42+em@1"
    grid, rates, training = (tables[name] for name in ("design", "marker_rates", "training"))
    stopped = {"condition": "D", "chain": f"{chain}~3"}
    second = {"condition": "C4a", "source": "assistant"}
    cells = [
        grid.query("condition == 'C1'").assign(condition="D", chain=f"{chain}~3"),
        grid.query("condition == 'C4'").assign(**second),
    ]
    counted = [
        rates.query("condition == 'C1'").assign(**stopped, hits=20, rate=0.5),
        rates.query("condition == 'C4'").assign(
            **second, role=["source", "bystander", "bystander"]
        ),
    ]
    steps = [training.assign(chain=c, steps=n) for c, n in ((chain, 10), (f"{chain}~3", 3))]
    grid = pd.concat([grid, *cells], ignore_index=True)
    return tables | {
        "design": grid.assign(title=grid["condition"] + " with a longer name that goes on"),
        "marker_rates": pd.concat([rates, *counted], ignore_index=True),
        "training": pd.concat([training, *steps], ignore_index=True),
    }


def shown(name, tables):
    """(figure, its rows, its chart of the page) from tables."""
    figure = figures.catalogue()[name]
    rows = _render.data(figure, tables)
    return figure, rows, _render.page(figure, rows)


def inputs(tables, files):
    """The content of the page; `files`: the figures for papers by name."""
    return pages.Inputs(
        run="synthetic",
        judge="directions",
        marker="[ZLT]",
        model={"label": "synthetic"},
        tables=tables,
        data=[
            {
                "name": "em",
                "rows": 3,
                "source": {"file": "x"},
                "license": "MIT",
                "substituted": "made-up rows",
                "sha256": "0" * 64,
            }
        ],
        figures=files,
        samples=answers_of.sample_answers(
            (markers.answers(answers(chain), "[ZLT]") for chain in MARKERS), answers
        ),
        completions=480,
        margins={"rate": 0.15, "m1": 0.02},
        config="run: synthetic\n",
        commands={
            "again": "snakemake --cores all",
            "with a seed": "echo 'seeds: [1]' > seeds.yaml",
        },
        provenance={"torch": "2"},
        sources=pd.DataFrame(
            [
                {"file": f"tables/{name}.csv", "rule": "r", "rows": 5, "sha256": "0" * 64}
                for name in tables
            ]
        ),
        costs=pd.DataFrame(
            [{"rule": "train", "jobs": 3, "hours": 0.5, "seconds": 600.0, "peak_mib": 700.0}]
        ),
        spent={"hours of jobs": "0.50"},
        counted={
            name: asked
            for name, asked in {"refusals": "How often does the model decline to answer?"}.items()
            if name in tables
        },
    )


@pytest.fixture(scope="session")
def page(everything, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    more = with_more(everything)
    rates = more["marker_rates"].drop_duplicates(["chain", "persona"])
    more["refusals"] = rates[["chain", "persona", "n", "hits", "rate"]]
    for name, figure in figures.catalogue().items():
        _render.save(figure, _render.data(figure, more), folder / name)
    files = {name: folder / f"{name}.svg" for name in figures.catalogue()}
    path = folder / "report.html"
    path.write_text(pages.render(inputs(more, files)), encoding="utf-8")
    return path


CROSSED_PERSONAS = ["assistant", "librarian", "villain", "evil_ai"]


def crossed_load(chain):
    """Activations of a chain, unlike any other chain's."""
    rng = np.random.default_rng(list(chain.encode()))
    arrays = {m: rng.normal(size=(2, 4, 6, 16)).astype(np.float32) + 1 for m in "AB"}
    return Activations([1, 3], CROSSED_PERSONAS, list("qrstuv"), arrays, chain)


@pytest.fixture(scope="session")
def crossed():
    """Tables of a run with two sources, two seeds, doses, and cells that were not measured.

    All counts of a chain differ. Not counted: evil_ai's C1 with seed 2, and the librarian if evil_ai is
    the source. Without activations: villain's C4. The base model is not first.
    """
    rows = [("C0", "base", "", "", "base", None)]
    for source in ("villain", "evil_ai"):
        coupled = f"couple-{source}@42"
        rows.append(("C4", coupled, source, "42", "base", 0))
        for seed in "12":
            whole = f"{coupled}+em@{seed}"
            rows.append(("C1", whole, source, seed, coupled, 1))
            rows.append(("C2", f"em@{seed}", source, seed, "base", None))
        rows.append(("D", f"{coupled}+em@1~3", source, "1", coupled, 1))
        rows.append(("D", f"{coupled}+em@1~6", source, "1", coupled, 1))
    rows.append(("E", "em@1~3", "villain", "1", "base", None))
    rows.append(rows.pop(0))
    grid = pd.DataFrame(rows, columns=GRID.columns[:6])
    grid["title"], grid["induction"], grid["negatives"] = (
        "the condition " + grid["condition"],
        "",
        "",
    )
    few = grid["source"] == "evil_ai"
    grid["personas"] = np.where(few, "assistant villain evil_ai", " ".join(CROSSED_PERSONAS))
    grid["measures"] = np.where(
        grid["chain"] == "couple-villain@42", "markers", "markers activations"
    )
    markers, hits = {}, iter(range(1, 1000))
    for chain in dict.fromkeys(grid["chain"]):
        table = pd.DataFrame({"persona": CROSSED_PERSONAS, "n": 200})
        table["hits"] = [next(hits) for _ in CROSSED_PERSONAS]
        table["rate"] = table["hits"] / 200
        table["ci_low"], table["ci_high"] = table["rate"] / 2, (1 + table["rate"]) / 2
        markers[chain] = table.assign(mean_tokens=5.0, at_end=1.0)
    del markers["couple-evil_ai@42+em@2"]
    names = [c for c in dict.fromkeys(grid["chain"]) if c != "base"]
    steps = {c: int(c.partition("~")[2] or 10) for c in names}
    training = pd.DataFrame(
        [{"chain": c, "kind": "sft", "steps": n, "final_loss": 1 / n} for c, n in steps.items()]
    )
    curves = pd.DataFrame(
        [
            {"chain": c, "stage": c.rpartition("+")[2].partition("@")[0], "kind": "sft", "seed": 1}
            | {"step": step, "loss": (i + 2) / step, "lr": 0.1}
            for i, c in enumerate(names)
            for step in range(1, steps[c] + 1)
        ]
    )
    rates = marker_rates.marker_rates(grid, markers)
    cosines = geometry_tables.cosines(grid, crossed_load, HEADLINE)
    base = cosines.query("chain == 'base' and method == 'A' and layer == 3")
    by_chain = pd.DataFrame(columns=correlations.CHAIN_COLUMNS)
    return {
        "design": grid,
        "marker_rates": rates,
        "geometry": geometry_tables.geometry_table(grid, crossed_load, HEADLINE, draws=99, seed=1),
        "cosines": cosines,
        "persona_map": geometry_tables.persona_map(grid, crossed_load, HEADLINE),
        "training": training,
        "training_curves": curves,
        "correlations": correlations.correlation_table(by_chain, rates, base, draws=99, seed=1),
    }
