"""What ResizeImage and its function do."""

import keras
import numpy as np
import pytest
from keras import backend, ops

from kreg.layers import ResizeImage
from kreg.ops.filters import resize_image

CASES = [((6, 9), (3, 9)), ((7, 25), (3, 13)), ((4, 6, 5), (6, 2, 3))]
each_case = pytest.mark.parametrize(("shape", "new"), CASES, ids=str)


def numpy(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def image(shape, batch=2):
    return np.random.default_rng(0).uniform(size=(batch, *shape, 3)).astype("float32")


@each_case
def test_is_the_mean_over_the_area_of_each_new_voxel(shape, new):
    images = image(shape)
    expected = images.astype("float64")
    for axis, (size, count) in enumerate(zip(shape, new, strict=True), 1):
        # Each voxel as `count` equal parts, of which every `size` make a new one.
        parts = np.repeat(expected, count, axis=axis)
        parts = parts.reshape(*parts.shape[:axis], count, size, *parts.shape[axis + 1 :])
        expected = parts.mean(axis=axis + 1)
    np.testing.assert_allclose(numpy(resize_image(images, new)), expected, atol=1e-5)


@each_case
def test_saved_symbolic_and_mixed_it_is_the_function(shape, new, tmp_path):
    images = image(shape)
    expected = numpy(resize_image(images, new))
    inputs = keras.Input((*shape, 3))
    for policy, tolerance in (("float32", 1e-5), ("mixed_bfloat16", 0.03)):
        layer = ResizeImage(list(new), dtype=policy, name="mine")
        model = keras.Model(inputs, layer(inputs))
        assert tuple(model.output.shape) == (None, *new, 3)
        found = layer(images)
        assert model.output.dtype == backend.standardize_dtype(found.dtype) == layer.compute_dtype
        np.testing.assert_allclose(numpy(found), expected, atol=tolerance)
        model.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(numpy(again(images)), numpy(found))
        assert again.get_layer("mine").get_config() == layer.get_config()


def test_refuses_what_does_not_fit():
    for shape in ((3,), (3, 0), (3, 2.5)):
        with pytest.raises(ValueError, match=r"Expected 2 new sizes.*Received"):
            ResizeImage(shape)(image((6, 9)))
        with pytest.raises(ValueError, match=r"Expected 2 new sizes.*Received"):
            ResizeImage(shape)(keras.Input((6, 9, 1)))
    with pytest.raises(ValueError, match=r"known spatial sizes.*Received"):
        ResizeImage((3, 4))(keras.Input((None, 9, 1)))
