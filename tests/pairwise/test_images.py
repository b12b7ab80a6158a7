import numpy as np
import pytest
from keras import ops

from kreg.pairwise.images import Image, as_mask, check_spacing, check_weights


@pytest.mark.parametrize(
    ("shape", "single", "batch", "spatial", "channels"),
    [
        ((20, 30), True, 1, (20, 30), 1),
        ((20, 30, 1), True, 1, (20, 30), 1),
        ((20, 30, 3), True, 1, (20, 30), 3),
        ((20, 30, 4), True, 1, (20, 30), 4),
        ((20, 30, 5), True, 1, (20, 30, 5), 1),
        ((2, 20, 30, 3), False, 2, (20, 30), 3),
        ((2, 9, 20, 30, 7), False, 2, (9, 20, 30), 7),
    ],
    ids=str,
)
def test_tells_batch_space_and_channels_apart(shape, single, batch, spatial, channels):
    array = np.random.default_rng(0).normal(size=shape)
    image = Image(array, "fixed")
    assert (image.single, image.batch, image.shape, image.channels) == (
        single,
        batch,
        spatial,
        channels,
    )
    assert image.voxels == np.prod(spatial)
    found = image.read()
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, array.reshape(batch, *spatial, channels), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float16", "float64", "bool"])
def test_takes_every_real_dtype(dtype):
    array = np.random.default_rng(0).integers(0, 2, (8, 9)).astype(dtype)
    np.testing.assert_array_equal(Image(array, "fixed").read()[0, ..., 0], array)


def test_takes_tensors_and_lists():
    array = np.random.default_rng(0).normal(size=(8, 9)).astype("float32")
    for given in (ops.convert_to_tensor(array), array.tolist()):
        np.testing.assert_allclose(Image(given, "fixed").read()[0, ..., 0], array, rtol=1e-6)


class Lazy:
    """An array that is read by slicing only, and counts how much was read at once."""

    def __init__(self, array):
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype
        self.largest = 0

    def __getitem__(self, index):
        part = self._array[index]
        self.largest = max(self.largest, part.size)
        return part


def test_reads_a_part_of_an_array_that_is_not_in_memory():
    array = np.random.default_rng(0).normal(size=(50, 60, 3)).astype("float32")
    lazy = Lazy(array)
    part = Image(lazy, "fixed").read(slice(3, 7), slice(10, 30))
    np.testing.assert_array_equal(part[0], array[3:7, 10:30])
    assert lazy.largest == part.size


@pytest.mark.parametrize("shape", [(11, 14), (2, 11, 14, 3), (7, 9, 10), (2, 9, 2, 6, 1)], ids=str)
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_means_over_blocks_leave_out_the_remainder(shape, factor):
    image = Image(np.random.default_rng(0).normal(size=shape), "fixed")
    whole = image.read()
    sizes = [max(size // factor, 1) for size in image.shape]
    expected = np.empty((image.batch, *sizes, image.channels))
    for index in np.ndindex(*sizes):
        block = tuple(slice(i * factor, (i + 1) * factor) for i in index)
        mean = whole[(slice(None), *block)].mean(axis=tuple(range(1, whole.ndim - 1)))
        expected[(slice(None), *index)] = mean
    np.testing.assert_allclose(image.reduced(factor), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(9), r"`fixed` of shape.*2-D or 3-D.*Received: shape \(9,\)"),
        (np.zeros((1,) * 6), r"2-D or 3-D.*Received: shape \(1, 1, 1, 1, 1, 1\)"),
        (np.zeros((0, 9)), r"not empty.*Received: shape \(0, 9\)"),
        (np.zeros((9, 9), complex), r"real numbers.*Received: dtype complex128"),
        (np.full((9, 9), "a"), r"real numbers.*Received: dtype str"),
        (np.zeros((3, 2)), r"at least 2 voxels.* 4 along.*Received: shape \(3, 2\)"),
    ],
)
def test_refuses_what_is_no_image(array, message):
    with pytest.raises(ValueError, match=message):
        Image(array, "fixed")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_refuses_values_that_are_not_finite_when_they_are_read(value):
    array = np.zeros((8, 9))
    array[2, 3] = value
    image = Image(array, "moving")
    with pytest.raises(ValueError, match=r"`moving` to be finite.*nan_to_num.*mask"):
        image.read()
    assert np.isfinite(image.read(slice(3, 8), slice(0, 9))).all()


