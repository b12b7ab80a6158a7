"""NRRD, MetaImage and DICOM by SimpleITK, whose physical space is the world."""

from pathlib import Path
from typing import Any

import numpy as np

from kreg.io.errors import check_size, missing_package, refusal
from kreg.io.image import Grid, Image
from kreg.io.nifti import single_slice


def _simpleitk(path: Path) -> Any:
    try:
        import SimpleITK as sitk
    except ImportError as error:
        what = "NRRD, MetaImage and DICOM"
        raise missing_package(path, "SimpleITK", "itk", what) from error
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # it would print
    return sitk


def read(path: Path) -> Image:
    """Return an image in millimetres, axes in the order depth, row, column."""
    sitk = _simpleitk(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise refusal(path, "a file of ITK's formats", "other contents", "export it") from error
    if path.suffix.lower() in (".nrrd", ".mha"):  # header and values in one file
        numbers = float(np.prod([float(size) for size in reader.GetSize()]))
        numbers *= reader.GetNumberOfComponents()
        check_size(path, int(numbers), path.stat().st_size, True)  # at least a byte each
    return _image(sitk, _executed(reader, path), path)


def read_series(path: Path) -> Image:
    """Return the volume of a folder that holds one DICOM series.

    Raises:
        FileError: if it holds none, or several.
    """
    if not any(file.is_file() for file in path.iterdir()):
        raise refusal(path, "an image file", "a folder without files", "name the file")
    sitk = _simpleitk(path)
    found = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path))
    if len(found) != 1:
        received = f"{len(found)} series" if found else "a folder without DICOM files"
        raise refusal(path, "an image file, or one DICOM series", received, "name one")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), found[0]))
    return _image(sitk, _executed(reader, path), path)


def _executed(reader, path: Path):
    """ITK's own reason is often a wrong one, such as a missing file."""
    try:
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
    result = sitk.GetImageFromArray(array, isVector=image.channels is not None)
    directions, spacing, origin = _frame(path, image.grid)
    result.SetDirection(directions)
    result.SetSpacing(spacing)
    result.SetOrigin(origin)
    sitk.WriteImage(result, str(path), useCompression=True)


def _frame(path: Path, grid: Grid) -> tuple[list, list, list]:
    """Return directions, spacing and origin as ITK has them, the fastest axis first."""
    directions = grid.directions[:, ::-1]
    if abs(directions.T @ directions - np.eye(grid.dimensions)).max() > 1e-4:
        received = "an affine with shears"
        raise refusal(path, "axes at right angles", received, "write a .nii.gz")
    return directions.ravel().tolist(), list(grid.spacing[::-1]), grid.affine[:-1, -1].tolist()
