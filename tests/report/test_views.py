import numpy as np
import pytest
from scipy import ndimage

from kreg.io import Grid, Image
from kreg.ops import jacobian_determinant
from kreg.report.planes import planes
from kreg.report.views import Averaged, Scene, agreements, structure
from tests.report.alignments import aligned, bent, pair, patient, scene


def middle(found):
    """The views of the middle place."""
    places = sorted({view.plane.place for view in found})
    return [view for view in found if view.plane.place == places[len(places) // 2]]


def test_pictures_of_an_image_are_its_voxels():
    alignment = pair()
    (view,) = Scene(alignment).views()
    np.testing.assert_array_equal(view.fixed.values[..., 0], alignment.fixed.array)
    np.testing.assert_array_equal(view.after.values[..., 0], alignment.moving.array)
    assert view.after.inside.all()
    assert view.displaced is None
    assert view.volume is None
    np.testing.assert_allclose(view.moved, 0, atol=1e-9)


def test_volumes_are_cut_as_scanners_show_them_with_square_pixels():
    grid = patient()
    values = np.zeros(grid.shape, "float32")
    values[5:, :8, :8] = 1  # above, in front, to the right
    image = Image(values, grid.affine, "mm")
    found = Scene(aligned(image, image)).views()
    assert len(found) == 15
    axial, coronal, sagittal = middle(found)
    assert [view.plane.name for view in (axial, coronal, sagittal)] == [
        "axial, slice 5 of 10",
        "coronal, slice 13 of 24",
        "sagittal, slice 11 of 20",
    ]
    assert [view.plane.ends for view in (axial, coronal, sagittal)] == ["RLAP", "RLSI", "APSI"]
    assert [view.plane.shape for view in (axial, coronal, sagittal)] == [
        (24, 20),
        (40, 20),
        (40, 24),
    ]
    for view in (found[4], found[5], found[10]):  # far above, far in front, far to the right
        corners = view.fixed.grey[np.ix_([0, -1], [0, -1])]
        np.testing.assert_array_equal(corners, [[1, 0], [0, 0]])


@pytest.mark.parametrize("shape", [(3000, 2000), (512, 500, 60)])
def test_pictures_of_large_images_have_no_more_than_a_million_pixels(shape):
    found = planes(Grid(shape))
    assert 0.3e6 < sum(np.prod(plane.shape) for plane in found) <= 1e6


def test_a_large_image_is_scaled_down_in_its_place():
    ramp = Image(np.repeat(np.arange(2500, dtype="float32")[:, None], 30, axis=1))
    (view,) = Scene(aligned(ramp, ramp)).views()
    assert view.plane.shape == (1000, 12)
    for layer in (view.fixed, view.before, view.after):
        np.testing.assert_allclose(layer.grey[1:-1, 0], view.plane.rows.places[1:-1], rtol=1e-5)


def test_averages_are_those_of_blocks():
    values = scene((13, 9))
    points = np.stack(np.meshgrid([0.5, 2.5], [1.0, 4.0], indexing="ij"), axis=-1)
    found = Averaged(values, np.array([2.0, 3.4])).at(points)
    expected = values[:4, :6].reshape(2, 2, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(found.grey, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(30, 36), (12, 14, 16)])
def test_lengths_and_volumes_are_those_of_the_displacement(shape):
    field = bent(shape)
    alignment = pair(shape, field=field)
    determinant = np.asarray(jacobian_determinant(field[None]))[0]
    length = np.linalg.norm(field, axis=-1)
    for view in Scene(alignment).views():
        index = tuple(np.moveaxis(np.rint(view.plane.points()).astype(int), -1, 0))
        np.testing.assert_allclose(view.displaced, length[index], atol=1e-5)
        np.testing.assert_allclose(view.moved, length[index], atol=1e-5)
        np.testing.assert_allclose(view.volume, determinant[index], atol=1e-4)


def test_volume_of_a_homography_is_that_of_finite_differences():
    matrix = np.array([[1.1, 0.1, 3], [-0.05, 0.9, 2], [1e-3, 2e-3, 1]])
    alignment = pair(matrix=matrix)
    (view,) = Scene(alignment).views()
    points, step = view.plane.points(), 1e-4
    slopes = [
        (alignment.transform.mapping(points + move) - alignment.transform.mapping(points - move))
        for move in step * np.eye(2)
    ]
    expected = np.linalg.det(np.stack(slopes, axis=-1) / (2 * step))
    middle = (np.array(points.shape[:2]) - 1) / 2
    ratio = ndimage.map_coordinates(expected, middle[:, None], order=1)
    np.testing.assert_allclose(view.volume, expected / ratio, rtol=1e-3)


def test_before_is_where_scanners_say_and_else_middle_on_middle():
    grid = patient()
    image = Image(scene(grid.shape), grid.affine, "mm")
    shifted = grid.affine.copy()
    shifted[0, 3] += 5
    near = aligned(image, Image(image.array, shifted, "mm"))
    assert Scene(near).before_is == "where the files say that it lies"
    np.testing.assert_allclose(Scene(near).before, near.transform.mapping.matrix)
    shifted[0, 3] += 500
    far = Scene(aligned(image, Image(image.array, shifted, "mm")))
    assert "middle" in far.before_is
    np.testing.assert_allclose(far.before, np.eye(4), atol=1e-6)


def test_unequal_sizes_lay_middle_on_middle():
    fixed, moving = Image(scene((20, 30))), Image(scene((26, 24)))
    found = Scene(aligned(fixed, moving, np.array([[1, 0, 4], [0, 1, -1], [0, 0, 1]])))
    np.testing.assert_allclose(found.before @ [9.5, 14.5, 1], [12.5, 11.5, 1])
    (view,) = found.views()
    # World (x, y), so rows by -1 - 3 and columns by 4 + 3.
    np.testing.assert_allclose(view.moved, np.hypot(-4, 7), rtol=1e-9)
    assert not view.after.inside.all()


def test_lattice_shows_where_each_point_was():
    (view,) = Scene(pair(matrix=np.array([[1, 0, 5], [0, 1, 0], [0, 0, 1]]))).views()
    times = view.lattice.shape[0] // 40
    rows, columns = np.indices((40 * times, 48 * times))
    np.testing.assert_allclose(view.lattice[..., 0], rows + 0.5, atol=1e-6)
    np.testing.assert_allclose(view.lattice[..., 1], columns + 0.5 + 5 * times, atol=1e-6)


def test_doubt_is_where_one_image_has_what_the_other_lacks():
    values = scene((64, 64))
    with_spot = values.copy()
    with_spot[20:30, 20:30] = 255
    (found,) = agreements(Scene(aligned(Image(values), Image(with_spot))).views())
    assert found.saliency[18:32, 18:32].mean() < 0.5
    assert found.doubt[18:32, 18:32].mean() > 0.5
    assert found.saliency[45:, 45:].mean() > 0.9


@pytest.mark.parametrize("gain", [1.0, -2.0])
def test_the_border_of_the_overlap_is_no_reason_for_doubt(gain):
    values = scene((64, 64))
    moved = np.array([[1, 0, -9], [0, 1, -20], [0, 0, 1]])  # (x, y)
    alignment = aligned(Image(values), Image(gain * values[20:, 9:]), moved)
    (view,) = Scene(alignment).views()
    (found,) = agreements([view])
    assert view.after.inside.mean() < 0.7
    assert found.doubt[view.after.inside].max() < 0.01


@pytest.mark.parametrize("noise", [0, 2, 20])
def test_noise_is_no_reason_for_doubt(noise):
    generator = np.random.default_rng(0)
    rows, columns = np.indices((120, 140))
    values = 100.0 * (np.hypot(rows - 40, columns - 40) < 20)
    lesion = values.copy()
    lesion[80:100, 90:110] += 100
    images = [Image(x + noise * generator.normal(size=x.shape)) for x in (values, lesion)]
    turned = np.array([[1, 0.02, 0.4], [-0.02, 1, 0.3], [0, 0, 1]])  # linear between its voxels
    (found,) = agreements(Scene(aligned(*images, turned)).views())
    edge = np.s_[78:84, 92:106]
    assert found.doubt[edge].mean() > 0.3
    assert found.structure[edge].min() > 0.9
    flat = [found.doubt[10:60, 80:], found.doubt[75:110, 15:70]]
    assert max(part.mean() for part in flat) < 0.03
    assert found.structure[10:60, 80:].mean() < 0.15


def test_what_has_no_slope_has_no_structure():
    assert (structure(np.full((1, 9, 9, 1), 7.0, "float32")) == 0).all()
