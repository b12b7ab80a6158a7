import gzip
import locale
import os
import resource
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image as pillow
from scipy.spatial.transform import Rotation

from kreg.io import FileError, Image, read, write
from kreg.io.files import FORMATS, replacing
from kreg.silence import without_stderr

#: A NIfTI affine of unequal steps, turned and askew, right-anterior-superior.
RAS = np.array([[-1.2, 0.1, 0, 30], [0.1, 0, 2.0, -20], [0, 0.9, 0.1, 5], [0, 0, 0, 1]])
LPS = np.diag([-1.0, -1, 1, 1]) @ RAS


def noise(shape, dtype="uint8", low=0, high=256):
    return np.random.default_rng(0).integers(low, high, shape).astype(dtype)


@pytest.fixture
def folder(tmp_path):
    """A folder whose name is awkward."""
    path = tmp_path / "ünï cödé – 画像 #1"
    path.mkdir()
    return path


def one_line(path, *parts):
    """read(path) is refused in one line that names the path and says each of the parts."""
    with pytest.raises(FileError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    for part in (str(path), "Expected", "Received", *parts):
        assert part in message


# --- pictures ---


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy", ".npz", ".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_grey_values_return(folder, suffix, dtype):
    values = noise((5, 7), dtype, high=256 if dtype == "uint8" else 65536)
    write(folder / f"a b{suffix}", Image(values))
    image = read(folder / f"a b{suffix}")
    assert image.array.dtype == dtype
    x, y = (image.affine @ [0, 0, 1])[:2], (image.affine @ [2, 3, 1])[:2]
    found = image.array if suffix[:4] != ".nii" else image.array.T  # NIfTI has x first
    np.testing.assert_array_equal(found, values)
    np.testing.assert_array_equal((x, y), ([0, 0], [2, 3] if suffix[:4] == ".nii" else [3, 2]))
    assert sorted(os.listdir(folder)) == [f"a b{suffix}"]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy", ".npz", ".nii.gz"])
def test_colours_return(folder, suffix):
    values = noise((5, 7, 3))
    write(folder / f"a{suffix}", Image(values))
    image = read(folder / f"a{suffix}")
    assert (image.dimensions, image.channels) == (2, 3)
    expected = values.transpose(1, 0, 2) if suffix == ".nii.gz" else values
    np.testing.assert_array_equal(image.array, expected)


def test_jpeg_returns_nearly(folder):
    smooth = np.add.outer(np.arange(40), np.arange(50)).astype("uint8")
    write(folder / "a.jpg", Image(smooth))
    np.testing.assert_allclose(read(folder / "a.jpg").array.astype(int), smooth, atol=2)


def test_pictures_round_floats_and_refuse_what_does_not_fit(tmp_path):
    write(tmp_path / "a.png", np.array([[0.0, 0.5], [1.0005, 0.001]]))
    np.testing.assert_array_equal(read(tmp_path / "a.png").array, [[0, 128], [255, 0]])
    write(tmp_path / "b.png", np.array([[True, False], [False, True]]))
    np.testing.assert_array_equal(read(tmp_path / "b.png").array, [[255, 0], [0, 255]])
    write(tmp_path / "c.png", np.array([[0, 5], [300, 7]]))
    assert read(tmp_path / "c.png").array.dtype == "uint16"
    for values, message in (
        (np.array([[0.0, 255.0]]), "floats from 0 to 1"),
        (np.array([[0.0, np.nan]]), "floats from 0 to 1"),
        (np.array([[0, -1]]), "integers from 0 to 65535"),
        (np.full((4, 4, 3), 300, "uint16"), "8 bits"),
        (np.zeros((4, 5, 6)), "2-D image"),
    ):
        with pytest.raises(FileError, match=message):
            write(tmp_path / "refused.png", values)
    with pytest.raises(FileError, match="8 bits"):
        write(tmp_path / "refused.jpg", np.full((4, 4), 300, "uint16"))
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png", "c.png"]


def test_alpha_is_left_out_and_palettes_are_colours(tmp_path):
    colours = noise((5, 7, 4))
    pillow.fromarray(colours).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png").array, colours[..., :3])
    palette = pillow.fromarray(colours[..., 0])
    palette = palette.convert("P")
    palette.save(tmp_path / "p.png")
    found = read(tmp_path / "p.png").array
    np.testing.assert_array_equal(found, np.repeat(colours[..., :1], 3, -1))


def indexed():
    """A picture with a palette, its indices and its colours."""
    indices = noise((5, 7), high=4)
    picture = pillow.fromarray(indices).convert("P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 128, 255, 9, 9, 9] + [77] * 756)
    picture.putdata(np.ravel(indices).tolist())
    return picture, indices, np.array([[0, 0, 0], [255, 0, 0], [0, 128, 255], [9, 9, 9]])[indices]


@pytest.mark.parametrize("suffix", [".png", ".gif", ".tif", ".bmp"])
def test_labels_are_the_indices_of_a_palette(tmp_path, suffix):
    picture, indices, colours = indexed()
    picture.save(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read(tmp_path / f"a{suffix}").array, colours)
    found = read(tmp_path / f"a{suffix}", labels=True)
    np.testing.assert_array_equal(found.array, indices)
    assert (found.channels, found.array.dtype) == (None, "uint8")
    # What has none is the same, one way or the other.
    pillow.fromarray(indices).save(tmp_path / f"b{suffix}")
    np.testing.assert_array_equal(read(tmp_path / f"b{suffix}", labels=True).array, indices)


def test_transparent_palettes_and_few_bits_have_their_indices(tmp_path):
    picture, indices, _ = indexed()
    picture.save(tmp_path / "a.png", transparency=0, bits=2)
    np.testing.assert_array_equal(read(tmp_path / "a.png", labels=True).array, indices)


def deep_colour_png(path, values):
    """16 bits in three channels, which Pillow cannot write."""

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    rows, columns, _ = values.shape
    header = struct.pack(">IIBBBBB", columns, rows, 16, 2, 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_colours_of_16_bits_are_not_cut(tmp_path):
    values = noise((5, 7, 3), "uint16", high=65536)
    deep_colour_png(tmp_path / "a.png", values)
    pytest.importorskip("SimpleITK")
    np.testing.assert_array_equal(read(tmp_path / "a.png").array, values)


def test_colours_of_16_bits_without_simpleitk_are_refused(tmp_path, monkeypatch):
    deep_colour_png(tmp_path / "a.png", noise((5, 7, 3), "uint16"))
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    one_line(tmp_path / "a.png", 'pip install "kreg[itk]"')


def test_photographs_are_turned_as_the_camera_was_held(tmp_path):
    picture = pillow.fromarray(np.repeat([[0], [255]], 16, 0).repeat(16, 1).astype("uint8"))
    exif = pillow.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "a.jpg", exif=exif)
    found = read(tmp_path / "a.jpg").array
    assert found[:16].min() > 200
    assert found[16:].max() < 50


# --- TIFF ---


def test_pages_are_slices(tmp_path):
    values = noise((3, 5, 7))
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    image = read(tmp_path / "a.tif")
    assert (image.dimensions, image.unit) == (3, "px")
    np.testing.assert_array_equal(image.array, values)
    assert isinstance(image.array, np.memmap)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_reads_either_byte_order(tmp_path, byteorder, compression):
    values = noise((5, 7), "uint16", high=65536)
    tifffile.imwrite(tmp_path / "a.tif", values, byteorder=byteorder, compression=compression)
    np.testing.assert_array_equal(read(tmp_path / "a.tif").array, values)


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg"])
def test_tiff_reads_usual_compressions(tmp_path, compression):
    values = np.add.outer(np.arange(40), np.arange(50)).astype("uint8")
    pillow.fromarray(values).save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_allclose(read(tmp_path / "a.tif").array.astype(int), values, atol=2)


def test_tiff_without_alpha_and_white_on_black(tmp_path):
    colours = noise((5, 7, 4))
    tifffile.imwrite(tmp_path / "a.tif", colours, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read(tmp_path / "a.tif").array, colours[..., :3])
    options = {"planarconfig": "separate", "extrasamples": ["unassalpha"]}
    tifffile.imwrite(tmp_path / "p.tif", colours.transpose(2, 0, 1), photometric="rgb", **options)
    np.testing.assert_array_equal(read(tmp_path / "p.tif").array, colours[..., :3])
    tifffile.imwrite(tmp_path / "b.tif", colours[..., 0], photometric="miniswhite")
    np.testing.assert_array_equal(read(tmp_path / "b.tif").array, 255 - colours[..., 0])


def test_microscopes_state_axes_and_spacing(tmp_path):
    values = noise((2, 3, 5, 7), "uint16")
    metadata = {
        "axes": "CZYX",
        "PhysicalSizeX": 0.5,
        "PhysicalSizeY": 0.25,
        "PhysicalSizeZ": 2.0,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeYUnit": "µm",
        "PhysicalSizeZUnit": "µm",
    }
    tifffile.imwrite(tmp_path / "a.ome.tif", values, metadata=metadata)
    image = read(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(image.array, np.moveaxis(values, 0, -1))
    assert image.unit == "mm"
    np.testing.assert_allclose(image.spacing, (2e-3, 0.25e-3, 0.5e-3))
    np.testing.assert_allclose(image.affine @ [1, 0, 0, 1], [0, 0, 2e-3, 1])
    tifffile.imwrite(
        tmp_path / "b.tif",
        values[0],
        imagej=True,
        resolution=(4, 2),
        metadata={"axes": "ZYX", "spacing": 3.0, "unit": "um"},
    )
    np.testing.assert_allclose(read(tmp_path / "b.tif").spacing, (3e-3, 0.5e-3, 0.25e-3))


def test_volumes_keep_their_spacing_in_tiff(tmp_path):
    volume = Image(noise((4, 5, 6), "float32"), LPS, "mm")
    write(tmp_path / "a.tif", volume)
    image = read(tmp_path / "a.tif")
    # Slices along z, rows along y, columns along x, whatever the array's own axes are.
    np.testing.assert_allclose(image.spacing, np.array(volume.spacing)[[1, 2, 0]])
    np.testing.assert_array_equal(image.array, volume.array.transpose(1, 2, 0)[:, ::-1])


def test_time_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", noise((4, 5, 7)), metadata={"axes": "TYX"})
    one_line(tmp_path / "a.ome.tif", "time series", "TYX")


# --- volumes ---


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "float64"])
def test_nifti_keeps_grid_and_dtype(folder, suffix, dtype):
    values = noise((4, 5, 6), dtype, high=200)
    nibabel.save(nibabel.Nifti1Image(values, RAS), folder / f"a{suffix}")
    image = read(folder / f"a{suffix}")
    np.testing.assert_allclose(image.affine, LPS, atol=1e-6)
    assert (image.array.dtype, image.unit) == (dtype, "mm")
    write(folder / f"b{suffix}", image)
    again = nibabel.load(folder / f"b{suffix}")
    np.testing.assert_allclose(again.affine, RAS, atol=1e-6)
    assert again.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asanyarray(again.dataobj), values)
    assert isinstance(image.array, np.memmap) == (suffix == ".nii")


