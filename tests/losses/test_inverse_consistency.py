import keras
import numpy as np
import pytest
from keras import backend, ops
from scipy import ndimage

from kreg.losses.inverse_consistency import InverseConsistency, inverse_consistency
from kreg.ops.displacement import integrate
from tests.fields import SHAPES, grid, smooth_field
from tests.gradients import central_differences, gradients

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def two_fields(shape, largest=2.0, *, batch=2):
    return [smooth_field(shape, largest, sigma=1.0, batch=batch, seed=seed) for seed in (0, 1)]


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def one_way(first, second):
    """mean ||first(x) + second(x + first(x))||^2 of one pair, by SciPy."""
    shape = first.shape[:-1]
    at = np.moveaxis(grid(shape) + first.astype("float64"), -1, 0)
    after = [
        ndimage.map_coordinates(c, at, order=1, mode="nearest") for c in np.moveaxis(second, -1, 0)
    ]
    return np.mean(np.sum((first + np.stack(after, -1)) ** 2, axis=-1))


@each_shape
def test_is_the_mean_square_of_what_both_compositions_leave(shape):
    forward, backward = two_fields(shape)
    pairs = zip(forward, backward, strict=True)
    expected = [(one_way(f, b) + one_way(b, f)) / 2 for f, b in pairs]
    assert min(expected) > 0.1
    np.testing.assert_allclose(numpy(inverse_consistency(forward, backward)), expected, rtol=1e-4)


@each_shape
def test_the_direction_that_is_called_forward_does_not_matter(shape):
    forward, backward = two_fields(shape)
    expected = numpy(inverse_consistency(forward, backward))
    np.testing.assert_allclose(numpy(inverse_consistency(backward, forward)), expected, rtol=1e-5)


@each_shape
def test_opposite_translations_cost_nothing_and_one_alone_its_square(shape):
    forward = np.full((1, *shape, len(shape)), 1.5, "float32")
    np.testing.assert_allclose(numpy(inverse_consistency(forward, -forward)), 0, atol=1e-9)
    alone = numpy(inverse_consistency(forward, np.zeros_like(forward)))
    np.testing.assert_allclose(alone, 1.5**2 * len(shape), rtol=1e-5)


def test_is_far_smaller_for_a_diffeomorphism_and_its_inverse_than_for_the_negative_field():
    velocity = np.zeros((1, 32, 32, 2), "float32")
    velocity[:, 4:-4, 4:-4] = smooth_field((24, 24), 4.0, sigma=4.0)
    velocity = ndimage.gaussian_filter(velocity, (0, 2, 2, 0))
    forward = integrate(velocity)
    inverse = float(inverse_consistency(forward, integrate(-velocity))[0])
    negative = float(inverse_consistency(forward, -forward)[0])
    assert inverse < 0.02 * negative
    assert negative > 0.01


@pytest.mark.parametrize("shape", [(4, 5), (3, 3, 4)])
def test_gradients_equal_central_differences(shape):
    # Well within a cell, beyond which the derivative of linear interpolation jumps.
    pair = [0.3 + 0.1 * field for field in two_fields(shape, 1.0, batch=1)]
    found = gradients(lambda *fields: ops.sum(inverse_consistency(*fields)), *pair)
    for argument in (0, 1):
        expected = central_differences(inverse_consistency, *pair, argument=argument)
        np.testing.assert_allclose(found[argument], expected, atol=1e-3)
        assert np.abs(expected).max() > 0.01


@each_shape
def test_the_loss_takes_both_fields_in_one_tensor(shape):
    forward, backward = two_fields(shape, batch=3)
    both = np.concatenate([forward, backward], axis=-1)
    expected = numpy(inverse_consistency(forward, backward))
    loss = InverseConsistency(reduction=None)
    np.testing.assert_allclose(numpy(loss(both, both)), expected, rtol=1e-6)
    for other in (None, np.zeros((3, 1), "float32"), np.full_like(both, np.nan)):
        np.testing.assert_allclose(numpy(loss(other, both)), expected, rtol=1e-6)
    weights = np.array([0.0, 1.0, 2.5], "float32")
    np.testing.assert_allclose(numpy(loss(None, both, weights)), weights * expected, rtol=1e-6)
    alone = numpy(loss(None, both[1:2]))
    np.testing.assert_allclose(alone, expected[1:2], rtol=1e-5)
    half = InverseConsistency()(None, ops.cast(both, "bfloat16"))
    assert backend.standardize_dtype(half.dtype) == "float32"
    assert float(half) == pytest.approx(expected.mean(), rel=0.05)


@each_shape
def test_constants_give_finite_values_and_gradients(shape):
    for value in (0.0, -1e3, 1e-6):
        both = np.full((1, *shape, 2 * len(shape)), value, "float32")
        (gradient,) = gradients(lambda x: InverseConsistency()(None, x), both)
        assert np.isfinite(float(InverseConsistency()(None, both)))
        assert np.isfinite(gradient).all()


def test_survives_keras_serialisation():
    loss = InverseConsistency(name="both_ways")
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(twin) is InverseConsistency
    assert twin.get_config() == loss.get_config()


def test_trains_a_model_towards_inverse_maps():
    x = np.random.default_rng(0).normal(size=(4, 8, 10, 1)).astype("float32")
    image = keras.Input((None, None, 1))
    model = keras.Model(image, keras.layers.Conv2D(4, 3, padding="same")(image))
    model.compile(keras.optimizers.Adam(0.03), loss=InverseConsistency())
    history = model.fit(x, np.zeros((4, 1)), batch_size=4, epochs=10, verbose=0).history["loss"]
    assert history[-1] < 0.8 * history[0]


@pytest.mark.parametrize("shape", [(2, 9, 12, 2), (2, 9, 12, 6), (2, 5, 5, 5, 4), (9, 12, 4)])
def test_refuses_what_is_no_pair_of_fields(shape):
    with pytest.raises(ValueError, match=r"twice as many components.*concatenate.*Received: shape"):
        InverseConsistency()(None, np.zeros(shape, "float32"))


def test_refuses_fields_of_different_grids():
    forward, backward = np.zeros((1, 9, 12, 2), "float32"), np.zeros((1, 9, 11, 2), "float32")
    with pytest.raises(ValueError, match=r"`forward` and `backward` of equal shape.*Received"):
        inverse_consistency(forward, backward)
    with pytest.raises(ValueError, match=r"`backward` of shape .*components D.*Received"):
        inverse_consistency(forward, np.zeros((1, 9, 12, 3), "float32"))
