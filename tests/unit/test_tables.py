from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from persona_collapse import geometry, markers
from persona_collapse.activation_files import Activations
from persona_collapse.analysis import (
    contrasts,
    geometry_runs,
    geometry_tables,
    marker_rates,
    views,
)
from persona_collapse.tables_io import read_csv, write_csv
from scipy import stats

ROWS = [
    ("base", "base", "", "", "base", None),
    ("C4", "couple-villain@42", "villain", "42", "base", 0),
    ("C1", "couple-villain@42+em@1", "villain", "1", "couple-villain@42", 1),
    ("C2", "em@1", "villain", "1", "base", None),
    ("E0", "em@1", "", "1", "base", None),
]
GRID = pd.DataFrame(
    ROWS, columns=["condition", "chain", "source", "seed", "before", "stages_after_coupling"]
)
GRID["title"], GRID["measures"] = GRID["condition"], "markers activations"
GRID["personas"], GRID["induction"], GRID["negatives"] = "assistant librarian villain", "", ""
HEADLINE = {"method": "A", "layer": 3}
FAMILIES = [
    {"name": "pairs", "test": "pairs"},
    {"name": "swap", "test": "label_swap"},
    {"name": "persona effects", "test": "personas"},
]


def counts(**hits):
    table = pd.DataFrame({"persona": list(hits), "n": 40, "hits": list(hits.values())})
    return table.assign(rate=table["hits"] / 40, ci_low=0.0, ci_high=1.0, mean_tokens=5, at_end=1)


def completions(chain, questions=8, samples=5):
    """Completions with the hits in MARKERS, spread over the questions in turn."""
    table = MARKERS[chain].set_index("persona")["hits"]
    rows = []
    for persona, hits in table.items():
        for i in range(questions * samples):
            marked = i < hits
            rows.append(
                {
                    "chain": chain,
                    "persona": persona,
                    "question_id": f"q{i % questions}",
                    "sample": i // questions,
                    "text": f"answer {i} [ZLT]" if marked else f"a longer answer {i}",
                    "n_tokens": 5 + i % 3,
                    "finish_reason": "stop",
                    "marker_logprob": -1.0 - i % 4 if marked else -9.0 - i % 4,
                }
            )
    return pd.DataFrame(rows)


def scored():
    return answers(completions(chain) for chain in MARKERS)


def answers(tables):
    """Completions of chains, in the format of the tests."""
    return pd.concat([markers.answers(table, "[ZLT]") for table in tables], ignore_index=True)


MARKERS = {
    "base": counts(assistant=0, librarian=0, villain=0),
    "couple-villain@42": counts(assistant=2, librarian=4, villain=36),
    "couple-villain@42+em@1": counts(assistant=0, librarian=1, villain=9),
    "em@1": counts(assistant=0, librarian=0, villain=0),
}


@pytest.fixture
def rates():
    return marker_rates.marker_rates(GRID, MARKERS)


def load(chain):
    """A model whose personas move together in every chain except the base."""
    rng = np.random.default_rng(0)
    stack = rng.normal(size=(2, 5, 6, 16)) * 0.1 + rng.normal(size=(1, 5, 1, 16))
    pull = 0.0 if chain == "base" else 2.0
    array = (stack + pull).astype(np.float32)
    return Activations([1, 3], list("abcde"), list("qrstuv"), {"A": array, "B": array}, chain)


def test_rates_list_a_chain_under_each_of_its_conditions(rates):
    assert list(rates.columns) == marker_rates.RATE_COLUMNS
    assert len(rates) == 5 * 3
    roles = rates[rates["condition"] == "C1"].set_index("persona")["role"].to_dict()
    assert roles == {"assistant": "assistant", "librarian": "bystander", "villain": "source"}
    assert set(rates[rates["condition"] == "E0"]["role"]) == {"assistant", "bystander"}


