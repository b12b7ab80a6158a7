"""What SaliencyRefinement does, beside what holds for every layer."""

import keras
import numpy as np
import pytest
from keras import backend, ops
from scipy import ndimage

from kreg.layers.saliency_refinement import RefinementStage, SaliencyRefinement
from kreg.metrics import folding_fraction
from kreg.ops import gaussian_filter, nearest_border, warp
from kreg.ops.saliency import LocallyNormalised, TensorCorrelation
from tests.fields import smooth_field
from tests.gradients import gradients
from tests.layers.conftest import forget_compiled

STAGES = (RefinementStage(3, 1, 4, elastic=1.5), RefinementStage(2, 0, 6, elastic=1.0))


@pytest.fixture(autouse=True)
def _uncompiled(uncompiled_refinement):
    """See there."""


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def texture(shape, seed=0, sigma=1.5):
    noise = np.random.default_rng(seed).normal(size=shape)
    image = ndimage.gaussian_filter(noise, sigma)
    return ((image - image.min()) / np.ptp(image)).astype("float32")[None, ..., None]


def textured_pair(shape, largest=1.5):
    """Fixed and moving image and the field between them."""
    moving, truth = texture(shape), smooth_field(shape, largest, sigma=6.0, batch=1)
    return numpy(warp(moving, truth, border=nearest_border)), moving, truth


def error(found, truth):
    inner = (slice(None), *[slice(3, -3)] * (truth.ndim - 2))
    return float(np.linalg.norm(numpy(found) - truth, axis=-1)[inner].mean())


def slow_step(fixed, moving, u, stage, saliency):
    """One step in 2-D by NumPy and SciPy, voxel by voxel."""
    shape = fixed.shape[1:3]
    at = np.indices(shape) + np.moveaxis(u[0], -1, 0)
    warped = ndimage.map_coordinates(moving[0, ..., 0], at, order=1, mode="nearest")
    joint = numpy(saliency(fixed, warped[None, ..., None].astype("float32")))[0, ..., 0]
    weights = ((joint + 1e-3) / (1 + 1e-3)) ** stage.power
    f, w = (ndimage.gaussian_filter(x, stage.blur) for x in (fixed[0, ..., 0], warped))
    slopes = (np.stack(np.gradient(f)) + np.stack(np.gradient(w))) / 2

    def window(x):
        return ndimage.gaussian_filter(x, stage.window, truncate=8)

    tensor = [[window(weights * slopes[i] * slopes[j]) for j in range(2)] for i in range(2)]
    force = [window(weights * slope * (f - w)) for slope in slopes]
    trace = tensor[0][0] + tensor[1][1]
    hold = stage.stiffness * trace.mean()
    change = np.zeros((*shape, 2))
    for place in np.ndindex(*shape):
        matrix = np.array([[row[place] for row in rows] for rows in tensor]) + hold * np.eye(2)
        change[place] = np.linalg.solve(matrix, [x[place] for x in force])
    change *= np.minimum(1, 2 / np.linalg.norm(change, axis=-1, keepdims=True))
    confidence = trace / (trace + 4 * hold)
    total = window(confidence) + 1e-3
    change = np.stack([window(confidence * c) / total for c in np.moveaxis(change, -1, 0)])
    steepest = max(np.abs(np.gradient(c)).max() for c in change)
    change *= min(1, 0.45 / steepest)
    at = np.indices(shape) + change
    moved = [
        c + ndimage.map_coordinates(v, at, order=1, mode="nearest")
        for c, v in zip(change, np.moveaxis(u[0], -1, 0), strict=True)
    ]
    return np.stack([ndimage.gaussian_filter(m, stage.elastic, truncate=8) for m in moved], -1)


def test_one_step_is_the_equation():
    fixed, moving, _ = textured_pair((30, 34))
    stage = RefinementStage(2.5, 0.7, 1, power=3, elastic=1.2, stiffness=0.1)
    start = smooth_field((30, 34), 0.5, batch=1, seed=3)
    found = SaliencyRefinement([stage])(fixed, moving, start)
    expected = slow_step(fixed, moving, start, stage, TensorCorrelation())
    assert np.abs(expected - start[0]).max() > 0.3
    np.testing.assert_allclose(numpy(found)[0], expected, atol=2e-3)