def test_nifti_scales(tmp_path):
    stored = nibabel.Nifti1Image(noise((4, 5, 6), "int16"), RAS)
    stored.header.set_slope_inter(0.5, -3)
    nibabel.save(stored, tmp_path / "a.nii.gz")
    # What nibabel stored is not asked; what it reads back is.
    expected = nibabel.load(tmp_path / "a.nii.gz").get_fdata()
    found = read(tmp_path / "a.nii.gz").array
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found.max() > found.min()


def test_nifti_states_other_units(tmp_path):
    stored = nibabel.Nifti1Image(noise((4, 5, 6)), RAS)
    stored.header.set_xyzt_units("micron")
    nibabel.save(stored, tmp_path / "a.nii.gz")
    expected = np.diag([1e-3, 1e-3, 1e-3, 1]) @ LPS
    np.testing.assert_allclose(read(tmp_path / "a.nii.gz").affine, expected, atol=1e-8)


def test_nifti_in_time_is_refused(tmp_path):
    for time in ("sec", "msec", "usec"):
        stored = nibabel.Nifti1Image(noise((4, 5, 6, 3)), RAS)
        stored.header.set_xyzt_units("mm", time)
        nibabel.save(stored, tmp_path / "a.nii")
        one_line(tmp_path / "a.nii", f"3 volumes in time, in {time}", "save one")


