import keras
import numpy as np
import pytest
from keras import ops

from kreg.losses import MINE, NCC, LocalNCC, MutualInformation
from kreg.pairwise import CriticRatio, GaussianRatio, HistogramRatio, LogRatio
from kreg.pairwise.pairs import to_tensors
from kreg.pairwise.similarity import as_log_ratio
from tests.gradients import gradients

RATIOS = [HistogramRatio(), HistogramRatio(bins=16, sigma=0.0), GaussianRatio()]
each_ratio = pytest.mark.parametrize("ratio", RATIOS, ids=repr)


def values(*, pairs=2, n=600, channels=(1, 1), seed=0):
    """Values in [-1, 1] that predict one another in part."""
    rng = np.random.default_rng(seed)
    common = rng.uniform(-0.8, 0.8, (pairs, n, 1))
    return [
        np.clip(common ** (k + 1) + 0.1 * rng.normal(size=(pairs, n, c)), -1, 1).astype("float32")
        for k, c in enumerate(channels)
    ]


def weights_of(n, *, pairs=2, seed=1):
    rng = np.random.default_rng(seed)
    return rng.choice([0.0, 0.5, 1.0], (pairs, n)).astype("float32")


def log_ratio(ratio, fixed, moving, inside, weights=()):
    return [
        ops.convert_to_numpy(x)
        for x in ratio.log_ratio(*to_tensors([list(weights), fixed, moving, inside]))
    ]


def hats(x, bins):
    position = np.clip((x.astype("float64") + 1) * (bins - 1) / 2, 0, bins - 1)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(bins)))


def slow_table(fixed, moving, inside, bins, sigma):
    """The documented joint histogram of one pair, and the log-ratio of each of its cells."""
    joint = np.einsum("nf,nm,n->fm", hats(fixed, bins), hats(moving, bins), inside)
    if sigma > 0:
        offset = np.subtract.outer(np.arange(bins), np.arange(bins))
        kernel = np.exp(-0.5 * (offset / sigma) ** 2)
        kernel /= kernel.sum(0)
        joint = kernel @ joint @ kernel.T
    joint /= joint.sum()
    independent = np.outer(joint.sum(1), joint.sum(0))
    return joint, np.log((joint + 1e-9) / (independent + 1e-9))


@pytest.mark.parametrize(("bins", "sigma"), [(48, 1.5), (16, 0.0), (8, 0.7)])
def test_the_histogram_is_that_of_a_loop_over_pairs(bins, sigma):
    fixed, moving = values()
    inside = weights_of(600)
    ratio, information = log_ratio(HistogramRatio(bins, sigma), fixed, moving, inside)
    for k in range(2):
        joint, table = slow_table(fixed[k, :, 0], moving[k, :, 0], inside[k], bins, sigma)
        assert information[k] == pytest.approx((joint * table).sum(), rel=1e-3)
        looked_up = np.einsum(
            "nf,nm,fm->n", hats(fixed[k, :, 0], bins), hats(moving[k, :, 0], bins), table
        )
        np.testing.assert_allclose(ratio[k], looked_up, atol=0.02)


def test_values_on_the_bins_give_the_information_of_a_histogram():
    """Against NumPy's histogram: whole bins, no smoothing."""
    bins = 9
    rng = np.random.default_rng(0)
    labels = rng.integers(bins, size=(1, 3000))
    others = np.where(rng.random(labels.shape) < 0.6, (3 * labels) % bins, 4)
    fixed, moving = (
        (2 * x / (bins - 1) - 1)[..., None].astype("float32") for x in (labels, others)
    )
    inside = np.ones(labels.shape, "float32")
    ratio, information = log_ratio(HistogramRatio(bins, 0.0), fixed, moving, inside)
    p = np.histogram2d(labels[0], others[0], bins=bins)[0] / labels.size
    independent = np.outer(p.sum(1), p.sum(0))
    expected = np.sum(p[p > 0] * np.log(p[p > 0] / independent[p > 0]))
    assert information[0] == pytest.approx(expected, rel=1e-3)
    # The mean of T over the samples is the information, too.
    assert ratio.mean() == pytest.approx(expected, rel=5e-3)


def test_smoothing_keeps_what_an_edge_bin_holds():
    """All in one corner: one cell predicts itself, information 0."""
    corner = np.full((1, 50, 1), -1.0, "float32")
    _, information = log_ratio(HistogramRatio(), corner, -corner, np.ones((1, 50), "float32"))
    assert information[0] == pytest.approx(0, abs=1e-5)


def test_the_bias_is_the_information_of_independent_values():
    ratio = HistogramRatio()
    rng = np.random.default_rng(0)
    for n in (512, 4096):
        fixed, moving = rng.uniform(-1, 1, (2, 20, n, 1)).astype("float32")
        _, information = log_ratio(ratio, fixed, moving, np.ones((20, n), "float32"))
        assert information.mean() == pytest.approx(ratio.bias(n), rel=0.35)


