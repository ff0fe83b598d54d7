import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_collapse import geometry as geo
from persona_collapse.errors import UserError
from scipy.linalg import subspace_angles
from scipy.spatial import procrustes


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

    def interval(stack):
        m1 = geo.mean_offdiagonal_cosine(stack.mean(axis=1))
        return geo.basic_interval(m1, geo.mean_pairs(geo.resampled_cosines(stack, 300, 1)))

    (low, high), (low_many, high_many) = interval(few), interval(many)
    assert high_many - low_many < high - low
    assert geo.split_half(many, 1) < geo.split_half(few, 1)


def noisy(rng, questions, noise=1.5, personas=12, hidden=64):
    """Persona vectors around a common vector, with answers that have own and shared noise."""
    vectors = 2 * rng.normal(size=hidden) + rng.normal(size=(personas, hidden))
    shared = rng.normal(size=(questions, hidden))
    own = noise * rng.normal(size=(personas, questions, hidden))
    return vectors, vectors[:, None] + shared + own


def test_noise_of_the_questions_lowers_m1_and_not_its_unbiased_form():
    rng = np.random.default_rng(5)
    plain, unbiased = [], []
    for _ in range(60):
        vectors, stack = noisy(rng, 12)
        true = geo.mean_offdiagonal_cosine(vectors)
        plain.append(geo.mean_offdiagonal_cosine(stack.mean(axis=1)) - true)
        unbiased.append(geo.m1_unbiased(stack) - true)
    assert np.mean(plain) < -0.01
    assert abs(np.mean(unbiased)) < 3 * np.std(unbiased) / np.sqrt(60) + 1e-3


def test_unbiased_products_are_those_of_different_questions():
    stack = np.random.default_rng(6).normal(size=(3, 4, 5))
    found = geo.grams(stack)
    pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
    wanted = np.mean([stack[:, a] @ stack[:, b].T for a, b in pairs], axis=0)
    np.testing.assert_allclose(found.unbiased[0], wanted)
    fewer = [(a, b) for a, b in pairs if 2 not in (a, b)]
    wanted = np.mean([stack[:, a] @ stack[:, b].T for a, b in fewer], axis=0)
    np.testing.assert_allclose(found.unbiased[3], wanted)
    halves = [stack[:, i::2].mean(axis=1) for i in (0, 1)]
    np.testing.assert_allclose(geo.halves(stack), halves)


def test_every_metric_without_each_persona_and_question():
    stack = np.random.default_rng(7).normal(size=(5, 6, 9)) + 1
    found = geo.left_out(stack)
    assert set(found) == {"m1", "m1_unbiased", *geo.METRICS}
    for name, metric in {"m1": geo.mean_offdiagonal_cosine, **geo.METRICS}.items():
        personas, questions = found[name]
        means = stack.mean(axis=1)
        wanted = [metric(np.delete(means, i, axis=0)) for i in range(5)]
        np.testing.assert_allclose(personas, wanted, atol=1e-9, err_msg=name)
        wanted = [metric(np.delete(stack, i, axis=1).mean(axis=1)) for i in range(6)]
        np.testing.assert_allclose(questions, wanted, atol=1e-9, err_msg=name)
    wanted = [geo.m1_unbiased(np.delete(stack, i, axis=1)) for i in range(6)]
    np.testing.assert_allclose(found["m1_unbiased"][1], wanted)
    mean = np.random.default_rng(8).normal(size=20)
    without = [np.delete(mean, i).mean() for i in range(20)]
    assert geo.jackknife_error(without) == pytest.approx(mean.std(ddof=1) / np.sqrt(20))


