import keras
import numpy as np
import pytest

import kreg
from kreg.metrics import NCC, ncc


def images(seed=0, n=4):
    return np.random.default_rng(seed).random((2, n, 9, 8, 1), "float32")


def test_metric_is_the_similarity_not_the_loss():
    fixed, warped = images()
    metric = NCC()
    metric.update_state(fixed, 3 * fixed + 1)
    assert float(metric.result()) == pytest.approx(1, abs=1e-5)
    metric.reset_state()
    metric.update_state(fixed, warped)
    expected = [np.corrcoef(f.ravel(), w.ravel())[0, 1] for f, w in zip(fixed, warped, strict=True)]
    assert float(metric.result()) == pytest.approx(np.mean(expected), abs=1e-5)


def test_sample_weights_weight_the_samples():
    fixed, warped = images()
    weights = np.array([3, 0, 1, 0], "float32")
    metric = NCC()
    metric.update_state(fixed, warped, sample_weight=weights)
    values = keras.ops.convert_to_numpy(ncc(fixed, warped))
    assert float(metric.result()) == pytest.approx((3 * values[0] + values[2]) / 4, abs=1e-5)


@pytest.mark.parametrize("channel", [False, True])
def test_a_mask_weights_the_voxels_inside_the_correlation(channel):
    fixed, warped = images()
    warped[:, :5] = fixed[:, :5]
    mask = np.zeros((4, 9, 8), "float32")
    mask[:, :5] = 1
    metric = NCC()
    metric.update_state(fixed, warped, sample_weight=mask[..., None] if channel else mask)
    assert float(metric.result()) == pytest.approx(1, abs=1e-5)


def test_half_precision_images_are_compared_in_the_metric_s_precision():
    fixed, warped = images()
    metric = NCC()
    metric.update_state(fixed, keras.ops.cast(warped, "float16"))
    expected = np.mean(keras.ops.convert_to_numpy(ncc(fixed, warped)))
    assert float(metric.result()) == pytest.approx(expected, abs=1e-3)


def test_metric_and_loss_of_one_name_are_saved_apart():
    for original in (kreg.losses.NCC(), kreg.metrics.NCC(), kreg.losses.NCC()):
        saved = keras.saving.serialize_keras_object(original)
        assert type(keras.saving.deserialize_keras_object(saved)) is type(original)
