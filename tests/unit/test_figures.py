"""Figures: the page and the files for papers show what is in the tables."""

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import vl_convert
from persona_collapse import statistics
from persona_collapse.errors import UserError
from persona_collapse.report import figures, page
from persona_collapse.report.figures import _render, _style
from persona_collapse.report.figures.dose_response import data as doses_of
from persona_collapse.runtime import code_hash
from persona_collapse.tables_io import read_csv, write_csv
from synthetic import shown, with_early, with_more
from test_tables import GRID

NAMES = list(figures.catalogue())


def marks(spec, kind, **chosen):
    """Marks of a type that a specification draws with its controls at `chosen`: fields and position of
    each."""
    spec = spec.with_data() if isinstance(spec, _render.Chart) else spec
    for param in spec.get("params", []):
        param["value"] = chosen.pop(param["name"], param.get("value"))
    assert not chosen
    todo, found = [(vl_convert.vegalite_to_scenegraph(spec)["scenegraph"], (0, 0))], []
    while todo:
        node, (left, top) = todo.pop()
        if node.get("marktype") == "group":
            for item in node["items"]:
                at = left + item.get("x", 0), top + item.get("y", 0)
                todo += [(below, at) for below in item.get("items", [])]
        if node.get("marktype") == kind and node.get("role") == "mark":
            for item in node["items"]:
                if not item.get("description"):
                    continue
                said = item["description"].replace("\N{MINUS SIGN}", "-").split("; ")
                fields = dict(part.split(": ", 1) for part in said)
                at = left + item["x"], top + item["y"]
                found.append(fields | {"at": at, "text": item.get("text")})
    return found


def pooled(rates, *keys):
    """Hits over completions, by keys."""
    sums = rates.groupby(list(keys))[["hits", "n"]].sum()
    return (sums["hits"] / sums["n"]).to_dict()


# --- every figure --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_is_valid_and_drawn_and_its_numbers_are_its_csv(name, everything, tmp_path):
    figure, rows, chart = shown(name, with_more(everything))
    assert chart.spec["data"] == {"name": "table"}
    assert chart.spec["description"] == f"{chart.title}. {chart.reading}"
    assert chart.svg().startswith("<svg")
    _render.save(figure, rows, tmp_path / name)
    written = read_csv(tmp_path / f"{name}.csv")
    columns = {k: v for k, v in chart.columns.items() if not k.startswith("_")}
    assert list(written) == list(columns) and len(written) == len(chart.table)

    def said(rows):
        cells = (["" if pd.isna(v) else str(v) for v in rows[name]] for name in columns)
        return sorted("|".join(row) for row in zip(*cells, strict=True))

    assert said(chart.table) == said(written)


@pytest.mark.parametrize("name", ["marker_heatmap", "leakage", "m1"])
def test_files_for_papers_are_the_same_bytes_twice_and_know_no_page(name, everything, tmp_path):
    figure, rows, _ = shown(name, with_more(everything))
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        _render.save(figure, rows, tmp_path / folder / name)
    for suffix in ("svg", "png", "csv"):
        one, two = ((tmp_path / f / f"{name}.{suffix}").read_bytes() for f in ("one", "two"))
        assert one == two and len(one) > 100
    svg = (tmp_path / f"one/{name}.svg").read_text()
    assert "<text" in svg and "var(" not in svg and "currentColor" not in svg


@pytest.mark.parametrize("name", NAMES)
def test_a_run_without_such_data_says_so(name, everything, tmp_path):
    figure = figures.catalogue()[name]
    tables = {t: everything[t].iloc[:0] for t in figure.tables} | {"design": everything["design"]}
    rows = _render.data(figure, tables)
    assert rows.empty and _render.page(figure, rows) is None
    _render.save(figure, rows, tmp_path / name)
    assert figure.empty in (tmp_path / f"{name}.svg").read_text()


def test_marks_stand_for_more_than_their_colour(everything):
    for name in ("marker_rate", "m1_by_layer", "answer_stats", "false_positives"):
        text = str(shown(name, everything)[2].spec)
        assert "'shape'" in text and "'color'" in text


