import itertools

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from kreg.groups import Affine, Homography, Rigid, Similarity, Translation
from kreg.pairwise import MultiStart
from kreg.pairwise.blocks import Frame
from kreg.pairwise.search import OVERLAP_POWER, Piece, _labels, _scores
from tests.fields import grid

each_dimension = pytest.mark.parametrize("dimensions", [2, 3])


def turn(degrees, dimensions=2, axis=0):
    if dimensions == 3:
        return Rotation.from_rotvec(np.deg2rad(degrees) * np.eye(3)[axis]).as_matrix()
    a = np.deg2rad(degrees)
    return np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])


def world_matrix(linear, shift):
    matrix = np.eye(len(linear) + 1)
    matrix[:-1, :-1], matrix[:-1, -1] = linear, shift
    return matrix


def scene(dimensions, seed=0):
    """Blurred noise, much larger than the images: there is content beyond every frame."""
    size = {2: 220, 3: 72}[dimensions]
    noise = np.random.default_rng(seed).normal(size=(size,) * dimensions)
    return ndimage.gaussian_filter(noise, 2.5)


def rendered(image, shape, spacing=None, matrix=None):
    """image(inverse(matrix) y) on a centred grid, y in world units of one scene voxel."""
    spacing = np.ones(len(shape)) if spacing is None else np.asarray(spacing)
    frame = Frame(spacing, -spacing * (np.asarray(shape) - 1) / 2)
    points = frame.to_world(grid(shape).astype("float64"))
    if matrix is not None:
        inverse = np.linalg.inv(matrix)
        points = points @ inverse[:-1, :-1].T + inverse[:-1, -1]
    points = points + (np.asarray(image.shape) - 1) / 2
    values = ndimage.map_coordinates(image, np.moveaxis(points, -1, 0), order=1)
    return Piece(values.astype("float32"), None, frame)


def farthest(found, expected, piece):
    """The largest distance between what two matrices make of the corners, world."""
    ends = np.asarray(list(itertools.product((0, 1), repeat=piece.values.ndim)))
    corners = piece.frame.to_world(ends * (np.asarray(piece.values.shape) - 1))
    gaps = [m[:-1, :-1] @ c + m[:-1, -1] for m in (found, expected) for c in corners]
    gaps = np.subtract(*np.split(np.array(gaps), 2))
    return np.linalg.norm(gaps, axis=1).max()


@pytest.mark.parametrize(
    ("angle", "scale", "shift", "contrast"),
    [(0, 1.0, (0, 0), 1), (20, 0.84, (12, -9), -1), (-40, 1.19, (-15, 18), 1)],
)
def test_finds_a_rotation_scale_and_translation(angle, scale, shift, contrast):
    truth = world_matrix(scale * turn(angle), shift)
    image = scene(2)
    fixed, moving = rendered(image, (56, 60)), rendered(image, (56, 60), matrix=truth)
    moving = moving._replace(values=contrast * moving.values)
    best, *rest = MultiStart().search(fixed, moving, Similarity())
    assert farthest(best.matrix, truth, fixed) < 2.5
    assert all(a.score >= b.score for a, b in itertools.pairwise([best, *rest]))
    assert len(rest) == 39


def test_finds_a_rotation_in_a_volume():
    truth = world_matrix(1.19 * turn(20, 3, axis=1), (3, -4, 2))
    image = scene(3)
    fixed, moving = rendered(image, (26, 24, 28)), rendered(image, (26, 24, 28), matrix=truth)
    start = MultiStart(angles=(0, 20), scales=(1.0, 1.19))
    best, *_ = start.search(fixed, moving, Similarity())
    assert farthest(best.matrix, truth, fixed) < 2.5


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((80, 44), None), ((30, 70), (2, 1)), ((45, 50), (1.5, 1.5))],
    ids=str,
)
def test_sizes_and_spacings_may_differ(shape, spacing):
    truth = world_matrix(turn(20), (6, -5))
    image = scene(2)
    fixed = rendered(image, (60, 41), spacing=(1.0, 1.25))
    moving = rendered(image, shape, spacing, truth)
    best, *_ = MultiStart().search(fixed, moving, Rigid())
    assert farthest(best.matrix, truth, fixed) < 3


def test_frames_need_not_be_centred():
    truth = world_matrix(np.eye(2), (5, 3))
    image = scene(2)
    fixed, moving = rendered(image, (50, 56)), rendered(image, (50, 56), matrix=truth)
    shifts = np.array([30.0, -7.0]), np.array([-4.0, 11.0])
    fixed, moving = (
        piece._replace(frame=Frame(piece.frame.spacing, piece.frame.origin + shift))
        for piece, shift in zip((fixed, moving), shifts, strict=True)
    )
    best, *_ = MultiStart().search(fixed, moving, Translation())
    np.testing.assert_allclose(best.matrix[:2, :2], np.eye(2), atol=1e-9)
    np.testing.assert_allclose(best.matrix[:2, 2], shifts[1] + (5, 3) - shifts[0], atol=1)


@each_dimension
@pytest.mark.parametrize("group", [Translation(), Rigid(), Similarity(), Affine()], ids=repr)
def test_tries_only_what_the_group_holds(dimensions, group):
    parts = MultiStart().linear_parts(dimensions, group)
    scales = {round(np.linalg.det(part) ** (1 / dimensions), 6) for part in parts}
    assert scales == ({1.0} if isinstance(group, Translation | Rigid) else set(MultiStart().scales))
    turns = {tuple(np.round(p / np.linalg.det(p) ** (1 / dimensions), 6).ravel()) for p in parts}
    rotations = 1 if isinstance(group, Translation) else {2: 11, 3: 13}[dimensions]
    assert len(turns) == rotations
    assert len(parts) == rotations * len(scales)
    for part in parts:
        scale = np.linalg.det(part) ** (1 / dimensions)
        np.testing.assert_allclose(part @ part.T, scale**2 * np.eye(dimensions), atol=1e-9)


