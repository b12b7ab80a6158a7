"""Pairs of images to try models with, and what every model of the zoo is asked."""

import keras
import numpy as np
from keras import ops

from tests.fields import grid


def shifted_blobs(shape, batch=2, *, largest=1.5, seed=0):
    """A blob, and the same one elsewhere: images, one-hot labels and the landmark, as floats.

    Args:
        shape: spatial sizes.
        batch: number of pairs.
        largest: how far from the middle a centre lies along each axis at most.
        seed: of the centres.
    """
    rng = np.random.default_rng(seed)
    width = min(shape) / 6
    data = {}
    for name in ("moving", "fixed"):
        centre = (np.array(shape) - 1) / 2 + rng.uniform(-largest, largest, (batch, len(shape)))
        offset = grid(shape) - centre.reshape(batch, *(1 for _ in shape), len(shape))
        squares = np.sum(offset**2, axis=-1, keepdims=True)
        inside = squares < (1.5 * width) ** 2
        data[name] = np.exp(-squares / (2 * width**2))
        data[f"{name}_labels"] = np.concatenate([inside, ~inside], axis=-1)
        data[f"{name}_landmarks"] = centre[:, None]
    return {name: values.astype("float32") for name, values in data.items()}


def images(shape, batch=2, **options):
    """The images of `shifted_blobs` alone."""
    data = shifted_blobs(shape, batch, **options)
    return {name: data[name] for name in ("moving", "fixed")}


def noise(shape, batch=2):
    """Two images that have nothing in common."""
    rng = np.random.default_rng(3)
    return {name: rng.random((batch, *shape, 1), "float32") for name in ("moving", "fixed")}


def make_active(model, size=0.05):
    """Give what is zero at start weights, so that the model does more than the identity."""
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:
        if not np.any(ops.convert_to_numpy(weight)) and "kernel" in weight.path:
            weight.assign(rng.normal(0, size, weight.shape).astype("float32"))


def under_bfloat16(build):
    """What `build` returns where mixed_bfloat16 is the policy."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return build()
    finally:
        keras.config.set_dtype_policy(policy)


def check_identity_at_start(model, shape):
    data = images(shape)
    result = model.predict(data, verbose=0)
    dimensions = len(shape)
    assert {"warped", "displacement"} <= set(result)
    for name, value in result.items():
        assert value.dtype == "float32"
        assert (None, *value.shape[1:]) == tuple(model.output[name].shape), name
    assert result["displacement"].shape == (2, *shape, dimensions)
    np.testing.assert_allclose(result["displacement"], 0, atol=1e-5)
    np.testing.assert_allclose(result["warped"], data["moving"], atol=1e-5)
    return result


def check_brightness_and_contrast_change_nothing(model, shape):
    make_active(model)
    data = images(shape)
    changed = {"moving": 0.5 * data["moving"] + 0.3, "fixed": 3 * data["fixed"]}
    expected = model.predict(data, verbose=0)["displacement"]
    assert np.abs(expected).max() > 1e-3
    found = model.predict(changed, verbose=0)["displacement"]
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


def check_every_weight_is_trained(model, data):
    """A few steps change each kernel and leave all weights finite."""
    start = model.get_weights()
    model.fit(data, batch_size=len(data["fixed"]), epochs=3, verbose=0)
    for weight, before, after in zip(model.weights, start, model.get_weights(), strict=True):
        assert np.isfinite(after).all(), weight.path
        if "kernel" in weight.path:
            assert np.abs(after - before).max() > 0, weight.path
