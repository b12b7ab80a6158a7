import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from kreg.ops import (
    matrix_to_displacement,
    nearest_border,
    reflect_border,
    sample_nearest,
    voxel_matrix,
    zero_border,
)
from kreg.pairwise import Registration
from kreg.pairwise import result as result_module
from kreg.pairwise.images import Image
from tests.fields import grid

#: A matrix that turns, stretches and moves, and, in 2-D, projects.
MATRICES = {
    "affine": np.array([[0.9, -0.3, 2.1], [0.35, 1.1, -3.3], [0, 0, 1]]),
    "homography": np.array([[0.9, -0.3, 2.1], [0.35, 1.1, -3.3], [0.004, -0.003, 1]]),
    "3-D": np.array([[0.9, -0.3, 0, 1], [0.35, 1.1, 0.1, -1], [0, -0.2, 0.95, 0.6], [0, 0, 0, 1]]),
}
each_matrix = pytest.mark.parametrize("name", MATRICES)


def registration(moving, matrix, fixed_shape, fixed_spacing=None, moving_spacing=None, **options):
    dimensions = len(fixed_shape)
    return Registration(
        matrix=matrix,
        similarity_before=0.0,
        similarity_after=1.0,
        overlap=1.0,
        chance=0.1,
        runner_up=None,
        trusted=True,
        reason="",
        history={},
        fixed_shape=fixed_shape,
        fixed_spacing=fixed_spacing or (1.0,) * dimensions,
        moving_spacing=moving_spacing or (1.0,) * dimensions,
        moving=Image(moving, "moving"),
        **options,
    )


def example(name, *, channels=(), seed=0):
    """A result between images of odd, unequal sizes and spacings, and its moving image."""
    matrix = MATRICES[name]
    shapes = ((21, 26, 17), (24, 19, 22)) if name == "3-D" else ((41, 52), (48, 37))
    spacings = ((0.8, 1.0, 1.2), (1.0, 0.9, 1.1)) if name == "3-D" else ((0.8, 1.2), (1.0, 0.9))
    moving = np.random.default_rng(seed).normal(size=(*shapes[1], *channels)).astype("float32")
    return registration(moving, matrix, shapes[0], *spacings), moving


def by_hand(result, points):
    """Voxel to world, the matrix, world to voxel, as the conventions say."""
    world = (points - (np.asarray(result.fixed_shape) - 1) / 2) * result.fixed_spacing
    image = np.concatenate([world, np.ones((*world.shape[:-1], 1))], -1) @ result.matrix.T
    there = image[..., :-1] / image[..., -1:]
    return there / result.moving_spacing + (np.asarray(result.moving.shape) - 1) / 2


@each_matrix
def test_points_go_by_way_of_the_centred_worlds(name):
    result, _ = example(name)
    points = np.random.default_rng(1).uniform(0, 20, (3, 5, len(result.fixed_shape)))
    np.testing.assert_allclose(result.transform_points(points), by_hand(result, points), atol=1e-4)
    back = result.inverse_transform_points(result.transform_points(points))
    np.testing.assert_allclose(back, points, atol=1e-9)
    # One point alone, too.
    one = result.transform_points(points[0, 0])
    np.testing.assert_allclose(one, result.transform_points(points)[0, 0])


@each_matrix
def test_displaced_points_go_the_same_way_alone_and_together(name):
    plain, _ = example(name)
    shape = plain.fixed_shape
    field = np.zeros((*shape, len(shape)))
    field[..., 0] = 0.5 + 0.1 * np.indices(shape)[-1]  # linear: exact between voxels
    result = dataclasses.replace(plain, field=field.astype("float32"))
    points = np.random.default_rng(1).uniform(3, 12, (4, len(shape)))
    displaced = points.copy()
    displaced[:, 0] += 0.5 + 0.1 * points[:, -1]
    there = result.transform_points(points)
    np.testing.assert_allclose(there, by_hand(result, displaced), atol=1e-4)
    np.testing.assert_allclose(result.transform_points(points[0]), there[0], atol=1e-9)
    np.testing.assert_allclose(result.inverse_transform_points(there[0]), points[0], atol=1e-5)


@each_matrix
def test_the_voxel_matrix_is_that_of_the_ops(name):
    result, _ = example(name)
    expected = voxel_matrix(
        result.matrix[None].astype("float32"),
        result.fixed_shape,
        result.moving.shape,
        fixed_spacing=result.fixed_spacing,
        moving_spacing=result.moving_spacing,
    )
    expected = np.asarray(expected)[0]
    np.testing.assert_allclose(result.voxel_matrix, expected / expected[-1, -1], atol=1e-4)


BORDERS = {zero_border: "grid-constant", nearest_border: "nearest", reflect_border: "reflect"}


