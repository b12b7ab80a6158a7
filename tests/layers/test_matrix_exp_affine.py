from itertools import pairwise

import keras
import numpy as np
import pytest
from keras import backend, ops
from scipy.linalg import expm

from kreg.groups import Affine, Homography, Rigid, Similarity, Translation
from kreg.layers.matrix_exp_affine import MatrixExpAffine
from kreg.layers.spatial_transformer import SpatialTransformer
from kreg.ops import centred_frame, nearest_border, transform_points, voxel_matrix
from kreg.ops.linear import compose_matrices, invert_matrix
from tests.gradients import central_differences, gradients

GROUPS = {
    2: [Translation(), Rigid(), Similarity(), Affine(), Homography()],
    3: [Translation(), Rigid(), Similarity(), Affine()],
}

everywhere = pytest.mark.parametrize(
    ("group", "dimensions"), [(group, d) for d in GROUPS for group in GROUPS[d]], ids=str
)
each_dimension = pytest.mark.parametrize("dimensions", [2, 3])


def coefficients(group, dimensions, *, batch=2, size=0.4):
    rng = np.random.default_rng(0)
    return rng.normal(0, size, (batch, group.size(dimensions))).astype("float32")


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


@everywhere
@pytest.mark.parametrize("scale", [1.0, 12.5])
def test_equals_its_definition(group, dimensions, scale):
    values = coefficients(group, dimensions)
    found = numpy(MatrixExpAffine(group, scale=scale)(values))
    lengths = np.diag([scale] * dimensions + [1.0])
    for matrix, row in zip(found, values, strict=True):
        exponent = np.tensordot(row.astype("float64"), group.generators(dimensions), 1)
        expected = lengths @ expm(exponent) @ np.linalg.inv(lengths)
        np.testing.assert_allclose(matrix, expected, rtol=1e-5, atol=1e-6 * scale)


@everywhere
def test_zero_is_exactly_the_identity(group, dimensions):
    zero = np.zeros((3, group.size(dimensions)), "float32")
    found = numpy(MatrixExpAffine(group, scale=31.5)(zero))
    np.testing.assert_array_equal(found, np.broadcast_to(np.eye(dimensions + 1), found.shape))


@everywhere
def test_the_negative_is_the_inverse(group, dimensions):
    values = coefficients(group, dimensions)
    layer = MatrixExpAffine(group, scale=8.0)
    product = numpy(compose_matrices(layer(values), layer(-values)))
    np.testing.assert_allclose(
        product, np.broadcast_to(np.eye(dimensions + 1), product.shape), atol=1e-5
    )
    inverse = numpy(invert_matrix(layer(values)))
    np.testing.assert_allclose(numpy(layer(-values)), inverse, rtol=1e-4, atol=1e-4)
    assert np.abs(numpy(layer(values))[:, :-1, -1]).max() > 1


def test_one_unit_of_translation_is_the_scale():
    found = numpy(MatrixExpAffine(Translation(), scale=16.0)(np.array([[1.0, -0.5]])))
    np.testing.assert_allclose(found[0], [[1, 0, 16], [0, 1, -8], [0, 0, 1]], atol=1e-5)


@each_dimension
def test_a_rotation_is_about_the_centre_by_its_angle_whatever_the_scale(dimensions):
    angle = 0.7
    values = np.zeros((1, Rigid().size(dimensions)), "float32")
    values[0, dimensions] = angle
    expected = np.eye(dimensions + 1)
    expected[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    for scale in (1.0, 40.0):
        found = numpy(MatrixExpAffine(Rigid(), scale=scale)(values))
        np.testing.assert_allclose(found[0], expected, atol=1e-6)


@each_dimension
def test_rigid_keeps_world_distances_between_anisotropic_images(dimensions):
    geometry = {
        "fixed_shape": (9, 40, 21)[:dimensions],
        "moving_shape": (30, 11, 16)[:dimensions],
        "fixed_spacing": (4.0, 0.5, 1.0)[:dimensions],
        "moving_spacing": (1.5, 2.0, 0.8)[:dimensions],
    }
    matrix = MatrixExpAffine(Rigid(), scale=20.0)(coefficients(Rigid(), dimensions, batch=1))
    voxels = np.random.default_rng(1).uniform(0, 20, (1, 10, dimensions)).astype("float32")
    mapped = numpy(transform_points(voxel_matrix(matrix, **geometry), voxels))

    def distances(points, shape, spacing):
        frame = centred_frame(shape, spacing).astype("float64")
        world = points[0] @ frame[:-1, :-1].T + frame[:-1, -1]
        return np.linalg.norm(world[:, None] - world[None], axis=-1)

    before = distances(voxels, geometry["fixed_shape"], geometry["fixed_spacing"])
    after = distances(mapped, geometry["moving_shape"], geometry["moving_spacing"])
    np.testing.assert_allclose(after, before, atol=1e-3)
    linear = numpy(matrix)[0, :-1, :-1]
    np.testing.assert_allclose(linear @ linear.T, np.eye(dimensions), atol=1e-5)
    assert np.linalg.det(linear) == pytest.approx(1, abs=1e-5)
    assert np.abs(linear - np.eye(dimensions)).max() > 0.05


def test_homographies_compose_as_their_maps():
    values = coefficients(Homography(), 2, size=0.1)
    matrix = MatrixExpAffine(Homography(), scale=10.0)(values)
    outer, inner = matrix[:1], matrix[1:]
    points = np.random.default_rng(1).uniform(-10, 10, (1, 6, 2)).astype("float32")
    once = numpy(transform_points(compose_matrices(outer, inner), points))
    twice = numpy(transform_points(outer, transform_points(inner, points)))
    np.testing.assert_allclose(once, twice, rtol=1e-4, atol=1e-4)
    assert np.abs(numpy(matrix)[:, -1, :-1]).max() > 1e-3


@each_dimension
def test_further_coefficients_of_zero_change_nothing(dimensions):
    groups = GROUPS[dimensions]
    for small, large in pairwise(groups):
        values = coefficients(small, dimensions)
        added = large.size(dimensions) - small.size(dimensions)
        padded = np.pad(values, ((0, 0), (0, added)))
        found, expected = MatrixExpAffine(large)(padded), MatrixExpAffine(small)(values)
        np.testing.assert_allclose(numpy(found), numpy(expected), atol=1e-6)


@everywhere
def test_the_gradient_at_zero_is_that_of_the_generators(group, dimensions):
    zero = np.zeros((1, group.size(dimensions)), "float32")
    layer = MatrixExpAffine(group, scale=4.0)
    side = dimensions + 1
    weights = np.random.default_rng(1).normal(size=(side, side)).astype("float32")
    (found,) = gradients(lambda values: ops.sum(ops.multiply(weights, layer(values))), zero)
    lengths = np.diag([4.0] * dimensions + [1.0])
    derivatives = lengths @ group.generators(dimensions) @ np.linalg.inv(lengths)
    np.testing.assert_allclose(found[0], np.sum(weights * derivatives, axis=(1, 2)), atol=1e-5)


@everywhere
def test_gradients_equal_central_differences(group, dimensions):
    values = coefficients(group, dimensions, batch=1)
    layer = MatrixExpAffine(group, scale=2.0)

    def energy(values):
        return ops.sum(ops.square(layer(values)), axis=(1, 2))

    (found,) = gradients(lambda x: ops.sum(energy(x)), values)
    expected = central_differences(energy, values)
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=2e-2)


