"""Images as commands take them: read, looked at, and named when written."""

from pathlib import Path

import numpy as np

from kreg import io
from kreg.io.errors import refusal
from kreg.io.files import suffix_of

#: Larger images are looked at piece by piece while they are registered.
_LOOKED_AT = 2**27
#: Formats that keep any grid, and those that hold whatever dtype there is.
_KEEPS_GRID = (".nii.gz", ".nii", ".nrrd", ".mha", ".npz")
_KEEPS_VALUES = (*_KEEPS_GRID, ".tif", ".tiff", ".npy")


def read_image(path: str | Path) -> io.Image:
    """Return an image that can be registered.

    Raises:
        FileError: if it cannot be read, is too small, holds NaN, or is of one value everywhere.
    """
    image = io.read(path)
    sizes = " x ".join(map(str, image.shape))
    if max(image.shape) < 4 or min(image.shape) < 2:
        expected = "an image of 2 voxels or more along each axis and 4 along the longest"
        raise refusal(path, expected, f"{sizes} voxels")
    if image.array.size > _LOOKED_AT:
        return image
    array = np.asarray(image.array)
    wrong = 0 if array.dtype.kind != "f" else int((~np.isfinite(array)).sum())
    large = np.finfo("float32").max
    if wrong:
        received = f"{wrong} NaN or infinite values"
        raise refusal(path, "finite values", received, "fill them, and leave them out by a mask")
    if max(-float(array.min()), float(array.max())) > large:
        received = f"{array.min():g} to {array.max():g}"
        raise refusal(path, f"values up to {large:g}, as float32 has them", received, "scale them")
    if array.min() == array.max():
        raise refusal(path, "something to see", f"the value {array.min():g} everywhere")
    return image


def read_mask(path: str | Path, image: io.Image) -> io.Image:
    """Return the mask of an image: 1 where it is neither 0 nor NaN.

    Raises:
        FileError: if it cannot be read, is of another size or frame, or 0 everywhere.
    """
    mask = io.read(path, labels=True)
    if mask.shape != image.shape or mask.channels not in (None, 1):
        received = f"shape {tuple(mask.array.shape)}"
        raise refusal(path, f"a mask of the shape {image.shape} of its image", received)
    check_frame(mask, image)
    values = np.asarray(mask.array).reshape(image.shape)
    weights = ((values != 0) & ~np.isnan(values)).astype("float32")
    if not weights.any():
        raise refusal(path, "a mask that leaves something to see", "0 everywhere")
    return io.Image(weights, mask.affine, mask.unit, str(path), mask.plane)


def check_frame(image: io.Image, other: io.Image) -> None:
    """Raise `FileError` if both are in millimetres, and an image's voxels lie elsewhere."""
    if not image.grid.agrees_with(other.grid):
        frames = [
            f"{one.grid.orientation} from {np.round(origin[:-1, -1], 3).tolist()}"
            for one in (image, other)
            for origin in [one.affine if one.plane is None else one.grid.scan]
        ]
        expected = f"the frame of '{other.source}', {frames[1]},"
        raise refusal(image.source, expected, frames[0], "resample it onto that grid")


def suffix_for(image: io.Image, path: str | Path) -> str:
    """Return what to write an image as: like the file `path` if that can hold it."""
    suffix = suffix_of(Path(path))
    if suffix in (_KEEPS_GRID if image.unit == "mm" else _KEEPS_VALUES):
        return suffix
    if image.unit == "mm":
        return ".nii.gz"
    values = image.array.dtype
    deep = values == "uint16" and image.channels is None
    fits = values in ("uint8", "bool") or deep
    return ".png" if image.dimensions == 2 and image.channels in (None, 1, 3) and fits else ".tif"
