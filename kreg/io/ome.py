"""Named axes, as microscopes' formats have them, and lengths in their units."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kreg.io.errors import refusal
from kreg.io.image import Image, pixel_affine
from kreg.io.view import View

#: Millimetres.
_LENGTHS = {
    "nm": 1e-6,
    "nanometer": 1e-6,
    "µm": 1e-3,
    "um": 1e-3,
    "\\u00b5m": 1e-3,
    "micron": 1e-3,
    "micrometer": 1e-3,
    "mm": 1.0,
    "millimeter": 1.0,
    "cm": 10.0,
    "centimeter": 10.0,
    "m": 1e3,
    "meter": 1e3,
}

Spacing = Mapping[str, tuple[float, str | None]]


def arranged(path: Path, array: Any, axes: str, spacing: Spacing) -> Image:
    """Return an image ``([depth,] row, column[, channels])`` of an array with named axes.

    Args:
        path: for messages.
        array: in memory or not.
        axes: a letter each: Y, X; C or S for channels; Z, or other pages, for depth.
        spacing: axis -> step and its unit; in pixels where one is missing.

    Raises:
        FileError: if there is a time series, or more than one axis of channels or of depth.
    """
    sizes = dict(zip(axes, array.shape, strict=True))
    kept = [axis for axis in axes if sizes[axis] > 1 or axis in "YX"]
    channels = [axis for axis in kept if axis in "CS"]
    depth = [axis for axis in kept if axis not in "CSYX"]
    known = len(set(axes)) == len(axes) and {"Y", "X"} <= set(axes)
    if not known or len(channels) > 1 or len(depth) > 1 or "T" in depth:
        received = f"axes {axes} of sizes {tuple(array.shape)}"
        raise refusal(path, "one image or volume, no time series", received, "save one of them")
    order = [*depth, "Y", "X", *channels]
    places = [axes.index(axis) for axis in order]
    if isinstance(array, np.ndarray):
        rest = [axis for axis in range(array.ndim) if axis not in places]
        array = array.transpose([*places, *rest])
        array = array.reshape(array.shape[: len(places)])
    elif places != list(range(len(axes))):
        array = View(array, places)
    steps = [spacing.get(axis, (0.0, None)) for axis in [*depth, "Y", "X"]]
    lengths = [step * _LENGTHS.get(str(unit), 0.0) for step, unit in steps]
    affine = pixel_affine(len(steps))
    physical = min(lengths) > 0 and bool(np.isfinite(lengths).all())
    if physical:
        affine = affine @ np.diag([*lengths, 1.0])
    return Image(array, affine, "mm" if physical else "px", str(path))