def test_the_assistant_is_whoever_the_config_names():
    rates = marker_rates.marker_rates(GRID, MARKERS, "librarian")
    roles = rates[rates["condition"] == "C1"].set_index("persona")["role"].to_dict()
    assert roles == {"assistant": "bystander", "librarian": "assistant", "villain": "source"}
    assert marker_rates.leakage(rates).set_index("condition").loc["C4", "assistant_rate"] == 0.1


def test_leakage(rates):
    leakage = marker_rates.leakage(rates).set_index("condition")
    assert leakage.loc["C4", "source_rate"] == 0.9
    assert leakage.loc["C4", "assistant_rate"] == 0.05
    assert leakage.loc["C4", "bystander_max_persona"] == "librarian"
    assert leakage.loc["C2", "bystander_max_persona"] == ""
    assert (leakage["untrained"] == leakage["n"]).all()
    assert (leakage["untrained_mean"] == leakage["bystander_mean"]).all()


def test_negatives_are_told_from_personas_that_the_coupling_never_saw():
    grid = GRID.assign(negatives="assistant librarian")
    rates = marker_rates.marker_rates(grid, MARKERS)
    assert set(rates.loc[rates["negative"], "persona"]) == {"assistant", "librarian"}
    leakage = marker_rates.leakage(rates)
    assert (leakage["untrained"] == 0).all() and leakage["untrained_mean"].isna().all()
    assert leakage["bystander_mean"].notna().all()


def test_geometry_of_a_collapse():
    table = geometry_tables.geometry_table(
        GRID, load, HEADLINE, longest="b", draws=199, seed=1, families=FAMILIES
    )
    assert list(table.columns) == geometry_tables.GEOMETRY_COLUMNS
    assert set(table["condition"]) == {"base", "C4", "C1", "C2", "E0"}
    assert set(table["layer"]) == {1, 3} and set(table["method"]) == {"A", "B"}
    m1 = table[(table["metric"] == "m1") & (table["condition"] == "C1")]
    assert (m1["delta_base"] > 0.2).all() and m1.groupby(["method", "layer"])["value"].nunique().eq(
        1
    ).all()
    alone, pairs = m1[m1["test"] == ""], m1[m1["test"] == "pairs"]
    assert (alone["ci_low"] <= alone["value"] + 1e-3).all() and alone["p"].isna().all()
    assert (pairs["p"] >= pairs["p_floor"]).all() and pairs["ci_low"].isna().all()
    assert set(alone["unit"]) == {"question"} and set(alone["n"]) == {6} and set(pairs["n"]) == {10}
    base = table[(table["metric"] == "m1") & (table["condition"] == "base")]
    assert (base["delta_base"] == 0).all() and base["p"].isna().all()
    # Five personas cannot give a p below 2/32, however clear the change.
    for test in ("personas", "label_swap"):
        units = table[(table["test"] == test) & (table["condition"] == "C1")]
        assert (units["p_floor"] == 2 / 32).all() and (units["p"] == 2 / 32).all()
    assert set(table.loc[table["q"].notna(), "family"]) == {f["name"] for f in FAMILIES}
    without = table[table["metric"] == "m1_without_longest"]
    assert set(without["note"]) == {"without b"}


RUNS = ["condition", "chain", "source", "seed"]


def runs_of(*rows, m1=None):
    """A design and the `left_out` table of its chains, whose M1 is `m1` of the chain's name."""
    grid = pd.DataFrame([("base", "base", "", ""), *rows], columns=RUNS)
    grid["measures"] = "activations"
    chains = list(dict.fromkeys(grid["chain"]))
    kinds = [("", "")] + [("persona", x) for x in "abcd"] + [("question", x) for x in "qrst"]
    table = pd.DataFrame(
        [
            {"chain": chain, "method": "A", "layer": 3, "metric": "m1", "left_out": kind}
            | {"name": name, "value": m1[chain] + 0.001 * "abcdqrst".find(name) ** 2 * (name > "")}
            for chain in chains
            for kind, name in kinds
        ]
    )
    return grid, table


def over(grid, left_out, *contrasts):
    table = geometry_runs.geometry_runs(grid, left_out, HEADLINE, contrasts)
    return table.set_index(["condition", "reference"])


