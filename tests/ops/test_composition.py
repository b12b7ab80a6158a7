import numpy as np
import pytest
from keras import ops
from scipy import ndimage

from kreg.ops import compose, matrix_to_displacement, transform_points, warp
from kreg.ops.composition import compose_linear, displace_points
from tests.fields import SHAPES, grid, interior, smooth_field
from tests.gradients import central_differences, gradients

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def random_matrices(dimensions, *, batch=2, perspective=0.0):
    """Maps between voxel indices near the identity."""
    rng = np.random.default_rng(0)
    matrix = np.eye(dimensions + 1) + rng.normal(0, 0.05, (batch, dimensions + 1, dimensions + 1))
    matrix[:, -1, :-1] *= perspective / 0.05
    matrix[:, -1, -1] = 1
    return matrix.astype("float32")


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


# --- compose_linear ---


@each_shape
@pytest.mark.parametrize("perspective", [0.0, 0.005])
def test_maps_each_voxel_by_the_field_and_then_by_the_matrix(shape, perspective):
    matrix = random_matrices(len(shape), perspective=perspective)
    displacement = smooth_field(shape, 2.0, batch=2)
    points = grid(shape) + displacement.astype("float64")
    points = np.concatenate([points, np.ones_like(points[..., :1])], axis=-1)
    mapped = np.einsum("bij,b...j->b...i", matrix, points)
    expected = mapped[..., :-1] / mapped[..., -1:] - grid(shape)
    found = numpy(compose_linear(matrix, displacement))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@each_shape
def test_a_matrix_after_no_displacement_is_its_own_field(shape):
    matrix = random_matrices(len(shape))
    found = numpy(compose_linear(matrix, np.zeros((2, *shape, len(shape)), "float32")))
    np.testing.assert_allclose(found, numpy(matrix_to_displacement(matrix, shape)), atol=1e-5)


@each_shape
def test_the_identity_changes_nothing(shape):
    displacement = smooth_field(shape, 2.0, batch=2)
    identity = np.eye(len(shape) + 1, dtype="float32")[None]
    found = numpy(compose_linear(identity, displacement))
    np.testing.assert_allclose(found, displacement, atol=1e-5)


@each_shape
def test_is_the_composition_of_fields_where_both_are_inside(shape):
    # A linear map is linear between voxels too: composing its field loses nothing.
    matrix = random_matrices(len(shape))
    displacement = smooth_field(shape, 0.9, batch=2)
    found = numpy(compose_linear(matrix, displacement))
    expected = numpy(compose(matrix_to_displacement(matrix, shape), displacement))
    np.testing.assert_allclose(interior(found, 1), interior(expected, 1), atol=1e-4)


def test_warping_once_is_warping_twice():
    shape = (40, 48)
    moving = ndimage.gaussian_filter(np.random.default_rng(2).normal(size=shape), 4)
    moving = (moving / moving.std()).astype("float32")[None, ..., None]
    sine, cosine, middle = np.sin(0.5), np.cos(0.5), (np.array(shape) - 1) / 2
    rotation = np.array([[cosine, -sine], [sine, cosine]])
    matrix = np.eye(3, dtype="float32")[None]
    matrix[0, :2] = np.column_stack([rotation, middle - rotation @ middle])
    displacement = smooth_field(shape, 3.0, sigma=5.0)
    once = numpy(warp(moving, compose_linear(matrix, displacement)))
    aligned = warp(moving, matrix_to_displacement(matrix, shape))
    twice = numpy(warp(aligned, displacement))
    np.testing.assert_allclose(interior(once, 12), interior(twice, 12), atol=0.05)
    swapped = numpy(warp(warp(moving, displacement), matrix_to_displacement(matrix, shape)))
    assert np.abs(interior(once, 12) - interior(swapped, 12)).max() > 0.2


@pytest.mark.parametrize("argument", [0, 1])
def test_gradients_of_compose_linear_equal_central_differences(argument):
    arrays = random_matrices(2, batch=1, perspective=0.005), smooth_field((3, 4), 0.5)

    def energy(matrix, displacement):
        return ops.mean(ops.square(compose_linear(matrix, displacement)), axis=(1, 2, 3))

    found = gradients(lambda *x: ops.sum(energy(*x)), *arrays)[argument]
    expected = central_differences(energy, *arrays, argument=argument, step=1e-3)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3)
    assert np.abs(expected).max() > 0.01


def test_refuses_a_matrix_of_another_dimension_or_batch():
    displacement = np.zeros((2, 9, 12, 2), "float32")
    with pytest.raises(ValueError, match=r"\(batch, 3, 3\).*Received: shape"):
        compose_linear(random_matrices(3), displacement)
    with pytest.raises(ValueError, match=r"as many sets of points as matrices.*Received: points"):
        compose_linear(random_matrices(2, batch=3), displacement)
    with pytest.raises(ValueError, match=r"as many components D.*Received: shape"):
        compose_linear(random_matrices(2), displacement[..., :1])


# --- displace_points ---


@each_shape
@pytest.mark.parametrize("number", [(7,), (2, 3)])
def test_points_move_by_the_field_between_its_voxels(shape, number):
    displacement = smooth_field(shape, 2.0, batch=2)
    rng = np.random.default_rng(1)
    # Some of them outside, where the field goes on as at its border.
    points = rng.uniform(-2, np.array(shape) + 1, (2, *number, len(shape))).astype("float32")
    found = numpy(displace_points(points, displacement))
    for sample in range(2):
        for axis in range(len(shape)):
            shift = ndimage.map_coordinates(
                displacement[sample, ..., axis],
                np.moveaxis(points[sample], -1, 0),
                order=1,
                mode="nearest",
            )
            expected = points[sample, ..., axis] + shift
            np.testing.assert_allclose(found[sample, ..., axis], expected, atol=1e-4)


@each_shape
def test_points_follow_the_matrix_after_the_field(shape):
    matrix, displacement = random_matrices(len(shape)), smooth_field(shape, 2.0, batch=2)
    points = np.repeat(grid(shape).reshape(1, -1, len(shape)), 2, axis=0)
    found = displace_points(points, compose_linear(matrix, displacement))
    expected = transform_points(matrix, displace_points(points, displacement))
    np.testing.assert_allclose(numpy(found), numpy(expected), atol=1e-4)


def test_refuses_points_that_do_not_fit_the_field():
    displacement = np.zeros((2, 9, 12, 2), "float32")
    for wrong in ((2, 5, 3), (5, 2), (3, 5, 2)):
        with pytest.raises(ValueError, match=r"Received: points"):
            displace_points(np.zeros(wrong, "float32"), displacement)
    with pytest.raises(ValueError, match=r"as many components D.*Received: shape"):
        displace_points(np.zeros((2, 5, 2), "float32"), displacement[..., :1])
