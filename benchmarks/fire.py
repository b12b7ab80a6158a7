"""kreg on FIRE, 134 pairs of retina photographs with control points (Hernandez-Matas et al., 2017).

    python -m benchmarks.fire FOLDER                        # Images/, Ground Truth/, Masks/
    python -m benchmarks.fire FOLDER --limit 5 --similarity mine

The set: https://projects.ics.forth.gr/cvrl/fire/. Image 1 of a pair is fixed, image 2 moving; the
control points of image 2 are carried over to image 1, at native size, and the error of a pair is
their mean distance there. Classes: S, 71 pairs with large overlap; P, 49 with small overlap; A, 14
with anatomical changes. Coordinates count from 0 at the centre of the first pixel.

The control points of P37 are known to be wrong, and many publications leave that pair out: there
are rows for either.

A run that was stopped goes on where it was; see landmark_sets.py.
"""

import functools
import re
import sys
from pathlib import Path

import numpy as np

from benchmarks import landmark_sets
from benchmarks.landmark_sets import Outcome, Pair, Unusable, middle
from kreg.metrics.landmarks import fire_auc

#: Class -> how many pairs the whole set has.
CLASSES = {"S": 71, "P": 49, "A": 14}
WRONG = "P37"
#: Pixels: beyond this a pair adds nothing to the AUC.
LIMIT = 25


def read_control_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the points of image 1 and of image 2, (row, column), from lines "x1 y1 x2 y2".

    Raises:
        ValueError: naming the file and the line, if it cannot be read.
    """
    rows = [
        landmark_sets.numbers(line.split(), ("x1", "y1", "x2", "y2"), path, number, line)
        for number, line in enumerate(landmark_sets.read_lines(path), start=1)
        if line.strip()
    ]
    if not rows:
        raise ValueError(f"Expected control points in {path}. Received: an empty file.")
    points = np.array(rows)
    return points[:, 1::-1], points[:, :1:-1]


def find_pairs(folder: Path) -> list[Pair]:
    """Return all pairs that have an image or control points, in order of their names.

    Raises:
        Unusable: if the folder does not hold the set.
    """
    images, truth = folder / "Images", folder / "Ground Truth"
    if not (images.is_dir() and truth.is_dir()):
        raise Unusable(
            f"Expected a folder that holds 'Images' and 'Ground Truth'. Received: {folder}."
        )
    found = [re.fullmatch(r"([SPA]\d+)_[12]\.jpg", path.name) for path in images.iterdir()]
    found += [
        re.fullmatch(r"control_points_([SPA]\d+)_1_2\.txt", path.name) for path in truth.iterdir()
    ]
    names = sorted({match[1] for match in found if match})
    if not names:
        raise Unusable(f"Expected images such as S01_1.jpg in {images}. Received: none.")
    mask = folder / "Masks" / "mask.png"
    if not mask.exists():
        print(f"No {mask}: whole frames are registered.", file=sys.stderr)
    return [
        Pair(
            name=name,
            group=name[0],
            fixed=images / f"{name}_1.jpg",
            moving=images / f"{name}_2.jpg",
            landmarks=(truth / f"control_points_{name}_1_2.txt",),
            read_landmarks=functools.partial(
                read_control_points, truth / f"control_points_{name}_1_2.txt"
            ),
            mask=mask if mask.exists() else None,
        )
        for name in names
    ]


HEAD = (
    "pairs",
    "failed",
    "AUC",
    "error px, median",
    "mean",
    "before, median",
    "NAED by height",
    "by diagonal",
    f"< {LIMIT} px",
    "trusted",
    f"of these < {LIMIT} px",
    "s a pair, median",
)


def _auc(outcomes: list[Outcome]) -> float:
    errors = [outcome.errors.mean() for outcome in outcomes]
    return float(landmark_sets.as_array(fire_auc(errors)))


def _row(outcomes: list[Outcome]) -> list:
    errors = [outcome.errors.mean() for outcome in outcomes]
    trusted = [outcome.errors.mean() for outcome in outcomes if outcome.trusted]
    seconds = [outcome.seconds for outcome in outcomes if outcome.failure is None]
    return [
        len(outcomes),
        sum(outcome.failure is not None for outcome in outcomes),
        _auc(outcomes),
        middle(errors),
        float(np.mean(errors)),
        middle([outcome.errors_before.mean() for outcome in outcomes]),
        float(np.mean([outcome.naed_height for outcome in outcomes])),
        float(np.mean([outcome.naed_diagonal for outcome in outcomes])),
        sum(error < LIMIT for error in errors),
        len(trusted),
        sum(error < LIMIT for error in trusted),
        middle(seconds) if seconds else "",
    ]


def table(outcomes: list[Outcome]) -> list[str]:
    """Return the table of classes, with the mean of their AUCs below."""
    rows = {name: [o for o in outcomes if o.group == name] for name in CLASSES}
    rows = {name: here for name, here in rows.items() if here}
    aucs = [_auc(here) for here in rows.values()]
    rows["all"] = outcomes
    others = [outcome for outcome in outcomes if outcome.name != WRONG]
    if 0 < len(others) < len(outcomes):
        rows[f"P without {WRONG}"] = [outcome for outcome in others if outcome.group == "P"]
        rows[f"all without {WRONG}"] = others
    rows = landmark_sets.with_finished({name: here for name, here in rows.items() if here})
    lines = landmark_sets.markdown_table(
        ("class", *HEAD), [(name, *_row(here)) for name, here in rows.items()]
    )
    return [*lines, "", f"Mean of the AUCs of these classes: {np.mean(aucs):.4g}."]


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, register, print the table; return the exit code."""
    parser = landmark_sets.parser("fire", __doc__.splitlines()[0], "homography")
    options = parser.parse_args(arguments)
    return landmark_sets.measure(
        "FIRE",
        functools.partial(find_pairs, options.folder),
        table,
        sum(CLASSES.values()),
        options,
    )


if __name__ == "__main__":
    sys.exit(main())