@pytest.mark.parametrize("shape", [(32, 40), (20, 16, 18)], ids=str)
@pytest.mark.parametrize("saliency", [TensorCorrelation(), None], ids=["saliency", "none"])
def test_finds_a_known_field(shape, saliency):
    fixed, moving, truth = textured_pair(shape)
    found = SaliencyRefinement(STAGES, saliency=saliency)(fixed, moving, np.zeros_like(truth))
    before = error(np.zeros_like(truth), truth)
    assert before > 0.4
    assert error(found, truth) < 0.35 * before
    assert float(np.max(numpy(folding_fraction(found)))) == 0


def test_images_that_agree_are_left_alone():
    image, still = texture((24, 28)), np.zeros((1, 24, 28, 2), "float32")
    for normalisation in (None, 4):
        layer = SaliencyRefinement(STAGES, normalisation=normalisation)
        np.testing.assert_allclose(numpy(layer(image, image, still)), 0, atol=1e-4)


def test_a_part_that_one_image_lacks_pulls_only_without_saliency():
    fixed, moving, truth = textured_pair((40, 48))
    spot = np.zeros(fixed.shape, "float32")
    spot[:, 16:24, 20:29] = 1
    fixed = np.where(gaussian_filter(spot, 0.7) > 0.5, 1.5, fixed).astype("float32")
    near = numpy(gaussian_filter(spot, 4.0))[..., 0] > 0.05
    near &= spot[..., 0] == 0

    def nearby(saliency):
        found = SaliencyRefinement(STAGES, saliency=saliency)(fixed, moving, 0 * truth)
        return np.linalg.norm(numpy(found) - truth, axis=-1)[near].mean()

    assert nearby(TensorCorrelation()) < 0.6 * nearby(None)


def test_contrast_of_one_image_changes_little_where_it_is_normalised():
    fixed, moving, truth = textured_pair((40, 48))
    shaded = (0.2 + 0.5 * fixed) * np.linspace(0.7, 1.3, 48, dtype="float32")[:, None]
    errors = []
    for saliency, normalisation in ((TensorCorrelation(), None), (LocallyNormalised(sigma=5), 5)):
        layer = SaliencyRefinement(STAGES, saliency=saliency, normalisation=normalisation)
        errors.append(error(layer(shaded, moving, 0 * truth), truth))
    assert errors[1] < 0.5 * errors[0]


def test_a_pair_does_not_depend_on_its_neighbours():
    one, two = textured_pair((24, 28)), [7 * x for x in textured_pair((24, 28), 0.5)]
    batch = [np.concatenate(pair) for pair in zip(one[:2], two[:2], strict=True)]
    layer = SaliencyRefinement(STAGES)
    still = np.zeros((2, 24, 28, 2), "float32")
    alone = layer(*one[:2], still[:1])
    np.testing.assert_allclose(numpy(layer(*batch, still))[:1], numpy(alone), atol=1e-4)


@pytest.mark.skipif(keras.config.backend() == "torch", reason="PyTorch compiles nothing")
def test_compiled_steps_are_the_same(monkeypatch, uncompiled_refinement):
    fixed, moving, truth = textured_pair((16, 18))
    start = 0.3 * truth

    def found():
        forget_compiled()
        layer = SaliencyRefinement([RefinementStage(2, 0.7, 2)], normalisation=4)
        layer(fixed, moving, start)
        values = numpy(layer(fixed, moving, start))
        return values, gradients(
            lambda u: ops.sum(ops.square(layer(fixed, moving, u) - ops.convert_to_tensor(truth))),
            start,
        )[0]

    plain = found()
    monkeypatch.undo()
    for compiled, expected in zip(found(), plain, strict=True):
        np.testing.assert_allclose(compiled, expected, atol=2e-3 * np.abs(expected).max())


class Detached:
    """A saliency without gradient."""

    def __init__(self, kind):
        self.kind = kind

    def describe(self, image):
        return self.kind.describe(image)

    def compare(self, fixed, warped):
        return ops.stop_gradient(self.kind.compare(fixed, warped))


def test_gradients_reach_the_coarse_displacement_through_the_saliency():
    fixed, moving, truth = textured_pair((20, 24))
    stages = [RefinementStage(2, 0, 2)]
    start = (0.5 * truth).astype("float32")
    found = {}
    for kind in (TensorCorrelation(), Detached(TensorCorrelation())):
        layer = SaliencyRefinement(stages, saliency=kind)
        layer.build()
        found[kind] = gradients(
            lambda u, layer=layer: ops.sum(
                ops.square(layer(fixed, moving, u) - ops.convert_to_tensor(truth))
            ),
            start,
        )[0]
    both, without = found.values()
    assert np.isfinite(both).all()
    # What the weights alone contribute.
    assert np.abs(both - without).max() > 0.05 * np.abs(both).max()


