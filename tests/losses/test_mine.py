import keras
import numpy as np
import pytest
from keras import ops
from scipy.special import logsumexp

from kreg import RegistrationModel
from kreg.losses import NCC, ImageLoss, WeightedSum
from kreg.losses.mine import MINE, Critic, InformationEstimator, _draw, donsker_varadhan
from tests.fields import SHAPES
from tests.gradients import central_differences, gradients

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def gaussian_pair(shape, correlation, *, batch=4, seed=0):
    """Images of normal values that correlate so much voxel by voxel."""
    fixed, noise = np.random.default_rng(seed).normal(size=(2, batch, *shape, 1))
    warped = correlation * fixed + np.sqrt(1 - correlation**2) * noise
    return fixed.astype("float32"), warped.astype("float32")


def information(correlation):
    """Of two normal variables."""
    return -0.5 * np.log(1 - correlation**2)


def frozen(estimator):
    """The estimate of images and weights, from the same draws in every call."""
    trained, other = (
        [variable.value for variable in variables]
        for variables in (estimator.trainable_variables, estimator.non_trainable_variables)
    )

    def similarity(fixed, warped, mask=None):
        weights = None if mask is None else ops.convert_to_tensor(mask)
        return estimator.stateless_call(trained, other, fixed, warped, weights)[0]

    return similarity


# --- the bound ---


def slow_bound(joint, marginal, weights, marginal_weights):
    """The documented equation, in float64."""
    mean = np.average(joint, axis=1, weights=weights)
    return mean - logsumexp(
        marginal.astype("float64"), axis=1, b=marginal_weights / marginal_weights.sum(1)[:, None]
    )


@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize("kinds", ["none", "one", "both"])
def test_the_bound_equals_scipys_however_large_the_values(scale, kinds):
    rng = np.random.default_rng(0)
    joint, marginal = (scale * rng.normal(size=(2, 3, 50))).astype("float32")
    both = (rng.uniform(size=(2, 3, 50)) * (rng.uniform(size=(2, 3, 50)) < 0.6)).astype("float32")
    given = {"none": [], "one": [both[0]], "both": [*both]}[kinds]
    ones = np.ones_like(joint)
    used = {"none": (ones, ones), "one": (both[0], both[0]), "both": both}[kinds]
    expected = slow_bound(joint, marginal, *used)
    found = numpy(donsker_varadhan(joint, marginal, *given))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_bound_is_tight_where_t_is_the_log_ratio():
    rho = 0.8
    fixed, warped = (
        image.reshape(4, -1).astype("float64") for image in gaussian_pair((300, 300), rho)
    )

    def log_ratio(f, w):
        return information(rho) - (rho**2 * (f**2 + w**2) - 2 * rho * f * w) / (2 - 2 * rho**2)

    joint, marginal = log_ratio(fixed, warped), log_ratio(fixed, np.roll(warped, 1, axis=1))
    found = numpy(donsker_varadhan(*(x.astype("float32") for x in (joint, marginal))))
    np.testing.assert_allclose(found, information(rho), atol=0.02)
    worse = [0.5 * x.astype("float32") for x in (joint, marginal)]
    assert (numpy(donsker_varadhan(*worse)) < found - 0.05).all()
    added = [x.astype("float32") + 7 for x in (joint, marginal)]
    np.testing.assert_allclose(numpy(donsker_varadhan(*added)), found, atol=1e-4)


def test_gradients_of_the_bound_equal_central_differences_and_stay_finite():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 1, 6)).astype("float32")
    weights = np.array([[1, 0.3, 0, 2, 1, 0.5]], "float32")

    def bound(joint, marginal):
        return donsker_varadhan(joint, marginal, np.repeat(weights, joint.shape[0], axis=0))

    found = gradients(lambda *both: ops.sum(bound(*both)), *values)
    for argument in (0, 1):
        expected = central_differences(bound, *values, argument=argument)
        np.testing.assert_allclose(found[argument], expected, atol=1e-4)
    steep = gradients(lambda *both: ops.sum(donsker_varadhan(*both)), *(1e3 * values))
    np.testing.assert_allclose([steep[0].sum(), steep[1].sum()], [1, -1], rtol=1e-5)


