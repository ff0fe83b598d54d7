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
    assert chains.loc["couple-villain@42+em@1", "rate"] == 9 / 40
    base = cosines[(cosines["chain"] == "base") & (cosines["layer"] == 3)]
    base = base[base["method"] == "A"]
    base = base.replace({"a": "assistant", "b": "librarian", "c": "villain"})
    table = correlations.correlation_table(chains.reset_index(), rates, base, draws=99, seed=1)
    assert list(table.columns) == correlations.COLUMNS
    assert "too few chains" in table.iloc[0]["note"]
    # What a correlation over personas is about is in columns of its own, whatever the note says.
    own = table[table["analysis"] == "personas"]
    found = list(zip(own["condition"], own["source"], strict=True))
    assert found == [(c, "villain") for c in ("C4", "C1", "C2")]
    assert set(table.loc[table["analysis"] == "chains", "condition"]) == {""}


def test_sources_are_left_out_in_turn():
    rng = np.random.default_rng(1)
    chains = pd.DataFrame(
        {
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
    base = pd.DataFrame(columns=["persona_a", "persona_b", "cosine"])
    table = correlations.correlation_table(chains, rates, base, draws=199, seed=1)
    whole = table[(table["outcome"] == "rate") & (table["predictor"] == "m1")]
    assert (whole[whole["controls"] == ""]["rho"] < -0.999).all()
    assert set(whole["left_out"]) == {"", "a", "b"}
