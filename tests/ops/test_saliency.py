import itertools

import numpy as np
import pytest
from keras import ops
from scipy import ndimage

from kreg.ops.intensity import normalise_locally
from kreg.ops.saliency import (
    LocallyNormalised,
    OriginalSaliency,
    TensorCorrelation,
    original_joint_saliency,
    single_saliency,
    structure_tensor,
    tensor_correlation,
    tensor_distance,
    unit_range,
)
from tests.fields import SHAPES, random_pair
from tests.gradients import central_differences, gradients

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
KINDS = [
    TensorCorrelation((0.7, 1.5), contrast=0.2),
    OriginalSaliency(1.5),
    LocallyNormalised(TensorCorrelation((0.7,), contrast=0.2), sigma=3.0),
]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def slow_tensor(image, sigma):
    """``(*spatial, D, D)`` of one sample ``(*spatial, channels)``."""
    dimensions = image.ndim - 1
    outer = np.zeros((*image.shape[:-1], dimensions, dimensions))
    for channel in np.moveaxis(image.astype("float64"), -1, 0):
        gradient = np.stack(np.gradient(channel), -1)
        outer += gradient[..., :, None] * gradient[..., None, :]
    for i, j in np.ndindex(dimensions, dimensions):
        outer[..., i, j] = ndimage.gaussian_filter(outer[..., i, j], sigma)
    return outer


def slow_correlation(a, b, contrast):
    def inner(p, q):
        return np.einsum("...ij,...ij", p, q)

    total = inner(a, a) + inner(b, b)
    e = contrast**2 * total.mean()
    return (2 * inner(a, b) + e) / (total + e)


def slow_distance(a, b):
    """The root of the integral over the sphere of (n^T (A - B) n - its mean)^2."""
    difference = np.zeros((*a.shape[:-2], 3, 3))
    difference[..., : a.shape[-1], : a.shape[-1]] = a - b
    heights, weights = np.polynomial.legendre.leggauss(6)
    angles = np.arange(12) * np.pi / 6
    total = mean = 0.0
    for (z, weight), angle in itertools.product(zip(heights, weights, strict=True), angles):
        r = np.sqrt(1 - z**2)
        n = np.array([r * np.cos(angle), r * np.sin(angle), z])
        profile = np.einsum("...ij,i,j", difference, n, n)
        total = total + weight * np.pi / 6 * profile**2
        mean = mean + weight / 24 * profile
    return np.sqrt(np.maximum(total - 4 * np.pi * mean**2, 0))


def slow_single(tensor):
    dimensions = tensor.shape[-1]
    padded = np.pad(tensor, [(1, 1)] * dimensions + [(0, 0)] * 2, mode="edge")
    total = 0.0
    for step in itertools.product((-1, 0, 1), repeat=dimensions):
        shifted = np.roll(padded, step, axis=range(dimensions))
        inner = shifted[(slice(1, -1),) * dimensions]
        total = total + slow_distance(tensor, inner)
    return total / 3**dimensions


def slow_original(a, b):
    distance = slow_distance(a, b)
    distance = (distance - distance.min()) / np.ptp(distance)
    shared = np.minimum(slow_single(a), slow_single(b)) / (1 + distance)
    return (shared - shared.min()) / np.ptp(shared)


def tensors(shape, sigma=1.0, **options):
    """Structure tensors of both images of a random pair."""
    return [numpy(structure_tensor(image, sigma)) for image in random_pair(shape, **options)]


# --- stages ---


@each_shape
@pytest.mark.parametrize("sigma", [0, 1.0, 2.5])
def test_structure_tensor_is_the_smoothed_outer_product_of_gradients(shape, sigma):
    image, _ = random_pair(shape, channels=2)
    expected = [slow_tensor(sample, sigma) for sample in image]
    np.testing.assert_allclose(numpy(structure_tensor(image, sigma)), expected, atol=1e-5)


@each_shape
@pytest.mark.parametrize("contrast", [0.03, 0.5])
def test_tensor_correlation_is_its_equation(shape, contrast):
    pair = tensors(shape)
    expected = [slow_correlation(a, b, contrast) for a, b in zip(*pair, strict=True)]
    found = numpy(tensor_correlation(*pair, contrast=contrast))
    np.testing.assert_allclose(found[..., 0], expected, atol=1e-5)
    assert found.min() < 0.8


