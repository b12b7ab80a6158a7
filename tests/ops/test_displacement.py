import numpy as np
import pytest
from keras import ops
from scipy.linalg import expm

from kreg.ops import (
    compose,
    integrate,
    invert,
    jacobian_determinant,
    nearest_border,
    resize,
    sample_nearest,
    spatial_gradient,
    warp,
)
from tests.fields import SHAPES, affine_field, grid, interior, smooth_field
from tests.gradients import central_differences, gradients

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)

# Matrices that are no rotation, scaling or shear alone; the 2-D one is the 3-D one's corner.
MATRIX = np.array([[0.10, -0.15, 0.05], [0.20, -0.05, 0.10], [-0.05, 0.15, 0.15]])


def random_image(shape, *, batch=2, channels=2):
    rng = np.random.default_rng(0)
    return rng.normal(size=(batch, *shape, channels)).astype("float32")


def centred_affine(matrix, shape):
    """u(x) = A (x - c), c the middle of the image."""
    matrix = np.asarray(matrix)[: len(shape), : len(shape)]
    middle = (np.array(shape) - 1) / 2
    return affine_field(matrix, -matrix @ middle, shape)


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


# --- warp ---


@each_shape
@pytest.mark.parametrize("border", [None, nearest_border])
def test_zero_displacement_is_the_identity(shape, border):
    image = random_image(shape)
    options = {} if border is None else {"border": border}
    found = numpy(warp(image, np.zeros((2, *shape, len(shape)), "float32"), **options))
    np.testing.assert_allclose(found, image, atol=1e-6)


@each_shape
def test_whole_voxels_shift_the_image_and_zeros_follow(shape):
    image = random_image(shape)
    shift = np.arange(1, len(shape) + 1)
    displacement = np.broadcast_to(shift.astype("float32"), (2, *shape, len(shape)))
    expected = np.zeros_like(image)
    kept = tuple(slice(0, n - s) for n, s in zip(shape, shift, strict=True))
    taken = tuple(slice(s, n) for n, s in zip(shape, shift, strict=True))
    expected[(slice(None), *kept)] = image[(slice(None), *taken)]
    np.testing.assert_array_equal(numpy(warp(image, displacement)), expected)


def test_the_result_has_the_size_of_the_displacement():
    image = random_image((9, 12))
    found = numpy(warp(image, np.zeros((2, 4, 20, 2), "float32")))
    np.testing.assert_array_equal(found[:, :, :12], image[:, :4])
    np.testing.assert_array_equal(found[:, :, 12:], np.zeros((2, 4, 8, 2)))


@each_shape
def test_nearest_warp_of_labels_makes_no_new_labels(shape):
    labels = np.random.default_rng(0).integers(0, 5, (1, *shape, 1)).astype("float32")
    found = numpy(warp(labels, smooth_field(shape, 3.0), sampler=sample_nearest))
    assert set(np.unique(found)) <= {0, 1, 2, 3, 4}
    assert not np.array_equal(found, labels)


@pytest.mark.parametrize("shape", [(4, 5), (3, 3, 4)])
def test_gradient_to_the_displacement_equals_central_differences(shape):
    image = random_image(shape, batch=1)
    # A quarter to a third of a voxel off the centres: no cell ends within a step.
    displacement = (0.25 + np.abs(smooth_field(shape, 0.1))).astype("float32")

    def energy(image, displacement):
        warped = warp(image, displacement)
        return ops.sum(ops.square(warped), axis=tuple(range(1, len(image.shape))))

    for argument in (0, 1):
        found = gradients(lambda *x: ops.sum(energy(*x)), image, displacement)[argument]
        expected = central_differences(energy, image, displacement, argument=argument)
        np.testing.assert_allclose(found, expected, atol=2e-2)
        assert np.abs(expected).max() > 1


# --- compose and invert ---


@each_shape
def test_composing_is_warping_twice(shape):
    # On a ramp linear interpolation is exact, so only the law itself is tested.
    ramp = (grid(shape) @ np.arange(1.0, len(shape) + 1))[None, ..., None].astype("float32")
    outer, inner = smooth_field(shape, 0.9, seed=1), smooth_field(shape, 0.9, seed=2)
    once = numpy(warp(ramp, compose(outer, inner)))
    twice = numpy(warp(warp(ramp, outer), inner))
    np.testing.assert_allclose(interior(once, 2), interior(twice, 2), atol=1e-4)
    swapped = numpy(warp(ramp, compose(inner, outer)))
    assert np.abs(interior(swapped, 2) - interior(twice, 2)).max() > 1e-2


