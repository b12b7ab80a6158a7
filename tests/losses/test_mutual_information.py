import numpy as np
import pytest
from keras import backend, ops
from scipy import ndimage
from sklearn.metrics import mutual_info_score

from kreg.losses import ImageLoss
from kreg.losses.mutual_information import (
    MutualInformation,
    NormalisedMutualInformation,
    joint_histogram,
    mutual_information,
    normalised_mutual_information,
)
from tests.fields import SHAPES, random_pair
from tests.gradients import central_differences, gradients

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
SIMILARITIES = [mutual_information, normalised_mutual_information]
each_similarity = pytest.mark.parametrize("similarity", SIMILARITIES)
LOSSES = [MutualInformation, NormalisedMutualInformation]
each_loss = pytest.mark.parametrize("loss", LOSSES)


def random_labels(shape, labels, *, batch=2, seed=0):
    """Integers that predict one another in part; every label occurs."""
    rng = np.random.default_rng(seed)
    fixed = rng.integers(labels, size=(batch, *shape, 1))
    fixed[:, 0, :labels] = np.arange(labels).reshape(labels, *(1 for _ in shape[1:]))
    warped = (fixed + rng.integers(2, size=fixed.shape)) % labels
    warped[:, 0, :labels] = fixed[:, 0, :labels]
    return fixed, warped


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def slow_histogram(fixed, warped, mask, bins, sigma):
    """The documented equation for one picture, one voxel after the other."""
    positions = [
        (bins - 1) * (x - x[mask > 0].min()) / np.ptp(x[mask > 0])
        for x in (fixed.astype("float64"), warped.astype("float64"))
    ]
    centres = np.arange(bins)
    joint = np.zeros((bins, bins))
    for f, w, weight in zip(*map(np.ravel, positions), mask.ravel(), strict=True):
        hats = [np.maximum(0, 1 - np.abs(centres - x)) for x in (f, w)]
        joint += weight * np.outer(*hats)
    return ndimage.gaussian_filter(joint / mask.sum(), sigma)


def entropy(p):
    return -np.sum(p[p > 0] * np.log(p[p > 0]))


def oracle(joint):
    """(MI, NMI) of a joint histogram."""
    marginal = entropy(joint.sum(0)) + entropy(joint.sum(1))
    return marginal - entropy(joint), marginal / entropy(joint)


