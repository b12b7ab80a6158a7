import itertools
import os
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from kreg import mapping as mapping_module
from kreg.io import (
    FileError,
    Grid,
    Image,
    Transform,
    load_transform,
    read,
    save_transform,
    write,
)
from tests.pairwise.test_result import example

ROOT = Path(__file__).parent.parent.parent


def turn(degrees, dimensions):
    """A rotation about some axis, or in the plane."""
    a = np.deg2rad(degrees)
    rotation = np.eye(dimensions)
    rotation[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    if dimensions == 3:
        other = np.roll(rotation, 1, (0, 1))
        return rotation @ other
    return rotation


def grid(shape, steps, degrees, origin, order=None):
    """A grid with unequal steps, turned, its axes in some order."""
    dimensions = len(shape)
    affine = np.eye(dimensions + 1)
    directions = turn(degrees, dimensions)[:, order or range(dimensions)]
    affine[:-1, :-1] = directions * steps
    affine[:-1, -1] = origin
    return Grid(shape, affine, "mm")


#: Fixed and moving of unequal sizes, steps, orientations; they overlap in the world.
GRIDS = {
    2: (
        grid((40, 36), (0.8, 1.3), 12, (3, -5), [1, 0]),
        grid((44, 50), (1.1, 0.9), -20, (-12, 2), None),
    ),
    3: (
        grid((20, 24, 18), (2.0, 0.8, 1.3), 15, (3, -5, 7), [2, 1, 0]),
        grid((26, 22, 24), (1.1, 1.9, 1.2), -10, (-6, -12, 3), [0, 2, 1]),
    ),
}


def transform(dimensions, *, field=False, homography=False):
    """From the middle of the fixed image to about that of the moving one."""
    fixed, moving = GRIDS[dimensions]
    generator = np.random.default_rng(dimensions)
    matrix = np.eye(dimensions + 1)
    matrix[:-1, :-1] = turn(7, dimensions) * np.linspace(0.9, 1.1, dimensions)
    middles = [(g.affine @ [*(np.asarray(g.shape) - 1) / 2, 1])[:-1] for g in (fixed, moving)]
    matrix[:-1, -1] = middles[1] - matrix[:-1, :-1] @ middles[0] + 1.5
    if homography:
        matrix[-1, :-1] = 0.002
    values = None
    if field:
        noise = generator.normal(size=(*fixed.shape, dimensions))
        smooth = ndimage.gaussian_filter(noise, (4,) * dimensions + (0,))
        values = (2.0 * smooth / abs(smooth).max()).astype("float32")
    return Transform(matrix, fixed, moving, values)


def moving_image(dimensions, dtype="float32"):
    _, moving = GRIDS[dimensions]
    noise = np.random.default_rng(0).normal(size=moving.shape)
    values = ndimage.gaussian_filter(noise, 1.5)
    values = 1 + (values - values.min()) / np.ptp(values)
    return Image((values * (1 if dtype == "float32" else 100)).astype(dtype), moving.affine, "mm")


kinds = pytest.mark.parametrize(
    ("dimensions", "options"),
    [
        (2, {}),
        (3, {}),
        (2, {"field": True}),
        (3, {"field": True}),
        (2, {"homography": True}),
        (2, {"field": True, "homography": True}),
    ],
    ids=lambda value: value if isinstance(value, int) else "-".join(value) or "affine",
)


def by_hand(found, points):
    """Where world points of the fixed image go, step by step."""
    dimensions = found.fixed.dimensions

    def carry(matrix, points):
        there = np.concatenate([points, np.ones((*points.shape[:-1], 1))], -1) @ matrix.T
        return there[..., :-1] / there[..., -1:]

    voxels = carry(np.linalg.inv(found.fixed.affine), points)
    if found.field is not None:
        moved = [
            ndimage.map_coordinates(
                found.field[..., axis], np.moveaxis(voxels, -1, 0), order=1, mode="nearest"
            )
            for axis in range(dimensions)
        ]
        voxels = voxels + np.stack(moved, -1)
    return carry(found.matrix, carry(found.fixed.affine, voxels))


@kinds
def test_points_go_through_the_worlds(dimensions, options):
    found = transform(dimensions, **options)
    voxels = np.random.default_rng(1).uniform(2, 15, (6, 4, dimensions))
    to_world = lambda g, v: v @ g.affine[:-1, :-1].T + g.affine[:-1, -1]  # noqa: E731
    expected = by_hand(found, to_world(found.fixed, voxels))
    there = found.transform_world_points(to_world(found.fixed, voxels))
    np.testing.assert_allclose(there, expected, atol=1e-9)
    np.testing.assert_allclose(
        to_world(found.moving, found.transform_points(voxels)), expected, atol=1e-9
    )
    back = found.inverse_transform_points(found.transform_points(voxels))
    np.testing.assert_allclose(back, voxels, atol=1e-4)
    back = found.inverse_transform_world_points(there)
    np.testing.assert_allclose(back, to_world(found.fixed, voxels), atol=1e-4)
    np.testing.assert_allclose(found.transform_points(voxels[0, 0]).shape, (dimensions,))


@kinds
def test_images_are_read_where_the_points_lie(monkeypatch, dimensions, options):
    found, image = transform(dimensions, **options), moving_image(dimensions)
    voxels = np.moveaxis(np.indices(found.fixed.shape), 0, -1).astype(float)
    points = np.moveaxis(found.transform_points(voxels), -1, 0)
    expected = ndimage.map_coordinates(
        image.array, points, order=1, mode="grid-constant", cval=-3.0
    )
    result = found.apply(image, outside=-3.0)
    np.testing.assert_allclose(result.array, expected, atol=1e-5)
    np.testing.assert_array_equal(result.affine, found.fixed.affine)
    assert 0 < (result.array == -3).mean() < 0.8  # some of it lies outside
    # In pieces as well.
    monkeypatch.setattr(mapping_module, "CHUNK", 100)
    np.testing.assert_allclose(found.apply(image, outside=-3.0).array, expected, atol=1e-5)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_labels_keep_dtype_and_values(dimensions):
    found = transform(dimensions, field=True)
    _, moving = GRIDS[dimensions]
    labels = np.random.default_rng(3).choice([0, 3, 2035, 2**40], moving.shape)
    result = found.apply(Image(labels, moving.affine, "mm"), labels=True, outside=-1)
    assert result.array.dtype == "int64"
    assert set(np.unique(result.array)) == {-1, 0, 3, 2035, 2**40}
    voxels = np.moveaxis(np.indices(found.fixed.shape), 0, -1).astype(float)
    index = np.floor(found.transform_points(voxels) + 0.5).astype(int)
    inside = ((index >= 0) & (index < moving.shape)).all(-1)
    np.testing.assert_array_equal(result.array[inside], labels[tuple(index[inside].T)])
    np.testing.assert_array_equal(result.array[~inside], -1)


def test_integers_and_channels_stay():
    found = transform(2)
    values = np.stack([moving_image(2, "uint8").array] * 2, -1)
    values[..., 1] = 255
    result = found.apply(Image(values, found.moving.affine, "mm"))
    assert result.array.dtype == "uint8"
    exact = found.apply(
        moving_image(2, "uint8").__class__(values.astype("float32"), found.moving.affine, "mm")
    )
    np.testing.assert_array_equal(result.array, np.rint(exact.array))


def test_other_grids_of_the_same_worlds():
    # Twice as fine, and a moving image of fewer voxels: the world says where they lie.
    found = transform(3, field=True)
    image = moving_image(3)
    fine = Grid((39, 47, 35), found.fixed.affine @ np.diag([0.5, 0.5, 0.5, 1]), "mm")
    result = found.apply(image, fine)
    np.testing.assert_allclose(result.array[::2, ::2, ::2], found.apply(image).array, atol=1e-5)
    part = np.eye(4)
    part[:3, 3] = 2, 3, 1
    cropped = Image(image.array[2:, 3:, 1:], image.affine @ part, "mm")
    inside = found.apply(Image(np.ones(cropped.shape), cropped.affine, "mm")).array == 1
    assert inside.mean() > 0.3
    np.testing.assert_allclose(
        found.apply(cropped).array[inside], found.apply(image).array[inside], atol=1e-5
    )


def test_refuses_images_of_another_kind():
    found = transform(2)
    with pytest.raises(ValueError, match="of 2 dimensions in mm"):
        found.apply(moving_image(3))
    with pytest.raises(ValueError, match="in px"):
        found.apply(Image(np.ones((5, 7))))


@kinds
def test_the_inverse_goes_back(dimensions, options):
    found = transform(dimensions, **options)
    inverse = found.inverse()
    assert (inverse.fixed, inverse.moving) == (found.moving, found.fixed)
    centre = np.asarray(found.moving.shape) // 2
    voxels = centre + np.random.default_rng(1).integers(-4, 5, (20, dimensions))
    np.testing.assert_allclose(
        found.transform_points(inverse.transform_points(voxels)), voxels, atol=1e-3
    )
    back = inverse.apply(found.apply(moving_image(dimensions)))
    np.testing.assert_array_equal(back.shape, found.moving.shape)


# --- files ---


@kinds
def test_returns_from_its_file(tmp_path, dimensions, options):
    found = transform(dimensions, **options)
    path = tmp_path / "ünï cödé.npz"
    save_transform(path, found)
    again = load_transform(path)
    np.testing.assert_array_equal(again.matrix, found.matrix)
    for side in ("fixed", "moving"):
        one, other = getattr(again, side), getattr(found, side)
        assert (one.shape, one.unit) == (other.shape, other.unit)
        np.testing.assert_array_equal(one.affine, other.affine)
    assert (again.field is None) == (found.field is None)
    image = moving_image(dimensions)
    np.testing.assert_array_equal(again.apply(image).array, found.apply(image).array)
    assert os.listdir(tmp_path) == [path.name]


def test_refuses_files_that_are_no_transform(tmp_path):
    path = tmp_path / "a.npz"
    save_transform(path, transform(2))
    with pytest.raises(FileError, match="overwrite=True"):
        save_transform(path, transform(2))
    values = dict(np.load(path))
    np.savez(tmp_path / "new.npz", **values | {"version": 2})
    np.savez(tmp_path / "lacks.npz", **{k: v for k, v in values.items() if k != "moving_unit"})
    np.savez(tmp_path / "nan.npz", **values | {"matrix": np.full((3, 3), np.nan)})
    np.savez(tmp_path / "size.npz", **values | {"field": np.zeros((2, 2, 2))})
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:500])
    (tmp_path / "text.npz").write_text("1 0 0 1")
    write(tmp_path / "image.npz", np.ones((5, 7)))
    for name, message in {
        "new": "version 2",
        "lacks": "a transform that kreg saved",
        "nan": "finite",
        "size": "displacement of shape",
        "cut": "truncated",
        "text": "other contents",
        "image": "arrays array, affine, unit",
        "none": "no such file",
    }.items():
        with pytest.raises(FileError, match=message) as caught:
            load_transform(tmp_path / f"{name}.npz")
        assert "\n" not in str(caught.value)
    with pytest.raises(FileError, match=r"suffix '\.doc'"):
        save_transform(tmp_path / "a.doc", transform(2))


