"""read() and write(): the formats by their suffixes, and what all of them share."""

import contextlib
import logging
import os
import secrets
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kreg.io import arrays, itk, nifti, pictures, tiff, zarrs
from kreg.io.errors import FileError, reason, refusal
from kreg.io.image import Image


class Format(NamedTuple):
    """What reads, and what writes, the files of a suffix; what reads labels where that differs."""

    name: str
    read: Callable[[Path], Image]
    write: Callable[[Path, Image], None] | None = None
    read_labels: Callable[[Path], Image] | None = None


_PICTURE = Format("a picture", pictures.read, None, pictures.read_labels)
_WRITTEN_PICTURE = Format("a picture", pictures.read, pictures.write, pictures.read_labels)
_TIFF = Format("a TIFF image", tiff.read, tiff.write, tiff.read_labels)
_NIFTI = Format("a NIfTI image", nifti.read, nifti.write)
_ITK = Format("an image of ITK's formats", itk.read, itk.write)
_READ_BY_ITK = Format("an image of ITK's formats", itk.read)
_DICOM = Format("a DICOM series", itk.read_series)
_ZARR = Format("a zarr array", zarrs.read)

FORMATS = {
    ".png": _WRITTEN_PICTURE,
    ".jpg": _WRITTEN_PICTURE,
    ".jpeg": _WRITTEN_PICTURE,
    ".bmp": _PICTURE,
    ".gif": _PICTURE,
    ".webp": _PICTURE,
    ".pgm": _PICTURE,
    ".ppm": _PICTURE,
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".nii": _NIFTI,
    ".nii.gz": _NIFTI,
    ".npy": Format("an array of NumPy", arrays.read_npy, arrays.write_npy),
    ".npz": Format("arrays of NumPy", arrays.read_npz, arrays.write_npz),
    ".nrrd": _ITK,
    ".mha": _ITK,
    ".nhdr": _READ_BY_ITK,
    ".mhd": _READ_BY_ITK,
    ".dcm": _READ_BY_ITK,
}


def suffix_of(path: Path) -> str:
    """Return the suffix that tells the format: ".nii.gz" for two, else the last one."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def read(path: str | os.PathLike, *, labels: bool = False) -> Image:
    """Return the image of a file, or of a folder: a DICOM series, or zarr.

    PNG, JPEG, BMP, GIF, WebP, PGM, PPM; TIFF, OME-TIFF; NIfTI; ``.npy``, ``.npz``; zarr,
    OME-Zarr; NRRD, MetaImage, DICOM. Integers stay integers. Arrays that lie in the file as in
    memory (``.npy``, uncompressed TIFF and NIfTI without a scale) are memory-mapped, zarr is read
    piece by piece.

    * Pictures lie in pixels, whatever their resolution in print says; an alpha channel is left
      out; palettes become RGB, and JPEG is turned as its camera was held.
    * Pages of a TIFF that are alike are the slices of a volume, first axis first. Of several
      images in one TIFF or OME-Zarr the first counts, at full resolution. OME and ImageJ state
      a spacing.
    * A fourth axis of NIfTI holds channels. One single slice is a 2-D image in its own plane, and
      is written where it lay (`Grid.plane`).
    * Slices of a DICOM series may lie a tenth of a step off their place, not more.
    * NaN is read; `register` says what to do with it.

    Args:
        path: the file or folder.
        labels: whether it is a map of labels: of palettes the indices count, not their colours.

    Raises:
        FileError: if there is no such file, it is damaged or of another format, or holds no image
            of one or several channels. Its message is one line.

    Example:
        >>> import numpy as np
        >>> import kreg
        >>> volume = np.zeros((30, 40, 5), "int16")  # along x, y, z
        >>> affine = np.diag([0.8, 0.8, 3.0, 1.0])  # voxels to millimetres
        >>> kreg.io.write("scan.nii.gz", kreg.io.Image(volume, affine, "mm"))
        >>> image = kreg.io.read("scan.nii.gz")
        >>> image.shape, image.unit, [round(step, 2) for step in image.spacing]
        ((30, 40, 5), 'mm', [0.8, 0.8, 3.0])
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISDIR(status.st_mode):
            if not stat.S_ISREG(status.st_mode):
                raise refusal(path, "a file", "a device or pipe")
            if status.st_size == 0:
                raise refusal(path, "an image file", "an empty file", "copy or export it again")
            with path.open("rb"):
                pass
    except FileNotFoundError as error:
        raise refusal(path, "an image file", "no such file", "check the spelling") from error
    except PermissionError as error:
        raise refusal(
            path, "a file that may be read", "permission denied", "check its owner and mode"
        ) from error
    except FileError:
        raise
    except (OSError, ValueError) as error:
        raise refusal(path, "an image file", reason(error)) from error
    kind = _folder(path) if stat.S_ISDIR(status.st_mode) else FORMATS.get(suffix_of(path))
    if kind is None:
        known = " ".join(FORMATS)
        raise refusal(path, f"one of {known}", f"the suffix {path.suffix!r}", "rename or convert")
    with _quiet():
        return _guarded(kind, (labels and kind.read_labels) or kind.read, path)