@each_shape
@pytest.mark.parametrize(("bins", "sigma"), [(32, 0), (32, 1.0), (12, 2.5)])
def test_equals_a_loop_over_voxels(shape, bins, sigma):
    pair = random_pair(shape)
    found = numpy(joint_histogram(*pair, bins=bins, sigma=sigma))
    expected = [
        slow_histogram(f, w, np.ones_like(f), bins, sigma) for f, w in zip(*pair, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found.sum((1, 2)), 1, rtol=1e-5)
    for similarity, one in zip(SIMILARITIES, zip(*map(oracle, expected), strict=True), strict=True):
        found = numpy(similarity(*pair, bins=bins, sigma=sigma))
        np.testing.assert_allclose(found, one, atol=1e-4)


@each_shape
@pytest.mark.parametrize("labels", [3, 6])
def test_equals_scikit_learns_score_on_labels(shape, labels):
    fixed, warped = random_labels(shape, labels)
    expected = [mutual_info_score(f.ravel(), w.ravel()) for f, w in zip(fixed, warped, strict=True)]
    assert min(expected) > 0.05
    pair = fixed.astype("float32"), warped.astype("float32")
    found = numpy(mutual_information(*pair, bins=labels, sigma=0))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@each_shape
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("channel_axis", [False, True])
def test_a_mask_weights_the_voxels(shape, soft, channel_axis):
    pair = random_pair(shape)
    mask = np.random.default_rng(3).random((2, *shape, 1))
    mask = np.where(mask < 0.6, mask if soft else 1.0, 0.0)
    expected = [slow_histogram(f, w, m, 32, 1.0) for f, w, m in zip(*pair, mask, strict=True)]
    given = mask if channel_axis else mask[..., 0]
    found = joint_histogram(*pair, given)
    np.testing.assert_allclose(numpy(found), expected, atol=1e-6)
    for similarity, one in zip(SIMILARITIES, zip(*map(oracle, expected), strict=True), strict=True):
        np.testing.assert_allclose(numpy(similarity(*pair, given)), one, atol=1e-4)


@each_similarity
def test_what_is_masked_may_be_nan(similarity):
    fixed, warped = random_pair((9, 12))
    mask = np.ones((2, 9, 12), "float32")
    mask[:, :3] = 0
    expected = numpy(similarity(fixed, warped, mask))
    spoiled = [image.copy() for image in (fixed, warped)]
    spoiled[0][:, 1] = np.nan
    spoiled[1][:, 2] = 1e6
    np.testing.assert_allclose(numpy(similarity(*spoiled, mask)), expected, atol=1e-5)


@each_similarity
@each_shape
@pytest.mark.parametrize(("a", "b"), [(1, 0), (3, 0), (0.02, 5), (-200, 70), (1e-9, 0)])
def test_linear_contrast_and_its_inversion_change_nothing(similarity, shape, a, b):
    fixed, warped = random_pair(shape)
    expected = numpy(similarity(fixed, warped))
    np.testing.assert_allclose(numpy(similarity(fixed, a * warped + b)), expected, atol=2e-4)
    np.testing.assert_allclose(numpy(similarity(a * fixed + b, warped)), expected, atol=2e-4)


@each_similarity
def test_any_map_of_labels_changes_nothing(similarity):
    fixed, warped = random_labels((9, 12), 6)
    expected = numpy(similarity(fixed / 5.0, warped / 5.0, bins=6, sigma=0))
    other = np.array([2.0, 4.0, 1.0, 0.0, 5.0, 3.0])[warped]  # not monotone
    found = numpy(similarity(fixed / 5.0, other, bins=6, sigma=0))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_monotone_map_changes_little():
    fixed, warped = random_pair((300, 300), batch=1)
    expected = numpy(mutual_information(fixed, warped, sigma=0.5))
    found = numpy(mutual_information(fixed, np.exp(warped), sigma=0.5))
    np.testing.assert_allclose(found, expected, rtol=0.05)


def test_an_image_tells_all_of_itself_and_nothing_of_an_unrelated_one():
    fixed, other = np.random.default_rng(0).uniform(size=(2, 1, 300, 300, 1)).astype("float32")
    labels = np.floor(8 * fixed)
    itself = [float(f(labels, labels, bins=8, sigma=0)[0]) for f in SIMILARITIES]
    assert itself == pytest.approx([np.log(8), 2], abs=1e-3)
    # (bins - 1)^2 / (2 voxels) = .0053 by chance, less where smoothed.
    assert 0 <= float(mutual_information(fixed, other)[0]) < 0.0053
    assert 1 <= float(normalised_mutual_information(fixed, other)[0]) < 1.001


@each_similarity
def test_is_symmetric_and_channels_are_averaged(similarity):
    fixed, warped = random_pair((9, 12), channels=3)
    found = numpy(similarity(fixed, warped))
    np.testing.assert_allclose(found, numpy(similarity(warped, fixed)), atol=1e-5)
    single = [numpy(similarity(fixed[..., c : c + 1], warped[..., c : c + 1])) for c in range(3)]
    assert np.ptp(single) > 0.01
    np.testing.assert_allclose(found, np.mean(single, axis=0), atol=1e-5)


@each_similarity
@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1000.1])
@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_constants_tell_nothing(similarity, value, sigma):
    # Not quite constant: the rounding of an interpolation is no contrast.
    constant = np.full((2, 9, 12, 1), value, "float32")
    constant[:, 3:9] = np.nextafter(constant[:, 3:9], np.float32(2 * value))
    pattern = np.random.default_rng(0).random((2, 9, 12, 1), "float32")
    nothing = 0.0 if similarity is mutual_information else 1.0
    for pair in ((constant, constant), (constant, pattern), (pattern, constant)):
        assert float(similarity(*pair, sigma=sigma)[0]) == pytest.approx(nothing, abs=1e-5)


def test_the_losses_are_small_where_the_similarity_is_large():
    pair = random_pair((9, 12))
    options = {"bins": 32, "sigma": 0.5}
    found = numpy(MutualInformation(**options, reduction=None)(*pair))
    np.testing.assert_allclose(found, -numpy(mutual_information(*pair, **options)), atol=1e-6)
    found = numpy(NormalisedMutualInformation(**options, reduction=None)(*pair))
    expected = 2 - numpy(normalised_mutual_information(*pair, **options))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@each_loss