def test_nifti_has_channels(tmp_path):
    values = noise((4, 5, 6, 3), "float32")
    nibabel.save(nibabel.Nifti1Image(values, RAS), tmp_path / "a.nii.gz")
    image = read(tmp_path / "a.nii.gz")
    assert (image.shape, image.channels) == ((4, 5, 6), 3)
    np.testing.assert_array_equal(image.array, values)
    write(tmp_path / "b.nii.gz", image)
    assert nibabel.load(tmp_path / "b.nii.gz").shape == (4, 5, 6, 1, 3)
    np.testing.assert_array_equal(read(tmp_path / "b.nii.gz").array, values)
    colour = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for channel, name in enumerate("RGB"):
        colour[name] = values[..., channel]
    nibabel.save(nibabel.Nifti1Image(colour, RAS), tmp_path / "c.nii.gz")
    np.testing.assert_array_equal(read(tmp_path / "c.nii.gz").array, values.astype("uint8"))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_is_a_picture(tmp_path, axis):
    values = noise((4, 5, 6)).take([1], axis)
    nibabel.save(nibabel.Nifti1Image(values, RAS), tmp_path / "a.nii.gz")
    image = read(tmp_path / "a.nii.gz")
    assert (image.dimensions, image.unit) == (2, "mm")
    np.testing.assert_array_equal(image.array, values.squeeze(axis))
    steps = np.delete(np.linalg.norm(RAS[:3, :3], axis=0), axis)
    np.testing.assert_allclose(image.spacing, steps, rtol=1e-6)


