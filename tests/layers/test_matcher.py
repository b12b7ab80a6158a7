"""What Matcher does, beside what holds for every layer."""

import keras
import numpy as np
import pytest
from keras import backend, ops
from scipy.linalg import expm

from kreg.groups import Affine, Homography, Rigid, Translation
from kreg.layers.matcher import Matcher, _correlation

SHAPES = [(6, 9), (4, 6, 5)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def inputs(shape, batch=2, channels=4):
    """Features of two images, twice as large as their grid along each axis."""
    pair = np.random.default_rng(3).normal(size=(2, batch, *shape, channels))
    image = np.zeros((batch, *(2 * size for size in shape), 1))
    return [x.astype("float32") for x in (*pair, image)]


def seeded(filters=5, *, start=0.05, **options):
    """A layer whose last convolution, zero by default, does something."""
    return Matcher(
        filters,
        kernel_initializer=keras.initializers.HeNormal(seed=1),
        field_initializer=keras.initializers.RandomNormal(stddev=start, seed=2),
        **options,
    )


@each_shape
def test_identity_at_start(shape):
    matrices = numpy(Matcher(5)(*inputs(shape)))
    expected = np.broadcast_to(np.eye(len(shape) + 1), matrices.shape)
    np.testing.assert_allclose(matrices, expected, atol=1e-6)


@each_shape
@pytest.mark.parametrize("group", [Affine(), Rigid()], ids=lambda group: type(group).__name__)
def test_the_regression_is_the_weighted_least_squares_fit(shape, group):
    axes, spacing = len(shape), np.arange(1, len(shape) + 1) / 2
    sizes = tuple(2 * size for size in shape)
    field = np.random.default_rng(4).normal(0, 0.3, (2, *shape, axes + 1)).astype("float32")
    layer = Matcher(group=group, spacing=spacing)
    found = numpy(layer._regression(field, sizes))

    extent = np.array(sizes) * spacing
    half = extent.max() / 2
    rows = np.indices(shape).reshape(axes, -1).T
    points = ((rows + 0.5) / shape * extent - extent / 2) / half  # cells tile the image
    points = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    generators = group.generators(axes).astype("float64")
    for one, matrix in zip(field.reshape(2, -1, axes + 1).astype("float64"), found, strict=True):
        weights = np.exp(one[:, -1]) / np.exp(one[:, -1]).sum()
        columns = np.stack([(points @ b.T)[:, :axes].ravel() for b in generators], axis=1)
        root = np.sqrt(np.repeat(weights, axes))
        ridge = np.sqrt(1e-3) * np.eye(len(generators))
        left = np.concatenate([columns * root[:, None], ridge])
        right = np.concatenate([one[:, :axes].ravel() * root, np.zeros(len(generators))])
        coefficients = np.linalg.lstsq(left, right, rcond=None)[0]
        expected = expm(np.tensordot(coefficients, generators, 1))
        expected[:-1, -1] *= half  # a unit of a shift is half the longest side
        np.testing.assert_allclose(matrix, expected, atol=2e-4)


def test_the_regression_finds_a_homography():
    layer = Matcher(group=Homography())
    generators = Homography().generators(2)
    coefficients = 0.02 * np.array([1, -2, 1.5, 1, -1, 2, 3, -2.5])
    velocity = np.tensordot(coefficients, generators, 1)
    axis = (np.arange(16) + 0.5) / 8 - 1
    points = np.stack([*np.meshgrid(axis, axis, indexing="ij"), np.ones((16, 16))], -1)
    moved = points @ velocity.T
    field = np.zeros((1, 16, 16, 3), "float32")
    field[0, ..., :2] = moved[..., :2] - points[..., :2] * moved[..., 2:]
    found = numpy(layer._regression(field, (2, 2)))[0]  # half the longest side is 1
    np.testing.assert_allclose(found, expm(velocity), atol=1e-3)


@each_shape
def test_the_correlation_is_the_mean_product_with_each_neighbour(shape):
    fixed, moving, _ = inputs(shape)
    found = numpy(_correlation(*map(ops.convert_to_tensor, (fixed, moving)), 1))
    assert found.shape == (2, *shape, 3 ** len(shape))
    padded = np.pad(moving, [(0, 0), *[(1, 1)] * len(shape), (0, 0)])
    offsets = list(np.ndindex(*[3] * len(shape)))
    for place in [(0,) * len(shape), tuple(size - 1 for size in shape), (2,) * len(shape)]:
        for number in (0, 4, len(offsets) - 1):
            there = tuple(p + o for p, o in zip(place, offsets[number], strict=True))
            expected = (fixed[(1, *place)] * padded[(1, *there)]).mean()
            assert found[(1, *place, number)] == pytest.approx(expected, abs=1e-5)


def test_only_the_pattern_of_the_features_counts():
    fixed, moving, image = inputs((6, 9))
    layer = seeded()
    expected = numpy(layer(fixed, moving, image))
    found = numpy(layer(3 * fixed + 1, 0.5 * moving - 2, image))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected - np.eye(3)).max() > 0.1


