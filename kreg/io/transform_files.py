"""Transforms in files: kreg's own format, and those of ITK and ANTs."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from kreg.io import nifti
from kreg.io.arrays import load_npz
from kreg.io.errors import FileError, check_file, reason, refusal
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
    * ``fixed_shape, fixed_affine, fixed_unit, moving_shape, ...``: the grids (`Grid`), and
      ``fixed_plane, moving_plane`` of 2-D images that are slices of scans.

    For other programs, which send world points of the fixed to world points of the moving image:

    * ``.tfm``, ``.txt``: ITK's text file of an affine transform (SimpleITK, ANTs, 3D Slicer).
    * ``.mat``: ITK's binary file of an affine transform, as ANTs has it.
    * ``.nii``, ``.nii.gz``: a displacement field on the fixed grid, vectors in the world (LPS),
      intent 1007, as ANTs has it. It holds every transform, exactly at the voxels of the grid;
      beyond the grid it moves nothing. Axes have to be at right angles: ITK has no others.

    Between two slices of scans, which other programs read as volumes, these are 3-D.

    Args:
        path: the file. Its folder must be there.
        transform: what to write.
        overwrite: whether to replace a file of that name.

    Raises:
        FileError: if the format cannot hold the transform (ITK has no homographies, its affine
            files no displacements, its fields no shears), the file exists, or cannot be written.
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
    check_file(path, "a transform")
    try:
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
            values.get(f"{side}_plane"),
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
        if grid.plane is not None:
            values[f"{side}_plane"] = grid.plane
    if transform.field is not None:
        values["field"] = np.asarray(transform.field)
    with path.open("wb") as file:
        np.savez(file, **values)


def check_field(path: Path | str, fixed: Grid) -> None:
    """Raise `FileError` unless ITK can read a displacement field on the grid."""
    if fixed.sheared:
        expected = "a fixed image whose axes are at right angles, as ITK has no others,"
        remedy = "resample it, or save the transform as .npz"
        raise refusal(path, expected, "an affine with shears", remedy)


def _between_scans(transform: Transform) -> bool:
    """Whether both images are slices of scans, which other programs read as volumes."""
    return transform.fixed.plane is not None and transform.moving.plane is not None


def _affine(path: Path, transform: Transform) -> np.ndarray:
    """Return the matrix ``(D + 1, D + 1)``, 3-D between slices of scans."""
    remedy = "save a displacement field, .nii.gz"
    if transform.field is not None:
        raise refusal(path, "an affine transform", "one with a displacement", remedy)
    if transform.matrix[-1, :-1].any():
        expected = "an affine transform, as ITK has no homographies,"
        raise refusal(path, expected, "a homography", remedy)
    if not _between_scans(transform):
        return transform.matrix
    whole = np.eye(4)
    whole[np.ix_([0, 1, 3], [0, 1, 3])] = transform.matrix
    return transform.moving.plane @ whole @ np.linalg.inv(transform.fixed.plane)


def _parameters(matrix: np.ndarray) -> np.ndarray:
    """Return ITK's parameters: the linear part row by row, then the translation."""
    return np.concatenate([matrix[:-1, :-1].ravel(), matrix[:-1, -1]])


def _name(matrix: np.ndarray) -> str:
    dimensions = len(matrix) - 1
    return f"AffineTransform_double_{dimensions}_{dimensions}"


def _write_text(path: Path, transform: Transform) -> None:
    matrix = _affine(path, transform)
    parameters = " ".join(f"{value:.17g}" for value in _parameters(matrix))
    centre = " ".join(["0"] * (len(matrix) - 1))
    path.write_text(
        "#Insight Transform File V1.0\n"
        "#Transform 0\n"
        f"Transform: {_name(matrix)}\n"
        f"Parameters: {parameters}\n"
        f"FixedParameters: {centre}\n",
        encoding="ascii",
    )


def _write_mat(path: Path, transform: Transform) -> None:
    import scipy.io

    matrix = _affine(path, transform)
    centre = np.zeros(len(matrix) - 1)
    values = {_name(matrix): _parameters(matrix)[:, None], "fixed": centre[:, None]}
    with path.open("wb") as file:
        scipy.io.savemat(file, values, format="4")


def _write_field(path: Path, transform: Transform) -> None:
    check_field(path, transform.fixed)
    fixed, moving, mapping = transform.fixed, transform.moving, transform.mapping
    here, there, grid = fixed.affine, moving.affine, Grid(fixed.shape, fixed.affine, fixed.unit)
    if _between_scans(transform):  # of a slice the third index is 0
        here, there = (np.delete(one.scan, 2, 1) for one in (fixed, moving))
        grid = Grid((*fixed.shape, 2), fixed.scan, fixed.unit)
    vectors = np.empty((*fixed.shape, grid.dimensions), "float32")
    for rows, voxels in pieces(fixed.shape):
        vectors[rows] = carried(there, mapping(voxels)) - carried(here, voxels)
    if _between_scans(transform):  # twice, for ITK takes one slice of vectors for 2-D
        vectors = np.stack([vectors, vectors], axis=2)
    nifti.write_array(path, vectors, grid, vectors=True)


_WRITERS = {
    ".npz": _write_npz,
    ".tfm": _write_text,
    ".txt": _write_text,
    ".mat": _write_mat,
    ".nii": _write_field,
    ".nii.gz": _write_field,
}
