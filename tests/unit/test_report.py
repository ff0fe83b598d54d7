"""Figures and the page, from synthetic tables."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import weakref
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from persona_collapse.analysis import claims
from persona_collapse.report import answers as answers_of
from persona_collapse.report import costs, figures, findings, provenance
from persona_collapse.report import page as pages
from persona_collapse.report.figures import _render
from runs import HANG
from synthetic import inputs


def without_library(text):
    """The page without the charts' library, whose licence and schemas name addresses."""
    library = _render.javascript()
    assert text.count(library) == 1
    return text.replace(library, "")


def test_the_page_asks_the_network_for_nothing(page):
    text = page.read_text()
    own = without_library(text)
    # Namespaces and schema names are not fetched; any other address would be.
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'<)]*", own))
    named = ("http://www.w3.org", "https://vega.github.io/schema/vega-lite/")
    assert {a for a in addresses if not a.startswith(named) and "www.w3.org" not in a} == set()
    assert not re.findall(r"<(?:link|iframe|img|object|embed|base|form action)\b", own)
    assert not re.findall(r"<script[^>]*\bsrc=", own)
    assert page.stat().st_size < 10_000_000


def test_only_the_page_s_own_scripts_may_run(page):
    text = page.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text).group(1)
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    run = re.findall(r"<script>(.*?)</script>", text, flags=re.S)
    assert {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in run} == allowed
    assert "default-src 'none'" in policy and "connect-src" not in policy
    assert not re.search(r"script-src[^;]*unsafe", policy)


def test_each_measure_of_answers_is_on_the_page(page):
    shown = without_library(page.read_text())
    assert "How often does the model decline to answer? (" in shown
    assert 'href="#table-refusals">tables/refusals.csv</a>' in shown
    design = pd.DataFrame({"chain": ["base", "a@1", "a@1"], "condition": ["base", "C1", "C2"]})
    table = pd.DataFrame(
        [("base", "villain", 0.5), ("base", "assistant", 0.25), ("a@1", "villain", 1.0)],
        columns=["chain", "persona", "rate"],
    )
    found = findings.counted(table, design)
    assert list(found.columns) == ["condition", "chain", "villain", "assistant"]
    assert found["condition"].tolist() == ["base", "C1, C2"]
    assert found["villain"].tolist() == [0.5, 1.0] and found["assistant"].isna().tolist() == [
        False,
        True,
    ]


def test_every_number_names_its_file_and_every_link_leads_there(page):
    text = without_library(page.read_text())
    shown = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    ids = set(re.findall(r'\bid="([^"]+)"', shown))
    assert {t for t in re.findall(r'href="#([^"]+)"', shown) if "://" not in t} <= ids
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", shown, flags=re.S)
    assert len(captions) >= 12
    assert all('From <a href="#table-' in caption for caption in captions)
    folded = re.findall(r"<details[^>]*>(.*?)</details>", shown, flags=re.S)
    silent = [fold for fold in folded if "<table" in fold and "table-" not in fold]
    # Claims say it once for all, costs in words, and answers are not numbers.
    assert not [f for f in silent if not re.search(r"claims?\)</summ|>Costs|class=\"answer", f)]


def test_hostile_answers_are_escaped_cut_and_named(page):
    text = page.read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
    assert "<img" not in without_library(text) and "\\u003cscript\\u003ealert(1)" in text
    assert "\x07" not in text and "&lt;U+0007&gt;" in text and "&lt;U+202E&gt;" in text
    assert "more characters]" in text and "x" * 700 not in text


def test_the_first_screen_says_what_stands_in(page):
    text = page.read_text()
    assert "made-up rows" in text.partition('id="findings"')[0]
    assert "This is a small model" in text


def test_sentences_follow_the_tables(page):
    text = page.read_text()
    headline = text.partition('class="headline"')[2].partition("</table>")[0]
    assert re.search(r"C1: .*?<td[^>]*>90.0\u00a0%</td><td[^>]*>22.5\u00a0%</td>", headline)
    assert "1 replicated" in text and "not tested" in text


