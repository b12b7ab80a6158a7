import keras
import numpy as np
import pytest
from keras import ops

from kreg.losses.endpoint_error import EndpointError, endpoint_error
from tests.fields import SHAPES, smooth_field
from tests.gradients import central_differences, gradients

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def fields(shape, batch=3):
    return [smooth_field(shape, 3.0, batch=batch, seed=seed) for seed in (0, 1)]


@each_shape
@pytest.mark.parametrize("epsilon", [1e-3, 1.0])
def test_is_the_mean_smoothed_distance(shape, epsilon):
    truth, found = fields(shape)
    distance = np.linalg.norm((found - truth).astype("float64"), axis=-1).reshape(3, -1)
    expected = (np.hypot(distance, epsilon) - epsilon).mean(axis=1)
    assert expected.min() > 0.3
    np.testing.assert_allclose(
        numpy(endpoint_error(truth, found, epsilon=epsilon)), expected, rtol=1e-5
    )


def test_gradients_equal_central_differences_and_are_0_at_the_truth():
    truth, found = (smooth_field((3, 4), 1.0, sigma=0.5, seed=seed) for seed in (0, 1))

    def error(truth, found):
        return endpoint_error(truth, found, epsilon=0.3)

    (gradient,) = gradients(lambda x: ops.sum(error(truth, x)), found)
    expected = central_differences(error, truth, found, argument=1)
    np.testing.assert_allclose(gradient, expected, atol=1e-4)
    assert np.abs(expected).max() > 0.01
    (still,) = gradients(lambda x: ops.sum(endpoint_error(truth, x)), truth)
    np.testing.assert_array_equal(still, np.zeros_like(still))


def test_the_loss_is_its_function_and_survives_serialisation():
    truth, found = fields((9, 12))
    loss = EndpointError(0.2, reduction=None)
    expected = numpy(endpoint_error(truth, found, epsilon=0.2))
    weights = np.array([0, 1, 2.5], "float32")
    np.testing.assert_allclose(numpy(loss(truth, found, weights)), weights * expected, rtol=1e-6)
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert twin.get_config() == loss.get_config()
    assert twin.epsilon == 0.2


def test_refuses_what_does_not_fit():
    truth, found = fields((9, 12))
    with pytest.raises(ValueError, match=r"`truth` and `displacement` of equal shape.*Received"):
        endpoint_error(truth, found[:, 1:])
    with pytest.raises(ValueError, match=r"Expected `truth` of shape \(batch.*Received"):
        endpoint_error(truth[..., :1], found)
    with pytest.raises(ValueError, match=r"`epsilon` > 0 voxels\. Received: 0"):
        endpoint_error(truth, found, epsilon=0)