def test_a_figure_is_one_file(tmp_path, monkeypatch, everything):
    text = (Path(__file__).parents[2] / "docs/extending.md").read_text()
    (code,) = re.findall(r"^```python report/figures/truncation.py\n(.*?)^```$", text, re.M | re.S)
    (tmp_path / "truncation.py").write_text(code)
    monkeypatch.setattr(figures, "__path__", [*figures.__path__, str(tmp_path)])
    assert set(figures.catalogue()) == {*NAMES, "truncation"}
    figure, rows, _ = shown("truncation", everything)
    _render.save(figure, rows, tmp_path / "truncation")
    stats = everything["answer_stats"][list(rows)].reset_index(drop=True)
    pd.testing.assert_frame_equal(read_csv(tmp_path / "truncation.csv"), stats)
    svg = (tmp_path / "truncation.svg").read_text()
    assert ">others<" in svg and ">source<" in svg  # one panel each
    files = {"truncation": tmp_path / "truncation.svg"}
    (own,) = [f for f in page.by_section(everything, files)["trust"] if f["name"] == "truncation"]
    assert own["data"]["columns"]["truncated"] == pytest.approx(stats["truncated"].tolist())
    assert own["paper"].startswith("data:image/svg+xml;base64,") and "<svg" in own["markup"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('TITLE = "x"\nREADING = "y"\nSECTION = "trust"\n', "needs TABLES"),
        ('TITLE = f"{1}"\nREADING = "y"\nSECTION = "trust"\nTABLES = ()\n', "needs TITLE"),
        ('TITLE = "x"\nREADING = "y"\nSECTION = "nowhere"\nTABLES = ()\n', "SECTION to be one of"),
    ],
)
def test_a_wrong_figure_file_is_one_line(tmp_path, monkeypatch, text, message):
    (tmp_path / "wrong.py").write_text(text)
    monkeypatch.setattr(figures, "__path__", [str(tmp_path)])
    with pytest.raises(UserError, match=message) as caught:
        figures.catalogue()
    assert "wrong.py" in str(caught.value) and "\n" not in str(caught.value)


def test_a_changed_figure_redraws_itself_and_the_page_and_nothing_else():
    folder = Path(figures.__file__).parent
    own = {name: folder / f"{name}.py" for name in NAMES}
    for name, path in own.items():
        assert code_hash.closure(path) & set(own.values()) == {path}, name
    for script in code_hash.SCRIPTS.glob("*.py"):  # scripts must name the figures that they draw
        assert not code_hash.closure(script) & set(own.values()), script.name


# --- on the page ---------------------------------------------------------------------------------


def test_missing_numbers_are_null_not_nan():
    table = pd.DataFrame({"a": [1.23456789, float("nan")], "b": ["x", None]})
    chart = _render.Chart("n", "t", "r", {"data": {}}, table)
    assert chart.columns == {"a": [1.23457, None], "b": ["x", None]}


def test_texts_that_are_repeated_are_held_once():
    table = pd.DataFrame(
        {"a": ["x", "y", "x", None], "b": [1.0, 1.0, float("nan"), 2.0], "c": list("stuv")}
    )
    packed = _render.Chart("n", "t", "r", {}, table).packed
    assert packed["a"] == {"names": ["x", "y", None], "at": [0, 1, 0, 2]}
    assert (packed["b"], packed["c"]) == ([1.0, 1.0, None, 2.0], list("stuv"))


def test_a_chart_of_too_many_chains_shows_the_first_of_each_condition_and_says_so():
    rows = [(c, f"{c}@{seed}", v) for c in "ab" for seed in range(5) for v in range(3)]
    table = pd.DataFrame(rows, columns=["condition", "chain", "value"])
    few, note = _render.some_chains(table, 14)
    assert list(dict.fromkeys(few["chain"])) == ["a@0", "a@1", "b@0", "b@1"] and len(few) == 12
    assert "4 of 10 chains" in note
    assert _render.some_chains(table, 30)[1] == ""


