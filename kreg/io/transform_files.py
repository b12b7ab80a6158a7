"""Transforms in files: kreg's own format, and those of ITK and ANTs."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from kreg.io import nifti
from kreg.io.arrays import load_npz
from kreg.io.errors import FileError, reason, refusal
from kreg.io.files import replacing, suffix_of
from kreg.io.image import Grid
from kreg.io.transform import Transform
from kreg.mapping import carried, pieces

#: Says what a file is; the version grows when an older kreg could not read it.
FORMAT, VERSION = "kreg transform", 1
_KEYS = [f"{side}_{part}" for side in ("fixed", "moving") for part in ("shape", "affine", "unit")]


def save_transform(
    path: str | os.PathLike, transform: Transform, *, overwrite: bool = False
) -> None:
    """Write a transform, whole or not at all: the format is that of the suffix.

    ``.npz``: all of it, in kreg's own format, to be read by `load_transform` or `numpy.load`:

    * ``format``: "kreg transform"; ``version``: 1.
    * ``matrix``: ``(D + 1, D + 1)``, world points of the fixed image to world points of the
      moving one, float64.
    * ``field``, where there is a displacement: ``(*fixed spatial, D)`` in voxels of the fixed
      image, added before the matrix.
    * ``fixed_shape, fixed_affine, fixed_unit, moving_shape, ...``: the grids (`Grid`).

    For other programs, which send world points of the fixed to world points of the moving image:

    * ``.tfm``, ``.txt``: ITK's text file of an affine transform (SimpleITK, ANTs, 3D Slicer).
    * ``.mat``: ITK's binary file of an affine transform, as ANTs has it.
    * ``.nii``, ``.nii.gz``: a displacement field on the fixed grid, vectors in the world (LPS),
      intent 1007, as ANTs has it. It holds every transform, exactly at the voxels of the grid;
      beyond the grid it moves nothing.

    Args:
        path: the file. Its folder must be there.
        transform: what to write.
        overwrite: whether to replace a file of that name.

    Raises:
        FileError: if the format cannot hold the transform (ITK has no homographies, its affine
            files no displacements), the file exists, or cannot be written.
    """
    path = Path(path)
    write = _WRITERS.get(suffix_of(path))
    if write is None:
        raise refusal(path, f"one of {' '.join(_WRITERS)}", f"the suffix {path.suffix!r}")
    with replacing(path, overwrite) as temporary:
        write(temporary, transform)


def load_transform(path: str | os.PathLike) -> Transform:
    """Return the transform of a file that `save_transform` wrote as ``.npz``.

    Raises:
        FileError: if there is none, it is damaged, or of a newer kreg.
    """
    path = Path(path)
    try:
        if not path.is_file():
            received = "a folder" if path.is_dir() else "no such file"
            raise refusal(path, "a transform", received, "check the spelling")
        return _loaded(path, load_npz(path))
    except FileError:
        raise
    except Exception as error:
        raise refusal(path, "a transform that kreg saved", reason(error)) from error


def _loaded(path: Path, values: dict[str, np.ndarray]) -> Transform:
    missing = [key for key in ("version", "matrix", *_KEYS) if key not in values]
    if str(values.get("format", "")) != FORMAT or missing:
        shown = ", ".join(list(values)[:5]) or "nothing"
        received = f"arrays {shown}"
        raise refusal(path, "a transform that kreg saved", received, "use `save_transform`")
    if int(values["version"]) > VERSION:
        received = f"version {int(values['version'])}"
        raise refusal(path, f"a transform of version {VERSION}", received, "update kreg")
    fixed, moving = (
        Grid(
            tuple(values[f"{side}_shape"].tolist()),
            values[f"{side}_affine"],
            str(values[f"{side}_unit"]),
        )
        for side in ("fixed", "moving")
    )
    return Transform(values["matrix"], fixed, moving, values.get("field"))


def _write_npz(path: Path, transform: Transform) -> None:
    values: dict[str, Any] = {"format": FORMAT, "version": VERSION, "matrix": transform.matrix}
    for side, grid in (("fixed", transform.fixed), ("moving", transform.moving)):
        values |= {
            f"{side}_shape": np.asarray(grid.shape),
            f"{side}_affine": grid.affine,
            f"{side}_unit": grid.unit,
        }
    if transform.field is not None:
        values["field"] = np.asarray(transform.field)
    with path.open("wb") as file:
        np.savez(file, **values)


def _affine_parameters(path: Path, transform: Transform) -> np.ndarray:
    """Return ITK's parameters: the linear part row by row, then the translation."""
    remedy = "save a displacement field, .nii.gz"
    if transform.field is not None:
        raise refusal(path, "an affine transform", "one with a displacement", remedy)
    if transform.matrix[-1, :-1].any():
        expected = "an affine transform, as ITK has no homographies,"
        raise refusal(path, expected, "a homography", remedy)
    return np.concatenate([transform.matrix[:-1, :-1].ravel(), transform.matrix[:-1, -1]])


def _name(transform: Transform) -> str:
    dimensions = transform.fixed.dimensions
    return f"AffineTransform_double_{dimensions}_{dimensions}"


def _write_text(path: Path, transform: Transform) -> None:
    parameters = " ".join(f"{value:.17g}" for value in _affine_parameters(path, transform))
    centre = " ".join(["0"] * transform.fixed.dimensions)
    path.write_text(
        "#Insight Transform File V1.0\n"
        "#Transform 0\n"
        f"Transform: {_name(transform)}\n"
        f"Parameters: {parameters}\n"
        f"FixedParameters: {centre}\n",
        encoding="ascii",
    )


def _write_mat(path: Path, transform: Transform) -> None:
    import scipy.io

    parameters = _affine_parameters(path, transform)
    centre = np.zeros(transform.fixed.dimensions)
    values = {_name(transform): parameters[:, None], "fixed": centre[:, None]}
    with path.open("wb") as file:
        scipy.io.savemat(file, values, format="4")


def _write_field(path: Path, transform: Transform) -> None:
    grid, mapping = transform.fixed, transform.mapping
    vectors = np.empty((*grid.shape, grid.dimensions), "float32")
    for rows, voxels in pieces(grid.shape):
        there = carried(transform.moving.affine, mapping(voxels))
        vectors[rows] = there - carried(grid.affine, voxels)
    nifti.write_array(path, vectors, grid, vectors=True)


_WRITERS = {
    ".npz": _write_npz,
    ".tfm": _write_text,
    ".txt": _write_text,
    ".mat": _write_mat,
    ".nii": _write_field,
    ".nii.gz": _write_field,
}
