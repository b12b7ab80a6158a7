"""kreg on ANHIR, pairs of histology sections in different stains (Borovec et al., TMI 2020).

    python -m benchmarks.anhir FOLDER               # dataset_medium.csv, images/, landmarks/
    python -m benchmarks.anhir FOLDER --table dataset_small.csv --similarity mine

The set: https://anhir.grand-challenge.org. The target is fixed, the source moving; source
landmarks are carried over to the target image. rTRE: distance there over the diagonal of the
target image. Of each pair its median, mean and maximum are taken; over the pairs, the challenge's
average (A) and median (M) of these: AMrTRE is the average of medians. Robustness: share of a pair's
landmarks that lie closer after registration than before. Coordinates are taken to count from 0 at
the centre of the first pixel.

Target landmarks of the challenge's evaluation pairs were not released: where the table has a column
"status", only "training" pairs are run unless --status says otherwise. Where one side has more
landmarks, the first ones of both sides correspond, as in the challenge.

A run that was stopped goes on where it was; see landmark_sets.py.
"""

import csv
import functools
import re
import sys
from pathlib import Path

import numpy as np

from benchmarks import landmark_sets
from benchmarks.landmark_sets import Outcome, Pair, Unusable, middle

TABLE = "dataset_medium.csv"
COLUMNS = ("Target image", "Source image", "Target landmarks", "Source landmarks")


def read_landmarks(path: Path) -> np.ndarray:
    """Return ``(n, 2)``, (row, column), from a table with columns X and Y.

    Raises:
        ValueError: naming the file and the line, if it cannot be read.
    """
    lines = landmark_sets.read_lines(path)
    head = [name.strip() for name in next(csv.reader(lines[:1]), [])]
    if "X" not in head or "Y" not in head:
        raise ValueError(
            f"Expected columns X and Y in {path}, line 1. Received: {', '.join(head)!r}."
        )
    found = []
    for number, line in enumerate(lines[1:], start=2):
        fields = next(csv.reader([line]), [])
        if any(field.strip() for field in fields):
            # A line of another length has no X and Y: decimal commas would pass for columns.
            whole = len(fields) == len(head)
            point = [fields[head.index(name)] for name in "YX"] if whole else []
            found.append(landmark_sets.numbers(point, "YX", path, number, line))
    if not found:
        raise ValueError(f"Expected landmarks in {path}. Received: a table without rows.")
    return np.array(found)


def _below(folder: Path, part: str, path: str) -> Path:
    """Return where a path of the table lies: in FOLDER/part, or in FOLDER itself."""
    inner = folder / part / path
    return inner if inner.exists() or not (folder / path).exists() else folder / path


def _tissue(path: str) -> str:
    """`lung-lesion_1/scale-5pc/29-041.jpg` -> "lung-lesion"."""
    return re.sub(r"_\d*$", "", path.split("/")[0])


def find_pairs(folder: Path, table: Path, status: str) -> list[Pair]:
    """Return the pairs of the table, in its order.

    Args:
        folder: holds the images and the landmarks.
        table: the CSV, or its name within the folder or its part "images".
        status: of the pairs wanted, "all" for any; a table without a column "status" is taken
            whole.

    Raises:
        Unusable: if there is no such table, or it lacks columns or rows.
    """
    places = [table, folder / table, folder / "images" / table]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise Unusable(
            f"Expected the table of pairs, {table}, in {folder}; --table names another. "
            "Received: no such file."
        )
    try:
        reader = csv.DictReader(landmark_sets.read_lines(found))
    except ValueError as error:
        raise Unusable(str(error)) from None
    rows, head = list(reader), reader.fieldnames or []
    missing = [name for name in COLUMNS if name not in head]
    if missing:
        raise Unusable(f"Expected columns {', '.join(missing)} in {found}. Received: {head}.")
    if "status" in head and status != "all":
        rows = [row for row in rows if row["status"] == status]
    if not rows:
        raise Unusable(f"Expected pairs (--status {status}) in {found}. Received: none.")
    pairs = []
    for row in rows:
        # A row that is too short has None where paths should be; the pair fails, not the run.
        target, source, *marks = [(row[name] or "").strip() for name in COLUMNS]
        files = tuple(_below(folder, "landmarks", path) for path in marks)
        pairs.append(
            Pair(
                name=f"{source} -> {target}",
                group=_tissue(target),
                fixed=_below(folder, "images", target),
                moving=_below(folder, "images", source),
                landmarks=files,
                read_landmarks=lambda files=files: tuple(map(read_landmarks, files)),
            )
        )
    return pairs


HEAD = (
    "pairs",
    "failed",
    "AMrTRE",
    "MMrTRE",
    "AArTRE",
    "MArTRE",
    "AMxrTRE",
    "MMxrTRE",
    "robustness",
    "NAED by height",
    "px, median",
    "before, median",
    "trusted",
    "of these better than before",
    "s a pair, median",
)


def robustness(outcome: Outcome) -> float:
    """Return the share of the landmarks that lie closer after registration; 0 for a failure."""
    return float(np.mean(outcome.errors < outcome.errors_before))


def _row(outcomes: list[Outcome]) -> list:
    statistics = [np.median, np.mean, np.max]
    values = [[float(f(o.relative_errors)) for o in outcomes] for f in statistics]
    averages = [f(of_pairs) for of_pairs in values for f in (lambda x: float(np.mean(x)), middle)]
    better = [o.errors.mean() < o.errors_before.mean() for o in outcomes if o.trusted]
    seconds = [outcome.seconds for outcome in outcomes if outcome.failure is None]
    return [
        len(outcomes),
        sum(outcome.failure is not None for outcome in outcomes),
        *averages,
        float(np.mean([robustness(outcome) for outcome in outcomes])),
        float(np.mean([outcome.naed_height for outcome in outcomes])),
        middle([middle(outcome.errors) for outcome in outcomes]),
        middle([middle(outcome.errors_before) for outcome in outcomes]),
        len(better),
        sum(better),
        middle(seconds) if seconds else "",
    ]


def table(outcomes: list[Outcome]) -> list[str]:
    """Return the table of tissues, then that of the pairs."""
    groups = {o.group: [p for p in outcomes if p.group == o.group] for o in outcomes}
    rows = landmark_sets.with_finished(dict(sorted(groups.items())) | {"all": outcomes})
    lines = landmark_sets.markdown_table(
        ("tissue", *HEAD), [(name, *_row(here)) for name, here in rows.items()]
    )
    pairs = [
        (
            outcome.name,
            *(float(f(outcome.relative_errors)) for f in (np.median, np.mean, np.max)),
            robustness(outcome),
            "yes" if outcome.trusted else "no",
        )
        for outcome in outcomes
    ]
    head = ("pair", "rTRE median", "mean", "max", "robustness", "trusted")
    return [*lines, "", *landmark_sets.markdown_table(head, pairs)]


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, register, print the tables; return the exit code."""
    parser = landmark_sets.parser("anhir", __doc__.splitlines()[0], "affine")
    parser.add_argument("--table", type=Path, default=Path(TABLE), help="the CSV of pairs")
    parser.add_argument("--status", default="training", help='or "evaluation", "all"')
    options = parser.parse_args(arguments)
    return landmark_sets.measure(
        f"ANHIR (--status {options.status})",
        functools.partial(find_pairs, options.folder, options.table, options.status),
        table,
        None,
        options,
    )


if __name__ == "__main__":
    sys.exit(main())
