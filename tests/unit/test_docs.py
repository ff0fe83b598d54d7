"""The documentation: generated pages are up to date, links work, and numbers agree with the code."""

import doctest
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import models
import pandas as pd
import pytest
import yaml
from persona_collapse import geometry, statistics
from persona_collapse.analysis import claims, geometry_tables, measured, readers
from persona_collapse.study import configuration
from snakemake.utils import update_config
from test_claims import change, of
from test_tables import GRID, HEADLINE, load

import docs as documentation

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "config/README.md",
    ROOT / "benchmarks/README.md",
    ROOT / "workflow/resources/data/README.md",
]
EXTENDING = (ROOT / "docs/extending.md").read_text()


def blocks(text, info):
    """Contents of the fenced blocks with this info string."""
    return re.findall(rf"^```{re.escape(info)}\n(.*?)^```$", text, re.M | re.S)


def anchors(text):
    """Anchors that GitHub gives a page's headings."""
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", documentation.PAGES)
def test_made_pages_are_what_make_docs_would_write(name):
    assert (ROOT / name).read_text() == documentation.PAGES[name](), "run `make docs`"


def test_the_glossary_is_the_report_s():
    page = (ROOT / "docs/reading.md").read_text()
    made = documentation.with_table(page, "glossary", documentation.glossary_table())
    assert page == made, "run `make docs`"


def test_every_key_of_the_config_is_described_and_on_the_page():
    page = (ROOT / "docs/config.md").read_text()
    schema = documentation.schema()
    for part in (schema, *schema["$defs"].values()):
        for key in documentation.keys(part, schema):
            assert key.text, f"{key.path} has no description"
            assert not re.search(r"\{\w+\.\w", key.text), f"{key.path}: a value was not put in"
            assert key.path.split(".")[-1] in page, key.path


