import numpy as np
import pytest
from keras import backend, ops
from scipy import ndimage

from kreg.ops.intensity import normalise_locally
from tests.gradients import central_differences, gradients


def numpy(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def shaded_image(shape, *, batch=1, channels=1, seed=0):
    """Texture whose brightness and contrast vary over the image, with an edge across it."""
    rng = np.random.default_rng(seed)

    def picture():
        texture = 5 * ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
        ramp = np.indices(shape).sum(axis=0) / sum(shape)
        return texture * (0.2 + ramp) + 3 * ramp**2 + (np.indices(shape)[-1] > shape[-1] // 3)

    images = [np.stack([picture() for _ in range(channels)], axis=-1) for _ in range(batch)]
    return np.stack(images).astype("float32")


def by_scipy(image, sigma, mask=None, floor=0.02):
    """The definition, for each channel of each image, in float64."""
    expected = np.empty(image.shape)
    for sample, channel in np.ndindex(image.shape[0], image.shape[-1]):
        picture = image[sample, ..., channel].astype("float64")
        valid = np.ones_like(picture) if mask is None else mask[sample].astype("float64")

        def average(x, valid=valid):
            weight = ndimage.gaussian_filter(valid, sigma)
            return ndimage.gaussian_filter(valid * x, sigma) / np.maximum(weight, 1e-12)

        difference = (picture - average(picture)) * (valid > 0)
        deviation = np.sqrt(average(difference**2))
        spread = np.ptp(picture[valid > 0])
        expected[sample, ..., channel] = difference / (deviation + floor * spread)
    return expected


def error(found, expected):
    return np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))


# Below 4 voxels the averages are exact; beyond, they are taken on a coarser grid, up to a
# window that is wider than the image.
@pytest.mark.parametrize(
    ("shape", "sigma", "tolerance"),
    [
        ((40, 51), 2.0, 1e-4),
        ((40, 51), 5.3, 0.01),
        ((130, 97), 16, 0.01),
        ((512, 512), 16, 0.01),
        ((40, 51), 64, 0.02),
        ((24, 30, 27), 3.0, 1e-4),
        ((24, 30, 27), 6.0, 0.015),
        ((1, 60), 6.0, 0.015),
    ],
    ids=str,
)
def test_equals_the_direct_form(shape, sigma, tolerance):
    image = shaded_image(shape)
    assert error(numpy(normalise_locally(image, sigma)), by_scipy(image, sigma)) < tolerance


def test_samples_and_channels_are_normalised_one_by_one():
    image = shaded_image((30, 41), batch=2, channels=3) * np.array([1, 10, 0.1], "float32")
    found = numpy(normalise_locally(image, 6.0, floor=0.1))
    assert error(found, by_scipy(image, 6.0, floor=0.1)) < 0.01


@pytest.mark.parametrize(("a", "b"), [(1, 5), (30, 0), (0.1, -2), (1e-3, 0)])
def test_brightness_and_contrast_change_nothing(a, b):
    image = shaded_image((30, 41))
    expected = numpy(normalise_locally(image, 6.0))
    np.testing.assert_allclose(numpy(normalise_locally(a * image + b, 6.0)), expected, atol=2e-3)


def test_takes_away_shading():
    texture = shaded_image((64, 64), seed=1)
    rows = np.linspace(0, 1, 64, dtype="float32")[:, None, None]
    shaded = texture * (1 + rows) + 5 * rows
    flat, found = (numpy(normalise_locally(x, 6.0, floor=0.0)) for x in (texture, shaded))
    assert np.corrcoef(texture.ravel(), shaded.ravel())[0, 1] < 0.9
    assert np.corrcoef(flat.ravel(), found.ravel())[0, 1] > 0.97


def disc(shape):
    """Ones within a ball, the mask of a fundus image."""
    centred = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    return (np.square(centred).sum(axis=0) < 0.8)[None]


