"""What holds for every loss of `kreg.losses`, and what for those on images or on fields."""

import keras
import numpy as np
import pytest
from keras import ops

from kreg import losses
from kreg.losses import (
    MIND,
    MINE,
    NCC,
    BendingEnergy,
    Charbonnier,
    Critic,
    Diffusion,
    EndpointError,
    FeatureResidual,
    FieldLoss,
    Folding,
    GradientMagnitude,
    GridDistance,
    ImageLoss,
    InverseConsistency,
    LandmarkDistance,
    LocalNCC,
    MutualInformation,
    NormalisedGradientFields,
    NormalisedMutualInformation,
    SaliencyWeighted,
    SoftDice,
    TotalVariation,
    WeightedSum,
)
from kreg.ops import TensorCorrelation
from tests.fields import SHAPES, smooth_field
from tests.fresh_process import Saved, in_fresh_process
from tests.gradients import gradients


def weighted_field_losses(reduction="sum_over_batch_size"):
    return WeightedSum([Diffusion(reduction=reduction), Folding(reduction=reduction)], [1.0, 0.5])


def weighted_image_losses(reduction="sum_over_batch_size"):
    return WeightedSum([NCC(reduction=reduction), LocalNCC(3, reduction=reduction)], [1.0, 0.5])


# How each loss is made, no argument at its default; given a `reduction`.
IMAGE_LOSSES = {
    "NCC": NCC,
    "LocalNCC": lambda **options: LocalNCC(3, fixed_gradient=True, **options),
    "MutualInformation": lambda **options: MutualInformation(bins=8, sigma=0.5, **options),
    "NormalisedMutualInformation": lambda **options: NormalisedMutualInformation(
        bins=8, sigma=0.5, **options
    ),
    "MIND": lambda **options: MIND(window=5, distance=1, **options),
    "NormalisedGradientFields": lambda **options: NormalisedGradientFields(0.5, **options),
    "SoftDice": SoftDice,
    "Charbonnier": lambda **options: Charbonnier(0.01, **options),
    "GradientMagnitude": lambda **options: GradientMagnitude(0.01, **options),
    "SaliencyWeighted": lambda **options: SaliencyWeighted(
        Charbonnier(0.01), TensorCorrelation((1.0,), contrast=0.2), power=2.0, **options
    ),
    "WeightedSum-images": weighted_image_losses,
}
FIELD_LOSSES = {
    "Diffusion": Diffusion,
    "TotalVariation": lambda **options: TotalVariation(0.01, **options),
    "BendingEnergy": BendingEnergy,
    "Folding": lambda **options: Folding(0.9, **options),
    "WeightedSum-fields": weighted_field_losses,
}
LOSSES = IMAGE_LOSSES | FIELD_LOSSES

each_loss = pytest.mark.parametrize("name", LOSSES)
each_image_loss = pytest.mark.parametrize("name", IMAGE_LOSSES)
each_field_loss = pytest.mark.parametrize("name", FIELD_LOSSES)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def test_no_loss_is_left_out():
    public = {getattr(losses, name) for name in losses.__all__}
    concrete = {x for x in public if isinstance(x, type)} - {FieldLoss, ImageLoss}
    # Other shapes: in their own tests.
    concrete -= {InverseConsistency, LandmarkDistance, EndpointError, FeatureResidual, GridDistance}
    concrete -= {Critic, MINE}  # its draws are random: tests/losses/test_mine.py
    assert {type(make()) for make in LOSSES.values()} == concrete


def arguments(name, shape, batch=3):
    """(y_true, y_pred) that the loss neither finds perfect nor hopeless."""
    if name in FIELD_LOSSES:
        field = smooth_field(shape, 4.0, sigma=1.0, batch=batch)
        return field, field
    rng = np.random.default_rng(0)
    fixed, noise = rng.uniform(size=(2, batch, *shape, 2)).astype("float32")
    return fixed, 0.5 * fixed + 0.5 * noise


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


@pytest.mark.usefixtures("uncompiled")
@each_loss
@each_shape
def test_gives_one_value_a_sample_whatever_its_neighbours(name, shape):
    loss = LOSSES[name](reduction=None)
    true, predicted = arguments(name, shape)
    together = numpy(loss(true, predicted))
    assert together.shape == (3,)
    assert (together != 0).all()
    for sample in range(3):
        one = slice(sample, sample + 1)
        alone = numpy(loss(true[one], predicted[one]))
        np.testing.assert_allclose(alone, together[one], rtol=1e-5)
    assert float(LOSSES[name]()(true, predicted)) == pytest.approx(together.mean(), rel=1e-5)


@each_loss
def test_weights_of_the_samples_scale_their_values(name):
    true, predicted = arguments(name, (9, 12))
    loss = LOSSES[name](reduction=None)
    weights = np.array([0.0, 1.0, 2.5], "float32")
    expected = weights * numpy(loss(true, predicted))
    np.testing.assert_allclose(numpy(loss(true, predicted, weights)), expected, rtol=1e-5)


