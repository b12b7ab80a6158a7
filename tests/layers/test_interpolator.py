"""What Interpolator does, beside what holds for every layer."""

import keras
import numpy as np
import pytest
from keras import backend, ops
from scipy import ndimage, signal

from kreg.groups import Rigid
from kreg.layers import MatrixExpAffine, spatial_transformer
from kreg.layers.interpolator import Interpolator
from tests.fields import grid

SHAPES = [(6, 9), (4, 6, 5)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch):
    """Warps run op by op: XLA takes a second to compile one for each shape."""
    monkeypatch.setattr(spatial_transformer.backend, "compiled", lambda function: function)
    spatial_transformer._compiled_warp.cache_clear()
    yield
    spatial_transformer._compiled_warp.cache_clear()


def numpy(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def image(shape, batch=2, channels=3):
    rng = np.random.default_rng(1)
    return rng.uniform(size=(batch, *shape, channels)).astype("float32")


def seeded(filters=(4, 3), **options):
    options = {"kernel_initializer": keras.initializers.HeNormal(seed=1), **options}
    return Interpolator(filters, **options)


def move(layer, size=0.2):
    """Give the resampling, the identity at start, somewhere else to look."""
    weight = layer.weights[0]
    assert "coefficients" in weight.path
    weight.assign(np.random.default_rng(2).normal(0, size, weight.shape).astype("float32"))


def slow_features(layer, one):
    """Two convolutions and ReLUs, kernel by kernel, of an image ``(*spatial, channels)``."""
    for convolution in layer._convolutions:
        kernel, bias = (numpy(weight) for weight in convolution.weights)
        one = np.stack(
            [
                sum(
                    signal.correlate(one[..., i], kernel[..., i, o], mode="same")
                    for i in range(one.shape[-1])
                )
                + bias[o]
                for o in range(kernel.shape[-1])
            ],
            axis=-1,
        )
        one = np.maximum(one, 0)
    return one


@each_shape
def test_upsamples_and_resamples_two_convolutions(shape):
    layer = seeded(factor=2)
    images = image(shape)
    layer(images)
    move(layer)
    matrix = numpy(MatrixExpAffine(scale=max(shape) / 2)(numpy(layer.weights[0])))[0]
    fine = [2 * size for size in shape]
    # In the world, voxels of the finer grid are half as wide; both grids are centred.
    world = (grid(fine) - (np.array(fine) - 1) / 2) / 2
    at = world @ matrix[:-1, :-1].T + matrix[:-1, -1] + (np.array(shape) - 1) / 2
    for one, found in zip(images, numpy(layer(images)), strict=True):
        features = slow_features(layer, one)
        expected = [
            ndimage.map_coordinates(channel, np.moveaxis(at, -1, 0), order=1, mode="nearest")
            for channel in np.moveaxis(features, -1, 0)
        ]
        np.testing.assert_allclose(found, np.stack(expected, -1), atol=1e-4)
    assert np.abs(matrix - np.eye(len(matrix))).max() > 0.1


@each_shape
def test_without_upsampling_the_resampling_is_the_identity_at_start(shape):
    images = image(shape)
    plain = numpy(seeded(factor=1, resampling=False)(images))
    assert plain.max() > 0.1
    np.testing.assert_allclose(numpy(seeded(factor=1)(images)), plain, atol=1e-5)


@each_shape
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_the_symbolic_output_is_the_real_one(shape, policy):
    symbolic = seeded(dtype=policy)(
        keras.KerasTensor((2, *shape, 3)), keras.KerasTensor((2, *shape, 1)), return_matrix=True
    )
    real = seeded(dtype=policy)(image(shape), image(shape), return_matrix=True)
    for expected, found in zip(symbolic, real, strict=True):
        assert tuple(expected.shape) == tuple(found.shape)
        assert expected.dtype == backend.standardize_dtype(found.dtype)
    for options in ({"strides": (2, 1)}, {"factor": 1, "resampling": False}, {"factor": 3}):
        layer = seeded(dtype=policy, **options)
        symbolic = layer(keras.KerasTensor((2, *shape, 3)))
        real = layer(image(shape))
        assert tuple(symbolic.shape) == tuple(real.shape)
        assert symbolic.dtype == backend.standardize_dtype(real.dtype) == layer.compute_dtype
        assert tuple(layer.compute_output_shape((2, *shape, 3))) == tuple(real.shape)


@each_shape
def test_cells_side_by_side_are_kernels_laid_on_one_after_the_other(shape):
    layer = seeded(strides=(4, 1), factor=1, resampling=False)
    padded = [-(-size // 4) * 4 for size in shape]
    images = image(padded)
    layer(images)
    first, second = layer._convolutions
    kernel, bias = (numpy(weight) for weight in first.weights)
    bias = bias + 0.1
    first.bias.assign(bias)
    cells = np.zeros((len(images), *(size // 4 for size in padded), 4), "float32")
    for place in np.ndindex(cells.shape[:-1]):
        batch, *cell = place
        patch = images[(batch, *(slice(4 * i, 4 * i + 4) for i in cell))]
        cells[place] = np.tensordot(patch, kernel, patch.ndim) + bias
    expected = numpy(second(np.maximum(cells, 0)))
    np.testing.assert_allclose(numpy(layer(images)), expected, atol=2e-5)


@pytest.mark.parametrize("shape", [(64, 50), (49, 57), (48, 41, 44)], ids=str)
@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (2, 2), (4, 2), (3, 1)], ids=str)
def test_the_cells_divide_the_image_evenly(shape, strides):
    axes = tuple(range(1, len(shape) + 1))
    ones = Interpolator(
        (1, 1), strides=strides, factor=1, resampling=False, kernel_initializer="ones"
    )
    ramps = np.moveaxis(grid(shape), -1, 0)[..., None].astype("float32")  # each axis an image
    found = numpy(ones(ramps))
    weights = numpy(ones(np.ones_like(ramps)))
    cells = np.array(found.shape[1:-1])
    np.testing.assert_array_equal(cells, -(-np.array(shape) // np.prod(strides)))
    inside = (slice(2, -2),) * len(shape)  # zeros beyond the border draw the others inwards
    for axis, (values, weight) in enumerate(zip(found, weights, strict=True)):
        expected = (np.indices(cells)[axis] + 0.5) * shape[axis] / cells[axis] - 0.5
        found_at = (values / weight)[..., 0]
        np.testing.assert_allclose(found_at[inside], expected[inside], atol=0.05)
    images = image(shape, channels=1)
    expected = np.flip(numpy(ones(images)), axes)
    np.testing.assert_allclose(numpy(ones(np.flip(images, axes))), expected, rtol=1e-4)


def test_resampled_features_match_under_the_conjugate_matrix():
    shape, group = (32, 40), Rigid()
    layer = Interpolator((1, 1), kernel_size=1, kernel_initializer="ones", group=group)
    at = grid(shape) - (np.array(shape) - 1) / 2
    transform = np.diag([0.8, 1.2, 1.0])

    def blob(points):
        return np.exp(-((points - (3, -4)) ** 2 / (18, 30)).sum(-1))[None, ..., None]

    fixed, moving = blob(at @ transform[:2, :2].T), blob(at)
    layer(moving)
    layer.weights[0].assign([[0.1, -0.05, 0.5]])
    found = numpy(layer(fixed))
    # Of an image twice as small, in the world of the full one.
    features, matrix = layer(moving[:, ::2, ::2], moving, return_matrix=True)
    matrix = numpy(matrix)[0]
    assert np.abs(matrix - np.eye(3)).max() > 0.5
    features, same = layer(moving, return_matrix=True)
    np.testing.assert_allclose(matrix, numpy(same)[0], atol=1e-6)
    conjugate = np.linalg.inv(matrix) @ transform @ matrix

    def residual(between):
        warp = spatial_transformer.SpatialTransformer(spacing=(0.5, 0.5))
        return np.mean((numpy(warp(features, between[None].astype("float32"))) - found) ** 2)

    assert residual(conjugate) < 1e-3 * found.var() < residual(transform)


def test_mixed_precision_changes_little():
    images = image((6, 9))
    expected = numpy(seeded()(images))
    found = numpy(seeded(dtype="mixed_bfloat16")(images))
    np.testing.assert_allclose(found, expected, atol=0.03 * expected.max())


def test_every_weight_is_trained_the_resampling_too():
    shape = (6, 9)
    inputs = keras.Input((*shape, 3))
    layer = seeded()
    model = keras.Model(inputs, layer(inputs))
    teacher = seeded()
    teacher(image(shape))
    teacher.set_weights(layer.get_weights())
    move(teacher, 0.1)
    images = image(shape, 4)
    target = numpy(teacher(images))
    model.compile(keras.optimizers.Adam(0.004), loss="mean_squared_error")
    start = layer.get_weights()
    history = model.fit(images, target, batch_size=4, epochs=10, verbose=0).history["loss"]
    assert history[-1] < 0.8 * history[0]
    for before, after in zip(start, layer.get_weights(), strict=True):
        assert np.abs(after - before).max() > 1e-3


def test_the_config_rebuilds_the_layer():
    layer = seeded(
        (2, 5), kernel_size=5, strides=(2, 1), factor=3, resampling=True, group=Rigid(), name="mine"
    )
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert twin.get_config() == layer.get_config()
    images = image((6, 9))
    np.testing.assert_array_equal(numpy(twin(images)), numpy(layer(images)))
    assert twin.weights[0].shape == (1, 3)  # a rigid motion


@each_shape
def test_comes_back_with_a_saved_model(shape, tmp_path):
    inputs = keras.Input((*shape, 3))
    layer = seeded(strides=(1, 2))
    model = keras.Model(inputs, layer(inputs))
    move(layer)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    expected = model.predict_on_batch(image(shape))
    np.testing.assert_allclose(again.predict_on_batch(image(shape)), expected, atol=1e-5)


def test_refuses_what_does_not_fit():
    for options in ({"filters": (4,)}, {"strides": (2,)}, {"factor": 0}, {"factor": 1.5}):
        with pytest.raises(ValueError, match=r"two `filters` and two `strides`.*Received"):
            Interpolator(**options)
    with pytest.raises(ValueError, match=r"known spatial sizes.*Received"):
        Interpolator()(keras.Input((None, None, 1)))