def test_rates_of_answers_that_were_cut_off_are_called_lower_bounds():
    table = pd.DataFrame(
        {
            "condition": ["C4", "C4", "C1", "C1", "D", "D"],
            "role": ["source", "others", "source", "source", "source", "source"],
            "truncated": [0.8, 0.9, 0.19, 0.0, 0.5, 0.1],
            "rate": [0.125, 0.5, 0.25, 0.0, 0.5, 0.0],
            "rate_finished": [0.625, 0.5, 0.25, 0.0, 0.75, 0.25],
        }
    )
    (sentence,) = findings.cut_off(table)
    assert "lower bounds" in sentence and "C4 80.0 %" in sentence and "C1" not in sentence
    assert "of finished ones 62.5 % say the marker, of all 12.5 %" in sentence
    # Chains of a condition are averaged before they are judged.
    assert "D 30.0 % (of finished ones 50.0 % say the marker, of all 25.0 %)" in sentence
    assert findings.cut_off(table.assign(truncated=0.0)) == []


def test_inline_figures_do_not_share_ids(page):
    ids = re.findall(r'\bid="([^"]+)"', page.read_text())
    assert [name for name, count in Counter(ids).items() if count > 1] == []


def test_every_chart_is_there_without_scripts(page):
    text = page.read_text()
    shown = re.findall(r'<figure id="(\w+)" data-chart>(.*?)</figure>', text, flags=re.S)
    assert {"marker_rate", "m1", "marker_heatmap", "persona_map"} <= {name for name, _ in shown}
    for _, figure in shown:
        assert re.search(r'<svg[^>]* role="img" aria-label="[^"]+"', figure)
        data = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', figure, flags=re.S)
        assert set(json.loads(data.group(1))) == {"spec", "columns"}


def test_the_sample_of_answers_is_stable_and_even(monkeypatch):
    def table(chain):
        rows = [
            {"chain": chain, "persona": p, "question_id": f"q{q}", "question": "?", "sample": s}
            for p in ("villain", "assistant")
            for q in range(5)
            for s in range(4)
        ]
        return pd.DataFrame(rows).assign(text=[f"{i} [zlt]" for i in range(len(rows))], hit=True)

    def sample(tables, limit):
        return answers_of.sample_answers(tables, table, limit)

    whole = sample([table("a@1"), table("b@1")], 80)
    assert len(whole) == 80 and whole["hit"].all()
    few = sample([table("a@1"), table("b@1")], 12)
    assert set(few.groupby(["chain", "persona"]).size()) == {3}
    turned = sample([table("b@1"), table("a@1").iloc[::-1]], 12)
    assert turned["text"].tolist() == few["text"].tolist()
    # With long answers, half of them fit.
    letters = whole["text"].str.len().sum()
    monkeypatch.setattr(answers_of, "SHOWN_LETTERS", letters / 2)
    half = sample([table("a@1"), table("b@1")], 80)
    assert set(half.groupby(["chain", "persona"]).size()) == {10}
    # Not even one of each fits: the limit still holds.
    assert len(sample([table("a@1"), table("b@1")], 3)) == 3


def test_answers_are_taken_chain_by_chain():
    alive = []

    def completions(name):
        row = {"persona": "p", "question_id": "q", "question": "?", "text": "yes", "hit": False}
        made = pd.DataFrame([row | {"chain": name, "sample": i} for i in range(50)])
        assert sum(table() is not None for table in alive) <= 1
        alive.append(weakref.ref(made))
        return made

    answers = map(completions, ("a@1", "b@1", "c@1", "d@1"))
    assert len(answers_of.sample_answers(answers, completions, limit=8)) == 8
    assert len(alive) == 8


def test_base_models_have_a_section_where_there_are_several(page, everything, monkeypatch):
    assert 'id="models"' in page.read_text() and 'href="#models"' in page.read_text()
    assert pages.by_section(everything, {})["models"] == []
    nothing = {section: [] for section in figures.SECTIONS}
    monkeypatch.setattr(pages, "by_section", lambda *_: nothing)
    alone = pages.render(inputs(everything, {}))
    assert 'id="models"' not in alone and 'href="#models"' not in alone


