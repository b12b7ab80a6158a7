"""Pictures: PNG, JPEG and what else Pillow reads, in pixels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kreg.io.errors import refusal
from kreg.io.image import Image, row_by_row
from kreg.silence import without_stderr

#: By how much floats may leave [0, 1], as interpolation by splines makes them.
_SLACK = 1e-3


def read(path: Path) -> Image:
    """Return a picture as uint8 or uint16, ``(rows, columns)`` or ``(rows, columns, 3)``."""
    return _read_deep_colour(path) if _is_deep_colour(path) else _decoded(path, _in_colour)


def read_labels(path: Path) -> Image:
    """Return the same, but of a palette the indices."""
    return _read_deep_colour(path) if _is_deep_colour(path) else _decoded(path, _indexed)


def _decoded(path: Path, converted: Callable[[Any], Any]) -> Image:
    from PIL import Image as pillow
    from PIL import ImageOps

    with pillow.open(path) as picture:
        frames = getattr(picture, "n_frames", 1)
        if frames > 1:
            raise refusal(path, "one picture", f"{frames} frames", "save one of them")
        array = np.asarray(converted(ImageOps.exif_transpose(picture)))
    if array.dtype.kind == "i" and array.min() >= 0 and array.max() < 2**16:
        array = array.astype("uint16")  # 16 bits that Pillow holds in 32
    return Image(array.astype(array.dtype.newbyteorder("="), copy=False), source=str(path))


def _in_colour(picture: Any) -> Any:
    if picture.mode in ("1", "La", "LA"):
        return picture.convert("L")
    return picture if picture.mode == "L" or picture.mode[0] in "IF" else picture.convert("RGB")


def _indexed(picture: Any) -> Any:
    if picture.mode == "PA":  # with an alpha channel
        return picture.getchannel("P")
    return picture if picture.mode == "P" else _in_colour(picture)


def _is_deep_colour(path: Path) -> bool:
    """Whether a PNG has 16 bits in each of several channels, of which Pillow drops 8."""
    with path.open("rb") as file:
        head = file.read(26)
    return head[:8] == b"\x89PNG\r\n\x1a\n" and head[24:25] == b"\x10" and head[25:26] > b"\0"


def _read_deep_colour(path: Path) -> Image:
    try:
        import SimpleITK as sitk
    except ImportError as error:
        raise refusal(
            path,
            "8 bits a channel, or one channel of 16",
            "a PNG of 16 bits in several channels",
            'save it as TIFF, or pip install "kreg[itk]"',
        ) from error
    with without_stderr():
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    if array.ndim == 3:  # without alpha
        array = array[..., :3] if array.shape[-1] > 2 else array[..., 0]
    return Image(array, source=str(path))


def write(path: Path, image: Image) -> None:
    """Write 8 bits, or 16 bits of grey as PNG."""
    from PIL import Image as pillow

    array = row_by_row(image)
    if image.dimensions != 2 or image.channels not in (None, 1, 3):
        received = f"{image.dimensions}-D with {image.channels or 1} channels"
        raise refusal(path, "a 2-D image of 1 or 3 channels", received, "write a .tif or .nii.gz")
    array = array[..., 0] if image.channels == 1 else array
    values = as_levels(path, array)
    png = path.suffix.lower() == ".png"
    if values.dtype == "uint16" and (values.ndim > 2 or not png):
        held = "8 bits, or 16 where grey," if png else "8 bits"
        raise refusal(path, held, "values above 255", "write a .tif")
    options = {} if png else {"quality": 95, "subsampling": 0}
    pillow.fromarray(values).save(path, "PNG" if png else "JPEG", **options)


def as_levels(path: Path, array: np.ndarray) -> np.ndarray:
    """Return the values as uint8 or uint16, or raise `FileError` where they do not fit.

    Integers stay as they are; floats from 0 to 1 are rounded to 0 to 255; booleans are 0 and 255.
    """
    low, high = array.min(), array.max()
    if array.dtype == "bool":
        return np.where(array, 255, 0).astype("uint8")
    if array.dtype in ("uint8", "uint16"):
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind in "iu":
        if low < 0 or high >= 2**16:
            received = f"{low} to {high}"
            raise refusal(path, "integers from 0 to 65535", received, "write a .tif or .nii.gz")
        return array.astype("uint8" if high < 2**8 else "uint16")
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # NaN as well
        received = f"{low:.4g} to {high:.4g}"
        remedy = "scale them, or write a .tif or .nii.gz"
        raise refusal(path, "floats from 0 to 1 in a picture", received, remedy)
    return np.rint(np.clip(array, 0, 1) * 255).astype("uint8")
