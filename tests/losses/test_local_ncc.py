import numpy as np
import pytest
from keras import ops

from kreg.losses import LocalNCC, local_ncc
from tests.fields import SHAPES, random_pair
from tests.gradients import central_differences, gradients

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def slow_local_ncc(fixed, warped, mask, window):
    """The documented equation for one picture, one channel, one window after the other."""
    fixed, warped = (
        (x - np.average(x, weights=mask)) / np.sqrt(np.average(_deviation(x, mask), weights=mask))
        for x in (fixed.astype("float64"), warped.astype("float64"))
    )
    radius = np.broadcast_to(window, fixed.ndim) // 2
    squares = np.zeros(fixed.shape)
    for index in np.ndindex(*fixed.shape):
        near = tuple(slice(max(i - r, 0), i + r + 1) for i, r in zip(index, radius, strict=True))
        f, w, m = fixed[near], warped[near], mask[near]
        if m.sum() == 0:
            continue
        covariance = np.average(f * w, weights=m) - np.average(f, weights=m) * np.average(
            w, weights=m
        )
        variances = [np.average(_deviation(x, m), weights=m) + 1e-3 for x in (f, w)]
        squares[index] = covariance**2 / np.prod(variances)
    return np.average(squares, weights=mask)


def _deviation(x, mask):
    return (x - np.average(x, weights=mask)) ** 2


def oracle(fixed, warped, mask, window):
    return [
        np.mean([slow_local_ncc(f[..., c], w[..., c], m, window) for c in range(f.shape[-1])])
        for f, w, m in zip(fixed, warped, mask, strict=True)
    ]


@each_shape
@pytest.mark.parametrize("window", [3, 5, 9])
def test_equals_a_loop_over_windows(shape, window):
    fixed, warped = random_pair(shape, channels=2)
    expected = oracle(fixed, warped, np.ones((2, *shape)), window)
    assert 0.1 < min(expected) < 0.9
    np.testing.assert_allclose(numpy(local_ncc(fixed, warped, window=window)), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "window"), [((9, 12), (1, 5)), ((6, 7, 8), (3, 1, 5)), ((1, 12), 3)]
)
def test_windows_may_differ_along_the_axes(shape, window):
    fixed, warped = random_pair(shape)
    expected = oracle(fixed, warped, np.ones((2, *shape)), window)
    np.testing.assert_allclose(numpy(local_ncc(fixed, warped, window=window)), expected, atol=1e-4)


@each_shape
@pytest.mark.parametrize("soft", [False, True])
def test_a_mask_weights_the_voxels(shape, soft):
    fixed, warped = random_pair(shape, channels=2)
    mask = np.random.default_rng(3).random((2, *shape))
    mask = mask if soft else (mask < 0.6).astype("float64")
    expected = oracle(fixed, warped, mask, 5)
    np.testing.assert_allclose(numpy(local_ncc(fixed, warped, mask, window=5)), expected, atol=1e-4)


@each_shape
def test_voxels_outside_the_mask_play_no_part(shape):
    fixed, warped = random_pair(shape)
    mask = np.zeros((2, *shape, 1), "float32")
    mask[:, 2:, 1:-2] = 1
    expected = numpy(local_ncc(fixed, warped, mask, window=3))
    other = np.where(mask > 0, warped, 7 * fixed - 3).astype("float32")
    np.testing.assert_allclose(numpy(local_ncc(fixed, other, mask, window=3)), expected, atol=1e-5)


@each_shape
@pytest.mark.parametrize(("a", "b"), [(1, 0), (3, 0), (0.02, 5), (-200, 70)])
def test_linear_contrast_and_its_inversion_change_nothing(shape, a, b):
    fixed, warped = random_pair(shape)
    expected = numpy(local_ncc(fixed, warped, window=5))
    np.testing.assert_allclose(
        numpy(local_ncc(fixed, a * warped + b, window=5)), expected, atol=1e-3
    )


@each_shape
def test_contrast_may_differ_from_row_to_row(shape):
    fixed, _ = random_pair(shape)
    rows = np.linspace(-1, 1, shape[0]).reshape(-1, *(1 for _ in shape)).astype("float32")
    along_rows = (1,) * (len(shape) - 1) + (7,)
    found = numpy(local_ncc(fixed, (2 + rows) * fixed + rows, window=along_rows))
    assert found.min() > 0.97


@each_shape
def test_is_symmetric_and_at_most_one(shape):
    fixed, warped = random_pair(shape)
    forth, back = numpy(local_ncc(fixed, warped)), numpy(local_ncc(warped, fixed))
    np.testing.assert_allclose(forth, back, atol=1e-5)
    same = numpy(local_ncc(fixed, fixed))
    assert forth.max() < same.min()
    assert 0.98 < same.min() <= same.max() <= 1


def test_flat_windows_count_as_unrelated():
    fixed = np.zeros((1, 16, 16, 1), "float32")
    fixed[:, :4] = np.random.default_rng(0).uniform(size=(1, 4, 16, 1))
    share = numpy(local_ncc(fixed, fixed, window=3))
    # Rows 0 to 3 have contrast, row 4 sees some of it in its window.
    assert 4 / 16 < share < 5 / 16 + 1e-3


def test_the_loss_is_one_minus_the_similarity():
    fixed, warped = random_pair((9, 12))
    expected = 1 - numpy(local_ncc(fixed, warped, window=5))
    loss = LocalNCC(window=5, reduction=None)
    np.testing.assert_allclose(numpy(loss(fixed, warped)), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 4)])
@pytest.mark.parametrize("argument", [0, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_the_written_out_gradient_equals_central_differences(shape, argument, masked):
    pair = random_pair(shape, batch=1, channels=2)
    mask = np.random.default_rng(3).random((1, *shape, 1)).astype("float32") if masked else None

    def similarity(fixed, warped):
        batch = fixed.shape[0]
        weights = None if mask is None else np.repeat(mask, batch, axis=0)
        return local_ncc(fixed, warped, weights, window=3, fixed_gradient=True)

    found = gradients(lambda *images: ops.sum(similarity(*images)), *pair)[argument]
    expected = central_differences(similarity, *pair, argument=argument)
    assert np.abs(expected).max() > 0.03
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_fixed_image_gets_a_gradient_only_if_asked_for():
    pair = random_pair((5, 6), batch=1)
    by_default = gradients(LocalNCC(window=3), *pair)
    np.testing.assert_array_equal(by_default[0], np.zeros_like(by_default[0]))
    asked_for = gradients(LocalNCC(window=3, fixed_gradient=True), *pair)
    assert np.abs(asked_for[0]).max() > 0.01
    np.testing.assert_allclose(asked_for[1], by_default[1], atol=1e-6)


@pytest.mark.parametrize("window", [4, 0, -3, (3, 5, 7)])
def test_refuses_a_window_without_a_centre_or_for_other_axes(window):
    with pytest.raises(ValueError, match=r"Expected `window` to be .*Received"):
        local_ncc(*random_pair((9, 12)), window=window)