def test_gradient_is_the_slope():
    fixed, moving, truth = textured_pair((16, 18))
    layer = SaliencyRefinement([RefinementStage(2, 0, 2)], normalisation=None)
    direction = smooth_field((16, 18), 1.0, batch=1, seed=5)

    def loss(u):
        return ops.sum(ops.square(layer(fixed, moving, u) - ops.convert_to_tensor(truth)))

    start = (0.4 * truth).astype("float32")
    slope = float(np.sum(gradients(loss, start)[0] * direction))
    values = [float(numpy(loss((start + h * direction).astype("float32")))) for h in (0.02, -0.02)]
    assert slope == pytest.approx((values[0] - values[1]) / 0.04, rel=0.05)


def test_its_numbers_can_be_learned_or_fixed():
    layers = [SaliencyRefinement(STAGES, trainable=trainable) for trainable in (True, False)]
    fixed, moving, truth = textured_pair((20, 24))
    for layer in layers:
        layer(fixed, moving, 0 * truth)
    assert [len(layer.trainable_weights) for layer in layers] == [2, 0]
    without = SaliencyRefinement(STAGES, saliency=None)
    without(fixed, moving, 0 * truth)
    assert len(without.trainable_weights) == 1
    by_name = {weight.name: np.exp(numpy(weight)) for weight in layers[0].weights}
    np.testing.assert_allclose(by_name["log_power"], [4, 4], rtol=1e-6)


def test_its_numbers_are_learned():
    fixed, moving, truth = textured_pair((16, 18))
    inputs = [keras.Input(x.shape[1:]) for x in (fixed, moving, truth)]
    layer = SaliencyRefinement([RefinementStage(3, 0, 2)])
    model = keras.Model(inputs, layer(*inputs))
    model.compile(keras.optimizers.Adam(0.03), "mean_squared_error")
    before = model.get_weights()
    history = model.fit([fixed, moving, 0 * truth], truth, epochs=5, verbose=0).history["loss"]
    assert history[-1] < history[0]
    changed = zip(model.get_weights(), before, strict=True)
    assert all(np.abs(now - then).max() > 1e-3 for now, then in changed)


def test_is_float32_whatever_the_policy():
    fixed, moving, truth = textured_pair((20, 24))
    found = SaliencyRefinement(STAGES, dtype="mixed_bfloat16")(fixed, moving, 0 * truth)
    assert backend.standardize_dtype(found.dtype) == "float32"


def test_comes_back_from_a_file(tmp_path):
    fixed, moving, truth = textured_pair((16, 18))
    stages = (RefinementStage(2, 0.5, 1), RefinementStage(1, 0, 1))
    inputs = [keras.Input(x.shape[1:]) for x in (fixed, moving, truth)]
    layer = SaliencyRefinement(stages, saliency=TensorCorrelation((1.0,)), normalisation=5)
    model = keras.Model(inputs, layer(*inputs))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras").layers[-1]
    assert (again.stages, again.saliency) == (stages, TensorCorrelation((1.0,)))
    expected, found = (each(fixed, moving, truth) for each in (layer, again))
    np.testing.assert_allclose(numpy(found), numpy(expected), atol=1e-5)


def test_says_what_it_expects():
    with pytest.raises(ValueError, match=r"at least one stage.*Received"):
        SaliencyRefinement([])
    with pytest.raises(ValueError, match=r"`normalisation` None or > 0.*Received"):
        SaliencyRefinement(STAGES, normalisation=0)
    with pytest.raises(ValueError, match=r"Expected positive `window`.*Received"):
        RefinementStage(0, 1, 2)
    layer, field = SaliencyRefinement(STAGES), np.zeros((1, 9, 12, 2), "float32")
    image = np.zeros((1, 9, 12, 1), "float32")
    with pytest.raises(ValueError, match=r"`fixed` and `moving` of equal shape"):
        layer(image, image[:, 1:], field)
    with pytest.raises(ValueError, match=r"grid of the images.*Received"):
        layer(image, image, field[:, 1:])
    with pytest.raises(ValueError, match=r"known.*spatial sizes.*Received"):
        layer(*(keras.Input((None, 12, channels)) for channels in (1, 1, 2)))