def test_is_an_image_loss_whose_options_are_kept(loss):
    one = loss(bins=20, sigma=0.7, reduction="sum")
    assert isinstance(one, ImageLoss)
    assert loss.from_config(one.get_config()).get_config() == one.get_config()
    assert (one.get_config()["bins"], one.get_config()["sigma"]) == (20, 0.7)


@each_similarity
def test_half_precision_images_are_compared_in_float32(similarity):
    fixed, warped = random_pair((9, 12))
    found = similarity(ops.cast(fixed, "bfloat16"), ops.cast(warped, "bfloat16"))
    assert backend.standardize_dtype(found.dtype) == "float32"
    np.testing.assert_allclose(numpy(found), numpy(similarity(fixed, warped)), rtol=0.03)


# --- gradients ---


def away_from_kinks(shape, bins):
    """Values in the middle third between two bins, and the smallest and largest at the ends.

    A step leaves the piece on which the equation is smooth only at those two, whose influence on
    the scale is no part of the gradient.
    """
    rng = np.random.default_rng(0)
    cells = rng.integers(bins - 1, size=shape)
    pair = []
    for moved in (0, rng.integers(2, size=shape)):
        values = (cells + moved) % (bins - 1) + rng.uniform(1 / 3, 2 / 3, shape)
        values.flat[0], values.flat[-1] = 0, bins - 1
        pair.append(values.astype("float32")[None, ..., None])
    return pair


@each_similarity
@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 3)])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_equal_central_differences(similarity, shape, masked):
    pair = away_from_kinks(shape, 5)
    mask = np.random.default_rng(3).uniform(0.2, 1, (1, *shape)) if masked else np.ones((1, *shape))

    def value(fixed, warped):
        weights = np.repeat(mask, fixed.shape[0], axis=0)
        return similarity(fixed, warped, weights, bins=5, sigma=0.6)

    found = gradients(lambda *images: ops.sum(value(*images)), *pair)
    for argument in (0, 1):
        inner = found[argument].ravel()[1:-1]
        expected = central_differences(value, *pair, argument=argument, step=0.1)
        np.testing.assert_allclose(inner, expected.ravel()[1:-1], atol=2e-5)
        assert np.abs(inner).max() > 1e-3


@each_loss
@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_constants_and_empty_masks_give_finite_values_and_no_steep_gradients(loss, sigma):
    pattern = random_pair((9, 12))[0]
    flat = [np.full_like(pattern, value) for value in (0.0, -1e3, 1e-6)]
    one = loss(sigma=sigma)
    for pair in [(c, c) for c in flat] + [(pattern, c) for c in flat]:
        assert np.isfinite(float(one(*pair)))
        np.testing.assert_array_equal(gradients(one, *pair)[1], 0 * pattern)
    empty = np.zeros(pattern.shape[:-1], "float32")
    nothing = 0.0 if loss is MutualInformation else 1.0
    assert float(one(pattern, pattern, empty)) == pytest.approx(nothing, abs=1e-6)
    for gradient in gradients(lambda *images: one(*images, empty), pattern, pattern):
        np.testing.assert_array_equal(gradient, 0 * pattern)


# --- what does not fit ---


@each_similarity
def test_refuses_unlike_channels_and_names_what_takes_them(similarity):
    fixed, warped = random_pair((9, 12), channels=3)
    with pytest.raises(
        ValueError, match=r"(?s)channel c.*MINE.*average.*Received: .*1\) and .*3\)"
    ):
        similarity(fixed[..., :1], warped)


def test_a_histogram_is_of_one_channel():
    with pytest.raises(ValueError, match=r"one channel.*Received: 2 channels"):
        joint_histogram(*random_pair((9, 12), channels=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 1}, r"`bins`.*at least 2.*Received: 1"),
        ({"bins": 8.5}, r"`bins`.*integer.*Received: 8\.5"),
        ({"sigma": -1.0}, r"`sigma` >= 0.*Received: -1"),
    ],
)
def test_refuses_histograms_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        mutual_information(*random_pair((9, 12)), **options)