def placed(path):
    """The world point (LPS) of each value in a file of NIfTI, by nibabel."""
    stored = nibabel.load(path)
    voxels = np.moveaxis(np.indices(stored.shape[:3]), 0, -1).reshape(-1, 3)
    points = nibabel.affines.apply_affine(stored.affine, voxels) * (-1, -1, 1)
    return dict(zip(np.ravel(stored.dataobj).tolist(), points, strict=True))


#: Right angles, about no axis of the world: turns of 50, 30 and 10 degrees.
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", [50, 30, 10], degrees=True).as_matrix() * [0.7, 1.1, 4]
OBLIQUE[:3, 3] = -30, 12, 55


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("affine", [OBLIQUE, RAS, np.diag([-2.0, 1, 3, 1])], ids=range(3))
@pytest.mark.parametrize("suffix", [".nii.gz", ".npz", ".mha"])
def test_a_slice_lies_in_its_plane_and_where_it_lay(tmp_path, axis, affine, suffix):
    shape = np.insert([5, 6], axis, 1)
    nibabel.save(
        nibabel.Nifti1Image(np.arange(30, dtype="int16").reshape(shape), affine), tmp_path / "a.nii"
    )
    image = read(tmp_path / "a.nii")
    steps = np.delete(affine[:3, :3], axis, 1)
    np.testing.assert_allclose(image.affine[:2, :2].T @ image.affine[:2, :2], steps.T @ steps,
                               atol=1e-5)  # fmt: skip
    if suffix == ".mha":
        pytest.importorskip("SimpleITK")
        if affine is RAS:
            with pytest.raises(FileError, match="shears"):
                write(tmp_path / "b.mha", image)
            return
    write(tmp_path / f"b{suffix}", image)
    again = read(tmp_path / f"b{suffix}")
    assert again.grid.agrees_with(image.grid) or again.shape == image.shape[::-1]
    write(tmp_path / "c.nii", again)
    before, after = (placed(tmp_path / name) for name in ("a.nii", "c.nii"))
    assert before.keys() == after.keys()
    for value, point in before.items():
        np.testing.assert_allclose(after[value], point, atol=1e-4)
    # Another slice of the scan has the same axes, and another place.
    moved = affine.copy()
    moved[:3, 3] += 3 * affine[:3, axis]
    nibabel.save(nibabel.Nifti1Image(image.array.reshape(shape), moved), tmp_path / "d.nii")
    other = read(tmp_path / "d.nii")
    np.testing.assert_allclose(other.grid.directions, image.grid.directions, atol=1e-6)
    assert not other.grid.agrees_with(image.grid)


def test_large_labels_stay(tmp_path):
    labels = np.array([[[0, 2**20], [2035, -7]]]).repeat(2, 0)
    write(tmp_path / "a.nii.gz", Image(labels, np.eye(4), "mm"))
    np.testing.assert_array_equal(read(tmp_path / "a.nii.gz").array, labels)
    huge = labels + 2**40
    write(tmp_path / "b.nii.gz", Image(huge, np.eye(4), "mm"))
    np.testing.assert_array_equal(read(tmp_path / "b.nii.gz").array, huge)


def test_npz_keeps_the_grid(tmp_path):
    write(tmp_path / "a.npz", Image(noise((4, 5, 6)), LPS, "mm"))
    image = read(tmp_path / "a.npz")
    np.testing.assert_array_equal(image.affine, LPS)
    assert image.unit == "mm"


def test_npy_is_mapped(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(noise((4, 5, 6), ">f8")))
    image = read(tmp_path / "a.npy")
    assert isinstance(image.array, np.memmap)
    np.testing.assert_array_equal(image.array, noise((4, 5, 6)))


#: In ITK axes stand at right angles.
SQUARE = np.array([[0, 0.6, 1.6, -3], [0, 0.8, -1.2, 4], [-1.5, 0, 0, 5], [0, 0, 0, 1]])


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_formats_of_itk_keep_the_grid(folder, suffix):
    pytest.importorskip("SimpleITK")
    for shape in ((4, 5, 6), (4, 5, 6, 3)):
        values = noise(shape, "int16")
        write(folder / f"a{suffix}", Image(values, SQUARE, "mm"), overwrite=True)
        image = read(folder / f"a{suffix}")
        np.testing.assert_allclose(image.affine, SQUARE, atol=1e-12)
        np.testing.assert_array_equal(image.array, values)
        assert image.array.dtype == "int16"
    with pytest.raises(FileError, match="right angles"):
        write(folder / f"b{suffix}", Image(noise((4, 5, 6)), LPS @ np.diag([1, 1, 3, 1]), "mm"))