def test_without_any_weight_the_bound_is_zero():
    values = np.random.default_rng(0).normal(size=(2, 3, 6)).astype("float32")
    weights = np.ones((3, 6), "float32")
    weights[1] = 0
    found = numpy(donsker_varadhan(*values, weights))
    assert found[1] == 0
    np.testing.assert_allclose(found[[0, 2]], numpy(donsker_varadhan(*values))[[0, 2]], rtol=1e-5)
    for gradient in gradients(lambda *x: ops.sum(donsker_varadhan(*x, weights)), *values):
        np.testing.assert_array_equal(gradient[1], 0)
        assert np.abs(gradient[[0, 2]]).min() > 0


# --- the network ---


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize(("channels", "hidden"), [((1, 1), (8,)), ((3, 2), (5, 7)), ((1, 4), ())])
def test_the_critic_is_a_perceptron_for_all_pairs_or_for_each(copies, channels, hidden):
    rng = np.random.default_rng(0)
    fixed, warped = (rng.normal(size=(3, 11, c)).astype("float32") for c in channels)
    critic = Critic(hidden, "relu", copies=copies)
    critic.build(fixed.shape, warped.shape)
    for variable in critic.variables:
        variable.assign(variable + 0.1 * rng.normal(size=variable.shape))  # biases, too
    found = numpy(critic(fixed, warped))
    assert found.shape == (3, 11)
    for pair in range(3):
        one = pair if copies == 3 else 0
        kernels, biases = ([numpy(x)[one] for x in xs] for xs in (critic.kernels, critic.biases))
        values = np.concatenate([fixed[pair], warped[pair]], axis=-1)
        for kernel, bias in zip(kernels[:-1], biases, strict=True):
            values = np.maximum(0, values @ kernel + bias)
        np.testing.assert_allclose(found[pair], (values @ kernels[-1])[:, 0], atol=1e-5)


@pytest.mark.parametrize("copies", [1, 40])
def test_each_copy_starts_as_a_network_of_its_own_would(copies):
    critic = Critic((64, 32), copies=copies)
    critic.build((None, None, 1), (None, None, 1))
    for kernel, (inputs, outputs) in zip(critic.kernels, [(2, 64), (64, 32), (32, 1)], strict=True):
        assert kernel.shape == (copies, inputs, outputs)
        limit = np.sqrt(6 / (inputs + outputs))
        largest = np.abs(numpy(kernel)).max()
        assert 0.8 * limit < largest <= limit
    if copies > 1:
        first, second = numpy(critic.kernels[1])[:2]
        assert np.abs(first - second).max() > 0.1


def test_refuses_another_number_of_pairs_than_copies():
    critic = Critic(copies=3)
    values = np.zeros((2, 5, 1), "float32")
    with pytest.raises(ValueError, match=r"`copies`, 3; .*copies=2.*Received: 2 pairs"):
        critic(values, values)


def test_the_critic_comes_back_from_its_config():
    critic = Critic((5, 7), "relu", copies=3)
    config = keras.saving.serialize_keras_object(critic)
    twin = keras.saving.deserialize_keras_object(config)
    assert twin.get_config() == critic.get_config()
    assert twin.compute_output_shape((3, 9, 1), (3, 9, 2)) == (3, 9)


# --- what is drawn ---


