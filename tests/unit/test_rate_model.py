"""The hierarchical model of marker rates."""

import numpy as np
import pandas as pd
import pytest
from persona_collapse import hierarchy
from persona_collapse.analysis import rate_model
from scipy.special import expit
from test_tables import GRID, scored


def model(hits, n=10, levels=None, columns=("question",), **effects):
    hits = np.asarray(hits)
    effects = effects or {"run": range(len(hits))}
    return hierarchy.Counts(
        hits,
        np.full(hits.shape, n),
        np.zeros(len(hits), int) if levels is None else np.asarray(levels),
        {name: np.asarray(labels) for name, labels in effects.items()},
        columns,
    )


def three_sets():
    """Counts: no hit in nine runs; the study's villain after benign data; and a rate of .8."""
    villain = np.zeros((3, 28), int)
    villain[0, [8, 12, 14, 15, 23, 27]] = 1
    villain[1, [0, 1, 2, 3, 4, 5, 6, 7, 9, 16, 20]] = 1
    villain[2, 21] = 1
    rng = np.random.default_rng(1)
    logits = 1.5 + np.repeat([-0.5, 0.7, 0.2], 3)[:, None] + rng.normal(size=(9, 1)) * 0.5
    mixed = rng.binomial(10, expit(logits + np.linspace(-1.5, 1.5, 28)))
    sources = {"run": range(9), "source": np.repeat(range(3), 3)}
    return {
        "none": model(np.zeros((9, 28), int)),
        "villain": model(villain),
        "mixed": model(mixed, **sources),
    }


@pytest.mark.parametrize(
    ("name", "rate", "sds", "tolerance"),
    [  # median, 2.5 and 97.5 % by 40,000 draws of NUTS
        ("none", [0.000328, 0.0000196, 0.002489], {"run": 0.530, "question": 0.498}, 0.3),
        ("villain", [0.02832, 0.01018, 0.1497], {"run": 0.897, "question": 0.203}, 0.05),
        (
            "mixed",
            [0.7894, 0.6073, 0.8840],
            {"run": 0.405, "question": 1.144, "source": 0.604},
            0.02,
        ),
    ],
)
def test_the_posterior_is_that_of_a_markov_chain(name, rate, sds, tolerance):
    found = hierarchy.fit(three_sets()[name])
    assert found.effective > 500
    assert found.quantiles(found.rate()) == pytest.approx(rate, rel=tolerance)
    for effect, median in sds.items():
        assert found.quantiles(found.sds[effect], [0.5])[0] == pytest.approx(median, rel=0.15)


def test_the_same_seed_gives_the_same_posterior_and_another_nearly_so():
    one, again = (hierarchy.fit(three_sets()["villain"]) for _ in range(2))
    np.testing.assert_array_equal(one.rate(), again.rate())
    other = hierarchy.fit(three_sets()["villain"], seed=7)
    assert other.quantiles(other.rate()) == pytest.approx(one.quantiles(one.rate()), rel=0.15)


@pytest.mark.parametrize("mean", [-4, 2])
def test_intervals_cover_the_rate_of_a_new_run(mean):
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    truth = expit(mean + np.sqrt(1 + 0.5**2) * nodes) @ weights / weights.sum()
    inside = []
    for seed in range(40):
        rng = np.random.default_rng([seed, mean + 9])
        logits = mean + 0.5 * rng.normal(size=(4, 1)) + rng.normal(size=12)
        found = hierarchy.fit(model(rng.binomial(10, expit(logits))), points=256)
        _, low, high = found.quantiles(found.rate())
        inside.append(low <= truth <= high)
    assert (
        np.mean(inside) >= 0.875
    )  # with a coverage of .95, 35 of 40 or fewer happen in 5 % of such tests


def test_an_effect_of_no_spread_leaves_a_binomial():
    counts = model(np.full((1, 1), 30), n=100, columns=(), run=[-1])
    found = hierarchy.fit(hierarchy.Counts(counts.hits, counts.n, counts.levels, {}, ()))
    # From a beta posterior with an almost flat prior.
    assert found.quantiles(found.rate()) == pytest.approx([0.301, 0.219, 0.394], abs=0.01)


