"""Lay a moving image over a fixed one.

usage: kreg register FIXED MOVING --output FOLDER [options]

In FOLDER you find, once all is done:
  warped.*        the moving image on the grid of the fixed one, of its own kind; PNG in place of
                  JPEG, which would lose detail
  transform.npz   the transform, for `kreg apply` and `kreg.io.load_transform`
  report.html     to look at: do they fit, where not, what was done, how to do it again
  result.json     how well they fit, whether to trust it, the matrix, all options

Images may be PNG, JPEG, TIFF, NIfTI, NumPy, and with extras NRRD, MetaImage, DICOM and zarr,
2-D or 3-D, of unequal sizes. What scanners say of position and spacing is honoured.

Examples:
  kreg register fixed.png moving.png --output aligned
  kreg register mr.nii.gz pet.nii.gz --output aligned --transform rigid
  kreg register slice1.tif slice2.tif --output aligned --transform affine+dense --elastic 0.001
  kreg register visible.png infrared.png --output aligned --edges --fixed_mask seen.png
  kreg register a.nii.gz b.nii.gz --output aligned --export nii.gz   # for ANTs and 3D Slicer

Exit codes: 0 registered and trusted; 3 registered, all is written, but not trusted: look at it.
"""

import contextlib
import hashlib
import platform
import shlex
import time
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from kreg import io
from kreg.cli import images, method
from kreg.cli.method import Method
from kreg.cli.new_folder import RESULT, new_folder
from kreg.cli.outcome import DONE, NOT_TRUSTED, Outcome, UsageError, as_json
from kreg.cli.terminal import is_terminal, logged, say, start_keras, steps_told
from kreg.io.transform_files import check_field
from kreg.version import __version__

#: Shows a result; needs no network.
REPORT = "report.html"
#: No two images tell more of one another, in nats.
_MOST_INFORMATION = 5.0
_TO_TRY = "--edges, --transform similarity or rigid, masks, --start frames (see the report)"


def define(values: flags.FlagValues) -> None:
    """Define the options."""
    flags.DEFINE_string("output", None, "the folder of the results", flag_values=values)
    for side in ("fixed", "moving"):
        flags.DEFINE_string(
            f"{side}_mask",
            None,
            f"an image of the size of {side.upper()}: only where it is not 0 is looked at",
            flag_values=values,
        )
    method.define(values)


class PairFiles(NamedTuple):
    """The files of one pair."""

    fixed: str
    moving: str
    fixed_mask: str | None = None
    moving_mask: str | None = None


def run(arguments: list[str], values: flags.FlagValues) -> Outcome:
    """Register two files."""
    if len(arguments) != 2 or not values.output:
        raise UsageError(
            "Expected two images and --output FOLDER. Received: "
            f"{len(arguments)} images, --output {values.output or 'missing'}."
        )
    how = Method.of(values)
    pair = PairFiles(arguments[0], arguments[1], values.fixed_mask, values.moving_mask)
    output = Path(values.output)
    with logged(not values.json), new_folder(output, values.overwrite) as folder:
        result = align(pair, how, folder, compiled=False)
    files = " ".join(result["files"])
    lines = [*told(result), f"written to {output}: {files}"]
    if how.report:
        lines.append(f"look at it: {output / REPORT}")
    return Outcome({"output": str(output), **result}, lines, code_of(result))


def code_of(result: dict[str, Any]) -> int:
    """Return the exit code of a finished registration."""
    return DONE if result["trusted"] else NOT_TRUSTED


