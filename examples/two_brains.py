"""Lay one person's brain over another's, in 3-D: affine, then a displacement, without training.

    python examples/two_brains.py            # about a minute on two cores
    python examples/two_brains.py --quick    # at 4 mm, to see that everything runs

The scans come from the folder that the environment variable KREG_DATA names (brain3d: two
skull-stripped brains of OASIS and their labels of 13 structures). Labels are not used for the
registration: warped by what it found, they tell how well structures meet (Dice). The script leaves
a figure and a table in a folder (default: a new one in outputs/).
"""

import kreg  # first: it silences TensorFlow's greeting

# isort: split
import json
import os
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
from absl import app, flags
from matplotlib.figure import Figure

FLAGS = flags.FLAGS

#: FreeSurfer's numbers, left and right, in the order of the other brain's channels.
STRUCTURES = {
    "thalamus": (10, 49),
    "cerebellar cortex": (8, 47),
    "lateral ventricle": (4, 43),
    "cerebellar white matter": (7, 46),
    "putamen": (12, 51),
    "caudate": (11, 50),
    "pallidum": (13, 52),
    "hippocampus": (17, 53),
    "amygdala": (18, 54),
    "cortex": (3, 42),
    "third ventricle": (14,),
    "fourth ventricle": (15,),
    "brain stem": (16,),
}


def define_flags():
    """Define the command line."""
    flags.DEFINE_string("data", None, "folder of the scans; that of KREG_DATA if left out")
    flags.DEFINE_string("output", None, "new folder to write; one in outputs/ if left out")
    flags.DEFINE_bool("quick", False, "volumes at 4 mm: a check, not a result")


# --- data ---


def load(folder, size):
    """Return fixed, its labels, moving, its labels; voxels of `size` mm, labels counted from 1."""
    crop = np.s_[48:208, 32:224, 16:240]  # to the frame of the other scan
    fixed = nibabel.load(folder / "c2fvit_image_A.nii.gz").get_fdata(dtype="float32")[crop]
    onehot = nibabel.load(folder / "c2fvit_image_A_seg35_onehot.nii.gz").dataobj
    parts = np.asarray(onehot)[crop][::size, ::size, ::size]
    fixed_labels = np.where(parts.max(-1) > 0.5, parts.argmax(-1) + 1, 0)
    stored = np.load(folder / "voxelmorph_test_scan.npz")
    moving_labels = np.zeros(stored["seg"].shape, int)
    for number, group in enumerate(STRUCTURES.values(), 1):
        moving_labels[np.isin(stored["seg"], group)] = number
    moving_labels = moving_labels[::size, ::size, ::size]
    return averaged(fixed, size), fixed_labels, averaged(stored["vol"], size), moving_labels


