"""M2 and M3: the study's versions and the corrected ones."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from persona_collapse import geometry
from persona_collapse.activation_files import Activations
from persona_collapse.analysis import separability, shared_axis
from persona_collapse.errors import UserError
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import KFold

GRID = pd.DataFrame(
    [("E0", "em@1", "1"), ("E4", "em-villain@1", "1"), ("B0", "benign@1", "1")],
    columns=["condition", "chain", "seed"],
).assign(measures="markers activations", source="")
PERSONAS = ["assistant", *"bcdefgh"]
HEADLINE = {"method": "A", "layer": 5}


def load(chain):
    """EM moves all personas along one direction, benign along another."""
    rng = np.random.default_rng(0)
    base = 3 * rng.normal(size=32) + rng.normal(size=(8, 1, 32))
    direction, other = rng.normal(size=(2, 32))
    shift = {"base": 0 * other, "benign@1": 2 * other}.get(chain, 2 * direction)
    noise = np.random.default_rng(len(chain)).normal(size=(8, 12, 32))
    array = (base + shift + 0.3 * noise)[None].astype(np.float32)
    return Activations([5], PERSONAS, [f"q{i}" for i in range(12)], {"A": array}, chain)


@pytest.fixture(scope="module")
def table():
    out = shared_axis.axis_table(GRID, load, HEADLINE, anchor="em@1", draws=500, seed=1)
    return out.set_index(["condition", "metric"])


def test_a_shared_direction_is_found_and_the_benign_one_is_not(table):
    assert table.loc[("E4", "m2_held_out"), "value"] > 0.9
    assert table.loc[("E4", "m2_explained"), "value"] > 0.9
    assert abs(table.loc[("B0", "m2_held_out"), "value"]) < 0.5
    assert table["p"].dropna().between(1 / 501, 1).all()
    assert "share the chain" in table.loc[("E0", "m2_anchored"), "note"]


def test_the_axis_is_that_of_the_persona_that_stands_for_the_model():
    tables = [
        shared_axis.axis_table(
            GRID, load, HEADLINE, anchor="em@1", draws=99, seed=1, assistant=name
        )
        for name in ("assistant", "b")
    ]
    first, second = (t[t["metric"] == "m2_anchored"]["value"].to_numpy() for t in tables)
    assert not np.allclose(first, second)


def test_without_the_anchor_there_is_no_axis():
    assert shared_axis.axis_table(GRID, load, HEADLINE, anchor="none@1", draws=10, seed=1).empty


def test_held_out_axes_leave_the_persona_itself_out():
    # Only persona 0 moves: its axis comes from the others, which do not move.
    shifts = np.zeros((4, 3))
    shifts[0] = [1, 0, 0]
    np.testing.assert_allclose(shared_axis.held_out_cosines(shifts, shifts), 0)


def test_the_study_s_separability_is_zero_for_anything():
    for vectors in (np.eye(12), np.random.default_rng(0).normal(size=(12, 50))):
        assert geometry.leave_one_out_as_the_study(vectors) == 0


def test_the_discriminant_is_scikit_learn_s():
    rng = np.random.default_rng(1)
    y = np.repeat(np.arange(4), 30)
    x = rng.normal(size=(4, 6))[y] + rng.normal(size=(120, 6))
    x_test = rng.normal(size=(50, 6))
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3).fit(x, y)
    ours = separability.discriminants(x, y[None], x_test, 4, shrinkage=0.3)[0]
    # scikit-learn shrinks each class on standardised features; here predictions agree except for ties.
    assert np.mean(ours == theirs.predict(x_test)) >= 0.96


def test_all_labellings_at_once_are_each_by_its_definition():
    rng = np.random.default_rng(4)
    x, x_test = 30 + rng.normal(size=(2, 90, 7)) * np.arange(1, 8)
    # Unequal classes too.
    labels = np.stack([np.tile(np.arange(3), 30), *rng.integers(0, 3, (5, 90))])
    found = separability.discriminants(x, labels, x_test, 3)
    for y, predicted in zip(labels, found, strict=True):
        means = np.stack([x[y == one].mean(axis=0) for one in range(3)])
        covariance, _ = ledoit_wolf(x - means[y], assume_centered=True)
        distances = [
            np.einsum("ij,jk,ik->i", d, np.linalg.inv(covariance), d)
            for d in (x_test - mean for mean in means)
        ]
        np.testing.assert_array_equal(predicted, np.argmin(distances, axis=0))


@pytest.mark.parametrize("hidden", [20, 70])  # fewer features than training rows, and more
def test_directions_are_the_principal_components_of_the_training_rows(hidden):
    rng = np.random.default_rng(5)
    rows = (100 + rng.normal(size=(60, hidden)) * 0.8 ** np.arange(hidden)).astype(np.float32)
    rows -= rows.mean(axis=0)
    splits = list(KFold(4).split(rows))
    for (train, _), found in zip(splits, separability._directions(rows, splits, 6, 1), strict=True):
        theirs = PCA(6, svd_solver="full").fit(rows[train]).components_.T
        np.testing.assert_allclose(found @ found.T, theirs @ theirs.T, atol=2e-4)


def test_separable_personas_are_told_apart_and_noise_is_not():
    rng = np.random.default_rng(2)
    means = 4 * rng.normal(size=(5, 1, 16))
    correct, null = separability.separability(
        means + rng.normal(size=(5, 20, 16)), folds=4, shuffles=10, seed=1
    )
    assert correct.mean() > 0.95 and abs(null.mean() - 0.2) < 0.1
    noise, _ = separability.separability(rng.normal(size=(5, 40, 16)), folds=4, shuffles=1, seed=1)
    assert abs(noise.mean() - 0.2) < 0.15


def test_questions_of_the_test_fold_are_never_trained_on():
    # Each question has its own vector, which also identifies the persona. Training on the question
    # would leak the answer; holding it out does not.
    rng = np.random.default_rng(3)
    stack = rng.normal(size=(4, 12, 200))
    correct, _ = separability.separability(stack, folds=12, shuffles=1, seed=1)
    assert correct.mean() < 0.5
    with pytest.raises(UserError, match="two questions"):
        separability.separability(stack[:, :1], folds=2, shuffles=1, seed=1)


def test_lda_table():
    table = separability.lda_table(GRID, load, HEADLINE, folds=3, shuffles=9, seed=1)
    own = table[table["metric"] == "m3_accuracy"]
    assert set(own["condition"]) == {"base", "E0", "E4", "B0"}
    assert (own["p"] >= own["p_floor"]).all() and (own["ci_low"] < 1).all()
    assert (table[table["metric"] == "m3_study"]["value"] == 0).all()
    assert own.loc[own["condition"] == "base", "delta_base"].eq(0).all()
    assert table.equals(
        separability.lda_table(GRID, load, HEADLINE, folds=3, shuffles=9, seed=1, threads=3)
    )


def test_chains_of_another_model_have_no_value_on_the_anchor_s_axis():
    """Their hidden states are of another basis, and may be of another width."""
    own = GRID[GRID["chain"].isin(["base", "em@1"])]
    other = own.assign(
        condition="early-" + own["condition"],
        chain=["early" if chain == "base" else f"early+{chain}" for chain in own["chain"]],
    )

    def load_narrow(chain):
        if not chain.startswith("early"):
            return load(chain)
        found = load(chain.removeprefix("early+") if "+" in chain else "base")
        arrays = {name: stack[..., :-1] for name, stack in found.arrays.items()}
        return dataclasses.replace(found, arrays=arrays)

    grid = pd.concat([own, other])
    out = shared_axis.axis_table(grid, load_narrow, HEADLINE, anchor="em@1", draws=50, seed=1)
    assert set(out["chain"]) == {"em@1"}