@pytest.mark.parametrize("size", [1, 2, 7, 64, 100])
def test_voxels_are_drawn_in_proportion_to_their_weights(size):
    rng = np.random.default_rng(0)
    weights = rng.uniform(size=(2, size)) * (rng.uniform(size=(2, size)) < 0.7)
    weights[:, size // 2] = 1
    drawn = numpy(_draw(ops.cast(weights, "float32"), 40000, keras.random.SeedGenerator(1)))
    for row, one in zip(drawn, weights, strict=True):
        counts = np.bincount(row, minlength=size)
        np.testing.assert_array_equal(counts[one == 0], 0)
        expected = 40000 * one / one.sum()
        # Poisson: five standard deviations.
        assert (np.abs(counts - expected) <= 5 * np.sqrt(expected) + 1e-9).all()


def test_draws_afresh_in_every_call():
    loss = MINE(samples=64)
    pair = gaussian_pair((9, 12), 0.8)
    first, second = numpy(loss.similarity(*pair)), numpy(loss.similarity(*pair))
    assert np.abs(first - second).min() > 1e-6
    same = frozen(loss.estimator)
    np.testing.assert_array_equal(numpy(same(*pair)), numpy(same(*pair)))


@each_shape
def test_voxels_outside_the_mask_play_no_part(shape):
    fixed, warped = gaussian_pair(shape, 0.8)
    mask = np.zeros((4, *shape, 1), "float32")
    mask[:, 2:, 1:-2] = 1
    similarity = frozen(MINE(samples=128).estimator)
    expected = numpy(similarity(fixed, warped, mask))
    spoiled = [np.where(mask > 0, image, other) for image, other in ((fixed, np.nan), (warped, 7))]
    found = numpy(similarity(*(x.astype("float32") for x in spoiled), mask))
    np.testing.assert_array_equal(found, expected)
    assert np.abs(numpy(similarity(fixed, warped)) - expected).min() > 1e-5


@each_shape
def test_linear_contrast_changes_nothing(shape):
    fixed, warped = gaussian_pair(shape, 0.8)
    similarity = frozen(MINE(samples=128).estimator)
    found = numpy(similarity(70 * fixed - 5, 0.02 * warped + 3))
    np.testing.assert_allclose(found, numpy(similarity(fixed, warped)), atol=1e-4)


def test_each_pair_has_its_own_value():
    pair = gaussian_pair((9, 12), 0.8)
    similarity = frozen(MINE(samples=128).estimator)
    together = numpy(similarity(*pair))
    changed = [image.copy() for image in pair]
    changed[1][2] = pair[1][2, ::-1]
    apart = numpy(similarity(*changed))
    assert abs(apart[2] - together[2]) > 1e-4
    np.testing.assert_allclose(np.delete(apart, 2), np.delete(together, 2), atol=1e-5)


# --- what it estimates ---


def identity_model(shape, fixed_channels=1, moving_channels=1):
    """A registration model that leaves the moving image as it is: only a loss can learn."""
    inputs = {
        name: keras.Input((*shape, channels), name=name)
        for name, channels in (("moving", moving_channels), ("fixed", fixed_channels))
    }
    return RegistrationModel(inputs, {"warped": keras.layers.Rescaling(1.0)(inputs["moving"])})


def trained(loss, fixed, moving, steps=100):
    """Train the network of `loss` on these images."""
    model = identity_model(fixed.shape[1:-1], fixed.shape[-1], moving.shape[-1])
    model.compile(keras.optimizers.Adam(0.02), loss={"warped": loss})
    images = {"fixed": np.concatenate([fixed] * steps), "moving": np.concatenate([moving] * steps)}
    model.fit(images, batch_size=len(fixed), verbose=0)
    return loss


def estimate(loss, fixed, warped, mask=None, calls=20):
    return np.mean([numpy(loss.similarity(fixed, warped, mask)) for _ in range(calls)], axis=0)


@pytest.mark.parametrize("options", [{}, {"bias_corrected": True}], ids=str)
def test_approaches_the_mutual_information_of_normal_variables(options):
    loss = MINE(samples=512, **options)
    trained(loss, *gaussian_pair((48, 48), 0.9))
    unseen = gaussian_pair((48, 48), 0.9, seed=1)
    expected = information(0.9)
    assert estimate(loss, *unseen).mean() == pytest.approx(expected, abs=0.06)
    # By hand: half of the voxels are unrelated, and the mask leaves them out.
    half = [image.copy() for image in unseen]
    half[1][:, 24:] = gaussian_pair((24, 48), 0.0, seed=2)[1]
    mask = np.ones((4, 48, 48), "float32")
    mask[:, 24:] = 0
    assert estimate(loss, *half, mask).mean() == pytest.approx(expected, abs=0.1)
    assert estimate(loss, *half).mean() < expected - 0.3


def test_unrelated_images_have_none_whatever_it_has_learnt():
    unrelated = gaussian_pair((48, 48), 0.0)
    loss = trained(MINE(samples=512), *unrelated)
    assert estimate(loss, *gaussian_pair((48, 48), 0.0, seed=1)) == pytest.approx(0, abs=0.02)


def test_takes_images_of_unlike_channels():
    # Neither channel alone tells anything of the other image.
    rng = np.random.default_rng(0)
    fixed = rng.choice([-1.0, 1.0], size=(4, 32, 32, 2)).astype("float32")
    moving = fixed[..., :1] * fixed[..., 1:]
    loss = trained(MINE(channels=(2, 1), samples=512), fixed, moving)
    assert estimate(loss, fixed, moving).mean() == pytest.approx(np.log(2), abs=0.06)


# --- the corrected gradient ---


def test_the_moving_average_replaces_the_denominator_of_the_gradient_alone():
    pair = gaussian_pair((9, 12), 0.8, batch=3)
    loss = MINE(samples=64, bias_corrected=True, rate=0.25)
    estimator = loss.estimator
    estimator.log_average.assign([0.7])
    trained_values = [x.value for x in estimator.trainable_variables]
    kept = [x.value for x in estimator.non_trainable_variables]
    plain = InformationEstimator(estimator.critic, samples=64)
    plain.build(*(image.shape for image in pair))
    plain_kept = [estimator.seed_generator.state.value]
    assert len(plain.non_trainable_variables) == len(plain_kept)

    def value(layer, others, last):
        now = [*trained_values]
        (place,) = (
            k for k, x in enumerate(layer.trainable_variables) if x is layer.critic.kernels[-1]
        )
        now[place] = last
        return layer.stateless_call(now, others, *pair)

    last = numpy(estimator.critic.kernels[-1])
    found, state = value(estimator, kept, ops.convert_to_tensor(last))
    expected, _ = value(plain, plain_kept, ops.convert_to_tensor(last))
    np.testing.assert_allclose(numpy(found), numpy(expected), rtol=1e-5)

    # T is linear in the last kernel: its derivatives tell mean exp T and its gradient apart.
    (corrected,) = gradients(lambda x: value(estimator, kept, x)[0][0], last)  # of the first pair
    (uncorrected,) = gradients(lambda x: value(plain, plain_kept, x)[0][0], last)
    fixed, warped = (numpy(x) for x in _samples_of(plain, plain_kept, pair))
    features = _last_features(estimator.critic, fixed, warped)
    apart = _last_features(estimator.critic, fixed, np.roll(warped, 1, axis=1))
    scores = np.exp((apart @ last[0])[..., 0])
    means = scores.mean(1)
    average = 0.75 * np.exp(0.7) + 0.25 * means.mean()
    joint = features[0].mean(0)
    moment = (scores[0][:, None] * apart[0]).mean(0)
    np.testing.assert_allclose(uncorrected[0, :, 0], joint - moment / means[0], atol=1e-4)
    np.testing.assert_allclose(corrected[0, :, 0], joint - moment / average, atol=1e-4)
    (place,) = (
        k for k, x in enumerate(estimator.non_trainable_variables) if x is estimator.log_average
    )
    np.testing.assert_allclose(numpy(state[place]), [np.log(average)], atol=1e-5)


def _samples_of(estimator, kept, pair):
    with keras.StatelessScope(state_mapping=[(estimator.seed_generator.state, kept[0])]):
        return estimator._samples(*(ops.convert_to_tensor(x) for x in pair), None)


def _last_features(critic, fixed, warped):
    values = np.concatenate([fixed, warped], axis=-1)
    for kernel, bias in zip(critic.kernels[:-1], critic.biases, strict=True):
        values = np.tanh(values @ numpy(kernel)[0] + numpy(bias)[0])
    return values


# --- as a loss ---


@each_shape
def test_constants_and_empty_masks_give_finite_values_and_gradients(shape):
    pattern = gaussian_pair(shape, 0.5)[0]
    flat = [np.full_like(pattern, value) for value in (0.0, 1.0, -1e3, 1e-6)]
    similarity = frozen(MINE(samples=32).estimator)
    for pair in (
        [(c, c) for c in flat] + [(pattern, c) for c in flat] + [(c, pattern) for c in flat]
    ):
        assert np.isfinite(numpy(similarity(*pair))).all()
        for gradient in gradients(lambda *images: ops.sum(similarity(*images)), *pair):
            assert np.isfinite(gradient).all()
    empty = np.zeros((4, *shape, 1), "float32")
    np.testing.assert_allclose(numpy(similarity(pattern, pattern, empty)), 0, atol=1e-6)
    for gradient in gradients(lambda *x: ops.sum(similarity(*x, empty)), pattern, pattern):
        np.testing.assert_array_equal(gradient, 0 * pattern)


def test_the_gradient_to_the_warped_image_equals_central_differences():
    pair = gaussian_pair((5, 6), 0.8, batch=1)
    estimator = MINE(samples=40).estimator
    drawn = [numpy(x) for x in _samples_of(estimator, [estimator.seed_generator.state.value], pair)]

    def value(fixed, warped):  # the drawn values, where a batch of shifts has the same draws
        scores = [estimator.critic(fixed, w) for w in (warped, ops.roll(warped, 1, axis=1))]
        return donsker_varadhan(*scores)

    found = gradients(lambda *values: ops.sum(value(*values)), *drawn)[1]
    expected = central_differences(value, *drawn, argument=1)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    to_image = gradients(lambda *x: ops.sum(frozen(estimator)(*x)), *pair)[1]
    assert np.abs(to_image).max() > 1e-3


def test_is_minus_the_estimate_and_weights_the_samples():
    loss = MINE(samples=64, reduction=None).adopt(identity_model((9, 12)))
    assert isinstance(loss, ImageLoss)
    pair = gaussian_pair((9, 12), 0.8, batch=3)
    state = loss.estimator.seed_generator.state
    values = []
    for call in (loss.similarity, loss, lambda *x: loss(*x, np.array([0, 1, 2.5], "float32"))):
        state.assign([3, 0])
        values.append(numpy(call(*pair)))
    np.testing.assert_allclose(values[1], -values[0], rtol=1e-6)
    np.testing.assert_allclose(values[2], values[1] * [0, 1, 2.5], rtol=1e-6)


def test_options_are_kept():
    loss = MINE((3, 1), (8, 4), samples=100, bias_corrected=True, rate=0.1, reduction="sum")
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(twin) is MINE
    assert twin.get_config() == loss.get_config()
    shapes = [tuple(kernel.shape) for kernel in twin.estimator.critic.kernels]
    assert shapes == [(1, 4, 8), (1, 8, 4), (1, 4, 1)]


def test_the_network_stays_in_float32_whatever_the_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        loss = MINE(samples=64)
    finally:
        keras.config.set_dtype_policy("float32")
    found = loss.similarity(*(ops.cast(x, "bfloat16") for x in gaussian_pair((9, 12), 0.8)))
    assert keras.backend.standardize_dtype(found.dtype) == "float32"


# --- models that do not know of it ---


def plain_model(loss):
    image = keras.Input((9, 12, 1))
    model = keras.Model(image, keras.layers.Conv2D(1, 3, padding="same")(image))
    model.compile(keras.optimizers.Adam(0.01), loss=loss)
    return model


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: WeightedSum([NCC(), x], [1, 1])])
def test_a_plain_model_that_would_not_train_it_is_told_so(wrap):
    pair = gaussian_pair((9, 12), 0.8)
    model = plain_model(wrap(MINE(samples=32)))
    with pytest.raises(ValueError, match=r"(?s)RegistrationModel.*adopt\(model\).*Received: mine"):
        model.fit(*pair, verbose=0)
    with pytest.raises(ValueError, match=r"adopt\(model\)"):
        wrap(MINE(samples=32))(*pair)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.convolution = keras.layers.Conv2D(1, 3, padding="same")

    def call(self, image):
        return self.convolution(image)


