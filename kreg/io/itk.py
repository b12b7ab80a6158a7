"""NRRD, MetaImage and DICOM by SimpleITK, whose physical space is the world."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from kreg.io.errors import check_file, check_size, missing_package, refusal
from kreg.io.image import Grid, Image
from kreg.io.nifti import single_slice
from kreg.silence import without_stderr

#: ImagePositionPatient of DICOM.
_POSITION = "0020|0032"
#: Characters of a header that are looked at.
_HEADER = 2**16
#: How headers name the file of their values.
_DATA_FILE = {
    ".mhd": re.compile(r"^ElementDataFile *= *(\S.*)$", re.MULTILINE),
    ".nhdr": re.compile(r"^data ?file: *(\S.*)$", re.MULTILINE | re.IGNORECASE),
}


def _simpleitk(path: Path) -> Any:
    try:
        import SimpleITK as sitk
    except ImportError as error:
        what = "NRRD, MetaImage and DICOM"
        raise missing_package(path, "SimpleITK", "itk", what) from error
    return sitk


def read(path: Path) -> Image:
    """Return an image in millimetres, axes in the order depth, row, column."""
    sitk = _simpleitk(path)
    _check_data_file(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with without_stderr():
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise refusal(path, "a file of ITK's formats", "other contents", "export it") from error
    if path.suffix.lower() in (".nrrd", ".mha"):  # header and values in one file
        numbers = float(np.prod([float(size) for size in reader.GetSize()]))
        numbers *= reader.GetNumberOfComponents()
        check_size(path, int(numbers), path.stat().st_size, True)  # at least a byte each
    return _image(sitk, _executed(reader, path), path)


def _check_data_file(path: Path) -> None:
    """Raise `FileError` if the header says that the values are in no file: a pipe never ends."""
    pattern = _DATA_FILE.get(path.suffix.lower())
    if pattern is None:
        return
    with path.open(encoding="latin-1") as file:
        found = pattern.search(file.read(_HEADER))
    data = path.parent / found[1].strip() if found else path
    if data.exists():
        check_file(data, f"the values of '{path}'")


def read_series(path: Path) -> Image:
    """Return the volume of a folder that holds one DICOM series.

    Raises:
        FileError: if it holds none, or several, or slices are missing or lie unevenly.
    """
    if not any(file.is_file() for file in path.iterdir()):
        raise refusal(path, "an image file", "a folder without files", "name the file")
    sitk = _simpleitk(path)
    with without_stderr():
        found = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path))
    if len(found) != 1:
        received = f"{len(found)} series" if found else "a folder without DICOM files"
        raise refusal(path, "an image file, or one DICOM series", received, "name one")
    reader = sitk.ImageSeriesReader()
    with without_stderr():
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), found[0])
    reader.SetFileNames(names)
    reader.MetaDataDictionaryArrayUpdateOn()
    image = _executed(reader, path)
    _check_slices(path, names, _positions(reader, len(names)), image)
    return _image(sitk, image, path)


def _positions(reader, count: int) -> np.ndarray | None:
    """Return where the first voxel of each slice lies, ``(count, 3)``; None if they do not say."""
    told = [
        reader.GetMetaData(index, _POSITION)
        for index in range(count)
        if reader.HasMetaDataKey(index, _POSITION)
    ]
    places = [[float(number) for number in text.split("\\")] for text in told]
    return np.array(places) if len(places) == count and count > 1 else None


def _check_slices(path: Path, names: list[str], places: np.ndarray | None, image) -> None:
    """Raise `FileError` where a slice lies more than a tenth of a step off its place."""
    if places is None:
        return
    count = len(places)
    directions = np.reshape(image.GetDirection(), (3, 3))
    step = directions[:, 2] * image.GetSpacing()[2]
    off = places - image.GetOrigin() - np.arange(count)[:, None] * step
    gaps = np.linalg.norm(np.diff(places, axis=0), axis=-1)
    usual = float(np.median(gaps[gaps > 0])) if gaps.any() else 0.0
    if np.linalg.norm(off, axis=-1).max() <= 0.1 * usual:
        return
    worst = int(np.argmax(abs(gaps - usual)))
    between = " and ".join(f"'{Path(name).name}'" for name in names[worst : worst + 2])
    received = f"{gaps[worst]:.4g} mm between {between}"
    if usual and abs(gaps[worst] / usual - 1) <= 0.1:
        received = "steps askew to the slices, as of a tilted gantry"
    expected = f"{count} slices behind one another" + (f", {usual:.4g} mm apart," if usual else "")
    remedy = "copy all files of the series again, or resample it"
    raise refusal(path, expected, received, remedy)


def _executed(reader, path: Path):
    """ITK's own reason is often a wrong one, such as a missing file."""
    try:
        with without_stderr():
            return reader.Execute()
    except RuntimeError as error:
        received = "one that it cannot read: it is truncated or damaged"
        raise refusal(path, "a file of ITK's formats", received, "export it again") from error


def _image(sitk, image, path: Path) -> Image:
    kind = image.GetPixelIDTypeAsString()
    dimensions = image.GetDimension()
    if "complex" in kind or dimensions > 3:
        raise refusal(path, "an image or volume of real numbers", f"{dimensions}-D of {kind}")
    array = sitk.GetArrayFromImage(image)
    affine = np.eye(dimensions + 1)
    directions = np.reshape(image.GetDirection(), (dimensions, dimensions)) * image.GetSpacing()
    affine[:-1, :-1] = directions[:, ::-1]
    affine[:-1, -1] = image.GetOrigin()
    if dimensions == 3:
        return single_slice(array, affine, str(path))
    return Image(array, affine, "mm", str(path))


def write(path: Path, image: Image) -> None:
    """Write the array and its grid, compressed."""
    sitk = _simpleitk(path)
    array = np.asarray(image.array)
    if array.dtype == "bool":
        array = array.astype("uint8")
    elif array.dtype == "float16":
        array = array.astype("float32")
    array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))
    grid = image.grid
    if image.plane is not None:  # a volume of one slice, where it lay
        array, grid = array[None], _as_volume(grid)
    result = sitk.GetImageFromArray(array, isVector=image.channels is not None)
    directions, spacing, origin = _frame(path, grid)
    result.SetDirection(directions)
    result.SetSpacing(spacing)
    result.SetOrigin(origin)
    with without_stderr():
        sitk.WriteImage(result, str(path), useCompression=True)


def _as_volume(grid: Grid) -> Grid:
    return Grid((1, *grid.shape), grid.scan[:, [2, 0, 1, 3]], grid.unit)


def _frame(path: Path, grid: Grid) -> tuple[list, list, list]:
    """Return directions, spacing and origin as ITK has them, the fastest axis first."""
    directions = grid.directions[:, ::-1]
    if grid.sheared:
        received = "an affine with shears"
        raise refusal(path, "axes at right angles", received, "write a .nii.gz")
    return directions.ravel().tolist(), list(grid.spacing[::-1]), grid.affine[:-1, -1].tolist()
