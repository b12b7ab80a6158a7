"""NIfTI: the one format whose world has x and y the other way round."""

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kreg.io.errors import check_size, reason, refusal
from kreg.io.image import Grid, Image, closest_axes

#: Right, anterior, superior to left, posterior, superior, and back.
_TURN = np.diag([-1.0, -1.0, 1.0, 1.0])
#: Of a length in NIfTI's units, in millimetres.
_UNITS = {"meter": 1e3, "micron": 1e-3}
#: Vectors; ITK and ANTs read them unchanged.
_VECTORS = 1007
#: Bytes that are read at once where nothing but the checksum is asked for.
_PIECE = 2**20


def read(path: Path) -> Image:
    """Return an image in millimetres; channels come from the fourth axis or the fifth.

    Its frame is the one that ITK takes, so that transforms mean the same to ITK and ANTs: the
    sform if its code is 1 and its axes are at right angles, or if there is no qform; else the
    qform; and without either the steps alone, from 0 along the axes of LPS.
    """
    import nibabel

    image: Any = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Image):
        raise refusal(path, "a NIfTI image", type(image).__name__, "convert it")
    if path.suffix.lower() != ".gz":
        return _read(path, image, packed=False)
    with _verified(path) as file:
        return _read(path, type(image).from_stream(file), packed=True)


@contextlib.contextmanager
def _verified(path: Path) -> Iterator[gzip.GzipFile]:
    """Yield what a gzip file holds; at the end, its checksum and its length must fit.

    nibabel stops at the last voxel, before gzip compares them: damaged voxels would pass.
    """
    try:
        with gzip.open(path) as file:
            yield file
            while file.read(_PIECE):
                pass
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        expected = "a gzip file that is whole, by its own checksum,"
        raise refusal(path, expected, f"{reason(error)}: it is damaged", "copy it again") from error


def _read(path: Path, image: Any, packed: bool) -> Image:
    proxy: Any = image.dataobj
    dtype = image.get_data_dtype()
    if dtype.kind == "c":
        raise refusal(path, "real numbers", f"dtype {dtype}", "save the magnitude")
    shape = tuple(int(size) for size in image.shape)
    promised = int(np.prod([float(size) for size in shape])) * dtype.itemsize
    offset = 0 if packed else int(proxy.offset)
    check_size(path, promised, path.stat().st_size - offset, packed)
    more = [size for size in shape[3:] if size > 1]
    if len(shape) < 2 or 0 in shape or len(more) > 1 or (more and dtype.names):
        raise refusal(
            path, "an image or volume, with channels or without", f"shape {shape}", "save one"
        )
    time = image.header.get_xyzt_units()[1]
    if len(shape) > 3 and shape[3] > 1 and time in ("sec", "msec", "usec"):
        received = f"{shape[3]} volumes in time, in {time}"
        raise refusal(path, "one volume, no time series", received, "save one of them")
    spatial = (*shape, 1, 1)[:3] if len(shape) < 3 else shape[:3]
    if (proxy.slope, proxy.inter) == (1.0, 0.0):
        array = np.asanyarray(proxy)  # memory-mapped where the file is not compressed
    else:
        array = image.get_fdata(dtype="float32", caching="unchanged")
    if dtype.names:  # RGB or RGBA: red, green, blue
        array = np.stack([array[name] for name in dtype.names[:3]], axis=-1)
        more = [3]
    array = array.reshape(*spatial, *more, order="F" if not dtype.names else "C")
    if array.dtype.itemsize > 8:
        array = array.astype("float64")
    affine = _frame(image.header)
    affine[:3] *= _UNITS.get(image.header.get_xyzt_units()[0], 1.0)
    found = single_slice(array, affine, str(path))
    if len(shape) == 2 and found.dimensions == 2 and np.allclose(found.plane, np.eye(4)):
        return Image(found.array, found.affine, "mm", str(path))  # it knows no third axis
    return found