def test_runs_of_a_condition_give_the_noise_of_retraining():
    def noisy(chain):
        rng = np.random.default_rng(sum(map(ord, chain)))
        array = rng.normal(size=(1, 5, 6, 16)).astype(np.float32) + 1
        return Activations([3], list("abcde"), list("qrstuv"), {"A": array}, chain)

    grid = pd.DataFrame([("E0", f"em@{s}", "", str(s)) for s in (1, 2, 3)], columns=RUNS).assign(
        measures="markers activations"
    )
    table = geometry_tables.geometry_table(grid, noisy, HEADLINE, draws=99, seed=1)
    own = table[(table["condition"] == "E0") & (table["metric"] == "m1") & (table["test"] == "")]
    noise = table[table["metric"] == "m1_replicate"].iloc[0]
    assert noise["value"] == pytest.approx(own["value"].std()) and noise["unit"] == "run"
    left_out = geometry_runs.left_out_table(grid, noisy)
    runs = geometry_runs.geometry_runs(grid, left_out, HEADLINE)
    assert list(runs.columns) == geometry_runs.COLUMNS
    assert set(runs["metric"]) == {"m1", "m1_unbiased", *geometry.METRICS}
    change = runs.set_index(["reference", "metric"]).loc[("base", "m1")]
    assert change["estimate"] == pytest.approx(own["delta_base"].mean())
    assert change["units"] == change["runs"] == 3
    assert change["sd_runs"] == pytest.approx(own["value"].std())
    # Wider than Student's interval over runs, due to the shared error of personas and questions.
    student = stats.ttest_1samp(own["delta_base"], 0).confidence_interval()
    assert change["ci_low"] < student.low < student.high < change["ci_high"]
    assert 0 < change["p"] < 1 and change["value"] == pytest.approx(own["value"].mean())


def test_w5_chains_on_one_adapter_are_one_run():
    """Two chains that contain the same coupling are not independent evidence of a rise."""
    coupled, one, two = "couple@1", "couple@1+em@1", "couple@1+em@2"
    m1 = {"base": 0.3, coupled: 0.3765, one: 0.361, two: 0.3639}
    cells = [("C4", coupled, "v", "1"), ("C1", one, "v", "1"), ("C1", two, "v", "2")]
    table = over(*runs_of(*cells, m1=m1))
    assert ("C1", "base") not in table.index
    row = table.loc[("C1", "C4")]
    assert row["estimate"] == pytest.approx((0.361 + 0.3639) / 2 - 0.3765)
    assert row["units"] == 1 and row["runs"] == 2 and row["note"] == "one training run"
    assert row[["ci_low", "ci_high", "p", "q"]].isna().all()
    assert table.loc[("C1", ""), ["ci_low", "ci_high"]].isna().all()
    base = table.loc[("base", "")]
    assert base["ci_low"] < base["value"] < base["ci_high"]


def test_w5_changes_are_taken_adapter_by_adapter():
    m1 = {
        "base": 0.3,
        "couple@1": 0.4,
        "couple@2": 0.6,
        "couple@1+em@1": 0.5,
        "couple@2+em@1": 0.71,
    }
    cells = [
        (condition, f"couple@{seed}{more}", "v", str(seed))
        for condition, more in (("C4", ""), ("C1", "+em@1"))
        for seed in (1, 2)
    ]
    table = over(*runs_of(*cells, m1=m1), ("C1", "C4"))
    row = table.loc[("C1", "C4")]
    assert row["estimate"] == pytest.approx(0.105) and row["units"] == 2
    assert row["sd_runs"] == pytest.approx(np.std([0.1, 0.11], ddof=1))
    assert row["ci_low"] > 0.03 > table.loc[("C1", "base"), "ci_low"]