@everywhere
def test_the_batch_may_be_unknown_and_of_one(group, dimensions):
    inputs = keras.Input((group.size(dimensions),))
    model = keras.Model(inputs, MatrixExpAffine(group)(inputs))
    assert model.output_shape == (None, dimensions + 1, dimensions + 1)
    for batch in (1, 3):
        values = coefficients(group, dimensions, batch=batch)
        expected = numpy(MatrixExpAffine(group)(values))
        np.testing.assert_allclose(model.predict_on_batch(values), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_matrices_are_float32_under_mixed_precision(dtype):
    values = ops.cast(coefficients(Affine(), 2), dtype)
    layer = MatrixExpAffine(dtype=f"mixed_{dtype}")
    found = layer(values)
    assert backend.standardize_dtype(found.dtype) == "float32"
    assert layer(keras.KerasTensor((None, 6), dtype)).dtype == "float32"
    expected = numpy(MatrixExpAffine()(ops.cast(values, "float32")))
    np.testing.assert_array_equal(numpy(found), expected)


def test_the_config_rebuilds_the_layer():
    layer = MatrixExpAffine(Rigid(), scale=3.5, name="mine")
    twin = MatrixExpAffine.from_config(layer.get_config())
    assert (twin.group, twin.scale, twin.name) == (Rigid(), 3.5, "mine")
    assert twin.get_config() == layer.get_config()
    assert MatrixExpAffine().group == Affine()


def blobs(shape):
    """A smooth image, of no symmetry, ``(1, *shape, 1)``."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    centres = np.random.default_rng(0).uniform(0.3, 0.7, (3, len(shape))) * shape
    image = sum(
        weight * np.exp(-np.sum((grid - centre) ** 2, axis=-1) / 18)
        for weight, centre in zip((1, 0.7, 0.4), centres, strict=True)
    )
    return image[None, ..., None].astype("float32")


@pytest.mark.parametrize("shape", [(20, 24), (12, 14, 13)], ids=str)
def test_a_network_before_it_learns_to_register(shape):
    dimensions = len(shape)
    moving = blobs(shape)
    true = np.zeros((1, Rigid().size(dimensions)), "float32")
    true[0, 0], true[0, dimensions] = 0.1, 0.2
    scale = max(shape) / 2
    exponential = MatrixExpAffine(Rigid(), scale=scale)
    fixed = numpy(SpatialTransformer(border=nearest_border)(moving, exponential(true)))

    one, image = keras.Input((1,)), keras.Input((*shape, 1))
    predict = keras.layers.Dense(true.shape[1], kernel_initializer="zeros", use_bias=False)
    matrix = MatrixExpAffine(Rigid(), scale=scale)(predict(one))
    warped = SpatialTransformer(border=nearest_border)(image, matrix)
    model = keras.Model([one, image], warped)
    model.compile(keras.optimizers.Adam(0.03), loss="mean_squared_error")
    inputs = [np.ones((1, 1), "float32"), moving]
    losses = [model.train_on_batch(inputs, fixed) for _ in range(60)]
    assert losses[-1] < 0.01 * losses[0]
    np.testing.assert_allclose(model.get_weights()[0], true, atol=0.02)


def test_refuses_a_scale_that_is_no_length():
    for scale in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"`scale` > 0, a length.*Received"):
            MatrixExpAffine(scale=scale)


@pytest.mark.parametrize("shape", [(6,), (1, 6, 1), (2, 1, 1, 6)])
def test_refuses_coefficients_without_a_batch(shape):
    with pytest.raises(ValueError, match=r"shape \(batch, K\).*Received: shape"):
        MatrixExpAffine()(np.zeros(shape, "float32"))


@pytest.mark.parametrize("size", [5, 7, 8, None])
def test_refuses_another_number_of_coefficients(size):
    with pytest.raises(ValueError, match=r"Affine\(\) has generators, 6 in 2-D or 12 in 3-D.*Rec"):
        MatrixExpAffine()(keras.KerasTensor((2, size)))