@pytest.mark.parametrize("suffix", [".tfm", ".txt", ".mat"])
def test_affine_files_hold_nothing_else(tmp_path, suffix):
    with pytest.raises(FileError, match=r"no homographies.*nii\.gz"):
        save_transform(tmp_path / f"a{suffix}", transform(2, homography=True))
    with pytest.raises(FileError, match="displacement"):
        save_transform(tmp_path / f"a{suffix}", transform(2, field=True))
    assert os.listdir(tmp_path) == []


def agree(found, other):
    """Compare where both images are inside, away from its border by a voxel."""
    ones = Image(np.ones(found.moving.shape, "float32"), found.moving.affine, "mm")
    inside = found.apply(ones).array == 1
    assert inside.mean() > 0.2
    ours = found.apply(moving_image(found.fixed.dimensions)).array
    np.testing.assert_allclose(other[inside], ours[inside], rtol=1e-3)


exports = [
    (dimensions, options, suffix)
    for dimensions, (options, suffixes) in itertools.product(
        (2, 3),
        (
            ({}, (".tfm", ".txt", ".mat", ".nii.gz")),
            ({"field": True}, (".nii", ".nii.gz")),
            ({"homography": True}, (".nii.gz",)),
        ),
    )
    for suffix in suffixes
    if not (dimensions == 3 and options.get("homography"))
]