def test_the_slope_of_the_histograms_ratio_is_that_of_its_table():
    """d T / d m, the histogram held fixed, against differences of a look-up in float64."""
    bins, sigma, step = 16, 1.0, 1e-4
    fixed, moving = values(pairs=1, n=80)
    inside = weights_of(80, pairs=1)
    position = (moving + 1) * (bins - 1) / 2
    moving = np.where(abs(position - np.round(position)) < 0.02, moving + 0.01, moving)
    moving = moving.astype("float32")
    _, table = slow_table(fixed[0, :, 0], moving[0, :, 0], inside[0], bins, sigma)

    def looked_up(m):
        return np.einsum("nf,nm,fm->n", hats(fixed[0, :, 0], bins), hats(m[0, :, 0], bins), table)

    expected = looked_up(moving.astype("float64") + step) - looked_up(moving - np.float64(step))
    ratio, tensors = (
        HistogramRatio(bins, sigma),
        [ops.convert_to_tensor(x) for x in (fixed, inside)],
    )
    (slope,) = gradients(
        lambda m: ops.sum(ratio.log_ratio([], tensors[0], m, tensors[1])[0]), moving
    )
    np.testing.assert_allclose(slope[0, :, 0], expected / (2 * step), rtol=0.02, atol=0.05)


def test_the_gaussians_similarity_is_the_correlation():
    fixed, moving = values()
    inside = weights_of(600)
    ratio, correlation = log_ratio(GaussianRatio(), fixed, moving, inside)
    for k in range(2):
        f, m = fixed[k, :, 0].astype("float64"), moving[k, :, 0].astype("float64")
        cov = np.cov(f, m, aweights=inside[k])
        r = cov[0, 1] / np.sqrt(cov[0, 0] * cov[1, 1])
        assert correlation[k] == pytest.approx(r, abs=1e-5)
        # T is the log-ratio of the Gaussian densities: its mean is their mutual information.
        mean = np.average(ratio[k], weights=inside[k])
        assert mean == pytest.approx(-0.5 * np.log(1 - r**2), abs=1e-4)


def test_the_gaussians_ratio_is_that_of_scipys_densities():
    from scipy.stats import multivariate_normal, norm

    fixed, moving = values(pairs=1)
    inside = np.ones((1, 600), "float32")
    ratio, (r,) = log_ratio(GaussianRatio(), fixed, moving, inside)
    f, m = ((x[0, :, 0] - x.mean()) / x.std() for x in (fixed, moving))
    joint = multivariate_normal(cov=[[1, r], [r, 1]]).logpdf(np.c_[f, m])
    np.testing.assert_allclose(ratio[0], joint - norm.logpdf(f) - norm.logpdf(m), atol=1e-3)


def test_the_correlation_ignores_gain_and_offset_but_keeps_its_sign():
    fixed, moving = values()
    inside = np.ones((2, 600), "float32")
    _, plain = log_ratio(GaussianRatio(), fixed, fixed + 0.3 * moving, inside)
    _, changed = log_ratio(GaussianRatio(), fixed, -0.4 * (fixed + 0.3 * moving) + 0.1, inside)
    np.testing.assert_allclose(changed, -plain, atol=1e-5)


@each_ratio
def test_samples_without_weight_do_not_count(ratio):
    fixed, moving = values()
    inside = (weights_of(600) > 0.7).astype("float32")
    kept = int(inside.sum(1).min())
    picked = [np.flatnonzero(row)[:kept] for row in inside]
    alone = np.zeros_like(inside)
    for row, index in zip(alone, picked, strict=True):
        row[index] = 1
    spoiled = np.where(alone[..., None] > 0, moving, 1.0).astype("float32")
    few = [np.stack([x[k, index] for k, index in enumerate(picked)]) for x in (fixed, moving)]
    expected = log_ratio(ratio, *few, np.ones((2, kept), "float32"))
    found = log_ratio(ratio, fixed, spoiled, alone)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-4)
    for k, index in enumerate(picked):
        np.testing.assert_allclose(found[0][k, index], expected[0][k], atol=0.01)


@each_ratio
def test_no_weights_at_all_and_constant_values_are_worth_nothing(ratio):
    fixed, moving = values()
    for inside, other in [
        (np.zeros((2, 600), "float32"), moving),
        (np.ones((2, 600), "float32"), 0 * moving),
    ]:
        found, similarity = log_ratio(ratio, fixed, other, inside)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(similarity, 0, atol=1e-3)


# --- what holds for all: pairs are independent ---


def critic_weights(ratio, pairs, channels, *, seed=0, scale=1.0):
    weights = ratio.initial(pairs, *channels, seed)
    rng = np.random.default_rng(5)
    return [
        ops.convert_to_numpy(w) + scale * 0.1 * rng.normal(size=w.shape).astype("float32")
        for w in weights
    ]


@pytest.mark.parametrize(
    "ratio", [*RATIOS, CriticRatio(), CriticRatio(hidden=(8,), activation="relu")], ids=repr
)
def test_a_pair_does_not_depend_on_its_neighbours(ratio):
    channels = (2, 3) if ratio.trained else (1, 1)
    fixed, moving = values(pairs=3, channels=channels)
    inside = weights_of(600, pairs=3)
    weights = critic_weights(ratio, 3, channels)
    together = log_ratio(ratio, fixed, moving, inside, weights)
    for k in range(3):
        one = slice(k, k + 1)
        alone = log_ratio(ratio, fixed[one], moving[one], inside[one], [w[one] for w in weights])
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_allclose(a[0], b[k], atol=1e-4)


