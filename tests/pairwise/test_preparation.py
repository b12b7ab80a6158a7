import numpy as np
import pytest
from scipy import ndimage

from kreg.ops import gaussian_pyramid, normalise_locally
from kreg.pairwise import (
    Channels,
    EdgeStrength,
    LocalNormalisation,
    Preparation,
    Standardisation,
    field_of_view,
)
from kreg.pairwise.preparation import mask_levels
from tests.fields import SHAPES

PREPARATIONS = [LocalNormalisation(), Standardisation(), EdgeStrength()]
each_preparation = pytest.mark.parametrize(
    "preparation", PREPARATIONS, ids=lambda x: type(x).__name__
)


def textures(shape, *, batch=1, channels=1, seed=0):
    noise = np.random.default_rng(seed).normal(size=(batch, *shape, channels))
    blur = (0, *(1.5 for _ in shape), 0)
    return ndimage.gaussian_filter(noise, blur).astype("float32")


@each_preparation
@pytest.mark.parametrize("shape", [(130, 97), (40, 34, 37)], ids=str)
def test_levels_are_those_of_the_pyramid_with_values_within_one(preparation, shape):
    image = textures(shape, batch=2, channels=2)
    levels = preparation.levels(image, None, 4)
    expected = [tuple(level.shape) for level in gaussian_pyramid(image, 4)]
    assert [level.shape for level in levels] == expected
    for level in levels:
        assert level.dtype == "float32"
        assert np.abs(level).max(axis=tuple(range(1, level.ndim - 1))).min() == 1


@each_preparation
def test_the_quantile_fills_the_range(preparation):
    (level,) = preparation.levels(textures((90, 80)), None, 1)
    assert np.mean(np.abs(level) >= 1) == pytest.approx(0.005, abs=0.002)
    wider = type(preparation)(quantile=0.9).levels(textures((90, 80)), None, 1)[0]
    assert np.mean(np.abs(wider) >= 1) == pytest.approx(0.1, abs=0.01)


@each_preparation
@pytest.mark.parametrize(("gain", "offset"), [(3.0, 10.0), (0.01, -1.0), (200.0, 0.0)])
def test_gain_and_offset_change_nothing(preparation, gain, offset):
    image = textures((130, 97))
    expected = preparation.levels(image, None, 3)
    for one, other in zip(
        expected, preparation.levels(gain * image + offset, None, 3), strict=True
    ):
        np.testing.assert_allclose(other, one, atol=2e-3)


@each_preparation
def test_an_inverted_image_gives_inverted_values_and_the_same_edges(preparation):
    image = textures((130, 97))
    sign = 1 if isinstance(preparation, EdgeStrength) else -1
    for one, other in zip(
        preparation.levels(image, None, 3), preparation.levels(1 - image, None, 3), strict=True
    ):
        np.testing.assert_allclose(other, sign * one, atol=2e-3)


@each_preparation
def test_a_constant_image_is_constant(preparation):
    finest, *_ = preparation.levels(np.full((1, 130, 97, 1), 0.3, "float32"), None, 3)
    assert np.ptp(finest) == 0


@each_preparation
def test_samples_and_channels_do_not_meet(preparation):
    image = textures((130, 97), batch=2, channels=2)
    image[1, ..., 1] *= 50
    together = preparation.levels(image, None, 3)
    alone = preparation.levels(image[1:, ..., :1], None, 3)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one[1:, ..., :1], other, atol=1e-5)


def test_local_normalisation_removes_shading():
    image = textures((128, 128))
    shade = 3 + np.linspace(-2, 2, 128, dtype="float32")[:, None, None]
    found, expected = (
        LocalNormalisation().levels(x, None, 1)[0] for x in (shade * image + 10 * shade, image)
    )
    inner = (slice(None), slice(20, -20), slice(20, -20))
    assert np.corrcoef(found[inner].ravel(), expected[inner].ravel())[0, 1] > 0.9
    plain, shaded = (Standardisation().levels(x, None, 1)[0] for x in (image, image + 10 * shade))
    assert abs(np.corrcoef(plain.ravel(), shaded.ravel())[0, 1]) < 0.2


def test_the_window_is_a_share_of_the_longest_side():
    image = textures((128, 64))
    preparation = LocalNormalisation(width=1 / 16, floor=0.05)
    expected = np.asarray(normalise_locally(image, 8.0, floor=0.05))
    np.testing.assert_allclose(preparation.normalise(image, None, 128), expected, atol=1e-6)