@each_matrix
@pytest.mark.parametrize("border", BORDERS, ids=lambda border: border.__name__)
def test_warps_as_scipy_does(name, border):
    # A volume with channels would be a batch.
    result, moving = example(name, channels=() if name == "3-D" else (3,))
    points = np.moveaxis(by_hand(result, grid(result.fixed_shape).astype("float64")), -1, 0)
    layers = np.moveaxis(moving.reshape(*result.moving.shape, -1), -1, 0)
    expected = [
        ndimage.map_coordinates(layer, points, order=1, mode=BORDERS[border]) for layer in layers
    ]
    found = result.warp(border=border)
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, np.stack(expected, -1), atol=2e-3)


@each_matrix
def test_labels_stay_labels(name):
    result, moving = example(name)
    labels = np.random.default_rng(2).integers(0, 9, moving.shape)
    found = result.warp(labels, sampler=sample_nearest)[..., 0]
    points = by_hand(result, grid(result.fixed_shape).astype("float64"))
    near_half = (np.abs(points % 1 - 0.5) < 1e-3).any(-1)
    padded = np.pad(labels, 1)
    index = np.clip(np.round(points).astype(int) + 1, 0, np.asarray(padded.shape) - 1)
    expected = padded[tuple(np.moveaxis(index, -1, 0))]
    np.testing.assert_array_equal(found[~near_half], expected[~near_half])


@each_matrix
@pytest.mark.parametrize("chunk", [1, 300])
def test_warping_in_pieces_changes_nothing(monkeypatch, name, chunk):
    result, _ = example(name)
    for border in (zero_border, nearest_border):
        expected = result.warp(border=border)
        with monkeypatch.context() as patch:
            patch.setattr(result_module, "_CHUNK", chunk)
            np.testing.assert_allclose(result.warp(border=border), expected, atol=1e-4)


def test_pieces_read_only_what_they_touch(monkeypatch):
    class Counted:
        def __init__(self, array):
            self._array, self.shape, self.dtype, self.largest = array, array.shape, array.dtype, 0

        def __getitem__(self, index):
            part = self._array[index]
            self.largest = max(self.largest, part.size)
            return part

    monkeypatch.setattr(result_module, "_CHUNK", 200)
    lazy = Counted(np.ones((400, 50), "float32"))
    found = registration(lazy, np.eye(3), (400, 50)).warp()
    np.testing.assert_allclose(found, 1)
    assert lazy.largest <= 10 * 50


def test_an_image_far_away_is_all_border():
    moving = np.random.default_rng(0).normal(size=(20, 30)).astype("float32")
    far = np.eye(3)
    far[:2, 2] = 500, 0
    result = registration(moving, far, (25, 30))
    np.testing.assert_array_equal(result.warp(), 0)
    nearest = result.warp(border=nearest_border)[..., 0]
    np.testing.assert_allclose(nearest, np.broadcast_to(moving[-1], (25, 30)), atol=1e-5)


def test_points_where_a_homography_divides_by_nothing_do_no_harm():
    matrix = np.array([[1, 0, 0], [0, 1, 0], [0.2, 0, 1.0]])  # infinite at row 5, x = -5
    result = registration(np.ones((21, 21), "float32"), matrix, (21, 21))
    with np.errstate(divide="ignore", invalid="ignore"):
        warped = result.warp()
    assert warped.shape == (21, 21, 1)
    np.testing.assert_allclose(warped[10, 10], 1)


def test_warped_is_the_moving_image():
    result, moving = example("affine")
    np.testing.assert_array_equal(result.warped, result.warp())
    np.testing.assert_array_equal(result.warped, result.warp(moving))
    assert result.warped is result.warped


def test_each_pair_of_a_batch_warps_its_own():
    batch = np.random.default_rng(0).normal(size=(2, 20, 30, 1)).astype("float32")
    for pair in range(2):
        result = registration(batch, np.eye(3), (20, 30), pair=pair)
        np.testing.assert_allclose(result.warped, batch[pair], atol=1e-6)
        # An image without a batch axis serves any pair.
        np.testing.assert_allclose(result.warp(batch[0]), batch[0], atol=1e-6)


def test_displacements_are_those_of_the_ops():
    moving = np.zeros((20, 31), "float32")
    result = registration(moving, MATRICES["homography"], (20, 31), (0.5, 2.0), (0.5, 2.0))
    expected = matrix_to_displacement(result.voxel_matrix[None].astype("float32"), (20, 31))
    np.testing.assert_allclose(result.displacement(), np.asarray(expected)[0], atol=1e-3)


def test_refuses_an_image_of_other_sizes():
    result, moving = example("affine")
    with pytest.raises(ValueError, match=r"moving image's sizes \(48, 37\).*Received: \(37, 48\)"):
        result.warp(moving.T)


def test_results_can_be_compared_and_kept_in_sets():
    result, _ = example("affine")
    other, _ = example("affine")
    assert result == result
    assert result != other
    assert len({result, other}) == 2


def test_says_what_was_found_without_the_arrays():
    result, _ = example("affine")
    assert "trusted=True" in repr(result)
    assert "moving=" not in repr(result).replace("moving_spacing=", "")
