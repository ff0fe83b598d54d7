import numpy as np
import pandas as pd
import pytest
from persona_collapse import claims, tables
from persona_collapse.activations import Activations
from persona_collapse.errors import UserError
from scipy import stats

ROWS = [
    ("base", "base", "", "", "base", "base"),
    ("C4", "couple-villain@42", "villain", "42", "base", "coupled"),
    ("C1", "couple-villain@42+em@1", "villain", "1", "couple-villain@42", "couple_then_sft"),
    ("C2", "em@1", "villain", "1", "base", "sft"),
    ("E0", "em@1", "", "1", "base", "sft"),
]
GRID = pd.DataFrame(ROWS, columns=["condition", "chain", "source", "seed", "before", "kind"])
GRID["title"], GRID["arm"] = GRID["condition"], "both"
GRID["personas"] = "assistant librarian villain"


def counts(**hits):
    table = pd.DataFrame({"persona": list(hits), "n": 40, "hits": list(hits.values())})
    return table.assign(rate=table["hits"] / 40, ci_low=0.0, ci_high=1.0, mean_tokens=5, at_end=1)


MARKERS = {
    "base": counts(assistant=0, librarian=0, villain=0),
    "couple-villain@42": counts(assistant=2, librarian=4, villain=36),
    "couple-villain@42+em@1": counts(assistant=0, librarian=1, villain=9),
    "em@1": counts(assistant=0, librarian=0, villain=0),
}


@pytest.fixture
def rates():
    return tables.marker_rates(GRID, MARKERS)


def load(chain):
    """A model whose personas are pulled together in every chain but the base."""
    rng = np.random.default_rng(0)
    stack = rng.normal(size=(2, 5, 6, 16)) * 0.1 + rng.normal(size=(1, 5, 1, 16))
    pull = 0.0 if chain == "base" else 2.0
    array = (stack + pull).astype(np.float32)
    return Activations([1, 3], list("abcde"), list("qrstuv"), {"A": array, "B": array}, chain)


def test_rates_list_a_chain_under_each_of_its_conditions(rates):
    assert list(rates.columns) == tables.RATE_COLUMNS
    assert len(rates) == 5 * 3
    roles = rates[rates["condition"] == "C1"].set_index("persona")["role"].to_dict()
    assert roles == {"assistant": "assistant", "librarian": "bystander", "villain": "source"}
    assert set(rates[rates["condition"] == "E0"]["role"]) == {"assistant", "bystander"}


def test_tests_compare_a_chain_with_its_prefix(rates):
    tests = tables.marker_tests(GRID, rates).set_index("condition")
    assert list(tests.index) == ["C4", "C1", "C2"]
    c1 = tests.loc["C1"]
    assert c1["reference"] == "C4"
    assert c1["estimate"] == pytest.approx(9 / 40 - 36 / 40)
    assert c1["p"] == pytest.approx(stats.fisher_exact([[9, 31], [36, 4]]).pvalue)
    assert c1["p_min"] <= c1["p"]
    assert c1["ci_low"] < c1["estimate"] < c1["ci_high"]
    assert tests.loc["C2", "p"] == tests.loc["C2", "p_min"] == 1


def test_the_published_fisher_p_of_villain():
    # C4 252 of 280 against C1 0 of 840: the study's counts.
    p = stats.fisher_exact([[252, 28], [0, 840]]).pvalue
    assert 1e-221 < p < 1e-218


def test_newcombe_closed_form():
    # Newcombe 1998, table II: 56/70 against 48/80.
    low, high = tables.newcombe(56, 70, 48, 80)
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def test_leakage(rates):
    leakage = tables.leakage(GRID, rates).set_index("condition")
    assert leakage.loc["C4", "source_rate"] == 0.9
    assert leakage.loc["C4", "assistant_rate"] == 0.05
    assert leakage.loc["C4", "bystander_max_persona"] == "librarian"
    assert leakage.loc["C2", "bystander_max_persona"] == ""