@each_shape
def test_composing_affine_fields_multiplies_their_matrices(shape):
    dimensions = len(shape)
    first = MATRIX[:dimensions, :dimensions]
    second = 0.5 * first.T
    found = numpy(compose(centred_affine(first, shape), centred_affine(second, shape)))
    identity = np.eye(dimensions)
    product = (identity + first) @ (identity + second) - identity
    expected = centred_affine(product, shape)
    np.testing.assert_allclose(interior(found, 2), interior(expected, 2), atol=1e-4)


@each_shape
def test_the_zero_field_is_neutral(shape):
    field = smooth_field(shape, 1.5, batch=2)
    zero = np.zeros_like(field)
    np.testing.assert_allclose(numpy(compose(field, zero)), field, atol=1e-6)
    np.testing.assert_array_equal(numpy(compose(zero, field)), field)


@each_shape
def test_inverse_undoes_the_field(shape):
    field = smooth_field(shape, 1.0, batch=2)
    assert np.abs(field).max() > 0.9
    inverse = invert(field)
    np.testing.assert_allclose(numpy(compose(field, inverse)), 0, atol=1e-4)
    # The other way round only as well as linear interpolation represents the inverse.
    np.testing.assert_allclose(interior(numpy(compose(inverse, field)), 2), 0, atol=0.05)


@each_shape
def test_inverse_of_an_affine_field(shape):
    dimensions = len(shape)
    matrix = MATRIX[:dimensions, :dimensions]
    found = numpy(invert(centred_affine(matrix, shape)))
    identity = np.eye(dimensions)
    expected = centred_affine(np.linalg.inv(identity + matrix) - identity, shape)
    np.testing.assert_allclose(interior(found, 2), interior(expected, 2), atol=1e-3)


# --- integrate ---


@each_shape
def test_a_constant_velocity_is_its_own_displacement(shape):
    velocity = np.broadcast_to(
        np.arange(1.0, len(shape) + 1, dtype="float32"), (2, *shape, len(shape))
    )
    np.testing.assert_allclose(numpy(integrate(velocity)), velocity, rtol=1e-5)


@each_shape
def test_a_linear_velocity_field_integrates_to_the_matrix_exponential(shape):
    # Contracting: no path leaves the image, so the solution holds in every voxel.
    dimensions = len(shape)
    matrix = 1.5 * MATRIX[:dimensions, :dimensions] - 0.6 * np.eye(dimensions)
    expected = centred_affine(expm(matrix) - np.eye(dimensions), shape)
    assert np.abs(expected).max() > 1
    few, many = (
        np.abs(numpy(integrate(centred_affine(matrix, shape), steps)) - expected).max()
        for steps in (4, 8)
    )
    # The first step is Euler's: sixteen times as many leave a sixteenth of the error.
    assert many < 0.01
    assert many < few / 8


@each_shape
def test_the_negative_velocity_integrates_to_the_inverse(shape):
    velocity = smooth_field(shape, 1.0, batch=2)
    forward, backward = integrate(velocity), integrate(-velocity)
    for residual in (compose(forward, backward), compose(backward, forward)):
        np.testing.assert_allclose(interior(numpy(residual), 2), 0, atol=0.05)


def test_without_steps_the_velocity_is_the_displacement():
    velocity = smooth_field((9, 12), 1.0)
    np.testing.assert_array_equal(numpy(integrate(velocity, 0)), velocity)


def test_a_large_smooth_velocity_does_not_fold():
    velocity = smooth_field((32, 32), 6.0, sigma=4.0)
    assert numpy(jacobian_determinant(velocity)).min() < 0
    assert numpy(jacobian_determinant(integrate(velocity))).min() > 0


# --- resize ---


@each_shape
def test_resizing_to_the_same_size_changes_nothing(shape):
    field = smooth_field(shape, 2.0)
    np.testing.assert_allclose(numpy(resize(field, shape)), field, atol=1e-6)


@each_shape
@pytest.mark.parametrize("factor", [2.0, 0.5, 1.4])
def test_resizing_an_affine_field_keeps_it_affine_in_new_voxels(shape, factor):
    dimensions = len(shape)
    matrix, shift = MATRIX[:dimensions, :dimensions], np.arange(1.0, dimensions + 1)
    new = tuple(round(factor * n) for n in shape)
    found = numpy(resize(affine_field(matrix, shift, shape), new))
    ratio = np.array(new) / shape
    at = (grid(new) + 0.5) / ratio - 0.5
    expected = ratio * (at @ matrix.T + shift)
    inside = np.all((at >= 0) & (at <= np.array(shape) - 1), axis=-1)
    assert found.shape == (1, *new, dimensions)
    assert inside.sum() >= 2**dimensions
    np.testing.assert_allclose(found[0][inside], expected[inside], atol=1e-4)


