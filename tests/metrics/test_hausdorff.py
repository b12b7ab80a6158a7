import itertools

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from kreg.metrics.hausdorff import hd95

SHAPES = [(14, 17), (7, 8, 9)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def blobs(shape, *, labels=3, batch=2, seed=0):
    """Label maps of a few connected regions."""
    noise = np.random.default_rng(seed).normal(size=(batch, *shape, labels))
    return np.argmax(gaussian_filter(noise, (0, *(1.5 for _ in shape), 0)), axis=-1)


def surface(voxels):
    """The indices of the voxels that have a face on what is not in the set, or on the edge."""
    inside = set(map(tuple, np.argwhere(voxels)))
    steps = [
        sign * np.eye(voxels.ndim, dtype=int)[axis]
        for axis, sign in itertools.product(range(voxels.ndim), (1, -1))
    ]
    return np.array(
        [x for x in sorted(inside) if any(tuple(np.add(x, s)) not in inside for s in steps)]
    )


def percentile95(values):
    """Linear interpolation between the ranks 0 to n - 1."""
    ordered, rank = np.sort(values), 0.95 * (len(values) - 1)
    low = int(rank)
    high = min(low + 1, len(values) - 1)
    return ordered[low] + (rank - low) * (ordered[high] - ordered[low])


def slow_hd95(a, b, spacing):
    """All distances between all pairs of surface voxels."""
    offsets = (surface(a)[:, None] - surface(b)[None]) * np.asarray(spacing)
    distances = np.linalg.norm(offsets, axis=-1)
    return max(percentile95(distances.min(axis=1)), percentile95(distances.min(axis=0)))


@each_shape
@pytest.mark.parametrize("spaced", [False, True])
def test_equals_all_distances_between_surface_voxels(shape, spaced):
    fixed, warped = blobs(shape), blobs(shape, seed=1)
    spacing = [0.7, 2.0, 1.3][: len(shape)] if spaced else None
    found = hd95(fixed, warped, [2, 1], spacing=spacing)
    expected = [
        [slow_hd95(f == label, w == label, spacing or [1] * len(shape)) for label in (2, 1)]
        for f, w in zip(fixed, warped, strict=True)
    ]
    assert found.shape == (2, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert np.min(expected) > 1
    np.testing.assert_allclose(hd95(warped, fixed, [2, 1], spacing=spacing), found, rtol=1e-12)


@each_shape
def test_equal_maps_are_0_and_single_voxels_as_far_apart_as_they_lie(shape):
    maps = blobs(shape)
    np.testing.assert_array_equal(hd95(maps, maps, [0, 1, 2]), np.zeros((2, 3)))
    fixed, warped = np.zeros((1, *shape), int), np.zeros((1, *shape), int)
    fixed[0, 1, 1], warped[0, 4, 5] = 1, 1
    fixed, warped = (
        x if len(shape) == 2 else np.where(np.arange(shape[-1]) == 3, x, 0) for x in (fixed, warped)
    )
    assert hd95(fixed, warped, [1]) == pytest.approx(5)
    spacing = (2, 0.5, 9)[: len(shape)]
    assert hd95(fixed, warped, [1], spacing=spacing) == pytest.approx(np.hypot(6, 2))


def test_a_hole_is_a_surface_and_the_image_edge_as_well():
    whole = np.ones((1, 9, 9), int)
    hole = whole.copy()
    hole[0, 4, 4] = 0
    # 32 of 36 surface voxels lie on the edge, the 4 around the hole are 3 away from it.
    assert hd95(whole, hole, [1]) == pytest.approx(3)


def test_the_farthest_voxels_are_left_out():
    """One voxel in 50 far away: the largest distance is 40, the 95th percentile of both 0."""
    fixed = np.zeros((1, 3, 90), int)
    fixed[0, 1, :49] = 1
    warped = fixed.copy()
    warped[0, 1, 88] = 1
    assert hd95(fixed, warped, [1]) == pytest.approx(0)
    warped[0, 1, 80:88] = 1
    assert hd95(fixed, warped, [1])[0, 0] > 30


def test_the_worse_direction_counts():
    """A small part of a large structure is near it, but not the other way round."""
    fixed, warped = np.zeros((2, 1, 3, 40), int)
    fixed[0, 1, :40], warped[0, 1, :4] = 1, 1
    expected = percentile95(np.maximum(np.arange(40) - 3, 0))
    assert hd95(fixed, warped, [1]) == pytest.approx(expected)
    assert hd95(warped, fixed, [1]) == pytest.approx(expected)


def test_a_label_of_neither_map_is_nan_and_a_lost_one_infinite():
    fixed, warped = np.zeros((2, 1, 5, 6), int)
    fixed[0, 2, 2] = warped[0, 2, 3] = 1
    fixed[0, 4, 4], warped[0, 0, 0] = 2, 3
    found = hd95(fixed, warped, [1, 2, 3, 4])
    np.testing.assert_array_equal(found, [[1, np.inf, np.inf, np.nan]])


@each_shape
def test_takes_what_the_warp_of_a_label_map_returns(shape):
    fixed, warped = blobs(shape), blobs(shape, seed=1)
    expected = hd95(fixed, warped, [1, 2])
    as_images = [x[..., None].astype("float32") for x in (fixed, warped)]
    np.testing.assert_array_equal(hd95(*as_images, [1, 2]), expected)


@each_shape
def test_empty_margins_change_nothing(shape):
    fixed, warped = (np.where(x == 1, 1, 0) for x in (blobs(shape), blobs(shape, seed=1)))
    wide = [np.pad(x, [(0, 0), *[(3, 5)] * len(shape)]) for x in (fixed, warped)]
    np.testing.assert_allclose(hd95(*wide, [1]), hd95(fixed, warped, [1]), rtol=1e-12)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((1, 5, 6), (1, 5, 7)), {}, "equal shape"),
        (((5, 6), (5, 6)), {}, r"labels\[None\]"),
        (((1, 3, 3, 3, 2), (1, 3, 3, 3, 2)), {}, "2-D or 3-D.*Received: shape"),
        (((1, 5, 6), (1, 5, 6)), {"labels": []}, "each label once.*Received"),
        (((1, 5, 6), (1, 5, 6)), {"labels": [1, 1]}, "each label once"),
        (((1, 5, 6), (1, 5, 6)), {"spacing": (1, 0)}, "one positive spacing for each of the 2"),
        (((1, 5, 6), (1, 5, 6)), {"spacing": (1, 1, 1)}, "Received: "),
    ],
)
def test_refuses_what_does_not_fit(shapes, options, message):
    fixed, warped = (np.zeros(shape, int) for shape in shapes)
    labels = options.pop("labels", [1])
    with pytest.raises(ValueError, match=message):
        hd95(fixed, warped, labels, **options)