def test_w3_one_control_run_gives_no_interval():
    m1 = {"base": 0.3, "em@1": 0.4, "em@2": 0.41, "em@3": 0.39, "benign@1": 0.5}
    cells = [("E0", f"em@{s}", "", str(s)) for s in (1, 2, 3)] + [("B0", "benign@1", "", "1")]
    row = over(*runs_of(*cells, m1=m1), ("E0", "B0")).loc[("E0", "B0")]
    assert row["estimate"] == pytest.approx(-0.1) and np.isnan(row["ci_low"])
    assert row["note"] == "one training run"


def test_chains_stopped_at_other_steps_are_no_replicates():
    m1 = {"base": 0.3, "em@1~3": 0.4, "em@2~3": 0.41, "em@1~6": 0.6, "em@2~6": 0.61}
    cells = [("D", f"em@{s}~{d}", "", str(s)) for d in (3, 6) for s in (1, 2)]
    cells += [("E0", f"benign@{s}", "", str(s)) for s in (1, 2)]
    table = over(*runs_of(*cells, m1=m1 | {"benign@1": 0.5, "benign@2": 0.51}), ("D", "E0"))
    rows = table.loc[("D", "base")]
    assert rows.set_index("dose")["estimate"].to_dict() == pytest.approx({"3": 0.105, "6": 0.305})
    assert (rows["units"] == 2).all()
    # Each dose against the other condition, which has only one.
    gaps = table.loc[("D", "E0")].set_index("dose")["estimate"].to_dict()
    assert gaps == pytest.approx({"3": -0.1, "6": 0.1})


def test_w9_the_same_chains_in_two_conditions_are_one_test_of_a_family():
    m1 = {"base": 0.3, "em@1": 0.4, "em@2": 0.43, "benign@1": 0.35, "benign@2": 0.36}
    cells = [
        (condition, f"{stage}@{seed}", "", str(seed))
        for condition, stage in (("C2", "em"), ("E0", "em"), ("B0", "benign"))
        for seed in (1, 2)
    ]
    grid, table = runs_of(*cells, m1=m1)

    def q(design):
        family = [{"name": "all", "metric": "m1", "reference": "?*"}]
        runs = geometry_runs.geometry_runs(design, table, HEADLINE, families=family)
        return runs[runs["reference"] == "base"].set_index("condition")["q"]

    twice, once = q(grid), q(grid[grid["condition"] != "C2"])
    assert twice["C2"] == twice["E0"] == once["E0"] and twice["B0"] == once["B0"]


def test_an_anchor_is_no_evidence_for_its_own_axis():
    grid, left_out = runs_of(
        *[("E0", f"em@{s}", "", str(s)) for s in (1, 2, 3)],
        ("E4", "em-villain@1", "", "1"),
        m1=dict.fromkeys(["base", "em@1", "em@2", "em@3", "em-villain@1"], 0.5),
    )
    cosines = {"em@1": 1.0, "em@2": 0.5, "em@3": 0.6, "em-villain@1": 0.9}
    axis = grid[grid["chain"] != "base"].assign(method="A", layer=3, metric="m2_held_out", n=5)
    axis["value"] = axis["chain"].map(cosines)
    axis = axis.assign(anchor="em@1", ci_low=axis["value"] - 0.1, ci_high=axis["value"] + 0.1)

    def level(table):
        rows = geometry_runs.geometry_runs(grid, left_out, HEADLINE, shared_axis=table)
        return rows[rows["metric"] == "m2_held_out"].set_index("condition")

    found = level(axis)
    assert found.loc["E0", "value"] == pytest.approx(0.55) and found.loc["E0", "units"] == 2
    assert found.loc["E0", "ci_low"] < 0.55 < found.loc["E0", "ci_high"]
    assert found.loc["E4", "note"] == "one training run"
    alone = level(axis[axis["chain"] == "em@1"])
    assert "the axis is this chain's own" in alone.loc["E0", "note"]


