import math

import keras
import numpy as np
import pytest
from keras import ops
from scipy import ndimage

from kreg import backend
from kreg.layers import SmoothRefinement
from kreg.layers.smooth_refinement import _basis
from kreg.ops import (
    centred_frame,
    compose_linear,
    matrix_to_displacement,
    nearest_border,
    voxel_matrix,
    warp,
)
from tests.fields import grid, interior
from tests.gradients import gradients

SHAPES = [(32, 27), (18, 21, 16)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)

#: Of the largest displacement: conjugate gradients that end early tell roundings apart.
_ROUNDED = 0.01


def layer(shape, **options):
    """With few control points in 3-D, where there are three axes of them."""
    return SmoothRefinement(**{"correlation": 0.15 * 2 ** (len(shape) - 2), **options})


def texture(shape, batch=2, sigma=1.2, seed=0):
    noise = np.random.default_rng(seed).normal(size=(batch, *shape, 1))
    image = ndimage.gaussian_filter(noise, (0, *(sigma for _ in shape), 0))
    return (image / image.std()).astype("float32")


def identities(shape, batch=2):
    return np.stack([np.eye(len(shape) + 1, dtype="float32")] * batch)


def matrices(shape, batch=2):
    linear = 0.15 * np.random.default_rng(3).normal(size=(batch, len(shape), len(shape) + 1))
    found = identities(shape, batch)
    found[:, :-1] += linear * [*[1.0] * len(shape), 5.0]
    return found.astype("float32")


def true_field(shape, batch=2):
    """A small rotation and shift, and waves."""
    middle = (np.array(shape) - 1) / 2
    at = (grid(shape) - middle) / max(shape)
    fields = []
    for i in range(batch):
        u = np.stack(
            [0.03 * np.roll(at, 1, axis=-1)[..., d] * (-1) ** d for d in range(len(shape))], -1
        )
        wave = [np.sin(4 * at[..., d] + i + d) for d in range(len(shape))]
        fields.append(u + 0.006 * np.stack(wave[::-1], axis=-1) + 0.01)
    return (max(shape) * np.array(fields)).astype("float32")


def pair(shape, **options):
    """Moving images, matrices, and what fixed ones then are: fixed(x) = moving(A (x + u(x)))."""
    moving, matrix, u = texture(shape, **options), matrices(shape), true_field(shape)
    phi = compose_linear(voxel_matrix(matrix, shape), u)
    fixed = ops.convert_to_numpy(warp(moving, phi, border=nearest_border))
    return fixed, moving, matrix, u


def refined(shape, fixed, moving, matrix, **options):
    return ops.convert_to_numpy(layer(shape, **options)(fixed, moving, matrix))


def mean_distance(u, truth, margin=0):
    distance = np.linalg.norm(u - truth, axis=-1, keepdims=True)
    return (interior(distance, margin) if margin else distance).mean()


@each_shape
def test_finds_what_the_matrix_has_left(shape):
    fixed, moving, matrix, truth = pair(shape)
    found = refined(shape, fixed, moving, matrix, steps=4)
    before = mean_distance(0 * truth, truth)
    assert before > 0.3
    assert mean_distance(found, truth) < 0.25 * before
    assert mean_distance(found, truth, margin=4) < 0.15 * before


@each_shape
def test_where_nothing_is_seen_the_linear_part_goes_on(shape):
    """Structure in the middle alone: outside of it, a rotation can be told from no motion."""
    moving = texture(shape)
    middle = (np.array(shape) - 1) / 2
    window = np.exp(-(((grid(shape) - middle) / (0.22 * max(shape))) ** 2).sum(-1))[None, ..., None]
    turn = 0.02 * np.roll(grid(shape) - middle, 1, axis=-1) * (-1.0) ** np.arange(len(shape))
    truth = np.stack([turn] * 2).astype("float32")
    moving = (moving * window).astype("float32")
    fixed = ops.convert_to_numpy(warp(moving, truth, border=nearest_border))
    found = refined(shape, fixed, moving, identities(shape), steps=4)
    far = (window < 0.05)[0, ..., 0]
    error, size = (np.linalg.norm(x, axis=-1)[:, far].mean() for x in (found - truth, truth))
    assert error < 0.5 * size