def name(value):
    return "-".join(value) or "affine" if isinstance(value, dict) else None


@pytest.mark.parametrize(("dimensions", "options", "suffix"), exports, ids=name)
def test_simpleitk_applies_what_is_exported(tmp_path, dimensions, options, suffix):
    sitk = pytest.importorskip("SimpleITK")
    found = transform(dimensions, **options)
    path = tmp_path / f"t{suffix}"
    save_transform(path, found)
    write(tmp_path / "moving.nii.gz", moving_image(dimensions))
    write(tmp_path / "fixed.nii.gz", Image(np.zeros(found.fixed.shape), found.fixed.affine, "mm"))
    if ".nii" in suffix:
        field = sitk.ReadImage(str(path), sitk.sitkVectorFloat64)
        applied = sitk.DisplacementFieldTransform(field)
    else:
        applied = sitk.ReadTransform(str(path))
    images = [sitk.ReadImage(str(tmp_path / f"{one}.nii.gz")) for one in ("moving", "fixed")]
    warped = sitk.Resample(*images, applied, sitk.sitkLinear, 0.0)
    sitk.WriteImage(warped, str(tmp_path / "warped.nii.gz"))
    agree(found, on_grid(found, read(tmp_path / "warped.nii.gz")))


def slice_grids():
    """Two slices of one scan, oblique, of unequal steps, a little turned against one another."""
    axes = Rotation.from_euler("xyz", [50, 30, 10], degrees=True).as_matrix()
    plane = np.eye(4)
    plane[:3, :3], plane[:3, 3] = axes * [1, 1, 4], (20, -7, 30)
    return [Grid(one.shape, one.affine, "mm", plane) for one in GRIDS[2]]


