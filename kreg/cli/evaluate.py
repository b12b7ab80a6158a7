"""Measure how well images, label maps or landmarks agree, as they lie or carried by a transform.

usage: kreg evaluate [--transform T] [--fixed A --moving B] [--fixed_labels A --moving_labels B]
                     [--fixed_points A.csv --moving_points B.csv]

T is the folder of a registration or its transform.npz: the moving side is carried by it, and images
and maps are compared where it reaches, their overlap. Without one, both sides are compared as they
lie, the black beyond the edge of a warped image too; the images and maps then have to be of one
size and, in millimetres, of one frame.

  images     NCC and SSIM, 1 is best, and the overlap, a share of the fixed image
  labels     Dice, 1 is best, and HD95, the distance of the surfaces, 0 is best, of each label
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
    before = np.linalg.norm(points[0] - points[1], axis=-1)
    found |= {"TRE before mean": float(before.mean())}
    return found | _spread("TRE", errors) | _spread("rTRE", errors / diagonal)


def _spread(name: str, values: np.ndarray) -> dict[str, float]:
    return {
        f"{name} mean": float(values.mean()),
        f"{name} median": float(np.median(values)),
        f"{name} maximum": float(values.max()),
    }


def _laid_over(
    fixed: Path, moving: Path, transform, labels: bool
) -> tuple[list[io.Image], np.ndarray]:
    """Return both images on one grid, and where of it the moving one reaches."""
    pair = [io.read(path, labels=labels) for path in (fixed, moving)]
    inside = np.ones(pair[0].shape, bool)
    if transform is not None:
        reach = replace(pair[1], array=np.ones(pair[1].shape, "float32"))
        pair[1] = transform.apply(pair[1], pair[0].grid, labels=labels)
        inside = np.asarray(transform.apply(reach, pair[0].grid).array) > 1 - _ROUNDING
        if not inside.any():
            raise refusal(moving, f"an image that the transform lays over {fixed}", "no overlap")
    sizes = [(image.shape, image.channels or 1) for image in pair]
    if sizes[0] != sizes[1]:
        expected = f"the size {sizes[0][0]} and {sizes[0][1]} channels of the fixed image"
        received = f"{sizes[1][0]} and {sizes[1][1]} channels"
        raise refusal(moving, expected, received, "carry it by --transform")
    if transform is None:
        check_frame(pair[1], pair[0])
    return pair, inside


def _overlap(inside: np.ndarray, transform) -> dict[str, float]:
    return {} if transform is None else {"overlap": float(inside.mean())}


def _images(fixed: Path, moving: Path, transform) -> dict[str, Any]:
    pair, inside = _laid_over(fixed, moving, transform, labels=False)
    arrays = [np.asarray(image.array, "float32") for image in pair]
    for path, array in zip((fixed, moving), arrays, strict=True):
        if not np.isfinite(array).all():
            raise refusal(path, "finite values", "NaN or infinite values")
    fixed_batch, moving_batch = (
        (array if image.channels else array[..., None])[None]
        for array, image in zip(arrays, pair, strict=True)
    )
    data_range = float(arrays[0].max() - arrays[0].min())
    window = min(_WINDOW, *(size - 1 + size % 2 for size in pair[0].shape))
    if data_range == 0 or window < 3:
        received = f"{pair[0].shape} of one value" if data_range == 0 else f"{pair[0].shape}"
        raise refusal(fixed, "an image of 3 voxels or more, not of one value", received)
    start_keras()
    from kreg import metrics

    mask = inside.astype("float32")[None, ..., None]
    structure = metrics.ssim(fixed_batch, moving_batch, mask, data_range=data_range, window=window)
    return {
        "NCC": float(np.asarray(metrics.ncc(fixed_batch, moving_batch, mask))[0]),
        "SSIM": float(structure[0]),
        **_overlap(inside, transform),
    }


def _labels(fixed: Path, moving: Path, transform) -> dict[str, Any]:
    pair, inside = _laid_over(fixed, moving, transform, labels=True)
    maps = []
    for path, image in zip((fixed, moving), pair, strict=True):
        array = np.asarray(image.array)
        if image.channels not in (None, 1):
            received = f"{image.channels} channels"
            raise refusal(path, "a map of whole numbers, a label a voxel,", received)
        if (array != np.rint(array)).any() or max(-float(array.min()), float(array.max())) >= 2**63:
            received = f"dtype {array.dtype}, {array.min():g} to {array.max():g}"
            raise refusal(path, "a map of whole numbers of 64 bits, a label a voxel,", received)
        maps.append(np.where(inside, array.reshape(image.shape), 0).astype("int64")[None])
    names = [int(one) for one in np.union1d(*maps) if one != 0]
    if not names or len(names) > _MOST_LABELS:
        raise refusal(fixed, "a map of labels, some above 0,", f"{len(names)} labels")
    start_keras()
    from kreg import metrics

    dice = np.asarray(metrics.dice_labels(maps[0], maps[1], names))[0]
    distance = metrics.hd95(maps[0], maps[1], names, spacing=pair[0].spacing)[0]
    return {
        "Dice mean": float(dice.mean()),
        "HD95 mean": float(distance.mean()),
        "HD95 unit": pair[0].unit,
        **_overlap(inside, transform),
        "Dice": dict(zip(names, dice.tolist(), strict=True)),
        "HD95": dict(zip(names, distance.tolist(), strict=True)),
    }


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_text(one)}" for name, one in value.items())
    return str(value)