@pytest.mark.parametrize("voxels", [1, 2])
@each_shape
def test_a_step_solves_the_regularised_least_squares(shape, voxels):
    """By a general solver on the equations of all voxels, at the positions of their cells."""
    shape = tuple(4 * (size // 8) for size in shape)
    fixed, moving = texture(shape), texture(shape, seed=1)
    options = {"deviation": 0.03, "linear": 0.05, "trust": 0.1, "correlation": 0.3 * len(shape) / 2}
    made = SmoothRefinement(1, cells=max(shape) // voxels, iterations=60, **options)
    found = ops.convert_to_numpy(made(fixed, moving, identities(shape)))
    control = made.control_shape(shape)
    count = len(shape) + 1
    amounts = np.r_[[options["linear"]] * count, [options["deviation"]] * math.prod(control)]
    columns = _basis(shape, shape, control, options["correlation"]) * amounts * max(shape)
    cells = tuple(size // voxels for size in shape)
    at = _basis(cells, shape, control, options["correlation"]) * amounts * max(shape)
    at = at.reshape(*cells, -1)
    for axis in range(len(shape)):
        at = np.repeat(at, voxels, axis)
    at = at.reshape(columns.shape)
    for f, m, u in zip(fixed[..., 0], moving[..., 0], found, strict=True):
        f, m = f - f.mean(), m - m.mean()
        alike = (f * m).mean() ** 2 / ((f * f).mean() * (m * m).mean())
        m = m * (f * m).mean() / (m * m).mean()
        gradient = np.stack(np.gradient(f), -1) * alike + np.stack(np.gradient(m), -1)
        gradient = gradient / (1 + alike)
        noise = ((f - m) ** 2).mean() + 1e-4 * (f**2).mean()
        weight = math.sqrt(options["trust"] / noise)
        rows = [weight * gradient[..., d].reshape(-1, 1) * at for d in range(len(shape))]
        design = np.concatenate([np.concatenate(rows, 1), np.eye(len(shape) * len(amounts))])
        right = np.r_[weight * (f - m).ravel(), np.zeros(len(shape) * len(amounts))]
        solution = np.linalg.lstsq(design, right, rcond=None)[0].reshape(len(shape), -1)
        expected = (columns @ solution.T).reshape(*shape, -1)
        assert np.abs(expected).max() > 0.02
        np.testing.assert_allclose(u, expected, atol=2e-3 * np.abs(expected).max())


@each_shape
def test_the_smooth_part_is_drawn_as_it_says(shape):
    """B B^T is the covariance: 1 in a voxel, exp(-d^2 / 2 c^2) a distance d apart."""
    made = layer(shape)
    basis = _basis(shape, shape, made.control_shape(shape), made.correlation)[:, len(shape) + 1 :]
    covariance = basis @ basis.T
    np.testing.assert_allclose(np.diag(covariance), 1, rtol=1e-4)
    at = grid(shape).reshape(-1, len(shape)) / max(shape)
    for place in (0, len(at) // 2 + shape[-1] // 2, len(at) - 1):  # corners, and the middle
        square = ((at - at[place]) ** 2).sum(-1)
        expected = np.exp(-square / (2 * made.correlation**2))
        np.testing.assert_allclose(covariance[place], expected, atol=0.05)


@each_shape
def test_contrast_brightness_and_their_sign_change_nothing(shape):
    fixed, moving, matrix, _ = pair(shape)
    expected = refined(shape, fixed, moving, matrix)
    for scale in (3.0, -0.5):
        found = refined(shape, fixed, scale * moving + 7, matrix)
        np.testing.assert_allclose(found, expected, atol=_ROUNDED * np.abs(expected).max())
    found = refined(shape, 1e-3 * fixed, moving, matrix)
    np.testing.assert_allclose(found, expected, atol=_ROUNDED * np.abs(expected).max())


@each_shape
def test_equal_images_and_empty_ones_stay_where_they_are(shape):
    image, eye = texture(shape), identities(shape)
    np.testing.assert_allclose(refined(shape, image, image, eye), 0, atol=1e-4)
    empty = np.full_like(image, 2)
    for one, other in ((empty, empty), (image, empty), (empty, image)):
        np.testing.assert_allclose(refined(shape, one, other, eye), 0, atol=1e-4)


def test_what_is_not_finite_harms_its_own_sample_alone():
    shape = SHAPES[0]
    fixed, moving, matrix, _ = pair(shape)
    expected = refined(shape, fixed, moving, matrix)
    moving[0, 3, 4] = np.nan
    found = refined(shape, fixed, moving, matrix)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
    assert np.isnan(found[0]).any()


def _turn(matrix, shape):
    return matrix_to_displacement(voxel_matrix(matrix, shape), shape)


def test_what_lies_outside_of_the_moving_image_says_nothing():
    """A shift brings a stripe into the fixed image that the moving one does not hold."""
    shape = (24, 24)
    large = texture((24, 36))
    fixed, moving = large[:, :, 8:32], large[:, :, :24]
    matrix = identities(shape)
    matrix[:, 1, 2] = 8 + 0.4  # u = -0.4 would be right
    expected = refined(shape, fixed, moving, matrix, steps=4)
    np.testing.assert_allclose(expected[:, :, :14, 1], -0.4, atol=0.1)
    changed = fixed.copy()
    changed[:, :, 17:] = texture((24, 7), seed=5)
    found = refined(shape, changed, moving, matrix, steps=4)
    np.testing.assert_allclose(found[:, :, :14], expected[:, :, :14], atol=0.1)
    # Corners of a scene that a turned frame does not hold.
    angle = np.deg2rad(30)
    matrix = identities(shape)
    matrix[:, :2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    scene = texture((48, 48))
    frame = scene[:, 12:36, 12:36]
    turned = ops.convert_to_numpy(warp(scene, _turn(matrix, (48, 48))))[:, 12:36, 12:36]
    np.testing.assert_allclose(refined(shape, turned, frame, matrix, steps=4), 0, atol=5e-3)
    away = identities(shape)
    away[:, 0, 2] = 100.0
    np.testing.assert_allclose(refined(shape, fixed, moving, away), 0, atol=1e-4)


def test_channels_are_one_problem():
    """What one channel shows along one axis and the other along the other is found by both."""
    shape = (24, 24)
    y, x = grid(shape)[..., 0], grid(shape)[..., 1]
    moving = np.stack([np.sin(y / 2), np.cos(x / 2)], axis=-1)[None].astype("float32")
    truth = np.full((1, *shape, 2), (0.4, -0.3), "float32")
    fixed = ops.convert_to_numpy(warp(moving, truth, border=nearest_border))
    found = refined(shape, fixed, moving, identities(shape, 1), steps=4)
    assert mean_distance(found, truth, margin=3) < 0.05
    one = refined(shape, fixed[..., :1], moving[..., :1], identities(shape, 1), steps=4)
    assert np.abs(interior(one, 3)[..., 1]).max() < 0.05


def test_each_channel_has_its_own_contrast_and_noise():
    shape = (24, 24)
    moving = texture(shape)
    truth = np.full((2, *shape, 2), (0.0, -0.5), "float32")
    fixed = ops.convert_to_numpy(warp(moving, truth, border=nearest_border))
    noise = [texture(shape, seed=seed) for seed in (7, 8)]
    for scale in (1, 100):
        images = [
            np.concatenate([x, scale * n], -1) for x, n in zip((fixed, moving), noise, strict=True)
        ]
        found = refined(shape, *images, identities(shape), steps=4)
        np.testing.assert_allclose(interior(found, 3)[..., 1].mean(), -0.5, atol=0.1)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_unit_of_the_images_changes_nothing(scale):
    shape = SHAPES[0]
    fixed, moving, matrix, _ = pair(shape)
    expected = refined(shape, fixed, moving, matrix)
    found = refined(shape, scale * fixed, scale * moving, matrix)
    np.testing.assert_allclose(found, expected, atol=_ROUNDED * np.abs(expected).max())


def test_a_grating_says_nothing_along_its_stripes_and_harms_no_other_sample():
    """As badly conditioned as it gets: in float32 such equations have no solution."""
    if backend.widest_float() != "float64":
        pytest.skip("JAX without jax_enable_x64 solves in float32")
    shape = (256, 256)
    y, x = grid(shape)[..., 0], grid(shape)[..., 1]
    grating = np.sin((y + x) / 3)[None, ..., None]
    good = texture(shape, batch=1, sigma=3)
    image = np.concatenate([good, grating]).astype("float32")
    u = np.full((2, *shape, 2), 0.4, "float32")
    fixed = ops.convert_to_numpy(warp(image, u, border=nearest_border))
    found = refined(shape, fixed, image, identities(shape))
    assert mean_distance(found[:1], u[:1], margin=8) < 0.05
    across = interior(found[1:], 8).sum(-1)
    np.testing.assert_allclose(across, 0.8, atol=0.1)


@pytest.mark.parametrize(("options", "rtol"), [({}, 0.3), ({"iterations": 60}, 0.1)])
def test_gradients_reach_matrix_and_weights_and_not_the_images(options, rtol):
    shape = SHAPES[0]
    fixed, moving, matrix, truth = pair(shape)
    made = layer(shape, steps=2, **options)
    made.build()

    def error(fixed, moving, matrix):
        return ops.mean(ops.square(ops.subtract(made(fixed, moving, matrix), truth)))

    of_fixed, of_moving, of_matrix = gradients(error, fixed, moving, matrix)
    assert not of_fixed.any()
    assert not of_moving.any()
    step = 1e-2
    for index in ((0, 0, 2), (1, 1, 0)):
        values = []
        for sign in (1, -1):
            moved = matrix.copy()
            moved[index] += sign * step / (1 if index[-1] == 2 else 10)
            values.append(float(ops.convert_to_numpy(error(fixed, moving, moved))))
        slope = (values[0] - values[1]) / (2 * step / (1 if index[-1] == 2 else 10))
        np.testing.assert_allclose(of_matrix[index], slope, rtol=rtol, atol=1e-4)


def test_its_weights_are_learned():
    shape = (16, 16)
    fixed, moving, matrix, truth = pair(shape)
    inputs = [keras.Input(x.shape[1:]) for x in (fixed, moving, matrix)]
    model = keras.Model(inputs, layer(shape, trust=1e-3)(*inputs))
    model.compile(keras.optimizers.Adam(0.1), loss="mse")
    start = model.get_weights()[0]
    history = model.fit([fixed, moving, matrix], truth, epochs=8, verbose=0).history["loss"]
    assert history[-1] < 0.2 * history[0]
    assert (np.abs(model.get_weights()[0] - start) > 0.05).all()


def test_an_image_twice_as_fine_is_displaced_by_twice_as_many_voxels():
    """All lengths are shares of the image's side."""
    coarse, fine = (24, 20), (48, 40)
    moving = texture(coarse, sigma=2)
    fixed = ops.convert_to_numpy(warp(moving, true_field(coarse), border=nearest_border))
    large = [
        ndimage.zoom(image, (1, 2, 2, 1), order=3, grid_mode=True, mode="nearest")
        for image in (fixed, moving)
    ]
    small = [image.reshape(2, 24, 2, 20, 2, 1).mean((2, 4)) for image in large]
    found, expected = (
        refined(shape, *images, identities(shape), cells=12, steps=4)
        for shape, images in ((fine, large), (coarse, small))
    )
    found = found.reshape(2, 24, 2, 20, 2, 2).mean((2, 4)) / 2
    assert np.abs(found - expected).mean() < 0.15 * np.abs(expected).mean()


def test_spacing_is_that_of_the_matrix_alone():
    """The same map of voxels, by a matrix of a world with other axes."""
    shape, spacing = (20, 30), (2, 3)
    fixed, moving, matrix, _ = pair(shape)
    expected = refined(shape, fixed, moving, matrix)
    scale = np.diag([*spacing, 1])
    world = (scale @ matrix @ np.linalg.inv(scale)).astype("float32")
    found = refined(shape, fixed, moving, world, spacing=spacing)
    # Conjugate gradients that end early tell one rounding from another.
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_frames():
    """A world matrix, of an image that is no square: by hand."""
    shape = (20, 30)
    moving, u = texture(shape), true_field(shape)
    matrix = matrices(shape)
    frame = centred_frame(shape)
    fixed = []
    for a, m, field in zip(matrix, moving, u, strict=True):
        voxels = np.linalg.inv(frame) @ a @ frame
        at = (grid(shape) + field) @ voxels[:-1, :-1].T + voxels[:-1, -1]
        at = np.moveaxis(np.clip(at, 0, np.array(shape) - 1), -1, 0)
        fixed.append(ndimage.map_coordinates(m[..., 0], at, order=1)[..., None])
    found = refined(shape, np.array(fixed), moving, matrix, steps=4)
    assert mean_distance(found, u, margin=4) < 0.15 * mean_distance(0 * u, u, margin=4)


def test_refuses_what_does_not_fit():
    several = [{"steps": 0}, {"steps": 2.5}, {"cells": 0}, {"iterations": 0}]
    for wrong in (*several, {"trust": -1}, {"trust": np.nan}):
        with pytest.raises(ValueError, match=r"Expected whole `steps`.*`trust`.*Received"):
            SmoothRefinement(**wrong)
    for wrong in (2.0, (2, 0), (1, np.nan)):
        with pytest.raises(ValueError, match=r"Expected `spacing` to be None or"):
            SmoothRefinement(spacing=wrong)
    image, eye = texture((16, 16)), identities((16, 16))
    with pytest.raises(ValueError, match=r"larger one needs fewer. Received: 0.05"):
        SmoothRefinement(correlation=0.05)(image, image, eye)
    with pytest.raises(ValueError, match="larger one needs fewer"):
        SmoothRefinement()(texture((8, 8, 8)), texture((8, 8, 8)), identities((8, 8, 8)))
    with pytest.raises(ValueError, match=r"fixed.*moving"):
        SmoothRefinement()(image, image[:, :12], eye)
    with pytest.raises(ValueError, match="homogeneous matrices"):
        SmoothRefinement()(image, image, eye[:, :2])
    inputs = [keras.Input(shape) for shape in ((16, 16, 1), (16, 12, 1), (3, 3), (2, 3))]
    with pytest.raises(ValueError, match=r"fixed.*moving"):
        SmoothRefinement()(inputs[0], inputs[1], inputs[2])
    with pytest.raises(ValueError, match="homogeneous matrices"):
        SmoothRefinement()(inputs[0], inputs[0], inputs[3])
    with pytest.raises(ValueError, match="known spatial sizes"):
        SmoothRefinement()(
            keras.Input((None, 16, 1)), keras.Input((None, 16, 1)), keras.Input((3, 3))
        )