# --- masks ---


@each_preparation
@pytest.mark.parametrize("garbage", [0.0, 1e4])
def test_what_is_masked_does_not_reach_the_rest(preparation, garbage):
    """Nor by way of the pyramid: far from the mask's edge all levels stay as they are."""
    image = textures((260, 200))
    mask = np.ones((1, 260, 200, 1), "float32")
    mask[:, :, :60] = 0
    spoiled = np.where(mask > 0, image, garbage).astype("float32")
    expected = preparation.levels(image, mask, 3)
    for k, (one, other) in enumerate(
        zip(expected, preparation.levels(spoiled, mask, 3), strict=True)
    ):
        beyond = -(-64 // 2**k) + 8
        np.testing.assert_allclose(other[:, :, beyond:], one[:, :, beyond:], atol=0.05)


@each_preparation
def test_a_thin_mask_is_still_a_mask_on_coarse_levels(preparation):
    image = textures((260, 200))
    mask = np.zeros((1, 260, 200, 1), "float32")
    mask[:, 100:102] = 1
    for level in preparation.levels(image, mask, 3):
        assert np.isfinite(level).all()
        assert np.abs(level).max() <= 1


def test_masks_have_levels_too():
    assert mask_levels(None, 3) == [None, None, None]
    mask = (textures((33, 40)) > 0).astype("float32")
    for found, expected in zip(mask_levels(mask, 3), gaussian_pyramid(mask, 3), strict=True):
        largest = np.asarray(expected).max(axis=(1, 2), keepdims=True)
        np.testing.assert_allclose(found, np.asarray(expected) / largest, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_standardisation_centres_within_the_mask(shape):
    image = textures(shape) + 5
    mask = np.zeros_like(image)
    mask[:, :5] = 1
    found = Standardisation().normalise(image, mask, max(shape))
    np.testing.assert_allclose(found[:, :5], image[:, :5] - image[:, :5].mean(), atol=1e-5)
    np.testing.assert_array_equal(found[:, 5:], 0)


def test_a_preparation_must_say_how():
    with pytest.raises(NotImplementedError, match="Preparation must define normalise"):
        Preparation().levels(textures((20, 30)), None, 1)


# --- edges, several at once, the field of view ---


def test_edges_are_where_the_slope_is():
    """A bright disc: a ring, whatever the contrast."""
    rows, columns = np.indices((96, 96)) - 47.5
    disc = (np.hypot(rows, columns) < 25).astype("float32")[None, ..., None]
    (level,) = EdgeStrength().levels(disc, None, 1)
    ring = np.abs(np.hypot(rows, columns) - 25) < 1.5
    assert level[0, ..., 0][ring].min() > level[0, ..., 0][~ring].mean() + 0.5
    (inverted,) = EdgeStrength().levels(3 - 2 * disc, None, 1)
    np.testing.assert_allclose(inverted, level, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_several_preparations_lie_side_by_side(shape):
    image = textures(shape, batch=2)
    parts = EdgeStrength(), Standardisation()
    found = Channels(parts).levels(image, None, 1)[0]
    expected = np.concatenate([part.levels(image, None, 1)[0] for part in parts], axis=-1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("channels", [(), (3,)], ids=str)
def test_the_field_of_view_leaves_out_the_dark_surround_alone(channels):
    rows, columns = np.indices((120, 150)) - np.array([59.5, 74.5])[:, None, None]
    radius = np.hypot(rows, columns)
    image = np.where(radius < 50, 0.5 + 0.1 * np.sin(columns / 5), 0.01)
    image[np.hypot(rows - 10, columns) < 8] = 0  # dark, but within the view
    view = field_of_view(image[(..., *(None,) * len(channels))] * np.ones(channels))
    assert view.shape == (120, 150)
    assert view.dtype == "float32"
    np.testing.assert_array_equal(view[radius < 46], 1)
    np.testing.assert_array_equal(view[radius > 50], 0)


def test_without_a_surround_all_is_in_view():
    image = np.random.default_rng(0).uniform(0.5, 1, (60, 70))
    image[20:40, 30:50] = 0
    np.testing.assert_array_equal(field_of_view(image), 1)
