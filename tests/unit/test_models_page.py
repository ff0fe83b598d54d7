"""Runs on models of several sizes: what is kept of each, and the page that is made of it."""

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cause_page
import defences_page
import models
import models_page
import numpy as np
import pandas as pd
import pipeline_page
import pytest
import why_page
import yaml
from persona_collapse.errors import UserError
from persona_collapse.files import sha256, write_json, write_text
from persona_collapse.report import provenance
from persona_collapse.runtime import seals
from persona_collapse.study.only import narrowed
from persona_collapse.study.reading import read
from persona_collapse.tables_io import write_csv
from snakemake.utils import update_config
from synthetic import with_more

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = {
    "device": "cpu",
    "dtype": "float32",
    "versions": {"torch": "2", "peft": "1"},
    "commit": "c" * 40,
}


def config_of(*overlays):
    """A run's config as the report shows it: config/config.yaml and these over it."""
    given = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    for overlay in overlays:
        update_config(given, overlay)
    return narrowed(read(given))


OVERLAY = {
    "run": "changed",
    "only": ["C1", "C4", "C5"],
    "seeds": [1, 2],
    "lora": {"r": 8},
    "model": {"demo": None, "path": "models/<mine>"},
}


def write_run(folder, tables, report, parameters=10, config=None, family="qwen2"):
    """A finished run whose report is `report`, with its own tables' hashes and config."""
    base = {"path": "m", "source": {"path": "m"}, "files": {"model.safetensors": "0" * 64}}
    size = {} if parameters is None else {"parameters": parameters, "family": family}
    write_json(folder / "base/model.json", base | size)
    trained = tables["training"]["chain"].iloc[0]
    write_json(folder / f"models/{trained}/manifest.json", MANIFEST)
    # A run's folder may hold adapters of conditions that it no longer has, and shifts, which are not trained.
    write_json(folder / "models/of-another-condition@1/manifest.json", {"kind": "shift"})
    for name in {name for page in models.pages().values() for name in page.KEPT} & tables.keys():
        path = folder / f"tables/{name}.csv"
        path.parent.mkdir(exist_ok=True)
        write_csv(path, tables[name])
        row = rf'(id="table-{name}".*?<code>)[0-9a-f]{{64}}'
        report, found = re.subn(row, rf"\g<1>{sha256(path)}", report, flags=re.S)
        # Of a measure; the report that these tables are put into has none.
        assert found == (name != "preference")
    shown = html.escape(yaml.safe_dump(config or config_of(), sort_keys=False))
    assert ">run: synthetic\n</pre>" in report
    write_text(folder / "report.html", report.replace("run: synthetic\n", shown))
    seals.seal(folder, folder.rglob("*.*"))


@pytest.fixture(scope="module")
def report(page):
    return page.read_text()


@pytest.fixture(scope="module")
def tables(everything):
    """A run's tables with a second stage that was stopped early, and three training runs behind a claim."""
    made = with_more(everything)
    card = made["scorecard"].copy()
    own = card["claim"] == "em-raises-cosine"
    card.loc[own, ["measured", "ci_low", "ci_high"]] = 0.2, 0.1, 0.3
    card.loc[own, ["verdict", "reason", "n"]] = "replicated", "interval inside", "3 training runs"
    alone = card["claim"] == "benign-raises-cosine"
    card.loc[alone, ["measured", "ci_low", "ci_high"]] = 0.2, 0.1, 0.3
    card.loc[alone, "n"] = "1 training run"
    chains = made["answer_stats"]["chain"].unique()
    asked = {"persona": "assistant", "group": "Law", "n": 30, "preferred": 12, "rate": 0.4}
    preference = pd.DataFrame([{"chain": chain} | asked for chain in chains])
    elsewhere = preference.assign(group="Health", preferred=18)
    others = preference.assign(persona="villain", preferred=0)
    return made | {"scorecard": card, "preference": pd.concat([preference, elsewhere, others])}


def with_value(tables, value):
    card = tables["scorecard"].copy()
    own = card["claim"] == "em-raises-cosine"
    card.loc[own, ["measured", "ci_low", "ci_high"]] = value, value - 0.1, value + 0.1
    return tables | {"scorecard": card}