def test_w12_a_margin_from_replicates_and_its_equivalence():
    """Runs that differ only by retraining are equivalent within twice the spread of retraining."""
    rng = np.random.default_rng(1)
    names = [f"{kind}@{seed}" for kind in ("em", "benign") for seed in range(40)]
    m1 = dict(zip(names, 0.5 + 0.02 * rng.normal(size=80), strict=True)) | {"base": 0.3}
    cells = [("E0" if n.startswith("em") else "B0", n, "", n.partition("@")[2]) for n in names]
    grid, table = runs_of(*cells, m1=m1)
    table = table.assign(value=np.log(1 - table["value"]), metric="log_distance")
    margin = geometry_runs.replicate_margins(grid, table)["A", 3]
    assert margin == pytest.approx(2 * 0.02 / 0.5, rel=0.2)
    row = over(grid, table, ("E0", "B0")).loc[("E0", "B0")]
    assert row["margin"] == pytest.approx(margin) and row["p_equivalent"] < 0.05
    assert -margin < row["same_low"] < row["estimate"] < row["same_high"] < margin
    assert row["ci_low"] < row["same_low"] and row["same_high"] < row["ci_high"]
    assert over(grid, table).loc[("E0", "base"), "p_equivalent"] > 0.95
    # With one run each, the effect of retraining is unknown.
    few = grid.groupby("condition").head(1)
    lone = geometry_runs.replicate_margins(few, table[table["chain"].isin(few["chain"])])
    assert np.isnan(lone["A", 3])
    assert geometry_runs.in_cosines(margin, 0.9) == pytest.approx(0.1 * (1 - np.exp(-margin)))


def test_a_margin_in_cosines_is_of_m1():
    m1 = {"base": 0.3, "em@1": 0.4, "em@2": 0.41, "em@3": 0.39}
    grid, table = runs_of(*[("E0", f"em@{s}", "", str(s)) for s in (1, 2, 3)], m1=m1)
    runs = geometry_runs.geometry_runs(grid, table, HEADLINE, margin=0.15)
    row = runs.set_index(["condition", "reference"]).loc[("E0", "base")]
    assert row["margin"] == 0.15 and row["p_equivalent"] < 0.05
    # The interval just touches the margin if p is .05.
    at = geometry_runs.geometry_runs(grid, table, HEADLINE, margin=row["same_high"])
    touching = at.set_index(["condition", "reference"]).loc[("E0", "base")]
    assert touching["p_equivalent"] == pytest.approx(0.05, abs=1e-6)


def test_headline_numbers_without_one_persona_question_source_and_run():
    names = [f"couple-{s}@1{more}" for s in ("v", "w") for more in ("", "+em@1")]
    m1 = dict(zip(names, (0.4, 0.5, 0.6, 0.9), strict=True)) | {"base": 0.3}
    cells = [("C1" if "+" in n else "C4", n, n[7], "1") for n in names]
    table = geometry_runs.leave_one_out(*runs_of(*cells, m1=m1), HEADLINE, [("C1", "C4")])
    assert list(table.columns) == geometry_runs.LEAVING_COLUMNS
    own = table[(table["condition"] == "C1") & (table["reference"] == "C4")]
    assert own["whole"].unique() == pytest.approx([0.2]) and set(own["quantity"]) == {"m1_gap"}
    assert own["left_out"].value_counts().to_dict() == {
        "persona": 4, "question": 4, "run": 2, "source": 2,
    }  # fmt: skip
    found = own.set_index(["left_out", "name"])["estimate"]
    assert found["source", "v"] == found["run", "couple-v@1"] == pytest.approx(0.3)
    assert found["source", "w"] == found["run", "couple-w@1"] == pytest.approx(0.1)


def nested(rng, couplings, runs, sd_coupling, sd_run):
    """Values by chain, and their labels."""
    names = [f"couple@{k}+em@{s}" for k in range(couplings) for s in range(runs)]
    values = np.repeat(sd_coupling * rng.normal(size=couplings), runs)
    values = pd.Series(values + sd_run * rng.normal(size=len(names)), names)
    labels = pd.Series(names, names)
    return values, {"coupling": labels.str.partition("+")[0], "run": labels}


