"""Several runs on one page."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import compare
import pandas as pd
import pytest
from persona_collapse.errors import UserError
from persona_collapse.runtime import seals
from persona_collapse.tables_io import write_csv

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def results(everything, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    other = dict(everything)
    rates = everything["marker_rates"].copy()
    changed = (rates["condition"] == "C1") & (rates["role"] == "source")
    rates.loc[changed, ["hits", "rate"]] = 32, 0.8
    other["marker_rates"] = rates
    card = everything["scorecard"]
    other["scorecard"] = card.assign(
        verdict=card["verdict"].mask(card["claim"] == "em-erases-marker", "replicated")
    )
    grid = everything["design"]
    other["design"] = grid[grid["condition"] != "E0"]
    other["training"] = everything["training"].assign(objective="stay_close", final_loss=0.3)
    for name, tables in (("one", everything), ("two", other)):
        for table in compare.TABLES:
            path = folder / name / f"tables/{table}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_csv(path, tables[table])
    return folder


@pytest.fixture(scope="module")
def runs(results):
    return [compare.load(results, name) for name in ("one", "two")]


def test_rates_stand_beside_each_other(runs):
    table = compare.rates(runs).set_index("condition")
    assert table.loc["C1", ["rate_0", "rate_1"]].tolist() == [9 / 40, 0.8]
    assert table.loc["C1", "difference_1"] == pytest.approx(0.8 - 9 / 40)
    assert table.loc["C4", "difference_1"] == 0


def test_a_condition_of_one_run_only_is_kept(runs):
    table = compare.grids(runs).set_index("condition")
    assert table.index.tolist() == ["base", "C4", "C1", "C2", "E0"]
    assert table.loc["E0", "chains_0"] == "em@1" and table.loc["E0", "chains_1"] == ""
    assert compare.grids(runs[::-1])["condition"].tolist() == ["base", "C4", "C1", "C2", "E0"]


def test_a_defence_is_told_from_plain_training(runs):
    row = compare.stages(runs).set_index("stage").loc["couple-villain"]
    assert row["training_0"].startswith("cross_entropy on answer, 600 rows of couple-villain, 5 st")
    assert row["training_1"].startswith("stay_close on answer, 600 rows")
    assert (row["loss_0"], row["loss_1"]) == (0.1, 0.3)


def test_equal_verdicts_are_not_equal_values(runs):
    one, two = (replace(run, tables=dict(run.tables)) for run in runs)
    first = {"claim": ["a", "b", "c"], "text": "t", "verdict": "replicated"}
    values = {
        "measured": [0.1, 0.1, 0.5],
        "ci_low": [0.05, 0.0, None],
        "ci_high": [0.15, 0.2, None],
    }
    one.tables["scorecard"] = pd.DataFrame(first | values)
    values = {"measured": [0.1, 0.9, 0.5], "ci_low": [0.0, 0.8, None], "ci_high": [0.2, 1.0, None]}
    two.tables["scorecard"] = pd.DataFrame(first | values)
    table = compare.scorecards([one, two]).set_index("claim")
    assert table["same"].all() and table.index[0] == "b"
    assert table["values"].to_dict() == {"b": "differ", "a": "no difference shown", "c": "unknown"}
    assert table.loc["a", ["low_1", "high_1"]].tolist() == pytest.approx(
        [-(0.0125**0.5), 0.0125**0.5]
    )


def test_verdicts_that_differ_come_first(runs):
    table = compare.scorecards(runs)
    assert table[["verdict_0", "verdict_1"]].iloc[0].tolist() == ["not tested", "replicated"]
    assert not table["same"].iloc[0]


def test_each_run_is_compared_with_the_first(runs):
    one, two = runs
    three = replace(two, name="three", tables=dict(two.tables))
    given = []
    for run, (value, low, high) in zip(
        (one, two, three), [(0.1, 0.0, 0.2), (0.2, 0.1, 0.3), (0.9, 0.8, 1.0)], strict=True
    ):
        row = {"claim": "a", "text": "t", "verdict": "replicated", "where": "table"}
        row |= {"measured": value, "ci_low": low, "ci_high": high}
        given.append(replace(run, tables=run.tables | {"scorecard": pd.DataFrame([row])}))
    row = compare.scorecards(given).iloc[0]
    assert row[["difference_1", "difference_2"]].tolist() == pytest.approx([0.1, 0.8])
    assert row[["values_1", "values_2"]].tolist() == ["no difference shown", "differ"]
    assert row["values"] == "differ"
    table = compare.rates([one, two, three]).set_index("condition")
    assert table.loc["C1", "difference_2"] == pytest.approx(0.8 - 9 / 40)
    text = compare.render(given)
    assert 'id="m1_2"' in text and "3 runs side by side" in text
    assert text.count("minus one:") == 2 and "three minus one" in text


def test_the_command_writes_the_page_and_says_where(results):
    command = [sys.executable, str(ROOT / "tools/compare.py"), "--results", str(results)]
    done = subprocess.run([*command, "one", "two"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    text = path.read_text()
    assert path == results / "compare/one-two.html"
    assert 'id="marker_rate_0"' in text and 'id="m1_1"' in text
    assert " verdicts that differ" in text and "<style>" in text


def test_a_wrong_call_is_one_line(results):
    command = [sys.executable, str(ROOT / "tools/compare.py"), "--results", str(results)]
    done = subprocess.run([*command, "one", "one"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("persona-collapse: expected two or more different runs")
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_missing_run_names_those_that_are_there(results):
    with pytest.raises(UserError, match=r"no run 'three' in .* \(there: one, two\)"):
        compare.load(results, "three")


def test_an_unfinished_run_names_the_missing_table(results, tmp_path):
    (tmp_path / "half/tables").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"run 'half' is not finished: .*tables/design.csv is missing"
    ):
        compare.load(tmp_path, "half")


def test_an_edited_table_is_not_compared(results, tmp_path):
    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    table = tmp_path / "two/tables/marker_rates.csv"
    seals.seal(tmp_path / "two", [table])
    compare.load(tmp_path, "two")
    table.write_text(table.read_text().replace("0.8", "0.9"))
    with pytest.raises(UserError, match=r"two/tables/marker_rates\.csv: edited or damaged"):
        compare.load(tmp_path, "two")
