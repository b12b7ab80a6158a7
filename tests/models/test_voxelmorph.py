import keras
import numpy as np
import pytest
from keras import ops

from kreg.losses import NCC, Diffusion, LandmarkDistance, SoftDice
from kreg.models import DenseHead, VelocityHead
from kreg.models.voxelmorph import voxelmorph
from kreg.ops import displace_points, integrate, resize, warp
from tests.fresh_process import Saved, in_fresh_process
from tests.models.pairs import (
    check_brightness_and_contrast_change_nothing,
    check_every_weight_is_trained,
    check_identity_at_start,
    images,
    make_active,
    noise,
    shifted_blobs,
    under_bfloat16,
)

SMALL = {"encoder": (4, 8), "decoder": (8, 8, 4)}
HEADS = {
    "velocity": lambda: VelocityHead(steps=3),
    "half": lambda: VelocityHead(steps=3, downsize=2),
    "dense": DenseHead,
}


def small(shape, **options):
    return voxelmorph((*shape, 1), **{**SMALL, "head": VelocityHead(steps=3), **options})


def compiled(model, **losses):
    losses = {"warped": NCC(), "displacement": Diffusion(), **losses}
    weights = {**dict.fromkeys(losses, 1.0), "displacement": 0.01}
    model.compile(keras.optimizers.Adam(1e-2), loss=losses, loss_weights=weights)
    return model


@pytest.mark.parametrize(("dimensions", "weights"), [(3, 327_331), (2, 109_170)])
def test_has_as_many_weights_as_the_original(dimensions, weights):
    # Channels in and out of each convolution of the public code's default U-Net and of its flow.
    encoder = [(2, 16), (16, 32), (32, 32), (32, 32)]
    decoder = [(32, 32), (32 + 32, 32), (32 + 32, 32), (32 + 32, 32)]
    full_size = [(32 + 16, 32), (32, 16), (16, 16), (16, dimensions)]
    counted = sum(3**dimensions * i * o + o for i, o in encoder + decoder + full_size)
    assert voxelmorph((16,) * dimensions + (1,)).count_params() == counted == weights


@pytest.mark.parametrize(
    ("head", "shape"),
    [("velocity", (17, 30)), ("dense", (9, 7, 12)), ("half", (5, 4)), ("half", (9, 7, 12))],
)
def test_identity_at_start(head, shape):
    check_identity_at_start(small(shape, head=HEADS[head]()), shape)


def test_sizes_may_be_unknown():
    model = small((None, None), labels=2, landmarks=True, head=HEADS["half"]())
    make_active(model)
    for shape in ((12, 9), (7, 10)):
        result = model.predict(shifted_blobs(shape), verbose=0)
        assert result["warped"].shape == (2, *shape, 1)
        assert result["warped_labels"].shape == (2, *shape, 2)
        assert result["landmarks"].shape == (2, 1, 2)


