import numpy as np
import pytest
from keras import ops

from kreg.losses.dice_loss import SoftDice, soft_dice
from tests.fields import SHAPES
from tests.gradients import central_differences, gradients

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def probabilities(shape, *, batch=2, labels=3, seed=0):
    """Two sets of soft maps that are alike in part."""
    fixed, noise = np.random.default_rng(seed).uniform(size=(2, batch, *shape, labels))
    return fixed.astype("float32"), (0.5 * fixed + 0.5 * noise).astype("float32")


def one_hot(shape, *, batch=2, labels=3, seed=0):
    maps = np.random.default_rng(seed).integers(0, labels, (2, batch, *shape))
    fixed, warped = (maps[..., None] == np.arange(labels)).astype("float32")
    return fixed, warped


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def slow_dice(fixed, warped, weights):
    """The documented equation in float64, one sample and label after the other."""
    values = []
    for f, w, m in zip(*(x.astype("float64") for x in (fixed, warped, weights)), strict=True):
        labels = [(f[..., k], w[..., k]) for k in range(f.shape[-1])]
        values.append(
            np.mean([2 * np.sum(m * a * b) / np.sum(m * (a * a + b * b)) for a, b in labels])
        )
    return values


@each_shape
def test_follows_its_equation_for_soft_maps(shape):
    fixed, warped = probabilities(shape)
    expected = slow_dice(fixed, warped, np.ones((2, *shape)))
    assert 0.7 < min(expected) < 0.97
    np.testing.assert_allclose(numpy(soft_dice(fixed, warped)), expected, rtol=1e-5)


@each_shape
def test_is_the_dice_of_sets_for_one_hot_maps(shape):
    fixed, warped = one_hot(shape)
    expected = []
    for f, w in zip(fixed, warped, strict=True):
        sets = [[set(map(tuple, np.argwhere(x[..., label]))) for x in (f, w)] for label in range(3)]
        expected.append(np.mean([2 * len(a & b) / (len(a) + len(b)) for a, b in sets]))
    assert 0.2 < min(expected) < 0.6
    np.testing.assert_allclose(numpy(soft_dice(fixed, warped)), expected, rtol=1e-5)


@each_shape
def test_soft_maps_match_best_where_they_are_equal(shape):
    fixed, warped = probabilities(shape)
    np.testing.assert_allclose(numpy(soft_dice(fixed, fixed)), 1, atol=1e-6)
    assert numpy(soft_dice(fixed, warped)).max() < 0.97
    _, gradient = gradients(lambda *maps: ops.sum(soft_dice(*maps)), fixed, fixed)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@each_shape
@pytest.mark.parametrize("scale", [1e-3, 7])
def test_a_common_scale_changes_nothing_and_the_order_neither(shape, scale):
    fixed, warped = probabilities(shape)
    expected = numpy(soft_dice(fixed, warped))
    np.testing.assert_allclose(numpy(soft_dice(scale * fixed, scale * warped)), expected, rtol=1e-5)
    np.testing.assert_allclose(numpy(soft_dice(warped, fixed)), expected, rtol=1e-6)


def test_a_label_that_neither_holds_is_left_out_of_the_mean():
    fixed, warped = probabilities((9, 12))
    expected = numpy(soft_dice(fixed[..., :2], warped[..., :2]))
    fixed[..., 2] = warped[..., 2] = 0
    np.testing.assert_allclose(numpy(soft_dice(fixed, warped)), expected, rtol=1e-6)


def test_a_label_that_only_one_holds_has_no_overlap():
    fixed, warped = probabilities((9, 12))
    expected = 2 / 3 * numpy(soft_dice(fixed[..., :2], warped[..., :2]))
    warped[..., 2] = 0
    np.testing.assert_allclose(numpy(soft_dice(fixed, warped)), expected, rtol=1e-5)


def test_maps_without_any_label_cost_nothing():
    pair = [np.zeros((2, 9, 12, 3), "float32")] * 2
    np.testing.assert_array_equal(numpy(SoftDice(reduction=None)(*pair)), [0, 0])
    for gradient in gradients(SoftDice(), *pair):
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@each_shape
@pytest.mark.parametrize("channel_axis", [False, True])
def test_a_mask_weights_the_voxels(shape, channel_axis):
    fixed, warped = probabilities(shape)
    mask = np.random.default_rng(3).random((2, *shape)).astype("float32")
    expected = slow_dice(fixed, warped, mask)
    weights = mask[..., None] if channel_axis else mask
    np.testing.assert_allclose(numpy(soft_dice(fixed, warped, weights)), expected, rtol=1e-5)
    by_loss = numpy(SoftDice(reduction=None)(fixed, warped, weights))
    np.testing.assert_allclose(by_loss, 1 - np.array(expected), atol=1e-6)


def test_what_is_masked_may_be_nan():
    fixed, warped = probabilities((9, 12))
    mask = np.ones((2, 9, 12), "float32")
    mask[:, :3] = 0
    expected = numpy(soft_dice(fixed[:, 3:], warped[:, 3:]))
    fixed[:, 1], warped[:, 2] = np.nan, np.nan
    np.testing.assert_allclose(numpy(soft_dice(fixed, warped, mask)), expected, rtol=1e-5)
    for gradient in gradients(lambda *maps: ops.sum(soft_dice(*maps, mask)), fixed, warped):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 4)])
@pytest.mark.parametrize("argument", [0, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_equal_central_differences(shape, argument, masked):
    pair = probabilities(shape, batch=1, labels=2)
    mask = np.random.default_rng(3).random((1, *shape, 1)).astype("float32") if masked else None

    def overlap(fixed, warped):
        weights = None if mask is None else np.repeat(mask, fixed.shape[0], axis=0)
        return soft_dice(fixed, warped, weights)

    found = gradients(lambda *maps: ops.sum(overlap(*maps)), *pair)[argument]
    expected = central_differences(overlap, *pair, argument=argument)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected).max() > 5e-3


def test_refuses_maps_that_are_not_floating_or_differ_in_their_labels():
    maps = np.zeros((1, 9, 12, 3), "int32")
    with pytest.raises(ValueError, match=r"`fixed` to hold floating-point.*Received: dtype int32"):
        soft_dice(maps, maps)
    with pytest.raises(ValueError, match=r"of equal shape.*Received"):
        soft_dice(maps.astype("float32"), maps[..., :2].astype("float32"))
