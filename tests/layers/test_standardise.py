import numpy as np
import pytest
from keras import backend, ops

from kreg.layers import Standardise
from tests.fields import SHAPES
from tests.gradients import gradients

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def random_image(shape):
    rng = np.random.default_rng(0)
    return rng.uniform(1, 3, size=(2, *shape, 2)).astype("float32")


@each_shape
def test_each_channel_of_each_sample_has_mean_0_and_deviation_1(shape):
    image = random_image(shape)
    axes = tuple(range(1, len(shape) + 1))
    mean, deviation = image.mean(axes, keepdims=True), image.std(axes, keepdims=True)
    found = ops.convert_to_numpy(Standardise()(image))
    np.testing.assert_allclose(found, (image - mean) / deviation, atol=1e-4)


@pytest.mark.parametrize(("a", "b"), [(1, 5), (30, 0), (0.1, -2)])
def test_brightness_and_contrast_change_nothing(a, b):
    image = random_image((9, 12))
    expected = ops.convert_to_numpy(Standardise()(image))
    np.testing.assert_allclose(
        ops.convert_to_numpy(Standardise()(a * image + b)), expected, atol=1e-3
    )


@pytest.mark.parametrize("value", [0.0, 1.0, -1e3])
def test_a_constant_image_becomes_zero_with_a_finite_gradient(value):
    image = np.full((1, 9, 12, 1), value, "float32")
    np.testing.assert_allclose(ops.convert_to_numpy(Standardise()(image)), 0, atol=1e-3)
    (gradient,) = gradients(lambda x: ops.sum(ops.square(Standardise()(x))), image)
    assert np.isfinite(gradient).all()


def test_statistics_are_float32_in_half_precision():
    # Sums of bfloat16 values stop growing at 256 times their size.
    image = random_image((40, 40))
    found = Standardise(dtype="mixed_bfloat16")(image)
    assert backend.standardize_dtype(found.dtype) == "bfloat16"
    expected = ops.convert_to_numpy(Standardise()(image))
    found = ops.convert_to_numpy(ops.cast(found, "float32"))
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_refuses_what_is_no_image():
    with pytest.raises(ValueError, match=r"\(batch, \*spatial, channels\).*Received: shape"):
        Standardise()(np.zeros((9, 12), "float32"))
    with pytest.raises(ValueError, match=r"floating-point values.*Received: dtype uint8"):
        Standardise()(np.zeros((1, 9, 12, 1), "uint8"))
