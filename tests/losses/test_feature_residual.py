import keras
import numpy as np
import pytest
from keras import ops

from kreg.losses.feature_residual import FeatureResidual, feature_residual
from tests.gradients import central_differences, gradients

SHAPES = [(4, 5), (3, 4, 3)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def features(shape, batch=3, channels=3, scale=0.5, seed=0):
    pair = np.random.default_rng(seed).normal(0, scale, (2, batch, *shape, channels))
    return list(pair.astype("float32"))


@each_shape
def test_is_residual_variance_and_covariance(shape):
    fixed, matched = features(shape)
    expected = []
    for pair in zip(fixed, matched, strict=True):
        rows = [x.reshape(-1, 3).astype("float64") for x in pair]
        value = np.mean((rows[1] - rows[0]) ** 2)
        for x in rows:
            spread = np.cov(x.T, bias=True)
            short = np.maximum(1 - np.sqrt(np.diag(spread)), 0).mean()
            between = np.sum(spread**2) - np.sum(np.diag(spread) ** 2)
            value += 2.0 / 2 * short + 0.5 / 2 * between / 3
        expected.append(value)
    found = numpy(feature_residual(fixed, matched, variance=2.0, covariance=0.5))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@each_shape
def test_constant_features_match_everywhere_but_cost_more_than_rich_ones_that_match(shape):
    constant = np.ones((1, *shape, 3), "float32")
    assert float(feature_residual(constant, constant, variance=0, covariance=0)[0]) == 0
    cost = float(feature_residual(constant, constant)[0])
    assert cost == pytest.approx(1, abs=0.01)
    rich = features(shape, batch=1, scale=2.0)[0]
    alike = np.repeat(rich[..., :1], 3, axis=-1)
    different = float(feature_residual(rich, rich)[0])
    assert different < 0.8 * float(feature_residual(alike, alike)[0])
    assert float(feature_residual(rich, rich, covariance=0)[0]) == 0


def train(loss):
    """Deviation of the features that a network learns for an image and the same with noise."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(16, 8, 8, 1))
    pair = [image, image + 0.5 * rng.normal(size=image.shape)]
    inputs = [keras.Input((8, 8, 1)) for _ in pair]
    network = keras.layers.Conv2D(
        4, 3, kernel_initializer=keras.initializers.HeNormal(seed=1), use_bias=False
    )
    both = keras.layers.Concatenate()([network(x) for x in inputs])
    model = keras.Model(inputs, both)
    model.compile(keras.optimizers.Adam(0.05), loss=loss)
    model.fit(pair, np.zeros((16, 1)), batch_size=16, epochs=60, verbose=0)
    found = model.predict_on_batch(pair)
    deviation = found[..., :4].std(axis=(0, 1, 2))
    correlation = np.corrcoef(found[..., :4].reshape(-1, 4).T) - np.eye(4)
    return deviation, np.abs(correlation).max()


def test_without_its_terms_a_network_collapses_and_with_them_it_does_not():
    deviation, _ = train(FeatureResidual(variance=0.0, covariance=0.0))
    assert deviation.max() < 0.1
    deviation, correlation = train(FeatureResidual(variance=1.0, covariance=0.1))
    assert deviation.min() > 0.7
    assert correlation < 0.5


@each_shape
@pytest.mark.parametrize("argument", [0, 1])
def test_gradients_equal_central_differences(shape, argument):
    pair = features(shape, batch=1, channels=2)
    found = gradients(lambda *x: ops.sum(feature_residual(*x)), *pair)[argument]
    expected = central_differences(feature_residual, *pair, argument=argument)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert np.abs(expected).max() > 0.01
    constant = np.ones_like(pair[0])
    for gradient in gradients(lambda *x: ops.sum(feature_residual(*x)), constant, constant):
        assert np.isfinite(gradient).all()


def test_the_loss_splits_its_features_and_survives_serialisation():
    fixed, matched = features((4, 5))
    loss = FeatureResidual(0.5, 0.2, reduction=None)
    expected = numpy(feature_residual(fixed, matched, variance=0.5, covariance=0.2))
    both = np.concatenate([fixed, matched], axis=-1)
    weights = np.array([0, 1, 2.5], "float32")
    np.testing.assert_allclose(
        numpy(loss(np.zeros((3, 1), "float32"), both, weights)), weights * expected, rtol=1e-5
    )
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert twin.get_config() == loss.get_config()
    assert (twin.variance, twin.covariance) == (0.5, 0.2)


def test_refuses_what_does_not_fit():
    fixed, matched = features((4, 5))
    with pytest.raises(ValueError, match=r"features of equal shape.*Received"):
        feature_residual(fixed, matched[:, 1:])
    with pytest.raises(ValueError, match=r"`covariance` >= 0, weights\. Received"):
        feature_residual(fixed, matched, variance=-1)
    with pytest.raises(ValueError, match=r"features of the fixed and of the moving.*Received"):
        FeatureResidual()(None, fixed)
