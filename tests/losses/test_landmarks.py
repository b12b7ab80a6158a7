import keras
import numpy as np
import pytest
from keras import backend, ops

from kreg.losses.landmarks import LandmarkDistance, landmark_distance
from tests.gradients import central_differences, gradients

each_dimension = pytest.mark.parametrize("d", [2, 3])


def points(d, *, batch=3, n=5, seed=0):
    reference, offset = np.random.default_rng(seed).normal(size=(2, batch, n, d))
    return (20 * reference).astype("float32"), (20 * reference + 3 * offset).astype("float32")


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


@each_dimension
@pytest.mark.parametrize("epsilon", [1e-3, 0.5])
def test_is_the_mean_smoothed_distance(d, epsilon):
    reference, predicted = points(d)
    distance = np.linalg.norm(predicted.astype("float64") - reference, axis=-1)
    expected = (np.hypot(distance, epsilon) - epsilon).mean(axis=1)
    assert expected.min() > 2
    found = numpy(landmark_distance(reference, predicted, epsilon=epsilon))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(expected, distance.mean(axis=1), atol=epsilon)


def test_spacing_measures_in_its_unit():
    reference, predicted = np.zeros((1, 1, 3)), np.array([[[1.0, 2.0, 2.0]]])
    found = landmark_distance(reference, predicted, spacing=(4, 1.5, 2), epsilon=1e-6)
    assert float(found[0]) == pytest.approx(np.sqrt(41), rel=1e-5)
    by_loss = LandmarkDistance(spacing=(4, 1.5, 2), epsilon=1e-6)(reference, predicted)
    assert float(by_loss) == pytest.approx(np.sqrt(41), rel=1e-5)


@each_dimension
def test_only_the_offset_counts(d):
    reference, predicted = points(d)
    expected = numpy(landmark_distance(reference, predicted))
    turned = np.flip(np.stack([reference, predicted]), axis=-1) + 7
    np.testing.assert_allclose(numpy(landmark_distance(*turned)), expected, rtol=1e-4)
    np.testing.assert_allclose(numpy(landmark_distance(predicted, reference)), expected, rtol=1e-5)


@each_dimension
def test_a_missing_landmark_is_left_out(d):
    reference, predicted = points(d)
    expected = numpy(landmark_distance(reference[:, :3], predicted[:, :3]))
    reference[:, 3] = np.nan
    reference[:, 4, 0] = np.nan  # one coordinate is enough
    predicted[:, 4] = np.nan
    np.testing.assert_allclose(numpy(landmark_distance(reference, predicted)), expected, rtol=1e-6)
    _, gradient = gradients(LandmarkDistance(), reference, predicted)
    np.testing.assert_array_equal(gradient[:, 3:], np.zeros_like(gradient[:, 3:]))
    assert np.abs(gradient[:, :3]).min(axis=1).max() > 1e-3
    assert np.isfinite(gradient).all()


def test_a_set_without_landmarks_costs_nothing():
    reference, predicted = points(2)
    expected = numpy(landmark_distance(reference, predicted))
    reference[1] = np.nan
    found = numpy(landmark_distance(reference, predicted))
    np.testing.assert_allclose(found, expected * [1, 0, 1], rtol=1e-6)
    _, gradient = gradients(LandmarkDistance(), reference, predicted)
    np.testing.assert_array_equal(gradient[1], np.zeros_like(gradient[1]))


@each_dimension
def test_landmarks_that_meet_cost_nothing_and_have_gradient_zero(d):
    reference, _ = points(d)
    np.testing.assert_allclose(numpy(landmark_distance(reference, reference)), 0, atol=1e-9)
    for gradient in gradients(LandmarkDistance(), reference, reference):
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@each_dimension
@pytest.mark.parametrize("argument", [0, 1])
def test_gradients_equal_central_differences(d, argument):
    pair = [x / 10 for x in points(d, batch=1, n=3)]

    def distance(reference, predicted):
        return landmark_distance(reference, predicted, spacing=range(1, d + 1), epsilon=0.3)

    found = gradients(lambda *sets: ops.sum(distance(*sets)), *pair)[argument]
    expected = central_differences(distance, *pair, argument=argument)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(expected).max() > 0.1


def test_the_loss_is_its_function_weighted_by_sample():
    reference, predicted = points(2)
    loss = LandmarkDistance(epsilon=0.2, reduction=None)
    expected = numpy(landmark_distance(reference, predicted, epsilon=0.2))
    np.testing.assert_allclose(numpy(loss(reference, predicted)), expected, rtol=1e-6)
    weights = np.array([0.0, 1.0, 2.5], "float32")
    found = numpy(loss(reference, predicted, weights))
    np.testing.assert_allclose(found, weights * expected, rtol=1e-6)
    half = LandmarkDistance()(ops.cast(reference, "bfloat16"), ops.cast(predicted, "bfloat16"))
    assert backend.standardize_dtype(half.dtype) == "float32"


def test_survives_keras_serialisation():
    loss = LandmarkDistance(spacing=np.array([2.0, 0.5]), epsilon=0.1)
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert twin.get_config() == loss.get_config()
    assert (twin.spacing, twin.epsilon) == ([2, 0.5], 0.1)
    assert float(twin(*points(2))) == float(loss(*points(2)))


def test_trains_a_model_with_missing_landmarks():
    reference, predicted = points(2, batch=6)
    reference[:, 4] = np.nan
    start = keras.Input((5, 2))
    model = keras.Model(start, keras.layers.Dense(2)(start))
    model.compile(keras.optimizers.Adam(0.1), loss=LandmarkDistance())
    history = model.fit(predicted, reference, batch_size=6, epochs=10, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    assert history[-1] < 0.9 * history[0]


@pytest.mark.parametrize(
    ("reference", "predicted"),
    [((2, 5, 2), (2, 4, 2)), ((5, 2), (5, 2)), ((2, 5, 4), (2, 5, 4)), ((2, 5, 2), (2, 5, 3))],
)
def test_refuses_points_that_do_not_fit(reference, predicted):
    with pytest.raises(ValueError, match=r"equal shape \(batch, n, D\).*Received: predicted"):
        LandmarkDistance()(np.zeros(reference, "float32"), np.zeros(predicted, "float32"))


def test_refuses_a_spacing_or_an_epsilon_that_is_not_positive():
    for spacing in [(1, 0), (1, 1, 1)]:
        with pytest.raises(ValueError, match=r"positive spacing for each of the 2 axes\. Received"):
            landmark_distance(*points(2), spacing=spacing)
    for epsilon in (0.0, -1.0):
        with pytest.raises(ValueError, match=rf"`epsilon` > 0\. Received: {epsilon}"):
            landmark_distance(*points(2), epsilon=epsilon)
