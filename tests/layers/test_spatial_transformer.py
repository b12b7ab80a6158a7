import keras
import numpy as np
import pytest
from keras import ops

import kreg
from kreg.layers import SpatialTransformer
from kreg.losses import Diffusion
from kreg.ops import (
    matrix_to_displacement,
    nearest_border,
    reflect_border,
    sample_nearest,
    voxel_matrix,
    warp,
    zero_border,
)
from tests.fields import SHAPES, smooth_field
from tests.gradients import gradients

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def random_image(shape, *, batch=2, channels=2):
    rng = np.random.default_rng(0)
    return rng.uniform(size=(batch, *shape, channels)).astype("float32")


def rotation(degrees, dimensions, axes=(0, 1)):
    """A homogeneous matrix that rotates from the first axis towards the second."""
    angle = np.deg2rad(degrees)
    matrix = np.eye(dimensions + 1)
    first, second = axes
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[second, first], matrix[first, second] = np.sin(angle), -np.sin(angle)
    return matrix[None].astype("float32")


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


@each_shape
@pytest.mark.parametrize("border", [zero_border, nearest_border, reflect_border])
def test_warps_as_the_function_does(shape, border):
    image, field = random_image(shape), smooth_field(shape, 3.0, batch=2)
    found = numpy(SpatialTransformer(border=border)(image, field))
    np.testing.assert_allclose(found, numpy(warp(image, field, border=border)), atol=1e-5)


@each_shape
@pytest.mark.parametrize("spacing", [None, (2.0, 0.5, 3.0)])
def test_a_matrix_warps_as_its_displacement(shape, spacing):
    image = random_image(shape)
    spacing = spacing and spacing[: len(shape)]
    side = len(shape) + 1
    matrix = np.eye(side) + np.random.default_rng(1).normal(0, 0.1, (2, side, side))
    matrix[:, -1] = np.eye(side)[-1]
    voxels = voxel_matrix(matrix, shape, fixed_spacing=spacing, moving_spacing=spacing)
    field = matrix_to_displacement(voxels, shape)
    by_matrix = numpy(SpatialTransformer(spacing=spacing)(image, matrix.astype("float32")))
    by_field = numpy(SpatialTransformer()(image, field))
    np.testing.assert_allclose(by_matrix, by_field, atol=1e-5)
    assert np.abs(by_matrix - image).max() > 0.1


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_a_quarter_turn_about_the_centre_is_rot90(size, degrees, turns):
    image = random_image((size, size))
    matrix = np.repeat(rotation(degrees, 2), 2, axis=0)
    # Pull-back: the picture turns against the points, from the second axis to the first.
    expected = np.rot90(image, turns, axes=(2, 1))
    found = numpy(SpatialTransformer(border=nearest_border)(image, matrix))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("axes", [(0, 1), (1, 2), (0, 2)])
def test_a_quarter_turn_of_a_cube(axes):
    image = random_image((5, 5, 5), batch=1)
    found = SpatialTransformer(border=nearest_border)(image, rotation(90, 3, axes))
    expected = np.rot90(image, axes=tuple(axis + 1 for axis in reversed(axes)))
    np.testing.assert_allclose(numpy(found), expected, atol=1e-4)


def test_with_spacing_a_rotation_stays_rigid():
    # 5 x 9 voxels of 2 x 1 mm cover a square; between rows the picture is linear, so that a
    # quarter turn of it is known in every voxel.
    rows, columns = np.mgrid[0:5, 0:9].astype("float32")
    y, x = 2 * (rows - 2), columns - 4
    image = (3 * y + x)[None, ..., None]
    layer = SpatialTransformer(border=nearest_border, spacing=(2.0, 1.0))
    found = numpy(layer(image, rotation(90, 2)))[0, ..., 0]
    # (y, x) -> (-x, y)
    np.testing.assert_allclose(found, -3 * x + y, atol=1e-4)
    without = numpy(SpatialTransformer(border=nearest_border)(image, rotation(90, 2)))[0, ..., 0]
    assert np.abs(without - found).max() > 1


@each_shape
def test_the_image_gets_a_gradient_only_if_asked_for(shape):
    image, field = random_image(shape), smooth_field(shape, 1.0, batch=2)
    with_image, without = (
        gradients(
            lambda moving, u, flag=flag: ops.sum(
                ops.square(SpatialTransformer(image_gradient=flag)(moving, u))
            ),
            image,
            field,
        )
        for flag in (True, False)
    )
    assert np.abs(with_image[0]).max() > 0.1
    np.testing.assert_array_equal(without[0], np.zeros_like(image))
    assert np.abs(without[1]).max() > 0.1
    np.testing.assert_allclose(without[1], with_image[1], atol=1e-4)


