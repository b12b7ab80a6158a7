"""Measure how well images, label maps or landmarks agree, as they lie or carried by a transform.

usage: kreg evaluate [--transform T] [--fixed A --moving B] [--fixed_labels A --moving_labels B]
                     [--fixed_points A.csv --moving_points B.csv]

T is the folder of a registration or its transform.npz: the moving side is carried by it. Images are
compared where it reaches, in their overlap; labels in all of the fixed image, so that one that is
carried out of it is lost. "Before" is as they lie, of the same voxels, and left out where that
means nothing. Without a transform, both sides are compared as they lie, the black beyond the edge
of a warped image too; the images and maps then have to be of one size and, in millimetres, of one
frame.

  images     NCC and SSIM, 1 is best, and the overlap, a share of the fixed image
  labels     Dice, 1 is best, and HD95, the distance of the surfaces, 0 is best, of each label; the
             mean of HD95 is of labels that both sides have
  points     TRE, the distance of landmarks, and rTRE, its share of the moving image's diagonal:
             columns x, y and in 3-D z, in the world of their image, row by row (kreg apply --help)

Examples:
  kreg evaluate --transform aligned --fixed fixed.png --moving moving.png
  kreg evaluate --transform aligned --fixed_points fixed.csv --moving_points moving.csv
  kreg evaluate --transform aligned --fixed_labels a.nii.gz --moving_labels b.nii.gz --json
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from kreg import io
from kreg.cli.apply import transform_of
from kreg.cli.images import check_frame
from kreg.cli.outcome import Outcome, UsageError
from kreg.cli.points import check_arrived, read_points, read_table
from kreg.cli.terminal import start_keras
from kreg.io.errors import refusal

_KINDS = {"": "image", "_labels": "map of labels", "_points": "table of points (.csv)"}
#: SSIM's window, unless an image is smaller.
_WINDOW = 7
#: Of an image of ones, carried.
_ROUNDING = 1e-3
#: More than this is no map of labels.
_MOST_LABELS = 10_000


def define(values: flags.FlagValues) -> None:
    """Define the options."""
    flags.DEFINE_string("transform", None, "carries the moving side", flag_values=values)
    for kind, what in _KINDS.items():
        for side in ("fixed", "moving"):
            flags.DEFINE_string(f"{side}{kind}", None, f"{what}, {side}", flag_values=values)


def run(arguments: list[str], values: flags.FlagValues) -> Outcome:
    """Compare what is given."""
    given = {kind: (values[f"fixed{kind}"].value, values[f"moving{kind}"].value) for kind in _KINDS}
    halves = [kind for kind, files in given.items() if files.count(None) == 1]
    if arguments or halves or not any(files[0] for files in given.values()):
        received = " ".join(arguments) or (f"half of --fixed{halves[0]}" if halves else "nothing")
        raise UsageError(
            "Expected two files of a kind, such as --fixed_points A.csv --moving_points B.csv. "
            f"Received: {received}."
        )
    transform = None if values.transform is None else transform_of(Path(values.transform))
    found: dict[str, Any] = {}
    for kind, compare in (("_points", _points), ("", _images), ("_labels", _labels)):
        fixed, moving = given[kind]
        if fixed is not None and moving is not None:
            found |= compare(Path(fixed), Path(moving), transform)
    return Outcome(found, [f"{name:24} {_text(value)}" for name, value in found.items()])


def _points(fixed: Path, moving: Path, transform) -> dict[str, Any]:
    """TRE = ||T p - q||, in the moving world."""
    if transform is None:
        dimensions = 2 if read_table(fixed, "x, y").column("z") is None else 3
    else:
        dimensions = transform.fixed.dimensions
    points = [read_points(path, dimensions)[1] for path in (fixed, moving)]
    if len(points[0]) != len(points[1]):
        received = f"{len(points[1])} of {len(points[0])}"
        raise refusal(moving, "as many landmarks as in the fixed image", received)
    found: dict[str, Any] = {"landmarks": len(points[0])}
    if transform is None:
        return found | _spread("TRE", np.linalg.norm(points[0] - points[1], axis=-1))
    there = transform.transform_world_points(points[0])
    check_arrived(fixed, there)
    errors = np.linalg.norm(there - points[1], axis=-1)
    grid = transform.moving
    diagonal = float(np.linalg.norm(np.multiply(grid.shape, grid.spacing)))
    found |= {"unit": grid.unit}
    of_scanner = grid.unit == transform.fixed.unit == "mm"
    if of_scanner or (grid.unit, grid.shape) == (transform.fixed.unit, transform.fixed.shape):
        before = np.linalg.norm(points[0] - points[1], axis=-1)
        found |= {"TRE before mean": float(before.mean())}
    return found | _spread("TRE", errors) | _spread("rTRE", errors / diagonal)


def _spread(name: str, values: np.ndarray) -> dict[str, float]:
    return {
        f"{name} mean": float(values.mean()),
        f"{name} median": float(np.median(values)),
        f"{name} maximum": float(values.max()),
    }


def _images(fixed: Path, moving: Path, transform) -> dict[str, Any]:
    one, other = io.read(fixed), io.read(moving)
    if transform is None:
        _check_comparable(one, other)
        return _likeness(one, other, np.ones(one.shape, bool))
    carried = transform.apply(other, one.grid)
    reach = replace(other, array=np.ones(other.shape, "float32"))
    inside = np.asarray(transform.apply(reach, one.grid).array) > 1 - _ROUNDING
    if not inside.any():
        raise refusal(moving, f"an image that the transform lays over {fixed}", "no overlap")
    found = _likeness(one, carried, inside) | {"overlap": float(inside.mean())}
    if _is_comparable(one, other):
        found = _as_before(_likeness(one, other, inside)) | found
    return found


def _labels(fixed: Path, moving: Path, transform) -> dict[str, Any]:
    one, other = (io.read(path, labels=True) for path in (fixed, moving))
    map_of_one, map_of_other = _label_map(one), _label_map(other)
    names = [int(label) for label in np.union1d(map_of_one, map_of_other) if label != 0]
    if not names or len(names) > _MOST_LABELS:
        raise refusal(fixed, "a map of labels, some above 0,", f"{len(names)} labels")
    if transform is None:
        _check_comparable(one, other)
        return _label_overlap(map_of_one, map_of_other, names, one.grid)
    carried = _label_map(transform.apply(other, one.grid, labels=True))
    found = _label_overlap(map_of_one, carried, names, one.grid)
    if _is_comparable(one, other):
        found = _as_before(_label_overlap(map_of_one, map_of_other, names, one.grid)) | found
    return found


def _is_comparable(fixed: io.Image, moving: io.Image) -> bool:
    """Whether their voxels have to do with one another as they lie."""
    return fixed.shape == moving.shape and moving.grid.agrees_with(fixed.grid)


def _check_comparable(fixed: io.Image, moving: io.Image) -> None:
    if fixed.shape != moving.shape:
        expected = f"the size {fixed.shape} of the fixed image"
        raise refusal(moving.source, expected, f"{moving.shape}", "carry it by --transform")
    check_frame(moving, fixed)


def _as_before(found: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a comparison by their names before: "Dice before mean"."""
    renamed = {}
    for name, value in found.items():
        if isinstance(value, float):
            kind, *statistic = name.split()
            renamed[" ".join([kind, "before", *statistic])] = value
    return renamed