# --- masks ---


@pytest.mark.parametrize(
    ("image_shape", "mask_shape"),
    [
        ((20, 30), (20, 30)),
        ((20, 30), (20, 30, 1)),
        ((20, 30, 3), (20, 30)),
        ((9, 20, 30), (9, 20, 30)),
        ((2, 20, 30, 3), (20, 30)),
        ((2, 20, 30, 3), (2, 20, 30)),
        ((2, 20, 30, 3), (2, 20, 30, 1)),
        ((2, 20, 30, 3), (1, 20, 30, 1)),
        ((2, 9, 20, 30, 1), (2, 9, 20, 30)),
        ((2, 9, 20, 30, 1), (2, 9, 20, 30, 1)),
    ],
    ids=str,
)
def test_a_mask_has_the_spatial_shape_of_its_image(image_shape, mask_shape):
    array = np.random.default_rng(0).integers(0, 2, mask_shape)
    image = Image(np.zeros(image_shape), "fixed")
    mask = as_mask(array, image, "fixed_mask")
    expected = array.reshape(mask.batch, *image.shape, 1)
    np.testing.assert_array_equal(mask.read(), expected)


@pytest.mark.parametrize(
    ("image_shape", "mask_shape"),
    [
        ((20, 30), (30, 20)),
        ((20, 30), (20, 30, 2)),
        ((20, 30), (20,)),
        ((9, 20, 30), (20, 30)),
        ((2, 20, 30, 3), (3, 20, 30)),
        ((2, 20, 30, 3), (2, 20, 30, 3)),
    ],
    ids=str,
)
def test_refuses_a_mask_that_does_not_fit(image_shape, mask_shape):
    image = Image(np.zeros(image_shape), "fixed")
    with pytest.raises(ValueError, match=r"`fixed_mask`.*Received: shape"):
        as_mask(np.ones(mask_shape), image, "fixed_mask")


def test_no_mask_is_none():
    assert as_mask(None, Image(np.zeros((8, 9)), "fixed"), "fixed_mask") is None


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([[0, 255]], r"`fixed_mask`.*from 0 to 1.*`fixed_mask > 0`.*Received: 0 to 255"),
        ([[-1, 1]], r"from 0 to 1.*Received: -1 to 1"),
        ([[0, 0]], r"some above 0.*Received: 0 to 0"),
        ([[0, 1], [0, 0]], r"every image.*Received: 0 to 1, at most 0 in one image"),
    ],
)
def test_refuses_weights_that_are_none(weights, message):
    with pytest.raises(ValueError, match=message):
        check_weights(np.array(weights), "fixed_mask")
    check_weights(np.array([[0, 0.5], [1, 0]]), "fixed_mask")


# --- spacings ---


def test_spacing_is_one_unless_given():
    np.testing.assert_array_equal(check_spacing(None, 3, "fixed_spacing"), np.ones(3))
    np.testing.assert_array_equal(check_spacing((2, 0.5), 2, "fixed_spacing"), (2, 0.5))


@pytest.mark.parametrize("spacing", [(1, -1), (1, 0), (1, np.nan), (1, np.inf), (1, 1, 1), 2.0])
def test_refuses_a_spacing_that_is_none(spacing):
    with pytest.raises(ValueError, match=r"`fixed_spacing` to be 2 positive numbers.*Received"):
        check_spacing(spacing, 2, "fixed_spacing")