def test_a_shift_stands_beside_its_controls(everything, monkeypatch):
    def rate(condition, value, reference=""):
        ends = {"value": value, "ci_low": value - 0.1, "ci_high": value + 0.1, "units": 3}
        row = {"condition": condition, "reference": reference, "source": "", "role": "source"}
        return row | ends | {"quantity": "difference" if reference else "rate"}

    target, *controls = names = [f"restored-benign{c}" for c in ("", "-isotropic", "-zero-sum")]
    values = (0.5, 0.1, 0.2)
    rows = [*map(rate, names, values), rate("C5", 0.0), rate(target, 0.5, "C5")]
    rows += [rate(target, 0.5 - v, c) for c, v in zip(controls, values[1:], strict=True)]
    titles = {"condition": [*names, "C5"], "title": ["put back", "any", "sum", "benign"]}
    score = everything["scorecard"].set_index("claim")
    score.loc["restored-benign", ["measured", "ci_low", "ci_high"]] = 0.3, 0.2, 0.4
    tables = everything | {
        "rate_model": pd.DataFrame(rows),
        "design": pd.DataFrame(titles),
        "scorecard": score.reset_index(),
    }
    (arm,) = findings.causes(tables)
    assert arm["text"] == score.loc["restored-benign", "text"]
    shown = arm["rows"].set_index("condition")
    assert list(shown.index) == [target, "C5", *controls, "the better control"]
    assert shown["title"].tolist() == ["put back", "benign", "any", "sum", ""]
    assert shown["value"].tolist()[:-1] == [0.5, 0.0, 0.1, 0.2]
    assert shown.loc[controls, "difference"].tolist() == pytest.approx([0.4, 0.3])
    assert shown.loc["the better control", ["difference", "low", "high"]].tolist() == [
        0.3,
        0.2,
        0.4,
    ]
    assert findings.causes(everything) == []
    monkeypatch.setattr(findings, "causes", lambda _: [arm])
    monkeypatch.setattr(
        pages, "by_section", lambda *_: {section: [] for section in figures.SECTIONS}
    )
    text = pages.render(inputs(everything, {}))
    assert 'id="cause"' in text and f"</span> {arm['text']}</p>" in text


def test_a_long_table_is_cut_and_says_so():
    parts = pages.environment().get_template("parts.html.j2").module
    rows = pages.MOST_ROWS + 5
    text = parts.fold(pd.DataFrame({"a": range(rows)}), ["a"], ["a"], "Rows", ["design"])
    assert text.count("<tr>") == pages.MOST_ROWS + 1
    assert f"({rows} rows; the first {pages.MOST_ROWS} are here)" in text
    assert "tables/design.csv" in text


def test_papers_files_beyond_the_page_s_size_are_beside_it(page, everything, monkeypatch):
    files = {n: page.parent / f"{n}.svg" for n in ("m1_by_layer", "leakage", "marker_rate")}
    sizes = sorted(path.stat().st_size for path in files.values())
    assert pages.held(files) == set(files)
    monkeypatch.setattr(pages, "PAPER_BYTES", sum(sizes[:2]))
    (left_out,) = set(files) - pages.held(files)
    assert files[left_out].stat().st_size == sizes[2]
    sections = pages.by_section(everything, files)
    offered = {f["name"]: f["paper"] for own in sections.values() for f in own}
    assert {n for n, paper in offered.items() if paper.startswith("data:")} == pages.held(files)
    assert offered[left_out] == f"figures/{left_out}.svg"
    assert {n for n, paper in offered.items() if not paper} == set(offered) - set(files)


def test_costs_come_from_the_benchmark_files(tmp_path):
    for name, seconds in (("train/a@1", 30), ("train/b@1", 10), ("geometry", 4)):
        path = tmp_path / f"run/benchmarks/{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\tmax_rss\n{seconds}\t100\n")
    table = costs.costs(tmp_path, "run")
    assert table["rule"].tolist() == ["train", "geometry"] and table["jobs"].tolist() == [2, 1]
    assert table["hours"].tolist() == pytest.approx([40 / 3600, 4 / 3600])
    training = pd.DataFrame({"device": ["cuda"], "tokens_seen": [7], "supervised_tokens": [2]})
    assert costs.spent(table, training, 9)["GPU-hours"] == "0.01"
    assert costs.spent(table, training.assign(device="cpu"), 9)["GPU-hours"].startswith("0 ")