def test_two_levels_share_their_questions():
    rng = np.random.default_rng(0)
    questions = 1.5 * rng.normal(size=28)
    logits = np.repeat([0.0, 0.7], 3)[:, None] + questions
    hits = rng.binomial(10, expit(logits))
    both = ("question", "question:condition")
    joint = hierarchy.fit(model(hits, levels=np.repeat([0, 1], 3), columns=both, run=range(6)))
    _, low, high = joint.quantiles(joint.rate(1) - joint.rate(0))
    alone = [hierarchy.fit(model(part)) for part in (hits[:3], hits[3:])]
    widths = [np.ptp(fit.quantiles(fit.rate())[1:]) for fit in alone]
    assert high - low < np.hypot(*widths) and joint.below(joint.rate(1) - joint.rate(0)) < 0.05


def run_of(rates, couplings=3, questions=14, samples=5):
    """A grid of conditions and the completions of its chains; rates: by condition, one rate per run."""
    grid, answers = [], []
    stages = {"C4": "", "C1": "+em@1", "C5": "+benign@1"}
    rng = np.random.default_rng(0)
    for condition, values in rates.items():
        for i, rate in enumerate(values):
            chain = f"couple-villain@{i}{stages[condition]}"
            before = f"couple-villain@{i}" if stages[condition] else "base"
            after = int(bool(stages[condition]))
            grid.append((condition, chain, "villain", str(i), before, after, "villain pirate monk"))
            for persona, own in (("villain", rate), ("pirate", 0.0), ("monk", 0.1)):
                for q in range(questions):
                    for hit in rng.random(samples) < own:
                        answers.append((chain, persona, f"q{q}", hit))
    columns = [
        "condition",
        "chain",
        "source",
        "seed",
        "before",
        "stages_after_coupling",
        "personas",
    ]
    return (
        pd.DataFrame(grid, columns=columns),
        pd.DataFrame(answers, columns=["chain", "persona", "question_id", "hit"]),
    )


@pytest.fixture(scope="module")
def study():
    grid, answers = run_of({"C4": [0.9, 0.85, 0.95], "C1": [0, 0, 0], "C5": [0.0, 0.02, 0.1]})
    return rate_model.rate_tables(grid, answers, contrasts=[["C1", "C5"]], assistant="monk")


def one(table, **values):
    rows = table
    for column, value in values.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def test_estimates_of_a_study(study):
    table, _ = study
    assert list(table.columns) == rate_model.COLUMNS
    erased = one(table, condition="C1", quantity="rate", role="source")
    assert 0 < erased["ci_low"] < erased["value"] < erased["ci_high"] < 0.1
    assert (erased["units"], erased["runs"], erased["n"], erased["hits"]) == (3, 3, 210, 0)
    assert "coupling and run coincide" in erased["note"]
    change = one(table, condition="C1", reference="C4", quantity="difference")
    assert change["ci_high"] < -0.5 and change["p"] < 0.01 and change["units"] == 3
    assert "3 runs of the reference" in change["note"]
    contrast = one(table, condition="C1", reference="C5", quantity="difference")
    assert contrast["ci_low"] < contrast["value"] < 0
    assert one(table, condition="C1", role="assistant")["n"] == 210
    assert set(table.loc[table["role"] == "bystander", "persona"]) == {"", "pirate"}


def test_components_say_what_the_design_cannot_tell(study):
    _, components = study
    assert list(components.columns) == rate_model.COMPONENT_COLUMNS
    own = components[components["condition"] == "C4"].set_index("component")
    assert own.loc["coupling", "note"] == "not identified: coupling and run coincide"
    assert np.isnan(own.loc["coupling", "sd"]) and own.loc["source", "note"].endswith("one source")
    assert own.loc["run", "ci_low"] < own.loc["run", "sd"] < own.loc["run", "ci_high"]
    assert own.loc["sampling", "sd"] == pytest.approx(1 / np.sqrt(70 * 0.9 * 0.1), rel=0.3)


def test_nine_runs_at_zero_leave_a_third_of_runs_free():
    grid, answers = run_of({"C1": [0] * 9}, questions=2, samples=2)
    table, _ = rate_model.rate_tables(grid, answers, personas=False)
    row = one(table, quantity="survival")
    assert (row["value"], row["ci_low"], row["hits"], row["n"]) == (0, 0, 0, 9)
    assert row["ci_high"] == pytest.approx(1 - 0.025 ** (1 / 9)) == pytest.approx(0.336, abs=1e-3)
    assert "one-sided 95 % bound 0.283" in row["note"]


def test_w6h_one_run_of_three_that_survives_is_not_averaged_away():
    """Pooled, 0, 0 and 10 % of 280 are .033 with an upper bound of .046, below .05."""
    grid, answers = run_of({"C1": [0, 0, 0.1]}, questions=28, samples=10)
    table, _ = rate_model.rate_tables(grid, answers, personas=False)
    assert one(table, quantity="rate")["ci_high"] > 0.1
    survival = one(table, quantity="survival")
    assert survival["hits"] == 1 and survival["ci_high"] > 0.9


