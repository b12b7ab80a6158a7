"""What SaliencyWeighted does, beside what holds for every loss."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import ndimage

import kreg
from kreg.losses import MINE, NCC, Charbonnier, SaliencyWeighted
from kreg.metrics import landmark_error
from kreg.ops import OriginalSaliency, TensorCorrelation
from tests.fields import smooth_field
from tests.gradients import gradients


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def pair(shape, batch=2, seed=0):
    noise = np.random.default_rng(seed).normal(size=(2, batch, *shape, 1))
    smooth = ndimage.gaussian_filter(noise, (0, 0, *(1.2,) * len(shape), 0))
    return (0.5 + smooth).astype("float32")


@pytest.mark.parametrize("shape", [(12, 14), (8, 9, 10)], ids=str)
@pytest.mark.parametrize("kind", [TensorCorrelation((1.0,)), OriginalSaliency()])
def test_voxels_count_by_their_saliency(shape, kind):
    fixed, warped = pair(shape)
    weights = numpy(kind(fixed, warped)) ** 2.0
    axes = tuple(range(1, fixed.ndim))
    squares = (fixed - warped) ** 2
    expected = np.sum(weights * squares, axes) / np.sum(weights, axes)
    for loss in (keras.losses.MeanSquaredError(), keras.losses.MeanSquaredError(reduction="sum")):
        found = SaliencyWeighted(loss, kind, power=2.0, reduction="none")(fixed, warped)
        np.testing.assert_allclose(numpy(found), expected, rtol=1e-4)
    epsilon = 0.1
    absolute = np.sqrt(squares + epsilon**2) - epsilon
    found = SaliencyWeighted(Charbonnier(epsilon), kind, power=2.0, reduction="none")(fixed, warped)
    expected = np.sum(weights * absolute, axes) / np.sum(weights, axes)
    np.testing.assert_allclose(numpy(found), expected, rtol=1e-4)


def test_what_is_masked_may_be_nan():
    fixed, warped = pair((12, 14))
    mask = np.ones((2, 12, 14, 1), "float32")
    mask[:, :4] = 0
    broken = np.where(mask > 0, warped, np.nan).astype("float32")
    for loss in (keras.losses.MeanSquaredError(), Charbonnier(0.1)):
        found = SaliencyWeighted(loss)(fixed, broken, sample_weight=mask)
        expected = SaliencyWeighted(loss)(fixed, warped, sample_weight=mask)
        np.testing.assert_allclose(numpy(found), numpy(expected), rtol=1e-5)


def test_no_gradient_flows_through_the_weights():
    fixed, warped = pair((12, 14), batch=1)
    weights = numpy(TensorCorrelation()(fixed, warped))
    loss = SaliencyWeighted(keras.losses.MeanSquaredError())
    (found,) = gradients(lambda w: loss(fixed, w), warped)
    expected = 2 * weights * (warped - fixed) / weights.sum()
    np.testing.assert_allclose(numpy(found), expected, atol=1e-7)


def test_losses_without_a_value_for_each_voxel_are_refused():
    fixed, warped = pair((12, 14))

    class Total(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return ops.sum(ops.square(y_true - y_pred), axis=(1, 2, 3))

    with pytest.raises(ValueError, match=r"one value a voxel.*Received"):
        SaliencyWeighted(Total())(fixed, warped)
    with pytest.raises(ValueError, match=r"without a network.*Received"):
        SaliencyWeighted(MINE())
    with pytest.raises(ValueError, match=r"`power` >= 0.*Received"):
        SaliencyWeighted(NCC(), power=-1)


def test_a_missing_part_pulls_less_in_a_registration():
    shape = (40, 44)
    texture = pair(shape, batch=1, seed=3)[0]
    moving = ndimage.gaussian_filter(texture, (0, 1, 1, 0))
    moving = (moving - moving.min()) / np.ptp(moving)
    truth = smooth_field(shape, 1.5, sigma=8.0, batch=1)
    fixed = numpy(kreg.ops.warp(moving, truth, border=kreg.ops.nearest_border))
    fixed[:, 14:24, 16:28] = 0
    points = np.argwhere(np.ones(shape))[None].astype("float32")
    row, column = points[0].T
    near = (np.abs(row - 18.5) < 10) & (np.abs(column - 21.5) < 11)
    near &= ~((np.abs(row - 18.5) < 6) & (np.abs(column - 21.5) < 7))

    def error(loss):
        found = kreg.register(
            fixed[0, ..., 0],
            moving[0, ..., 0],
            transform=kreg.transforms.FreeForm(6),
            similarity=loss,
            start=None,
            schedule=kreg.pairwise.CoarseToFine(steps=(10, 10, 30)),
        )
        moved = points + truth.reshape(1, -1, 2)
        return float(
            numpy(landmark_error(points, moved, found.displacement()[None]))[0, near].mean()
        )

    plain = keras.losses.MeanSquaredError()
    assert error(SaliencyWeighted(plain, power=4.0)) < 0.7 * error(plain)