def test_w10_the_level_s_interval_over_personas_covers_with_few_questions():
    """Noise lowers M1, so an interval around M1 misses the true value; one around unbiased M1 does not."""
    rng = np.random.default_rng(9)
    common, held = 2 * rng.normal(size=64), {"biased": 0, "unbiased": 0}
    population = common @ common / (common @ common + 64)
    for _ in range(200):
        stack = common + rng.normal(size=(12, 1, 64)) + rng.normal(size=(12, 64))
        stack = stack + 1.5 * rng.normal(size=(12, 12, 64))
        for name, cosines in (
            ("biased", geo.cosine_matrix(stack.mean(axis=1))),
            ("unbiased", geo.unbiased_cosines(stack)),
        ):
            low, high = geo.jackknife_interval(geo.cosine_effects(cosines))
            held[name] += low <= population <= high
    assert held["biased"] < 175 < 181 <= held["unbiased"]


def test_w10_halves_of_the_questions_give_a_standard_deviation():
    rng = np.random.default_rng(10)
    vectors = 2 * rng.normal(size=64) + rng.normal(size=(12, 64))
    stacks = [vectors[:, None] + 1.5 * rng.normal(size=(12, 24, 64)) for _ in range(60)]
    sd = np.std([geo.mean_offdiagonal_cosine(s.mean(axis=1)) for s in stacks], ddof=1)
    assert np.mean([geo.split_half(s, 1) for s in stacks]) == pytest.approx(sd, rel=0.2)


def test_procrustes_is_scipy_s_disparity():
    one, two = np.random.default_rng(11).normal(size=(2, 12, 30))
    assert geo.procrustes(one, two) == pytest.approx(procrustes(one, two)[2])
    turned, _ = np.linalg.qr(np.random.default_rng(12).normal(size=(30, 30)))
    assert geo.procrustes(one, 3 * one @ turned + 1) == pytest.approx(0, abs=1e-9)
    assert np.isnan(geo.procrustes(one, np.ones((12, 30))))


def test_principal_angles_are_scipy_s():
    rng = np.random.default_rng(13)
    one, two = rng.normal(size=(2, 12, 30))
    spans = [geo.principal_axes(v, geo.LEADING)[1].T for v in (one, two)]
    assert geo.subspace_angle(one, two) == pytest.approx(np.degrees(subspace_angles(*spans)).mean())
    assert geo.subspace_angle(one, 2 * one + 5) == pytest.approx(0, abs=1e-5)
    left, right = np.zeros((2, 4, 6))
    left[:, :3], right[:, 3:] = rng.normal(size=(2, 4, 3))
    assert geo.subspace_angle(left, right) == pytest.approx(90)


def test_angles_see_what_cosines_near_one_hide():
    def fan(cosine):
        return np.array([[1, 0], [cosine, np.sqrt(1 - cosine**2)]])

    assert geo.mean_angle(fan(0.90)) == pytest.approx(25.84, abs=0.01)
    assert geo.angle_lost(fan(0.97), fan(0.90)) == pytest.approx(0.455, abs=0.001)
    assert geo.log_distance(fan(0.90)) == pytest.approx(np.log(0.1))
    assert np.isnan(geo.log_distance(np.ones((3, 4))))


def test_the_common_shift_s_share_and_that_of_the_first_component():
    rng = np.random.default_rng(14)
    together, apart = np.tile(rng.normal(size=40), (12, 1)), rng.normal(size=(12, 40))
    noise = 2 * rng.normal(size=(2, 12, 40))
    assert geo.common_shift(together, together) == pytest.approx(1)
    assert geo.common_shift(apart, apart) == pytest.approx(1 / 12, abs=0.05)
    # Question noise produces spurious own shifts, but not in products of two halves.
    assert geo.common_shift(together + noise[0], together + noise[0]) < 0.4
    assert geo.common_shift(together + noise[0], together + noise[1]) == pytest.approx(1, abs=0.3)
    assert geo.pc1_share(np.outer(np.arange(5), rng.normal(size=7))) == pytest.approx(1)


def test_cka_of_unrelated_vectors_is_high_where_personas_are_few():
    assert geo.unrelated_cka(12, 128) == pytest.approx(0.92, abs=0.01)
    assert geo.unrelated_cka(12, 3584) > 0.99