def align(pair: PairFiles, how: Method, folder: Path, *, compiled: bool = True) -> dict[str, Any]:
    """Register a pair of files, write all results into a folder, and return what result.json says.

    Args:
        pair: the files.
        how: the method.
        folder: where to write.
        compiled: whether so many pairs follow that all should be compiled, which takes a while.

    Raises:
        FileError: if a file cannot be read or written.
        ValueError: if the images cannot be registered.
    """
    start = time.perf_counter()
    read = [images.read_image(path) for path in (pair.fixed, pair.moving)]
    if "nii.gz" in how.export:  # now, not after the work
        check_field(pair.fixed, read[0].grid)
    given = (pair.fixed_mask, pair.moving_mask)
    masks = [
        None if path is None else images.read_mask(path, image)
        for path, image in zip(given, read, strict=True)
    ]
    start_keras()
    from kreg import backend
    from kreg.io import align as align_images

    say("looking for the transform ...")
    with contextlib.nullcontext() if compiled else backend.for_one_call():
        alignment = align_images.register(
            *read,
            fixed_mask=masks[0],
            moving_mask=masks[1],
            verbose=is_terminal(),
            callbacks=steps_told(),
            **how.options(),
        )
    files = _write(alignment, how, pair, folder)
    if how.report:
        from kreg import report

        report.write(
            folder / REPORT,
            alignment,
            fixed_mask=masks[0],
            moving_mask=masks[1],
            provenance=_provenance(pair, how, compiled),
        )
        files.append(REPORT)
    found = alignment.registration
    result = {
        "kreg": __version__,
        **pair._asdict(),
        "settings": how.settings(),
        "trusted": found.trusted,
        "reason": found.reason,
        "similarity_before": found.similarity_before,
        "similarity_after": found.similarity_after,
        "chance": found.chance,
        "runner_up": found.runner_up,
        "overlap": found.overlap,
        "fixed_unit": alignment.fixed.unit,
        "moving_unit": alignment.moving.unit,
        "matrix": alignment.transform.matrix.tolist(),
        "displacement": displacement(alignment.transform),
        "steps": len(found.history.get("stage", [])),
        "seconds": round(time.perf_counter() - start, 2),
        "files": [*files, RESULT],
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("keras", "numpy")},
        },
    }
    (folder / RESULT).write_text(as_json(result) + "\n", encoding="utf-8")
    return result


def _write(alignment, how: Method, pair: PairFiles, folder: Path) -> list[str]:
    """Write the warped image and the transform, and return the names of their files."""
    warped = alignment.warped
    name = f"warped{images.suffix_for(warped, pair.moving)}"
    io.write(folder / name, warped)
    names = [name, "transform.npz", *(f"transform.{suffix}" for suffix in how.export)]
    for name in names[1:]:
        io.save_transform(folder / name, alignment.transform, overwrite=True)
    return names


def _provenance(pair: PairFiles, how: Method, compiled: bool) -> dict[str, str]:
    """Return what to type to have the result again, and of which files."""
    masks = [f"--{side}={path}" for side, path in pair._asdict().items() if "mask" in side and path]
    typed = ["kreg", "register", pair.fixed, pair.moving, *masks, *how.arguments()]
    told = {"command": f"{shlex.join(typed)} --output=FOLDER"}
    if compiled:
        told["what it gives"] = (
            "the same but for rounding, as a rule to a hundredth of a voxel: on TensorFlow, "
            "`kreg batch` lets XLA compile many pairs, which the command for a single one does not."
        )
    for side, path in pair._asdict().items():
        if path is not None:
            told[f"{side} file".replace("_", " ")] = f"{path}{_fingerprint(Path(path))}"
    return told


def _fingerprint(path: Path) -> str:
    """Return what tells a file from others; "" for a folder."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f", {path.stat().st_size} bytes, SHA-256 {digest}"


def displacement(transform) -> dict[str, float] | None:
    """Return how long the displacements are, in the unit of the fixed image."""
    if transform.field is None:
        return None
    length = np.linalg.norm(transform.field * np.asarray(transform.fixed.spacing), axis=-1)
    return {"mean": float(length.mean()), "largest": float(length.max())}


def about_matrix(dimensions: int, fixed_unit: str, moving_unit: str) -> str:
    """Return what a world matrix takes, and from where to where it leads."""
    units = " to ".join(dict.fromkeys((fixed_unit, moving_unit)))
    return f"({', '.join('xyz'[:dimensions])}), fixed to moving, in {units}"


def told(result: dict[str, Any]) -> list[str]:
    """Return a result as lines to read."""
    verdict = "trusted" if result["trusted"] else "NOT TRUSTED"
    least = ""
    if result["chance"] < _MOST_INFORMATION:  # where another place fits as well, nothing is enough
        least = f"; to be trusted, above {result['chance']:.3f} on a coarse level"
    units = result["fixed_unit"], result["moving_unit"]
    lines = [
        f"{verdict}: {result['reason']}",
        f"  mutual information  {result['similarity_before']:.3f} before, "
        f"{result['similarity_after']:.3f} after{least}",
        f"  overlap             {result['overlap']:.0%}",
        f"  world matrix        {about_matrix(len(result['matrix']) - 1, *units)}",
    ]
    for row in result["matrix"]:
        lines.append("    " + " ".join(f"{value:11.5f}" for value in row))
    if result["displacement"]:
        mean, largest = result["displacement"]["mean"], result["displacement"]["largest"]
        lines.append(
            f"  displacement        {mean:.2f} on average, at most {largest:.2f} {units[0]}"
        )
    if not result["trusted"]:
        lines.append(f"  to try              {_TO_TRY}")
    return lines