def test_geometry_of_a_collapse():
    table = tables.geometry_table(GRID, load, draws=199, seed=1)
    assert list(table.columns) == tables.GEOMETRY_COLUMNS
    assert set(table["condition"]) == {"base", "C4", "C1", "C2", "E0"}
    assert set(table["layer"]) == {1, 3} and set(table["method"]) == {"A", "B"}
    m1 = table[(table["metric"] == "m1") & (table["condition"] == "C1")]
    assert (m1["delta_base"] > 0.2).all()
    assert (m1["p"] >= m1["p_min"]).all() and (m1["ci_low"] <= m1["value"] + 1e-3).all()
    base = table[(table["metric"] == "m1") & (table["condition"] == "base")]
    assert (base["delta_base"] == 0).all() and base["p"].isna().all()
    # Five personas cannot give a smaller p than 2/32, however clear the change.
    units = table[(table["metric"] == "m1_by_persona") & (table["condition"] == "C1")]
    assert (units["p_min"] == 2 / 32).all() and (units["p"] > 0.04).all()


def test_one_persona_pair_and_one_question_are_enough():
    def small(chain):
        array = np.random.default_rng(len(chain)).normal(size=(1, 2, 1, 4)).astype(np.float32)
        return Activations([0], ["a", "b"], ["q"], {"A": array}, chain)

    table = tables.geometry_table(GRID, small, draws=99, seed=1)
    assert table[table["metric"] == "m1"]["value"].between(-1, 1).all()


def test_cosines_are_symmetric_with_ones():
    table = tables.cosines(GRID, load)
    one = table[(table["condition"] == "C1") & (table["method"] == "A") & (table["layer"] == 3)]
    matrix = one.pivot(index="persona_a", columns="persona_b", values="cosine").to_numpy()
    np.testing.assert_allclose(matrix, matrix.T)
    np.testing.assert_allclose(np.diag(matrix), 1)


def claim(**changes):
    return {
        "id": "x",
        "text": "It is so",
        "published": 0.0,
        "measure": {"source_rate": {"condition": "C1"}},
        "expect": {"max": 0.05},
        "scale": "any",
    } | changes


def score(rates, *entries, scale="full"):
    return claims.scorecard(
        entries,
        marker_rates=rates,
        geometry=tables.geometry_table(GRID, load, draws=99, seed=1),
        headline={"method": "A", "position": 0},
        fdr=0.01,
        scale=scale,
    ).iloc[0]


def test_verdicts(rates):
    assert score(rates, claim())["verdict"] == "not replicated"
    assert score(rates, claim(expect={"max": 0.5}))["verdict"] == "replicated"
    assert score(rates, claim(expect={"max": 0.25}))["verdict"] == "partly"
    near = {"near": 0.22, "tolerance": 0.01}
    assert score(rates, claim(expect=near))["verdict"] == "partly"
    absent = claim(measure={"source_rate": {"condition": "C9"}})
    assert score(rates, absent)["verdict"] == "not tested here"
    demo = score(rates, claim(scale="full"), scale="demo")
    assert demo["verdict"] == "not tested here" and "study's model" in demo["note"]


def test_an_estimate_without_an_interval_is_partly_at_best(rates):
    gap = claim(measure={"m1_gap": {"condition": "C1", "reference": "E0"}}, expect={"max": 1.0})
    assert score(rates, gap)["verdict"] == "partly"
    hits = claim(measure={"hits": {"conditions": ["C2"]}}, expect={"max": 0})
    assert score(rates, hits)["verdict"] == "replicated"


def test_the_shipped_claims_load_and_every_measure_runs(rates):
    from pathlib import Path

    entries = claims.load(Path(__file__).resolve().parents[2] / "config/claims.yaml")
    geometry = tables.geometry_table(GRID, load, draws=99, seed=1)
    scored = claims.scorecard(
        entries,
        marker_rates=rates,
        geometry=geometry,
        headline={"method": "A", "position": 1},
        fdr=0.01,
        scale="full",
    )
    assert list(scored.columns) == claims.COLUMNS
    assert set(scored["verdict"]) <= set(claims.VERDICTS)
    assert {next(iter(e["measure"])) for e in entries} == set(claims.MEASURES)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {id: a}", "text is missing"),
        (
            "- {id: a, text: t, published: 1, measure: {magic: {}}, expect: {max: 1}, scale: any}",
            "no measure 'magic'",
        ),
    ],
)
def test_bad_claims_are_named(tmp_path, text, said):
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        claims.load(tmp_path / "claims.yaml")
