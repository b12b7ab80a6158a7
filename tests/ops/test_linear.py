import numpy as np
import pytest
from keras import ops

from kreg.ops import (
    centred_frame,
    identity_grid,
    matrix_to_displacement,
    transform_points,
    voxel_matrix,
)
from tests.fields import SHAPES
from tests.gradients import central_differences, gradients

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def random_matrices(dimensions, *, batch=2, perspective=0.0):
    """Homogeneous matrices near the identity, `perspective` the size of their last row."""
    rng = np.random.default_rng(0)
    matrix = np.eye(dimensions + 1) + rng.normal(0, 0.2, (batch, dimensions + 1, dimensions + 1))
    matrix[:, -1, :-1] *= perspective / 0.2
    matrix[:, -1, -1] = 1
    return matrix.astype("float32")


def apply(matrix, point):
    """The definition, for one matrix and one point."""
    image = np.asarray(matrix, "float64") @ [*point, 1.0]
    return image[:-1] / image[-1]


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("perspective", [0.0, 0.05])
@pytest.mark.parametrize("number", [(5,), (2, 3)])
def test_transform_points_applies_each_matrix_to_its_points(dimensions, perspective, number):
    matrix = random_matrices(dimensions, perspective=perspective)
    points = np.random.default_rng(1).normal(size=(2, *number, dimensions)).astype("float32")
    found = ops.convert_to_numpy(transform_points(matrix, points))
    assert found.shape == points.shape
    for sample in range(2):
        for index in np.ndindex(*number):
            expected = apply(matrix[sample], points[(sample, *index)])
            np.testing.assert_allclose(found[(sample, *index)], expected, rtol=1e-4, atol=1e-5)


def test_one_set_of_points_serves_a_batch_of_matrices():
    matrix = random_matrices(2, batch=3)
    points = np.random.default_rng(1).normal(size=(1, 4, 2)).astype("float32")
    found = ops.convert_to_numpy(transform_points(matrix, points))
    repeated = ops.convert_to_numpy(transform_points(matrix, np.repeat(points, 3, axis=0)))
    assert found.shape == (3, 4, 2)
    np.testing.assert_allclose(found, repeated, rtol=1e-6)


def test_matrices_compose_as_their_maps():
    first, second = random_matrices(3)[:1], random_matrices(3, perspective=0.02)[1:]
    points = np.random.default_rng(1).normal(size=(1, 6, 3)).astype("float32")
    once = ops.convert_to_numpy(transform_points(second @ first, points))
    twice = ops.convert_to_numpy(transform_points(second, transform_points(first, points)))
    np.testing.assert_allclose(once, twice, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("argument", [0, 1])
def test_gradients_equal_central_differences(argument):
    matrix = random_matrices(2, batch=1, perspective=0.05)
    points = np.random.default_rng(1).normal(size=(1, 4, 2)).astype("float32")

    def energy(matrix, points):
        return ops.sum(ops.square(transform_points(matrix, points)), axis=(1, 2))

    found = gradients(lambda *x: ops.sum(energy(*x)), matrix, points)[argument]
    expected = central_differences(energy, matrix, points, argument=argument)
    np.testing.assert_allclose(found, expected, atol=2e-2)
    assert np.abs(expected).max() > 0.5


# Unequal sizes and spacings, along the axes and between the images.
GEOMETRIES = [
    {
        "fixed_shape": (20, 31),
        "moving_shape": (25, 12),
        "fixed_spacing": (2.0, 1.0),
        "moving_spacing": (0.5, 3.0),
    },
    {
        "fixed_shape": (7, 20, 31),
        "moving_shape": (9, 25, 12),
        "fixed_spacing": (4.0, 2.0, 1.0),
        "moving_spacing": (1.0, 0.5, 3.0),
    },
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=["2-D", "3-D"])
@pytest.mark.parametrize("perspective", [0.0, 0.01])
def test_voxel_matrix_carries_landmarks_through_the_world(geometry, perspective):
    dimensions = len(geometry["fixed_shape"])
    matrix = random_matrices(dimensions, batch=1, perspective=perspective)
    world = np.random.default_rng(2).uniform(-5, 5, (8, dimensions))

    def voxels(world, shape, spacing):
        return world / spacing + (np.array(shape) - 1) / 2

    fixed = voxels(world, geometry["fixed_shape"], geometry["fixed_spacing"])
    mapped = np.array([apply(matrix[0], point) for point in world])
    moving = voxels(mapped, geometry["moving_shape"], geometry["moving_spacing"])
    found = transform_points(voxel_matrix(matrix, **geometry), fixed[None].astype("float32"))
    np.testing.assert_allclose(ops.convert_to_numpy(found)[0], moving, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=["2-D", "3-D"])
def test_voxel_matrix_is_the_product_of_its_frames(geometry):
    matrix = random_matrices(len(geometry["fixed_shape"]))
    fixed = centred_frame(geometry["fixed_shape"], geometry["fixed_spacing"])
    moving = centred_frame(geometry["moving_shape"], geometry["moving_spacing"])
    found = ops.convert_to_numpy(voxel_matrix(matrix, **geometry))
    expected = np.linalg.inv(moving) @ matrix @ fixed
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@each_shape
def test_the_identity_maps_each_voxel_to_itself(shape):
    identity = np.eye(len(shape) + 1, dtype="float32")[None]
    found = ops.convert_to_numpy(
        voxel_matrix(
            identity,
            shape,
            fixed_spacing=range(1, 1 + len(shape)),
            moving_spacing=range(1, 1 + len(shape)),
        )
    )
    np.testing.assert_allclose(found, identity, atol=1e-5)
    displacement = matrix_to_displacement(identity, shape)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(displacement), np.zeros((1, *shape, len(shape)))
    )