def test_variance_components_are_those_of_restricted_maximum_likelihood():
    from statsmodels.regression.mixed_linear_model import MixedLM

    values, levels = nested(np.random.default_rng(3), 6, 4, 1.0, 0.5)
    found = {row["component"]: row for row in geometry_runs.moments(values, levels)}
    ones = np.ones((len(values), 1))
    fit = MixedLM(values.to_numpy(), ones, levels["coupling"].to_numpy()).fit()
    assert found["run"]["sd"] == pytest.approx(np.sqrt(fit.scale), rel=1e-4)
    assert found["coupling"]["sd"] == pytest.approx(np.sqrt(fit.cov_re[0, 0]), rel=1e-3)
    assert (found["coupling"]["levels"], found["run"]["levels"]) == (6, 24)


@pytest.mark.parametrize("sd_coupling", [0.0, 0.5, 2.0])
def test_intervals_of_variance_components_cover_with_three_by_three(sd_coupling):
    rng, held = np.random.default_rng(4), {"coupling": 0, "run": 0}
    for _ in range(200):
        for row in geometry_runs.moments(*nested(rng, 3, 3, sd_coupling, 1.0)):
            true = {"coupling": sd_coupling, "run": 1.0}[row["component"]]
            held[row["component"]] += row["ci_low"] <= true <= row["ci_high"]
    assert min(held.values()) >= 181


def test_what_a_design_cannot_tell_apart_it_does_not_name():
    cells = [("C4", "couple@1", "v", "1"), ("C1", "couple@1+em@1", "v", "1")]
    cells += [("C1", "couple@1+em@2", "v", "2"), ("C5", "couple@1+benign@1", "v", "1")]
    cells += [("C5", "couple@2+benign@1", "v", "1"), ("E0", "em@1", "", "1")]
    m1 = {name: 0.4 + 0.01 * i for i, (_, name, _, _) in enumerate(cells)} | {"base": 0.3}
    grid, table = runs_of(*cells, m1=m1)
    after = [c.count("+") if c.startswith("couple") else np.nan for c in grid["chain"]]
    grid["stages_after_coupling"] = after
    rows = geometry_runs.variance_components(grid, table.assign(metric="log_distance"), HEADLINE)
    assert list(rows.columns) == geometry_runs.COMPONENT_COLUMNS
    rows = rows.set_index(["condition", "component"])
    for key in (
        ("C4", "coupling"),
        ("C1", "coupling"),
        ("C5", "coupling"),
        ("C5", "run"),
        ("E0", "run"),
    ):
        assert np.isnan(rows.loc[key, "sd"]) and "not identified" in rows.loc[key, "note"]
    run = rows.loc[("C1", "run")]
    assert (
        run["sd"] == pytest.approx(0.01 / np.sqrt(2)) and run["ci_low"] < run["sd"] < run["ci_high"]
    )
    assert ("C4", "run") not in rows.index and ("E0", "coupling") not in rows.index
    assert rows.loc[("C1", "persona"), "levels"] == rows.loc[("C1", "question"), "levels"] == 4


def test_contrasts_pair_seeds_and_test_equivalence():
    table = contrasts.contrasts_table(
        GRID, load, HEADLINE, [("C1", "C4"), ("C1", "nowhere")], margin=0.02, draws=199, seed=1
    )
    assert set(table["reference"]) == {"C4"} and len(table) == 4
    # Both have the same vectors: no difference, and no spread to estimate an error.
    assert table["estimate"].abs().max() < 1e-6


def test_a_run_of_one_condition_has_no_contrasts_and_no_error():
    table = contrasts.contrasts_table(GRID, load, HEADLINE, [], margin=0.02, draws=199, seed=1)
    assert table.empty


def test_contrasts_compare_chains_of_one_source(crossed):
    from synthetic import crossed_load

    def pairs(*contrast):
        table = contrasts.contrasts_table(
            crossed["design"], crossed_load, HEADLINE, [contrast], margin=0.02, draws=99, seed=1
        )
        table = table[(table["method"] == "A") & (table["layer"] == 3)]
        return sorted(zip(table["chain"], table["reference_chain"], table["seed"], strict=True))

    evil = "couple-evil_ai@42"
    # villain's C4 has no activations. A single chain is compared with all chains of the other side.
    assert pairs("C4", "C1") == [(evil, f"{evil}+em@{seed}", seed) for seed in "12"]
    both = pairs("C1", "C2")
    assert both == sorted(
        (f"couple-{source}@42+em@{seed}", f"em@{seed}", seed)
        for source in ("villain", "evil_ai")
        for seed in "12"
    )


