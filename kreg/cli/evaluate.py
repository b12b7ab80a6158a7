"""Measure how well images, label maps or landmarks agree, as they lie or carried by a transform.

usage: kreg evaluate [--transform T] [--fixed A --moving B] [--fixed_labels A --moving_labels B]
                     [--fixed_points A.csv --moving_points B.csv]

T is the folder of a registration or its transform.npz: the moving side is carried by it, and images
and maps are compared where it reaches, their overlap. "Before" is as they lie, and left out where
that means nothing. Without a transform, both sides are compared as they lie, the black beyond the
edge of a warped image too; the images and maps then have to be of one size and, in millimetres, of
one frame.

  images     NCC and SSIM, 1 is best, and the overlap, a share of the fixed image
  labels     Dice, 1 is best, and HD95, the distance of the surfaces, 0 is best, of each label
  points     TRE, the distance of landmarks, and rTRE, its share of the moving image's diagonal:
             columns x, y and in 3-D z, in the world of their image, row by row (kreg apply --help)

Examples:
  kreg evaluate --transform aligned --fixed fixed.png --moving moving.png
  kreg evaluate --transform aligned --fixed_points fixed.csv --moving_points moving.csv
  kreg evaluate --transform aligned --fixed_labels a.nii.gz --moving_labels b.nii.gz --json
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

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
    before = np.linalg.norm(points[0] - points[1], axis=-1)
    found |= {"TRE before mean": float(before.mean())}
    return found | _spread("TRE", errors) | _spread("rTRE", errors / diagonal)


def _spread(name: str, values: np.ndarray) -> dict[str, float]:
    return {
        f"{name} mean": float(values.mean()),
        f"{name} median": float(np.median(values)),
        f"{name} maximum": float(values.max()),
    }


class _Pair(NamedTuple):
    """A fixed and a moving image on one grid, and where of it the moving one reaches."""

    fixed: io.Image
    moving: io.Image
    inside: np.ndarray


def _images(fixed: Path, moving: Path, transform) -> dict[str, Any]:
    return _compared(_likeness, fixed, moving, transform, labels=False)


def _labels(fixed: Path, moving: Path, transform) -> dict[str, Any]:
    return _compared(_label_overlap, fixed, moving, transform, labels=True)


def _compared(
    compare: Callable[[_Pair], dict[str, Any]], fixed: Path, moving: Path, transform, labels: bool
) -> dict[str, Any]:
    """Return what a comparison says of two files and, where one is carried, said before."""
    pair = [io.read(path, labels=labels) for path in (fixed, moving)]
    shapes = [image.shape for image in pair]
    as_they_lie = _Pair(pair[0], pair[1], np.ones(shapes[0], bool))
    if transform is None:
        if shapes[0] != shapes[1]:
            expected = f"the size {shapes[0]} of the fixed image"
            raise refusal(moving, expected, f"{shapes[1]}", "carry it by --transform")
        check_frame(pair[1], pair[0])
        return compare(as_they_lie)
    carried = _laid_over(pair[0], pair[1], transform, labels)
    found = compare(carried) | {"overlap": float(carried.inside.mean())}
    if shapes[0] != shapes[1] or not pair[1].grid.agrees_with(pair[0].grid):
        return found  # as they lie, their voxels have nothing to do with one another
    return _as_before(compare(as_they_lie)) | found


def _laid_over(fixed: io.Image, moving: io.Image, transform, labels: bool) -> _Pair:
    reach = replace(moving, array=np.ones(moving.shape, "float32"))
    inside = np.asarray(transform.apply(reach, fixed.grid).array) > 1 - _ROUNDING
    if not inside.any():
        expected = f"an image that the transform lays over {fixed.source}"
        raise refusal(moving.source, expected, "no overlap")
    return _Pair(fixed, transform.apply(moving, fixed.grid, labels=labels), inside)


def _as_before(found: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a comparison by their names before: "Dice before mean"."""
    renamed = {}
    for name, value in found.items():
        if isinstance(value, float):
            kind, *statistic = name.split()
            renamed[" ".join([kind, "before", *statistic])] = value
    return renamed


def _likeness(pair: _Pair) -> dict[str, Any]:
    """NCC and SSIM of two images."""
    images = pair.fixed, pair.moving
    channels = [image.channels or 1 for image in images]
    if channels[0] != channels[1]:
        expected = f"as many channels as the fixed image has, {channels[0]},"
        remedy = "convert one of them, such as both to grey"
        raise refusal(pair.moving.source, expected, f"{channels[1]}", remedy)
    arrays = [np.asarray(image.array, "float32") for image in images]
    for image, array in zip(images, arrays, strict=True):
        if not np.isfinite(array).all():
            raise refusal(image.source, "finite values", "NaN or infinite values")
    fixed_batch, moving_batch = (
        (array if image.channels else array[..., None])[None]
        for array, image in zip(arrays, images, strict=True)
    )
    data_range = float(arrays[0].max() - arrays[0].min())
    shape = pair.fixed.shape
    window = min(_WINDOW, *(size - 1 + size % 2 for size in shape))
    if data_range == 0 or window < 3:
        received = f"{shape} of one value" if data_range == 0 else f"{shape}"
        expected = "an image of 3 voxels or more, not of one value"
        raise refusal(pair.fixed.source, expected, received)
    start_keras()
    from kreg import metrics

    mask = pair.inside.astype("float32")[None, ..., None]
    structure = metrics.ssim(fixed_batch, moving_batch, mask, data_range=data_range, window=window)
    return {
        "NCC": float(np.asarray(metrics.ncc(fixed_batch, moving_batch, mask))[0]),
        "SSIM": float(structure[0]),
    }


def _label_overlap(pair: _Pair) -> dict[str, Any]:
    """Dice and HD95 of two maps of labels."""
    maps = []
    for image in (pair.fixed, pair.moving):
        array = np.asarray(image.array)
        if image.channels not in (None, 1):
            expected = "a map of whole numbers, a label a voxel,"
            raise refusal(image.source, expected, f"{image.channels} channels")
        if (array != np.rint(array)).any() or max(-float(array.min()), float(array.max())) >= 2**63:
            expected = "a map of whole numbers of 64 bits, a label a voxel,"
            received = f"dtype {array.dtype}, {array.min():g} to {array.max():g}"
            raise refusal(image.source, expected, received)
        maps.append(np.where(pair.inside, array.reshape(image.shape), 0).astype("int64")[None])
    names = [int(one) for one in np.union1d(*maps) if one != 0]
    if not names or len(names) > _MOST_LABELS:
        raise refusal(pair.fixed.source, "a map of labels, some above 0,", f"{len(names)} labels")
    start_keras()
    from kreg import metrics

    dice = np.asarray(metrics.dice_labels(maps[0], maps[1], names))[0]
    distance = metrics.hd95(maps[0], maps[1], names, spacing=pair.fixed.spacing)[0]
    return {
        "Dice mean": float(dice.mean()),
        "HD95 mean": float(distance.mean()),
        "HD95 unit": pair.fixed.unit,
        "Dice": dict(zip(names, dice.tolist(), strict=True)),
        "HD95": dict(zip(names, distance.tolist(), strict=True)),
    }


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_text(one)}" for name, one in value.items())
    return str(value)
