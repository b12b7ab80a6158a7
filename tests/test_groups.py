from itertools import pairwise

import keras
import numpy as np
import pytest
from scipy.linalg import expm

from kreg.groups import Affine, Homography, Rigid, Similarity, Translation

GROUPS = [Translation(), Rigid(), Similarity(), Affine(), Homography()]
SIZES = {
    2: [2, 3, 4, 6, 8],
    3: [3, 6, 7, 12],
}

each_group = pytest.mark.parametrize("group", GROUPS, ids=repr)
each_dimension = pytest.mark.parametrize("dimensions", [2, 3])
everywhere = pytest.mark.parametrize(
    ("group", "dimensions"),
    [(group, d) for d, sizes in SIZES.items() for group in GROUPS[: len(sizes)]],
    ids=str,
)


def member(group, dimensions, seed=0, size=0.5):
    """A random member of the group, by an exponential that is not kreg's."""
    generators = group.generators(dimensions).astype("float64")
    coefficients = np.random.default_rng(seed).normal(0, size, len(generators))
    return expm(np.tensordot(coefficients, generators, 1))


@each_dimension
def test_sizes(dimensions):
    expected = SIZES[dimensions]
    assert [group.size(dimensions) for group in GROUPS[: len(expected)]] == expected
    assert [group.dimensions(k) for group, k in zip(GROUPS, expected, strict=False)] == [
        dimensions
    ] * len(expected)


@everywhere
def test_generators_are_float32_and_independent(group, dimensions):
    generators = group.generators(dimensions)
    assert generators.dtype == np.float32
    assert generators.shape == (group.size(dimensions), dimensions + 1, dimensions + 1)
    flat = generators.reshape(len(generators), -1).astype("float64")
    np.testing.assert_allclose(flat @ flat.T, np.diag((flat**2).sum(1)), atol=1e-6)
    assert (flat**2).sum(1).min() > 0.9


@each_dimension
def test_each_group_begins_with_the_smaller_one(dimensions):
    groups = GROUPS[: len(SIZES[dimensions])]
    for small, large in pairwise(groups):
        found = large.generators(dimensions)[: small.size(dimensions)]
        np.testing.assert_array_equal(found, small.generators(dimensions))


@each_dimension
def test_a_translation_coefficient_is_the_shift_along_its_axis(dimensions):
    shift = np.arange(1.0, dimensions + 1)
    matrix = expm(np.tensordot(shift, Translation().generators(dimensions), 1))
    expected = np.eye(dimensions + 1)
    expected[:-1, -1] = shift
    np.testing.assert_allclose(matrix, expected, atol=1e-6)


@each_dimension
def test_a_rotation_leads_from_its_first_axis_to_its_second(dimensions):
    pairs = [(0, 1), (0, 2), (1, 2)][: dimensions * (dimensions - 1) // 2]
    rotations = Rigid().generators(dimensions)[dimensions:]
    for (first, second), generator in zip(pairs, rotations, strict=True):
        basis = np.eye(dimensions + 1)
        quarter = expm(np.pi / 2 * generator.astype("float64"))
        np.testing.assert_allclose(quarter @ basis[first], basis[second], atol=1e-6)
        np.testing.assert_allclose(quarter @ basis[second], -basis[first], atol=1e-6)


@each_dimension
def test_rigid_members_keep_distances(dimensions):
    matrix = member(Rigid(), dimensions)
    rotation = matrix[:-1, :-1]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(dimensions), atol=1e-6)
    assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-6)
    assert np.abs(rotation - np.eye(dimensions)).max() > 0.1


@each_dimension
def test_similar_members_scale_all_distances_alike(dimensions):
    linear = member(Similarity(), dimensions)[:-1, :-1]
    factor = np.linalg.det(linear) ** (1 / dimensions)
    np.testing.assert_allclose(linear @ linear.T, factor**2 * np.eye(dimensions), atol=1e-6)
    log_scale = Similarity().generators(dimensions)[-1].astype("float64")
    doubled = np.diag([2.0] * dimensions + [1.0])
    np.testing.assert_allclose(expm(np.log(2) * log_scale), doubled, atol=1e-6)


@each_dimension
def test_stretches_keep_the_volume(dimensions):
    first = Similarity().size(dimensions)
    for generator in Affine().generators(dimensions)[first:]:
        np.testing.assert_array_equal(generator, generator.T)
        stretch = expm(0.3 * generator.astype("float64"))
        assert np.linalg.det(stretch) == pytest.approx(1, abs=1e-6)
        assert np.abs(stretch - np.eye(dimensions + 1)).max() > 0.1


@each_dimension
def test_affine_generators_span_every_affine_matrix(dimensions):
    flat = Affine().generators(dimensions)[:, :-1].reshape(Affine().size(dimensions), -1)
    assert np.linalg.matrix_rank(flat) == dimensions * (dimensions + 1)
    assert not Affine().generators(dimensions)[:, -1].any()


def test_homographies_span_every_matrix_up_to_its_scale():
    flat = [*Homography().generators(2).reshape(8, 9), np.eye(3).ravel()]
    assert np.linalg.matrix_rank(flat) == 9


@everywhere
def test_each_group_is_closed(group, dimensions):
    product = member(group, dimensions, 1, 0.1) @ member(group, dimensions, 2, 0.1)
    # The logarithm, by its series, lies in the span of the generators (and, for homographies,
    # the identity, which changes nothing).
    power = excess = product - np.eye(dimensions + 1)
    logarithm = np.zeros_like(product)
    for k in range(1, 200):
        logarithm -= (-1) ** k * power / k
        power = power @ excess
    span = [*group.generators(dimensions).reshape(group.size(dimensions), -1).astype("float64")]
    if group == Homography():
        span.append(np.eye(3).ravel())
    coefficients = np.linalg.lstsq(np.transpose(span), logarithm.ravel())[0]
    np.testing.assert_allclose(coefficients @ span, logarithm.ravel(), atol=1e-6)
    np.testing.assert_allclose(expm(logarithm), product, atol=1e-6)


@each_group
def test_a_group_is_a_value(group):
    config = keras.saving.serialize_keras_object(group)
    assert config["registered_name"] == f"kreg>{type(group).__name__}"
    twin = keras.saving.deserialize_keras_object(config)
    assert twin == group
    assert hash(twin) == hash(group)
    assert [other for other in GROUPS if other == group] == [group]


def test_refuses_a_homography_in_3d():
    with pytest.raises(ValueError, match=r"Homography\(\) in 2 dim.*use Affine\(\).*Received: 3"):
        Homography().generators(3)


@each_group
@pytest.mark.parametrize("dimensions", [1, 4])
def test_refuses_other_dimensions(group, dimensions):
    with pytest.raises(ValueError, match=rf"dimensions.*Received: {dimensions}"):
        group.size(dimensions)


@each_group
@pytest.mark.parametrize("size", [0, 5, 13])
def test_refuses_another_number_of_coefficients(group, size):
    name = type(group).__name__
    with pytest.raises(
        ValueError, match=rf"{name}\(\) has generators, .* in 2-D.*Received: {size}"
    ):
        group.dimensions(size)
