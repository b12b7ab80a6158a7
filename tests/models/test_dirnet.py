import keras
import numpy as np
import pytest
from keras import ops

from kreg.losses import NCC, Diffusion
from kreg.models.dirnet import dirnet
from kreg.ops import bspline_displacement, bspline_grid_shape
from tests.gradients import gradients
from tests.models.pairs import (
    check_brightness_and_contrast_change_nothing,
    check_every_weight_is_trained,
    check_identity_at_start,
    images,
    make_active,
    noise,
    under_bfloat16,
)

LOSSES = {"warped": NCC(), "displacement": Diffusion()}


def compiled(model):
    model.compile(
        keras.optimizers.Adam(1e-2), loss=LOSSES, loss_weights={"warped": 1, "displacement": 0.01}
    )
    return model


@pytest.mark.parametrize("shape", [(17, 30), (5, 4), (9, 7, 12)], ids=str)
def test_identity_at_start(shape):
    check_identity_at_start(dirnet((*shape, 1), filters=(4,)), shape)


@pytest.mark.parametrize("spacing", [2, 4, 8])
@pytest.mark.parametrize("shape", [(16, 33), (8, 9, 10)], ids=str)
def test_control_points_lie_on_the_grid_of_the_spline(spacing, shape):
    model = dirnet((*shape, 1), spacing=spacing, filters=(4,))
    make_active(model, 1.0)
    points = model.get_layer("control_points").output
    assert points.shape[1:-1] == bspline_grid_shape(shape, spacing)
    outputs = {"points": points, "displacement": model.output["displacement"]}
    found = keras.Model(model.input, outputs).predict(images(shape), verbose=0)
    expected = bspline_displacement(found["points"], shape, spacing=spacing)
    assert np.abs(found["points"]).max() > 0.01
    np.testing.assert_allclose(found["displacement"], ops.convert_to_numpy(expected), atol=1e-5)


def test_a_control_point_looks_at_the_image_around_it():
    model = dirnet((48, 49, 1), spacing=8, filters=(8,))
    make_active(model)
    pair = model.get_layer("pair").output
    regressor = keras.Model(pair, model.get_layer("control_points").output)
    data = np.random.default_rng(0).normal(size=(1, 48, 49, 2)).astype("float32")
    for index in ((3, 3), (4, 3)):

        def at_one_point(x, index=index):
            return ops.sum(regressor(x)[0, index[0], index[1]])

        seen = np.abs(gradients(at_one_point, data)[0][0]).sum(axis=-1)
        rows, columns = np.meshgrid(np.arange(48), np.arange(49), indexing="ij")
        centre = np.sum(seen * rows) / np.sum(seen), np.sum(seen * columns) / np.sum(seen)
        # The point i lies at voxel 8 (i - 1); one cell aside would be 8 voxels.
        np.testing.assert_allclose(centre, (8 * (index[0] - 1), 8 * (index[1] - 1)), atol=3)


def test_the_last_number_of_filters_goes_on():
    model = dirnet((16, 16, 1), spacing=8, filters=(4, 6))
    names = ["level0", "level1", "level2", "neighbours", "point"]
    assert [model.get_layer(name).filters for name in names] == [4, 6, 6, 6, 6]


@pytest.mark.parametrize("shape", [(16, 16), (8, 8, 8)], ids=str)
def test_learns(shape):
    data = images(shape, batch=8)
    history = compiled(dirnet((*shape, 1), spacing=4)).fit(data, batch_size=8, epochs=30, verbose=0)
    losses = history.history["warped_loss"]
    assert losses[-1] < 0.6 * losses[0]


def test_every_weight_is_trained():
    check_every_weight_is_trained(compiled(dirnet((12, 9, 1), spacing=4)), noise((12, 9)))


def test_brightness_and_contrast_change_nothing():
    check_brightness_and_contrast_change_nothing(dirnet((16, 15, 1)), (16, 15))


def test_mixed_precision_keeps_coordinates_float32():
    model = under_bfloat16(lambda: dirnet((12, 11, 1), spacing=4))
    assert model.get_layer("level0").compute_dtype == "bfloat16"
    check_identity_at_start(model, (12, 11))


@pytest.mark.parametrize("spacing", [0, 1, 6, 8.0, -4])
def test_refuses_other_spacings(spacing):
    with pytest.raises(ValueError, match=r"`spacing` to be a power of 2.*Received"):
        dirnet((16, 16, 1), spacing=spacing)


def test_refuses_unknown_sizes_and_no_filters():
    with pytest.raises(ValueError, match=r"known spatial sizes.*Received"):
        dirnet((None, 16, 1))
    with pytest.raises(ValueError, match=r"at least one number of filters.*Received"):
        dirnet((16, 16, 1), filters=())
    with pytest.raises(ValueError, match="Expected an image shape"):
        dirnet((16, 16))
