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
from kreg.ops.linear import change_frame, compose_matrices, invert_matrix
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


def oblique_frame(dimensions, seed):
    """A voxel-to-world matrix as a scanner writes it: turned, anisotropic, origin far away."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0]
    frame = np.eye(dimensions + 1)
    frame[:-1, :-1] = turn * rng.uniform(0.5, 3, dimensions)
    frame[:-1, -1] = rng.uniform(-80, 80, dimensions)
    return frame


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("perspective", [0.0, 0.001])
def test_change_frame_carries_landmarks_through_any_world(dimensions, perspective):
    matrix = random_matrices(dimensions, batch=1, perspective=perspective)
    fixed, moving = (oblique_frame(dimensions, seed) for seed in (1, 2))
    voxels = np.random.default_rng(2).uniform(0, 30, (8, dimensions))
    expected = [
        apply(np.linalg.inv(moving), apply(matrix[0], apply(fixed, point))) for point in voxels
    ]
    found = transform_points(change_frame(matrix, fixed, moving), voxels[None].astype("float32"))
    np.testing.assert_allclose(ops.convert_to_numpy(found)[0], expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_change_frame_by_the_inverses_leads_back(dimensions):
    matrix = random_matrices(dimensions)
    fixed, moving = (oblique_frame(dimensions, seed) for seed in (1, 2))
    voxels = change_frame(matrix, fixed, moving)
    world = change_frame(voxels, np.linalg.inv(fixed), np.linalg.inv(moving))
    np.testing.assert_allclose(ops.convert_to_numpy(world), matrix, rtol=1e-4, atol=1e-3)
    assert np.abs(ops.convert_to_numpy(voxels) - matrix).max() > 1


def test_change_frame_takes_a_frame_for_each_sample():
    matrix = random_matrices(3)
    frames = np.stack([oblique_frame(3, seed) for seed in (1, 2)])
    found = ops.convert_to_numpy(change_frame(matrix, frames, oblique_frame(3, 3)))
    for sample in range(2):
        one = change_frame(matrix[sample : sample + 1], frames[sample], oblique_frame(3, 3))
        np.testing.assert_allclose(found[sample], ops.convert_to_numpy(one)[0], rtol=1e-5)


@pytest.mark.parametrize("perspective", [0.0, 0.05])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_compose_matrices_applies_the_inner_map_first(dimensions, perspective):
    outer = random_matrices(dimensions, batch=3, perspective=perspective)
    inner = np.ascontiguousarray(outer[::-1])
    points = np.random.default_rng(1).normal(size=(3, 6, dimensions)).astype("float32")
    once = transform_points(compose_matrices(outer, inner), points)
    twice = transform_points(outer, transform_points(inner, points))
    once, twice = ops.convert_to_numpy(once), ops.convert_to_numpy(twice)
    np.testing.assert_allclose(once, twice, rtol=1e-4, atol=1e-5)
    swapped = transform_points(compose_matrices(inner, outer), points)
    assert np.abs(ops.convert_to_numpy(swapped) - twice).max() > 0.01


def test_compose_matrices_takes_one_matrix_for_all():
    matrix = random_matrices(2, batch=3)
    for outer, inner in [(matrix, matrix[:1]), (matrix[:1], matrix)]:
        found = ops.convert_to_numpy(compose_matrices(outer, inner))
        np.testing.assert_allclose(found, outer @ inner, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("perspective", [0.0, 0.05])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_invert_matrix_leads_points_back(dimensions, perspective):
    matrix = random_matrices(dimensions, perspective=perspective)
    points = np.random.default_rng(1).normal(size=(2, 6, dimensions)).astype("float32")
    back = transform_points(invert_matrix(matrix), transform_points(matrix, points))
    np.testing.assert_allclose(ops.convert_to_numpy(back), points, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "function",
    [
        invert_matrix,
        lambda matrix: compose_matrices(matrix, matrix),
        lambda matrix: change_frame(matrix, oblique_frame(2, 1), oblique_frame(2, 2)),
    ],
    ids=["invert", "compose", "change_frame"],
)
def test_gradients_of_products_equal_central_differences(function):
    matrix = random_matrices(2, batch=1, perspective=0.05)
    weights = np.random.default_rng(1).normal(size=(3, 3)).astype("float32")

    def energy(matrix):
        return ops.sum(ops.multiply(weights, function(matrix)), axis=(1, 2))

    (found,) = gradients(lambda x: ops.sum(energy(x)), matrix)
    expected = central_differences(energy, matrix)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=2e-2)
    assert np.abs(expected).max() > 0.5


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


@pytest.mark.parametrize(
    "call",
    [
        invert_matrix,
        lambda matrix: compose_matrices(matrix, np.eye(3)[None]),
        lambda matrix: compose_matrices(np.eye(3)[None], matrix),
        lambda matrix: change_frame(matrix, np.eye(3), np.eye(3)),
    ],
    ids=["invert_matrix", "outer", "inner", "change_frame"],
)
@pytest.mark.parametrize("shape", [(1, 2, 3), (1, 5, 5), (3, 3), (1, 1, 3, 3)])
def test_refuses_what_is_homogeneous_in_no_dimension(call, shape):
    with pytest.raises(ValueError, match=r"shape \(batch, 3, 3\) in 2-D or.*Received: shape"):
        call(np.zeros(shape, "float32"))


@pytest.mark.parametrize("shape", [(2, 4, 4), (3, 3, 3)])
def test_refuses_to_compose_what_differs_in_size(shape):
    with pytest.raises(ValueError, match=r"`outer` and `inner` of equal shape.*Received: \(2, 3"):
        compose_matrices(np.zeros((2, 3, 3)), np.zeros(shape))


@pytest.mark.parametrize("shape", [(4, 4), (3,), (3, 3, 3), (2, 3), (1, 1, 3, 3)])
@pytest.mark.parametrize("moving", [False, True])
def test_refuses_frames_that_do_not_fit(shape, moving):
    frames = [np.eye(3), np.zeros(shape)]
    with pytest.raises(ValueError, match=r"frames as large as the matrices.*Received: fixed_frame"):
        change_frame(random_matrices(2), *(frames if moving else frames[::-1]))


def test_refuses_a_singular_frame():
    with pytest.raises(ValueError, match="Singular matrix"):
        change_frame(random_matrices(2), np.eye(3), np.zeros((3, 3)))


def test_refuses_a_spacing_for_other_axes():
    with pytest.raises(ValueError, match=r"one positive spacing for each of the 2 spatial axes"):
        voxel_matrix(np.eye(3)[None], (5, 6), fixed_spacing=(1, 1, 1))


@pytest.mark.parametrize(
    "points", [np.zeros((2, 4, 2)), np.zeros((4, 5, 6, 2)), np.zeros((4, 2)), np.zeros(2)]
)
def test_refuses_points_that_do_not_fit_the_batch(points):
    with pytest.raises(ValueError, match=r"as many sets of points as matrices.*Received: points"):
        transform_points(random_matrices(2, batch=3), points)
