"""Charts: what they show is what the tables say."""

import pandas as pd
import pytest
from persona_collapse import charts
from test_tables import GRID


@pytest.fixture(scope="module")
def shown(everything):
    return charts.charts(everything, "A", 3)


def test_every_chart_of_the_run_is_valid_and_drawn(shown):
    assert {"marker_rate", "m1", "marker_heatmap", "persona_map", "confounds"} <= set(shown)
    assert "dose_response" not in shown  # no stage of this run was stopped on the way
    for chart in shown.values():
        assert chart.spec["data"] == {"name": "table"}
        assert chart.spec["description"] == f"{chart.title}. {chart.reading}"
        assert chart.svg().startswith("<svg")
        lengths = {len(values) for values in chart.columns.values()}
        assert lengths == {len(chart.table)}


def test_marks_stand_for_more_than_their_colour(shown):
    for name in ("marker_rate", "m1_by_layer", "confounds", "false_positives"):
        text = str(shown[name].spec)
        assert "'shape'" in text and "'color'" in text


def test_before_and_after_are_the_grid_s_chains(shown, everything):
    table = shown["marker_rate"].table
    own = table[table["condition"] == "C1"].set_index("when")
    assert own["chain"].to_dict() == {
        "before": "couple-villain@42",
        "after": "couple-villain@42+em@1",
    }
    assert own["rate"].to_dict() == {"before": 36 / 40, "after": 9 / 40}
    assert own.loc["after", "others"] == pytest.approx((0 + 1 / 40) / 2)


def test_the_heat_map_pools_seeds(shown):
    table = shown["marker_heatmap"].table
    cell = table[(table["condition"] == "C1") & (table["persona"] == "villain")]
    assert cell.set_index("seed")["rate"].to_dict() == {"all": 9 / 40, "1": 9 / 40}
    assert set(table.loc[table["rate"] == 0, "shown"]) == {"·"}


def test_pairs_of_personas_stand_once(shown, everything):
    table = shown["cosine_matrices"].table
    assert len(table) == 5 * 2 * 2 * 5 * 4 / 2
    at = everything["geometry"].query("metric == 'm1' and method == 'A' and layer == 3")
    m1 = at.set_index("condition")["value"]["C1"]
    own = table[(table["condition"] == "C1: C1") & (table["method"] == "A") & (table["layer"] == 3)]
    assert own["cosine"].mean() == pytest.approx(m1)


def test_the_map_starts_at_the_chain_before(shown, everything):
    table = shown["persona_map"].table
    points = everything["persona_map"].drop_duplicates(["model", "method", "layer", "persona"])
    own = table[(table["after"] == "couple-villain@42+em@1") & (table["method"] == "A")].iloc[0]
    assert own["before"] == "couple-villain@42"
    was = points[(points["model"] == own["before"]) & (points["persona"] == own["persona"])]
    assert own["pc1_before"] in was["pc1"].tolist()


def test_a_dose_response_starts_before_the_stage_and_ends_whole():
    chain = "couple-villain@42+em@1"
    grid = pd.concat(
        [GRID, GRID[GRID["condition"] == "C1"].assign(condition="D", chain=f"{chain}~3")]
    )
    rates = pd.DataFrame(
        [
            {
                "model": m,
                "source": "villain",
                "role": "source",
                "rate": r,
                "ci_low": 0,
                "ci_high": 1,
            }
            for m, r in (("couple-villain@42", 0.9), (f"{chain}~3", 0.5), (chain, 0.1))
        ]
    )
    training = pd.DataFrame(
        {"chain": ["couple-villain@42", f"{chain}~3", chain], "steps": [9, 3, 10]}
    )
    geometry = pd.DataFrame(
        columns=["model", "metric", "method", "layer", "value", "ci_low", "ci_high"]
    )
    chart = charts.dose_response(rates, geometry, training, grid, "A", 3)
    assert sorted(zip(chart.table["steps"], chart.table["value"], strict=True)) == [
        (0, 0.9),
        (3, 0.5),
        (10, 0.1),
    ]
    assert chart.svg().startswith("<svg")


