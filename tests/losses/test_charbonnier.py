import numpy as np
import pytest
from keras import ops
from scipy import ndimage

from kreg.losses import total_variation
from kreg.losses.charbonnier import (
    Charbonnier,
    GradientMagnitude,
    charbonnier,
    gradient_magnitude_distance,
)
from tests.fields import SHAPES, random_pair, smooth_field
from tests.gradients import central_differences, gradients

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_epsilon = pytest.mark.parametrize("epsilon", [1e-3, 0.3])
FUNCTIONS = [charbonnier, gradient_magnitude_distance]
each_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def magnitude(image, epsilon):
    """sqrt(||grad I||^2 + eps^2) of one channel ``spatial``."""
    squares = [g**2 for g in np.gradient(image.astype("float64"))]
    return np.sqrt(sum(squares) + epsilon**2)


def oracle(function, fixed, warped, weights, epsilon):
    """The documented equation, channel by channel, ``(batch,)``."""
    result = []
    for f, w, m in zip(fixed, warped, weights, strict=True):
        means = []
        for a, b in zip(np.moveaxis(f, -1, 0), np.moveaxis(w, -1, 0), strict=True):
            if function is gradient_magnitude_distance:
                a, b = magnitude(a, epsilon), magnitude(b, epsilon)
            means.append(np.average(np.hypot(a - b, epsilon) - epsilon, weights=m))
        result.append(np.mean(means))
    return result


@each_shape
@each_epsilon
@each_function
def test_is_the_mean_smoothed_magnitude(shape, epsilon, function):
    fixed, warped = random_pair(shape, channels=2)
    expected = oracle(function, fixed, warped, np.ones((2, *shape)), epsilon)
    found = numpy(function(fixed, warped, epsilon=epsilon))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(numpy(function(fixed, fixed, epsilon=epsilon)), 0, atol=1e-9)


@each_shape
@each_function
def test_a_mask_weights_the_voxels_and_what_it_hides_may_be_nan(shape, function):
    fixed, warped = random_pair(shape, channels=2)
    rng = np.random.default_rng(3)
    mask = (rng.random((2, *shape)) < 0.97) * rng.uniform(0.2, 1, (2, *shape))
    weights = mask
    if function is gradient_magnitude_distance:
        weights = mask * [ndimage.minimum_filter(m > 0, size=3, mode="nearest") for m in mask]
    expected = oracle(function, fixed, warped, weights, 0.01)
    hidden = np.where(mask[..., None] > 0, warped, np.nan).astype("float32")
    np.testing.assert_allclose(numpy(function(fixed, hidden, mask, epsilon=0.01)), expected, 1e-4)
    loss = {charbonnier: Charbonnier, gradient_magnitude_distance: GradientMagnitude}[function]
    by_loss = loss(0.01, reduction=None)(fixed, hidden, mask.astype("float32"))
    np.testing.assert_allclose(numpy(by_loss), expected, rtol=1e-4)
    _, gradient = gradients(lambda *images: ops.sum(function(*images, mask)), fixed, hidden)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 1e-4


@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 4)], ids=str)
@each_function
def test_gradients_equal_central_differences(shape, function):
    pair = random_pair(shape, batch=1, channels=2)

    def distance(*images):
        return function(*images, epsilon=0.1)

    found = gradients(lambda *images: ops.sum(distance(*images)), *pair)
    for argument in (0, 1):
        expected = central_differences(distance, *pair, argument=argument)
        assert np.abs(expected).max() > 0.002
        np.testing.assert_allclose(found[argument], expected, atol=2e-4)


@each_function
def test_equal_or_flat_images_have_finite_gradients(function):
    pattern, _ = random_pair((9, 12))
    flat = np.full_like(pattern, -1e3)
    for pair in [(pattern, pattern), (flat, flat), (pattern, flat)]:
        for gradient in gradients(lambda *images: ops.sum(function(*images)), *pair):
            assert np.isfinite(gradient).all()


def test_edges_of_equal_strength_are_equal_whichever_way_they_run():
    ramps = np.indices((9, 12)).astype("float32")[:, None, ..., None]
    found = [numpy(function(ramps[0], -ramps[1] + 5)) for function in FUNCTIONS]
    assert found[0] > 1
    np.testing.assert_allclose(found[1], 0, atol=1e-6)


@each_shape
def test_total_variation_is_charbonnier_on_the_differences_of_a_field(shape):
    field = smooth_field(shape, 3.0, sigma=1.0, batch=2)
    expected = []
    for axis in range(1, len(shape) + 1):
        first, last = np.split(field, [1], axis)[1], np.split(field, [-1], axis)[0]
        expected.append(numpy(charbonnier(first, last, epsilon=0.2)))
    np.testing.assert_allclose(numpy(total_variation(field, 0.2)), np.mean(expected, 0), rtol=1e-5)


@each_function
@pytest.mark.parametrize("epsilon", [0, -1.0])
def test_refuses_an_epsilon_that_is_not_positive(function, epsilon):
    with pytest.raises(ValueError, match=rf"`epsilon` > 0.*Received: {epsilon}"):
        function(*random_pair((9, 12)), epsilon=epsilon)