def test_every_pair_starts_from_the_same_critic():
    ratio = CriticRatio(hidden=(5, 4))
    weights = [ops.convert_to_numpy(w) for w in ratio.initial(3, 2, 1, seed=4)]
    assert [w.shape for w in weights] == [(3, 3, 5), (3, 5, 4), (3, 4, 1), (3, 1, 5), (3, 1, 4)]
    for one in weights:
        np.testing.assert_array_equal(one, np.broadcast_to(one[:1], one.shape))
    again, other = (ratio.initial(3, 2, 1, seed=seed)[0] for seed in (4, 5))
    np.testing.assert_array_equal(ops.convert_to_numpy(again), weights[0])
    assert not np.array_equal(ops.convert_to_numpy(other), weights[0])


def test_a_critic_computes_in_float32_under_any_policy():
    fixed, moving = values()
    ratio = CriticRatio(hidden=(7,))  # built here first: a critic is kept with its policy
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        weights = critic_weights(ratio, 2, (1, 1))
        found, _ = log_ratio(ratio, fixed, moving, weights_of(600), weights)
    finally:
        keras.config.set_dtype_policy(before)
    kernel, last, bias = (w.astype("float64") for w in weights)
    both = 2 * np.concatenate([fixed, moving], axis=-1)
    expected = np.tanh(both @ kernel + bias) @ last
    np.testing.assert_allclose(found, expected[..., 0], atol=1e-5)


def test_the_critics_objective_is_the_donsker_varadhan_bound():
    """-(mean T(f_i, m_i) - log mean exp T(f_i, m_(i - n/2))), each mean over its weights."""
    ratio = CriticRatio(hidden=(6,))
    fixed, moving = values(channels=(2, 1))
    inside = weights_of(600)
    weights = critic_weights(ratio, 2, (2, 1))
    joint, mean = log_ratio(ratio, fixed, moving, inside, weights)
    rolled = np.roll(moving, 300, axis=1)
    marginal, _ = log_ratio(ratio, fixed, rolled, inside, weights)
    both = inside * np.roll(inside, 300, axis=1)
    expected = []
    for k in range(2):
        assert mean[k] == pytest.approx(np.average(joint[k], weights=inside[k]), abs=1e-5)
        apart = np.average(np.exp(marginal[k].astype("float64")), weights=both[k])
        expected.append(np.average(joint[k], weights=inside[k]) - np.log(apart))
    tensors = to_tensors([weights, fixed, moving, inside])
    objective = ops.convert_to_numpy(ratio.objective(*tensors))
    np.testing.assert_allclose(objective, np.negative(expected), atol=1e-4)
    loss, bound = (ops.convert_to_numpy(x) for x in ratio.descent(*tensors))
    np.testing.assert_allclose(loss, objective, atol=1e-6)
    np.testing.assert_allclose(bound, -objective, atol=1e-6)


@each_ratio
def test_descent_is_minus_the_mean_of_the_ratio(ratio):
    fixed, moving = values()
    inside = weights_of(600)
    found, similarity = log_ratio(ratio, fixed, moving, inside)
    tensors = to_tensors([[], fixed, moving, inside])
    loss, also = (ops.convert_to_numpy(x) for x in ratio.descent(*tensors))
    expected = -(found * inside).sum(1) / inside.sum(1)
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(also, similarity, atol=1e-6)


# --- which log-ratio goes with a loss ---


def test_losses_name_their_log_ratio():
    assert as_log_ratio(NCC()) == GaussianRatio()
    assert as_log_ratio(MutualInformation(bins=20, sigma=0.5)) == HistogramRatio(20, 0.5)
    assert as_log_ratio(MINE(hidden=(7, 8))) == CriticRatio((7, 8), "tanh")
    own = HistogramRatio(bins=9)
    assert as_log_ratio(own) is own


@pytest.mark.parametrize("similarity", ["mi", None, NCC, LocalNCC(), np.eye(2)])
def test_refuses_what_has_no_log_ratio(similarity):
    with pytest.raises(ValueError, match=r"`similarity`.*LogRatio.*MutualInformation.*Received"):
        as_log_ratio(similarity)


def test_a_log_ratio_must_be_defined():
    with pytest.raises(NotImplementedError, match="LogRatio must define log_ratio"):
        LogRatio().log_ratio([], None, None, None)
    with pytest.raises(NotImplementedError, match="no weights to train"):
        HistogramRatio().objective([], None, None, None)


def test_refuses_a_histogram_without_bins_and_takes_a_list_of_widths():
    for options in ({"bins": 1}, {"sigma": -1.0}):
        with pytest.raises(ValueError, match=r"at least 2 bins.*Received"):
            HistogramRatio(**options)
    assert CriticRatio(hidden=[8, 4]) == CriticRatio(hidden=(8, 4))
    assert hash(CriticRatio(hidden=[8, 4])) == hash(CriticRatio(hidden=(8, 4)))
