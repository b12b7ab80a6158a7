import numpy as np
import pytest
from scipy import ndimage

import kreg
from kreg.io import Image, align, read, register, save_transform
from kreg.io.image import reordered, reordering
from kreg.mapping import carried
from kreg.pairwise import CoarseToFine, MultiStart

QUICK = CoarseToFine(steps=(8, 8, 8))
#: Where it starts is what is found.
STILL = CoarseToFine(steps=(0, 0, 0))


def scene(points):
    """A volume of blurred noise in world points, voxels of 1 mm from the origin on."""
    return ndimage.map_coordinates(NOISE, np.moveaxis(points, -1, 0), order=3, mode="nearest")


NOISE = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(64, 64, 64)), 3)


def pictured(shape, affine, matrix=None):
    """The scene on a grid, moved by a world matrix: image(matrix p) = scene(p)."""
    voxels = np.moveaxis(np.indices(shape), 0, -1).astype(float)
    points = carried(affine, voxels)
    points = points if matrix is None else carried(np.linalg.inv(matrix), points)
    return Image(scene(points).astype("float32"), affine, "mm")


def turned(image, order, flips):
    """The same image with its axes in another order."""
    affine = image.affine @ reordering(image.shape, order, flips)
    return Image(reordered(image.array, order, flips), affine, image.unit)


def affine_of(steps, origin, degrees=0.0):
    a = np.deg2rad(degrees)
    affine = np.diag([*steps, 1.0])
    affine[1:3, 1:3] = (
        np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) @ affine[1:3, 1:3]
    )
    affine[:3, 3] = origin
    return affine


#: A small motion beyond what the two frames say, about the middle of the scene.
MOTION = affine_of((1, 1, 1), (0, 0, 0), 4)
MOTION[:3, 3] = 31.5 - MOTION[:3, :3] @ np.full(3, 31.5) + [1.0, -1.5, 0.5]


def test_frames_orientations_and_spacings_are_honoured(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    fixed = pictured((24, 30, 28), affine_of((1.9, 1.4, 1.6), (9, 10, 8)))
    moving = pictured((40, 22, 26), affine_of((1.1, 2.0, 1.7), (10, 8, 14), 10), MOTION)
    # Upside down, its axes in another order: far beyond what a search over rotations finds.
    moving = turned(moving, [2, 0, 1], [True, True, False])
    # One candidate: what the frames say, which comes before all that a search finds.
    one = MultiStart(angles=(), scales=(1,), keep=1, finalists=1)
    found = register(fixed, moving, schedule=QUICK, start=one)
    corners = carried(fixed.affine, np.indices((2, 2, 2)).reshape(3, -1).T * [23.0, 29, 27])
    expected = carried(MOTION, corners)
    gaps = np.linalg.norm(found.transform.transform_world_points(corners) - expected, axis=-1)
    assert gaps.max() < 0.6  # mm, less than half a voxel
    assert found.registration.trusted
    # SimpleITK lays the moving over the fixed image in the same way.
    save_transform(tmp_path / "a.tfm", found.transform)
    images = []
    for image in (moving, fixed):
        one = sitk.GetImageFromArray(np.ascontiguousarray(image.array))
        one.SetSpacing(image.spacing[::-1])
        one.SetOrigin(image.affine[:3, 3])
        one.SetDirection(image.grid.directions[:, ::-1].ravel())
        images.append(one)
    warped = sitk.Resample(*images, sitk.ReadTransform(str(tmp_path / "a.tfm")))
    ones = Image(np.ones(moving.shape), moving.affine, "mm")
    inside = found.transform.apply(ones).array == 1
    assert inside.mean() > 0.5
    ours, theirs = found.warped.array, sitk.GetArrayFromImage(warped)
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-3 * np.ptp(ours))
    assert np.corrcoef(ours[inside], fixed.array[inside])[0, 1] > 0.95


@pytest.mark.parametrize("start", [None, np.eye(4)], ids=["none", "matrix"])
def test_starts_from_world_matrices(start):
    fixed = pictured((24, 30, 28), affine_of((1.9, 1.4, 1.6), (9, 10, 8)))
    moving = turned(
        pictured((40, 22, 26), affine_of((1.1, 2.0, 1.7), (10, 8, 14), 10)), [2, 0, 1], [True] * 3
    )
    found = register(fixed, moving, start=start, schedule=STILL)
    np.testing.assert_allclose(found.transform.matrix, np.eye(4), atol=1e-4)
    found = register(fixed, moving, start=MOTION, schedule=STILL)
    np.testing.assert_allclose(found.transform.matrix, MOTION, atol=1e-4)


def test_pictures_lie_in_pixels():
    fixed, moving = (Image(NOISE[30][:rows, :columns]) for rows, columns in ((50, 60), (40, 48)))
    found = register(fixed, moving, start=None, schedule=STILL)
    points = np.array([[5.0, 7], [30, 40]])
    # The first pixels of both lie on one another, as the two share a world.
    np.testing.assert_allclose(found.transform.transform_points(points), points, atol=1e-4)


