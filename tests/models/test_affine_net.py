import keras
import numpy as np
import pytest

from kreg import groups
from kreg.losses import NCC
from kreg.models.affine_net import affine_net
from kreg.ops import centred_frame
from tests.fields import grid
from tests.models.pairs import (
    check_brightness_and_contrast_change_nothing,
    check_every_weight_is_trained,
    check_identity_at_start,
    images,
    make_active,
    noise,
    under_bfloat16,
)


def small(shape, group=None):
    return affine_net((*shape, 1), group=group, filters=(4, 8, 8))


def compiled(model):
    model.compile(keras.optimizers.Adam(5e-3), loss={"warped": NCC()})
    return model


@pytest.mark.parametrize("shape", [(17, 30), (5, 4), (9, 7, 12)], ids=str)
def test_identity_at_start(shape):
    result = check_identity_at_start(small(shape), shape)
    side = len(shape) + 1
    np.testing.assert_allclose(result["matrix"], np.stack([np.eye(side)] * 2), atol=1e-6)


@pytest.mark.parametrize("shape", [(12, 17), (8, 7, 12)], ids=str)
def test_the_displacement_is_that_of_the_matrix(shape):
    model = small(shape)
    make_active(model, 0.1)
    result = model.predict(noise(shape), verbose=0)
    frame = centred_frame(shape)
    for matrix, field in zip(result["matrix"], result["displacement"], strict=True):
        voxels = np.linalg.inv(frame) @ matrix @ frame
        expected = grid(shape) @ (voxels[:-1, :-1].T - np.eye(len(shape))) + voxels[:-1, -1]
        assert np.abs(expected).max() > 0.05
        np.testing.assert_allclose(field, expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(12, 17), (8, 7, 12)], ids=str)
def test_the_matrix_belongs_to_the_group(shape):
    dimensions = len(shape)
    for group in (groups.Translation(), groups.Rigid(), groups.Similarity()):
        model = small(shape, group)
        make_active(model, 0.3)
        matrices = model.predict(noise(shape), verbose=0)["matrix"]
        linear = matrices[:, :dimensions, :dimensions]
        assert np.abs(matrices - np.eye(dimensions + 1)).max() > 0.01
        products = np.swapaxes(linear, 1, 2) @ linear
        scale = products[:, :1, :1] if isinstance(group, groups.Similarity) else 1.0
        np.testing.assert_allclose(products, scale * np.stack([np.eye(dimensions)] * 2), atol=1e-5)
        if isinstance(group, groups.Translation):
            np.testing.assert_array_equal(linear, np.stack([np.eye(dimensions)] * 2))


def test_a_homography_in_2d():
    model = small((12, 15), groups.Homography())
    make_active(model, 0.1)
    matrices = model.predict(noise((12, 15)), verbose=0)["matrix"]
    assert np.abs(matrices[:, 2, :2]).max() > 1e-4
    with pytest.raises(ValueError, match=r"Homography\(\) in 2 dimensions.*Received: 3"):
        small((8, 8, 8), groups.Homography())


@pytest.mark.parametrize("shape", [(16, 16), (8, 8, 8)], ids=str)
def test_learns_shifts(shape):
    data = images(shape, batch=4)
    model = compiled(small(shape, groups.Translation()))
    losses = model.fit(data, batch_size=4, epochs=25, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


def test_learns_where_in_the_image_a_feature_lies():
    # The same two blobs, the other way round in the second pair: too far apart for one
    # convolution to see both, a multiple of the strides, so that means over the image are equal.
    left, right = np.zeros((2, 8, 32, 1), "float32")
    left[2:6, 7:10], right[2:6, 23:26] = 1, 1
    data = {"moving": np.stack([left, right]), "fixed": np.stack([right, left])}
    model = small((8, 32), groups.Translation())
    target = np.zeros((2, 8, 32, 2), "float32")
    target[0, ..., 1], target[1, ..., 1] = -6, 6
    targets = {**dict.fromkeys(model.output, np.zeros((2, 1), "float32")), "displacement": target}
    model.compile(keras.optimizers.Adam(5e-3), loss={"displacement": "mean_squared_error"})
    model.fit(data, targets, epochs=40, batch_size=2, verbose=0)
    shifts = model.predict(data, verbose=0)["displacement"].mean(axis=(1, 2))
    np.testing.assert_allclose(shifts, [(0, -6), (0, 6)], atol=1.5)


def test_every_weight_is_trained():
    check_every_weight_is_trained(compiled(small((12, 9))), noise((12, 9)))


def test_brightness_and_contrast_change_nothing():
    check_brightness_and_contrast_change_nothing(small((16, 15)), (16, 15))


def test_mixed_precision_keeps_coordinates_float32():
    model = under_bfloat16(lambda: small((12, 11)))
    assert model.get_layer("linear0").compute_dtype == "bfloat16"
    assert check_identity_at_start(model, (12, 11))["matrix"].dtype == "float32"


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"known spatial sizes.*Received.*None"):
        affine_net((None, 16, 1))
    with pytest.raises(ValueError, match=r"at least one number of filters.*Received"):
        affine_net((16, 16, 1), filters=())
    with pytest.raises(ValueError, match="Expected an image shape"):
        affine_net((16, 16))
