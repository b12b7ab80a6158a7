import numpy as np
import pytest
from keras import ops

from kreg.layers.displace_points import DisplacePoints
from tests.fields import SHAPES, affine_field, smooth_field
from tests.gradients import gradients

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def points(shape, number=6):
    rng = np.random.default_rng(0)
    return rng.uniform(0, np.array(shape) - 1, (1, number, len(shape))).astype("float32")


@each_shape
def test_moves_points_as_the_map_does(shape):
    matrix, shift = 0.1 * np.eye(len(shape))[::-1], 0.5
    found = DisplacePoints()(points(shape), affine_field(matrix, shift, shape))
    expected = points(shape) + points(shape) @ matrix.T + shift
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, atol=1e-4)


@each_shape
def test_a_missing_point_stays_missing_and_has_no_gradient(shape):
    some, field = points(shape), smooth_field(shape, 1.0)
    holes = some.copy()
    holes[:, 2:4] = np.nan
    holes[:, 4, 0] = np.nan
    moved = ops.convert_to_numpy(DisplacePoints()(holes, field))
    assert np.isnan(moved[:, 2:4]).all()
    assert np.isnan(moved[:, 4, 0]).all()
    kept = [0, 1, 5]

    def total(positions, displacement):
        result = DisplacePoints()(positions, displacement)
        return ops.sum(ops.square(ops.stack([result[:, index] for index in kept])))

    expected = gradients(total, some[:, :], field)
    found = gradients(total, holes, field)
    assert np.abs(expected[1]).max() > 1
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
    np.testing.assert_allclose(found[0][:, kept], expected[0][:, kept], rtol=1e-5)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="Received"):
        DisplacePoints()(points((6, 7)), smooth_field((6, 7, 8), 1.0))
    with pytest.raises(ValueError, match=r"\(batch, \*spatial, D\).*Received"):
        DisplacePoints()(points((6, 7)), np.zeros((1, 6, 7, 3), "float32"))