def test_without_a_common_unit_both_are_taken_as_equally_large():
    pixels = Image(NOISE[30][:30, :60])
    affine = [[0, 0.01, 5], [0.01, 0, -7], [0, 0, 1]]
    scanned = Image(NOISE[30][:24, :48], affine, "mm")
    points = np.array([[0.0, 0], [29, 59]])  # the first and last pixel, half a pixel inside
    for fixed, moving in ((pixels, scanned), (scanned, pixels)):
        found = register(fixed, moving, start=None, schedule=STILL)
        ratio = moving.shape[0] / fixed.shape[0]
        expected = (points + 0.5) * ratio - 0.5
        np.testing.assert_allclose(found.transform.transform_points(points), expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(20, 24, 4), (20, 24, 12, 2)], ids=["thin", "channels"])
def test_volumes_that_look_like_pictures_or_batches(shape):
    values = NOISE[: shape[0], : shape[1], : shape[2]].astype("float32")
    values = values if len(shape) == 3 else np.stack([values] * 2, -1)
    image = Image(values, np.diag([2.0, 2, 2, 1]), "mm")
    mask = np.ones(shape[:3], "float32")
    found = register(image, image, start=None, schedule=STILL, fixed_mask=mask, moving_mask=mask)
    np.testing.assert_allclose(found.transform.matrix, np.eye(4), atol=1e-5)
    np.testing.assert_allclose(found.warped.array, values, atol=1e-5)


@pytest.fixture
def passed_on(monkeypatch):
    """What `kreg.register` is called with, which is not run."""

    def call(*images, **options):
        given = {}

        def record(fixed, moving, **rest):
            given.update(rest, fixed=fixed, moving=moving)
            raise InterruptedError

        monkeypatch.setattr(align.pairwise, "register", record)
        with pytest.raises(InterruptedError):
            register(*images, **options)
        return given

    return call


def test_displacements_start_where_the_frames_say(passed_on):
    fixed = pictured((8, 10, 9), affine_of((1.9, 1.4, 1.6), (9, 10, 8)))
    moving = turned(pictured((9, 7, 8), fixed.affine), [2, 0, 1], [True, False, True])
    given = passed_on(fixed, moving, transform=kreg.transforms.Dense())
    expected = passed_on(fixed, moving, start=None)["start"]
    np.testing.assert_array_equal(given["start"], expected)
    assert abs(expected - np.eye(4)).max() > 0.5  # the sizes differ, so do the middles


def test_masks_turn_with_their_image(passed_on):
    fixed = pictured((8, 10, 9), affine_of((1.9, 1.4, 1.6), (9, 10, 8)))
    moving = turned(pictured((9, 7, 8), fixed.affine), [2, 0, 1], [True, False, True])
    mask = np.random.default_rng(0).random(moving.shape)
    for one in (mask, Image(mask, moving.affine, "mm")):
        given = passed_on(fixed, moving, fixed_mask=fixed, moving_mask=one)
        assert given["moving"].shape == (9, 7, 8)
        back = turned(Image(mask, moving.affine, "mm"), [1, 2, 0], [False, True, True])
        np.testing.assert_array_equal(given["moving_mask"], back.array)
        np.testing.assert_array_equal(given["fixed_mask"], fixed.array)
        np.testing.assert_allclose(given["moving_spacing"], fixed.spacing)


def test_refuses_masks_of_another_frame():
    affine = affine_of((1.0, 2.0, 3.0), (5, 6, 7))
    image = Image(np.random.default_rng(0).random((8, 9, 10)), affine, "mm")
    mask = Image(np.ones(image.shape), affine @ np.diag([-1.0, 1, 1, 1]), "mm")
    for name in ("fixed", "moving"):
        with pytest.raises(ValueError, match=f"{name}_mask to lie on the grid"):
            register(image, image, **{f"{name}_mask": mask})


def test_refuses_images_of_unequal_dimensions():
    with pytest.raises(ValueError, match="both 2-D or both 3-D"):
        register(Image(np.ones((8, 9))), Image(np.ones((8, 9, 10))))


def test_brains_whose_frames_differ(data_file):
    """A template and a subject with its axes mixed: the same world matrix as by hand."""

    def thinned(name, steps):
        image = read(data_file(f"brain3d/rniftyreg_{name}.nii.gz"))
        array = image.array[tuple(slice(None, None, step) for step in steps)]
        return Image(array, image.affine @ np.diag([*steps, 1.0]), image.unit)

    fixed = thinned("mni_brain", (2, 2, 2))
    moving = turned(thinned("flash_t1", (2, 2, 3)), [2, 0, 1], [True, False, True])
    found = register(fixed, moving, start=MultiStart(angles=(-20, 0, 20), scales=(1.0,)))
    # From both images at their full resolution, in the orientation of their files.
    expected = np.array(
        [
            [0.946, -0.019, -0.022, -0.66],
            [0.028, 0.987, 0.147, -26.16],
            [0.014, -0.105, 0.855, 44.64],
            [0, 0, 0, 1],
        ]
    )
    corners = np.array(np.meshgrid([-60, 60], [-80, 60], [-40, 60])).reshape(3, -1).T
    gaps = np.linalg.norm(
        carried(found.transform.matrix, corners) - carried(expected, corners), axis=-1
    )
    assert gaps.max() < 3  # mm, voxels being 4
    assert np.corrcoef(found.warped.array.ravel(), fixed.array.ravel())[0, 1] > 0.93