def test_gradients_flow_to_a_matrix():
    image = random_image((9, 9), batch=1)
    target = numpy(SpatialTransformer()(image, rotation(5, 2)))

    def misfit(matrix):
        warped = SpatialTransformer()(image, matrix)
        return ops.sum(ops.square(ops.subtract(warped, target)))

    (gradient,) = gradients(misfit, rotation(0.5, 2))
    ahead, back = float(misfit(rotation(1, 2))), float(misfit(rotation(0, 2)))
    # The directional derivative along the rotation, between 0 and 1 degree.
    slope = np.sum(gradient * (rotation(1, 2) - rotation(0, 2)))
    assert slope == pytest.approx(ahead - back, rel=0.1)


@each_shape
def test_label_maps_keep_their_labels(shape):
    labels = np.random.default_rng(0).integers(0, 7, (2, *shape, 1)).astype("float32")
    layer = SpatialTransformer(sampler=sample_nearest)
    found = numpy(layer(labels, smooth_field(shape, 3.0, batch=2)))
    assert set(np.unique(found)) <= set(range(7))
    assert not np.array_equal(found, labels)


def test_the_output_has_the_size_of_the_displacement():
    image, field = random_image((9, 12)), smooth_field((5, 7), 1.0, batch=2)
    found = numpy(SpatialTransformer()(image, field))
    np.testing.assert_allclose(found, numpy(warp(image, field)), atol=1e-5)
    assert found.shape == (2, 5, 7, 2)


def test_a_plain_keras_model_learns_to_register():
    # The network sees both images and has to find the shift of one voxel between them.
    blob = np.exp(-((np.mgrid[0:12, 0:12] - 5.5) ** 2).sum(0) / 6).astype("float32")
    fixed = np.repeat(blob[None, ..., None], 160, axis=0)
    moving = np.roll(fixed, 1, axis=2)
    inputs = [keras.Input((12, 12, 1)), keras.Input((12, 12, 1))]
    x = keras.layers.Concatenate()(inputs)
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    displacement = keras.layers.Conv2D(2, 3, padding="same", kernel_initializer="zeros")(x)
    warped = SpatialTransformer(image_gradient=False)(inputs[0], displacement)
    model = keras.Model(inputs, [warped, displacement])
    model.compile(keras.optimizers.Adam(0.01), loss=["mean_squared_error", Diffusion()])
    ignored = np.zeros((160, 12, 12, 2), "float32")
    model.fit([moving, fixed], [fixed, ignored], batch_size=8, epochs=4, verbose=0)
    found, field = model.predict_on_batch([moving[:8], fixed[:8]])
    before, after = np.mean((moving - fixed) ** 2), np.mean((found - fixed[:8]) ** 2)
    assert after < 0.15 * before
    centre = field[:, 3:9, 3:9].mean(axis=(0, 1, 2))
    np.testing.assert_allclose(centre, [0, 1], atol=0.4)


IMAGE = np.zeros((2, 9, 12, 1), "float32")


@pytest.mark.parametrize(
    ("moving", "transform", "message"),
    [
        (IMAGE, np.zeros((2, 2, 9, 12)), r"as many components D.*Received: shape"),
        (IMAGE, np.zeros((2, 9, 12, 3)), r"as many components D.*Received: shape"),
        (IMAGE, np.zeros((1, 9, 12, 2)), r"repeat the smaller batch"),
        (IMAGE, np.zeros((2, 5, 6, 7, 3)), r"as many spatial axes as the moving image.*Received"),
        (IMAGE, np.zeros((2, 2, 3)), r"homogeneous matrices of shape \(batch, 3, 3\).*Received"),
        (IMAGE, np.zeros((2, 4, 4)), r"homogeneous matrices of shape \(batch, 3, 3\).*Received"),
    ],
)
def test_refuses_what_does_not_fit(moving, transform, message):
    with pytest.raises(ValueError, match=message):
        SpatialTransformer()(moving, transform.astype("float32"))


def test_refuses_a_spacing_for_other_axes():
    layer = SpatialTransformer(spacing=(1, 1, 1))
    with pytest.raises(ValueError, match=r"one positive spacing for each of the 2 spatial axes"):
        layer(IMAGE, np.repeat(rotation(10, 2), 2, axis=0))


def test_labels_survive_mixed_precision():
    layer = kreg.layers.SpatialTransformer(sampler=kreg.ops.sample_nearest, dtype="mixed_bfloat16")
    labels = np.full((1, 4, 4, 1), 1035, "float32")
    warped = layer(labels, np.zeros((1, 4, 4, 2), "float32"))
    np.testing.assert_array_equal(np.asarray(keras.ops.convert_to_numpy(warped)), labels)
