"""What the benchmarks on whole data sets share: files, a run that can be resumed, the report.

A set is a list of pairs of image files with corresponding landmarks. kreg registers each pair, the
moving image's landmarks are carried over to the fixed image, and the distance to their partners is
measured there. A finished pair is a line of a log, written at once, and is not done again; a pair
that failed counts as infinitely wrong, and the next run tries it again.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import kreg
from benchmarks.report import ROOT, provenance
from kreg.metrics.landmarks import naed, rtre

#: What the command line may name.
TRANSFORMS = {
    "affine": kreg.transforms.Linear(kreg.groups.Affine()),
    "homography": kreg.transforms.Linear(kreg.groups.Homography()),
}
SIMILARITIES = {
    "histogram": kreg.pairwise.HistogramRatio(),
    "mine": kreg.pairwise.CriticRatio(),
    "gaussian": kreg.pairwise.GaussianRatio(),
}


class Unusable(Exception):
    """The folder or the table is not what was expected: nothing can be run."""


# --- files ---


@dataclass(frozen=True)
class Pair:
    """The files of one pair; they need not exist.

    Attributes:
        name: tells it from all other pairs of the set.
        group: the row of the table that it counts for.
        fixed, moving: the images.
        landmarks: the files with the landmarks.
        read_landmarks: returns the fixed and the moving landmarks, ``(n, 2)`` and ``(m, 2)``,
            (row, column). The first of one belongs to the first of the other, and so on.
        mask: where both images have content; None for everywhere.
    """

    name: str
    group: str
    fixed: Path
    moving: Path
    landmarks: tuple[Path, ...]
    read_landmarks: Callable[[], tuple[np.ndarray, np.ndarray]]
    mask: Path | None = None

    def fingerprint(self) -> str | None:
        """Return what changes with the landmarks and with the sizes of the files of images.

        None where a file is missing.
        """
        digest = hashlib.sha256()
        try:
            for path in self.landmarks:
                digest.update(path.read_bytes())
            for path in filter(None, (self.fixed, self.moving, self.mask)):
                digest.update(b"%d." % path.stat().st_size)
        except OSError:
            return None
        return digest.hexdigest()[:16]


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file; ValueError if there is no such file or it is no text."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except OSError:
        raise ValueError(f"Expected the file {path}. Received: nothing that can be read.") from None
    except UnicodeDecodeError:
        raise ValueError(f"Expected text in {path}. Received: bytes that are none.") from None


def numbers(
    fields: Sequence[str], names: Sequence[str], path: Path, line: int, text: str
) -> list[float]:
    """Return the fields of a line as finite numbers, one for each name.

    Raises:
        ValueError: naming the file and the line, if they are not that.
    """
    try:
        values = [float(field) for field in fields]
    except ValueError:
        values = []
    if len(values) != len(names) or not np.all(np.isfinite(values)):
        raise ValueError(
            f"Expected the numbers {' '.join(names)} in {path}, line {line}. Received: {text!r}."
        )
    return values


def read_image(path: Path) -> np.ndarray:
    """Return an image ``(H, W)`` or ``(H, W, 3)``; an uncompressed TIFF stays on the disk.

    Raises:
        ValueError: if there is no such file, or it is no image.
    """
    import tifffile
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # slides are large, and the user has named them
    if not path.is_file():
        raise ValueError(f"Expected the image {path}. Received: no such file.")
    try:
        try:
            image = tifffile.memmap(path, mode="r")
        except (ValueError, tifffile.TiffFileError):  # no TIFF, or one that is compressed
            # Not by imageio: for a broken file it tries every library that could read images,
            # and those do not all bear with one another in one process.
            with Image.open(path) as opened:
                coded = opened.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV")
                image = np.asarray(opened.convert("RGB") if coded else opened)
    except Exception as error:  # each format's reader has errors of its own
        raise ValueError(f"Expected an image in {path}. Received: {error}") from error
    if image.ndim == 3 and image.shape[-1] in (2, 4):
        return image[..., :-1]  # without transparency
    return image


def _read_mask(path: Path) -> np.ndarray:
    image = read_image(path)
    image = image if image.ndim == 2 else image[..., 0]
    return image > image.max() / 2


# --- one pair ---


def as_array(tensor) -> np.ndarray:
    """Return a tensor of any backend as an array."""
    import keras  # not before kreg, which keeps TensorFlow quiet

    return keras.ops.convert_to_numpy(tensor)


@dataclass(frozen=True)
class Outcome:
    """What became of one pair.

    Attributes:
        failure: why there is no transform; None where there is one.
        reference: landmarks of the fixed image, ``(n, 2)``.
        start, carried: landmarks of the moving image, where they are and carried over to the
            fixed image; infinite if the pair failed.
        shape: the sizes of the fixed image.
        unequal: whether one side had more landmarks; those are left out.
        commit: of kreg, when the pair was registered.
    """

    name: str
    group: str
    failure: str | None
    reference: np.ndarray
    start: np.ndarray
    carried: np.ndarray
    shape: tuple[int, ...]
    unequal: bool
    trusted: bool
    seconds: float
    commit: str

    @classmethod
    def of_row(cls, row: dict) -> "Outcome":
        """Return the outcome that a line of the log tells of; JSON's null is infinity."""

        def points(name):
            values = np.array(row[name], "float64")
            return np.where(np.isfinite(values), values, np.inf)

        failed = row["failure"] is not None
        infinite = np.full((1, 2), np.inf)
        return cls(
            name=row["pair"],
            group=row["group"],
            failure=row["failure"],
            reference=np.zeros((1, 2)) if failed else points("reference"),
            start=infinite if failed else points("start"),
            carried=infinite if failed else points("carried"),
            shape=(1, 1) if failed else tuple(row["shape"]),
            unequal=not failed and len(set(row["landmarks"])) > 1,
            trusted=not failed and row["trusted"],
            seconds=np.nan if failed else row["seconds"],
            commit=row["commit"],
        )

    @property
    def errors(self) -> np.ndarray:
        """Distances after registration, ``(n,)``, pixels of the fixed image."""
        return np.linalg.norm(self.carried - self.reference, axis=1)

    @property
    def errors_before(self) -> np.ndarray:
        """Distances before registration, ``(n,)``, pixels."""
        return np.linalg.norm(self.start - self.reference, axis=1)

    @property
    def relative_errors(self) -> np.ndarray:
        """Distances after registration over the diagonal, ``(n,)``."""
        return as_array(rtre(self.carried, self.reference, self.shape))

    @property
    def naed_height(self) -> float:
        """The mean distance after registration over the height."""
        return float(as_array(naed(self.carried, self.reference, self.shape[0])))

    @property
    def naed_diagonal(self) -> float:
        """The mean distance after registration over the diagonal."""
        diagonal = np.hypot(*self.shape)
        return float(as_array(naed(self.carried, self.reference, diagonal)))