def _likeness(fixed: io.Image, moving: io.Image, inside: np.ndarray) -> dict[str, Any]:
    """NCC and SSIM of two images, where `inside` says."""
    images = fixed, moving
    channels = [image.channels or 1 for image in images]
    if channels[0] != channels[1]:
        expected = f"as many channels as the fixed image has, {channels[0]},"
        remedy = "convert one of them, such as both to grey"
        raise refusal(moving.source, expected, f"{channels[1]}", remedy)
    arrays = [np.asarray(image.array, "float32") for image in images]
    for image, array in zip(images, arrays, strict=True):
        if not np.isfinite(array).all():
            raise refusal(image.source, "finite values", "NaN or infinite values")
    fixed_batch, moving_batch = (
        (array if image.channels else array[..., None])[None]
        for array, image in zip(arrays, images, strict=True)
    )
    data_range = float(arrays[0].max() - arrays[0].min())
    shape = fixed.shape
    window = min(_WINDOW, *(size - 1 + size % 2 for size in shape))
    if data_range == 0 or window < 3:
        received = f"{shape} of one value" if data_range == 0 else f"{shape}"
        expected = "an image of 3 voxels or more, not of one value"
        raise refusal(fixed.source, expected, received)
    start_keras()
    from kreg import metrics

    mask = inside.astype("float32")[None, ..., None]
    structure = metrics.ssim(fixed_batch, moving_batch, mask, data_range=data_range, window=window)
    return {
        "NCC": float(np.asarray(metrics.ncc(fixed_batch, moving_batch, mask))[0]),
        "SSIM": float(structure[0]),
    }


def _label_map(image: io.Image) -> np.ndarray:
    """Return the labels of a map, integers, or say that it is none."""
    array = np.asarray(image.array)
    if image.channels not in (None, 1):
        expected = "a map of whole numbers, a label a voxel,"
        raise refusal(image.source, expected, f"{image.channels} channels")
    if (array != np.rint(array)).any() or max(-float(array.min()), float(array.max())) >= 2**63:
        expected = "a map of whole numbers of 64 bits, a label a voxel,"
        received = f"dtype {array.dtype}, {array.min():g} to {array.max():g}"
        raise refusal(image.source, expected, received)
    return array.reshape(image.shape).astype("int64")


def _label_overlap(
    fixed: np.ndarray, moving: np.ndarray, names: list[int], grid: io.Grid
) -> dict[str, Any]:
    """Dice and HD95 of two maps of labels: what one side alone has has no distance."""
    start_keras()
    from kreg import metrics

    dice = np.asarray(metrics.dice_labels(fixed[None], moving[None], names))[0]
    dice = np.nan_to_num(dice, nan=0.0)  # carried out of the fixed image: lost
    distance = metrics.hd95(fixed[None], moving[None], names, spacing=grid.spacing)[0]
    met = np.isfinite(distance)
    return {
        "Dice mean": float(dice.mean()),
        "HD95 mean": float(distance[met].mean()) if met.any() else np.inf,
        "HD95 unit": grid.unit,
        **({} if met.all() else {"labels without HD95": int((~met).sum())}),
        "Dice": dict(zip(names, dice.tolist(), strict=True)),
        "HD95": dict(zip(names, distance.tolist(), strict=True)),
    }


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_text(one)}" for name, one in value.items())
    return str(value)