def test_identity_between_sizes_keeps_the_centres_together():
    identity = np.eye(3, dtype="float32")[None]
    found = transform_points(voxel_matrix(identity, (5, 9), (11, 4)), np.array([[[2.0, 4.0]]]))
    np.testing.assert_allclose(ops.convert_to_numpy(found), [[[5.0, 1.5]]], atol=1e-6)


@each_shape
@pytest.mark.parametrize("perspective", [0.0, 0.01])
def test_matrix_to_displacement_moves_the_grid_as_the_matrix_does(shape, perspective):
    matrix = random_matrices(len(shape), perspective=perspective)
    displacement = ops.convert_to_numpy(matrix_to_displacement(matrix, shape))
    points = ops.convert_to_numpy(identity_grid(shape)) + displacement
    assert displacement.shape == (2, *shape, len(shape))
    for sample in range(2):
        for index in np.ndindex(*shape):
            expected = apply(matrix[sample], index)
            np.testing.assert_allclose(points[(sample, *index)], expected, rtol=1e-4, atol=1e-4)


POINTS = np.zeros((1, 4, 2), "float32")


@pytest.mark.parametrize(
    "call",
    [
        lambda matrix: transform_points(matrix, POINTS),
        lambda matrix: voxel_matrix(matrix, (5, 6)),
        lambda matrix: matrix_to_displacement(matrix, (5, 6)),
    ],
    ids=["transform_points", "voxel_matrix", "matrix_to_displacement"],
)
@pytest.mark.parametrize("shape", [(1, 2, 3), (1, 4, 4), (3, 3), (1, 1, 3, 3)])
def test_refuses_what_is_no_homogeneous_matrix(call, shape):
    with pytest.raises(ValueError, match=r"shape \(batch, 3, 3\).*append the row.*Received: shape"):
        call(np.zeros(shape, "float32"))


def test_refuses_a_spacing_for_other_axes():
    with pytest.raises(ValueError, match=r"one positive spacing for each of the 2 spatial axes"):
        voxel_matrix(np.eye(3)[None], (5, 6), fixed_spacing=(1, 1, 1))


@pytest.mark.parametrize(
    "points", [np.zeros((2, 4, 2)), np.zeros((4, 5, 6, 2)), np.zeros((4, 2)), np.zeros(2)]
)
def test_refuses_points_that_do_not_fit_the_batch(points):
    with pytest.raises(ValueError, match=r"as many sets of points as matrices.*Received: points"):
        transform_points(random_matrices(2, batch=3), points)