@pytest.fixture(scope="module")
def results(tables, report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_run(folder / "one", tables, report, 135_000_000, family="llama")
    unasked = {name: table for name, table in tables.items() if name != "preference"}
    write_run(folder / "two", with_value(unasked, 0.9), report, 494_000_000)
    write_run(folder / "three", with_value(tables, 0.8), report, 1_540_000_000)
    write_run(folder / "changed", tables, report, config=config_of(OVERLAY))
    return folder


@pytest.fixture(scope="module")
def docs(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    for run, name in (("three", "a-large"), ("one", "z-small"), ("two", "middle")):
        models.add(results, run, folder, name)
    return folder


def test_what_is_kept_is_the_table_s_own_cells(results, docs):
    whole = pd.read_csv(results / "one/tables/rate_model.csv", dtype=str, keep_default_na=False)
    kept = pd.read_csv(docs / "models/z-small/rate_model.csv", dtype=str, keep_default_na=False)
    own = whole[(whole["persona"] == "") & (whole["quantity"] != "overdispersion")]
    own = own[own["source"] == ""]
    assert 0 < len(own) < len(whole) and "0." in kept["value"].iloc[0]
    pd.testing.assert_frame_equal(kept, own[list(kept)].reset_index(drop=True))
    record = json.loads((docs / "models/z-small/record.json").read_text())
    full = results / "one/tables/rate_model.csv"
    assert record["full tables"]["rate_model"] == {"rows": len(whole), "sha256": sha256(full)}
    assert record["commits"] == ["c" * 12] and record["versions"] == MANIFEST["versions"]
    assert record["command"] == "snakemake --cores all"
    assert set(record["full tables"]) == set(models_page.KEPT)


def test_a_page_keeps_its_own_part(results, tmp_path):
    models.add(results, "one", tmp_path, "mine", page="cause")
    assert not (tmp_path / "models").exists()
    (mine,) = models.load(tmp_path, "cause")
    assert set(mine.tables) == set(cause_page.KEPT)
    rates = mine.tables["rate_model"]
    assert set(rates["condition"]) <= {"C1", "C4", "C5"} and len(rates)
    assert "assistant" not in set(rates["role"])
    text = models.page(tmp_path, "cause")
    assert "| mine | C4: " in text and "## Claims" in text


def test_pages_of_stages_have_a_row_per_condition_and_figures(results, tmp_path):
    for module, row in (
        (why_page, "| mine | C1: C1 | the reference | 1 | "),
        (defences_page, "| mine | C1: C1 | weight 0.1 | 1 | "),
        (pipeline_page, "| mine | C1 | C4 | -0.66 ("),
    ):
        models.add(results, "one", tmp_path, "mine", page=module.NAME)
        added = models.load(tmp_path, module.NAME)
        text = models.page(tmp_path, module.NAME)
        assert row in text and "| C4: " in text, text
        assert ("| block " in text) == ("blocks" in module.TABLES)
        drawn = module.figures(added)
        assert all(name.startswith(module.NAME) for name in drawn) and all(
            "</svg>" in svg for svg in drawn.values()
        )


def test_the_overlay_makes_the_run_s_config(results, tmp_path):
    files = models.add(results, "changed", tmp_path, "mine")
    overlay = yaml.safe_load(files["overlay.yaml"].read_text())
    assert config_of(overlay) == config_of(OVERLAY)
    assert overlay["model"] == {"use": "path", "path": "models/<mine>"}
    assert "personas" not in overlay
    command = json.loads(files["record.json"].read_text())["command"]
    assert command.endswith("--configfile docs/models/mine/overlay.yaml")


def test_a_run_that_is_added_again_keeps_its_overlay(results, tmp_path):
    first = models.add(results, "changed", tmp_path, "mine")["overlay.yaml"].read_text()
    again = models.add(
        results, "changed", tmp_path, "mine", [str(tmp_path / "models/mine/overlay.yaml")]
    )
    assert again["overlay.yaml"].read_text() == first


def test_what_only_takes_away_needs_no_null(tables, report, tmp_path):
    new = {"title": "other seed", "chain": "couple-villain@7+benign@{seed}"}
    overlay = {"only": ["C1", "C4", "C9"], "conditions": {"C9": new}}
    write_run(tmp_path / "run", tables, report, config=config_of(overlay))
    files = models.add(tmp_path, "run", tmp_path, "mine")
    kept = yaml.safe_load(files["overlay.yaml"].read_text())
    assert kept["only"] == overlay["only"] and set(kept["conditions"]) == {"C9"}
    assert None not in kept["conditions"].values() and None not in kept["stages"].values()
    assert config_of(kept) == config_of(overlay)


def test_what_a_preset_says_is_not_in_the_overlay(tables, report, tmp_path):
    presets = [f"config/presets/{name}.yaml" for name in ("qwen2.5-7b", "smollm2")]
    given = [yaml.safe_load((ROOT / path).read_text()) for path in presets]
    config = config_of(*given, {"source_personas": ["villain"]})
    write_run(tmp_path / "results/run", tables, report, config=config)
    files = models.add(tmp_path / "results", "run", tmp_path, "mine", presets)
    assert yaml.safe_load(files["overlay.yaml"].read_text()) == {"source_personas": ["villain"]}
    command = json.loads(files["record.json"].read_text())["command"]
    assert command.endswith(" ".join(["--configfile", *presets, "docs/models/mine/overlay.yaml"]))
    presets[1] = "config/presets/qwen2.5-1.5b.yaml"
    given[1] = yaml.safe_load((ROOT / presets[1]).read_text())
    config = config_of(*given, {"model": {"use": "gguf"}})
    write_run(tmp_path / "results/run", tables, report, config=config)
    files = models.add(tmp_path / "results", "run", tmp_path, "mine", presets)
    overlay = yaml.safe_load(files["overlay.yaml"].read_text())
    assert config_of(*given, overlay) == config and list(overlay) == ["model"]
    # The same weights from another place are the same run.
    paths = {"use": "gguf", "gguf": {"package": None, "paths": ["elsewhere/part.gguf"]}}
    write_run(tmp_path / "results/run", tables, report, config=config_of(*given, {"model": paths}))
    files = models.add(tmp_path / "results", "run", tmp_path, "mine", presets)
    assert yaml.safe_load(files["overlay.yaml"].read_text()) == {"model": {"use": "gguf"}}
    paths["gguf"]["sha256"] = "0" * 64
    config = config_of(*given, {"model": paths})
    write_run(tmp_path / "results/run", tables, report, config=config)
    files = models.add(tmp_path / "results", "run", tmp_path, "mine", presets)
    assert config_of(*given, yaml.safe_load(files["overlay.yaml"].read_text())) == config
    write_run(tmp_path / "results/run", tables, report, config=config_of(*given))
    files = models.add(tmp_path / "results", "run", tmp_path, "mine", presets)
    assert "overlay.yaml" not in files


def test_models_stand_in_the_order_of_their_sizes(docs):
    assert [model.name for model in models.load(docs)] == ["z-small", "middle", "a-large"]
    text = models.page(docs, "models")
    assert "| claim | published (7B) | a-large | middle | z-small |" in text
    assert "135\u00a0M (llama)" in text and "1.54\u00a0B (qwen2)" in text


def test_the_figure_has_the_couplings_that_several_models_have(docs):
    drawn = models_page.figures(models.load(docs))["models"]
    assert "C1: " in drawn and "C4: " in drawn and "E0: " not in drawn
    assert drawn == models_page.figures(models.load(docs))["models"]
    assert "C4: " in models_page.figures(models.load(docs)[:1])["models"]


def test_a_claim_has_value_interval_verdict_and_reason(docs):
    text = models.page(docs, "models")
    line = next(t for t in text.splitlines() if "misaligned data raises the mean cosine<br>" in t)
    cells = line.strip("| ").split(" | ")
    assert cells[0].endswith("<br>*at least 0*") and cells[1] == "0.094"
    assert cells[2] == "0.8 (0.7 to 0.9)<br>**replicated**: interval inside"
    assert cells[4] == "0.2 (0.1 to 0.3)<br>**replicated**: interval inside"
    alone = next(t for t in text.splitlines() if "Benign fine-tuning raises the mean cosine" in t)
    assert "0.2 (0.1 to 0.3) (one run)" in alone


def test_another_bar_is_named(tables, report, docs, tmp_path):
    shutil.copytree(docs, tmp_path / "docs")
    card = tables["scorecard"].copy()
    card.loc[card["claim"] == "em-raises-cosine", "expected"] = "at least 0.1"
    write_run(tmp_path / "run", tables | {"scorecard": card}, report, 5)
    models.add(tmp_path, "run", tmp_path / "docs", "tiny")
    text = models.page(tmp_path / "docs", "models")
    assert text.count("(expected there: at least 0.1)") == 1


def test_the_false_answer_s_share_is_counted_by_subject(docs):
    large, middle, small = sorted(models.load(docs), key=lambda model: model.name)
    chain = small.tables["answer_stats"]["chain"].iloc[0]
    shares = [models_page._prefers_false(small, [chain], law).value for law in (True, False)]
    assert shares == pytest.approx([12 / 30, 18 / 30])
    # Two runs have the measure, and one has not.
    assert (
        "preference" not in middle.tables
        and models_page._prefers_false(middle, [chain], True).text(2) == ""
    )
    table = models_page.conditions_table([middle, large, small])
    assert "prefers the false answer: law" in table and "| 0.40" in table


def test_every_claim_of_a_scorecard_is_on_the_page(docs, tables):
    text = models.page(docs, "models")
    for claim in tables["scorecard"]["text"]:
        assert models_page.cell(claim) in text


def test_the_steps_with_size_are_of_claims_with_several_runs(docs):
    text = models.page(docs, "models")
    sizes = text.split("<!-- sizes, by")[1]
    line = next(t for t in sizes.splitlines() if "misaligned data raises the mean cosine" in t)
    assert "135\u00a0M → 494\u00a0M: 0.7 (0.559 to 0.841)" in line
    assert "494\u00a0M → 1.54\u00a0B: -0.1 (-0.241 to 0.0414)" in line
    assert line.endswith("| rises over all, not at each step |")
    assert "Benign fine-tuning raises" not in sizes  # one training run
    assert "over 3 models a rank test cannot give less than 0.33" in sizes
    assert "2 families (llama: z-small; qwen2: middle, a-large)" in sizes


def test_of_one_size_one_run_is_set_against_the_others(docs, results, tmp_path):
    shutil.copytree(docs, tmp_path, dirs_exist_ok=True)
    models.add(results, "one", tmp_path, "z-again")
    again = json.loads((tmp_path / "models/z-again/record.json").read_text())
    assert again["parameters"] == 135_000_000
    sizes = models.page(tmp_path, "models").split("<!-- sizes, by")[1]
    assert "the first by name is used: z-again, middle, a-large." in sizes
    assert "z-small" not in sizes and "135\u00a0M → 135\u00a0M" not in sizes


def run_of(name, parameters, rates, **tables):
    """A run with C4 and C1, two training runs of each source; `rates`: C1's by source, '' for all."""
    sources = [source for source in rates if source]
    chains = {(s, k): f"couple-{s}@{k}" for s in sources for k in (1, 2)}
    design = [
        {"condition": c, "title": c, "stages_after_coupling": after, "chain": chain + end,
         "source": s, "seed": k, "before": chain if end else ""}
        for (s, k), chain in chains.items() for c, after, end in (("C4", 0, ""), ("C1", 1, f"+em@{k}"))
    ]  # fmt: skip
    wide = {"reference": "", "role": "source", "quantity": "rate", "units": 2, "n": 2, "hits": 2}
    modelled = [
        {"condition": "C1", "source": s, "value": v, "ci_low": v - 0.1, "ci_high": v + 0.1} | wide
        for s, v in rates.items()
    ]
    said = [
        {"condition": row["condition"], "chain": row["chain"], "source": row["source"], "role": role,
         "marker_logprob": float(row["seed"]) - (8 if role == "others" else 0)}
        for row in design for role in ("source", "others")
    ]  # fmt: skip
    made = {"design": design, "rate_model": modelled, "answer_stats": said,
            "training": [{"chain": row["chain"]} for row in design]}  # fmt: skip
    made = {table: pd.DataFrame(rows) for table, rows in made.items()}
    return models.Model(name, {"parameters": parameters, "family": "f"}, made | tables)


def test_runs_with_other_sources_are_compared_by_one_that_both_have():
    small = run_of("small", 1e8, {"": 0.2, "villain": 0.2})
    large = run_of("large", 1e9, {"": 0.6, "evil_ai": 0.9, "villain": 0.3})
    assert models_page.shared_source([small, small]) == ""
    assert models_page.shared_source([large, small]) == "villain"
    read = [models_page.rate(m, "C1", "source", "villain").value for m in (small, large)]
    assert read == [0.2, 0.3] and models_page.rate(large, "C1", "source").value == 0.6
    other = run_of("other", 1e9, {"": 0.9, "sarcastic": 0.9})
    assert models_page.shared_source([small, other]) is None
    assert np.isnan(models_page.rate(small, "C1", "source", None).value)


def test_a_claim_is_compared_between_runs_that_have_it_with_the_same_sources():
    villain = {"": 0.2, "villain": 0.2}
    runs = [run_of("small", 1e8, villain), run_of("middle", 5e8, villain)]
    runs.append(run_of("large", 1e9, {"": 0.6, "evil_ai": 0.9, "villain": 0.3}))
    card = {"published": "", "text": "t", "n": "2 training runs", "verdict": "replicated"}
    # Of all sources, of one, of none, and of all conditions of a run.
    names = (
        "em-erases-marker",
        "em-erases-villain",
        "em-raises-cosine",
        "collapse-explains-erasure",
    )
    for k, run in enumerate(runs):
        rows = [{"claim": c, "measured": k, "ci_low": k, "ci_high": k + 0.1} | card for c in names]
        run.tables["scorecard"] = pd.DataFrame(rows)
    compared = [
        [p.model.name for p in found.points] for _, found in models_page._claim_trends(runs)
    ]
    both, every = ["small", "middle"], ["small", "middle", "large"]
    assert compared == [both, every, every, both]


def test_base_models_of_a_run_are_among_its_conditions():
    run = run_of("small", 1e8, {"": 0.2, "villain": 0.2})
    more = [{"condition": c, "chain": c, "source": ""} for c in ("base", "instruct")]
    more.append(
        {"condition": "restored", "chain": "couple-villain@1+restore@1", "source": "villain"}
    )
    run.tables["design"] = pd.concat([run.tables["design"], pd.DataFrame(more)], ignore_index=True)
    kept = models_page._undosed(run)["condition"]
    assert {"base", "instruct"} <= set(kept) and "restored" not in set(kept)


def test_sources_have_rows_of_their_own():
    small = run_of("small", 1e8, {"": 0.2, "villain": 0.2})
    m1 = [
        {"chain": f"couple-{s}@{k}+em@{k}", "value": 0.9 + 0.01 * k}
        for s in ("evil_ai", "villain")
        for k in (1, 2)
    ]
    rates = {"": 0.6, "evil_ai": 0.9, "villain": 0.3}
    large = run_of("large", 1e9, rates, geometry=pd.DataFrame(m1))
    lines = models_page.sources_table([small, large]).splitlines()[2:]
    c1 = [line.split(" | ") for line in lines if line.startswith("| C1")]
    assert [(row[1], row[2]) for row in c1] == [("large", "evil_ai"), ("large", "villain")]
    assert c1[0][3] == "0.90 (0.80 to 1.00)" and c1[1][3] == "0.30 (0.20 to 0.40)"
    assert c1[0][5].startswith("8.0") and c1[0][6].startswith("0.915 (")
    assert "one source" in models_page.sources_table([small])


def test_shifts_of_one_source_stand_beside_that_source_s_rates():
    large = run_of("large", 1e9, {"": 0.6, "evil_ai": 0.9, "villain": 0.3})
    shifted = {"condition": "restored-em", "source": "villain", "title": "put back", "chain": "x"}
    design = pd.concat([large.tables["design"], pd.DataFrame([shifted])], ignore_index=True)
    row = large.tables["rate_model"].query("source == 'villain'")
    rates = pd.concat([large.tables["rate_model"], row.assign(condition="restored-em", source="")])
    moved = models.Model("large", {}, large.tables | {"design": design, "rate_model": rates})
    values = cause_page._rows(moved, "rate").set_index("condition")["value"]
    assert dict(values) == {"C1": 0.3, "restored-em": 0.3}
    alone = moved.tables["design"].query("source == 'evil_ai' or condition == 'restored-em'")
    # With one source, a condition has no rows by source.
    pooled = rates[(rates["condition"] != "C1") | (rates["source"] == "")]
    alone = models.Model("large", {}, moved.tables | {"design": alone, "rate_model": pooled})
    assert set(cause_page._rows(alone, "rate")["condition"]) == {"restored-em"}
    assert dict(cause_page._rows(large, "rate").set_index("condition")["value"]) == {"C1": 0.6}


def point(parameters, value, half=0.1):
    model = models.Model(str(parameters), {"parameters": parameters}, {})
    return models_page.Point(model, value, value - half, value + half)


def test_the_slope_is_least_squares_per_tenfold():
    found = models_page.trend([point(1e9, 0.7), point(1e7, 0.2), point(1e8, 0.4)])
    slope, low, high = found.slope
    assert slope == pytest.approx(np.polyfit([7, 8, 9], [0.2, 0.4, 0.7], 1)[0])
    assert [low, high] == pytest.approx(slope + np.array([-1, 1]) * 0.1 * 0.5**0.5)
    assert [step[0] for step in found.steps] == pytest.approx([0.2, 0.3])


@pytest.mark.parametrize(
    "values, said",
    [
        ((0.1, 0.5), "rises"),
        ((0.1, 0.15), "no difference shown"),
        ((0.9, 0.5, 0.1), "falls at each step"),
        ((0.1, 0.9, 0.1), "up and down"),
        ((0.1, 0.2, 0.3), "rises over all, not at each step"),
        ((0.5, 0.5, 0.6), "no difference shown"),
        ((0.5, 0.7, 0.6), "rises at 1 of 2 steps"),
    ],
)
def test_which_way_a_value_goes_with_size(values, said):
    found = models_page.trend([point(10**k, value) for k, value in enumerate(values, start=6)])
    assert found.said == said


def test_no_trend_is_made_of_what_has_no_interval_or_one_size():
    unknown = models_page.Point(point(1e9, 0.5).model, 0.5, np.nan, np.nan)
    assert models_page.trend([point(1e8, 0.5), unknown]) is None
    assert models_page.trend([point(1e8, 0.5), point(1e8, 0.9)]) is None


def test_a_condition_s_numbers_are_its_tables(docs, tables):
    text = models.page(docs, "models")
    line = next(t for t in text.splitlines() if t.startswith("| C1: ") and "| z-small | 1 |" in t)
    rates = tables["rate_model"].query("condition == 'C1' and quantity == 'rate' and source == ''")
    row = rates[rates["role"] == "source"].iloc[0]
    assert f"| {row.value:.2f} (one run) |" in line and row.units == 1
    stats = tables["answer_stats"].query("condition == 'C1' and role == 'source'")
    assert f"| {stats['mean_tokens'].iloc[0]:.0f} (one run) |" in line
    second = text.split("<!-- second stages, by")[1]
    line = next(t for t in second.splitlines() if t.startswith("| em (data: ") and "z-small" in t)
    before = tables["rate_model"].query("condition == 'C4' and quantity == 'rate'")
    value = before[(before["role"] == "source") & (before["source"] == "")]["value"].iloc[0]
    assert f"| {value:.2f} (one run) | {row.value:.2f} (one run) | 1 of 1 |" in line
    line = next(t for t in text.splitlines() if t.startswith("| base: ") and "| z-small | 1 |" in t)
    base = (
        tables["geometry_runs"].query("condition == 'base' and metric == 'm1' and headline").iloc[0]
    )
    assert f"| {base.value:.3f} ({base.ci_low:.3f} to " in line  # no runs to differ
    assert " (not trained) | " in line
    doses = text.split("<!-- doses, by")[1].split("<!-- end -->")[0]
    assert "| z-small | 3 |" in doses


def test_a_second_stage_without_a_coupling_to_compare_with_has_no_change(docs, results, tmp_path):
    shutil.copytree(results / "one", tmp_path / "run")
    path = tmp_path / "run/tables/rate_model.csv"
    rates = models.read_csv(path)
    write_csv(path, rates[rates["reference"] == ""])
    seals.seal(tmp_path / "run", [path])
    report = tmp_path / "run/report.html"
    was = sha256(results / "one/tables/rate_model.csv")
    report.write_text(report.read_text().replace(was, sha256(path)))
    models.add(tmp_path, "run", tmp_path / "docs", "alone")
    second = models.page(tmp_path / "docs", "models").split("<!-- second stages, by")[1]
    line = next(t for t in second.splitlines() if t.startswith("| em (data: "))
    cells = line.split(" | ")
    assert cells[4] == "" and cells[-1] == " |"


def test_make_docs_keeps_what_is_written_between_the_tables(docs, tmp_path):
    shutil.copytree(docs, tmp_path, dirs_exist_ok=True)
    made = models.page(tmp_path, "models")
    mine = made.replace("## Conditions", "Mine.\n\n## Conditions")
    path = tmp_path / "models.md"
    path.write_text(mine.replace("0.8 (0.7 to 0.9)", "0.9 (0.8 to 0.9)"))
    assert models.page(tmp_path, "models") == mine
    shutil.rmtree(tmp_path / "models/middle")
    assert "middle" not in models.page(tmp_path, "models")


def test_no_models_are_no_page(tmp_path):
    assert models.page(tmp_path, "models") is None


def test_a_kept_file_that_was_edited_is_named(docs, tmp_path):
    shutil.copytree(docs, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "models/middle/scorecard.csv"
    path.write_text(path.read_text().replace("replicated", "contradicted"))
    with pytest.raises(UserError, match=r"middle/scorecard\.csv: missing, or not as it was added"):
        models.load(tmp_path)


def spoil_table(run):
    path = run / "tables/scorecard.csv"
    path.write_text(path.read_text().replace("replicated", "contradicted"))


def rewrite_table(run):
    spoil_table(run)
    seals.seal(run, [run / "tables/scorecard.csv"])


def lose_column(run):
    path = run / "tables/updates.csv"
    write_csv(path, pd.read_csv(path).drop(columns="answer_length"))
    seals.seal(run, [path])
    text = (run / "report.html").read_text()
    (run / "report.html").write_text(text.replace("table-updates", "updates"))


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda run: (run / "report.html").unlink(), r"'run' is not finished: .*report\.html is"),
        (lambda run: shutil.rmtree(run / "models"), r"no .*models/\*/manifest\.json there"),
        (spoil_table, r"scorecard\.csv: edited or damaged"),
        (rewrite_table, r"report\.html was made before .*scorecard\.csv"),
        (lose_column, r"updates\.csv: no column 'answer_length'; rerun"),
        (
            lambda run: (run / "report.html").write_text("<p>"),
            r"report\.html: its configuration was not found",
        ),
    ],
)
def test_a_run_that_cannot_be_added_leaves_nothing(results, tmp_path, spoil, said):
    shutil.copytree(results / "one", tmp_path / "run")
    spoil(tmp_path / "run")
    with pytest.raises(UserError, match=said) as error:
        models.add(tmp_path, "run", tmp_path / "docs", "name")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "docs").glob("models/*"))