def _finite(values: np.ndarray) -> list:
    """Return nested lists with None for what is not finite, which JSON has no word for."""
    return np.where(np.isfinite(values), values, None).tolist()


def _register(pair: Pair, options: argparse.Namespace) -> dict:
    """Return what the log says of a registered pair.

    Raises:
        KeyboardInterrupt: if the user stopped the registration.
    """
    fixed_points, moving_points = pair.read_landmarks()
    count = min(len(fixed_points), len(moving_points))
    fixed, moving = read_image(pair.fixed), read_image(pair.moving)
    mask = None if pair.mask is None else _read_mask(pair.mask)
    start = time.perf_counter()
    result = kreg.register(
        fixed,
        moving,
        transform=TRANSFORMS[options.transform],
        similarity=SIMILARITIES[options.similarity],
        fixed_mask=mask,
        moving_mask=mask,
    )
    seconds = time.perf_counter() - start
    if result.reason.startswith("interrupted"):
        raise KeyboardInterrupt  # register() keeps what it has; half a result is no result here
    return {
        "failure": None,
        "shape": list(fixed.shape[:2]),
        "landmarks": [len(fixed_points), len(moving_points)],
        "reference": _finite(fixed_points[:count]),
        "start": _finite(moving_points[:count]),
        "carried": _finite(result.inverse_transform_points(moving_points[:count])),
        "matrix": _finite(result.matrix),
        "trusted": bool(result.trusted),
        "reason": result.reason,
        "seconds": seconds,
    }


# --- all pairs ---


