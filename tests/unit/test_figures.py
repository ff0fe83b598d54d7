"""Figures for papers: what they draw is what the tables and the page's charts say."""

import pandas as pd
import pytest
from matplotlib import pyplot
from persona_collapse.report import charts, figures
from synthetic import with_more
from test_tables import GRID

AT = ("A", 3)


def text_of(figure):
    return figure.axes[0].texts[0].get_text()


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def test_a_dose_response_draws_the_table_s_rates_and_intervals(everything):
    more = with_more(everything)
    tables = [more[name] for name in ("marker_rates", "geometry", "training", "design")]
    figure, data = figures.dose_response(*tables, *AT)
    pd.testing.assert_frame_equal(data, charts.dose_response(*tables, *AT).table)
    rate, cosine = figure.axes
    (line,) = rate.containers
    own = data[data["outcome"] == rate.get_ylabel()]
    assert line[0].get_xydata().tolist() == [[0, 36 / 40], [3, 0.5], [10, 9 / 40]]
    ends = [segment[:, 1].tolist() for segment in line[2][0].get_segments()]
    assert ends == [
        pytest.approx(pair) for pair in own.sort_values("steps")[["low", "high"]].values
    ]
    m1 = more["geometry"].query("metric == 'm1' and test == '' and headline")
    whole = m1.set_index("chain")["value"].groupby(level=0).first()
    chains = data[data["outcome"] == cosine.get_ylabel()].sort_values("steps")["chain"]
    assert cosine.containers[0][0].get_ydata().tolist() == whole[chains].tolist()


def test_leakage_draws_each_persona_at_its_cosine_and_pooled_rate(everything):
    rates, cosines, related = (
        everything[name] for name in ("marker_rates", "cosines", "correlations")
    )
    twice = pd.concat([rates, rates.assign(hits=0, seed="2")])
    figure, data = figures.leakage(twice, cosines, related, GRID, *AT)
    chart = charts.leakage(twice, cosines, related, GRID, *AT).table
    assert data["rate"].tolist() == chart["rate"].tolist()
    own = data[(data["condition"] == "C1") & (data["persona"] == "librarian")].iloc[0]
    base = cosines.query("chain == 'base' and method == 'A' and layer == 3")
    near = base.set_index(["persona_a", "persona_b"])["cosine"]
    assert own["cosine"] == near["librarian", "villain"]
    assert (own["hits"], own["n"], own["rate"]) == (1, 80, 1 / 80)
    cells = list(data.groupby("cell", sort=False))
    panels = [axes for axes in figure.axes if axes.axison]
    for axes, (cell, points) in zip(panels, cells, strict=True):
        drawn = axes.collections[0].get_offsets().tolist()
        assert drawn == points[["cosine", "rate"]].values.tolist()
        assert axes.get_title(loc="left").startswith(cell)


def test_the_map_draws_both_ends_of_every_move(everything):
    points = everything["persona_map"]
    figure, data = figures.persona_map(points, GRID, *AT)
    at = points.query("method == 'A' and layer == 3").drop_duplicates(["chain", "persona"])
    places = at.set_index(["chain", "persona"])[["pc1", "pc2"]]
    cells = list(data.groupby(["condition", "source"], sort=False))
    for axes, (_, own) in zip(figure.axes, cells, strict=True):
        for line, when in zip(axes.lines[-2:], ("before", "after"), strict=True):
            keys = list(zip(own[when], own["persona"], strict=True))
            assert line.get_xydata().tolist() == places.loc[keys].values.tolist()
        assert {t.get_text() for t in axes.texts} - {""} == set(own["persona"].map(figures.words))


def test_no_two_names_of_a_panel_overlap(everything):
    figure, _ = figures.persona_map(everything["persona_map"], GRID, *AT)
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [t.get_window_extent() for t in axes.texts if t.get_text()]
        frame = axes.get_tightbbox()
        for i, box in enumerate(boxes):
            assert frame.x0 <= box.x0 and box.x1 <= frame.x1
            assert not any(box.overlaps(other) for other in boxes[:i])


def test_a_run_without_such_data_says_so(everything):
    rates, cosines, related = (
        everything[name] for name in ("marker_rates", "cosines", "correlations")
    )
    geometry, training = everything["geometry"], everything["training"]
    for (figure, data), sentence in (
        (figures.dose_response(rates, geometry, training, GRID, *AT), "no doses"),
        (figures.leakage(rates.iloc[:0], cosines, related, GRID, *AT), "No condition follows"),
        (figures.leakage(rates, cosines.iloc[:0], related, GRID, *AT), "no activations"),
        (figures.persona_map(everything["persona_map"].iloc[:0], GRID, *AT), "has activations"),
    ):
        assert data.empty and sentence in text_of(figure)