@pytest.mark.parametrize("shape", [(12, 10), (6, 8, 4)], ids=str)
def test_half_resolution_averages_the_velocity_and_integrates_it_there(shape):
    model = small(shape, head=VelocityHead(3, downsize=2))
    make_active(model, 0.3)
    outputs = {**model.output, "full": model.get_layer("velocity").output}
    found = keras.Model(model.input, outputs).predict(images(shape), verbose=0)
    blocks = found["full"].reshape(2, *(n for size in shape for n in (size // 2, 2)), len(shape))
    means = blocks.mean(axis=tuple(range(2, 2 + 2 * len(shape), 2)))
    assert np.abs(means).max() > 0.01
    np.testing.assert_allclose(found["velocity"], means / 2, atol=1e-5)  # in voxels twice as wide
    expected = resize(integrate(found["velocity"], 3), shape)
    np.testing.assert_allclose(found["displacement"], ops.convert_to_numpy(expected), atol=1e-5)


@pytest.mark.parametrize("downsize", [0, -1, 1.5])
def test_the_head_refuses_other_downsizes(downsize):
    with pytest.raises(ValueError, match=r"`downsize` to be an integer >= 1\. Received"):
        VelocityHead(downsize=downsize)


@pytest.mark.parametrize(("head", "shape"), [("half", (16, 16)), ("velocity", (8, 8, 8))])
def test_learns(head, shape):
    model = compiled(small(shape, head=HEADS[head]()))
    losses = model.fit(images(shape, 4), batch_size=4, epochs=25, verbose=0).history
    assert losses["warped_loss"][-1] < 0.6 * losses["warped_loss"][0]


def test_every_weight_is_trained():
    check_every_weight_is_trained(compiled(small((12, 9))), noise((12, 9)))


def test_brightness_and_contrast_change_nothing():
    check_brightness_and_contrast_change_nothing(small((16, 15)), (16, 15))


def test_mixed_precision_keeps_coordinates_float32():
    model = under_bfloat16(lambda: small((12, 11), head=HEADS["half"]()))
    assert model.get_layer("encoder0").compute_dtype == "bfloat16"
    check_identity_at_start(model, (12, 11))


# --- annotations ---


def annotated(shape, **options):
    return compiled(
        small(shape, labels=2, landmarks=True, **options),
        warped_labels=SoftDice(),
        landmarks=LandmarkDistance(),
    )


@pytest.mark.parametrize("shape", [(12, 10), (6, 8, 7)], ids=str)
def test_annotations_are_moved_by_the_same_displacement(shape):
    data = shifted_blobs(shape)
    model = annotated(shape)
    make_active(model, 0.3)
    found = model.predict(data, verbose=0)
    field = found["displacement"]
    assert np.abs(field).max() > 0.1
    labels = ops.convert_to_numpy(warp(data["moving_labels"], field))
    np.testing.assert_allclose(found["warped_labels"], labels, atol=1e-5)
    points = ops.convert_to_numpy(displace_points(data["fixed_landmarks"], field))
    np.testing.assert_allclose(found["landmarks"], points, atol=1e-5)
    losses = model.evaluate(data, return_dict=True, verbose=0)
    dice = SoftDice()(data["fixed_labels"], labels)
    assert losses["warped_labels_loss"] == pytest.approx(float(dice), rel=1e-4)
    distance = LandmarkDistance()(data["moving_landmarks"], points)
    assert losses["landmarks_loss"] == pytest.approx(float(distance), rel=1e-4)


def test_annotations_alone_train_the_model():
    data = shifted_blobs((16, 16), 4)
    model = small((16, 16), labels=2, landmarks=True)
    model.compile(
        keras.optimizers.Adam(1e-2),
        loss={
            "warped_labels": SoftDice(),
            "landmarks": LandmarkDistance(),
            "velocity": Diffusion(),
        },
        loss_weights={"warped_labels": 1.0, "landmarks": 0.1, "velocity": 0.5},
    )
    losses = model.fit(data, batch_size=4, epochs=30, verbose=0).history
    for name in ("warped_labels_loss", "landmarks_loss"):
        assert losses[name][-1] < 0.7 * losses[name][0]


def test_a_missing_landmark_leaves_the_weights_finite():
    data = shifted_blobs((12, 12))
    for name in ("fixed_landmarks", "moving_landmarks"):
        data[name] = np.concatenate([data[name], np.full_like(data[name], np.nan)], axis=1)
    check_every_weight_is_trained(annotated((12, 12)), data)


def test_the_weights_serve_a_model_without_annotations():
    data = shifted_blobs((12, 12))
    model, plain = annotated((12, 12)), small((12, 12))
    make_active(model)
    plain.set_weights(model.get_weights())
    expected = model.predict(data, verbose=0)
    found = plain.predict(images((12, 12)), verbose=0)
    assert set(found) == {"warped", "displacement", "velocity"}
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6)


def test_comes_back_in_a_fresh_process(tmp_path):
    data = shifted_blobs((12, 11))
    model = annotated((12, 11), head=HEADS["half"]())
    make_active(model)
    found = in_fresh_process({"model": Saved(model, data)}, tmp_path)["model"]
    expected = model.predict_on_batch(data)
    assert np.abs(expected["displacement"]).max() > 1e-3
    for output, value in expected.items():
        np.testing.assert_allclose(found[output], value, atol=1e-5)
    loss = float(model.test_on_batch(data, return_dict=True)["loss"])
    assert float(found["loss"]) == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": ()}, "non-empty encoder"),
        ({"encoder": (4, 8, 8), "decoder": (8, 8)}, "one decoder entry for each"),
        ({"labels": 0}, "`labels` >= 1"),
    ],
)
def test_refuses_what_does_not_fit(options, message):
    with pytest.raises(ValueError, match=rf"{message}.*Received"):
        voxelmorph((16, 16, 1), **options)
    with pytest.raises(ValueError, match="Expected an image shape"):
        voxelmorph((16, 16))