def test_no_chart_grows_with_the_chains_beyond_its_rows(everything):
    for name in NAMES:
        figure, rows, _ = shown(name, everything)
        chart = _render.page(replace(figure, most_rows=12), rows)
        if chart and name != "false_positives":  # it has no chains
            # One chain is shown in full, whatever its number of rows.
            assert len(rows) <= 12 or "the file has" in chart.reading, name


def test_names_of_points_lie_on_no_other_name():
    people = ["librarian", "comedian", "zelthari scholar", "police officer", "evil ai"]
    at = pd.DataFrame({"x": [0.50, 0.51, 0.53, 0.56, 0.99], "y": 0.02})
    placed = _style.named(pd.DataFrame({"_persona": people}), at, at, 320, ends=(0, 1))
    share = (at["x"] - 0.5) / 0.49
    for size, width in (("wide", _style.WIDE), ("narrow", _style.NARROW)):
        across = _style.MARGIN + share * (width - 2 * _style.MARGIN)
        middle, half = across + placed[f"_{size}_x"], 3 * placed["_persona"].str.len()
        down = 0.98 * 320 + placed[f"_{size}"]
        assert (middle + half <= width + 0.1).all() and (down <= 314).all()
        for i in range(len(people)):
            for j in range(i):
                beside = abs(middle[i] - middle[j]) >= half[i] + half[j] - 0.2
                assert beside or abs(down[i] - down[j]) >= 12
    assert placed["_wide"].iloc[0] == -10  # the first is next to its point


def test_points_are_where_their_names_take_them_to_be(everything):
    figure, rows, _ = shown("persona_map", everything)
    spec = _render.paper(figure, rows)
    spec |= {"concat": spec["concat"][:1]}
    height, edge = spec["concat"][0]["height"], _style.MARGIN
    x, y = zip(*(mark["at"] for mark in marks(spec, "symbol")), strict=True)
    assert (max(x) - min(x), max(y) - min(y)) == pytest.approx(
        (_style.NARROW - 2 * edge, height - 2 * edge)
    )


# --- two sources, two seeds, doses and cells that were not measured, value by value -----------------


def test_before_and_after_are_the_design_s_chains(everything):
    _, rows, _ = shown("marker_rate", everything)
    own = rows[rows["condition"] == "C1"].set_index("when")
    assert own["chain"].to_dict() == {
        "before": "couple-villain@42",
        "after": "couple-villain@42+em@1",
    }
    assert own["rate"].to_dict() == {"before": 36 / 40, "after": 9 / 40}
    assert own["hits"].to_dict() == {"before": 36, "after": 9}
    assert own.loc["after", "others_mean"] == pytest.approx((0 + 1 / 40) / 2)


def test_the_heat_map_pools_seeds(everything):
    _, _, chart = shown("marker_heatmap", everything)
    table = chart.table
    cell = table[(table["condition"] == "C1") & (table["persona"] == "villain")]
    assert cell.set_index("seed")["rate"].to_dict() == {"all": 9 / 40, "1": 9 / 40}
    assert set(table.loc[table["rate"] == 0, "_shown"]) == {"·"}


@pytest.mark.parametrize("source", [_style.ALL, "villain", "evil_ai"])
@pytest.mark.parametrize("seed", ["all", "1"])
def test_a_cell_of_the_heat_map_is_one_source_s(crossed, source, seed):
    _, _, chart = shown("marker_heatmap", crossed)
    own = crossed["marker_rates"]
    own = own if seed == "all" else own[own["seed"] == seed]
    own = own if source == _style.ALL else own[own["source"].isin([source, ""])]
    expected = pooled(own, "condition", "source", "persona")
    cells = marks(chart, "text", source=source, seed=seed)
    assert len({cell["at"] for cell in cells}) == len(cells) == len(expected)
    for cell in cells:
        value = expected[cell["condition"], cell["source"], cell["persona"].replace(" ", "_")]
        assert float(cell["rate"]) == pytest.approx(value, rel=1e-5)
        assert cell["text"] == f"{value:.2f}".lstrip("0")