def functional():
    image = keras.Input((9, 12, 1))
    return keras.Model(image, keras.layers.Conv2D(1, 3, padding="same")(image))


MODELS = {"functional": functional, "subclassed": Subclassed}


@pytest.mark.parametrize("kind", MODELS)
def test_any_model_that_adopts_it_trains_it(kind):
    fixed, moving = gaussian_pair((9, 12), 0.8)
    model = MODELS[kind]()
    loss = MINE(samples=128, bias_corrected=True).adopt(model)
    model.compile(keras.optimizers.Adam(0.01), loss=loss)
    model.train_on_batch(moving, fixed)
    before = [numpy(x) for x in loss.estimator.variables]
    model.train_on_batch(moving, fixed)
    for old, new in zip(before, loss.estimator.variables, strict=True):
        assert (old != numpy(new)).any(), new.path


def test_a_sequential_model_which_would_not_train_it_is_refused():
    model = keras.Sequential([keras.Input((9, 12, 1)), keras.layers.Conv2D(1, 3, padding="same")])
    loss = MINE(samples=128)
    with pytest.raises(ValueError, match=r"keras\.Model\(model\.inputs.*Received: Sequential"):
        loss.adopt(model)
    assert not loss.adopted
    loss.adopt(keras.Model(model.inputs, model.outputs))


