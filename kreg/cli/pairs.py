"""Pairs of images in files, for training and prediction."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kreg import io
from kreg.cli.images import read_image
from kreg.io.arrays import load_npz
from kreg.io.errors import refusal
from kreg.io.files import suffix_of

SIDES = ("moving", "fixed")


class Stack:
    """Images of equal size in files, read as they are asked for: ``stack[indices]``.

    Float32 ``(n, *spatial, channels)``, integers divided by the largest value of their type.

    Args:
        paths: the files. The first is read at once and sets the size.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)
        self.shape: tuple[int, ...] = (len(self.paths), *scaled(self.paths[0]).shape)

    def __getitem__(self, indices) -> np.ndarray:
        images = []
        for path in (self.paths[i] for i in indices):
            image = scaled(path)
            if image.shape != self.shape[1:]:
                expected = f"the size {self.shape[1:]} of '{self.paths[0]}'"
                raise refusal(path, expected, f"{image.shape}", "pad or resample it")
            images.append(image)
        return np.stack(images)


def scaled(path: Path) -> np.ndarray:
    """Return an image ``(*spatial, channels)``, float32, integers divided by their type's most."""
    image = read_image(path)
    array = np.asarray(image.array)
    most = np.iinfo(array.dtype).max if array.dtype.kind in "iu" else 1
    values = array.astype("float32") / np.float32(most)
    return values if image.channels else values[..., None]


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
    stacks = [Stack([pair[side] for pair in files]) for side in range(2)]
    return data.OrderedPairs(*stacks, **options)


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays moving and fixed of an .npz file.

    Raises:
        FileError: if it does not hold them.
    """
    try:
        values = load_npz(path)
    except FileNotFoundError as error:
        raise refusal(path, "an .npz file", "no such file", "check the spelling") from error
    if not set(SIDES) <= set(values):
        received = ", ".join(list(values)[:5]) or "nothing"
        raise refusal(path, "arrays called moving and fixed", received)
    return {side: values[side] for side in SIDES}


def placed(moving: Path, fixed: Path, displacement: np.ndarray) -> io.Transform:
    """Return a network's displacement, ``(*spatial, D)`` voxels, as a transform of two files."""
    first, second = io.read(fixed), io.read(moving)
    # Voxels to voxels: what the network saw knows no worlds.
    matrix = second.affine @ np.linalg.inv(first.affine)
    return io.Transform(matrix, first.grid, second.grid, displacement)
