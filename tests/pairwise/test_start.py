import numpy as np

from kreg.groups import Affine, Rigid, Similarity
from kreg.pairwise import LocalNormalisation, MultiStart, UniformSampler
from kreg.pairwise.images import Image
from kreg.pairwise.pairs import Pairs, Side
from kreg.pairwise.start import _distinct, _smaller, _varied, find_start
from tests.pairwise.scenes import photograph, rendered, transformed, turned

SIZE = (64, 60)
CORNERS = np.array([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])
#: Few rotations and scales: searched quickly.
FEW = MultiStart(angles=(-30, 0, 30), scales=(0.84, 1.0, 1.19), keep=12, finalists=4)


def pairs_of(*images, unit=32.0):
    """Fixed and moving images, batches of them or not, in a world of half their longest side."""
    fixed, moving = (
        Side(
            Image(image, "image"),
            None,
            np.full(2, 1 / unit),
            grey=True,
            preparation=LocalNormalisation(),
        )
        for image in images
    )
    return Pairs(fixed, moving, UniformSampler())


def normalised(matrix, unit=32.0):
    scale = np.diag([unit, unit, 1])
    return np.linalg.inv(scale) @ matrix @ scale


def gap(found, truth):
    """The largest distance, in voxels, between what two normalised matrices make of the corners."""
    return (
        32
        * np.linalg.norm(
            transformed(found, CORNERS) - transformed(normalised(truth), CORNERS), axis=1
        ).max()
    )


def test_starts_close_to_the_truth_of_each_pair():
    truths = [turned(25, scale=1.15, shift=(6, -9)), turned(-28, shift=(-8, 5))]
    fixed = np.stack([rendered(photograph(), SIZE)] * 2)[..., None]
    moving = np.stack([rendered(photograph(), SIZE, truth) for truth in truths])[..., None]
    moving[-1] = 1 - moving[-1]
    begin = find_start(pairs_of(fixed, moving), FEW, Affine(), seed=0)
    assert begin.matrices.shape == (2, 3, 3)
    for matrix, truth, runner_up in zip(begin.matrices, truths, begin.runner_up, strict=True):
        assert gap(matrix, truth) < 2
        assert runner_up is None or 0 <= runner_up < 0.9


def test_stays_within_the_group():
    truth = turned(28, shift=(6, -9))
    images = rendered(photograph(), SIZE), rendered(photograph(), SIZE, truth)
    (matrix,) = find_start(pairs_of(*images), FEW, Rigid(), seed=0).matrices
    np.testing.assert_allclose(matrix[:2, :2] @ matrix[:2, :2].T, np.eye(2), atol=1e-9)
    assert gap(matrix, truth) < 2


def test_a_runner_up_that_fits_as_well_is_named():
    """Stripes: every period fits."""
    stripes = np.sin(np.arange(64) * 2 * np.pi / 16)[:, None] * np.ones(SIZE)
    grid = stripes + np.sin(np.arange(60) * 2 * np.pi / 15) * np.ones(SIZE)
    images = np.stack([grid, rendered(photograph(), SIZE)])[..., None].astype("float32")
    repeated, unique = find_start(pairs_of(images, images), FEW, Affine(), seed=0).runner_up
    assert repeated > 0.6  # less what a shift by a period costs in overlap
    assert unique < 0.5


def test_without_texture_it_is_near_the_identity():
    fixed, moving = np.zeros((2, *SIZE, 1), "float32"), np.ones((2, *SIZE, 1), "float32")
    moving += np.random.default_rng(0).normal(size=moving.shape).astype("float32")
    begin = find_start(pairs_of(fixed, moving), FEW, Affine(), seed=0)
    np.testing.assert_allclose(begin.matrices, np.stack([np.eye(3)] * 2), atol=0.4)
    assert begin.runner_up == [None, None]


def test_variations_keep_the_candidates_themselves():
    pairs = pairs_of(*[rendered(photograph(), SIZE)] * 2)
    candidates = np.stack([normalised(turned(10 * k, shift=(k, 0))) for k in range(3)])[None]
    varied = _varied(candidates, 10, Similarity(), pairs, 0, np.random.default_rng(0))
    assert varied.shape == (1, 10, 3, 3)
    np.testing.assert_allclose(varied[0, ::4], candidates[0])
    for k in range(10):
        distance = (
            32
            * np.abs(
                transformed(varied[0, k], CORNERS) - transformed(candidates[0, k // 4], CORNERS)
            ).max()
        )
        assert (distance > 0.1) == (k % 4 > 0)
        assert distance < 25
        linear = varied[0, k, :2, :2]
        np.testing.assert_allclose(linear @ linear.T, np.linalg.det(linear) * np.eye(2), atol=1e-9)


def test_distinct_matrices_move_a_corner_by_more_than_the_distance():
    shifts = [0.0, 0.05, 0.3, 0.31, 0.9]
    matrices = np.stack([turned(0, shift=(shift, 0)) for shift in shifts])
    score = np.array([1.0, 3.0, 2.0, 2.5, 0.0])
    assert _distinct(matrices, score, CORNERS, 0.1) == [1, 3]
    assert _distinct(matrices, score, CORNERS, 0.5) == [1]
    assert _distinct(matrices, 0 * score, CORNERS, 0.1)[:1] == [0]


def test_the_smaller_group():
    assert _smaller(Affine(), Similarity(), 2) == Similarity()
    assert _smaller(Rigid(), Similarity(), 2) == Rigid()
    assert _smaller(Rigid(), Similarity(), 3) == Rigid()