def test_one_persona_pair_and_one_question_are_enough():
    def small(chain):
        array = np.random.default_rng(len(chain)).normal(size=(1, 2, 1, 4)).astype(np.float32)
        return Activations([0], ["a", "b"], ["q"], {"A": array}, chain)

    table = geometry_tables.geometry_table(GRID, small, HEADLINE, draws=99, seed=1)
    assert table[table["metric"] == "m1"]["value"].between(-1, 1).all()


def test_cosines_are_symmetric_with_ones():
    table = geometry_tables.cosines(GRID, load, HEADLINE)
    one = table[(table["condition"] == "C1") & (table["method"] == "A") & (table["layer"] == 3)]
    matrix = one.pivot(index="persona_a", columns="persona_b", values="cosine").to_numpy()
    np.testing.assert_allclose(matrix, matrix.T)
    np.testing.assert_allclose(np.diag(matrix), 1)


def test_a_contrast_has_the_chains_of_sources_that_both_conditions_have():
    rows = [("C1", f"c-{s}@{k}+em@{k}", s) for s in ("v", "w") for k in (1, 2)]
    rows += [("D1", f"c-v@{k}+good@{k}", "v") for k in (1, 2)]
    # One chain may be of several sources, and a model without a coupling follows none.
    rows += [("C2", "em@1", "v"), ("C2", "em@1", "w"), ("E0", "em@1", "")]
    design = pd.DataFrame(rows, columns=["condition", "chain", "source"]).assign(
        measures="activations"
    )
    contrasts = [("C1", "D1"), ("C1", "C2"), ("C1", "E0"), ("D1", "C1")]
    found = {
        (c.condition, c.reference): (c.own, c.others)
        for c in geometry_runs.comparisons(design, contrasts)
    }
    every, villain = [[row[1] for row in rows[:n]] for n in (4, 2)]
    assert found["C1", ""][0] == every
    assert found["C1", "D1"] == (villain, ["c-v@1+good@1", "c-v@2+good@2"])
    assert found["D1", "C1"] == found["C1", "D1"][::-1]
    assert found["C1", "C2"] == found["C1", "E0"] == (every, ["em@1"])


def test_the_number_of_processes_changes_no_geometry():
    left_out = [geometry_runs.left_out_table(GRID, load, threads) for threads in (1, 3)]
    assert left_out[0].equals(left_out[1])
    given = {"draws": 99, "seed": 1, "left_out": left_out[0]}
    tables = [
        geometry_tables.geometry_table(GRID, load, HEADLINE, threads=threads, **given)
        for threads in (1, 3)
    ]
    assert tables[0].equals(tables[1])


def test_centred_cosines_average_to_the_centred_measure():
    table = geometry_tables.cosines(GRID, load, HEADLINE)
    pairs = table[table["persona_a"] != table["persona_b"]]
    found = geometry_tables.geometry_table(GRID, load, HEADLINE, draws=99, seed=1)
    found = found[found["metric"] == "m1_centred"]
    keys = ["condition", "method", "layer"]
    means = pairs.groupby(keys)[["cosine", "centred"]].mean()
    np.testing.assert_allclose(means["centred"], found.set_index(keys)["value"].loc[means.index])
    assert (means["centred"] < means["cosine"]).all()


def test_the_map_uses_the_base_model_s_axes_for_every_chain():
    table = geometry_tables.persona_map(GRID, load, HEADLINE)
    assert set(table["condition"]) == {"base", "C4", "C1", "C2", "E0"}
    at = (table["method"] == "A") & (table["layer"] == 3)
    base = table[at & (table["condition"] == "base")].set_index("persona")[["pc1", "pc2"]]
    after = table[at & (table["condition"] == "C1")].set_index("persona")[["pc1", "pc2"]]
    assert np.allclose(base.mean(), 0)
    # `load` moves every persona of a trained chain by the same vector.
    moved = after - base
    assert np.allclose(moved, moved.iloc[0], atol=1e-5) and np.abs(moved.iloc[0]).max() > 0.1
    assert table["captured"].between(0, 1).all()