@each_loss
@each_shape
def test_constants_give_finite_values_and_gradients(name, shape):
    true, predicted = arguments(name, shape)
    loss = LOSSES[name]()
    constants = [np.full_like(predicted, value) for value in (0.0, 1.0, -1e3, 1e-6)]
    pairs = [(c, c) for c in constants] + [(true, c) for c in constants]
    if name in IMAGE_LOSSES:
        pairs += [(c, predicted) for c in constants]
        half_blank = predicted.copy()
        half_blank[:, : shape[0] // 2] = 0
        pairs += [(half_blank, half_blank), (true, half_blank), (half_blank, true)]
    for pair in pairs:
        assert np.isfinite(float(loss(*pair)))
        to_true, to_predicted = gradients(loss, *pair)
        assert np.isfinite(to_true).all()
        assert np.isfinite(to_predicted).all()


@each_loss
def test_survives_keras_serialisation(name):
    loss = LOSSES[name]()
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(twin) is type(loss)
    assert twin.get_config() == loss.get_config()
    pair = arguments(name, (9, 12))
    assert float(twin(*pair)) == float(loss(*pair))


@each_loss
def test_half_precision_gives_a_float32_value(name):
    true, predicted = arguments(name, (9, 12))
    found = LOSSES[name]()(ops.cast(true, "bfloat16"), ops.cast(predicted, "bfloat16"))
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    assert float(found) == pytest.approx(float(LOSSES[name]()(true, predicted)), rel=0.05)


def plain_model(name, shape=(8, 10)):
    """A user's model that the loss can train: a convolution, any batch."""
    channels = 2
    image = keras.Input((*shape, channels))
    convolution = keras.layers.Conv2D(channels, 3, padding="same", kernel_initializer="he_normal")
    model = keras.Model(image, convolution(image), name=name.replace("-", "_"))
    model.compile(keras.optimizers.Adam(0.03), loss=LOSSES[name]())
    return model


def data(name, batch=6, shape=(8, 10)):
    true, predicted = arguments(name, shape, batch)
    return np.ascontiguousarray(predicted), true


@each_loss
def test_trains_a_plain_keras_model(name):
    x, y = data(name)
    history = plain_model(name).fit(x, y, batch_size=6, epochs=10, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert history["loss"][-1] < history["loss"][0] - 0.004


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory):
    keras.utils.set_random_seed(0)
    saved = {}
    for name in LOSSES:
        x, y = data(name)
        saved[name] = Saved(plain_model(name), [x], y)
    return saved, in_fresh_process(saved, tmp_path_factory.mktemp("losses"))


@each_loss
def test_comes_back_with_a_saved_model_in_a_fresh_process(name, reloaded):
    saved, found = reloaded
    model, (x,), y = saved[name]
    np.testing.assert_allclose(found[name]["output"], model.predict_on_batch(x), atol=1e-5)
    expected = float(model.test_on_batch(x, y))
    assert abs(expected) > 1e-3
    assert float(found[name]["loss"]) == pytest.approx(expected, rel=1e-4)


# --- images ---


@each_image_loss
@each_shape
def test_a_mask_of_zeros_gives_a_finite_value_and_no_gradient(name, shape):
    pair = arguments(name, shape)
    loss = LOSSES[name]()
    mask = np.zeros((3, *shape), "float32")
    assert np.isfinite(float(loss(*pair, mask)))
    for gradient in gradients(lambda *images: loss(*images, mask), *pair):
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@each_image_loss
def test_a_zero_mask_leaves_the_other_samples_alone(name):
    true, predicted = arguments(name, (9, 12))
    mask = np.ones((3, 9, 12), "float32")
    mask[1] = 0
    loss = LOSSES[name](reduction=None)
    expected = numpy(loss(true, predicted))
    found = numpy(loss(true, predicted, mask))
    np.testing.assert_allclose(found[[0, 2]], expected[[0, 2]], atol=1e-5)


@each_image_loss
@pytest.mark.parametrize(
    ("true", "predicted", "message"),
    [
        ((2, 9, 12, 1), (2, 9, 11, 1), r"`fixed` and `warped` of equal shape.*crop one.*Received"),
        ((2, 9, 12, 1), (2, 9, 12, 2), r"`fixed` and `warped` of equal shape"),
        ((2, 9, 12, 1), (3, 9, 12, 1), r"`fixed` and `warped` of equal shape"),
        ((9, 12, 1), (9, 12, 1), r"`fixed` of shape \(batch, \*spatial, channels\).*Received"),
    ],
)
def test_image_losses_refuse_what_does_not_fit(name, true, predicted, message):
    with pytest.raises(ValueError, match=message):
        LOSSES[name]()(np.zeros(true, "float32"), np.zeros(predicted, "float32"))


@pytest.mark.parametrize("function", [losses.ncc, losses.local_ncc])
def test_similarities_refuse_integers(function):
    image = np.zeros((1, 9, 12, 1), "uint8")
    with pytest.raises(ValueError, match=r"`fixed` to hold floating-point.*Received: dtype uint8"):
        function(image, image)


@each_image_loss
@pytest.mark.parametrize("shape", [(3, 9, 11), (3, 12, 9, 1), (3, 9, 12, 1, 1)])
def test_image_losses_refuse_a_mask_of_another_size(name, shape):
    with pytest.raises(ValueError, match=r"Expected a mask of shape.*Received: mask"):
        LOSSES[name]()(*arguments(name, (9, 12)), np.ones(shape, "float32"))


# --- fields ---


@each_field_loss
def test_the_target_of_a_field_loss_is_ignored(name):
    _, field = arguments(name, (9, 12))
    loss = LOSSES[name]()
    for other in (None, np.zeros((3, 1), "float32"), np.full_like(field, np.nan)):
        assert float(loss(other, field)) == float(loss(field, field))


@each_field_loss
@pytest.mark.parametrize("shape", [(2, 2, 9, 12), (2, 9, 12, 3), (9, 12, 2)])
def test_field_losses_refuse_what_is_no_field(name, shape):
    field = np.zeros(shape, "float32")
    with pytest.raises(ValueError, match=r"`field` of shape .*as many components D.*Received"):
        LOSSES[name]()(field, field)
