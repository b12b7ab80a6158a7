import keras
import numpy as np
import pytest
from keras import ops
from scipy import ndimage

from kreg.losses.gradient_fields import NormalisedGradientFields, normalised_gradient_fields
from tests.fields import SHAPES, random_pair
from tests.gradients import central_differences, gradients

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def slow_agreement(fixed, warped, weights, edge):
    """The documented equation for one channel of one sample."""
    normals = []
    for image in (fixed, warped):
        gradient = np.stack(np.gradient(image.astype("float64")), -1)
        magnitude = np.linalg.norm(gradient, axis=-1)
        eps = edge * np.average(magnitude, weights=weights)
        normals.append(gradient / np.sqrt(magnitude**2 + eps**2)[..., None])
    return np.average(np.sum(normals[0] * normals[1], axis=-1) ** 2, weights=weights)


def oracle(fixed, warped, weights, edge=1.0):
    return [
        np.mean([slow_agreement(f[..., c], w[..., c], m, edge) for c in range(f.shape[-1])])
        for f, w, m in zip(fixed, warped, weights, strict=True)
    ]


@each_shape
@pytest.mark.parametrize("edge", [0.1, 1.0, 3.0])
def test_equals_numpys_gradients_averaged_over_channels(shape, edge):
    fixed, warped = random_pair(shape, channels=2)
    expected = oracle(fixed, warped, np.ones((2, *shape)), edge)
    found = numpy(normalised_gradient_fields(fixed, warped, edge=edge))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert 0 < found.min() <= found.max() < 1


@each_shape
@pytest.mark.parametrize("soft", [False, True])
def test_a_mask_weights_the_voxels_whose_neighbours_it_holds(shape, soft):
    fixed, warped = random_pair(shape, channels=2)
    rng = np.random.default_rng(3)
    mask = (rng.random((2, *shape)) < 0.97) * (rng.random((2, *shape)) if soft else 1.0)
    whole = [ndimage.minimum_filter(m > 0, size=3, mode="nearest") for m in mask]
    expected = oracle(fixed, warped, mask * whole)
    found = numpy(normalised_gradient_fields(fixed, warped, mask))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    by_loss = NormalisedGradientFields(reduction=None)(fixed, warped, mask.astype("float32"))
    np.testing.assert_allclose(numpy(by_loss), 1 - np.array(expected), rtol=1e-4)


@each_shape
def test_voxels_outside_the_mask_play_no_part_and_may_be_nan(shape):
    fixed, warped = random_pair(shape)
    mask = np.zeros((2, *shape, 1), "float32")
    mask[:, 2:, 1:-2] = 1
    expected = numpy(normalised_gradient_fields(fixed, warped, mask))
    other = np.where(mask > 0, warped, np.nan).astype("float32")
    found = numpy(normalised_gradient_fields(fixed, other, mask))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    _, gradient = gradients(
        lambda *images: ops.sum(normalised_gradient_fields(*images, mask)), fixed, other
    )
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 1e-3


@each_shape
@pytest.mark.parametrize(("a", "b"), [(3, 0), (0.02, 5), (-200, 70), (1e-9, 0)])
def test_linear_contrast_and_its_inversion_change_nothing(shape, a, b):
    fixed, warped = random_pair(shape)
    expected = numpy(normalised_gradient_fields(fixed, warped))
    found = numpy(normalised_gradient_fields(fixed, (a * warped + b).astype("float32")))
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@each_shape
def test_is_symmetric_and_best_for_equal_images(shape):
    fixed, warped = random_pair(shape)
    forth = numpy(normalised_gradient_fields(fixed, warped))
    np.testing.assert_allclose(numpy(normalised_gradient_fields(warped, fixed)), forth, rtol=1e-5)
    assert (forth < numpy(normalised_gradient_fields(fixed, fixed))).all()


@each_shape
def test_ramps_agree_along_one_axis_and_not_across(shape):
    """With edge 1 a ramp has n^2 = g^2 / (g^2 + g^2) = 1/2, so <n, n>^2 = 1/4."""
    ramps = np.indices(shape).astype("float32")[:, None, ..., None]
    found = numpy(normalised_gradient_fields(ramps[0], -5 * ramps[0]))
    np.testing.assert_allclose(found, 0.25, rtol=1e-4)
    np.testing.assert_allclose(numpy(normalised_gradient_fields(*ramps[:2])), 0, atol=1e-9)


@each_shape
def test_constant_images_agree_with_nothing(shape):
    _, pattern = random_pair(shape)
    constant = np.full_like(pattern, 1000.1)
    for pair in [(constant, constant), (constant, pattern), (pattern, constant)]:
        np.testing.assert_allclose(numpy(normalised_gradient_fields(*pair)), 0, atol=1e-6)
        for gradient in gradients(NormalisedGradientFields(), *pair):
            assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("shape", "channels", "masked"),
    [((5, 6), 2, True), ((3, 4, 4), 1, False)],
    ids=str,
)
def test_gradients_equal_central_differences(shape, channels, masked):
    pair = random_pair(shape, batch=1, channels=channels)
    mask = np.random.default_rng(3).uniform(0.2, 1, size=(1, *shape, 1)).astype("float32")

    def agreement(fixed, warped):
        weights = np.repeat(mask, fixed.shape[0], axis=0) if masked else None
        return normalised_gradient_fields(fixed, warped, weights)

    found = gradients(lambda *images: ops.sum(agreement(*images)), *pair)
    for argument in (0, 1):
        expected = central_differences(agreement, *pair, argument=argument)
        assert np.abs(expected).max() > 0.02
        np.testing.assert_allclose(found[argument], expected, atol=1e-3)


def test_survives_keras_serialisation():
    loss = NormalisedGradientFields(edge=0.3)
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert twin.get_config() == loss.get_config()
    assert twin.edge == 0.3


def test_trains_a_model_of_unknown_size():
    fixed, moving = random_pair((8, 10), batch=4)
    image = keras.Input((None, None, 1))
    model = keras.Model(image, keras.layers.Conv2D(1, 3, padding="same")(image))
    model.compile(keras.optimizers.Adam(0.03), loss=NormalisedGradientFields())
    history = model.fit(moving, fixed, batch_size=4, epochs=10, verbose=0).history["loss"]
    assert history[-1] < history[0] - 0.01


@pytest.mark.parametrize("edge", [0, -1.0])
def test_refuses_an_edge_that_is_not_positive(edge):
    with pytest.raises(ValueError, match=rf"`edge` > 0\. Received: {edge}"):
        normalised_gradient_fields(*random_pair((9, 12)), edge=edge)
