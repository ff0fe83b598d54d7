"""Figures and the page, from synthetic tables."""

import re
import shutil
import subprocess
from collections import Counter

import pandas as pd
import pytest
from persona_collapse import audit, claims, errata, figures, report, simulate, tables
from test_claims import HEADLINE, claim
from test_tables import GRID, load

HOSTILE = "<script>alert(1)</script> \x07\u202eevil\n" + "x" * 5000


SIZES = simulate.Sizes(personas=5, questions=6, samples=2, extraction=6, margin=0.15)


@pytest.fixture(scope="module")
def everything(made):
    published = errata.Published(
        *(
            pd.read_csv(report.RESOURCES.parent / f"published/{n}.csv")
            for n in ("counts", "cosines")
        )
    )
    entries = [{"id": "hits", "text": "Hits", "stated": "0", "correct": "hits_after"}]
    training = [
        {
            "chain": "couple-villain@42",
            "kind": "couple",
            "name": "couple-villain",
            "rows": 600,
            "loss_on": "answer",
            "steps": 5,
            "tokens_seen": 10,
            "supervised_tokens": 4,
            "use_rslora": True,
            "scale": 11.31,
            "final_loss": 0.1,
            "seconds": 3.0,
        }
    ]
    return made | {
        "scorecard": claims.scorecard([claim()], made, headline=HEADLINE, fdr=0.01, scale="demo"),
        "errata": errata.errata_table(entries, published),
        "simulation": simulate.simulate(SIZES, runs=20, draws=99, seed=1),
        "power": simulate.power_table(SIZES, made["geometry"], draws=199),
        "training": pd.DataFrame(training),
        "prompt_audit": audit.table([]),
    }


@pytest.fixture(scope="module")
def drawn(everything):
    rates, geometry = everything["marker_rates"], everything["geometry"]
    curves = pd.DataFrame(
        [
            {"chain": c, "stage": s, "kind": "sft", "seed": 1, "step": i, "loss": 2 / i}
            for c, s in (("couple-villain@42", "couple-villain"), ("em@1", "em"))
            for i in (1, 2, 3)
        ]
    )
    return {
        "marker_rate": figures.marker_rate(rates, GRID),
        "marker_heatmap": figures.marker_heatmap(rates, GRID),
        "m1_by_layer": figures.m1_by_layer(geometry, GRID),
        "cosine_matrices": figures.cosine_matrices(tables.cosines(GRID, load), GRID, "A", 3),
        "behaviour_and_geometry": figures.behaviour_and_geometry(rates, geometry, GRID, "A", 3),
        "false_positives": figures.false_positives(everything["simulation"]),
        "training_curves": figures.training_curves(curves),
    }


@pytest.fixture
def page(everything, drawn, tmp_path):
    shown = []
    for name, (figure, data) in drawn.items():
        figures.save(figure, data, tmp_path / name)
        title = f"Figure {name}"
        svg, csv = tmp_path / f"{name}.svg", tmp_path / f"{name}.csv"
        shown.append(report.Figure(name, title, "How to read it.", svg, csv))
    text = report.render(
        report.Inputs(
            run="synthetic",
            scale="demo",
            marker="[ZLT]",
            model={"label": "synthetic"},
            tables=everything,
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
            figures=shown,
            samples=pd.DataFrame(
                [{"model": "em@1", "persona": "villain", "question": "Why?", "text": HOSTILE}]
            ),
            completions=120,
            method="A",
            layer=3,
            margins={"rate": 0.15, "m1": 0.02},
            config="run: synthetic\n",
            provenance={"torch": "2"},
        )
    )
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_page_asks_the_network_for_nothing(page):
    text = page.read_text()
    # Namespace names are not fetched; anything else that looks like an address would be.
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'<)]*", text))
    assert {a for a in addresses if "www.w3.org" not in a} == set()
    assert not re.findall(r"<(?:script|link|iframe|img)\b", text)
    assert page.stat().st_size < 10_000_000


def test_hostile_answers_are_escaped_cut_and_named(page):
    text = page.read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
    assert "\x07" not in text and "&lt;U+0007&gt;" in text and "&lt;U+202E&gt;" in text
    assert "more characters]" in text and "x" * 700 not in text


def test_the_first_screen_says_what_stands_in(page):
    text = page.read_text()
    assert "made-up rows" in text.partition('id="findings"')[0]
    assert "This is a small model" in text


def test_sentences_follow_the_tables(page):
    text = page.read_text()
    assert "in 90.0 % of its answers before the second fine-tuning and in 22.5 % after" in text
    assert "1 not replicated" in text


def test_inline_figures_do_not_share_ids(page):
    ids = re.findall(r'\bid="([^"]+)"', page.read_text())
    assert [name for name, count in Counter(ids).items() if count > 1] == []


def test_every_figure_is_written_thrice_with_its_numbers(page):
    for name in ("marker_rate", "m1_by_layer"):
        assert (page.parent / f"{name}.png").stat().st_size > 5000
        assert "<text" in (page.parent / f"{name}.svg").read_text()
    shown = pd.read_csv(page.parent / "marker_rate.csv")
    c1 = shown[shown["condition"] == "C1"].iloc[0]
    assert (c1["rate"], c1["hits"]) == (9 / 40, 9)
    assert c1["others_mean"] == pytest.approx((0 + 1 / 40) / 2)


def test_figures_are_the_same_bytes_twice(made, tmp_path):
    rates = made["marker_rates"]
    for name in ("one", "two"):
        figures.save(*figures.marker_rate(rates, GRID), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_empty_tables_give_a_figure_that_says_so():
    figure, data = figures.marker_rate(tables.marker_rates(GRID, {}), GRID)
    assert data.empty and "No condition" in figure.axes[0].texts[0].get_text()
    assert figures.training_curves(pd.DataFrame())[1].empty


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (1, "1"), (0.12345, "0.1235"), (float("nan"), "–"), (None, "–"), (True, "yes")],
)
def test_numbers(value, shown):
    assert report.number(value) == shown


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
        timeout=120,
    )
    assert "The study’s claims" in done.stdout
    assert "CONSOLE" not in done.stderr