class Log:
    """Finished pairs, one line of JSON each: an end at any moment loses the pair at hand alone.

    Args:
        path: the file; it and its folder are made by the first line.
    """

    def __init__(self, path: Path):
        self.path = path

    def rows(self) -> list[dict]:
        """Return all lines, oldest first, without one that was cut short."""
        found = []
        for line in self.path.read_bytes().splitlines() if self.path.exists() else []:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def append(self, row: dict) -> None:
        """Write one line; it has reached the disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            cut = file.tell() > 0
            if cut:
                file.seek(-1, os.SEEK_END)
                cut = file.read() != b"\n"
            text = json.dumps(row, allow_nan=False) + "\n"
            file.write(b"\n" * cut + text.encode())
            file.flush()
            os.fsync(file.fileno())


def _said(outcome: Outcome) -> str:
    if outcome.failure is not None:
        return f"failed: {outcome.failure}"
    verdict = "trusted" if outcome.trusted else "not trusted"
    before, after = outcome.errors_before.mean(), outcome.errors.mean()
    return f"{before:.4g} -> {after:.4g} px, {verdict}, {outcome.seconds:.1f} s"


def run(pairs: Sequence[Pair], log: Log, options: argparse.Namespace) -> list[Outcome]:
    """Register the pairs that the log lacks, and return the outcomes of all."""
    method = {"transform": options.transform, "similarity": options.similarity}
    done: dict[tuple, dict] = {}
    for row in log.rows():
        if row["failure"] is None and all(row[name] == method[name] for name in method):
            done[row["pair"], row["fingerprint"]] = row
    commit = provenance()["commit"]
    outcomes, began, registered = [], time.perf_counter(), 0
    for number, pair in enumerate(pairs, start=1):
        fingerprint = pair.fingerprint()
        row = None if options.redo else done.get((pair.name, fingerprint))
        again = row is not None
        if row is None:
            about = {"pair": pair.name, "group": pair.group, "fingerprint": fingerprint}
            try:
                found = _register(pair, options)
            except Exception as error:  # the other pairs go on, whatever this one died of
                kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
                found = {"failure": " ".join(f"{kind}{error}".split())}
            row = about | method | found | {"commit": commit}
            log.append(row)
            registered += 1
        outcomes.append(Outcome.of_row(row))
        left = (len(pairs) - number) * (time.perf_counter() - began) / max(registered, 1) / 60
        tail = " (from the log)" if again else f"; {left:.0f} min left at most"
        line = f"[{number}/{len(pairs)}] {pair.name}: {_said(outcomes[-1])}{tail}"
        print(line, file=sys.stderr, flush=True)
    return outcomes


# --- the report ---


def middle(values) -> float:
    """Return the median; of an even number the mean of both in the middle."""
    return float(np.median(values))


def markdown_table(head: Sequence[str], rows: Sequence[Sequence]) -> list[str]:
    """Return lines of Markdown; numbers with four significant digits."""
    lines = [f"| {' | '.join(head)} |", "|:--|" + "--:|" * (len(head) - 1)]
    for row in rows:
        cells = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def with_finished(rows: dict[str, list[Outcome]]) -> dict[str, list[Outcome]]:
    """Return the rows of a table, each with failures followed by one without them."""
    result = {}
    for name, outcomes in rows.items():
        result[name] = outcomes
        finished = [outcome for outcome in outcomes if outcome.failure is None]
        if finished and len(finished) < len(outcomes):
            result[f"{name}, finished"] = finished
    return result


def _report(title: str, table: list[str], outcomes: list[Outcome], count: int, options) -> str:
    about = provenance()
    # More than one where kreg changed between a run and the one that went on with it.
    commits = ", ".join(sorted({outcome.commit for outcome in outcomes}))
    lines = [
        f"# kreg on {title}",
        "",
        f"{about['date']}, commit {commits}, kreg {kreg.__version__}, {about['cpu']}. "
        f"Transform: {options.transform}; similarity: {options.similarity}. "
        "Seconds are of the clock, compilation for new sizes of images included.",
        "",
    ]
    if len(outcomes) < count:
        lines += [f"Not the whole set: {len(outcomes)} of {count} pairs.", ""]
    lines += table
    unequal = sum(outcome.unequal for outcome in outcomes)
    if unequal:
        lines += ["", f"Pairs with unequal numbers of landmarks, the last left out: {unequal}."]
    failed = [outcome for outcome in outcomes if outcome.failure is not None]
    if failed:
        lines += ["", f"Failed, counted as infinitely wrong: {len(failed)}."]
        lines += [f"- {outcome.name}: {outcome.failure}" for outcome in failed]
    return "\n".join(lines) + "\n"


def parser(name: str, description: str, transform: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all sets share."""
    result = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    result.add_argument("folder", type=Path, help="the set as downloaded and unpacked")
    result.add_argument("--transform", choices=list(TRANSFORMS), default=transform)
    result.add_argument("--similarity", choices=list(SIMILARITIES), default="histogram")
    result.add_argument("--output", type=Path, default=ROOT / "outputs" / name)
    result.add_argument("--limit", type=int, help="only so many pairs, the first ones")
    result.add_argument("--redo", action="store_true", help="also the pairs that the log has")
    return result


def measure(
    title: str,
    find_pairs: Callable[[], list[Pair]],
    table: Callable[[list[Outcome]], list[str]],
    size: int | None,
    options: argparse.Namespace,
) -> int:
    """Register all pairs, print and write the report; return the exit code.

    Args:
        title: the name of the set.
        find_pairs: lists the pairs, or raises `Unusable`.
        table: turns outcomes into Markdown.
        size: how many pairs the whole set has; None for as many as are found.
        options: what `parser` made.
    """
    log = Log(options.output / "pairs.jsonl")
    try:
        if options.limit is not None and options.limit < 1:
            raise Unusable(f"Expected --limit of at least 1. Received: {options.limit}.")
        pairs = find_pairs()
        count = max(len(pairs), size or 0)
        outcomes = run(pairs[: options.limit], log, options)
        text = _report(title, table(outcomes), outcomes, count, options)
        path = options.output / f"{options.transform}-{options.similarity}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except (Unusable, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"Interrupted. Finished pairs are in {log.path}: run again to go on.", file=sys.stderr
        )
        return 130
    print(text)
    print(f"written: {path} and {log.path}", file=sys.stderr)
    if all(outcome.failure is not None for outcome in outcomes):
        print(f"error: none of {len(outcomes)} pairs could be registered.", file=sys.stderr)
        return 1
    return 0