@pytest.mark.parametrize("suffix", [".tfm", ".mat", ".nii.gz"])
@pytest.mark.parametrize("field", [False, True])
def test_simpleitk_applies_what_is_exported_between_slices_of_scans(tmp_path, suffix, field):
    sitk = pytest.importorskip("SimpleITK")
    if field and suffix != ".nii.gz":
        pytest.skip("holds no displacements")
    plain = transform(2, field=field)
    found = Transform(plain.matrix, *slice_grids(), plain.field)
    save_transform(tmp_path / f"t{suffix}", found)
    image = Image(moving_image(2).array, found.moving.affine, "mm", "", found.moving.plane)
    write(tmp_path / "moving.nii.gz", image)
    write(tmp_path / "warped.nii.gz", found.apply(image))
    moving, ours = (sitk.ReadImage(str(tmp_path / f"{n}.nii.gz")) for n in ("moving", "warped"))
    assert moving.GetDimension() == 3
    if suffix == ".nii.gz":
        vectors = sitk.ReadImage(str(tmp_path / "t.nii.gz"), sitk.sitkVectorFloat64)
        applied = sitk.DisplacementFieldTransform(vectors)
    else:
        applied = sitk.ReadTransform(str(tmp_path / f"t{suffix}"))
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, ours, applied, sitk.sitkLinear, 0.0))
    values = sitk.GetArrayFromImage(ours)
    inside = ndimage.binary_erosion(theirs[0] > 0.9, iterations=2)[None]
    assert inside.mean() > 0.2
    np.testing.assert_allclose(theirs[inside], values[inside], rtol=2e-3)


def test_the_planes_of_slices_are_kept(tmp_path):
    found = Transform(np.eye(3), *slice_grids())
    save_transform(tmp_path / "t.npz", found)
    again = load_transform(tmp_path / "t.npz")
    for side in ("fixed", "moving"):
        np.testing.assert_array_equal(getattr(again, side).plane, getattr(found, side).plane)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_fields_on_sheared_grids_are_refused(tmp_path, dimensions):
    fixed, moving = GRIDS[dimensions]
    shear = np.eye(dimensions + 1)
    shear[0, 1] = 0.2
    sheared = Grid(fixed.shape, fixed.affine @ shear, "mm")
    for suffix in (".nii", ".nii.gz"):
        with pytest.raises(FileError, match=r"right angles.*\.npz.*shears") as caught:
            save_transform(tmp_path / f"t{suffix}", Transform(shear, sheared, moving))
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []
    save_transform(tmp_path / "t.nii.gz", Transform(shear, fixed, sheared))  # the moving one may


@pytest.mark.parametrize("dimensions", [2, 3])
def test_fields_hold_world_vectors_at_the_voxels_of_the_fixed_grid(tmp_path, dimensions):
    found = transform(dimensions, field=True)  # of unequal steps
    save_transform(tmp_path / "t.nii", found)
    stored = nibabel.load(tmp_path / "t.nii")
    voxel = (7, 9, 5)[:dimensions]
    here = (found.fixed.affine @ [*voxel, 1])[:-1]
    world = np.diag([-1, -1, 1, 1]) @ stored.affine  # LPS
    point = np.linalg.inv(world) @ [*here, *[0] * (3 - dimensions), 1]
    vector = np.asarray(stored.dataobj)[tuple(np.rint(point[:3]).astype(int))].ravel()
    np.testing.assert_allclose(point[:3], np.rint(point[:3]), atol=1e-4)
    np.testing.assert_allclose(vector, found.transform_world_points(here) - here, atol=1e-4)