def test_homographies_start_from_similarities():
    start = MultiStart()
    expected = start.linear_parts(2, Similarity())
    np.testing.assert_allclose(start.linear_parts(2, Homography()), expected)


def test_masked_voxels_do_not_count():
    """The same foreign patch lies in both images, elsewhere: unmasked it wins."""
    truth = world_matrix(np.eye(2), (7, -6))
    image = scene(2)
    fixed, moving = rendered(image, (56, 60)), rendered(image, (56, 60), matrix=truth)
    patch = 3 * scene(2, seed=5)[:36, :36]
    places = (slice(0, 36), slice(0, 36)), (slice(20, 56), slice(24, 60))
    pieces = []
    for piece, place in zip((fixed, moving), places, strict=True):
        piece.values[place] = patch
        mask = np.ones(piece.values.shape, "float32")
        mask[place] = 0
        pieces.append(piece._replace(mask=mask))
    fooled, *_ = MultiStart().search(fixed, moving, Translation())
    np.testing.assert_allclose(fooled.matrix[:2, 2], (20, 24), atol=1)
    best, *_ = MultiStart().search(*pieces, Translation())
    np.testing.assert_allclose(best.matrix[:2, 2], (7, -6), atol=1)


@pytest.mark.parametrize("overlap", [0.25, 0.6])
def test_no_candidate_overlaps_less_than_the_limit(overlap):
    image = scene(2)
    truth = world_matrix(np.eye(2), (0, 30))  # half the image
    fixed, moving = rendered(image, (56, 60)), rendered(image, (56, 60), matrix=truth)
    found = MultiStart(overlap=overlap).search(fixed, moving, Translation())
    voxels = grid((56, 60)).reshape(-1, 2)
    for candidate in found:
        points = fixed.frame.to_world(voxels) @ candidate.matrix[:2, :2].T + candidate.matrix[:2, 2]
        there = moving.frame.to_voxels(points)
        assert np.mean(((there >= -0.01) & (there <= (55.01, 59.01))).all(1)) >= overlap
    assert (farthest(found[0].matrix, truth, fixed) < 1) == (overlap < 0.5)


def test_nothing_qualifies_where_the_moving_image_is_too_small():
    image = scene(2)
    fixed, moving = rendered(image, (60, 60)), rendered(image, (12, 12))
    assert MultiStart(scales=(1.0,)).search(fixed, moving, Similarity()) == []


# --- the scores of all translations at once ---


def slow_score(labels, others, shift, bins):
    """(MI - bias) (n / n_fixed)^0.7 of one shift, voxel by voxel."""
    joint = np.zeros((bins, bins))
    for index in np.argwhere(labels >= 0):
        there = index + shift
        if ((there >= 0) & (there < others.shape)).all() and others[tuple(there)] >= 0:
            joint[labels[tuple(index)], others[tuple(there)]] += 1
    count = joint.sum()
    if count == 0:
        return 0, 0
    p = joint / count
    independent = np.outer(p.sum(1), p.sum(0))
    information = np.sum(p[p > 0] * np.log(p[p > 0] / independent[p > 0]))
    share = count / np.count_nonzero(labels >= 0)
    corrected = information - (bins - 1) ** 2 / (2 * count)
    return max(corrected, 0) * share**OVERLAP_POWER, share


@pytest.mark.parametrize(("sizes", "bins"), [(((6, 7), (8, 5)), 3), (((4, 3, 4), (3, 5, 4)), 2)])
def test_scores_are_the_information_at_every_shift(sizes, bins):
    rng = np.random.default_rng(0)
    labels, others = (rng.integers(-1, bins, size) for size in sizes)
    shape = [a + b - 1 for a, b in zip(*sizes, strict=True)]
    least = 0.2
    found = _scores(labels, others, bins, shape, least)
    for index in np.ndindex(*shape):
        shift = [i if i < b else i - n for i, b, n in zip(index, sizes[1], shape, strict=True)]
        expected, share = slow_score(labels, others, np.array(shift), bins)
        if abs(share - least) > 1e-6:
            assert found[index] == pytest.approx(expected if share > least else 0, abs=1e-4)


def test_bins_hold_equal_counts():
    values = np.random.default_rng(0).gamma(0.5, size=(40, 70))
    counts = np.bincount(_labels(values, None, 7).ravel())
    np.testing.assert_allclose(counts, 400, atol=1)


def test_masked_voxels_are_in_no_bin():
    values = np.random.default_rng(0).normal(size=(20, 30))
    mask = np.zeros((20, 30))
    mask[:10] = 1
    labels = _labels(np.where(mask > 0, values, 1e9), mask, 5)
    np.testing.assert_array_equal(labels[10:], -1)
    np.testing.assert_array_equal(np.bincount(labels[:10].ravel()), 60)
    np.testing.assert_array_equal(_labels(values, 0 * mask, 5), -1)


@pytest.mark.parametrize(
    "options",
    [{"keep": 0}, {"finalists": 0}, {"keep": 4}, {"bins": 1}, {"overlap": 0}, {"scales": (0,)}],
    ids=str,
)
def test_refuses_a_start_that_finds_nothing(options):
    with pytest.raises(ValueError, match=r"Expected MultiStart.*Received"):
        MultiStart(**options)


def test_all_angles_are_tried_in_3d():
    parts = MultiStart(angles=(7,), scales=(1.0,)).linear_parts(3, Rigid())
    assert len(parts) == 4  # about each axis, and none
