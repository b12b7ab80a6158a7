import numpy as np
import pytest
from keras import backend, ops
from scipy import ndimage

from kreg.ops import centred_frame, matrix_to_displacement, voxel_matrix, warp
from kreg.ops.pyramid import downsample, gaussian_pyramid, pyramid_frames
from tests.fields import interior
from tests.gradients import gradients


def random_image(shape, *, batch=2, channels=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, *shape, channels)).astype("float32")


def numpy(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def densely(image, sigma, truncate):
    """The definition in float64: every sample is a weighted sum of the mirrored image."""
    result = image.astype("float64")
    for axis, size in enumerate(image.shape[1:-1], 1):
        if size == 1:
            continue
        margin = int(truncate * sigma) + 2
        pad = [(0, 0)] * image.ndim
        pad[axis] = (margin, margin)
        at = np.arange(0, size, 2) + (0.5 if size % 2 == 0 else 0.0)
        offset = np.arange(-margin, size + margin) - at[:, None]
        weights = np.exp(-0.5 * (offset / sigma) ** 2) * (abs(offset) <= truncate * sigma + 0.5)
        weights /= weights.sum(axis=1, keepdims=True)
        mirrored = np.pad(result, pad, mode="symmetric")
        result = np.moveaxis(np.tensordot(weights, mirrored, (1, axis)), 0, axis)
    return result


# Axes of 512 voxels and fewer are halved by a matrix, longer ones by slices; where the kernel is
# wider than the image its tails are folded back more than once.
SIZES = [(20, 31), (1, 6), (2, 3), (7, 8, 9), (513, 4), (3, 514), (514, 515), (1, 514, 3)]


@pytest.mark.parametrize(
    ("shape", "sigma", "truncate"),
    [
        *((shape, 1.0, 3.0) for shape in SIZES),
        ((20, 31), 0.6, 4.0),
        ((514, 515), 0.6, 4.0),
        ((2, 3), 4.1, 2.0),
        ((514, 515), 4.1, 2.0),
    ],
    ids=str,
)
def test_downsample_is_the_sum_that_defines_it(shape, sigma, truncate):
    image = random_image(shape)
    found = numpy(downsample(image, sigma=sigma, truncate=truncate))
    assert found.shape == (2, *((size + 1) // 2 for size in shape), 2)
    np.testing.assert_allclose(found, densely(image, sigma, truncate), atol=1e-5)


@pytest.mark.parametrize("shape", [(21, 33), (7, 5, 9), (515, 3)], ids=str)
def test_odd_sizes_are_every_second_sample_of_scipys_filter(shape):
    image = random_image(shape, batch=1, channels=1)
    filtered = ndimage.gaussian_filter(image[0, ..., 0].astype("float64"), 1.0, truncate=3.0)
    expected = filtered[(slice(None, None, 2),) * len(shape)]
    np.testing.assert_allclose(numpy(downsample(image))[0, ..., 0], expected, atol=1e-5)


@pytest.mark.parametrize("size", [6, 7, 600, 601])
def test_the_narrowest_low_pass_is_sampling_itself(size):
    image = random_image((size, 1))
    found = numpy(downsample(image, sigma=1e-3))
    expected = image[:, ::2] if size % 2 else (image[:, ::2] + image[:, 1::2]) / 2
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_a_constant_stays_what_it_is_up_to_the_edges(shape):
    image = np.full((1, *shape, 1), 7.0, "float32")
    for level in gaussian_pyramid(image, 2 if max(shape) > 2 else 1):
        np.testing.assert_allclose(numpy(level), 7.0, rtol=1e-5)


@pytest.mark.parametrize("shape", [(32, 34), (33, 35), (32, 33), (12, 13, 15), (520, 521)], ids=str)
def test_the_finest_chequerboard_vanishes(shape):
    board = (-1.0) ** np.indices(shape).sum(axis=0)
    found = numpy(downsample(board[None, ..., None].astype("float32")))
    # On an odd axis mirroring breaks the pattern at the edges.
    assert np.abs(interior(found, 2)).max() < 1e-3


@pytest.mark.parametrize("size", [40, 600])
def test_half_precision_is_kept_and_loses_no_brightness(size):
    image = ops.ones((1, size, 6, 1), "bfloat16")
    for level in gaussian_pyramid(image, 5):
        assert backend.standardize_dtype(level.dtype) == "bfloat16"
        np.testing.assert_array_equal(numpy(level), 1.0)


@pytest.mark.parametrize("shape", [(7, 8), (5, 4, 6), (514, 3)], ids=str)
def test_the_gradient_is_the_adjoint(shape):
    image, change = random_image(shape, seed=0), random_image(shape, seed=1)
    weight = random_image([(size + 1) // 2 for size in shape], seed=2)
    (gradient,) = gradients(lambda x: ops.sum(ops.multiply(downsample(x), weight)), image)
    expected = (densely(change, 1.0, 3.0) * weight).sum()
    assert np.abs(expected) > 0.1
    assert np.sum(gradient * change) == pytest.approx(expected, abs=1e-3)


def test_the_pyramid_is_downsampled_level_by_level():
    image = random_image((20, 31))
    levels = gaussian_pyramid(image, 4, sigma=0.8)
    assert [level.shape[1:-1] for level in levels] == [(20, 31), (10, 16), (5, 8), (3, 4)]
    np.testing.assert_array_equal(numpy(levels[0]), image)
    expected = image
    for level in levels:
        np.testing.assert_allclose(numpy(level), expected, atol=1e-5)
        expected = densely(expected, 0.8, 3.0)


def test_frames_double_the_spacing_of_what_is_halved():
    frames = pyramid_frames((3, 20, 1), 4, (4.0, 0.5, 7.0))
    assert frames == [
        ((3, 20, 1), (4.0, 0.5, 7.0)),
        ((2, 10, 1), (8.0, 1.0, 7.0)),
        ((1, 5, 1), (16.0, 2.0, 7.0)),
        ((1, 3, 1), (16.0, 4.0, 7.0)),
    ]
    assert pyramid_frames((8, 9), 2) == [((8, 9), (1.0, 1.0)), ((4, 5), (2.0, 2.0))]


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((32, 33), (1.0, 1.0)),
        ((33, 32), (2.0, 0.5)),
        ((34, 35), (1.0, 3.0)),
        ((32, 33, 35), (1.0, 2.0, 0.5)),
        ((36, 1, 33), (1.0, 4.0, 1.0)),
    ],
    ids=str,
)
def test_each_level_lies_where_its_frame_says(shape, spacing):
    # The centre of mass of a blob, in world units, must be the same at every level.
    at = np.array(
        [(size - 1) / 2 + 1.3 - axis if size > 1 else 0 for axis, size in enumerate(shape)]
    )
    distance = np.moveaxis(np.indices(shape), 0, -1) - at
    blob = np.exp(-0.5 * (distance**2).sum(axis=-1) / 2.2**2)[None, ..., None].astype("float32")
    world = (centred_frame(shape, spacing) @ [*at, 1])[:-1]
    grids = pyramid_frames(shape, 3, spacing)
    for level, (size, step) in zip(gaussian_pyramid(blob, 3), grids, strict=True):
        mass = ndimage.center_of_mass(numpy(level)[0, ..., 0].astype("float64"))
        found = (centred_frame(size, step).astype("float64") @ [*mass, 1])[:-1]
        np.testing.assert_allclose((found - world) / step, 0, atol=1e-3)


def landscape(points):
    """A sum of long waves: where levels are 4 voxels apart, interpolation loses 3e-4 of it."""
    phase = np.arange(1, 1 + points.shape[-1])
    return np.cos(0.012 * points).prod(axis=-1) / 2 + np.sin(0.007 * points @ phase + 0.4) / 2


def warped_by(matrix, moving, fixed_grid, moving_grid):
    """`moving` warped by a world matrix; a grid is a shape and a spacing."""
    (fixed_shape, fixed_spacing), (moving_shape, moving_spacing) = fixed_grid, moving_grid
    voxels = voxel_matrix(
        matrix[None],
        fixed_shape,
        moving_shape,
        fixed_spacing=fixed_spacing,
        moving_spacing=moving_spacing,
    )
    return numpy(warp(moving, matrix_to_displacement(voxels, fixed_shape)))


@pytest.mark.parametrize(
    ("fixed_shape", "moving_shape"),
    [((56, 57), (84, 83)), ((55, 58), (85, 90)), ((33, 34, 35), (57, 56, 62))],
    ids=str,
)
def test_one_world_matrix_aligns_every_level(fixed_shape, moving_shape):
    dimensions = len(fixed_shape)
    matrix = np.eye(dimensions + 1)
    rng = np.random.default_rng(0)
    matrix[:-1] += 0.08 * rng.uniform(-1, 1, (dimensions, dimensions + 1))
    matrix[:-1, -1] *= 50  # world units

    def rendered(shape, transform):
        frame = transform @ centred_frame(shape).astype("float64")
        points = np.moveaxis(np.indices(shape), 0, -1) @ frame[:-1, :-1].T + frame[:-1, -1]
        return landscape(points)[None, ..., None].astype("float32")

    fixed = rendered(fixed_shape, np.eye(dimensions + 1))
    moving = rendered(moving_shape, np.linalg.inv(matrix))
    levels = zip(
        gaussian_pyramid(fixed, 3),
        gaussian_pyramid(moving, 3),
        pyramid_frames(fixed_shape, 3),
        pyramid_frames(moving_shape, 3),
        strict=True,
    )
    for fixed_level, moving_level, *grids in levels:
        expected = interior(numpy(fixed_level), 3)
        warped = warped_by(matrix, moving_level, *grids)
        np.testing.assert_allclose(interior(warped, 3), expected, atol=1e-3)
        unmoved = warped_by(np.eye(dimensions + 1), moving_level, *grids)
        assert np.abs(interior(unmoved, 3) - expected).max() > 1e-2


IMAGE = np.zeros((1, 6, 7, 1), "float32")


@pytest.mark.parametrize("function", [downsample, lambda x, **o: gaussian_pyramid(x, 2, **o)])
@pytest.mark.parametrize(
    ("image", "sigma", "message"),
    [
        (IMAGE.astype("uint8"), 1.0, r"`image` to hold floating.*Received: dtype uint8"),
        (IMAGE[0], 1.0, r"rank 4 in 2-D and 5 in 3-D.*Received: shape \(6, 7, 1\)"),
        (IMAGE, 0.0, r"Expected `sigma` > 0 voxels\. Received: 0\.0"),
        (IMAGE, -1.0, r"Expected `sigma` > 0 voxels\. Received: -1\.0"),
    ],
)
def test_refuses_what_does_not_fit(function, image, sigma, message):
    with pytest.raises(ValueError, match=message):
        function(image, sigma=sigma)


@pytest.mark.parametrize(
    ("shape", "most"),
    [((6, 7), 3), ((8, 9), 4), ((1, 8), 3), ((2, 2), 1), ((3, 1, 2), 2), ((1, 1), 1)],
    ids=str,
)
def test_refuses_more_levels_than_there_are_voxels(shape, most):
    image = np.zeros((1, *shape, 1), "float32")
    assert max(gaussian_pyramid(image, most)[-1].shape[1:-1]) == 2 or max(shape) == 1
    message = rf"at most {most} levels.*ask for fewer\. Received: levels={most + 1}"
    with pytest.raises(ValueError, match=message):
        gaussian_pyramid(image, most + 1)
    with pytest.raises(ValueError, match=message):
        pyramid_frames(shape, most + 1)


@pytest.mark.parametrize("levels", [0, -2])
def test_refuses_a_pyramid_without_levels(levels):
    message = rf"Expected `levels` >= 1, the image itself included\. Received: {levels}"
    with pytest.raises(ValueError, match=message):
        gaussian_pyramid(IMAGE, levels)
    with pytest.raises(ValueError, match=message):
        pyramid_frames((6, 7), levels)


def test_refuses_a_spacing_for_other_axes():
    with pytest.raises(ValueError, match=r"one positive spacing for each of the 2 spatial axes"):
        pyramid_frames((6, 7), 2, (1.0, 1.0, 1.0))
