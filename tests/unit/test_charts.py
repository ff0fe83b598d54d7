"""Charts: what they show is what the tables say."""

import pandas as pd
import pytest
import vl_convert
from persona_collapse.report import charts, figures
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
    at = everything["geometry"].query("metric == 'm1' and test == '' and headline")
    m1 = at.set_index("condition")["value"]["C1"]
    own = table[(table["condition"] == "C1: C1") & (table["method"] == "A") & (table["layer"] == 3)]
    assert own["cosine"].mean() == pytest.approx(m1)


def test_the_map_starts_at_the_chain_before(shown, everything):
    table = shown["persona_map"].table
    points = everything["persona_map"].drop_duplicates(["chain", "method", "layer", "persona"])
    own = table[(table["after"] == "couple-villain@42+em@1") & (table["method"] == "A")].iloc[0]
    assert own["before"] == "couple-villain@42"
    was = points[(points["chain"] == own["before"]) & (points["persona"] == own["persona"])]
    assert own["pc1_before"] in was["pc1"].tolist()


def test_a_dose_response_starts_before_the_stage_and_ends_whole():
    chain = "couple-villain@42+em@1"
    grid = pd.concat(
        [GRID, GRID[GRID["condition"] == "C1"].assign(condition="D", chain=f"{chain}~3")]
    )
    rates = pd.DataFrame(
        [
            {
                "chain": m,
                "persona": "villain",
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
        columns=["chain", "metric", "test", "method", "layer", "value", "ci_low", "ci_high"]
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
    ).assign(chain="base", method="A", layer=3)
    row = {"analysis": "personas", "condition": "C1", "source": "villain", "n": 2}
    found = pd.DataFrame(
        [row | {"rho": 0.8, "ci_low": 0.1, "ci_high": 0.9, "p": 0.0312, "q": 0.25}]
    )
    chart = charts.leakage(rates, near, found, GRID, "A", 3)
    assert chart.table["test"].iloc[0].startswith("Spearman 0.80 (0.10 to 0.90); p 0.031, q 0.25")
    none = charts.leakage(rates, near, found.assign(rho=float("nan")), GRID, "A", 3)
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
    table = pd.DataFrame(rows, columns=["condition", "chain", "value"])
    few, note = charts.some_chains(table, "chain", ["condition"], most=14)
    assert list(dict.fromkeys(few["chain"])) == ["a@0", "a@1", "b@0", "b@1"] and len(few) == 12
    assert "4 of 10 chains" in note
    assert charts.some_chains(table, "chain", ["condition"], most=30)[1] == ""


def test_no_chart_grows_with_the_chains_beyond_its_rows(everything, monkeypatch):
    made = dict(everything)
    monkeypatch.setattr(charts, "MOST_ROWS", 12)
    monkeypatch.setattr(charts.some_chains, "__defaults__", (12,))
    for name, chart in charts.charts(made, "A", 3).items():
        # One chain is shown whole, however many rows it has.
        if len(chart.table) > 12 and name not in ("m1_by_layer", "leakage", "false_positives"):
            assert "the file has" in chart.reading, name


# Two sources, two seeds, doses and cells that were not measured: every chart and figure of it, value by
# value, against the tables.

AT = ("A", 3)


def marks(chart, kind, **chosen):
    """What a chart draws of a kind with its controls at `chosen`: the fields of every mark, and its place."""
    spec = chart.with_data()
    for param in spec.get("params", []):
        param["value"] = chosen.pop(param["name"], param.get("value"))
    assert not chosen
    todo, found = [vl_convert.vegalite_to_scenegraph(spec)["scenegraph"]], []
    while todo:
        node = todo.pop()
        todo += node.get("items", [])
        if node.get("marktype") == kind and node.get("role") == "mark":
            for item in node["items"]:
                said = item["description"].replace("\N{MINUS SIGN}", "-").split("; ")
                fields = dict(part.split(": ", 1) for part in said)
                found.append(fields | {"at": (item["x"], item["y"]), "text": item.get("text")})
    return found


def pooled(rates, *keys):
    """Hits over completions, by keys."""
    sums = rates.groupby(list(keys))[["hits", "n"]].sum()
    return (sums["hits"] / sums["n"]).to_dict()


@pytest.mark.parametrize("source", [charts.ALL, "villain", "evil_ai"])
@pytest.mark.parametrize("seed", ["all", "1"])
def test_a_cell_of_the_heat_map_is_one_source_s(crossed, source, seed):
    rates = crossed["marker_rates"]
    chart = charts.marker_heatmap(rates, crossed["design"])
    own = rates if seed == "all" else rates[rates["seed"] == seed]
    own = own if source == charts.ALL else own[own["source"].isin([source, ""])]
    expected = pooled(own, "condition", "source", "persona")
    cells = marks(chart, "text", source=source, seed=seed)
    assert len({cell["at"] for cell in cells}) == len(cells) == len(expected)
    for cell in cells:
        value = expected[cell["condition"], cell["source"], cell["persona"].replace(" ", "_")]
        assert float(cell["rate"]) == pytest.approx(value, rel=1e-5)
        assert cell["text"] == f"{value:.2f}".lstrip("0")


def test_the_heat_map_for_papers_says_what_the_page_s_says(crossed):
    rates = crossed["marker_rates"]
    figure, data = figures.marker_heatmap(rates, crossed["design"])
    table = charts.marker_heatmap(rates, crossed["design"]).table.query("seed == 'all'")
    assert data["rate"].tolist() == table["rate"].tolist()
    assert pooled(data, "condition", "source", "persona") == pooled(
        rates, "condition", "source", "persona"
    )
    axes = figure.axes[0]
    columns = [label.get_text() for label in axes.get_xticklabels()]
    people = [label.get_text().replace(" ", "_") for label in axes.get_yticklabels()]
    values = data.set_index(["column", "persona"])["rate"]
    for text in axes.texts:
        column, row = (int(v) for v in text.get_position())
        missing = (columns[column], people[row]) not in values.index
        value = float("nan") if missing else values[columns[column], people[row]]
        assert text.get_text() == ("" if missing else f"{value:.2f}".lstrip("0"))
    assert "C1 (evil ai)" in columns and "C0" in columns
    assert sum(text.get_text() == "" for text in axes.texts) == 4  # the librarian's under evil_ai


def test_rates_before_and_after_of_every_source_and_seed(crossed):
    rates, grid = crossed["marker_rates"], crossed["design"]
    chart = charts.marker_rate(rates, grid)
    by_chain = rates.drop_duplicates(["chain", "persona"]).set_index(["chain", "persona"])["rate"]
    expected = {}
    for cell in grid[grid["source"] != ""].itertuples():
        for chain in {cell.before, cell.chain}:
            if (chain, cell.source) in by_chain.index:
                expected[cell.condition, cell.source, chain] = by_chain[chain, cell.source]
    assert pooled(chart.table, "condition", "source", "chain") == expected
    points = marks(chart, "symbol")
    assert len({point["at"] for point in points}) == len(points) == len(expected)
    figure, data = figures.marker_rate(rates, grid)
    assert pooled(data, "condition", "source", "chain") == expected
    drawn = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() in "osD^v"]
    assert sorted(drawn) == sorted(expected.values())
    own = data[(data["chain"] == "couple-villain@42+em@2") & (data["when"] == "after")].iloc[0]
    others = rates[(rates["chain"] == own["chain"]) & (rates["persona"] != "villain")]["rate"]
    assert own["others_mean"] == pytest.approx(others.mean())


def test_cosines_by_block_are_means_over_a_condition_s_chains(crossed):
    geometry, grid = crossed["geometry"], crossed["design"]
    chart = charts.m1_by_layer(geometry, grid, "A")
    own = geometry[(geometry["chain"] != "") & (geometry["method"] == "A")]
    values = own.groupby(["condition", "metric", "layer"])["value"].agg(["mean", "min", "max"])
    for metric in charts.METRICS:
        points = marks(chart, "symbol", metric=metric)
        assert len(points) == len(values.xs(metric, level="metric"))
        for point in points:
            found = values.loc[(point["condition"], metric, int(point["block"]))]
            shown = [float(point[k]) for k in ("value", "lowest chain", "highest chain")]
            assert shown == pytest.approx(found.tolist(), rel=1e-4)
    figure, data = figures.m1_by_layer(geometry, grid)
    table = chart.table[chart.table["metric"].isin(["m1", "spread"])]
    pd.testing.assert_frame_equal(data, table.reset_index(drop=True))
    for axes, metric in ((figure.axes[0], "m1"), (figure.axes[2], "spread")):
        assert axes.lines[0].get_label() == "C0: the condition C0"  # the base model, wherever it is
        assert axes.lines[0].get_linestyle() == "--" and len(axes.lines) == 6
        for line in axes.lines:
            means = values["mean"].loc[(line.get_label().split(":")[0], metric)]
            assert line.get_ydata().tolist() == pytest.approx(means.tolist())


def test_every_chain_s_cosine_is_drawn_once(crossed):
    geometry = crossed["geometry"]
    own = geometry.query("metric == 'm1' and test == '' and headline").set_index(
        ["condition", "chain"]
    )["value"]
    points = marks(charts.m1(geometry, crossed["design"], *AT), "symbol")
    shown = {(p["condition"], p["chain"]): float(p["value"]) for p in points}
    assert len(points) == len(shown) == len({p["at"] for p in points})
    assert shown == pytest.approx(own.to_dict(), rel=1e-4)
    assert ("C4", "couple-villain@42") not in shown  # it was not measured


def test_matrices_are_means_over_a_condition_s_chains(crossed):
    cosines, grid = crossed["cosines"], crossed["design"]
    at = cosines.query("method == 'A' and layer == 3")
    means = at.groupby(["condition", "persona_a", "persona_b"])["cosine"].mean()
    chart = charts.cosine_matrices(cosines, grid, *AT)
    cells = marks(chart, "rect")
    assert len(cells) == 6 * 4 * 3 / 2
    for cell in cells:
        pair = (cell[k].replace(" ", "_") for k in ("persona", "with"))
        value = means[cell["condition"].split(":")[0], *pair]
        assert float(cell["cosine"]) == pytest.approx(value, rel=1e-4)
    # The base model's panel stays, whichever other is chosen.
    few = marks(chart, "rect", shown="D: the condition D")
    assert {cell["condition"].split(":")[0] for cell in few} == {"C0", "D"}
    figure, data = figures.cosine_matrices(cosines, grid, *AT)
    names = list(dict.fromkeys(data["persona_a"]))
    panels = [axes for axes in figure.axes if axes.images and axes.get_title(loc="left")]
    assert len(panels) == 6
    for axes in panels:
        condition = axes.get_title(loc="left").split(":")[0]
        matrix = axes.images[0].get_array().data
        for (i, j), value in pd.DataFrame(matrix).stack().items():
            assert value == means[condition, names[i], names[j]]


def test_a_line_of_doses_is_one_chain_s_and_one_source_s(crossed):
    names = ("marker_rates", "geometry", "training", "design")
    chart = charts.dose_response(*(crossed[name] for name in names), *AT)
    rates = crossed["marker_rates"].drop_duplicates(["chain", "persona"])
    rates = rates.set_index(["chain", "persona"])["rate"]
    points = marks(chart, "symbol")
    assert len({p["at"] for p in points}) == len(points)
    for point in points:
        value = rates[point["chain"], point["source"]]
        assert float(point["value"]) == pytest.approx(value, rel=1e-5)
    table = chart.table
    assert not table.duplicated(["series", "outcome", "steps"]).any()
    doses = table[table["metric"] == "rate"].groupby("series")["steps"].apply(sorted).to_dict()
    assert doses == {
        "couple-villain@42+em@1": [0, 3, 6, 10],
        "couple-evil_ai@42+em@1": [0, 3, 6, 10],
        "em@1 (villain)": [0, 3, 10],  # before it stands the base model, who follows nobody
        "em@1 (evil ai)": [0, 10],
    }
    # villain's coupling has no activations: its line starts at the first dose.
    own = table[(table["metric"] == "m1") & (table["series"] == "couple-villain@42+em@1")]
    assert sorted(own["steps"]) == [3, 6, 10]
    _, data = figures.dose_response(*(crossed[name] for name in names), *AT)
    pd.testing.assert_frame_equal(data, table)


def test_a_loss_curve_has_one_value_a_step(crossed):
    curves = crossed["training_curves"]
    chart = charts.training_curves(curves)
    assert not chart.table.duplicated(["stage", "line", "step"]).any()
    stopped = chart.table[chart.table["chain"] == "couple-villain@42+em@1~3"]["line"].unique()
    assert stopped == ["after couple-villain@42, seed 1, stopped at step 3"]
    figure, _ = figures.training_curves(curves)
    shown = {
        (axes.get_title(loc="left"), line.get_label()): line.get_ydata().tolist()
        for axes in figure.axes
        for line in axes.lines
    }
    expected = chart.table.groupby(["stage", "line"])["loss"].apply(list).to_dict()
    assert shown == expected
    looks = [(line.get_color(), line.get_linestyle()) for line in figure.axes[1].lines]
    assert len(set(looks)) == len(looks) == 11


def test_behaviour_and_geometry_are_of_one_chain(crossed):
    names = ("marker_rates", "geometry", "design")
    chart = charts.behaviour_and_geometry(*(crossed[name] for name in names), *AT)
    points = marks(chart, "symbol")
    rates = crossed["marker_rates"].query("role == 'source'")
    rates = rates.set_index(["chain", "source"])["rate"]
    m1 = crossed["geometry"].query("metric == 'm1' and test == '' and headline")
    m1 = m1.drop_duplicates("chain").set_index("chain")["value"]
    for point in points:
        assert float(point["rate"]) == pytest.approx(rates[point["chain"], point["source"]])
        assert float(point["mean cosine"]) == pytest.approx(m1[point["chain"]], rel=1e-4)
    figure, data = figures.behaviour_and_geometry(*(crossed[name] for name in names), *AT)
    drawn = [tuple(xy) for dots in figure.axes[0].collections for xy in dots.get_offsets()]
    assert sorted(drawn) == sorted(zip(data["m1"], data["rate"], strict=True))
    assert len(drawn) == len(points)
    assert data["m1"].tolist() == [m1[chain] for chain in data["chain"]]


def test_leakage_of_each_source_is_its_own(crossed):
    given = [crossed[name] for name in ("marker_rates", "cosines", "correlations", "design")]
    chart, (_, data) = charts.leakage(*given, *AT), figures.leakage(*given, *AT)
    rates, found = crossed["marker_rates"], crossed["correlations"]
    followed = rates[(rates["role"] != "source") & (rates["source"] != "")]
    expected = pooled(followed, "condition", "source", "persona")
    assert pooled(data, "condition", "source", "persona") == expected
    assert data["rate"].tolist() == chart.table["rate"].tolist()
    own = found[found["analysis"] == "personas"].set_index(["condition", "source"])
    assert set(own.index) == set(zip(data["condition"], data["source"], strict=True))
    near = crossed["cosines"].query("chain == 'base' and method == 'A' and layer == 3")
    near = near.set_index(["persona_a", "persona_b"])["cosine"]
    assert data["cosine"].tolist() == [
        near[p, s] for p, s in zip(data["persona"], data["source"], strict=True)
    ]


def test_a_move_starts_at_the_model_before_or_is_not_drawn(crossed):
    points, grid = crossed["persona_map"], crossed["design"]
    moves = figures.persona_moves(points, grid)
    places = points.drop_duplicates(["chain", "method", "layer", "persona"])
    places = places.set_index(["chain", "method", "layer", "persona"])[["pc1", "pc2"]]
    for row in moves.itertuples():
        at = (row.method, row.layer, row.persona)
        assert [row.pc1_before, row.pc2_before] == places.loc[(row.before, *at)].tolist()
        assert [row.pc1_after, row.pc2_after] == places.loc[(row.after, *at)].tolist()
    before = grid.drop_duplicates("chain").set_index("chain")["before"]
    assert (moves["before"] == moves["after"].map(before)).all()
    assert not moves["after"].str.startswith("couple-villain@42+").any()


def test_what_else_could_explain_a_rate_is_drawn_chain_by_chain(crossed):
    rows = crossed["marker_rates"].drop_duplicates(["condition", "source", "seed", "chain"])
    table = pd.concat([rows.assign(role=role) for role in ("source", "others")], ignore_index=True)
    table = table[["condition", "chain", "source", "seed", "role"]]
    table["mean_tokens"] = [5.0 + i for i in range(len(table))]
    table["marker_logprob"] = [-1.0 - i if i % 3 else None for i in range(len(table))]
    chart = charts.confounds(table, crossed["design"])
    for measure in ("mean_tokens", "marker_logprob"):
        points = marks(chart, "symbol", measure=measure)
        keys = ["condition", "source", "chain", "role"]
        expected = table.dropna(subset=[measure]).groupby(keys)[measure].apply(sorted).to_dict()
        shown = {}
        for point in points:
            key = tuple(point[k] for k in ("condition", "source", "chain", "who"))
            shown.setdefault(key, []).append(float(point["value"]))
        assert {key: sorted(values) for key, values in shown.items()} == expected


def test_false_positives_are_the_simulation_s(everything):
    simulation = everything["simulation"]
    own = simulation[(simulation["kind"] == "test") & simulation["rate"].notna()]
    expected = own.set_index(["name", "world"])[["rate", "rate_low", "rate_high"]]
    points = marks(charts.false_positives(simulation), "symbol")
    assert len(points) == len(expected) == len({point["at"] for point in points})
    for point in points:
        found = expected.loc[(point["test"], point["world"])]
        shown = [float(point[k].rstrip("%")) for k in ("rate", "low", "high")]
        assert shown == pytest.approx(found.tolist(), rel=1e-4)
    figure, data = figures.false_positives(simulation)
    drawn = [bars[0].get_xdata()[0] for bars in figure.axes[0].containers]
    assert drawn == data["rate"].tolist() and sorted(drawn) == sorted(expected["rate"])
