"""Say what a file holds: an image with its grid, a transform, or results.

usage: kreg info FILE [--json]

FILE is an image, a folder of DICOM or zarr, a transform (.npz), or the folder of a registration, of
`kreg batch`, or of a network. Axes, such as yx, are those of the array, first to last; world points
have x first.

Examples:
  kreg info scan.nii.gz
  kreg info aligned
  kreg info aligned/transform.npz --json
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from kreg import io
from kreg.cli.batch import read_summary, summarised
from kreg.cli.new_folder import RESULT, is_damaged, result_of
from kreg.cli.outcome import Outcome, UsageError
from kreg.cli.register import about_matrix, displacement, told
from kreg.io.errors import refusal

#: Of larger images the values are not looked at.
_LOOKED_AT = 2**27


def define(values: flags.FlagValues) -> None:
    """Define the options: none but those that all commands have."""


def run(arguments: list[str], values: flags.FlagValues) -> Outcome:
    """Describe one file."""
    if len(arguments) != 1:
        raise UsageError(f"Expected one file. Received: {len(arguments)}.")
    path = Path(arguments[0])
    if is_damaged(path):
        raise refusal(path / RESULT, "a result", "other contents, or a truncated file", "redo it")
    result = result_of(path)
    if result is not None:
        try:
            return Outcome({"kind": "result", **result}, _result(result))
        except (KeyError, TypeError, ValueError) as error:
            raise refusal(path / RESULT, "a result of kreg", "one that lacks parts") from error
    rows = read_summary(path)
    if rows is not None:
        batch, lines = summarised(path, rows)
        return Outcome({"kind": "batch", **batch}, lines)
    found = _transform(path) if _is_transform(path) else _image(path)
    width = max(map(len, found))
    lines = [f"{name:{width}}  {_text(value)}" for name, value in found.items()]
    return Outcome({"file": str(path), **found}, lines)


def _result(result: dict[str, Any]) -> list[str]:
    if "trusted" in result:
        names = f"  {result['moving']} over {result['fixed']}, by {result['settings']['transform']}"
        return [*told(result), names]
    what = "predictions" if "pairs" in result else f"a trained {result['settings']['model']}"
    return [f"{what}: {' '.join(result['files'])}"]


def _is_transform(path: Path) -> bool:
    if path.suffix.lower() != ".npz" or not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return {"format.npy", "matrix.npy"} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _image(path: Path) -> dict[str, Any]:
    image = io.read(path)
    found = {"kind": "image", **_grid(image.grid)}
    found |= {"channels": image.channels or 1, "dtype": str(image.array.dtype)}
    if image.array.size <= _LOOKED_AT:
        array = np.asarray(image.array)
        finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
        if finite.size:
            found |= {"lowest": finite.min().item(), "highest": finite.max().item()}
        found |= {"nan_or_infinite": int(array.size - finite.size)}
    return found


def _transform(path: Path) -> dict[str, Any]:
    found = io.load_transform(path)
    kind = "a matrix" if found.field is None else "a matrix after a displacement"
    units = found.fixed.unit, found.moving.unit
    result = {
        "kind": "transform",
        "form": kind,
        "matrix_maps": f"world points {about_matrix(found.fixed.dimensions, *units)}",
        "matrix": found.matrix.tolist(),
    }
    for side, grid in (("fixed", found.fixed), ("moving", found.moving)):
        result |= {f"{side}_{name}": value for name, value in _grid(grid).items()}
    if found.field is not None:
        result["displacement"] = displacement(found)
    return result


def _grid(grid) -> dict[str, Any]:
    scan = {} if grid.plane is None else {"first_voxel_in_scan": grid.scan[:3, 3].tolist()}
    return scan | {
        "sizes": list(grid.shape),
        "spacing": list(grid.spacing),
        "unit": grid.unit,
        "axes": grid.orientation,
        "first_voxel": grid.affine[:-1, -1].tolist(),
    }


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        if value and isinstance(value[0], list):
            return "; ".join(map(_text, value))
        return " ".join(map(_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items())
    return str(value)