@pytest.mark.parametrize(
    "path",
    [
        "config/config.yaml",
        *(f"config/presets/{p.name}" for p in (ROOT / "config/presets").iterdir()),
    ],
)
def test_the_schema_for_editors_takes_configs_and_overlays(path):
    given = yaml.safe_load((ROOT / path).read_text())
    validator = jsonschema.Draft202012Validator(documentation.schema())
    validator.validate(given)
    given["lora"] = {"rank": 8}
    assert "rank" in str(jsonschema.exceptions.best_match(validator.iter_errors(given)))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(found.read_text()), f"{page.name}: {target}"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_pages_of_the_site_link_to_files_of_the_site(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s#]+)", text):
        if "://" not in target:
            found = (page.parent / target).resolve()
            assert found.is_file() and found.is_relative_to(ROOT / "docs"), target


def pages_of(nav):
    """Files in a navigation, by section."""
    for entry in nav:
        for target in entry.values():
            if isinstance(target, str):
                yield target
            else:
                yield from pages_of(target)


def test_every_page_is_in_the_site_s_navigation_once():
    config = tomllib.loads((ROOT / "zensical.toml").read_text())
    pages = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    assert sorted(pages_of(config["project"]["nav"])) == pages, "fix `nav` in zensical.toml"


def test_the_site_builds_and_asks_no_other_host_for_anything(tmp_path):
    pytest.importorskip("zensical", reason="pip install -r requirements-docs.lock")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    build = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    made = {path.stem: path.read_text() for path in (tmp_path / "site").glob("*.html")}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} - {"README"} < made.keys()
    for name, html in made.items():
        assert not re.search(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?https?:", html), name
        assert "```" not in html, f"{name}: a fence that is shown as text"
    # A broken link is an error.
    (tmp_path / "docs/tests.md").write_text("[nowhere](nowhere.md)\n")
    assert subprocess.run(build, cwd=tmp_path, capture_output=True).returncode != 0


def test_the_chart_of_rules_names_rules_and_its_drawing_is_of_it():
    rules = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    known = set(re.findall(r"^rule (\w+):|^use rule \w+ as (\w+) with", rules, re.M))
    chart = (ROOT / "docs/images/rules.mmd").read_text().split("flowchart TB")[1]
    named = set(re.findall(r"\w+", re.sub(r"\|\w+\|", "", chart)))
    assert len(named) > 20 and named <= {name for pair in known for name in pair}
    drawn = re.findall(
        r"<tspan[^>]*>([a-z_]+)</tspan>", (ROOT / "docs/images/rules.svg").read_text()
    )
    assert set(drawn) - {"prefix"} == named, (
        "draw docs/images/rules.svg again: docs/contributing.md"
    )


def test_files_that_the_pages_name_are_there():
    for page in PAGES:
        for name in re.findall(
            r"`((?:config|workflow|docs|tests|envs|benchmarks)/[\w./-]+)`", page.read_text()
        ):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_what_runs_elsewhere_calls_targets_of_the_makefile():
    targets = set(re.findall(r"^(\w[\w ]*):", (ROOT / "Makefile").read_text(), re.M))
    targets = {name for line in targets for name in line.split()}
    files = [*(ROOT / ".github").rglob("*.*"), ROOT / "docs/contributing.md"]
    called = {
        name
        for path in files
        for names in re.findall(r"(?:`|run: .*?|^)make ((?:[a-z]+ ?)+)", path.read_text(), re.M)
        for name in names.split()
    }
    assert {"lint", "quick", "run", "test"} <= called <= targets
    for path in (ROOT / ".github").rglob("*.yml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_the_version_is_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == cited["version"]


def test_the_examples_on_the_statistics_page_give_what_it_says():
    result = doctest.testfile(
        str(ROOT / "docs/statistics.md"),
        module_relative=False,
        optionflags=doctest.NORMALIZE_WHITESPACE,
    )
    assert result.attempted > 8 and not result.failed


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1000, "move text to a page of docs/"


@pytest.mark.parametrize("name", ["README.md", "docs/reading.md"])
def test_the_readme_and_the_reading_page_quote_the_errata_and_the_bound_of_a_zero(name):
    page = " ".join((ROOT / name).read_text().split())
    hits, total = re.search(r"(\d+) hits of ([\d,]*\d)", page).groups()
    assert f"{hits} of {total}" in (ROOT / "docs/errata.md").read_text()
    said = r"if none of 24 answers has the marker, the true rate can still be (\d+) %"
    percent = re.search(said, page).group(1)
    assert int(percent) == round(100 * statistics.clopper_pearson(0, 24)[1].item())
    # A slow test compares the number with the simulation.
    assert re.search(r"the pair test rejects in \d+ % of (?:simulated|these) data sets", page)


def test_what_is_said_of_the_sources_is_in_their_table():
    lines = models.pages()["models"].sources_table(models.load(ROOT / "docs")).splitlines()
    rows = {tuple(c[:3]): c for c in ([c.strip("| ") for c in t.split(" | ")] for t in lines[2:])}
    model = "Qwen2.5-Coder-1.5B-Instruct"
    after = {
        source: rows["C1: coupled, then EM", model, source]
        for source in ("sarcastic", "villain", "evil_ai")
    }
    rates = [cells[3] for cells in after.values()]
    readme, page = (
        " ".join((ROOT / path).read_text().split()) for path in ("README.md", "docs/models.md")
    )
    one, two, three = rates
    assert f"one says its marker in {one} of answers, one in {two}, one in {three}" in readme
    others = f"the villain in {two}, *evil_ai* in {three}"
    assert f"says its marker in {one} of answers, {others}" in page
    m1 = sorted(cells[6][:5] for cells in after.values())
    assert f"M1 of their chains is {m1[0]} to {m1[-1]}" in page


def test_the_overlays_are_sound(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load(Path("config/config.yaml").read_text())
    found = blocks(EXTENDING, "yaml overlay")
    assert len(found) == 7
    for block in found:
        if not re.search("loss: |same_states:|asks_back:|file:", block):
            update_config(config, yaml.safe_load(block))
    grid = configuration.plan(config).grid
    assert "couple-villain@42+em-gentle@42" in set(grid["chain"])


def test_the_metric_and_the_claim_of_the_page(made, monkeypatch):
    monkeypatch.setattr(geometry, "METRICS", dict(geometry.METRICS))
    monkeypatch.setattr(measured, "READERS", dict(measured.READERS))
    exec(blocks(EXTENDING, "python geometry.py")[0], dict(vars(geometry)))
    table = geometry_tables.geometry_table(GRID, load, HEADLINE, draws=99, seed=1)
    own = table[table["metric"] == "nearest"]
    assert len(own) == 5 * 2 * 2 and (own["value"] <= 1).all()
    exec(blocks(EXTENDING, "python analysis/readers.py")[0], dict(vars(readers)))
    (claim,) = yaml.safe_load(blocks(EXTENDING, "yaml config/claims.yaml")[0])
    row = claims.scorecard(
        [claim],
        made | of("geometry_runs", change("C5", "C4", 0.1, 0.2, 0.3, metric="nearest")),
        fdr=0.01,
        judge="directions",
    ).iloc[0]
    assert row["verdict"] == "replicated" and row["n"] == "3 training runs"


def test_the_table_of_the_demo_run_is_made_from_the_run_s_tables(made):
    one = {
        "kind": "test",
        "arm": "geometry",
        "name": "flips",
        "rate": 0.384,
        "runs": 300,
        "world": "drift",
    }
    tests = made["marker_tests"].assign(reference="C5")
    given = made | {"marker_tests": tests, "simulation": pd.DataFrame([one])}
    table = documentation.demo_table(given)
    assert "| flips | rejects in 38 % of 300 data sets (drift) | simulation |" in table
    g = made["geometry"]
    cell = g[(g["metric"] == "spread") & (g["method"] == "A") & (g["layer"] == 3)]
    base, after = cell.set_index("condition")["value"][["base", "C1"]]
    assert f"| spread | base {base:.3f}, C1 {after:.3f} | geometry |" in table
    page = (ROOT / "docs/statistics.md").read_text()
    assert table in documentation.with_table(page, "demo run", table)
    # The page has a line for everything that is said about the demo.
    shipped = page.split("<!-- demo run, by `make docs` -->")[1]
    names = [line.split(" | ")[0] for line in table.splitlines() if "flips" not in line]
    assert names and all(name in shipped for name in names[2:] if "unit" not in name)


@pytest.mark.parametrize("name", models.pages())
def test_the_pages_of_real_runs_are_their_files_numbers(name):
    page, docs = ROOT / f"docs/{name}.md", ROOT / "docs"
    made = models.page(docs, name)
    assert made == (page.read_text() if page.is_file() else None), "run `make docs`"
    if made is None:  # no run was added yet
        return
    for folder in (docs / name).glob("*/"):
        size = sum(path.stat().st_size for path in folder.iterdir())
        assert size <= models.MOST_BYTES, f"{folder}: {size:,} bytes"
    # Where things stand, and how many ticks have numbers, depends on the machine's fonts: words are compared.
    figures = models.pages()[name].figures(models.load(docs, name))
    assert set(figures) == set(re.findall(r"\(images/([\w.-]+)\.svg\)", made))
    for figure, drawn in figures.items():
        shipped = (docs / f"images/{figure}.svg").read_text()
        written, there = (
            re.findall(r">([^<>]*[a-z][^<>]*)</(?:text|tspan)>", svg) for svg in (drawn, shipped)
        )
        assert written == there and any(re.search("marker|cosine", w) for w in written), (
            "run `make docs`"
        )