def test_the_leakage_gradient_names_its_p():
    rates = pd.DataFrame(
        [
            {
                "condition": "C1",
                "source": "villain",
                "persona": p,
                "role": "bystander",
                "hits": h,
                "n": 10,
            }
            for p, h in (("librarian", 1), ("comedian", 4))
        ]
    )
    near = pd.DataFrame(
        {"persona_a": ["librarian", "comedian"], "persona_b": "villain", "cosine": [0.1, 0.5]}
    ).assign(model="base", method="A", layer=3)
    row = {"analysis": "personas", "condition": "C1", "source": "villain", "n": 2}
    link = pd.DataFrame([row | {"rho": 0.8, "ci_low": 0.1, "ci_high": 0.9, "p": 0.0312, "q": 0.25}])
    chart = charts.leakage(rates, near, link, GRID, "A", 3)
    assert chart.table["test"].iloc[0].startswith("Spearman 0.80 (0.10 to 0.90); p 0.031, q 0.25")
    none = charts.leakage(rates, near, link.assign(rho=float("nan")), GRID, "A", 3)
    assert none.table["test"].iloc[0].startswith("no correlation")


def test_names_of_points_lie_on_no_other_name():
    people = ["librarian", "comedian", "zelthari scholar", "police officer", "evil ai"]
    x = pd.Series([0.50, 0.51, 0.53, 0.56, 0.99])
    at = pd.DataFrame({"x": x, "y": 0.98})
    placed = charts._named(pd.DataFrame({"persona": people}), at["x"], at["y"], 320, [at])
    for page, width in (("wide", charts.STATIC_WIDTH - 50), ("narrow", 290)):
        middle, half = x * width + placed[f"_{page}_x"], 3 * placed["persona"].str.len()
        down = at["y"] * 320 + placed[f"_{page}"]
        assert (middle + half <= width + 0.1).all() and (down <= 314).all()
        for i in range(len(people)):
            for j in range(i):
                beside = abs(middle[i] - middle[j]) >= half[i] + half[j] - 0.2
                assert beside or abs(down[i] - down[j]) >= 12
    assert placed["_wide"].iloc[0] == -10  # the first stands beside its point


def test_empty_tables_give_no_chart(everything):
    empty = everything["marker_rates"].iloc[:0]
    assert charts.marker_rate(empty, GRID) is None
    assert charts.marker_heatmap(empty, GRID) is None
    assert charts.training_curves(pd.DataFrame()) is None
    assert charts.m1(everything["geometry"].iloc[:0], GRID, "A", 3) is None


def test_missing_numbers_are_null_not_nan():
    table = pd.DataFrame({"a": [1.23456789, float("nan")], "b": ["x", None]})
    chart = charts.Chart("n", "t", "r", {"data": {}}, table)
    assert chart.columns == {"a": [1.23457, None], "b": ["x", None]}


def test_texts_that_come_again_are_held_once():
    table = pd.DataFrame(
        {"a": ["x", "y", "x", None], "b": [1.0, 1.0, float("nan"), 2.0], "c": list("stuv")}
    )
    packed = charts.Chart("n", "t", "r", {}, table).packed
    assert packed["a"] == {"names": ["x", "y", None], "at": [0, 1, 0, 2]}
    assert (packed["b"], packed["c"]) == ([1.0, 1.0, None, 2.0], list("stuv"))


def test_a_chart_of_too_many_chains_shows_the_first_of_each_condition_and_says_so():
    rows = [(c, f"{c}@{seed}", v) for c in "ab" for seed in range(5) for v in range(3)]
    table = pd.DataFrame(rows, columns=["condition", "model", "value"])
    few, note = charts.some_chains(table, "model", ["condition"], most=14)
    assert list(dict.fromkeys(few["model"])) == ["a@0", "a@1", "b@0", "b@1"] and len(few) == 12
    assert "4 of 10 chains" in note
    assert charts.some_chains(table, "model", ["condition"], most=30)[1] == ""


def test_no_chart_grows_with_the_chains_beyond_its_rows(everything, monkeypatch):
    made = dict(everything)
    monkeypatch.setattr(charts, "MOST_ROWS", 12)
    monkeypatch.setattr(charts.some_chains, "__defaults__", (12,))
    for name, chart in charts.charts(made, "A", 3).items():
        # One chain is shown whole, however many rows it has.
        if len(chart.table) > 12 and name not in ("m1_by_layer", "leakage", "false_positives"):
            assert "the file has" in chart.reading, name
