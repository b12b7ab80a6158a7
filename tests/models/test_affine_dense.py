import keras
import numpy as np
import pytest
from keras import ops

from kreg import groups
from kreg.losses import NCC, Diffusion
from kreg.models import DenseHead, VelocityHead
from kreg.models.affine_dense import affine_dense
from kreg.ops import centred_frame, warp
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


def small(shape, **options):
    options = {"head": VelocityHead(steps=3), **options}
    return affine_dense((*shape, 1), filters=(4, 8), encoder=(4, 8), decoder=(8, 8, 4), **options)


def compiled(model):
    model.compile(
        keras.optimizers.Adam(5e-3),
        loss={"warped": NCC(), "warped_affine": NCC(), "residual": Diffusion()},
        loss_weights={"warped": 1.0, "warped_affine": 0.5, "residual": 0.01},
    )
    return model


@pytest.mark.parametrize(
    ("head", "shape"),
    [
        (VelocityHead(3), (17, 30)),
        (VelocityHead(3, downsize=2), (5, 4)),
        (DenseHead(), (9, 7, 12)),
    ],
)
def test_identity_at_start(head, shape):
    model = small(shape, head=head)
    result = check_identity_at_start(model, shape)
    expected = {"warped", "warped_affine", "matrix", "displacement", "residual"}
    assert set(result) - {"velocity"} == expected
    assert ("velocity" in result) == isinstance(head, VelocityHead)
    np.testing.assert_allclose(result["warped_affine"], result["warped"], atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 17), (8, 7, 12)], ids=str)
def test_the_moving_image_is_warped_once_by_the_composed_field(shape):
    model = small(shape)
    make_active(model, 0.1)
    data = noise(shape)
    result = model.predict(data, verbose=0)
    frame = centred_frame(shape)
    total = []
    for matrix, residual in zip(result["matrix"], result["residual"], strict=True):
        voxels = np.linalg.inv(frame) @ matrix @ frame
        points = (grid(shape) + residual) @ voxels[:-1, :-1].T + voxels[:-1, -1]
        total.append(points - grid(shape))
    assert np.abs(result["residual"]).max() > 0.02
    assert np.abs(total - result["residual"]).max() > 0.05
    np.testing.assert_allclose(result["displacement"], total, atol=1e-4)
    expected = ops.convert_to_numpy(warp(data["moving"], result["displacement"]))
    np.testing.assert_allclose(result["warped"], expected, atol=1e-5)


def test_the_dense_stage_sees_what_the_linear_one_has_warped():
    model = small((16, 16))
    outputs = {"seen": model.get_layer("dense_pair").output, **model.output}
    both = keras.Model(model.input, outputs)
    data = images((16, 16))
    before = both.predict(data, verbose=0)
    coefficients = model.get_layer("coefficients")
    kernel, bias = coefficients.get_weights()
    coefficients.set_weights([kernel, bias + np.array([0.25, 0, 0, 0, 0, 0], "float32")])
    after = both.predict(data, verbose=0)
    # A quarter of half the image: two rows.
    np.testing.assert_allclose(after["displacement"][..., 0], 2, atol=1e-4)
    np.testing.assert_allclose(after["warped"], after["warped_affine"], atol=1e-5)
    np.testing.assert_allclose(after["seen"][:, :-2, :, 0], before["seen"][:, 2:, :, 0], atol=1e-4)
    np.testing.assert_allclose(after["seen"][..., 1], before["seen"][..., 1], atol=1e-5)


def test_learns():
    data = images((16, 16), batch=4)
    history = compiled(small((16, 16))).fit(data, batch_size=4, epochs=25, verbose=0).history
    for name in ("warped_loss", "warped_affine_loss"):
        assert history[name][-1] < 0.6 * history[name][0]


def test_every_weight_is_trained_by_the_last_image_alone():
    model = small((12, 9))
    model.compile(keras.optimizers.Adam(1e-2), loss={"warped": NCC()})
    check_every_weight_is_trained(model, noise((12, 9)))


def test_brightness_and_contrast_change_nothing():
    check_brightness_and_contrast_change_nothing(small((16, 15)), (16, 15))


def test_mixed_precision_keeps_coordinates_float32():
    model = under_bfloat16(lambda: small((12, 11)))
    assert model.get_layer("encoder0").compute_dtype == "bfloat16"
    check_identity_at_start(model, (12, 11))


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"known spatial sizes.*Received.*None"):
        affine_dense((None, 16, 1))
    with pytest.raises(ValueError, match=r"one decoder entry for each.*Received"):
        affine_dense((16, 16, 1), encoder=(4, 8), decoder=(8,))
    with pytest.raises(ValueError, match=r"Homography\(\) in 2 dimensions"):
        affine_dense((8, 8, 8, 1), group=groups.Homography())
    with pytest.raises(ValueError, match="Expected an image shape"):
        affine_dense((16, 16))
