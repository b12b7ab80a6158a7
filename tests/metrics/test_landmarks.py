import keras
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from kreg.metrics import landmark_error


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