def _guarded(kind: Format, decode: Callable[[Path], Image], path: Path) -> Image:
    """Whatever a decoder raises about broken bytes becomes one line."""
    try:
        return decode(path)
    except FileError:
        raise
    except MemoryError as error:
        remedy = "uncompressed TIFF, .npy and zarr are read in pieces"
        raise refusal(path, f"{kind.name} that fits in memory", "a larger one", remedy) from error
    except Exception as error:
        remedy = "copy or export it again, or give it the suffix of its format"
        raise refusal(path, kind.name, reason(error), remedy) from error


def _folder(path: Path) -> Format:
    if any((path / name).exists() for name in ("zarr.json", ".zarray", ".zgroup")):
        return _ZARR
    return _DICOM


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What decoders remark on odd headers is not for the user, who gets the image or an error."""
    loggers = [logging.getLogger(name) for name in ("nibabel.global", "tifffile", "PIL")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def write(path: str | os.PathLike, image: Any, *, overwrite: bool = False) -> None:
    """Write an image, whole or not at all: the format is that of the suffix.

    * NIfTI, NRRD, MetaImage and ``.npz`` keep the grid and the dtype (bool becomes uint8, float16
      float32, and int64 in NIfTI and ITK's formats int32 where it fits).
    * TIFF and ``.npy`` keep the dtype alone, but for volumes in TIFF the spacing.
    * PNG and JPEG hold 8 bits, PNG also 16 where grey. Integers are written as they are: without
      sign, in the smaller of the two that holds them. Floats go from 0, black, to 1, white, and
      are rounded to 8 bits; beyond by more than a thousandth they are refused. Booleans are black
      and white, in TIFF as well.

    Args:
        path: the file. Its folder must be there.
        image: an `Image`, or an array, which lies in pixels.
        overwrite: whether to replace a file of that name.

    Raises:
        FileError: if the format cannot hold the image, the file exists, or cannot be written.
    """
    path = Path(path)
    kind = FORMATS.get(suffix_of(path))
    if kind is None or kind.write is None:
        known = " ".join(suffix for suffix, one in FORMATS.items() if one.write)
        raise refusal(path, f"one of {known} to write", f"the suffix {path.suffix!r}")
    image = image if isinstance(image, Image) else Image(image)
    with replacing(path, overwrite) as temporary, _quiet():
        kind.write(temporary, image)


@contextlib.contextmanager
def replacing(path: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary file beside `path` that takes its place once it is whole.

    Raises:
        FileError: if it exists and `overwrite` is False, or cannot be written.
    """
    if path.is_dir():
        raise refusal(path, "the name of a file", "a folder")
    if not path.parent.is_dir():
        raise refusal(path, "a folder that exists", f"no folder '{path.parent}'", "create it")
    if os.path.lexists(path) and not overwrite:
        raise _exists(path)
    # Short, as the name of the file may already be as long as names may be.
    temporary = path.with_name(f".{secrets.token_hex(6)}{suffix_of(path)}")
    try:
        with temporary.open("xb"):  # with the permissions of any new file
            pass
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # a full disk may speak up only now
        if overwrite:
            os.replace(temporary, path)
        else:
            _take_new_name(temporary, path)
    except FileExistsError as error:
        raise _exists(path) from error
    except FileError as error:  # about the file that the user named
        raise FileError(str(error).replace(str(temporary), str(path))) from error
    except Exception as error:
        remedy = "check the space left and the permissions"
        raise refusal(path, "to write", reason(error), remedy) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _exists(path: Path) -> FileError:
    return refusal(path, "no file yet", "one that exists", "pass overwrite=True to replace it")


def _take_new_name(temporary: Path, path: Path) -> None:
    """Give a file a name that nobody has, in one step; the caller removes the other name.

    Raises:
        FileExistsError: if somebody has it by now.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # no links here, as on FAT: the name is claimed first
        with path.open("xb"):
            pass
        try:
            os.replace(temporary, path)
        except BaseException:
            path.unlink()
            raise