def test_itk_and_nibabel_agree_on_the_world(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    image = Image(noise((4, 5, 6)), SQUARE, "mm")
    write(tmp_path / "a.nii.gz", image)
    stored = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    ours = read(tmp_path / "a.nii.gz")
    for voxel in ((0, 0, 0), (1, 2, 3), (5, 1, 2)):
        there = stored.TransformIndexToPhysicalPoint(voxel)
        np.testing.assert_allclose((ours.affine @ [*voxel, 1])[:3], there, atol=1e-5)
        assert stored[voxel] == ours.array[voxel]


def test_nifti_forms_are_chosen_as_itk_does(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    c, s = np.cos(0.2), np.sin(0.2)
    qform = np.array([[c, -2 * s, 0, 1], [s, 2 * c, 0, 2], [0, 0, 3, 3], [0, 0, 0, 1]])
    turned = np.array([[1, 0, 0, 40], [0, 2 * c, -3 * s, 50], [0, 2 * s, 3 * c, 60], [0, 0, 0, 1]])
    sheared = qform @ np.array([[1, 0.3, 0, 9], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    cases = [(q, s, turned) for q in range(5) for s in range(5)] + [(1, 1, sheared)]
    for q_code, s_code, sform in cases:
        stored = nibabel.Nifti1Image(noise((4, 5, 6)), None)
        stored.header["pixdim"][1:4] = 1, 2, 3
        stored.set_sform(sform, s_code, update_affine=False)
        stored.set_qform(qform, q_code, update_affine=False)
        nibabel.save(stored, tmp_path / "a.nii")
        with (tmp_path / "a.nii").open("r+b") as file:  # nibabel.save may set codes of its own
            file.seek(252)
            file.write(struct.pack("<2h", q_code, s_code))
        expected = sitk.ReadImage(str(tmp_path / "a.nii"))
        found = read(tmp_path / "a.nii")
        names = f"qform {q_code}, sform {s_code}"
        np.testing.assert_allclose(
            found.affine[:3, 3], expected.GetOrigin(), atol=1e-4, err_msg=names
        )
        np.testing.assert_allclose(
            found.grid.directions.ravel(), expected.GetDirection(), atol=1e-4, err_msg=names
        )
        np.testing.assert_allclose(found.spacing, expected.GetSpacing(), rtol=1e-5)


@pytest.fixture
def same_locale():
    """ITK's writer of DICOM changes the locale of the process."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


def dicom_series(folder, places):
    """Write a slice for each place of a first voxel, and return the values."""
    sitk = pytest.importorskip("SimpleITK")
    values = noise((len(places), 8, 9), "int16")
    series = sitk.GetImageFromArray(values)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index, place in enumerate(places):
        one = series[:, :, index]
        for tag, value in {
            "0008|0060": "CT",
            "0020|000e": "1.2.3.4",
            "0020|0013": str(index),
            "0020|0032": "\\".join(map(str, place)),
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0028|0030": "0.75\\0.5",
        }.items():
            one.SetMetaData(tag, value)
        one.SetSpacing((0.5, 0.75))
        writer.SetFileName(str(folder / f"{index}.dcm"))
        writer.Execute(one)
    return values


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([(-10, 5, 2.5 * z) for z in (0, 1, 2, 4, 5)], "5 mm between '2.dcm' and '3.dcm'"),
        ([(-10, 5, 2.5 * z) for z in (*range(8), 9)], "5 mm between '7.dcm' and '8.dcm'"),
        ([(-10, 5, z) for z in (0, 2.5, 5.6, 7.5)], "3.1 mm between '1.dcm' and '2.dcm'"),
        ([(-10, 5, z) for z in (0, 0, 2.5, 2.5)], "Received: 0 mm between"),
        ([(-10, 5 + z, 2.5 * z) for z in range(4)], "tilted gantry"),
    ],
)
def test_a_dicom_series_with_gaps_is_refused(tmp_path, same_locale, places, words):
    dicom_series(tmp_path, places)
    one_line(tmp_path, words, "copy all files")


@pytest.mark.parametrize("heights", [(0, 2.52, 5.01, 7.5), (9, 6, 3, 0), (0, 3)])
def test_a_dicom_series_may_be_rounded_and_run_downwards(tmp_path, same_locale, heights):
    dicom_series(tmp_path, [(-10, 5, height) for height in heights])
    assert read(tmp_path).shape == (len(heights), 8, 9)


def test_a_dicom_series_is_a_volume(tmp_path, same_locale):
    values = dicom_series(tmp_path, [(-10, 5, 2.5 * index) for index in range(3)])
    image = read(tmp_path)
    np.testing.assert_array_equal(image.array, values)
    np.testing.assert_allclose(image.spacing, (2.5, 0.75, 0.5))
    np.testing.assert_allclose(image.affine @ [1, 2, 3, 1], [-8.5, 6.5, 2.5, 1])
    assert read(tmp_path / "1.dcm").shape == (8, 9)


def test_simpleitk_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    (tmp_path / "a.nrrd").write_text("NRRD0004")
    one_line(tmp_path / "a.nrrd", 'pip install "kreg[itk]"')
    with pytest.raises(FileError, match=r"kreg\[itk\]"):
        write(tmp_path / "b.mha", noise((4, 5)))
    assert os.listdir(tmp_path) == ["a.nrrd"]


def test_itk_says_nothing_of_its_own(tmp_path, capfd):
    pytest.importorskip("SimpleITK")
    header = b"ObjectType = Image\nNDims = 3\nDimSize = 30 30 30\nElementType = MET_DOUBLE\n"
    (tmp_path / "a.mha").write_bytes(header + b"ElementDataFile = LOCAL\n" + bytes(1000))
    one_line(tmp_path / "a.mha", "truncated")
    assert capfd.readouterr() == ("", "")
    os.write(2, b"still there")  # afterwards
    assert capfd.readouterr().err == "still there"


def test_stderr_is_silent_until_the_last_thread_is_done(capfd):
    first, second = without_stderr(), without_stderr()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    os.write(2, b"lost")
    second.__exit__(None, None, None)
    os.write(2, b"seen")
    assert capfd.readouterr().err == "seen"


# --- zarr ---


def test_zarr_is_read_in_pieces(tmp_path):
    zarr = pytest.importorskip("zarr")
    values = noise((20, 30), "uint16")
    zarr.save_array(str(tmp_path / "a.zarr"), values)
    image = read(tmp_path / "a.zarr")
    assert not isinstance(image.array, np.ndarray)
    np.testing.assert_array_equal(image.array[2:4, 1:9], values[2:4, 1:9])


def test_ome_zarr_states_axes_and_spacing(tmp_path):
    zarr = pytest.importorskip("zarr")
    values = noise((1, 2, 3, 20, 30), "uint16")
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    group.create_array("0", data=values)
    axes = [{"name": name, "type": "time" if name == "t" else "space"} for name in "tczyx"]
    for axis in axes[2:]:
        axis["unit"] = "micrometer"
    scale = [{"type": "scale", "scale": [1, 1, 2.0, 0.5, 0.25]}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["multiscales"] = [{"axes": axes, "datasets": datasets}]
    image = read(tmp_path / "a.zarr")
    assert (image.shape, image.channels) == ((3, 20, 30), 2)
    np.testing.assert_allclose(image.spacing, (2e-3, 0.5e-3, 0.25e-3))
    np.testing.assert_array_equal(image.array[1:, 5:9], np.moveaxis(values[0], 0, -1)[1:, 5:9])


def test_zarr_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    (tmp_path / "zarr.json").write_text("{}")
    one_line(tmp_path, 'pip install "kreg[zarr]"')


# --- what is wrong with a file ---


def test_missing_and_empty_files_and_folders(folder):
    one_line(folder / "a.png", "no such file")
    (folder / "a.png").touch()
    one_line(folder / "a.png", "empty file")
    (folder / "text.doc").write_text("hello")
    one_line(folder / "text.doc", "suffix '.doc'")
    one_line(folder / ("a" * 300 + ".png"))
    empty = folder / "empty.png"
    empty.mkdir()
    one_line(empty, "folder without files")
    os.mkfifo(folder / "pipe.png")
    one_line(folder / "pipe.png", "pipe")
    pytest.importorskip("SimpleITK")
    one_line(folder, "DICOM")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_unreadable_files(tmp_path):
    write(tmp_path / "a.png", noise((5, 7)))
    (tmp_path / "a.png").chmod(0)
    one_line(tmp_path / "a.png", "permission denied")


def test_permission_errors_are_one_line(tmp_path, monkeypatch):
    write(tmp_path / "a.png", noise((5, 7)))

    def denied(self, *args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    one_line(tmp_path / "a.png", "permission denied")


SUFFIXES = [".png", ".jpg", ".tif", ".nii", ".nii.gz", ".npy", ".npz"]


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".nrrd", ".mha"])
@pytest.mark.parametrize("share", [0.05, 0.6, 0.97])
def test_truncated_files(tmp_path, suffix, share):
    if suffix in (".nrrd", ".mha"):
        pytest.importorskip("SimpleITK")
    path = tmp_path / f"a{suffix}"
    write(path, noise((60, 50)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    one_line(path)


@pytest.mark.parametrize("scaled", [False, True])
def test_packed_nifti_is_read_to_its_checksum(tmp_path, scaled):
    """One bit in a stored block decodes as well as any other: only the checksum tells."""
    values = np.arange(20 * 30 * 50, dtype="int16").reshape(20, 30, 50)
    stored = nibabel.Nifti1Image(values, RAS)
    if scaled:
        stored.header.set_slope_inter(2, 1)
    whole = gzip.compress(stored.to_bytes(), 0)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(whole)
    assert read(path).array.max() == (59999 if scaled else 29999)
    for damaged in {
        "a voxel": whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:],
        "the header": whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
        "no checksum": whole[:-8],
        "no length": whole[:-3],
        "another length": whole[:-1] + b"\1",
        "more": whole + b"more",
    }.values():
        path.write_bytes(damaged)
        one_line(path, "it is damaged", "copy it again")
    # What follows the last voxel, also as a further member, and zeros up to a block are no damage.
    path.write_bytes(whole + gzip.compress(b"more") + bytes(512))
    np.testing.assert_array_equal(read(path).array, 2.0 * values + 1 if scaled else values)


@pytest.mark.parametrize("suffix", sorted(FORMATS))
def test_text_is_no_image(tmp_path, suffix):
    if suffix in (".nrrd", ".mha", ".nhdr", ".mhd", ".dcm"):
        pytest.importorskip("SimpleITK")
    path = tmp_path / f"a{suffix}"
    path.write_text("patient, left, right\n1, 2, 3\n" * 20)
    one_line(path)


def huge_files(folder):
    header = nibabel.Nifti1Header()
    header.set_data_dtype("float64")
    header["dim"] = [3, 30000, 30000, 30000, 1, 1, 1, 1]
    header["pixdim"][1:4] = 1
    raw = header.binaryblock + b"\0\0\0\0" + bytes(1000)
    yield "a.nii", raw
    yield "a.nii.gz", gzip.compress(raw)
    png = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 0, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + png))
    yield "a.png", b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + png + crc
    npy = str({"descr": "<f8", "fortran_order": False, "shape": (2**20, 2**20)}).encode()
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(npy) + 1) + npy + b"\n"
    yield "a.npy", npy + bytes(100)
    tifffile.imwrite(folder / "small.tif", np.zeros((8, 8), "uint8"))
    with tifffile.TiffFile(folder / "small.tif", mode="r+b") as file:
        for name in ("ImageWidth", "ImageLength"):
            file.pages[0].tags[name].overwrite(60000)
    yield "a.tif", (folder / "small.tif").read_bytes()
    yield (
        "a.mha",
        (
            b"ObjectType = Image\nNDims = 3\nDimSize = 30000 30000 30000\n"
            b"ElementType = MET_DOUBLE\nElementDataFile = LOCAL\n" + bytes(1000)
        ),
    )


def test_huge_sizes_are_not_allocated(tmp_path):
    pytest.importorskip("SimpleITK")
    for name, raw in huge_files(tmp_path):
        (tmp_path / name).write_bytes(raw)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        one_line(tmp_path / name)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_what_is_no_image_of_real_numbers(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 6), "complex64"), RAS), tmp_path / "a.nii")
    one_line(tmp_path / "a.nii", "complex64")
    np.save(tmp_path / "a.npy", np.ones((4, 5), "complex64"))
    one_line(tmp_path / "a.npy", "complex64")
    np.save(tmp_path / "text.npy", np.array([["a", "b"]]))
    one_line(tmp_path / "text.npy", "real numbers")
    np.save(tmp_path / "line.npy", np.ones(5))
    one_line(tmp_path / "line.npy", "(5,)")
    np.savez(tmp_path / "two.npz", first=np.ones((4, 5)), second=np.ones((4, 5)))
    one_line(tmp_path / "two.npz", "first, second")
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 6, 2, 2)), RAS), tmp_path / "five.nii")
    one_line(tmp_path / "five.nii", "(4, 5, 6, 2, 2)")
    pillow.new("L", (8, 8)).save(
        tmp_path / "a.gif", save_all=True, append_images=[pillow.new("L", (8, 8), 255)]
    )
    one_line(tmp_path / "a.gif", "2 frames")


class Harmful:
    def __reduce__(self):
        return (os.mkdir, ("pickles-were-loaded",))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_pickles_are_never_loaded(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    values = np.array([[Harmful()]], dtype=object)
    save = np.save if suffix == ".npy" else np.savez
    save(tmp_path / f"a{suffix}", values, allow_pickle=True)
    one_line(tmp_path / f"a{suffix}", "never loaded")
    assert os.listdir(tmp_path) == [f"a{suffix}"]


def test_nan_and_single_pixels_are_read(tmp_path):
    write(tmp_path / "a.nii.gz", Image(np.full((4, 5, 6), np.nan), np.eye(4), "mm"))
    assert np.isnan(read(tmp_path / "a.nii.gz").array).all()
    write(tmp_path / "a.png", noise((1, 1)))
    assert read(tmp_path / "a.png").shape == (1, 1)


def test_a_frame_that_is_none_is_refused(tmp_path):
    stored = nibabel.Nifti1Image(noise((4, 5, 6)), RAS)
    stored.header.set_sform(np.zeros((4, 4)), 1)
    stored.header["qform_code"] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nibabel.save(nibabel.Nifti1Image(noise((4, 5, 6)), None, stored.header), tmp_path / "a.nii")
    one_line(tmp_path / "a.nii", "inverted")


# --- writing ---


def test_nothing_is_overwritten_unasked(tmp_path):
    write(tmp_path / "a.png", noise((5, 7)))
    with pytest.raises(FileError, match="overwrite=True"):
        write(tmp_path / "a.png", noise((6, 7)))
    assert read(tmp_path / "a.png").shape == (5, 7)
    write(tmp_path / "a.png", noise((6, 7)), overwrite=True)
    assert read(tmp_path / "a.png").shape == (6, 7)


def test_where_nothing_can_be_written(tmp_path):
    with pytest.raises(FileError, match="create it"):
        write(tmp_path / "none" / "a.png", noise((5, 7)))
    (tmp_path / "b.png").mkdir()
    with pytest.raises(FileError, match="a folder"):
        write(tmp_path / "b.png", noise((5, 7)), overwrite=True)
    for name in ("a.gif", "a", "a.dcm"):
        with pytest.raises(FileError, match="to write"):
            write(tmp_path / name, noise((5, 7)))
    assert os.listdir(tmp_path) == ["b.png"]


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".nrrd"])
def test_a_full_disk_leaves_the_old_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".nrrd":
        pytest.importorskip("SimpleITK")
    write(path, noise((8, 8)))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(FileError, match=r"check the space left") as caught:
            write(path, noise((300, 300)), overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def unsupported(*args, **kwargs):
    raise OSError(95, "Operation not supported")


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_stays(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", unsupported)
    path = tmp_path / "a.png"

    def written_meanwhile():
        with replacing(path, False) as new:
            new.write_bytes(b"ours")
            path.write_bytes(b"theirs")

    with pytest.raises(FileError, match="overwrite=True") as caught:
        written_meanwhile()
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["a.png"]
    write(tmp_path / "b.png", noise((5, 7)))
    np.testing.assert_array_equal(read(tmp_path / "b.png").array, noise((5, 7)))
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png"]
    with replacing(path, True) as new:
        new.write_bytes(b"ours")
    assert path.read_bytes() == b"ours"


def test_new_files_have_usual_permissions(tmp_path):
    (tmp_path / "plain").touch()
    write(tmp_path / "a.png", noise((5, 7)))
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


# --- what is imported ---


def test_reading_and_writing_need_no_keras(tmp_path):
    # `import kreg` may bring Keras: here an empty package stands in for it.
    script = (
        "import sys, types\n"
        "kreg = types.ModuleType('kreg')\n"
        f"kreg.__path__ = [{str(Path(__file__).parents[2] / 'kreg')!r}]\n"
        "sys.modules['kreg'] = kreg\n"
        "import kreg.io\n"
        "heavy = {'keras', 'nibabel', 'PIL', 'SimpleITK', 'scipy', 'skimage', 'tifffile', 'zarr'}\n"
        "print(*heavy & set(sys.modules))\n"
        "import numpy as np\n"
        "kreg.io.write('a.nii.gz', np.ones((4, 5)))\n"
        "image = kreg.io.read('a.nii.gz')\n"
        "transform = kreg.io.Transform(np.eye(3), image.grid, image.grid)\n"
        "kreg.io.save_transform('t.npz', transform)\n"
        "kreg.io.load_transform('t.npz').apply(image)\n"
        "print('keras' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\nFalse\n", "")
