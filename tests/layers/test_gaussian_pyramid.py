"""GaussianPyramid; its outputs are several, so the checks of every layer are made here as well."""

import keras
import numpy as np
import pytest
from keras import backend, ops

from kreg.layers.gaussian_pyramid import GaussianPyramid
from kreg.ops import centred_frame
from kreg.ops.pyramid import gaussian_pyramid, pyramid_frames
from tests.fresh_process import Saved, in_fresh_process

each_shape = pytest.mark.parametrize("shape", [(6, 9), (4, 6, 5)], ids=str)


def random_image(shape, batch=2):
    rng = np.random.default_rng(0)
    return rng.uniform(1, 3, size=(batch, *shape, 3)).astype("float32")


def numpy(levels):
    return [ops.convert_to_numpy(ops.cast(level, "float32")) for level in levels]


def assert_same(found, expected, **tolerance):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, **tolerance)


def model_of(layer, shape):
    image = keras.Input((*shape, 3))
    return keras.Model(image, layer(image))


@each_shape
@pytest.mark.parametrize("options", [{}, {"sigma": 0.6}])
def test_is_the_function(shape, options):
    image = random_image(shape)
    found = GaussianPyramid(3, **options)(image)
    assert isinstance(found, list)
    assert_same(numpy(found), numpy(gaussian_pyramid(image, 3, **options)), atol=1e-6)


@each_shape
def test_frames_are_those_of_the_levels(shape):
    spacing = (2.0, 1.0, 0.5)[: len(shape)]
    frames = GaussianPyramid(3).frames(shape, spacing)
    expected = [centred_frame(*grid) for grid in pyramid_frames(shape, 3, spacing)]
    assert_same(frames, expected, atol=0)
    assert_same(GaussianPyramid(1).frames(shape), [centred_frame(shape)], atol=0)
    # The middle of every level is the middle of the image.
    for frame, level in zip(frames, GaussianPyramid(3)(random_image(shape)), strict=True):
        middle = [(size - 1) / 2 for size in level.shape[1:-1]]
        np.testing.assert_allclose(frame @ [*middle, 1], [*np.zeros(len(shape)), 1], atol=1e-6)


def test_the_config_holds_the_constructors_arguments():
    layer = GaussianPyramid(2, sigma=0.7, name="mine")
    image = random_image((6, 9))
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    for twin in (GaussianPyramid.from_config(layer.get_config()), restored):
        assert (twin.levels, twin.sigma, twin.name) == (2, 0.7, "mine")
        assert_same(numpy(twin(image)), numpy(layer(image)), atol=0)


@each_shape
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_the_symbolic_output_is_the_real_one(shape, policy):
    image = random_image(shape)
    layer = GaussianPyramid(3, dtype=policy)
    symbolic, real = layer(keras.KerasTensor(image.shape)), layer(image)
    described = [(tuple(x.shape), backend.standardize_dtype(x.dtype)) for x in symbolic]
    assert described == [(tuple(x.shape), backend.standardize_dtype(x.dtype)) for x in real]
    assert layer.compute_output_shape(image.shape) == [shape for shape, _ in described]


@each_shape
def test_mixed_precision_blurs_in_float32(shape):
    image = random_image(shape)
    found = GaussianPyramid(3, dtype="mixed_bfloat16")(image)
    assert {backend.standardize_dtype(level.dtype) for level in found} == {"bfloat16"}
    assert_same(numpy(found), numpy(GaussianPyramid(3)(image)), rtol=2**-8)  # rounded once


@each_shape
def test_the_batch_may_be_unknown_and_of_one(shape):
    image = random_image(shape, batch=3)
    expected = numpy(GaussianPyramid(3)(image))
    model = model_of(GaussianPyramid(3), shape)
    assert model.output_shape == [(None, *level.shape[1:]) for level in expected]
    assert_same(model.predict_on_batch(image), expected, atol=1e-5)
    assert_same(model.predict_on_batch(image[:1]), [x[:1] for x in expected], atol=1e-5)


@each_shape
def test_trains_weights_before_it_in_a_plain_keras_model(shape):
    image = random_image(shape, batch=6)
    mix = np.eye(3) + np.random.default_rng(3).normal(0, 0.2, (3, 3))
    target = numpy(GaussianPyramid(2)((image @ mix).astype("float32")))
    given = keras.Input((*shape, 3))
    mixed = keras.layers.Dense(3, kernel_initializer="identity")(given)
    model = keras.Model(given, GaussianPyramid(2)(mixed))
    model.compile(keras.optimizers.Adam(0.03), loss=["mean_squared_error"] * 2)
    history = model.fit(image, target, batch_size=6, epochs=8, verbose=0).history["loss"]
    assert history[-1] < 0.8 * history[0]


def test_comes_back_with_a_saved_model_in_a_fresh_process(tmp_path):
    saved = {}
    for shape in [(6, 9), (4, 6, 5)]:
        given = keras.Input((*shape, 3))
        names = ("fine", "coarse")
        model = keras.Model(
            given, dict(zip(names, GaussianPyramid(2, sigma=0.7)(given), strict=True))
        )
        saved[f"{len(shape)}d"] = Saved(model, [random_image(shape)])
    for name, found in in_fresh_process(saved, tmp_path).items():
        expected = saved[name].model.predict_on_batch(saved[name].inputs[0])
        for level in ("fine", "coarse"):
            np.testing.assert_allclose(found[level], expected[level], rtol=1e-5, atol=1e-5)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"`levels` >= 1.*Received: 0"):
        GaussianPyramid(0)
    with pytest.raises(ValueError, match=r"at most 3 levels for an image of \(5, 6\) voxels"):
        GaussianPyramid(4)(keras.Input((5, 6, 1)))
    with pytest.raises(ValueError, match=r"known spatial sizes; give them to `keras.Input`"):
        GaussianPyramid(2)(keras.Input((None, 6, 1)))
    with pytest.raises(ValueError, match=r"floating-point values.*Received: dtype uint8"):
        GaussianPyramid(2)(np.zeros((1, 6, 7, 1), "uint8"))