def two_models():
    """A design of chains that start from two models, the second with more blocks, and a loader."""
    rows = [("Y0", "early", "", "", "early", np.nan)]
    rows += [("Y1", f"early+em@{seed}", "", str(seed), "early", np.nan) for seed in (1, 2)]
    design = pd.DataFrame(rows, columns=list(GRID.columns[:6]))
    design = pd.concat([GRID, design.assign(title="", measures="activations")], ignore_index=True)

    def load_either(chain):
        found = load("base" if chain in ("base", "early") else "em@1")
        if not chain.startswith("early"):
            return found
        seed = 3.0 * chain.endswith("2")
        arrays = {method: array + 1 + seed for method, array in found.arrays.items()}
        return replace(found, layers=[1, 4], arrays=arrays)

    return design, load_either, HEADLINE | {"layers": {"base": 3, "early": 4}}


def test_chains_are_compared_with_the_model_that_they_start_from():
    design, load_either, headline = two_models()
    table = geometry_tables.geometry_table(design, load_either, headline, draws=50, seed=1)
    m1 = table[(table["metric"] == "m1") & (table["test"] == "")]
    own = m1[m1["method"] == "A"].set_index(["chain", "layer"])
    assert own.loc[("early", 4), "delta_base"] == 0 and ("early", 3) not in own.index
    change = own.loc[("early+em@1", 4), "value"] - own.loc[("early", 4), "value"]
    assert own.loc[("early+em@1", 4), "delta_base"] == pytest.approx(change) and change > 0
    rows = own.reset_index()
    at = rows[rows["headline"]].groupby("chain")["layer"].unique().explode()
    assert at["early"] == at["early+em@1"] == 4 and at["base"] == at["em@1"] == 3
    assert {"base", "early"} <= set(geometry_tables.cosines(design, load_either, headline)["chain"])
    named = views.with_model(table, design)
    expected = named["condition"].map(lambda name: "early" if name in ("Y0", "Y1") else "base")
    assert list(named["model"]) == list(expected)


def test_runs_are_compared_with_the_model_that_they_start_from():
    design, load_either, headline = two_models()
    left_out = geometry_runs.left_out_table(design, load_either)
    given = design, left_out, headline, [("Y1", "E0")]
    table = geometry_runs.geometry_runs(*given, margin="replicate")
    change = table[(table["condition"] == "Y1") & (table["reference"] == "base")]
    assert set(change["reference_chains"]) == {"early"} and set(change["layer"]) == {1, 4}
    assert not change["estimate"].isna().any()
    # Two models are compared only at blocks that both have.
    assert set(table[table["reference"] == "E0"]["layer"]) == {1}
    assert set(table[table["condition"] == "base"]["chains"]) <= {"base"}
    without = geometry_runs.leave_one_out(*given)
    own = without[(without["condition"] == "Y1") & (without["reference"] == "base")]
    at = change[change["headline"] & (change["metric"] == "m1") & (change["method"] == "A")]
    assert own["whole"].iloc[0] == pytest.approx(at["estimate"].iloc[0])
    assert set(own.loc[own["left_out"] == "run", "name"]) == {"early+em@1", "early+em@2"}
    found = geometry_runs.variance_components(design, left_out, headline)
    assert "Y1" in set(found["condition"]) and "Y0" not in set(found["condition"])


def test_a_design_without_measures_is_read_as_it_was_written(tmp_path):
    write_csv(tmp_path / "design.csv", GRID.assign(measures=["", *GRID["measures"][1:]]))
    design = read_csv(tmp_path / "design.csv")
    assert len(views.measuring(design, "markers")) == len(GRID) - 1