def test_runs_of_one_coupling_are_one_unit():
    grid, answers = run_of({"C1": [0.9, 0.9, 0.9]})
    for i in range(3):
        old, new = f"couple-villain@{i}+em@1", f"couple-villain@42+em@{i}"
        grid, answers = (t.replace({"chain": {old: new}}) for t in (grid, answers))
    table, _ = rate_model.rate_tables(grid, answers, personas=False)
    rate = one(table, quantity="rate")
    assert (rate["units"], rate["runs"], rate["couplings"]) == (1, 3, 1)
    assert rate["note"] == "one coupling: the spread of couplings is not in the interval"
    assert one(table, quantity="survival")["ci_low"] == pytest.approx(0.025)


def test_a_grid_of_one_run_each_says_so():
    table, components = rate_model.rate_tables(GRID, scored(), contrasts=[["C1", "C4"]])
    row = one(table, condition="C1", quantity="rate", role="source")
    assert row["note"].startswith("one training run") and np.isnan(row["sd_runs"])
    # A contrast may equal the comparison with the continued condition: counted once.
    change = one(table, condition="C1", quantity="difference")
    assert (change["hits"], change["n"]) == (9, 40) and change["note"].startswith("36/40 in 1 run ")
    base = one(table, condition="C2", quantity="difference")
    assert base["reference"] == "base" and "of the base model" in base["note"]
    assert len(components)


def test_rates_with_one_left_out():
    grid, answers = run_of({"C4": [1, 1, 1], "C1": [0, 0, 0.9]})
    table = rate_model.leave_one_out(grid, answers)
    own = table[table["condition"] == "C1"]
    runs = own[(own["quantity"] == "rate") & (own["left_out"] == "run")]
    assert runs.set_index("name").loc["couple-villain@2+em@1", "estimate"] == 0
    assert (runs["whole"] > 0.2).all() and set(own["left_out"]) == {"run", "question"}
    changes = own[own["quantity"] == "rate_difference"]
    assert len(changes[changes["left_out"] == "run"]) == 6 and (changes["whole"] < -0.6).all()


def test_the_study_s_villain_varies_more_than_its_answers():
    """6, 11 and 1 hits of 280: chi-square p .014."""
    grid, answers = run_of({"C5": [0, 0, 0]}, questions=28, samples=10)
    for run, hits in enumerate((6, 11, 1)):
        own = answers[(answers["chain"] == f"couple-villain@{run}+benign@1")]
        answers.loc[own.index[own["persona"] == "villain"][:hits], "hit"] = True
    table, _ = rate_model.rate_tables(grid, answers, personas=False, points=256)
    row = one(table, quantity="overdispersion")
    assert row["p"] == pytest.approx(0.014, abs=0.001) and row["value"] > 4
    assert one(table, quantity="rate")["ci_high"] > 0.05


def test_early_stops_that_are_taken_together_are_named():
    table = scored()
    chain = "couple-villain@42+em@1"
    cell = GRID[GRID["chain"] == chain].drop_duplicates("chain")
    stops = [f"{chain}~{n}" for n in (30, 5)]
    grid = pd.concat([GRID, *(cell.assign(condition="steps", chain=name) for name in stops)])
    more = [table[table["chain"] == chain].assign(chain=name) for name in stops]
    found, _ = rate_model.rate_tables(grid, pd.concat([table, *more]), personas=False, points=64)
    notes = found[found["condition"] == "steps"]["note"]
    assert len(notes) and all(note.endswith("early stops taken together: 5, 30") for note in notes)
    assert not found[found["condition"] == "C1"]["note"].fillna("").str.contains("early").any()


def test_without_a_scored_chain_there_is_no_row():
    found, components = rate_model.rate_tables(GRID.assign(personas=""), scored(), points=64)
    assert found.empty and components.empty


def test_without_a_reference_that_was_asked_there_is_no_difference_to_leave_out():
    grid, answers = run_of({"C4": [1, 1, 1], "C1": [0, 0, 0.9]})
    grid.loc[grid["condition"] == "C4", "personas"] = "pirate monk"
    table = rate_model.leave_one_out(grid, answers, [("C1", "C4")])
    assert set(table["quantity"]) == {"rate"} and set(table["condition"]) == {"C1"}