def test_the_heat_map_s_cells_are_its_csv_s_numbers_on_page_and_paper(crossed, tmp_path):
    figure, rows, chart = shown("marker_heatmap", crossed)
    _render.save(figure, rows, tmp_path / "heat")
    written = read_csv(tmp_path / "heat.csv").query("seed == 'all'")
    keys = ["condition", "source", "persona"]
    assert (
        not written.duplicated(keys).any()
        and written.groupby("condition")["source"].nunique().max() == 2
    )
    values = written.set_index(keys)["rate"].to_dict()
    for spec in (chart, _render.paper(figure, rows)):
        cells = marks(spec, "text")
        assert len({cell["at"] for cell in cells}) == len(cells) == len(values)
        for cell in cells:
            value = values[cell["condition"], cell["source"], cell["persona"].replace(" ", "_")]
            assert cell["text"] == f"{value:.2f}".lstrip("0")


def test_rates_before_and_after_of_every_source_and_seed(crossed):
    rates, grid = crossed["marker_rates"], crossed["design"]
    figure, rows, chart = shown("marker_rate", crossed)
    by_chain = rates.drop_duplicates(["chain", "persona"]).set_index(["chain", "persona"])["rate"]
    expected = {}
    for cell in grid[grid["source"] != ""].itertuples():
        for chain in {cell.before, cell.chain}:
            if (chain, cell.source) in by_chain.index:
                expected[cell.condition, cell.source, chain] = by_chain[chain, cell.source]
    assert pooled(rows, "condition", "source", "chain") == expected
    for spec in (chart, _render.paper(figure, rows)):
        points = marks(spec, "symbol")
        assert len({point["at"] for point in points}) == len(points) == len(expected)
        drawn = [float(point["rate"].rstrip("%")) for point in points]
        assert sorted(drawn) == pytest.approx(sorted(expected.values()))
    own = rows[(rows["chain"] == "couple-villain@42+em@2") & (rows["when"] == "after")].iloc[0]
    others = rates[(rates["chain"] == own["chain"]) & (rates["persona"] != "villain")]["rate"]
    assert own["others_mean"] == pytest.approx(others.mean())


def test_cosines_by_block_are_means_over_a_condition_s_chains(crossed):
    geometry = crossed["geometry"]
    figure, rows, chart = shown("m1_by_layer", crossed)
    own = geometry.query("test == '' and chain != ''")
    values = own.groupby(["condition", "method", "metric", "layer"])
    values = values["value"].agg(["mean", "min", "max"])
    for metric in _style.METRICS:
        points = marks(chart, "symbol", metric=metric)
        assert len(points) == len(values.xs(metric, level="metric").xs("A", level="method"))
        for point in points:
            found = values.loc[(point["condition"], "A", metric, int(point["block"]))]
            drawn = [float(point[k]) for k in ("value", "lowest chain", "highest chain")]
            assert drawn == pytest.approx(found.tolist(), rel=1e-4)
    spec = _render.paper(figure, rows)
    assert len(spec["concat"]) == 2 * len(_style.METRICS)
    drawn = sorted(float(point["value"]) for point in marks(spec, "symbol"))
    own = values["mean"][values.index.get_level_values("metric").isin(_style.METRICS)]
    assert drawn == pytest.approx(sorted(own), rel=1e-4)
    assert rows["condition"].iloc[0] == "C0"  # the base model, wherever it is in the table


def test_every_chain_s_cosine_is_drawn_once(crossed):
    own = crossed["geometry"].query("metric == 'm1' and test == '' and headline")
    own = own.set_index(["condition", "chain"])["value"]
    figure, rows, chart = shown("m1", crossed)
    for spec in (chart, _render.paper(figure, rows)):
        points = marks(spec, "symbol")
        drawn = {(p["condition"], p["chain"]): float(p["value"]) for p in points}
        assert len(points) == len(drawn) == len({p["at"] for p in points})
        assert drawn == pytest.approx(own.to_dict(), rel=1e-4)
        assert ("C4", "couple-villain@42") not in drawn  # it was not measured


