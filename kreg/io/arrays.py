"""Arrays of NumPy: .npy, and .npz with the grid."""

import zipfile
from pathlib import Path

import numpy as np

from kreg.io.errors import check_size, refusal
from kreg.io.image import Image

_NUMBERS = "an array of real numbers"


def read_npy(path: Path) -> Image:
    """Return a memory-mapped array, in pixels."""
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":  # or NumPy takes it for pickled objects
            raise refusal(path, "an array saved by `numpy.save`", "other contents")
    if _holds_objects(path):
        raise refusal(path, _NUMBERS, "Python objects, which are never loaded", "save numbers")
    return _checked(path, np.load(path, mmap_mode="r"))


def _holds_objects(path: Path) -> bool:
    with path.open("rb") as file:
        return _header(file)[1].hasobject


def _header(file) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and dtype of an array, without its values."""
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(file)
    return shape, dtype


def read_npz(path: Path) -> Image:
    """Return the array "array" with its "affine" and "unit", or the only one."""
    values = load_npz(path)
    name = "array" if "array" in values else next(iter(values), "")
    if name != "array" and len(values) != 1:
        shown = ", ".join(list(values)[:5]) or "nothing"
        raise refusal(path, 'one array, or one called "array"', shown, "save it alone")
    grid = (values.get("affine"), str(values.get("unit", "px")), values.get("plane"))
    return _checked(path, values[name], *grid)


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file of NumPy; never Python objects.

    Raises:
        FileError: if it holds such, or less than its headers promise.
    """
    if not zipfile.is_zipfile(path):
        raise refusal(path, "arrays saved by `numpy.savez`", "other contents, or a truncated file")
    values = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                shape, dtype = _header(file)
                if dtype.hasobject:
                    received = f"Python objects in {member.filename}, which are never loaded"
                    raise refusal(path, "arrays of numbers", received, "save numbers")
                promised = int(np.prod([float(size) for size in shape])) * dtype.itemsize
                check_size(path, promised, member.compress_size, True)
            with archive.open(member) as file:
                name = member.filename.removesuffix(".npy")
                values[name] = np.lib.format.read_array(file, allow_pickle=False)
    return values


def _checked(path: Path, array: np.ndarray, affine=None, unit: str = "px", plane=None) -> Image:
    if array.dtype.kind not in "biuf":
        raise refusal(path, _NUMBERS, f"dtype {array.dtype}", "save real numbers")
    return Image(array, affine, unit, str(path), plane)


def write_npy(path: Path, image: Image) -> None:
    """Write the array alone."""
    with path.open("wb") as file:
        np.save(file, np.asarray(image.array), allow_pickle=False)


def write_npz(path: Path, image: Image) -> None:
    """Write the array and its grid."""
    values = {"array": np.asarray(image.array), "affine": image.affine, "unit": image.unit}
    if image.plane is not None:
        values["plane"] = image.plane
    with path.open("wb") as file:
        np.savez_compressed(file, **values)