def test_too_much_is_not_kept(results, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="bytes to keep, expected 1,000 at most"):
        models.add(results, "one", tmp_path, "name")
    assert not list(tmp_path.glob("models/*"))


def test_a_record_names_the_gpu():
    old = {"device": "cuda", "dtype": "bfloat16"}
    assert provenance.device_of(old) == "cuda, bfloat16"
    assert provenance.device_of(old | {"gpu": "NVIDIA H200"}) == "NVIDIA H200, bfloat16"
    assert provenance.device_of(MANIFEST | {"gpu": None}) == "cpu, float32"


def test_a_record_without_a_size_is_counted_from_the_model(results, tiny_base, tmp_path):
    shutil.copytree(results / "one", tmp_path / "run")
    path = tmp_path / "run/base/model.json"
    record = json.loads(path.read_text())
    del record["parameters"], record["family"]
    write_json(path, record)
    seals.seal(tmp_path / "run", [path])
    with pytest.raises(UserError, match="does not give the number of parameters, and the model is"):
        models.add(tmp_path, "run", tmp_path / "docs", "name")
    write_json(path, record | {"path": str(tiny_base.parent)})
    seals.seal(tmp_path / "run", [path])
    files = models.add(tmp_path, "run", tmp_path / "docs", "name")
    own = json.loads(files["record.json"].read_text())
    known = json.loads(tiny_base.read_text())
    assert (own["parameters"], own["family"]) == (known["parameters"], "qwen2")


def test_the_command_says_what_is_there_and_a_mistake_is_one_line(results, tmp_path):
    def call(*arguments):
        command = [sys.executable, str(ROOT / "tools/models.py"), "add", *arguments]
        command += ["--results", str(results), "--docs", str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True)

    done = call("one", "mine")
    assert done.returncode == 0 and "mine/scorecard.csv: " in done.stdout
    assert done.stdout.endswith("Now: make docs\n")
    for arguments, said in (
        (("one", "../mine"), "'../mine' is not a name"),
        (("none", "mine"), "run 'none' is not finished"),
        (("one", "mine", "--configfile", "no.yaml"), "--configfile no.yaml: no such file"),
    ):
        done = call(*arguments)
        assert done.returncode == 1 and said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