def test_a_constant_field_follows_the_voxel_size():
    field = np.ones((2, 8, 10, 2), "float32")
    found = numpy(resize(field, (4, 30)))
    np.testing.assert_allclose(found, np.broadcast_to([0.5, 3.0], (2, 4, 30, 2)), rtol=1e-6)


def test_one_voxel_resizes_to_a_constant():
    found = numpy(resize(np.full((1, 1, 4, 2), 3.0, "float32"), (5, 4)))
    np.testing.assert_allclose(found, np.broadcast_to([15.0, 3.0], (1, 5, 4, 2)))


# --- derivatives ---


@each_shape
def test_spatial_gradient_equals_numpy(shape):
    image = random_image(shape, channels=3)
    found = numpy(spatial_gradient(image))
    axes = tuple(range(1, len(shape) + 1))
    expected = np.stack(np.gradient(image, axis=axes), axis=-1)
    assert found.shape == (2, *shape, 3, len(shape))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 6), (2, 5), (4, 1, 2)])
def test_spatial_gradient_of_short_axes(shape):
    image = random_image(shape)
    found = numpy(spatial_gradient(ops.convert_to_tensor(image)))
    for axis, size in enumerate(shape):
        expected = np.gradient(image, axis=axis + 1) if size > 1 else np.zeros_like(image)
        np.testing.assert_allclose(found[..., axis], expected, atol=1e-6)


@each_shape
def test_jacobian_determinant_equals_numpy(shape):
    field = smooth_field(shape, 6.0, sigma=1.0, batch=2)
    axes = tuple(range(1, len(shape) + 1))
    gradient = np.stack(np.gradient(field.astype("float64"), axis=axes), axis=-1)
    expected = np.linalg.det(gradient + np.eye(len(shape)))
    assert expected.min() < 0 < expected.max()
    np.testing.assert_allclose(numpy(jacobian_determinant(field)), expected, atol=1e-4)


@each_shape
def test_jacobian_determinant_of_an_affine_field_is_that_of_its_matrix(shape):
    dimensions = len(shape)
    matrix = MATRIX[:dimensions, :dimensions]
    found = numpy(jacobian_determinant(affine_field(matrix, 1.0, shape)))
    expected = np.linalg.det(np.eye(dimensions) + matrix)
    np.testing.assert_allclose(found, np.full((1, *shape), expected), atol=1e-4)


@each_shape
def test_jacobian_determinant_is_not_positive_where_the_field_folds(shape):
    mirror = centred_affine(np.diag([-2.0, 0.0, 0.0]), shape)
    collapse = centred_affine(np.diag([-1.0, 0.0, 0.0]), shape)
    np.testing.assert_allclose(numpy(jacobian_determinant(mirror)), -1, atol=1e-5)
    np.testing.assert_allclose(numpy(jacobian_determinant(collapse)), 0, atol=1e-5)
    zero = np.zeros((1, *shape, len(shape)), "float32")
    np.testing.assert_array_equal(numpy(jacobian_determinant(zero)), np.ones((1, *shape)))


# --- what does not fit ---

FIELD = np.zeros((2, 5, 6, 2), "float32")
CHANNELS_FIRST = np.zeros((2, 2, 5, 6), "float32")
IMAGE = np.zeros((2, 5, 6, 1), "float32")


@pytest.mark.parametrize(
    "call",
    [
        lambda field: warp(IMAGE, field),
        lambda field: compose(FIELD, field),
        lambda field: compose(field, FIELD),
        integrate,
        invert,
        lambda field: resize(field, (3, 3)),
        jacobian_determinant,
    ],
    ids=["warp", "inner", "outer", "integrate", "invert", "resize", "jacobian_determinant"],
)
@pytest.mark.parametrize("wrong", [CHANNELS_FIRST, FIELD[0], FIELD[..., :1]], ids=str)
def test_refuses_what_is_no_field(call, wrong):
    with pytest.raises(ValueError, match=r"as many components D.*spatial axes.*Received: shape"):
        call(wrong)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: warp(IMAGE.astype("int32"), FIELD), r"`moving` to hold floating.*dtype int32"),
        (lambda: warp(IMAGE[..., 0], FIELD), r"`moving` of shape.*Received: shape \(2, 5, 6\)"),
        (lambda: warp(IMAGE[..., None], FIELD), r"as many spatial axes as the moving image"),
        (lambda: warp(IMAGE, FIELD[:1]), r"repeat the smaller batch first"),
        (lambda: compose(FIELD, FIELD[:1]), r"repeat the smaller batch first"),
        (lambda: integrate(FIELD, -1), r"`steps` >= 0\. Received: -1"),
        (lambda: resize(FIELD, (3, 3, 3)), r"Expected 2 new sizes.*Received: \(3, 3, 3\)"),
    ],
)
def test_refuses_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
