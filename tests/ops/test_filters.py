import numpy as np
import pytest
from keras import backend, ops
from scipy import ndimage

from kreg.ops import box_filter, box_sum, gaussian_filter
from tests.gradients import gradients


def random_image(shape, *, batch=2, channels=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, *shape, channels)).astype("float32")


def spatially(function, image):
    """Apply a SciPy filter of one picture to each channel of each image."""
    filtered = [
        [function(one[..., channel].astype("float64")) for channel in range(one.shape[-1])]
        for one in image
    ]
    return np.moveaxis(np.array(filtered), 1, -1)


# Axes of 128 voxels and fewer are filtered by a matrix, longer ones by shifted slices; where the
# kernel is wider than the image its tails are folded back more than once.
@pytest.mark.parametrize(
    ("shape", "sigma"),
    [
        ((20, 31), 1.5),
        ((20, 31), (0.7, 3.0)),
        ((20, 31), (0, 2)),
        ((128, 129), 2.0),
        ((150, 5), (3.0, 4.0)),
        ((130, 6), (40.0, 0.5)),
        ((7, 8, 9), (1.0, 2.0, 0.0)),
        ((3, 140, 2), 1.2),
        ((1, 6), 1.0),
    ],
)
def test_gaussian_filter_equals_scipy(shape, sigma):
    image = random_image(shape)
    expected = spatially(lambda picture: ndimage.gaussian_filter(picture, sigma), image)
    found = ops.convert_to_numpy(gaussian_filter(image, sigma))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_gaussian_filter_truncates_where_told():
    image = random_image((20, 140))
    expected = spatially(lambda picture: ndimage.gaussian_filter(picture, 2, truncate=2), image)
    found = ops.convert_to_numpy(gaussian_filter(image, 2, truncate=2))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("size", [40, 200])
def test_gaussian_filter_keeps_the_dtype(size):
    image = random_image((size, 6))
    found = gaussian_filter(ops.cast(image, "bfloat16"), 1.0)
    assert backend.standardize_dtype(found.dtype) == "bfloat16"
    expected = ops.convert_to_numpy(gaussian_filter(image, 1.0))
    np.testing.assert_allclose(
        ops.convert_to_numpy(ops.cast(found, "float32")), expected, atol=0.05
    )


BOXES = [
    ((8, 11), 3),
    ((8, 11), (1, 5)),
    ((8, 11), 7),
    ((4, 5), 9),  # wider than the image
    ((5, 6, 7), 3),
    ((5, 6, 7), (3, 1, 5)),
    ((1, 9), 3),
]


@pytest.mark.parametrize(("shape", "window"), BOXES)
def test_box_sum_equals_a_convolution_with_ones(shape, window):
    image = random_image(shape)
    ones = np.ones(np.broadcast_to(window, len(shape)))
    expected = spatially(lambda picture: ndimage.convolve(picture, ones, mode="constant"), image)
    found = ops.convert_to_numpy(box_sum(image, window))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(("shape", "window"), BOXES)
def test_box_filter_is_the_mean_of_the_voxels_that_exist(shape, window):
    image = random_image(shape)
    radius = np.broadcast_to(window, len(shape)) // 2
    expected = np.empty_like(image)
    for index in np.ndindex(*shape):
        near = tuple(slice(max(i - r, 0), i + r + 1) for i, r in zip(index, radius, strict=True))
        mean = image[(slice(None), *near)].mean(axis=tuple(range(1, image.ndim - 1)))
        expected[(slice(None), *index)] = mean
    found = ops.convert_to_numpy(box_filter(image, window))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def product(x, y):
    """<x, y>, the sum over all entries."""
    return ops.sum(ops.multiply(x, y))


@pytest.mark.parametrize(("shape", "window"), BOXES)
def test_box_sum_is_its_own_adjoint(shape, window):
    x, y = random_image(shape, seed=0), random_image(shape, seed=1)
    left = float(product(box_sum(x, window), y))
    right = float(product(x, box_sum(y, window)))
    assert abs(left) > 0.1
    assert left == pytest.approx(right, abs=1e-3)
    # Hence the gradient of <B x, y> in x is B y.
    (gradient,) = gradients(lambda x: product(box_sum(x, window), y), x)
    np.testing.assert_allclose(gradient, ops.convert_to_numpy(box_sum(y, window)), atol=1e-4)


def test_box_sum_does_not_drift_along_a_long_axis():
    image = np.full((1, 300, 4, 1), 1e4, "float32")
    image[0, 0] = 1e8  # a cumulative sum would carry its rounding to the far end
    found = ops.convert_to_numpy(box_sum(image, (3, 1)))
    np.testing.assert_array_equal(found[0, 10:-1], np.full((289, 4, 1), 3e4))


IMAGE = np.zeros((1, 6, 7, 1), "float32")


@pytest.mark.parametrize("function", [gaussian_filter, box_sum, box_filter])
@pytest.mark.parametrize(
    ("image", "size", "message"),
    [
        (IMAGE.astype("uint8"), 3, r"`image` to hold floating.*Received: dtype uint8"),
        (IMAGE[0], 3, r"rank 4 in 2-D and 5 in 3-D.*Received: shape \(6, 7, 1\)"),
        (IMAGE, (3, 3, 3), r"one for each of the 2 spatial axes\. Received: \(3, 3, 3\)"),
        (IMAGE[..., None], (3, 3), r"one for each of the 3 spatial axes\. Received: \(3, 3\)"),
        (IMAGE, -1, r"Expected `(sigma` >= 0|window` to be odd).*Received: -1"),
    ],
)
def test_refuses_what_does_not_fit(function, image, size, message):
    with pytest.raises(ValueError, match=message):
        function(image, size)


@pytest.mark.parametrize("function", [box_sum, box_filter])
@pytest.mark.parametrize("window", [2, 0, (3, 4), 2.5])
def test_refuses_windows_without_a_centre(function, window):
    with pytest.raises(ValueError, match=r"`window` to be odd, at least 1 voxel\. Received"):
        function(IMAGE, window)
