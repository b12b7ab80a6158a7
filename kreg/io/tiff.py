"""TIFF, with or without the metadata of OME and ImageJ."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kreg.io.errors import check_size, refusal
from kreg.io.image import Image, closest_axes, row_by_row
from kreg.io.ome import arranged
from kreg.io.pictures import as_levels

#: More bytes than this are read piece by piece if they can be.
_LARGE = 2**30
#: What an extra sample of 1 or 2 means: an alpha channel.
_ALPHA = (1, 2)


def read(path: Path) -> Image:
    """Return the first image of a file; pages of one size are the slices of a volume."""
    return _read(path, _colours)


def read_labels(path: Path) -> Image:
    """Return the same, but of a palette the indices."""
    return _read(path, _indices)


def _colours(array: Any, axes: str, page: Any) -> tuple[Any, str]:
    colours = (np.asarray(page.colormap).T >> 8).astype("uint8")
    return colours[np.asarray(array)], axes + "S"


def _indices(array: Any, axes: str, page: Any) -> tuple[Any, str]:
    return array, axes


def _read(path: Path, of_palette: Callable[[Any, str, Any], tuple[Any, str]]) -> Image:
    import tifffile

    with tifffile.TiffFile(path) as file:
        series: Any = file.series[0]
        page = series.keyframe
        _check_pages(path, series)
        spacing = _spacing(file)
        axes = series.axes
        if series.dataoffset is not None and page.is_memmappable:
            array: Any = np.memmap(
                path, file.byteorder + series.dtype.char, "r", series.dataoffset, series.shape
            )
        elif series.nbytes > _LARGE and (pieces := _pieces(path)) is not None:
            array = pieces
        else:
            array = _decoded(path, series, len(file.pages))
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
            array, axes = of_palette(array, axes, page)
        elif page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and array.dtype.kind in "bu":
            highest = True if array.dtype == "bool" else np.iinfo(array.dtype).max
            array = highest ^ np.asarray(array)
        if "S" in axes and any(int(one) in _ALPHA for one in page.extrasamples):
            samples = axes.index("S")  # first where the planes are apart
            array = array[(slice(None),) * samples + (slice(0, array.shape[samples] - 1),)]
    return arranged(path, array, axes, spacing)


def _check_pages(path: Path, series) -> None:
    """Raise `FileError` if values lie beyond the end of the file: they would be read as zeros."""
    size = path.stat().st_size
    held, packed = 0, False
    for page in series.pages:
        page = series.keyframe if page is None else page
        ends = [o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if ends and max(ends) > size:
            received = f"{size} bytes of {max(ends)}: it is truncated"
            raise refusal(path, "a TIFF image", received, "copy or export it again")
        held += sum(page.databytecounts)
        packed |= page.compression != 1
    if series.dataoffset is not None and not packed:
        held = size - series.dataoffset
    # Other compressions than DEFLATE may be denser, of constant images.
    check_size(path, series.nbytes, held * (20 if packed else 1), packed)


def _pieces(path: Path) -> Any:
    """Return the array to read piece by piece, or None without zarr."""
    try:
        import tifffile
        import zarr
    except ImportError:
        return None
    found: Any = zarr.open(tifffile.imread(path, aszarr=True), mode="r")
    return found if hasattr(found, "dtype") else found["0"]


def _decoded(path: Path, series, pages: int) -> np.ndarray:
    """Return the values; of what tifffile needs more packages for, Pillow reads one page."""
    try:
        return series.asarray()
    except Exception as error:
        if "imagecodecs" not in str(error):
            raise
        bits = series.dtype.itemsize * 8
        if pages == 1 and (bits == 8 or series.axes == "YX"):
            from PIL import Image as pillow

            with pillow.open(path) as picture:
                array = np.asarray(picture)
            if array.shape == series.shape:
                return array.astype(series.dtype)
        compression = series.keyframe.compression.name
        remedy = "save it uncompressed or by DEFLATE, or pip install imagecodecs"
        raise refusal(path, "a compression that can be read", compression, remedy) from error


def _spacing(file) -> dict[str, tuple[float, str | None]]:
    """Return the step and unit of each axis that OME or ImageJ tells of."""
    if file.is_ome:
        pixels = next(
            (one for one in ElementTree.fromstring(file.ome_metadata).iter() if _is_pixels(one)),
            None,
        )
        given = {} if pixels is None else pixels.attrib
        return {
            axis: (
                float(given[f"PhysicalSize{axis}"]),
                given.get(f"PhysicalSize{axis}Unit", "µm"),
            )
            for axis in "XYZ"
            if f"PhysicalSize{axis}" in given
        }
    if file.is_imagej:
        metadata, tags = file.imagej_metadata or {}, file.pages[0].tags
        unit = metadata.get("unit")
        found = {"Z": (float(metadata.get("spacing", 1.0)), unit)}
        found |= {"I": found["Z"]}
        for axis, name in (("X", "XResolution"), ("Y", "YResolution")):
            if name in tags and tags[name].value[0]:
                above, below = tags[name].value
                found[axis] = below / above, unit
        return found
    return {}


def _is_pixels(element) -> bool:
    return element.tag.rpartition("}")[-1] == "Pixels"


def write(path: Path, image: Image) -> None:
    """Write one page, or one a slice; the spacing of volumes as OME has it."""
    import tifffile

    array = row_by_row(image)
    if array.dtype == "bool":
        array = as_levels(path, array)
    colour = image.channels in (3, 4)
    axes = "ZYX"[-image.dimensions :]
    metadata: dict[str, Any] = {}
    if image.unit == "mm":
        for axis, step in zip(axes, _row_spacing(image), strict=True):
            metadata |= {f"PhysicalSize{axis}": step, f"PhysicalSize{axis}Unit": "mm"}
    if colour:
        axes += "S"
    elif image.channels is not None:
        array, axes = np.moveaxis(array, -1, 0), "C" + axes
    tifffile.imwrite(
        path,
        array,
        photometric="rgb" if colour else "minisblack",
        compression="zlib",
        bigtiff=array.nbytes > 2**31,
        # A plain picture needs no metadata.
        ome=len(axes.rstrip("S")) > 2 or bool(metadata),
        metadata=metadata | {"axes": axes},
    )


def _row_spacing(image: Image) -> list[float]:
    """Return the spacing along z, y and x, as far as there are such."""
    order, _ = closest_axes(np.eye(image.dimensions), image.grid.directions)
    return [image.spacing[axis] for axis in order[::-1]]