@each_shape
def test_tensor_distance_is_that_of_their_profiles_over_all_directions(shape):
    a, b = tensors(shape)
    found = numpy(tensor_distance(a, b))
    np.testing.assert_allclose(found[..., 0], slow_distance(a, b), atol=1e-5)
    assert found.mean() > 0.01


def test_a_multiple_of_the_identity_is_no_distance_in_3d_but_one_in_2d():
    plane, space = (np.zeros((1, *[2] * n, n, n), "float32") for n in (2, 3))
    assert numpy(tensor_distance(space + 0.1 * np.eye(3, dtype="float32"), space)).max() < 1e-5
    far = numpy(tensor_distance(plane + 0.1 * np.eye(2, dtype="float32"), plane))
    np.testing.assert_allclose(far, 0.1 * np.sqrt(8 * np.pi / 15 * (2 - 4 / 3)), rtol=1e-4)


@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 3)], ids=str)
def test_single_and_original_joint_saliency_are_their_sums_over_neighbours(shape):
    pair = tensors(shape)
    found = numpy(single_saliency(pair[0]))[..., 0]
    np.testing.assert_allclose(found, [slow_single(t) for t in pair[0]], atol=2e-5)
    expected = [slow_original(a, b) for a, b in zip(*pair, strict=True)]
    np.testing.assert_allclose(numpy(original_joint_saliency(*pair))[..., 0], expected, atol=1e-3)


def test_unit_range_is_that_of_each_sample_and_constants_are_0():
    values = np.array([[1.0, 2.0, 5.0], [7.0, 7.0, 7.0], [0.0, -1e6, 0.0]], "float32")
    expected = [[0, 0.25, 1], [0, 0, 0], [1, 0, 1]]
    np.testing.assert_allclose(numpy(unit_range(values)), expected, rtol=1e-6)


# --- kinds ---


@each_shape
def test_the_kinds_put_the_stages_together(shape):
    fixed, warped = random_pair(shape, channels=2)
    for sample in range(2):
        pair = fixed[sample], warped[sample]
        narrow, wide = ([slow_tensor(image, s) for image in pair] for s in (1.5, 3.0))
        expected = slow_correlation(*narrow, 0.1) * slow_correlation(*wide, 0.1)
        found = numpy(TensorCorrelation()(fixed, warped))[sample, ..., 0]
        np.testing.assert_allclose(found, expected, atol=1e-4)
    described = [structure_tensor(image, 1.5) for image in (fixed, warped)]
    expected = numpy(original_joint_saliency(*described))
    np.testing.assert_allclose(numpy(OriginalSaliency(1.5)(fixed, warped)), expected, atol=1e-5)


@each_kind
@each_shape
def test_lies_in_0_to_1_is_symmetric_and_each_sample_by_itself(kind, shape):
    fixed, warped = random_pair(shape, channels=2)
    found = numpy(kind(fixed, warped))
    assert found.shape == (2, *shape, 1)
    assert 0 <= found.min() < found.max() - 0.1 <= 0.9
    np.testing.assert_allclose(numpy(kind(warped, fixed)), found, atol=1e-5)
    other = warped.copy()
    other[0] *= 100
    np.testing.assert_allclose(numpy(kind(fixed, other))[1], found[1], atol=1e-5)


@each_shape
def test_equal_or_inverted_images_agree_everywhere(shape):
    fixed, _ = random_pair(shape)
    for other in (fixed, 1 - fixed):
        np.testing.assert_allclose(numpy(TensorCorrelation()(fixed, other)), 1, atol=1e-5)


@each_kind
@each_shape
def test_inversion_and_a_contrast_common_to_both_change_nothing(kind, shape):
    fixed, warped = random_pair(shape)
    expected = numpy(kind(fixed, warped))
    for a, b in [((1, 0), (-1, 0.5)), ((255, 0), (255, 0)), ((1e-4, 0), (-1e-4, 1e-3))]:
        found = numpy(kind(a[0] * fixed + a[1], (b[0] * warped + b[1]).astype("float32")))
        np.testing.assert_allclose(found, expected, atol=2e-3)


@each_kind
@pytest.mark.parametrize("shape", [(8, 8), (6, 6, 6)], ids=str)
def test_flips_and_quarter_turns_of_both_turn_the_map(kind, shape):
    pair = random_pair(shape, channels=2)
    expected = numpy(kind(*pair))
    for turn in (
        lambda x: np.flip(x, 2),
        lambda x: np.rot90(x, axes=(1, 2)),
        lambda x: np.swapaxes(x, 1, x.ndim - 2),
    ):
        turned = numpy(kind(*(np.ascontiguousarray(turn(x)) for x in pair)))
        np.testing.assert_allclose(turned, turn(expected), atol=1e-4)


