import keras
import numpy as np
import pytest
from keras import ops

from kreg.losses.known_transform import GridDistance, grid_distance
from tests.gradients import central_differences, gradients

EXTENTS = [(12.0, 20.0), (8.0, 10.0, 16.0)]
each_extent = pytest.mark.parametrize("extent", EXTENTS, ids=str)


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def matrices(extent, batch=3, n=None, seed=0):
    side = len(extent) + 1
    shape = (batch, side, side) if n is None else (batch, n, side, side)
    matrix = np.eye(side) + np.random.default_rng(seed).normal(0, 0.1, shape)
    matrix[..., -1, :] = np.eye(side)[-1]
    return matrix.astype("float32")


@each_extent
@pytest.mark.parametrize("epsilon", [0.1, 5.0])
def test_is_the_mean_distance_over_a_grid(extent, epsilon):
    truth, found = matrices(extent), matrices(extent, seed=1)
    axes = [(np.arange(5) - 2) * length / 5 for length in extent]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(extent))
    points = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    offset = np.einsum("bij,nj->bni", (found - truth).astype("float64"), points)
    distance = 100 * np.linalg.norm(offset, axis=-1) / max(extent)
    expected = (np.hypot(distance, epsilon) - epsilon).mean(axis=1)
    assert expected.min() > 1
    np.testing.assert_allclose(
        numpy(grid_distance(truth, found, extent, epsilon=epsilon)), expected, rtol=1e-4
    )


def test_a_shift_costs_its_length_in_per_cent_of_the_longest_side():
    shift = np.eye(3)[None].astype("float32")
    shift[0, :2, 2] = 3, 4
    found = float(grid_distance(np.eye(3)[None], shift, (50, 100), epsilon=1e-4)[0])
    assert found == pytest.approx(5, rel=1e-3)


@each_extent
def test_several_matrices_a_sample_are_averaged(extent):
    truth, found = matrices(extent), matrices(extent, n=2, seed=1)
    each = [numpy(grid_distance(truth, found[:, i], extent)) for i in range(2)]
    expected = np.mean(each, axis=0)
    for known in (truth, truth[:, None], np.repeat(truth[:, None], 2, axis=1)):
        np.testing.assert_allclose(numpy(grid_distance(known, found, extent)), expected, rtol=1e-4)
    # Each against its own.
    assert np.all(numpy(grid_distance(found, found, extent)) < 1e-6)


@each_extent
def test_the_gradient_equals_central_differences_and_is_0_at_the_truth(extent):
    truth, found = matrices(extent, batch=1), matrices(extent, batch=1, seed=1)

    def distance(truth, found):
        return grid_distance(truth, found, extent, epsilon=1.0)

    (gradient,) = gradients(lambda x: ops.sum(distance(truth, x)), found)
    expected = central_differences(distance, truth, found, argument=1, step=1e-3)
    np.testing.assert_allclose(gradient, expected, rtol=0.02, atol=0.05)
    assert np.abs(expected).max() > 10
    (still,) = gradients(lambda x: ops.sum(distance(truth, x)), truth)
    np.testing.assert_array_equal(still, np.zeros_like(still))


def test_the_loss_is_its_function_and_survives_serialisation():
    truth, found = matrices((12, 20)), matrices((12, 20), seed=1)
    loss = GridDistance(np.array([12, 20]), epsilon=0.5, reduction=None)
    expected = numpy(grid_distance(truth, found, (12, 20), epsilon=0.5))
    np.testing.assert_allclose(numpy(loss(truth, found)), expected, rtol=1e-6)
    weights = np.array([0, 1, 2.5], "float32")
    np.testing.assert_allclose(numpy(loss(truth, found, weights)), weights * expected, rtol=1e-6)
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert twin.get_config() == loss.get_config()
    assert (twin.extent, twin.epsilon) == ([12, 20], 0.5)


def test_refuses_what_does_not_fit():
    truth = matrices((12, 20))
    for extent, epsilon in (((12, 0), 0.1), ((12,), 0.1), ((12, 20), 0.0)):
        with pytest.raises(ValueError, match=r"`extent` to be 2 or 3 positive.*Received"):
            grid_distance(truth, truth, extent, epsilon=epsilon)
    wrong = [
        (truth, truth[:, :2]),
        (truth, truth[:2]),
        (truth[0], truth[0]),
        (matrices((12, 20), n=3), matrices((12, 20), n=2)),
    ]
    for known, found in wrong:
        with pytest.raises(ValueError, match=r"one true matrix a sample.*Received: predicted"):
            grid_distance(known, found, (12, 20))
