import numpy as np
import pytest

from kreg.cli.pairs import Stack, placed, training_pairs
from kreg.io import FileError, Image, Transform, write
from tests.io.test_transform import GRIDS, moving_image

dimensions = pytest.mark.parametrize("dimensions", [2, 3])


def pair(folder, dimensions):
    """A pair in millimetres, of unequal sizes, steps and axes; returns both grids."""
    fixed, moving = GRIDS[dimensions]
    for side in ("moving", "fixed"):
        (folder / side).mkdir()
    generator = np.random.default_rng(0)
    write(folder / "fixed" / "a.npz", Image(generator.random(fixed.shape), fixed.affine, "mm"))
    write(folder / "moving" / "a.npz", moving_image(dimensions))
    return fixed, moving


@dimensions
def test_the_moving_image_is_laid_on_the_grid_of_the_fixed_one(tmp_path, dimensions):
    fixed, moving = pair(tmp_path, dimensions)
    (images,) = training_pairs(tmp_path, 1, False, 0)[0]
    together = Transform(np.eye(dimensions + 1), fixed, moving)
    expected = together.apply(moving_image(dimensions)).array
    np.testing.assert_allclose(images["moving"][0, ..., 0], expected, atol=1e-6)
    assert images["fixed"].shape == images["moving"].shape


@dimensions
def test_a_displacement_is_placed_between_the_worlds(tmp_path, dimensions):
    fixed, moving = pair(tmp_path, dimensions)
    field = np.random.default_rng(0).normal(size=(*fixed.shape, dimensions))
    files = [tmp_path / side / "a.npz" for side in ("moving", "fixed")]
    found = placed(*files, field)
    voxel = np.arange(3, 3 + dimensions)
    # The network saw, at its voxel x, what lies in the moving world where x lies in the fixed one.
    seen = fixed.affine @ [*voxel + field[tuple(voxel)], 1]
    here = fixed.affine @ [*voxel, 1]
    np.testing.assert_allclose(found.transform_world_points(here[:-1]), seen[:-1])
    assert (found.fixed.shape, found.moving.shape) == (fixed.shape, moving.shape)


@dimensions
def test_arrays_of_one_frame_and_pictures_are_left_as_they_are(tmp_path, dimensions):
    fixed, _ = GRIDS[dimensions]
    values = np.random.default_rng(0).random(fixed.shape).astype("float32")
    nearly = fixed.affine.copy()
    nearly[0, -1] += 0.01
    field = np.zeros((*fixed.shape, dimensions))
    field[..., 0] = 2
    for images in (
        (Image(values, nearly, "mm"), Image(values, fixed.affine, "mm")),
        (Image(values), Image(values)),
        (Image(values), Image(values, fixed.affine, "mm")),
    ):
        files = [tmp_path / f"{side}.npz" for side in ("moving", "fixed")]
        for path, image in zip(files, images, strict=True):
            write(path, image, overwrite=True)
        np.testing.assert_array_equal(Stack(files[:1], onto=files[1:])[[0]][0, ..., 0], values)
        points = np.full(dimensions, 4.0)
        expected = points + np.eye(dimensions)[0] * 2
        np.testing.assert_allclose(placed(*files, field).transform_points(points), expected)


def test_images_that_lie_apart_are_refused(tmp_path):
    fixed, _ = pair(tmp_path, 3)
    far = fixed.affine.copy()
    far[:3, 3] += 1000
    write(tmp_path / "far.npz", Image(np.random.default_rng(0).random((9, 9, 9)), far, "mm"))
    with pytest.raises(FileError, match=r"overlaps.*fixed.*far.*kreg register"):
        Stack([tmp_path / "far.npz"], onto=[tmp_path / "fixed" / "a.npz"])


def test_unequal_axes_are_refused(tmp_path):
    values = np.random.default_rng(0).random((5, 6, 7))
    for name, signs in (("a", (1, 1, 1)), ("b", (-1, 1, 1))):
        write(tmp_path / f"{name}.npz", Image(values, np.diag([*signs, 1.0]), "mm"))
    stack = Stack([tmp_path / "a.npz", tmp_path / "b.npz"])
    assert stack.axes == "LPS"
    with pytest.raises(FileError, match=r"axes LPS.*b\.npz.*reorient.*Received: RPS"):
        stack[[0, 1]]