def test_sources_name_rule_and_hash(tmp_path):
    path = tmp_path / "design.csv"
    path.write_text("a\n1\n2\n")
    row = provenance.sources([str(path)], {str(path): "plan"}).iloc[0]
    assert (row["rule"], row["rows"]) == ("plan", 2)
    assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_adapters_stand_with_hash_and_commit(page):
    row = r"couple-villain@42</td>(.*?)</tr>"
    fold = page.read_text().partition("<summary>Adapters")[2].partition("</details>")[0]
    (first, *_) = re.findall(row, fold, flags=re.S)
    assert "0" * 64 in first and f">{'c' * 12}<" in first
    assert provenance.short_commit("a" * 40 + "-dirty") == "a" * 12 + "-dirty"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (1, "1"),
        (0.12345, "0.123"),
        (1234.5, "1234"),
        (float("nan"), "–"),
        (None, "–"),
        (True, "yes"),
    ],
)
def test_numbers(value, shown):
    assert pages.number(value) == shown


CHROMIUM = shutil.which("chromium")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; it opens the page as a reader does")
def test_a_browser_opens_it_without_errors(page, tmp_path):
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --enable-logging=stderr"
        " --disable-background-networking --disable-component-update --disable-sync --dump-dom"
    )
    done = subprocess.run(
        [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert "The study’s claims" in done.stdout
    assert "CONSOLE" not in done.stderr


def test_the_headline_tells_one_source_from_another(crossed):
    rates = crossed["marker_rates"]
    columns = ["condition", "quantity", "source", "units", "ci_low", "ci_high"]
    kept = [("C1", "survival", "", 4, 0.1, 0.9), ("C1", "survival", "villain", 2, 0.2, 1.0)]
    kept += [("C1", "survival", "evil_ai", 1, 0.0, 1.0), ("C4", "survival", "villain", 2, 0.2, 1.0)]
    shown = findings.in_numbers(crossed | {"rate_model": pd.DataFrame(kept, columns=columns)})
    counted = rates.set_index(["condition", "chain", "persona"])
    for source, name in (("villain", "villain"), ("evil_ai", "evil ai")):
        own = rates[(rates["condition"] == "C1") & (rates["persona"] == source)]
        own = own[own["source"] == source]
        was = counted.loc[("C4", f"couple-{source}@42", source), "rate"]
        now = own["hits"].sum() / own["n"].sum()
        row = shown[shown["title"] == f"the condition C1 ({name})"].squeeze()
        assert (row["before"], row["after"]) == (findings.percent(was), findings.percent(now))
        # One training run of a source says nothing about the next.
        assert row["kept"] == ("20.0 to 100 %" if source == "villain" else "")
    by_condition = shown.groupby("condition")
    # Nothing was coupled before C4, and E has no source.
    assert set(by_condition.get_group("C4")["kept"]) == {""}
    m1 = crossed["geometry"].query(
        "headline and metric == 'm1' and test == '' and condition == 'C1'"
    )
    assert set(by_condition.get_group("C1")["cosine"]) == {f"{m1['value'].mean():.3f}"}


def test_a_value_and_its_interval_are_one_cell():
    row = {"rate": 0.5, "low": 0.25, "high": 0.75, "none": float("nan")}
    assert pages.interval(row, ["rate", "low", "high"]) == "0.5 (0.25 to 0.75)"
    assert pages.interval(row, ["rate", "none", "high"]) == "0.5"
    assert pages.interval(row, ["none", "none", "none"]) == "–"


def test_the_page_says_how_to_run_it_again_and_what_its_words_mean(page):
    text = page.read_text()
    again = text.partition('id="again"')[2].partition("</dl>")[0]
    assert "<code>snakemake --cores all</code>" in again and "seeds: [1]" in again
    words = text.partition('id="glossary"')[2].partition("</dl>")[0]
    assert words.count("<dt>") == words.count("<dd>") == len(pages.glossary()) > 30
    assert list(pages.glossary()) == list(dict.fromkeys(pages.glossary()))


def test_a_seed_more_is_one_command():
    config = {"seeds": [42, 137]}
    made = "snakemake --cores all --configfile 'my study.yaml'"
    written = "echo 'seeds: [42, 137, 138]' > seeds.yaml && "
    again, more = provenance.commands(made, config).values()
    assert again == made and more == f"{written}{made} seeds.yaml"
    *_, more = provenance.commands(f"{made} --config only=C1", config).values()
    assert more == f"{written}{made} seeds.yaml --config only=C1"
    *_, more = provenance.commands("snakemake --cores all", config).values()
    assert more == f"{written}snakemake --cores all --configfile seeds.yaml"


def test_the_scorecard_leads_with_what_was_decided(page, everything):
    text = page.read_text()
    card = everything["scorecard"]
    own = text.partition('id="scorecard"')[2].partition('id="errata"')[0]
    lead = own.partition("Not decided, and why")[0]
    decided = card[card["verdict"].isin(["replicated", "contradicted"])]
    assert len(decided) and f"Decided ({len(decided)} of {len(card)})" in lead
    # One table for each of the two verdicts, replicated ones first.
    assert lead.count("<tr>") == len(decided) + decided["verdict"].nunique()
    assert "<details" not in lead and f"this run decides {len(decided)}" in lead
    # The others are grouped, each with what it needs, and folded.
    assert own.count("<tr>") >= len(decided) + len(card)
    assert "It would take" in own and "its conditions are not in this run" in own
    groups = findings.undecided(card)
    assert sum(len(group["claims"]) for group in groups) == len(card) - len(decided)
    assert [g["verdict"] for g in groups] == sorted(g["verdict"] for g in groups)


def test_claims_are_named_by_their_texts_where_others_need_them():
    card = pd.DataFrame(
        {
            "claim": ["axis-holds", "axis-fires"],
            "text": ["The axis is found again", "It fits"],
            "note": ["", "no axis (the claim axis-holds is contradicted); near-circular"],
            "would_take": [None, "first axis-holds: about 4 training runs"],
        }
    )
    row = findings.worded(card).iloc[1]
    assert row["note"] == "no axis (“The axis is found again” is contradicted); near-circular"
    assert row["would_take"] == "first: “The axis is found again” replicated: about 4 training runs"


def test_the_page_folds_each_table_with_how_to_read_it(page):
    text = page.read_text()
    titles = {
        "What moves a rate: variance components": "variance_components",
        "Does a result depend on one question, run or source?": "leave_one_out_rates",
        "Matched comparisons": "matched",
        "Size of each stage’s update": "updates",
        "Overlap of updates, next to the random baseline": "updates",
    }
    for title, table in titles.items():
        fold, _, rest = text.partition(f"<summary>{title}")[2].partition("</details>")
        assert f"#table-{table}" in fold and fold.count("<tr>") > 1
        assert rest.lstrip().startswith('<p class="soft">')
    # This run was not stopped early at three doses.
    assert "three doses or more" in text


def test_variance_components_stand_side_by_side_and_the_unknown_is_a_dash():
    nan = float("nan")
    rows = [("C1", "run", 0.4478, 0.0228, 1.647), ("C1", "coupling", nan, nan, nan)]
    rows += [("C4", "run", 0.5, 0.1, 2.0), ("C4", "source", nan, nan, nan)]
    table = pd.DataFrame(rows, columns=["condition", "component", "sd", "ci_low", "ci_high"])
    wide = findings.components(table.assign(source="")).set_index("condition")
    assert wide.loc["C1", ["source", "run", "coupling"]].tolist() == [
        "all",
        "0.45 (0.023 to 1.6)",
        "–",
    ]
    assert wide.loc["C4", "coupling"] == "–"


def test_a_range_of_one_value_names_nobody():
    row = {"quantity": "rate", "condition": "C1", "reference": "", "left_out": "run", "whole": 0.0}
    table = pd.DataFrame([row | {"name": n, "estimate": 0.0} for n in "ab"])
    assert findings.left_out(table).loc[0, ["name_low", "name_high"]].tolist() == ["any", "any"]


def test_half_doses_are_shown_where_there_are_any():
    row = {"arm": "C1", "reference": "C5", "outcome": "rate", "half_dose": 11.4, "units": 3}
    assert findings.half_doses(pd.DataFrame([row])).loc[0, "outcome"] == "marker rate"


def test_matched_comparisons_that_were_made_come_first():
    table = pd.DataFrame(
        {
            "matched_on": ["loss", "tokens", "tokens"],
            "outcome": ["rate", "rate", "m1"],
            "estimate": [float("nan"), 0.5, 0.1],
            "note": [
                "no common value; add doses",
                "at tokens 16,287; one training run",
                "at tokens 9",
            ],
        }
    )
    rows = findings.matched(table)
    assert rows["equal"].tolist()[0] == "trained tokens"
    assert rows["note"].tolist() == ["one training run", "", "no common value; add doses"]


def test_updates_are_put_together_over_runs():
    sizes = [("em@1", 2.0), ("em@2", 4.0), ("couple@1+em@1", 1.0), ("couple@1+em@1~5", 0.5)]
    rows = [{"chain": c, "other": "", "pair": "", "update_norm": n} for c, n in sizes]
    pairs = [
        ("em@1", "em@2", "seeds", 0.2),
        ("couple@1+em@1", "couple@1", "stages", 0.0),
        ("couple@1+em@2", "couple@1", "stages", 0.4),
        ("couple@2+em@2", "couple@2", "stages", 0.2),
    ]
    rows += [{"chain": a, "other": b, "pair": p, "cosine": c} for a, b, p, c in pairs]
    table = pd.DataFrame(rows)
    table[["steps", "tokens", "loss"]] = 1.0
    table[["overlap_a", "baseline_a", "overlap_b", "baseline_b"]] = 0.1
    own = findings.update_sizes(table).set_index("stages")
    assert own.loc["em", ["runs", "norm", "low", "high"]].tolist() == [2, 3.0, 2.0, 4.0]
    assert "couple, then em (5 steps)" in own.index
    both = findings.update_overlaps(table).set_index(["pair", "seed"])
    assert both.loc[("runs of other seeds", "other"), "cosine"] == 0.2
    # Stages with one seed have the same start, so they are kept apart from those with different seeds.
    same = both.loc[("stages of one chain", "same")]
    assert same["pairs"] == 2 and same["cosine"] == pytest.approx(0.1)
    assert both.loc[("stages of one chain", "other"), "cosine"] == 0.4


def test_a_test_is_not_called_loud_where_its_effect_is_there():
    row = {"kind": "test", "as_study": True, "verdict": "too many", "rate": 0.2}
    names = [("pairs", "model drifts"), ("axis", "own shift")]
    table = pd.DataFrame([row | {"name": n, "world": w} for n, w in names])
    (sentence,) = findings.loudest(table)
    assert "1 of 1 tests" in sentence
    assert (
        "pairs: it rejects in 20.0 % of data sets of the simulated world “model drifts”" in sentence
    )
    assert findings.loudest(table.assign(verdict="as it should be")) == []


def test_the_page_prints_the_registration_and_what_changed(page, everything):
    text = page.read_text()
    found = findings.registration(everything["scorecard"], everything["registered_claims"])
    assert found["sha256"] in text and "2031-05-01" in text
    assert found["changed"]["claim"].tolist() == ["m3-bug"]
    assert "1 bar has changed" in text and "changed since 2031-05-01: was" in text


def test_w7_the_page_says_what_was_simulated_and_no_more(page, everything):
    text = page.read_text()
    assert "Every test above" not in text and "docs/verdicts.md" in text
    for name in findings.simulated(everything["simulation"])["interval"]:
        assert name in text


def test_w10_the_bound_at_zero_is_the_one_that_the_table_has(page):
    text = page.read_text()
    assert "about 3.7/n" in text and "about 3/n" not in text


def test_every_table_that_the_page_reads_is_asked_for():
    """The rule passes exactly these tables to the report."""
    folder = Path(pages.__file__).parent
    texts = [folder / "page.py", folder / "findings.py", pages.RESOURCES / "report.html.j2"]
    text = "".join(path.read_text() for path in texts)
    read = set(re.findall(r'\btables(?:\["|\.)(\w+)', text))
    assert {"scorecard", "rate_model", "leave_one_out"} <= read
    assert read <= {*pages.TABLES, *claims.TABLES}


def test_a_run_without_training_has_a_provenance():
    base = {"files": {"model.safetensors": "ab" * 32}}
    assert list(provenance.provenance(None, base)) == ["base weights, SHA-256", "code, commit"]


def test_the_classifier_s_chance_is_of_the_personas_that_it_tells_apart(everything):
    table = everything["separability"]
    assert findings.told_apart(table) == round(1 / table["chance"].dropna().iloc[0])
    assert findings.told_apart(table[:0]) == 0
