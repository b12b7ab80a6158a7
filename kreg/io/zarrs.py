"""zarr and OME-Zarr, read piece by piece."""

from pathlib import Path
from typing import Any

import numpy as np

from kreg.io.errors import missing_package, refusal
from kreg.io.image import Image
from kreg.io.ome import arranged


def read(path: Path) -> Image:
    """Return an array, or the first image of an OME-Zarr at full resolution, not yet read."""
    try:
        import zarr
    except ImportError as error:
        raise missing_package(path, "zarr", "zarr", "folders of zarr") from error
    found: Any = zarr.open(str(path), mode="r")
    if hasattr(found, "dtype"):
        return Image(found, source=str(path))
    attributes = dict(found.attrs)
    scales = attributes.get("ome", attributes).get("multiscales")
    if not scales:
        names = ", ".join(sorted(found.array_keys())) or "no array"
        raise refusal(path, "a zarr array or OME-Zarr", f"a group of {names}", "name the array")
    level = scales[0]["datasets"][0]
    array = found[level["path"]]
    axes = scales[0].get("axes") or [*"tczyx"][-len(array.shape) :]
    names = "".join(axis if isinstance(axis, str) else axis["name"] for axis in axes).upper()
    units = [axis.get("unit") if isinstance(axis, dict) else None for axis in axes]
    steps = np.ones(len(names))
    for change in level.get("coordinateTransformations", []):
        steps = steps * change.get("scale", 1.0)
    spacing = {name: (step, unit) for name, step, unit in zip(names, steps, units, strict=True)}
    return arranged(path, array, names, spacing)