def test_pairs_of_personas_are_listed_once(everything):
    _, rows, _ = shown("cosine_matrices", everything)
    assert len(rows) == 5 * 2 * 2 * 5 * 4 / 2
    at = everything["geometry"].query("metric == 'm1' and test == '' and headline")
    m1 = at.set_index("condition")["value"]["C1"]
    own = rows[(rows["condition"] == "C1") & rows["headline"]]
    assert own["cosine"].mean() == pytest.approx(m1)


def test_matrices_are_means_over_a_condition_s_chains(crossed):
    at = crossed["cosines"].query("method == 'A' and layer == 3")
    means = at.groupby(["condition", "persona_a", "persona_b"])["cosine"].mean()
    figure, rows, chart = shown("cosine_matrices", crossed)
    for spec in (chart, _render.paper(figure, rows)):
        cells = marks(spec, "rect")
        assert len(cells) == 6 * 4 * 3 / 2
        for cell in cells:
            pair = (cell[k].replace(" ", "_") for k in ("persona", "with"))
            value = means[cell["condition"], *pair]
            assert float(cell["cosine"]) == pytest.approx(value, rel=1e-4)
    # The base model's panel stays, whichever other is chosen.
    few = marks(chart, "rect", shown="D: the condition D")
    assert {cell["condition"] for cell in few} == {"C0", "D"}


def test_a_line_of_doses_is_one_training_s_and_one_source_s(crossed):
    figure, rows, chart = shown("dose_response", crossed)
    points = marks(chart, "symbol")
    assert len({p["at"] for p in points}) == len(points)
    assert not rows.duplicated(["series", "outcome", "steps"]).any()
    doses = rows[rows["metric"] == "rate"].groupby("series")["steps"].apply(sorted).to_dict()
    assert doses == {
        "couple-villain+em": [0, 3, 6, 10],
        "couple-evil_ai+em": [0, 3, 6, 10],
        "em (villain)": [0, 3, 10],  # before it is the base model, which has no source
        "em (evil ai)": [0, 10],
    }
    # villain's coupling has no activations: its line starts at the first dose.
    own = rows[(rows["metric"] == "m1") & (rows["series"] == "couple-villain+em")]
    assert sorted(own["steps"]) == [3, 6, 10]
    assert len(marks(_render.paper(figure, rows), "symbol")) == len(rows)


def test_a_dose_response_starts_before_the_stage_and_ends_whole():
    chain = "couple-villain@42+em@1"
    stopped = GRID[GRID["condition"] == "C1"].assign(condition="D", chain=f"{chain}~3")
    rates = pd.DataFrame(
        [
            {"chain": m, "persona": "villain", "rate": r, "ci_low": 0, "ci_high": 1}
            for m, r in (("couple-villain@42", 0.9), (f"{chain}~3", 0.5), (chain, 0.1))
        ]
    )
    training = pd.DataFrame(
        {"chain": ["couple-villain@42", f"{chain}~3", chain], "steps": [9, 3, 10]}
    )
    geometry = pd.DataFrame(
        columns=[
            "chain",
            "metric",
            "test",
            "headline",
            "method",
            "layer",
            "value",
            "ci_low",
            "ci_high",
        ]
    )
    rows = doses_of(rates, geometry, training, pd.concat([GRID, stopped]))
    assert sorted(zip(rows["steps"], rows["value"], strict=True)) == [(0, 0.9), (3, 0.5), (10, 0.1)]