def test_an_adopted_network_is_in_the_file_and_taken_up_again(tmp_path):
    pair = gaussian_pair((9, 12), 0.8)
    model = functional()
    loss = MINE(samples=128).adopt(model)
    model.compile("adam", loss=loss)
    model.fit(*pair, verbose=0)
    model.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=r"adopt\(model\)"):
        loaded.evaluate(*pair, verbose=0)
    found, expected = (x.estimator.critic.get_weights() for x in (loaded.loss, loss))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    loaded.compile("adam", loss=loaded.loss.adopt(loaded))
    loaded.fit(*pair, verbose=0)


# --- what does not fit ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 1}, r"`samples` >= 2.*Received: 1"),
        ({"rate": 0.0}, r"0 < `rate` < 1.*Received: 0"),
        ({"rate": 1.0}, r"0 < `rate` < 1.*Received: 1"),
    ],
)
def test_refuses_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        MINE(**options)


def test_refuses_images_that_do_not_fit():
    fixed, warped = gaussian_pair((9, 12), 0.8)
    loss = MINE()
    with pytest.raises(ValueError, match=r"\(1, 1\) channels.*MINE\(channels=\(3, 1\)\).*Received"):
        loss.similarity(np.repeat(fixed, 3, axis=-1), warped)
    with pytest.raises(ValueError, match=r"`fixed` and `warped` of equal shape"):
        loss.similarity(fixed[:, 1:], warped)
    with pytest.raises(ValueError, match=r"Expected a mask of shape.*Received: mask"):
        loss.similarity(fixed, warped, np.ones((4, 9, 11)))
