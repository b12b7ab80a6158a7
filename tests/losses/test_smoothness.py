import numpy as np
import pytest
from keras import ops

from kreg.losses import (
    BendingEnergy,
    Diffusion,
    TotalVariation,
    bending_energy,
    diffusion,
    total_variation,
)
from tests.fields import SHAPES, affine_field, smooth_field
from tests.gradients import central_differences, gradients

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
FUNCTIONS = [diffusion, total_variation, bending_energy]
each_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def differences(field, axis):
    return np.diff(field.astype("float64"), axis=axis)


def per_sample(terms):
    return sum(term.mean(axis=tuple(range(1, term.ndim))) for term in terms)


@each_shape
def test_diffusion_is_the_mean_squared_difference(shape):
    field = smooth_field(shape, 3.0, sigma=1.0, batch=2)
    axes = range(1, len(shape) + 1)
    expected = per_sample(differences(field, axis) ** 2 for axis in axes) / len(shape)
    np.testing.assert_allclose(numpy(diffusion(field)), expected, rtol=1e-4)


@each_shape
@pytest.mark.parametrize("epsilon", [1e-3, 0.5])
def test_total_variation_is_the_mean_smoothed_magnitude(shape, epsilon):
    field = smooth_field(shape, 3.0, sigma=1.0, batch=2)
    axes = range(1, len(shape) + 1)
    expected = per_sample(
        np.hypot(differences(field, axis), epsilon) - epsilon for axis in axes
    ) / len(shape)
    np.testing.assert_allclose(numpy(total_variation(field, epsilon)), expected, rtol=1e-4)
    by_loss = numpy(TotalVariation(epsilon, reduction=None)(None, field))
    np.testing.assert_allclose(by_loss, expected, rtol=1e-4)


@each_shape
def test_bending_energy_sums_the_squared_second_derivatives(shape):
    field = smooth_field(shape, 3.0, sigma=1.0, batch=2)
    axes = range(1, len(shape) + 1)
    expected = per_sample(
        differences(differences(field, one), other) ** 2 for one in axes for other in axes
    )
    np.testing.assert_allclose(numpy(bending_energy(field)), expected, rtol=1e-4)


@each_shape
def test_bending_energy_is_blind_to_affine_maps(shape):
    matrix = np.random.default_rng(0).normal(size=(len(shape), len(shape)))
    field = affine_field(matrix, 2.0, shape)
    np.testing.assert_allclose(numpy(bending_energy(field)), 0, atol=1e-9)
    assert numpy(diffusion(field)) > 0.1


@each_shape
@each_function
def test_a_translation_costs_nothing(shape, function):
    field = np.full((2, *shape, len(shape)), -3.5, "float32")
    np.testing.assert_array_equal(numpy(function(field)), np.zeros(2))


def test_diffusion_grows_with_the_square_and_total_variation_with_the_size():
    field = smooth_field((9, 12), 3.0)
    ratios = [float(f(3 * field)[0] / f(field)[0]) for f in (diffusion, bending_energy)]
    assert ratios == pytest.approx([9, 9], rel=1e-4)
    tiny = total_variation(3 * field, 1e-6)[0] / total_variation(field, 1e-6)[0]
    assert float(tiny) == pytest.approx(3, rel=1e-3)


@each_function
@pytest.mark.parametrize("shape", [(4, 5), (3, 3, 4)])
def test_gradients_equal_central_differences(function, shape):
    field = smooth_field(shape, 1.0, sigma=0.7)
    epsilon = {"epsilon": 0.3} if function is total_variation else {}

    def penalty(field):
        return function(field, **epsilon)

    (found,) = gradients(lambda x: ops.sum(penalty(x)), field)
    expected = central_differences(penalty, field)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(expected).max() > 0.01


@each_function
@pytest.mark.parametrize("shape", [(1, 6), (2, 2), (1, 1), (3, 1, 2)])
def test_short_axes_are_left_out(function, shape):
    field = np.random.default_rng(0).normal(size=(2, *shape, len(shape))).astype("float32")
    (gradient,) = gradients(lambda x: ops.sum(function(x)), field)
    assert np.isfinite(numpy(function(field))).all()
    assert np.isfinite(gradient).all()
    if shape == (1, 6):
        row = differences(field, 2)
        if function is diffusion:
            np.testing.assert_allclose(numpy(function(field)), per_sample([row**2]), rtol=1e-5)
        if function is bending_energy:
            second = differences(row, 2)
            np.testing.assert_allclose(numpy(function(field)), per_sample([second**2]), rtol=1e-5)


@pytest.mark.parametrize("epsilon", [0.0, -1.0])
def test_total_variation_refuses_an_epsilon_without_gradient(epsilon):
    with pytest.raises(ValueError, match=rf"`epsilon` > 0 voxels\. Received: {epsilon}"):
        total_variation(np.zeros((1, 4, 4, 2), "float32"), epsilon)


@pytest.mark.parametrize(
    ("loss", "function"),
    [(Diffusion, diffusion), (TotalVariation, total_variation), (BendingEnergy, bending_energy)],
)
@each_shape
def test_each_loss_is_its_function(loss, function, shape):
    field = smooth_field(shape, 2.0, batch=3)
    found = numpy(loss(reduction=None)(field, field))
    np.testing.assert_array_equal(found, numpy(function(field)))
    assert float(loss()(field, field)) == pytest.approx(found.mean(), rel=1e-5)