@each_shape
def test_an_edge_that_one_image_lacks_is_not_salient(shape):
    step = np.zeros((1, *shape, 1), "float32")
    step[:, :, : shape[1] // 2] = 1
    found = numpy(TensorCorrelation((0.5,))(step, np.zeros_like(step)))
    assert found[:, :, shape[1] // 2].max() < 0.05
    # No edge is near, and neither image has one.
    np.testing.assert_allclose(found[:, :, -1], 1, atol=1e-4)


@each_kind
@pytest.mark.parametrize("value", [0.0, -1e3])
def test_constants_give_finite_values_and_gradients(kind, value):
    pattern, _ = random_pair((9, 12))
    pattern[1] = value
    constant = np.full_like(pattern, value)
    for pair in [(constant, constant), (constant, pattern), (pattern, pattern)]:
        found = numpy(kind(*pair))
        assert np.isfinite(found).all()
        flat = 0 if isinstance(kind, OriginalSaliency) else 1
        np.testing.assert_array_equal(found[1], np.full((9, 12, 1), flat))
        for gradient in gradients(lambda *images: ops.sum(kind(*images)), *pair):
            assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (TensorCorrelation((0.7,)), (5, 6)),
        (TensorCorrelation((0.7,)), (3, 4, 3)),
        (OriginalSaliency(1.0), (5, 6)),
    ],
    ids=str,
)
def test_gradients_equal_central_differences(kind, shape):
    pair = random_pair(shape, batch=1, channels=2)
    weights = np.random.default_rng(3).uniform(-1, 1, (*shape, 1)).astype("float32")
    axes = tuple(range(1, len(shape) + 2))

    def total(*images):
        return ops.mean(ops.multiply(kind(*images), weights), axis=axes)

    found = gradients(lambda *images: ops.sum(total(*images)), *pair)
    for argument in (0, 1):
        expected = central_differences(total, *pair, argument=argument, step=2e-3)
        assert np.abs(expected).max() > 0.01
        # A minimum or maximum may change hands within a step.
        np.testing.assert_allclose(found[argument], expected, atol=2e-3)


def test_local_normalisation_comes_first():
    fixed, warped = random_pair((14, 17))
    kind = TensorCorrelation((1.0,))
    normalised = (normalise_locally(image, 3.0) for image in (fixed, warped))
    found = LocallyNormalised(kind, sigma=3.0)(fixed, warped)
    np.testing.assert_allclose(numpy(found), numpy(kind(*normalised)), atol=1e-6)
    shading = np.linspace(0.6, 1.4, 17, dtype="float32")[:, None]
    found = [1 - numpy(k(fixed, shading * fixed)).mean() for k in (LocallyNormalised(kind), kind)]
    assert found[0] < 0.5 * found[1]
    with pytest.raises(ValueError, match=r"`sigma` > 0.*Received"):
        LocallyNormalised(sigma=0)


def test_an_unchanged_image_is_described_once():
    fixed, warped = random_pair((9, 12))
    for kind in KINDS:
        found = kind.compare(kind.describe(fixed), kind.describe(warped))
        np.testing.assert_array_equal(numpy(found), numpy(kind(fixed, warped)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: TensorCorrelation(()), r"`sigmas` >= 0.*Received"),
        (lambda: TensorCorrelation((1.0, -1.0)), r"`sigmas` >= 0.*Received"),
        (lambda: TensorCorrelation(contrast=0), r"`contrast` > 0.*Received"),
        (lambda: OriginalSaliency(-1.0), r"`sigma` >= 0.*Received"),
        (lambda: tensor_correlation(*tensors((9, 12)), contrast=0), r"`contrast` > 0\. Received"),
        (lambda: tensor_distance(*tensors((9, 12)), epsilon=0), r"`epsilon` > 0\. Received"),
        (
            lambda: single_saliency(np.zeros((1, 9, 8, 3, 3))),
            r"\(batch, \*spatial, D, D\).*Received",
        ),
        (lambda: KINDS[0](*(np.zeros((1, 9, n, 1)) for n in (8, 9))), "equal shape"),
        (lambda: structure_tensor(np.zeros((1, 9, 8, 1), "uint8"), 1.0), "floating-point"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