@pytest.mark.parametrize(("shape", "sigma"), [((70, 81), 8.0), ((20, 24, 22), 3.0)], ids=str)
@pytest.mark.parametrize("outside", [0.0, 1e6, np.nan])
def test_what_is_masked_has_no_say_and_becomes_zero(shape, sigma, outside):
    image, mask = shaded_image(shape, channels=2), disc(shape)
    expected = by_scipy(image, sigma, mask)
    image[~mask] = outside
    for form in (mask, mask[..., None], mask.astype("float32")):
        found = numpy(normalise_locally(image, sigma, form))
        assert error(found, expected) < 0.015
        np.testing.assert_array_equal(found[~mask], 0)


def test_a_mask_of_ones_changes_nothing():
    image = shaded_image((30, 41), channels=2)
    found = numpy(normalise_locally(image, 6.0, np.ones((1, 30, 41))))
    np.testing.assert_allclose(found, numpy(normalise_locally(image, 6.0)), atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0, -1e3])
@pytest.mark.parametrize("mask", [None, np.ones((1, 9, 12)), np.zeros((1, 9, 12))])
def test_a_constant_image_becomes_zero_with_a_finite_gradient(value, mask):
    image = np.full((1, 9, 12, 2), value, "float32")
    np.testing.assert_array_equal(numpy(normalise_locally(image, 5.0, mask)), 0)
    weight = np.random.default_rng(0).normal(size=image.shape).astype("float32")
    (gradient,) = gradients(
        lambda x: ops.sum(ops.multiply(weight, normalise_locally(x, 5.0, mask))), image
    )
    assert np.isfinite(gradient).all()


def test_nothing_valid_is_zero_with_a_finite_gradient():
    image, mask = shaded_image((9, 12)), np.zeros((1, 9, 12), "float32")
    np.testing.assert_array_equal(numpy(normalise_locally(image, 5.0, mask)), 0)
    (gradient,) = gradients(lambda x: ops.sum(normalise_locally(x, 5.0, mask)), image)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("sigma", [1.5, 4.5])
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_equals_central_differences(sigma, masked):
    image = shaded_image((6, 9))
    weight = np.random.default_rng(1).normal(size=image.shape).astype("float32")
    mask = np.random.default_rng(2).uniform(size=(1, 6, 9)) < 0.7 if masked else None

    def energy(image):
        valid = None if mask is None else np.repeat(mask, image.shape[0], axis=0)
        return ops.sum(ops.multiply(weight, normalise_locally(image, sigma, valid)), axis=(1, 2, 3))

    (found,) = gradients(lambda x: ops.sum(energy(x)), image)
    expected = central_differences(energy, image, step=3e-3)
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
    assert np.abs(expected).max() > 0.5


def test_half_precision_is_kept_and_averaged_in_float32():
    image = shaded_image((40, 51))
    found = normalise_locally(ops.cast(image, "bfloat16"), 6.0)
    assert backend.standardize_dtype(found.dtype) == "bfloat16"
    assert error(numpy(found), by_scipy(image, 6.0)) < 0.05


IMAGE = np.zeros((2, 6, 7, 1), "float32")


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (IMAGE.astype("uint8"), {}, r"`image` to hold floating.*Received: dtype uint8"),
        (IMAGE[0], {}, r"rank 4 in 2-D and 5 in 3-D.*Received: shape \(6, 7, 1\)"),
        (IMAGE, {"sigma": 0}, r"Expected `sigma` > 0 voxels\. Received: 0"),
        (IMAGE, {"floor": -1}, r"Expected `floor` >= 0\. Received: -1"),
        (IMAGE, {"mask": np.ones((2, 6, 8))}, r"mask of shape.*Received: mask \(2, 6, 8, 1\)"),
        (IMAGE, {"mask": np.ones((6, 7))}, r"mask of shape.*Received: mask \(6, 7\)"),
    ],
)
def test_refuses_what_does_not_fit(image, options, message):
    with pytest.raises(ValueError, match=message):
        normalise_locally(image, **{"sigma": 3.0, **options})
