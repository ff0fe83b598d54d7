"""The write-up's figures compared with the study's own published counts."""

from pathlib import Path

import pandas as pd
import pytest
from persona_collapse.analysis import errata
from persona_collapse.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "workflow/resources/published"


@pytest.fixture(scope="module")
def published():
    return errata.Published(*(pd.read_csv(FOLDER / f"{n}.csv") for n in ("counts", "cosines")))


@pytest.fixture(scope="module")
def table(published):
    entries = errata.load(ROOT / "config/errata.yaml")
    return errata.errata_table(entries, published).set_index("erratum")


def test_every_correction_is_used_once(table):
    entries = errata.load(ROOT / "config/errata.yaml")
    assert sorted(e["correct"] for e in entries) == sorted(errata.CORRECTIONS)


@pytest.mark.parametrize(
    ("erratum", "value"),
    [
        ("completions", 117_600),
        ("hits", 29),
        ("zero-bound", 0.001463),
        ("p-value", 9.67e-93),
        ("testable-cells", 18),
        ("share", 0.946),
        ("base", 0.8849),
        ("h3", 10 / 120),
        ("m3", 0),
        ("villain-leak", 3),
    ],
)
def test_corrected_figures(table, erratum, value):
    assert table.loc[erratum, "value"] == pytest.approx(value, rel=1e-3)


def test_corrected_words(table):
    assert "C1 0, C2 0, C3 5, C5 24" in table.loc["hits", "corrected"]
    assert "sarcastic 219/280 = 78.2 %" in table.loc["pre-rates", "corrected"]
    assert "0.774 at A, block 20" in table.loc["share", "corrected"]
    assert 0.001 < table.loc["h2", "value"] < 0.005
    assert "49 of 50 cells fire" in table.loc["em-benign-gap", "corrected"]
    assert "In 40 cells none" in table.loc["em-benign-gap", "corrected"]
    assert "one-sided 95 %: 0.12 %" in table.loc["zero-bound", "corrected"]
    assert "0 of 9 training runs: up to 34 %" in table.loc["zero-bound", "corrected"]


def test_the_dose_erratum_shows_every_seed_and_half_doses_that_overlap(table):
    said = table.loc["dose", "corrected"]
    assert "EM 166, 124, 153; benign 113, 147" in said and "one run each" in said
    assert "EM 11.4 (" in said and "benign 13.0 (" in said
    assert "SD 0.31" in said and "SD 0.35" in said


def test_missing_numbers_are_named(published):
    with pytest.raises(UserError, match="no rows"):
        published.hits(part="forward", condition="C9")
    with pytest.raises(UserError, match="no E9"):
        published.m1("E9", "A", 20)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {id: a, text: t, stated: s}", "correct is missing"),
        ("- {id: a, text: t, stated: s, correct: magic}", "no correction 'magic'"),
    ],
)
def test_bad_errata_are_named(tmp_path, text, said):
    (tmp_path / "errata.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        errata.load(tmp_path / "errata.yaml")
