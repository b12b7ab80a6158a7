"""Pairs of images in files, for training and prediction."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kreg import io
from kreg.cli.images import read_image
from kreg.io.arrays import load_npz
from kreg.io.errors import FileError, check_file, reason, refusal
from kreg.io.files import suffix_of

SIDES = ("moving", "fixed")


class Stack:
    """Images of equal size in files, read as they are asked for: ``stack[indices]``.

    Float32 ``(n, *spatial, channels)``, integers divided by the largest value of their type.

    Args:
        paths: the files. The first is read at once and sets the size.
        onto: the file for each of them on whose grid it is laid, as both frames say.

    Attributes:
        axes: the orientation of all images, such as "LPS"; None where no file tells it.
    """

    def __init__(self, paths: Sequence[Path], onto: Sequence[Path] | None = None):
        self.paths, self.onto = list(paths), onto
        first = self._read(0)
        self.axes = _orientation(first)
        self.shape: tuple[int, ...] = (len(self.paths), *first.array.shape)

    def __getitem__(self, indices) -> np.ndarray:
        images = []
        for index in indices:
            image = self._read(index)
            where, expected = self.paths[index], f"of '{self.paths[0]}'"
            if image.array.shape != self.shape[1:]:
                expected = f"the size {self.shape[1:]} {expected}"
                raise refusal(
                    where, expected, f"{image.array.shape}", "pad, resample or convert it"
                )
            if _orientation(image) != self.axes:
                expected = f"the axes {self.axes or 'in pixels'} {expected}"
                received = _orientation(image) or "pixels"
                raise refusal(where, expected, received, "reorient it: the network knows no frames")
            images.append(image.array)
        return np.stack(images)

    def _read(self, index: int) -> io.Image:
        image = _scaled(read_image(self.paths[index]))
        return image if self.onto is None else _laid_over(image, self.onto[index])


def _orientation(image: io.Image) -> str | None:
    return image.grid.orientation if image.unit == "mm" and image.dimensions == 3 else None


def _scaled(image: io.Image) -> io.Image:
    """Return an image ``(*spatial, channels)``, float32, integers divided by their type's most."""
    array = np.asarray(image.array)
    most = np.iinfo(array.dtype).max if array.dtype.kind in "iu" else 1
    values = array.astype("float32") / np.float32(most)
    values = values if image.channels else values[..., None]
    return io.Image(values, image.affine, image.unit, image.source, image.plane)


def _frame_to_frame(moving: io.Grid, fixed: io.Grid) -> io.Transform | None:
    """Return the transform by which both lie where their frames say.

    None where voxels of equal indices lie together, or nobody knows: in pixels.
    """
    known = (fixed.unit, moving.unit) == ("mm", "mm") and fixed.dimensions == moving.dimensions
    if not known or (fixed.shape == moving.shape and fixed.agrees_with(moving)):
        return None
    return io.Transform(np.eye(fixed.dimensions + 1), fixed, moving)


def _laid_over(moving: io.Image, fixed: Path) -> io.Image:
    """Return the moving image on the grid of a fixed one, as both frames say.

    Raises:
        FileError: if they have nothing in common there.
    """
    transform = _frame_to_frame(moving.grid, io.read(fixed).grid)
    if transform is None:
        return moving
    laid = transform.apply(moving)
    if laid.array.min() == laid.array.max():
        expected = f"an image that overlaps '{fixed}' in the scanner's frame"
        remedy = "align them first, by kreg register and kreg apply"
        raise refusal(moving.source, expected, "one that lies elsewhere", remedy)
    return laid


def paired_files(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Return the files (moving, fixed) of equal name in ``folder/moving`` and ``folder/fixed``.

    Raises:
        FileError: if there are none, or some have no partner.
    """
    expected = "pairs of images, of equal names in two folders moving and fixed,"
    sides = []
    for side in SIDES:
        if not (folder / side).is_dir():
            raise refusal(folder, expected, f"no folder '{folder / side}'")
        files = sorted(path for path in (folder / side).iterdir() if path.name[0] != ".")
        names = [path.name[: len(path.name) - len(suffix_of(path))] for path in files]
        sides.append(dict(zip(names, files, strict=True)))
        if len(sides[-1]) < len(files):
            raise refusal(folder / side, "one file a name", "two that differ by their suffix")
    alone = sorted(sides[0].keys() ^ sides[1].keys())
    if alone or not sides[0]:
        received = f"'{alone[0]}' without a partner" if alone else "no files"
        raise refusal(folder, expected, received)
    return {name: (sides[0][name], sides[1][name]) for name in sides[0]}


def training_pairs(path: Path, batch_size: int, shuffle: bool, seed: int) -> Any:
    """Return a data set of the pairs of a folder, or of an .npz of arrays moving and fixed.

    Imports Keras.

    Raises:
        FileError: if there are none.
        ValueError: if they are not of equal size.
    """
    from kreg import data

    options: dict[str, Any] = {"batch_size": batch_size, "shuffle": shuffle, "seed": seed}
    if path.suffix.lower() == ".npz":
        return data.ArrayPairs(**arrays_of(path), **options)
    files = list(paired_files(path).values())
    moving, fixed = zip(*files, strict=True)
    return data.OrderedPairs(Stack(moving, onto=fixed), Stack(fixed), **options)


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays moving and fixed of an .npz file.

    Raises:
        FileError: if it does not hold them.
    """
    check_file(path, "an .npz file")
    try:
        values = load_npz(path)
    except FileError:
        raise
    except Exception as error:
        raise refusal(path, "arrays called moving and fixed", reason(error)) from error
    if not set(SIDES) <= set(values):
        received = ", ".join(list(values)[:5]) or "nothing"
        raise refusal(path, "arrays called moving and fixed", received)
    return {side: values[side] for side in SIDES}


def placed(moving: Path, fixed: Path, displacement: np.ndarray) -> io.Transform:
    """Return a network's displacement, ``(*spatial, D)`` voxels, as a transform of two files.

    The network saw the moving image as `Stack` lays it over the fixed one: by the frames of both,
    or voxel over voxel where these are in pixels.
    """
    first, second = io.read(fixed).grid, io.read(moving).grid
    matrix = second.affine @ np.linalg.inv(first.affine)
    if _frame_to_frame(second, first) is not None:
        matrix = np.eye(len(matrix))
    return io.Transform(matrix, first, second, displacement)
