import keras
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from kreg.metrics.landmarks import fire_auc, landmark_error, naed, rtre


def error(*args, **options):
    return keras.ops.convert_to_numpy(landmark_error(*args, **options))


@pytest.mark.parametrize("shape", [(12, 14), (8, 9, 10)])
def test_field_is_sampled_linearly_at_the_fixed_points(shape):
    rng = np.random.default_rng(0)
    d = len(shape)
    field = rng.normal(size=(2, *shape, d)).astype("float32")
    fixed = rng.uniform(0, np.array(shape) - 1, (2, 6, d)).astype("float32")
    moving = rng.uniform(0, np.array(shape) - 1, (2, 6, d)).astype("float32")
    expected = np.empty((2, 6))
    for b in range(2):
        u = np.stack([map_coordinates(field[b, ..., i], fixed[b].T, order=1) for i in range(d)], -1)
        expected[b] = np.linalg.norm(fixed[b] + u - moving[b], axis=-1)
    np.testing.assert_allclose(error(fixed, moving, field), expected, atol=1e-4)


def test_the_field_maps_fixed_to_moving_points_not_back():
    """Moving content lies 3 rows further down: u = +3 rows brings fixed onto moving landmarks."""
    fixed = np.array([[[4.0, 5.0], [6.5, 2.0]]])
    moving = fixed + np.array([3, 0])
    field = np.zeros((1, 12, 12, 2), "float32")
    field[..., 0] = 3
    assert error(fixed, moving).tolist() == [[3, 3]]
    np.testing.assert_allclose(error(fixed, moving, field), [[0, 0]], atol=1e-6)
    np.testing.assert_allclose(error(moving, fixed, field), [[6, 6]], atol=1e-6)


def test_spacing_measures_in_its_unit():
    fixed, moving = np.zeros((1, 1, 3)), np.array([[[1.0, 2.0, 2.0]]])
    assert error(fixed, moving, spacing=(4, 1.5, 2)) == pytest.approx(np.sqrt(41))


def test_beyond_the_grid_the_field_goes_on_as_at_its_border():
    field = np.ones((1, 5, 5, 2), "float32")
    point = np.array([[[-2.0, 8.0]]])
    np.testing.assert_allclose(error(point, point + 1, field), [[0]], atol=1e-6)


def test_a_missing_landmark_is_nan_and_spoils_no_other():
    points = np.array([[[1.0, 1.0], [np.nan, np.nan]]])
    field = np.zeros((1, 5, 5, 2), "float32")
    np.testing.assert_array_equal(error(points, points, field), [[0, np.nan]])


def test_refuses_what_does_not_fit():
    points = np.zeros((2, 3, 2))
    with pytest.raises(ValueError, match=r"points\[None\]"):
        landmark_error(points[0], points[0])
    with pytest.raises(ValueError, match="equal shape"):
        landmark_error(points, points[:, :2])
    with pytest.raises(ValueError, match="one displacement field for each"):
        landmark_error(points, points, np.zeros((1, 5, 5, 2)))
    with pytest.raises(ValueError, match="as many components"):
        landmark_error(points, points, np.zeros((2, 5, 5, 5, 3)))
    with pytest.raises(ValueError, match="positive spacing"):
        landmark_error(points, points, spacing=(1, 0))


def numpy(value):
    return keras.ops.convert_to_numpy(value)


def two_sets(d=2):
    rng = np.random.default_rng(1)
    return rng.uniform(0, 300, (2, 7, d)), rng.uniform(0, 300, (2, 7, d))


@pytest.mark.parametrize("d", [2, 3])
def test_naed_is_the_mean_distance_over_the_normaliser(d):
    points, reference = two_sets(d)
    expected = [
        sum(np.linalg.norm(p - q) for p, q in zip(*pair, strict=True)) / 7
        for pair in zip(points, reference, strict=True)
    ]
    np.testing.assert_allclose(numpy(naed(points, reference, 300)), np.array(expected) / 300, 1e-5)
    own = numpy(naed(points, reference, np.array([300, 150])))
    np.testing.assert_allclose(own, np.array(expected) / [300, 150], 1e-5)
    assert numpy(naed(points[0], reference[0], 300)) == pytest.approx(expected[0] / 300, rel=1e-5)


@pytest.mark.parametrize("shape", [(300, 400), (3, 4, 12)])
def test_rtre_is_the_distance_over_the_diagonal(shape):
    diagonal = {(300, 400): 500, (3, 4, 12): 13}[shape]
    points, reference = two_sets(len(shape))
    expected = np.linalg.norm(points - reference, axis=-1) / diagonal
    np.testing.assert_allclose(numpy(rtre(points, reference, shape)), expected, 1e-5)
    # The mean of ANHIR's error is NAED by the diagonal.
    by_diagonal = numpy(naed(points, reference, diagonal))
    np.testing.assert_allclose(expected.mean(-1), by_diagonal, 1e-5)


def test_a_missing_landmark_is_left_out_of_the_mean_and_a_failure_is_infinite():
    points, reference = two_sets()
    some = points.copy()
    some[0, 3:] = np.nan
    found = numpy(naed(some, reference, 100))
    expected = [numpy(naed(p, q, 100)) for p, q in [(points[0, :3], reference[0, :3])]]
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert np.isnan(numpy(rtre(some, reference, (3, 4)))[0]).tolist() == [False] * 3 + [True] * 4
    failed = np.full_like(points, np.inf)
    assert np.isinf(numpy(naed(failed, reference, 100))).all()
    assert np.isinf(numpy(rtre(failed, reference, (3, 4)))).all()


def test_fire_auc_counts_pairs_below_each_pixel():
    rng = np.random.default_rng(2)
    errors = np.r_[rng.uniform(0, 30, 40), np.inf, np.nan]
    expected = sum(100 * np.sum(errors < i) / len(errors) for i in range(1, 26)) / 2500
    assert numpy(fire_auc(errors)) == pytest.approx(expected, rel=1e-6)
    assert numpy(fire_auc([0.2, 0.9])) == 1
    assert numpy(fire_auc([25.0, np.inf])) == 0
    # Below i pixels, not at: exactly 1 px misses the first of 25 steps.
    assert numpy(fire_auc([1.0])) == pytest.approx(24 / 25)


def test_scores_refuse_what_does_not_fit():
    points, reference = two_sets()
    for score in (naed, rtre):
        with pytest.raises(ValueError, match="equal shape"):
            score(points, reference[:, :3], (300, 400))
        with pytest.raises(ValueError, match="D 2 or 3"):
            score(points[0, 0], points[0, 0], (300, 400))
    with pytest.raises(ValueError, match="the height or the diagonal"):
        naed(points, reference, 0)
    with pytest.raises(ValueError, match="2 positive sizes"):
        rtre(points, reference, (300, 400, 3))
    with pytest.raises(ValueError, match="2 positive sizes"):
        rtre(points, reference, (300, 0))
    for errors in ([], [[1.0]], 1.0):
        with pytest.raises(ValueError, match="at least one pair"):
            fire_auc(errors)