def test_a_dose_of_several_runs_has_its_interval_over_them():
    rates, cells = {}, []
    for seed, (before, stopped, whole) in enumerate([(0.9, 0.5, 0), (0.8, 0.3, 0), (0.9, 0.1, 0)]):
        coupling = f"couple-villain@{seed}"
        chain = f"{coupling}+em@{seed}"
        rates |= {coupling: before, f"{chain}~3": stopped, chain: whole}
        cells += [(coupling, f"{chain}~3"), (coupling, chain)]
    rates["couple-villain@0+em@7~3"] = 0.5  # shares its coupling with a run: one unit
    rates["benign@1~3"] = 0.5
    cells += [("couple-villain@0", "couple-villain@0+em@7~3"), ("base", "benign@1~3")]
    table = pd.DataFrame(rates.items(), columns=["chain", "rate"]).assign(persona="villain")
    table["ci_low"], table["ci_high"] = table["rate"] - 0.06, table["rate"] + 0.06
    table.loc[table["rate"] == 0, ["ci_low", "ci_high"]] = 0, 0.013
    design = pd.DataFrame(cells, columns=["before", "chain"]).assign(source="villain")
    steps = [3 if "~3" in chain else 10 for chain in table["chain"]]
    empty = pd.DataFrame(columns=["headline", "metric", "test", "chain"], dtype=object)
    rows = doses_of(table, empty, table[["chain"]].assign(steps=steps), design)
    found = rows.set_index(["series", "steps"])
    dose = found.loc["couple-villain+em", 3]
    within = 0.06 / 1.96 / 2
    over = statistics.over_runs([0.5, 0.3, 0.1], ["a", "b", "c"], within)
    assert (dose["runs"], dose["units"], dose["interval"]) == (4, 3, "over 3 training runs")
    assert dose["value"] == pytest.approx(0.3)
    # With three runs that differ, the interval exceeds the range of a share: clipped at 0.
    assert over.low < 0 == dose["low"] and dose["high"] == pytest.approx(over.high)
    # Equal runs, all at 0, still give an interval with width.
    assert found.loc["couple-villain+em", 10][["value", "low"]].tolist() == [0, 0]
    assert 0 < found.loc["couple-villain+em", 10]["high"] < 0.05
    one = found.loc["benign", 3]
    assert one[["low", "high", "interval"]].tolist() == [0.44, 0.56, "over completions of one run"]


