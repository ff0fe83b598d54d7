import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_collapse import geometry as geo
from persona_collapse.errors import UserError


def test_orthogonal_vectors_have_no_cosine_and_equal_ones_have_1():
    assert geo.mean_offdiagonal_cosine(np.eye(5)) == pytest.approx(0)
    assert geo.mean_offdiagonal_cosine(np.ones((4, 3))) == pytest.approx(1)


def test_twelve_personas_make_66_pairs():
    assert len(geo.pair_cosines(np.random.default_rng(0).normal(size=(12, 8)))) == 66


def test_a_common_part_alone_raises_m1_and_leaves_centred_distances():
    vectors = np.random.default_rng(1).normal(size=(12, 64))
    moved = vectors + 10 * np.ones(64)
    assert geo.mean_offdiagonal_cosine(moved) > 0.95 > geo.mean_offdiagonal_cosine(vectors)
    np.testing.assert_allclose(geo.centred(moved), geo.centred(vectors), atol=1e-9)
    assert geo.effective_rank(moved) == pytest.approx(geo.effective_rank(vectors))
    assert geo.spread(moved) < geo.spread(vectors)


def test_centred_simplex():
    n = 6
    assert geo.mean_offdiagonal_cosine(geo.centred(np.eye(n))) == pytest.approx(-1 / (n - 1))
    assert geo.effective_rank(np.eye(n)) == pytest.approx(n - 1)


def test_means_by_persona_average_to_m1():
    vectors = np.random.default_rng(2).normal(size=(7, 9))
    by_persona = geo.mean_cosine_by_persona(vectors)
    assert by_persona.mean() == pytest.approx(geo.mean_offdiagonal_cosine(vectors))


@settings(max_examples=30)
@given(st.integers(2, 8), st.integers(0, 1000), st.floats(0.1, 100))
def test_m1_does_not_depend_on_scale_or_order(n, seed, scale):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, 5))
    m1 = geo.mean_offdiagonal_cosine(vectors)
    assert geo.mean_offdiagonal_cosine(scale * vectors[rng.permutation(n)]) == pytest.approx(m1)
    assert -1 / (n - 1) - 1e-9 <= m1 <= 1


def test_bootstrap_interval_holds_the_estimate_and_shrinks_with_questions():
    rng = np.random.default_rng(3)
    personas = rng.normal(size=(6, 1, 32))
    few = personas + rng.normal(size=(6, 10, 32))
    many = personas + rng.normal(size=(6, 160, 32))
    low, high = geo.bootstrap_questions(few, 300, 1)
    low_many, high_many = geo.bootstrap_questions(many, 300, 1)
    assert low_many <= geo.mean_offdiagonal_cosine(many.mean(1)) + 0.02
    assert high_many - low_many < high - low
    assert geo.split_half(many, 1) < geo.split_half(few, 1)


def test_one_question_has_no_interval():
    assert np.isnan(geo.bootstrap_questions(np.ones((3, 1, 4)), 10, 1)).all()
    assert np.isnan(geo.split_half(np.ones((3, 1, 4)), 1))


@pytest.mark.parametrize("bad", [np.zeros((3, 4)), np.full((3, 4), np.nan), np.ones((1, 4))])
def test_bad_vectors_are_refused(bad):
    with pytest.raises(UserError):
        geo.mean_offdiagonal_cosine(bad)
