import numpy as np
import pytest
from keras import backend, ops

from kreg.losses import NCC, ncc
from tests.fields import SHAPES, random_pair
from tests.gradients import central_differences, gradients

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


@each_shape
def test_equals_numpys_corrcoef_averaged_over_channels(shape):
    fixed, warped = random_pair(shape, channels=3)
    expected = [
        np.mean([np.corrcoef(f[..., c].ravel(), w[..., c].ravel())[0, 1] for c in range(3)])
        for f, w in zip(fixed, warped, strict=True)
    ]
    assert 0.4 < min(expected) < 0.95
    np.testing.assert_allclose(numpy(ncc(fixed, warped)), expected, atol=1e-5)


@each_shape
@pytest.mark.parametrize(("a", "b"), [(1, 0), (3, 0), (0.1, 5), (200, -70)])
def test_linear_contrast_changes_nothing(shape, a, b):
    fixed, warped = random_pair(shape)
    np.testing.assert_allclose(numpy(ncc(a * fixed + b, fixed)), 1, atol=1e-4)
    np.testing.assert_allclose(numpy(ncc(-a * fixed + b, fixed)), -1, atol=1e-4)
    expected = numpy(ncc(fixed, warped))
    np.testing.assert_allclose(numpy(ncc(fixed, a * warped + b)), expected, atol=1e-3)


@each_shape
def test_is_symmetric(shape):
    fixed, warped = random_pair(shape)
    np.testing.assert_allclose(numpy(ncc(fixed, warped)), numpy(ncc(warped, fixed)), atol=1e-6)


def test_the_loss_is_one_minus_the_similarity():
    fixed, warped = random_pair((9, 12))
    expected = 1 - numpy(ncc(fixed, warped))
    np.testing.assert_allclose(numpy(NCC(reduction=None)(fixed, warped)), expected, atol=1e-6)
    assert float(NCC()(fixed, warped)) == pytest.approx(expected.mean(), abs=1e-6)


@each_shape
@pytest.mark.parametrize("channel_axis", [False, True])
def test_a_mask_leaves_out_the_other_voxels(shape, channel_axis):
    fixed, warped = random_pair(shape, channels=2)
    mask = np.random.default_rng(3).random((2, *shape)) < 0.4
    expected = [
        np.mean([np.corrcoef(f[m][:, c], w[m][:, c])[0, 1] for c in range(2)])
        for f, w, m in zip(fixed, warped, mask, strict=True)
    ]
    weights = mask[..., None] if channel_axis else mask
    np.testing.assert_allclose(numpy(ncc(fixed, warped, weights)), expected, atol=1e-5)
    by_loss = numpy(NCC(reduction=None)(fixed, warped, weights.astype("float32")))
    np.testing.assert_allclose(by_loss, 1 - np.array(expected), atol=1e-5)


def test_a_mask_of_ones_changes_nothing():
    fixed, warped = random_pair((9, 12))
    expected = numpy(ncc(fixed, warped))
    np.testing.assert_allclose(numpy(ncc(fixed, warped, np.ones((2, 9, 12)))), expected, atol=1e-6)


def test_half_precision_images_are_compared_in_float32():
    fixed, warped = random_pair((9, 12))
    found = ncc(ops.cast(fixed, "bfloat16"), ops.cast(warped, "bfloat16"))
    assert backend.standardize_dtype(found.dtype) == "float32"
    np.testing.assert_allclose(numpy(found), numpy(ncc(fixed, warped)), atol=0.01)


@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 5)])
@pytest.mark.parametrize("argument", [0, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_equal_central_differences(shape, argument, masked):
    pair = random_pair(shape, batch=1, channels=2)
    mask = np.random.default_rng(3).random((1, *shape, 1)).astype("float32") if masked else None
    found = gradients(lambda *images: ops.sum(ncc(*images, mask)), *pair)[argument]

    def with_mask(fixed, warped):
        return ncc(fixed, warped, None if mask is None else np.repeat(mask, len(fixed), axis=0))

    expected = central_differences(with_mask, *pair, argument=argument)
    np.testing.assert_allclose(found, expected, atol=5e-4)
    assert np.abs(expected).max() > 0.02


@pytest.mark.parametrize("value", [0.1, 0.7, 1000.1])
def test_large_constant_images_correlate_with_nothing(value):
    constant = np.full((1, 512, 512, 1), value, "float32")
    pattern = np.random.default_rng(0).random((1, 512, 512, 1), "float32")
    assert abs(float(ncc(constant, constant)[0])) < 1e-3
    assert abs(float(ncc(constant, pattern)[0])) < 1e-3


def test_small_units_change_nothing():
    fixed, warped = random_pair((9, 12))
    expected = numpy(ncc(fixed, warped))
    np.testing.assert_allclose(numpy(ncc(1e-9 * fixed, warped)), expected, atol=1e-4)


def test_what_is_masked_may_be_nan():
    fixed, warped = random_pair((9, 12))
    mask = np.ones((2, 9, 12), "float32")
    mask[:, :3] = 0
    expected = numpy(ncc(fixed, warped, mask))
    fixed = np.array(fixed)
    fixed[:, 1] = np.nan
    np.testing.assert_allclose(numpy(ncc(fixed, warped, mask)), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 9, 12, 3), (3, 9, 12), (2, 9, 11)])
def test_masks_that_do_not_fit_are_refused(shape):
    fixed, warped = random_pair((9, 12))
    with pytest.raises(ValueError, match="Expected a mask"):
        ncc(fixed, warped, np.ones(shape, "float32"))