def _frame(header: Any) -> np.ndarray:
    """Return the affine from voxels to the world, LPS, in the units of the file."""
    sform, qform = header["sform_code"], header["qform_code"]
    if sform > 0 and (qform <= 0 or (sform == 1 and not _sheared(header))):
        return _TURN @ header.get_sform()
    if qform > 0:
        return _TURN @ header.get_qform()
    steps = [abs(float(step)) or 1.0 for step in header["pixdim"][1:4]]
    return np.diag([*steps, 1.0])


def _sheared(header: Any) -> bool:
    """Whether the axes of the sform are not at right angles, or there are none."""
    try:
        return Grid((1, 1, 1), header.get_sform()).sheared
    except ValueError:
        return True


def single_slice(array: np.ndarray, affine: np.ndarray, source: str) -> Image:
    """Return a volume in millimetres as an image, a 2-D one if it is one slice alone.

    The axes of its world are those of the scan, but for the one closest to the normal, turned
    into the plane of the slice by the smallest rotation; so slices side by side share a world.
    """
    thin = [axis for axis in range(3) if array.shape[axis] == 1]
    if len(thin) != 1:
        return Image(array, affine, "mm", source)
    (axis,) = thin
    Grid((1, 1, 1), affine)  # it can be inverted, or there is no plane
    steps = np.delete(affine[:3, :3], axis, 1)
    normal = np.cross(*steps.T)
    normal /= np.linalg.norm(normal)
    closest = int(np.argmax(abs(normal)))
    normal *= np.sign(normal[closest])
    axes = np.delete(np.eye(3), closest, 1)
    # The rotation from one unit vector, a, to another, n, takes x to x - (a + n) (n x) / (1 + n a),
    # where x is perpendicular to a.
    axes -= np.outer(np.eye(3)[closest] + normal, normal @ axes) / (1 + normal[closest])
    flat = np.eye(3)
    flat[:2, :2] = axes.T @ steps
    flat[:2, 2] = axes.T @ affine[:3, 3]
    plane = np.eye(4)
    plane[:3, :2], plane[:3, 2] = axes, affine[:3, axis]
    plane[:3, 3] = affine[:3, 3] - axes @ flat[:2, 2]
    return Image(np.squeeze(array, axis), flat, "mm", source, plane)


def write(path: Path, image: Image) -> None:
    """Write the grid into both of NIfTI's forms; channels as vectors on the fifth axis."""
    array = np.asarray(image.array)
    if array.dtype == "bool":
        array = array.astype("uint8")
    elif array.dtype == "float16":
        array = array.astype("float32")
    elif array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        # Few programs read 64-bit integers.
        fits = array.min() >= -(2**31) and array.max() < 2**31
        array = array.astype("int32") if fits else array
    write_array(path, array, image.grid, image.channels is not None)


def write_array(path: Path, array: np.ndarray, grid: Grid, vectors: bool) -> None:
    """Write an array ``(*spatial)``, or ``(*spatial, components)`` as vectors.

    Shears, which a qform cannot hold, are in the sform alone. A slice of a scan is a volume of
    one slice, where it lay.
    """
    import nibabel

    dimensions = grid.dimensions
    whole = grid.scan
    order, _ = closest_axes(np.eye(dimensions), grid.directions)
    if order == list(range(dimensions))[::-1]:  # row by row, where NIfTI has x first
        array = array.transpose([*order, *range(dimensions, array.ndim)])
        whole = whole[:, [*order, *range(dimensions, 4)]]
    if vectors:
        shape = (*array.shape[:dimensions], *(1,) * (4 - dimensions), array.shape[-1])
        array = array.reshape(shape)
    elif grid.plane is not None:
        array = array[..., None]
    image = nibabel.Nifti1Image(array, _TURN @ whole, dtype=array.dtype)
    image.set_qform(_TURN @ whole, code=0 if grid.sheared else 1)
    image.set_sform(_TURN @ whole, code=1)
    image.header.set_xyzt_units("mm" if grid.unit == "mm" else "unknown")
    if vectors:
        image.header.set_intent(_VECTORS)
    # Opened here, for nibabel would leave the file open on a full disk.
    with path.open("wb") as file:
        if path.suffix == ".gz":
            with gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(file)
