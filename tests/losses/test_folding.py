import numpy as np
import pytest
from keras import ops

from kreg.losses import Folding, folding
from kreg.ops import jacobian_determinant
from tests.fields import SHAPES, affine_field, smooth_field
from tests.gradients import central_differences, gradients

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@each_shape
@pytest.mark.parametrize("margin", [0.0, 0.1, 0.8])
def test_is_the_mean_shortfall_of_the_determinant(shape, margin):
    field = smooth_field(shape, 6.0, sigma=1.0, batch=2)
    determinant = ops.convert_to_numpy(jacobian_determinant(field))
    expected = np.maximum(0, margin - determinant).mean(axis=tuple(range(1, len(shape) + 1)))
    assert expected.min() > 0
    found = ops.convert_to_numpy(folding(field, margin))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    by_loss = ops.convert_to_numpy(Folding(margin, reduction=None)(field, field))
    np.testing.assert_allclose(by_loss, expected, rtol=1e-4)


@each_shape
def test_a_map_that_nowhere_shrinks_below_the_margin_costs_nothing(shape):
    halved = np.zeros((len(shape), len(shape)))
    halved[0, 0] = -0.5
    field = affine_field(halved, 0.0, shape)
    assert float(folding(field, 0.49)[0]) == 0
    assert float(folding(field, 0.6)[0]) == pytest.approx(0.1, abs=1e-5)


@each_shape
def test_a_mirrored_map_costs_its_negative_volume(shape):
    mirror = np.zeros((len(shape), len(shape)))
    mirror[-1, -1] = -2.0
    assert float(folding(affine_field(mirror, 0.0, shape), 0)[0]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("shape", [(4, 5), (3, 3, 4)])
def test_gradient_equals_central_differences(shape):
    # A margin that all voxels fall short of: no kink within a step.
    field = smooth_field(shape, 0.5, sigma=1.0)

    def penalty(field):
        return folding(field, 9.0)

    (found,) = gradients(lambda x: ops.sum(penalty(x)), field)
    expected = central_differences(penalty, field)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert np.abs(expected).max() > 0.02
