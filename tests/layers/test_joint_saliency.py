"""What JointSaliency does; what holds for every layer is in tests/layers/test_every_layer.py."""

import keras
import numpy as np
import pytest
from keras import backend, ops

from kreg.data import load_handwritten_digits
from kreg.data.missing import missing_digit_pairs
from kreg.layers.joint_saliency import JointSaliency
from kreg.ops import warp
from kreg.ops.saliency import OriginalSaliency, TensorCorrelation
from tests.fields import random_pair
from tests.gradients import gradients

KINDS = [TensorCorrelation((1.0, 2.0), contrast=0.2), OriginalSaliency(1.5)]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


@each_kind
def test_is_the_map_of_its_kind(kind):
    pair = random_pair((9, 12), channels=2)
    found = JointSaliency(kind)(*pair)
    np.testing.assert_allclose(numpy(found), numpy(kind(*pair)), atol=1e-5)
    assert JointSaliency().kind == TensorCorrelation()


@each_kind
def test_gradients_reach_both_images(kind):
    pair = random_pair((9, 12))
    found = gradients(lambda *images: ops.sum(JointSaliency(kind)(*images)), *pair)
    expected = gradients(lambda *images: ops.sum(kind(*images)), *pair)
    for compiled, plain in zip(found, expected, strict=True):
        assert np.abs(plain).max() > 0.1
        np.testing.assert_allclose(compiled, plain, atol=1e-3 * np.abs(plain).max())


def test_is_float32_whatever_the_policy():
    pair = random_pair((9, 12))
    layer = JointSaliency(dtype="mixed_bfloat16")
    found = layer(*pair)
    assert backend.standardize_dtype(found.dtype) == "float32"
    np.testing.assert_array_equal(numpy(found), numpy(JointSaliency()(*pair)))
    symbolic = layer(*(keras.KerasTensor(image.shape, "bfloat16") for image in pair))
    assert (symbolic.shape, symbolic.dtype) == ((2, 9, 12, 1), "float32")


@each_kind
def test_comes_back_from_a_file(kind, tmp_path):
    inputs = [keras.Input((9, 12, 2)) for _ in range(2)]
    keras.Model(inputs, JointSaliency(kind)(*inputs)).save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    assert model.layers[-1].kind == kind
    pair = random_pair((9, 12), channels=2)
    np.testing.assert_allclose(model.predict_on_batch(list(pair)), numpy(kind(*pair)), atol=1e-5)


def test_refuses_unknown_and_unequal_sizes():
    with pytest.raises(ValueError, match=r"known spatial sizes.*Received"):
        JointSaliency()(*(keras.Input((None, 12, 1)) for _ in range(2)))
    with pytest.raises(ValueError, match=r"`fixed` and `warped` of equal shape"):
        JointSaliency()(keras.Input((9, 12, 1)), keras.Input((9, 13, 1)))
    with pytest.raises(ValueError, match=r"`fixed` and `warped` of equal shape"):
        JointSaliency()(np.zeros((1, 9, 12, 1)), np.zeros((1, 9, 13, 1)))


def area_under_roc(scores, positive):
    """The share of pairs (positive, negative) in which the positive has the higher score."""
    order = np.argsort(np.argsort(scores))
    count = positive.sum()
    excess = order[positive].sum() - count * (count - 1) / 2
    return excess / (count * (~positive).sum())


def test_tells_edges_that_one_image_lacks_from_those_of_both():
    pytest.importorskip("sklearn")
    pairs = missing_digit_pairs(load_handwritten_digits().test.images, batch_size=12)
    (batch,) = pairs[0]
    warped = numpy(warp(batch["moving"], batch["displacement"]))
    slopes = [np.gradient(x, axis=(1, 2)) for x in (batch["fixed"], warped)]
    edges = np.maximum(*(np.hypot(*slope) for slope in slopes)) > 0.1
    unaltered = batch["altered"][edges] == 0
    areas = {
        kind: area_under_roc(numpy(kind(batch["fixed"], warped))[edges], unaltered)
        for kind in (TensorCorrelation(), OriginalSaliency())
    }
    assert areas[TensorCorrelation()] > 0.93
    assert areas[OriginalSaliency()] < areas[TensorCorrelation()] - 0.02
