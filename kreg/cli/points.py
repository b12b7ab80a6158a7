"""Points in CSV files: columns x, y and, in 3-D, z, in the world of an image."""

import csv
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kreg.io.errors import check_file, reason, refusal
from kreg.io.files import replacing


class Table(NamedTuple):
    """A CSV file with a header."""

    header: list[str]
    rows: list[list[str]]

    def column(self, name: str) -> int | None:
        """Return the place of a column, whatever its case; None if there is none."""
        names = [one.strip().lower() for one in self.header]
        return names.index(name) if name in names else None


def read_table(path: Path, columns: str) -> Table:
    """Return a CSV file, of which empty lines are left out.

    Args:
        path: the file.
        columns: what it should hold, for messages.

    Raises:
        FileError: if it cannot be read, has no rows, or rows of unequal length.
    """
    expected = f"a CSV file with a header and the columns {columns}"
    check_file(path, expected)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file, strict=True) if any(map(str.strip, row))]
    except UnicodeDecodeError as error:
        raise refusal(path, expected, "bytes that are no text", "save it as UTF-8") from error
    except (OSError, ValueError, csv.Error) as error:
        raise refusal(path, expected, reason(error)) from error
    if len(rows) < 2:
        raise refusal(path, expected, f"{len(rows)} lines")
    header, *rows = rows
    if len(header) == 1 and {*";\t"} & {*header[0]}:
        received = "semicolons" if ";" in header[0] else "tabs"
        remedy = "export it with commas between values, and points in numbers"
        raise refusal(path, expected, f"values apart by {received}", remedy)
    if all(map(_is_number, header)):
        raise refusal(path, expected, f"'{','.join(header)}' in the first row", "add the header")
    names = [name.strip().lower() for name in header if name.strip()]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise refusal(path, f"{expected}, each once,", f"'{twice[0]}' twice", "rename one")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            received = f"{len(row)} values in row {number}, {len(header)} columns"
            raise refusal(path, expected, received)
    return Table(header, rows)


def _is_number(text: str) -> bool:
    try:
        _number(text)
    except ValueError:
        return False
    return True


def read_points(path: Path, dimensions: int) -> tuple[Table, Any]:
    """Return a table, and its points ``(n, D)`` in the world, float64.

    Raises:
        FileError: if it is no such table, or holds what is no number.
    """
    names = "xyz"[:dimensions]
    expected = f"the columns {', '.join(names)}"
    table = read_table(path, ", ".join(names))
    places = [table.column(name) for name in names]
    if None in places:
        raise refusal(path, expected, f"the columns {', '.join(table.header)}")
    if dimensions == 2 and table.column("z") is not None:
        raise refusal(path, "points of two coordinates, as the images are 2-D,", "a column z")
    points = np.empty((len(table.rows), dimensions))
    for number, row in enumerate(table.rows, 1):
        try:
            points[number - 1] = [_number(row[place]) for place in places if place is not None]
        except ValueError as error:
            raise refusal(path, f"numbers in {expected}", f"{reason(error)} in row {number}") from (
                error
            )
    if not np.isfinite(points).all():
        raise refusal(path, f"finite numbers in {expected}", "NaN or infinity", "leave those out")
    return table, points


def _number(text: str) -> float:
    if "_" in text:  # which Python takes for digits in groups
        raise ValueError(f"could not convert string to float: {text!r}")
    return float(text)


def check_arrived(path: Path, points: Any) -> None:
    """Raise `FileError` if some points ``(n, D)`` are carried nowhere."""
    lost = np.flatnonzero(~np.isfinite(points).all(-1))
    if lost.size:
        received = f"{lost.size} that it carries nowhere, the first in row {lost[0] + 1}"
        raise refusal(path, "points that the transform carries", received, "leave those out")


def write_points(path: Path, table: Table, points: Any, overwrite: bool) -> None:
    """Write a table whose points have moved; other columns stay."""
    places = [table.column(name) for name in "xyz"[: points.shape[1]]]
    rows = []
    for row, point in zip(table.rows, points.tolist(), strict=True):
        moved = list(row)
        for place, value in zip(places, point, strict=True):
            if place is not None:
                moved[place] = f"{value:.6f}"
        rows.append(moved)
    write_rows(path, [table.header, *rows], overwrite)


def write_rows(path: Path, rows: list[list[Any]], overwrite: bool) -> None:
    """Write a CSV file, whole or not at all."""
    with (
        replacing(path, overwrite) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows(rows)


def check_output(path: Path, overwrite: bool) -> None:
    """Raise `FileError` unless a file may be written: before the work, not after."""
    if path.is_dir():
        raise refusal(path, "the name of a file", "a folder")
    if not path.parent.is_dir():
        raise refusal(path, "a folder that exists", f"no folder '{path.parent}'", "create it")
    if os.path.lexists(path) and not overwrite:
        raise refusal(path, "no file yet", "one that exists", "--overwrite replaces it")