def averaged(volume, size):
    """Return the means of size^3 voxels."""
    a, b, c = (n // size for n in volume.shape)
    blocks = volume.astype("float32").reshape(a, size, b, size, c, size)
    return blocks.mean((1, 3, 5))


# --- registration ---


def align(fixed, moving, size):
    """Find the matrix, then the displacement on top of it.

    A small `spacing` follows the folds of the cortex; `fluid` alone lets it go far, and keeps it
    from folding.
    """
    return kreg.register(
        fixed,
        moving,
        transform=kreg.transforms.Composed(
            kreg.transforms.Linear(kreg.groups.Affine()),
            kreg.transforms.Dense(spacing=2, elastic=0, fluid=0.1),
        ),
        preparation=kreg.pairwise.Standardisation(),
        schedule=kreg.pairwise.CoarseToFine((10, 10, 15)),
        fixed_spacing=(size,) * 3,
        moving_spacing=(size,) * 3,
        verbose=sys.stdout.isatty(),
    )


def score(fixed_labels, labels):
    """Return Dice's coefficient of each structure."""
    pairs = {name: (fixed_labels == i, labels == i) for i, name in enumerate(STRUCTURES, 1)}
    return {
        name: float(2 * np.sum(a & b) / max(np.sum(a) + np.sum(b), 1))
        for name, (a, b) in pairs.items()
    }


# --- output ---


def slices(volume):
    """Return the middle slices along each axis, heads up."""
    middle = [n // 2 for n in volume.shape[:3]]
    return [np.rot90(np.take(volume, at, axis)) for axis, at in enumerate(middle)]


def draw(fixed, moving, warped, volume_change):
    """Return a figure: fixed, moving and warped brain, what is left, where volume changed."""
    rows = {
        "fixed": fixed,
        "moving": moving,
        "warped": warped,
        "warped - fixed": warped - fixed,
        "log volume change": np.log(np.maximum(volume_change, 1e-2)),
    }
    figure = Figure(figsize=(13, 8), layout="constrained")
    grid = figure.subplots(3, len(rows), squeeze=False)
    for column, (name, volume) in zip(grid.T, rows.items(), strict=True):
        signed = name in ("warped - fixed", "log volume change")
        limit = 0.5 if name == "warped - fixed" else 1.5
        options = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit} if signed else {"cmap": "gray"}
        for axes, plane in zip(column, slices(volume), strict=True):
            shown = axes.imshow(plane, **options)
            axes.set_axis_off()
        column[0].set_title(name)
        if signed:
            figure.colorbar(shown, ax=list(column), shrink=0.5)
    return figure


def new_folder(path):
    """Return a new folder: `path`, or the next free one in outputs/."""
    if path is None:
        path = next(
            p for n in range(1, 10_000) if not (p := Path(f"outputs/two_brains-{n}")).exists()
        )
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"Expected an output folder that does not exist. Received: {path}.")
    path.mkdir(parents=True)
    return path


def main(arguments):
    """Register, score, draw."""
    if len(arguments) > 1:
        raise app.UsageError(f"Expected flags only. Received: {arguments[1:]}.")
    data = FLAGS.data or os.environ.get("KREG_DATA")
    folder = Path(data or ".") / "brain3d"
    if not folder.is_dir():
        raise app.UsageError(
            "Expected a folder of scans by --data or the environment variable KREG_DATA. "
            f"Received: {data}, which has no brain3d."
        )
    size = 4 if FLAGS.quick else 2
    fixed, fixed_labels, moving, moving_labels = load(folder, size)
    fixed, moving = fixed / fixed.max(), moving / moving.max()
    print(f"Two brains of {fixed.shape} voxels of {size} mm")
    start = time.perf_counter()
    found = align(fixed, moving, size)
    seconds = time.perf_counter() - start
    warped_labels = found.warp(moving_labels, sampler=kreg.ops.sample_nearest)[..., 0]
    before, after = score(fixed_labels, moving_labels), score(fixed_labels, warped_labels)
    volume = np.asarray(kreg.ops.jacobian_determinant(found.field[None]))[0]

    width = max(map(len, STRUCTURES))
    print(f"\n{'Dice':{width}}  before  after")
    for name in STRUCTURES:
        print(f"{name:{width}}  {before[name]:6.3f}  {after[name]:5.3f}")
    means = [float(np.mean(list(part.values()))) for part in (before, after)]
    print(f"{'mean':{width}}  {means[0]:6.3f}  {means[1]:5.3f}")
    folds = 100 * np.mean(volume <= 0)
    print(f"Folds: {folds:.3f} % of the voxels; {seconds:.0f} s with compiling")
    print(f"Trusted: {found.trusted} ({found.reason})")
    output = new_folder(FLAGS.output)
    draw(fixed, moving, found.warped[..., 0], volume).savefig(output / "two_brains.png", dpi=100)
    report = {"mm": size, "seconds": seconds, "before": before, "after": after,
              "trusted": found.trusted, "reason": found.reason}  # fmt: skip
    (output / "scores.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"Written to {output}: scores.json, two_brains.png")


if __name__ == "__main__":
    define_flags()
    app.run(main)
