import numpy as np
import pytest

from kreg.io import Grid, Image
from kreg.io.image import closest_axes, reordered, reordering
from kreg.io.view import View

#: Depth, row, column of a scan from top to bottom, some degrees askew.
ASKEW = np.array([[0.1, 0, 1.9, -40], [0, 1.0, 0.1, 20], [-3.0, 0, 0.1, 55], [0, 0, 0, 1]])


def test_pixels_are_x_and_y():
    image = Image(np.zeros((5, 7)))
    np.testing.assert_array_equal(image.affine @ [2, 3, 1], [3, 2, 1])
    assert (image.unit, image.spacing, image.shape, image.channels) == ("px", (1, 1), (5, 7), None)
    volume = Image(np.zeros((5, 6, 7)))
    np.testing.assert_array_equal(volume.affine @ [1, 2, 3, 1], [3, 2, 1, 1])


def test_channels_are_told_from_depth_by_the_affine():
    colour = Image(np.zeros((5, 7, 3)))
    assert (colour.shape, colour.channels) == ((5, 7), 3)
    thin = Image(np.zeros((5, 7, 3)), np.eye(4), "mm")
    assert (thin.shape, thin.channels) == ((5, 7, 3), None)
    many = Image(np.zeros((5, 7, 30)), np.eye(3))
    assert (many.shape, many.channels) == ((5, 7), 30)


def test_says_how_voxels_lie():
    grid = Grid((10, 20, 30), ASKEW, "mm")
    np.testing.assert_allclose(grid.spacing, np.linalg.norm(ASKEW[:3, :3], axis=0))
    assert grid.orientation == "IPL"
    assert Grid((10, 20, 30), np.diag([-1.0, -1, 1, 1]), "mm").orientation == "RAS"
    assert Grid((10, 20)).orientation == "yx"


def test_cannot_be_changed():
    image = Image(np.zeros((5, 7)))
    with pytest.raises(ValueError, match="read-only"):
        image.affine[0, 0] = 2


def bad_grids():
    flat = np.diag([1.0, 0.0, 1.0])
    skew = np.array([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])
    projective = np.array([[1.0, 0, 0], [0, 1, 0], [0.1, 0, 1]])
    for affine in (flat, skew, projective, np.full((3, 3), np.nan)):
        yield affine, "can be inverted"
    yield np.eye(4), "one row and column more"


@pytest.mark.parametrize(("affine", "message"), list(bad_grids()))
def test_refuses_affines_that_are_none(affine, message):
    with pytest.raises(ValueError, match=message):
        Grid((5, 7), affine)


def test_refuses_what_is_no_image():
    with pytest.raises(ValueError, match="real numbers"):
        Image(np.zeros((5, 7), complex))
    with pytest.raises(ValueError, match="2 or 3 spatial axes"):
        Image(np.zeros(5))
    with pytest.raises(ValueError, match=r"Received: shape \(0, 7\)"):
        Image(np.zeros((0, 7)))
    with pytest.raises(ValueError, match='"mm" or "px"'):
        Image(np.zeros((5, 7)), unit="inch")


def test_reordering_keeps_every_voxel_in_its_place():
    values = np.random.default_rng(0).normal(size=(4, 5, 6, 2))
    order, flips = closest_axes(np.eye(3), Grid((4, 5, 6), ASKEW).directions)
    assert (order, flips) == ([2, 1, 0], [False, False, True])
    turned = reordered(values, order, flips)
    matrix = reordering((4, 5, 6), order, flips)
    assert turned.shape == (6, 5, 4, 2)
    for voxel in np.ndindex(6, 5, 4):
        old = (matrix @ [*voxel, 1])[:3].astype(int)
        np.testing.assert_array_equal(turned[voxel], values[tuple(old)])
    # Its axes now lie along the world's.
    directions = Grid((6, 5, 4), ASKEW @ matrix).directions
    assert (np.diag(directions) > 0.9).all()


class Slow:
    """Has no more than what zarr has."""

    def __init__(self, values):
        self._values, self.shape, self.dtype = values, values.shape, values.dtype

    def __getitem__(self, index):
        assert all(isinstance(one, slice) and one.step is None for one in index)
        return self._values[index]


def test_a_view_is_the_reordered_array_read_in_pieces():
    values = np.random.default_rng(0).normal(size=(2, 4, 5, 6))
    view = reordered(Slow(values), [2, 0, 1], [True, False, True])
    expected = reordered(values, [2, 0, 1], [True, False, True])
    assert isinstance(view, View)
    assert view.shape == expected.shape
    np.testing.assert_array_equal(np.asarray(view), expected)
    for index in np.s_[1:3, :, 2:], np.s_[:2], np.s_[-1, 1:, 0], np.s_[3:1]:
        np.testing.assert_array_equal(view[index], expected[index])
    with pytest.raises(IndexError, match="without steps"):
        view[::2]


def test_a_view_leaves_axes_out():
    values = np.random.default_rng(0).normal(size=(1, 4, 1, 6))
    view = View(Slow(values), [3, 1])
    np.testing.assert_array_equal(view[2:, 1:], values[0, :, 0].T[2:, 1:])
