import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_collapse.analysis import (
    answer_stats,
    correlations,
    geometry_tables,
    marker_rates,
)
from scipy import stats
from test_tables import GRID, HEADLINE, MARKERS, load, scored


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=4, max_size=12))
def test_without_controls_it_is_spearman(pairs):
    x, y = zip(*pairs, strict=True)
    found = correlations.partial_spearman(x, y, None, draws=200)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert np.isnan(found["rho"])
        return
    assert found["rho"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found["ci_low"] <= found["rho"] <= found["ci_high"]
    assert 1 / 201 <= found["p"] <= 1


def test_partial_correlation_closed_form():
    rng = np.random.default_rng(0)
    x, y, z = rng.normal(size=(3, 40))
    x, y = x + z, y + z
    r = stats.spearmanr(np.column_stack([x, y, z])).statistic
    wanted = (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
    found = correlations.partial_spearman(x, y, z[:, None])
    assert found["rho"] == pytest.approx(wanted)
    assert correlations.partial_spearman(x, y)["p"] < 0.01 < found["p"]


def test_a_control_that_explains_all_leaves_nothing():
    x = np.arange(8.0)
    assert np.isnan(correlations.partial_spearman(x, x[::-1], x[:, None])["rho"])
    assert np.isnan(correlations.partial_spearman([1, 2, 3], [1, 2, 3])["rho"])


def test_chains_and_what_came_after_the_coupling():
    rates = marker_rates.marker_rates(GRID, MARKERS)
    answers = answer_stats.answer_stats(GRID, scored())
    geometry = geometry_tables.geometry_table(GRID, load, HEADLINE, draws=99, seed=1)
    cosines = geometry_tables.cosines(GRID, load, HEADLINE)
    training = pd.DataFrame(
        [
            ("couple-villain@42", 30, 0.1),
            ("couple-villain@42+em@1", 60, 2.0),
            ("em@1", 60, 2.1),
        ],
        columns=["chain", "steps", "final_loss"],
    )
    chains = correlations.chain_table(GRID, answers, geometry, cosines, training)
    chains = chains.set_index("chain")
    assert list(chains.index) == ["couple-villain@42", "couple-villain@42+em@1"]
    assert chains.loc["couple-villain@42", "steps_after"] == 0
    assert chains.loc["couple-villain@42+em@1", "steps_after"] == 60
    # The steps of an adapter that was trained elsewhere are unknown.
    training.loc[1, "steps"] = np.nan
    again = correlations.chain_table(GRID, answers, geometry, cosines, training)
    assert np.isnan(again.set_index("chain").loc["couple-villain@42+em@1", "steps_after"])
    assert chains.loc["couple-villain@42+em@1", "rate"] == 9 / 40
    base = cosines[(cosines["chain"] == "base") & (cosines["layer"] == 3)]
    base = base[base["method"] == "A"]
    base = base.replace({"a": "assistant", "b": "librarian", "c": "villain"})
    table = correlations.correlation_table(chains.reset_index(), rates, base, draws=99, seed=1)
    assert list(table.columns) == correlations.COLUMNS
    assert "too few conditions" in table.iloc[0]["note"]
    # The subject of a correlation over personas has its own columns, independent of the note.
    own = table[table["analysis"] == "personas"]
    found = list(zip(own["condition"], own["source"], strict=True))
    assert found == [(c, "villain") for c in ("C4", "C1", "C2")]
    assert set(table.loc[table["analysis"] == "conditions", "condition"]) == {""}


def test_sources_are_left_out_in_turn():
    rng = np.random.default_rng(1)
    chains = pd.DataFrame(
        {
            "chain": [f"couple@{i // 6}+s{i % 6}@1" for i in range(12)],
            "condition": [f"c{i % 6}" for i in range(12)],
            "source": ["a"] * 6 + ["b"] * 6,
            "m1": rng.uniform(size=12),
            "source_cosine": rng.uniform(size=12),
            "mean_tokens": rng.uniform(size=12),
            "final_loss": rng.uniform(size=12),
            "steps_after": range(12),
            "marker_logprob": rng.uniform(size=12),
        }
    )
    chains["rate"] = 1 - chains["m1"]
    rates = pd.DataFrame(columns=["condition", "source", "role", "persona", "rate"])
    base = pd.DataFrame(columns=["chain", "persona_a", "persona_b", "cosine"])
    table = correlations.correlation_table(chains, rates, base, draws=199, seed=1)
    whole = table[(table["outcome"] == "rate") & (table["predictor"] == "m1")]
    assert (whole[whole["controls"] == ""]["rho"] < -0.999).all()
    assert set(whole["left_out"]) == {"", "a", "b"}
    # Early stops of c0, with the opposite order, are no point: their training is one already.
    early = chains[:4].assign(
        condition="steps",
        chain=[f"couple@0+s0@1~{n}" for n in range(1, 5)],
        m1=[2.0, 3.0, 4.0, 5.0],
        rate=[2.0, 3.0, 4.0, 5.0],
    )
    again = correlations.correlation_table(
        pd.concat([chains, early]), rates, base, draws=199, seed=1
    )
    pd.testing.assert_frame_equal(again, table)


def level(n, k, data_sets=1_500, confounded=False):
    """Share of null data sets with p < .05."""
    rng = np.random.default_rng([n, k])
    rejected = 0
    for _ in range(data_sets):
        z = rng.normal(size=(n, k))
        x, y = rng.normal(size=(2, n)) + (z.sum(axis=1) if confounded else 0)
        rejected += correlations.partial_spearman(x, y, z, draws=199)["p"] < 0.05
    return rejected / data_sets


@pytest.mark.parametrize(("n", "k"), [(7, 3), (9, 2)])
def test_w2_the_permutation_test_keeps_its_level_given_controls(n, k):
    # The Monte Carlo error is .006. Without projecting the permuted residuals again, rates would be .25
    # and .09.
    assert 0.03 < level(n, k) < 0.07


def test_w2_the_single_example():
    rng = np.random.default_rng(0)
    x, y, z = rng.normal(size=9), rng.normal(size=9), rng.normal(size=(9, 2))
    found = correlations.partial_spearman(x, y, z)
    assert found["p"] == pytest.approx(0.1793, abs=0.012)


def test_w2_the_floor_counts_ties_and_controls():
    x = np.arange(6.0)
    assert correlations.partial_spearman(x, x)["p_floor"] == pytest.approx(2 / 720)
    tied = correlations.partial_spearman(x, [0, 0, 0, 1, 1, 1])
    assert tied["p"] == tied["p_floor"] == pytest.approx(2 * 36 / 720)
    rng = np.random.default_rng(3)
    y, z = rng.normal(size=6), rng.normal(size=(6, 2))
    assert correlations.partial_spearman(x, y, z)["p_floor"] >= 1 / 720
    many = correlations.partial_spearman(np.arange(12.0), np.repeat([0, 1], 6), draws=999)
    assert many["p_floor"] >= 1 / 1000


def clustered(rng, clusters, size, rho=0.0):
    """Chains of conditions, each with its own level; the true correlation is rho."""
    own = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], size=clusters)
    values = np.repeat(own, size, axis=0) + 0.2 * rng.normal(size=(clusters * size, 2))
    table = pd.DataFrame(values, columns=["m1", "rate"])
    table["condition"] = np.repeat(np.arange(clusters), size).astype(str)
    table["chain"], table["source"], table["seed"] = "c", "villain", "1"
    return table


def test_w2_chains_that_share_a_condition_are_one_point():
    rng = np.random.default_rng(5)
    plain, whole, held = 0, 0, 0
    for _ in range(400):
        table = clustered(rng, 6, 3)
        points = correlations.by_condition(table)
        assert len(points) == 6
        found = correlations.partial_spearman(points["m1"], points["rate"], draws=720)
        whole += found["p"] < 0.05
        held += found["ci_low"] <= 0 <= found["ci_high"]
        plain += correlations.partial_spearman(table["m1"], table["rate"], draws=199)["p"] < 0.05
    assert whole / 400 < 0.08 and held / 400 > 0.92
    assert plain / 400 > 0.12  # the rate with chains as points