def on_grid(found, image):
    """The array in the order of the fixed image's axes, which a file may turn round."""
    if np.allclose(image.affine, found.fixed.affine, atol=1e-4):
        return image.array
    dimensions = found.fixed.dimensions
    order = [*range(dimensions)[::-1], dimensions]
    np.testing.assert_allclose(image.affine[:, order], found.fixed.affine, atol=1e-4)
    return image.array.T


def test_ants_applies_what_is_exported(tmp_path):
    python = ROOT / ".venv-ants" / "bin" / "python"
    if not python.exists():
        pytest.skip("needs antspyx in .venv-ants")
    calls, expected = [], {}
    for index, (dimensions, options, suffix) in enumerate(exports):
        if suffix == ".nii":
            continue
        found = transform(dimensions, **options)
        folder = tmp_path / str(index)
        folder.mkdir()
        save_transform(folder / f"t{suffix}", found)
        write(folder / "moving.nii.gz", moving_image(dimensions))
        zeros = Image(np.zeros(found.fixed.shape), found.fixed.affine, "mm")
        write(folder / "fixed.nii.gz", zeros)
        calls.append((str(folder), f"t{suffix}"))
        expected[folder] = found
    script = (
        "import ants, sys\n"
        f"for folder, name in {calls!r}:\n"
        "    images = [ants.image_read(f'{folder}/{one}.nii.gz') for one in ('fixed', 'moving')]\n"
        "    paths = [f'{folder}/{name}']\n"
        "    warped = ants.apply_transforms(*images, transformlist=paths)\n"
        "    ants.image_write(warped, f'{folder}/warped.nii.gz')\n"
    )
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for folder, found in expected.items():
        agree(found, on_grid(found, read(folder / "warped.nii.gz")))


@pytest.mark.parametrize("which", ["affine", "homography", "3-D"])
def test_takes_over_what_was_registered(which):
    registration, moving = example(which)
    dimensions = len(registration.fixed_shape)
    found = Transform.from_registration(registration)
    points = np.random.default_rng(1).uniform(0, 15, (5, dimensions))
    np.testing.assert_allclose(
        found.transform_points(points), registration.transform_points(points), atol=1e-9
    )
    # In a file the moving image lies somewhere else, which changes the matrix alone.
    affine = np.eye(dimensions + 1)
    affine[:-1, -1] = 100
    images = [
        Image(np.zeros(shape), affine, "mm")
        for shape in (registration.fixed_shape, registration.moving.shape)
    ]
    placed = Transform.from_registration(registration, *images)
    np.testing.assert_allclose(
        placed.transform_points(points), registration.transform_points(points), atol=1e-9
    )
    warped = placed.apply(Image(moving, affine, "mm")).array
    np.testing.assert_allclose(warped, registration.warped[..., 0], atol=2e-3)


def test_steep_displacements_are_inverted():
    rows, columns = np.indices((60, 40)).astype("float64")
    # d u / d x rises to 2.5: smooth, without a fold, for 1 + d u / d x > 0.
    field = np.stack([12.5 * np.tanh((rows - 30) / 5), 0.2 * np.sin(columns / 5)], -1)
    mapping = mapping_module.Mapping(np.eye(3), field)
    points = np.random.default_rng(0).uniform((3, 3), (56, 36), (500, 2))
    np.testing.assert_allclose(mapping.inverse(mapping(points)), points, atol=2e-3)


def test_what_has_no_inverse_is_told(monkeypatch):
    field = np.zeros((20, 20, 2), "float32")
    field[10:, :, 0] = 6  # u jumps within a voxel
    torn = mapping_module.Mapping(np.eye(3), field)
    points = np.array([[4.0, 4.0], [12.0, 5.0], [np.nan, 1.0]])
    found = torn.inverse(points)
    np.testing.assert_allclose(torn(found[:2]), points[:2], atol=2e-3)
    assert np.isnan(found[2]).any()
    monkeypatch.setattr(mapping_module, "_newton", lambda field, ends: np.full_like(ends, np.nan))
    pictures = Grid((20, 20))
    with pytest.raises(ValueError, match=r"without an inverse at \d+ of 400 voxels"):
        Transform(np.eye(3), pictures, pictures, field).inverse()