def test_one_question_has_no_interval():
    draws = geo.mean_pairs(geo.resampled_cosines(np.ones((3, 1, 4)), 10, 1))
    assert np.isnan(geo.basic_interval(1.0, draws)).all()
    assert np.isnan(geo.split_half(np.ones((3, 1, 4)), 1))


@pytest.mark.parametrize("bad", [np.zeros((3, 4)), np.full((3, 4), np.nan), np.ones((1, 4))])
def test_bad_vectors_are_refused(bad):
    with pytest.raises(UserError):
        geo.mean_offdiagonal_cosine(bad)


@settings(max_examples=25)
@given(st.integers(3, 9), st.integers(0, 1000))
def test_persona_effects_average_to_m1_and_are_the_jackknife(n, seed):
    rng = np.random.default_rng(seed)
    one, two = rng.normal(size=(2, n, 6))
    m1 = geo.mean_offdiagonal_cosine(one)
    effects = geo.persona_effects(one)
    assert effects.mean() == pytest.approx(m1)
    without = [geo.mean_offdiagonal_cosine(np.delete(one, i, axis=0)) for i in range(n)]
    np.testing.assert_allclose(effects, n * m1 - (n - 1) * np.array(without), atol=1e-9)
    change = geo.persona_effects(one, two)
    assert change.mean() == pytest.approx(m1 - geo.mean_offdiagonal_cosine(two))


def test_swapping_labels_of_a_replicate_is_exact_and_symmetric():
    one, two = np.random.default_rng(0).normal(size=(2, 6, 10))
    p, p_floor = geo.swap_test(one, two)
    assert p_floor == 1 / 2**5 <= p <= 1
    assert geo.swap_test(two, one) == (p, p_floor)
    assert geo.swap_test(one, one)[0] == 1


def test_every_persona_moving_together_gives_the_smallest_p():
    one = np.random.default_rng(1).normal(size=(8, 20))
    assert geo.swap_test(one + 5, one) == (2 ** (1 - 8), 2 ** (1 - 8))
    assert geo.swap_test(np.tile(one, (3, 1)) + 5, np.tile(one, (3, 1)), draws=200)[1] == 1 / 201


def test_resampled_personas_leave_out_pairs_of_one_with_itself():
    cosines = geo.cosine_matrix(np.eye(4))
    # Persona 0 drawn three times and persona 1 once: their pairs have cosine 0, not 1.
    assert geo.mean_pairs(cosines, np.array([3.0, 1, 0, 0])) == 0
    vectors = np.random.default_rng(2).normal(size=(5, 7))
    assert geo.mean_pairs(geo.cosine_matrix(vectors)) == pytest.approx(
        geo.mean_offdiagonal_cosine(vectors)
    )
    weights = geo.persona_weights(2, 500, 0)
    assert (weights.sum(axis=1) == 2).all() and (weights.max(axis=1) < 2).all()


def test_resampling_is_paired_across_chains():
    a, b = np.random.default_rng(3).normal(size=(2, 4, 9, 5)).astype(np.float32)
    same = geo.resampled_cosines(a, 20, 7) - geo.resampled_cosines(a, 20, 7)
    assert np.abs(same).max() == 0
    assert geo.resampled_cosines(b[:, :1], 20, 7).shape == (0, 4, 4)


def test_basic_interval_mirrors_the_percentiles():
    draws = np.arange(101) / 100
    low, high = geo.percentiles(draws)
    assert geo.basic_interval(0.5, draws) == pytest.approx((1 - high, 1 - low))


def test_cka_and_distances_ignore_rotation_but_see_change():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(12, 6))
    q, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    assert geo.linear_cka(x, 3 * x @ q + 1) == pytest.approx(1)
    assert geo.distance_agreement(x, x @ q) == pytest.approx(1)
    assert geo.mean_distance(2 * x) == pytest.approx(2 * geo.mean_distance(x))
    assert geo.linear_cka(x, rng.normal(size=(12, 6))) < 0.9


def test_jackknife_needs_three_personas():
    assert np.isnan(geo.jackknife_interval([0.1, 0.2])).all()
    assert np.isnan(geo.persona_effects(np.eye(2))).all()