def test_a_loss_curve_has_one_value_per_step(crossed):
    figure, rows, _ = shown("training_curves", crossed)
    assert not rows.duplicated(["stage", "line", "step"]).any()
    stopped = rows[rows["chain"] == "couple-villain@42+em@1~3"]["line"].unique()
    assert stopped == ["after couple-villain@42, seed 1, stopped at step 3"]
    spec = _render.paper(figure, rows)
    stages = list(dict.fromkeys(rows["stage"]))
    assert [panel["title"]["text"] for panel in spec["concat"]] == [[stage] for stage in stages]
    colours, dashes = _style.PALETTE, _style.DASHES
    looks = {(i % 8, (i + i // len(colours)) % len(dashes)) for i in range(11)}
    assert len(looks) == 11


def test_behaviour_and_geometry_are_of_one_chain(crossed):
    figure, rows, chart = shown("behaviour_and_geometry", crossed)
    rates = crossed["marker_rates"].query("role == 'source'")
    rates = rates.set_index(["chain", "source"])["rate"]
    m1 = crossed["geometry"].query("metric == 'm1' and test == '' and headline")
    m1 = m1.drop_duplicates("chain").set_index("chain")["value"]
    for spec in (chart, _render.paper(figure, rows)):
        points = marks(spec, "symbol")
        assert len(points) == len(rows[rows["headline"] & (rows["metric"] == "m1")])
        for point in points:
            assert float(point["rate"]) == pytest.approx(rates[point["chain"], point["source"]])
            assert float(point["mean cosine"]) == pytest.approx(m1[point["chain"]], rel=1e-4)


def test_leakage_of_each_source_is_its_own(crossed):
    figure, rows, _ = shown("leakage", crossed)
    rates, tests = crossed["marker_rates"], crossed["correlations"]
    followed = rates[(rates["role"] != "source") & (rates["source"] != "")]
    assert pooled(rows, "condition", "source", "persona") == pooled(
        followed, "condition", "source", "persona"
    )
    own = tests[tests["analysis"] == "personas"].set_index(["condition", "source"])
    assert set(own.index) == set(zip(rows["condition"], rows["source"], strict=True))
    near = crossed["cosines"].query("chain == 'base' and method == 'A' and layer == 3")
    near = near.set_index(["persona_a", "persona_b"])["cosine"]
    assert rows["cosine"].tolist() == [
        near[p, s] for p, s in zip(rows["persona"], rows["source"], strict=True)
    ]
    assert len(marks(_render.paper(figure, rows), "symbol")) == len(rows)


def test_leakage_pools_seeds(everything):
    rates = everything["marker_rates"]
    twice = everything | {"marker_rates": pd.concat([rates, rates.assign(hits=0, seed="2")])}
    _, rows, _ = shown("leakage", twice)
    own = rows[(rows["condition"] == "C1") & (rows["persona"] == "librarian")].iloc[0]
    assert (own["hits"], own["n"], own["rate"]) == (1, 80, 1 / 80)


def test_the_leakage_gradient_names_its_p(everything):
    row = {"analysis": "personas", "condition": "C1", "source": "villain", "n": 2}
    one = pd.DataFrame([row | {"rho": 0.8, "ci_low": 0.1, "ci_high": 0.9, "p": 0.0312, "q": 0.25}])
    for table, said in (
        (one, "Spearman 0.80 (0.10 to 0.90); p 0.031, q 0.25, 2 personas"),
        (one.assign(rho=float("nan")), "no correlation: no spread, or too few personas"),
        (one.iloc[:0], "no correlation: no spread, or too few personas"),
    ):
        _, _, chart = shown("leakage", everything | {"correlations": table})
        table = chart.table
        assert set(table.loc[table["condition"] == "C1", "_test"]) == {said}


def test_a_move_starts_at_the_model_before_or_is_not_drawn(crossed):
    points, grid = crossed["persona_map"], crossed["design"]
    figure, moves, _ = shown("persona_map", crossed)
    places = points.drop_duplicates(["chain", "method", "layer", "persona"])
    places = places.set_index(["chain", "method", "layer", "persona"])[["pc1", "pc2"]]
    for row in moves.itertuples():
        at = (row.method, row.layer, row.persona)
        assert [row.pc1_before, row.pc2_before] == places.loc[(row.before, *at)].tolist()
        assert [row.pc1_after, row.pc2_after] == places.loc[(row.chain, *at)].tolist()
    before = grid.drop_duplicates("chain").set_index("chain")["before"]
    assert (moves["before"] == moves["chain"].map(before)).all()
    assert not moves["chain"].str.startswith("couple-villain@42+").any()
    # Both ends of every movement at the headline, each drawn once.
    drawn = marks(_render.paper(figure, moves), "symbol")
    assert len(drawn) == 2 * moves["headline"].sum()


def test_what_else_could_explain_a_rate_is_drawn_chain_by_chain(crossed):
    rows = crossed["marker_rates"].drop_duplicates(["condition", "source", "seed", "chain"])
    table = pd.concat([rows.assign(role=role) for role in ("source", "others")], ignore_index=True)
    table = table[["condition", "chain", "source", "seed", "role"]]
    table["mean_tokens"] = [5.0 + i for i in range(len(table))]
    table["marker_logprob"] = [-1.0 - i if i % 3 else None for i in range(len(table))]
    figure, rows, chart = shown("answer_stats", crossed | {"answer_stats": table})
    for measure in ("mean_tokens", "marker_logprob"):
        points = marks(chart, "symbol", measure=measure)
        keys = ["condition", "source", "chain", "role"]
        expected = table.dropna(subset=[measure]).groupby(keys)[measure].apply(sorted).to_dict()
        drawn = {}
        for point in points:
            key = tuple(point[k] for k in ("condition", "source", "chain", "who"))
            drawn.setdefault(key, []).append(float(point["value"]))
        assert {key: sorted(values) for key, values in drawn.items()} == expected
    assert len(marks(_render.paper(figure, rows), "symbol")) == len(rows)


def test_false_positives_are_the_simulation_s(everything):
    simulation = everything["simulation"]
    own = simulation[(simulation["kind"] == "test") & simulation["rate"].notna()]
    expected = own.set_index(["name", "world"])[["rate", "rate_low", "rate_high"]]
    figure, rows, chart = shown("false_positives", everything)
    for spec in (chart, _render.paper(figure, rows)):
        points = marks(spec, "symbol")
        assert len(points) == len(expected) == len({point["at"] for point in points})
        for point in points:
            found = expected.loc[(point["test"], point["world"])]
            drawn = [float(point[k].rstrip("%")) for k in ("rate", "low", "high")]
            assert drawn == pytest.approx(found.tolist(), rel=1e-4)


def test_what_has_no_defence_is_drawn_as_its_csv_says(everything, tmp_path):
    own = everything["frontier"]
    bare = own.assign(condition="C5", defence="", setting="", undefended="C5", verdict="")
    write_csv(tmp_path / "frontier.csv", pd.concat([bare, own.assign(undefended="C5")]))
    figure = figures.catalogue()["frontier"]
    rows = _render.data(figure, {"frontier": read_csv(tmp_path / "frontier.csv")})
    assert set(rows.loc[rows["condition"] == "C5", "defence"]) == {"no defence"}
    _render.save(figure, rows, tmp_path / "frontier")
    assert (tmp_path / "frontier.svg").stat().st_size


def test_each_data_set_has_its_own_panels_of_the_frontier(everything):
    own = everything["frontier"]
    own = own[own["outcome"].isin(["held_out_loss", "rate", "m1"])]
    figure = figures.catalogue()["frontier"]
    rows = _render.data(figure, {"frontier": pd.concat([own, own.assign(data="benign")])})
    drawn = _render.paper(figure, rows)
    # As values alone: nothing here has a difference from a stage without a defence.
    assert len(drawn["concat"]) == 2 * rows["kept"].nunique()
    assert len(marks(drawn, "symbol")) == len(rows) > 0


def test_the_frontier_shows_paired_differences_where_there_are_any(everything):
    own = everything["frontier"].query("condition == 'C1'")
    ends = {"difference": 0.25, "difference_low": 0.1, "difference_high": 0.4}
    own = own.assign(undefended="C1")
    kept = own.assign(condition="k", defence="kl", **ends)
    near = kept.assign(condition="near", value=own["value"] * 1.001, difference=0.251)
    bare = own.assign(defence="")
    table = pd.concat([bare, kept, near], ignore_index=True)
    figure = figures.catalogue()["frontier"]
    rows = _render.data(figure, {"frontier": table})
    shown = rows[rows["shown"] == "minus no defence"].set_index(["condition", "kept"])
    assert (shown.loc["C1", ["value", "loss"]] == 0).all(axis=None)
    assert (shown.loc["k", ["value", "low", "high"]] == [0.25, 0.1, 0.4]).all(axis=None)
    assert (shown.loc["k", ["loss", "loss_low", "loss_high"]] == [0.25, 0.1, 0.4]).all(axis=None)
    values = rows[rows["shown"] == "values"]
    assert len(values) == len(shown)
    # Names that would cover one another are left out.
    assert set(shown["name"]) == {"C1", ""}


def test_base_models_are_compared_by_what_was_done_to_them(everything):
    assert _render.data(figures.catalogue()["base_models"], everything).empty
    tables = with_early(everything)
    _, rows, chart = shown("base_models", tables)
    assert list(dict.fromkeys(rows["model"])) == ["early", "base"]  # in the order of the conditions
    coupled, done = "couple-villain", "couple-villain, then em"
    assert set(zip(rows["outcome"], rows["done"], strict=True)) == {
        *(("mean cosine", what) for what in ("as it comes", coupled, done)),
        ("marker after coupling", coupled),
        ("marker after a later stage", done),
    }
    # E0 and C2, which only one of the models has, are left out.
    rates = everything["rate_model"].query("quantity == 'rate' and role == 'source'")
    (own,) = rates.loc[rates["condition"] == "C1", "value"]
    both = rows[rows["outcome"] == "marker after a later stage"].set_index("model")
    assert both["value"].to_dict() == pytest.approx({"early": own / 2, "base": own})
    drawn = marks(chart, "symbol")
    assert len(drawn) == len(rows) == 10
    assert {mark["outcome"] for mark in drawn} == set(rows["outcome"])
    # Several sources form one condition, which is not compared with a condition with one source.
    grid = tables["design"]
    second = grid[grid["condition"] == "C4"].assign(chain="couple-librarian@42", source="librarian")
    more = tables | {"design": pd.concat([grid, second], ignore_index=True)}
    assert coupled not in set(shown("base_models", more)[1]["done"])