def test_what_is_not_finite_harms_its_own_sample_alone():
    fixed, moving, image = inputs((6, 9))
    expected = numpy(seeded()(fixed, moving, image))
    for value in (np.nan, np.inf):
        moving[0, 2, 3, 0] = value
        found = numpy(seeded()(fixed, moving, image))
        assert np.isnan(found[0]).any()
        np.testing.assert_allclose(found[1], expected[1], atol=1e-6)


def test_the_world_follows_the_image():
    fixed, moving, image = inputs((6, 9))
    matrix = numpy(seeded()(fixed, moving, image))
    larger = numpy(seeded(spacing=(3, 3))(fixed, moving, image))
    np.testing.assert_allclose(larger[:, :2, :2], matrix[:, :2, :2], atol=1e-5)
    np.testing.assert_allclose(larger[:, :2, 2], 3 * matrix[:, :2, 2], atol=1e-4)


@each_shape
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_the_symbolic_output_is_the_real_one_and_float32(shape, policy):
    arrays = inputs(shape)
    layer = seeded(radius=1, dtype=policy)
    symbolic = layer(*(keras.KerasTensor(x.shape) for x in arrays))
    real = layer(*arrays)
    assert tuple(symbolic.shape) == tuple(real.shape)
    assert symbolic.dtype == backend.standardize_dtype(real.dtype) == "float32"
    expected = numpy(seeded(radius=1)(*arrays))
    np.testing.assert_allclose(numpy(real), expected, atol=0.05 * np.abs(expected).max())


def test_learns_how_features_were_shifted_in_a_plain_keras_model():
    rng = np.random.default_rng(5)
    shape, axes = (6, 9), 2
    fixed = rng.normal(size=(16, *shape, 4)).astype("float32")
    # Either one cell further along the first axis or one back: nothing else tells which.
    way = np.where(np.arange(16) % 2, 1, -1)
    moving = np.stack([np.roll(x, w, axis=0) for x, w in zip(fixed, way, strict=True)])
    image = np.zeros((16, *shape, 1), "float32")
    target = np.tile(np.eye(axes + 1, dtype="float32"), (16, 1, 1))
    target[:, 0, -1] = way
    symbols = [keras.Input(x.shape[1:]) for x in (fixed, moving, image)]
    layer = Matcher(
        16, group=Translation(), radius=1, kernel_initializer=keras.initializers.HeNormal(seed=1)
    )
    model = keras.Model(symbols, layer(*symbols))
    model.compile(keras.optimizers.Adam(0.005), loss="mean_squared_error")
    start = layer.get_weights()
    history = model.fit(
        [fixed, moving, image], target, batch_size=16, epochs=40, verbose=0
    ).history["loss"]
    assert history[-1] < 0.5 * history[0]
    for weight, before, after in zip(layer.weights, start, layer.get_weights(), strict=True):
        if "kernel" in weight.path:
            assert np.abs(after - before).max() > 1e-3, weight.path


def test_the_config_rebuilds_the_layer():
    layer = seeded(3, group=Rigid(), radius=2, spacing=(2, 1), name="mine")
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert twin.get_config() == layer.get_config()
    arrays = inputs((6, 9))
    np.testing.assert_array_equal(numpy(twin(*arrays)), numpy(layer(*arrays)))


@each_shape
def test_comes_back_with_a_saved_model(shape, tmp_path):
    arrays = inputs(shape)
    symbols = [keras.Input(x.shape[1:]) for x in arrays]
    model = keras.Model(symbols, Matcher(5)(*symbols))
    for weight in model.weights:
        weight.assign(np.random.default_rng(6).normal(0, 0.2, weight.shape).astype("float32"))
    expected = model.predict_on_batch(arrays)
    assert np.abs(expected - np.eye(len(shape) + 1)).max() > 0.01
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.predict_on_batch(arrays), expected, atol=1e-5)


def test_refuses_what_does_not_fit():
    for options in ({"filters": 0}, {"radius": 0}):
        with pytest.raises(ValueError, match=r"`filters` >= 1, and `radius`.*Received"):
            Matcher(**options)
    fixed, moving, image = inputs((6, 9))
    with pytest.raises(ValueError, match=r"`fixed` and `moving` of equal shape.*Received"):
        Matcher()(fixed, moving[:, 1:], image)
    unknown = keras.Input((None, None, 4))
    with pytest.raises(ValueError, match=r"known spatial sizes.*Received"):
        Matcher()(unknown, unknown, keras.Input((12, 18, 1)))
