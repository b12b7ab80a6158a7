"""Pairs of frames from cine sequences, such as beating hearts, split by subject."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kreg.data.folders import ImageFiles
from kreg.data.pairs import OrderedPairs, as_images, to_float


class _Frames:
    """A stack of chosen frames: entry i is ``sequences[table[i, 0]][table[i, 1]]``."""

    def __init__(self, sequences, table):
        self.sequences, self.table = sequences, table
        self.shape = (len(table), *sequences[0].shape[1:])

    def __getitem__(self, indices) -> np.ndarray:
        # Each scaled by its own type: subjects may differ in it.
        return np.stack(
            [
                to_float(self.sequences[subject][[frame]])[0]
                for subject, frame in self.table[indices]
            ]
        )


class CinePairs(OrderedPairs):
    """Frame t of a subject is fixed, frame t + k of the same subject moves.

    Args:
        sequences: one a subject, each ``(frames, *spatial[, channels])``, of equal size and any
            number of frames: an array ``(subjects, frames, *spatial[, channels])``, a list of
            arrays, or what `load_cine_folder` returns, whose files are read batch by batch.
        steps: k, one number of frames or several; negative ones look back.
        cyclic: whether the first frame follows the last, as in one heartbeat; if not, pairs that
            would reach beyond the end are left out.
        batch_size: pairs a batch; the last may be smaller.
        shuffle: whether each epoch draws another order.
        seed: of the order.

    Attributes:
        subjects: the subject of each pair, in the order before shuffling.

    Raises:
        ValueError: if there is no sequence, sizes differ, a step is 0 or no pair is left; see also
            `as_images`.
    """

    def __init__(self, sequences, *, steps: int | Sequence[int] = 1, cyclic: bool = True, **kwargs):
        sequences = as_sequences(sequences)
        steps = [steps] if isinstance(steps, int | np.integer) else list(steps)
        if not steps or 0 in steps:
            raise ValueError(
                "Expected steps other than 0: a frame is not paired with itself. "
                f"Received: {steps}."
            )
        fixed, moving = [], []
        for subject, sequence in enumerate(sequences):
            frames = sequence.shape[0]
            for step in steps:
                for t in range(frames):
                    other = (t + step) % frames
                    if other != t and (cyclic or other == t + step):
                        fixed.append((subject, t))
                        moving.append((subject, other))
        if not fixed:
            raise ValueError(
                "Expected sequences of more frames than the step. Received: "
                f"{[sequence.shape[0] for sequence in sequences]} frames, steps {steps}."
            )
        self.subjects = np.array(fixed)[:, 0]
        stacks = (_Frames(sequences, np.array(table)) for table in (moving, fixed))
        super().__init__(*stacks, **kwargs)


def as_sequences(sequences) -> list:
    """Return a list of stacks ``(frames, *spatial, channels)`` of equal size, checked."""
    checked = [
        sequence
        if isinstance(sequence, ImageFiles)
        else as_images(sequence, f"sequences[{subject}]")
        for subject, sequence in enumerate(sequences)
    ]
    sizes = {tuple(sequence.shape[1:]) for sequence in checked}
    if len(sizes) != 1:
        raise ValueError(
            "Expected one sequence a subject, at least one, all of equal image size; crop or "
            f"resample them first. Received: {sorted(sizes) or 'none'}."
        )
    return checked


def split_subjects(sequences, share: float = 0.2, *, seed: int = 0) -> tuple[list, list]:
    """Return the sequences of some subjects to train on, and those of the others.

    No subject is on both sides: frames of one heart are too alike to test on.

    Args:
        sequences: one a subject.
        share: of the subjects that are held out, rounded; at least one is, and one is left.
        seed: of the draw.

    Raises:
        ValueError: if there are fewer than two subjects, or the share is not between 0 and 1.
    """
    sequences = list(sequences)
    count = len(sequences)
    if count < 2 or not 0 < share < 1:
        raise ValueError(
            "Expected two subjects or more and a share between 0 and 1. "
            f"Received: {count} subjects, share {share}."
        )
    order = np.random.default_rng(seed).permutation(count)
    held_out = set(order[: min(max(round(share * count), 1), count - 1)].tolist())
    return (
        [sequence for i, sequence in enumerate(sequences) if i not in held_out],
        [sequence for i, sequence in enumerate(sequences) if i in held_out],
    )


def load_lvquan(
    path: str | os.PathLike, *, variable: str = "images_LV", frames: int = 20
) -> np.ndarray:
    """Return the hearts of a MATLAB file as the LVQuan challenge lays them out.

    There ``images_LV`` is ``(80, 80, 2900)``: 145 subjects, 20 frames of each one after the other
    (Xue et al., Medical Image Analysis 2018). The data are their owners'; kreg brings none.

    Args:
        path: a ``.mat`` file up to version 7.
        variable: its name in the file.
        frames: of each subject.

    Returns:
        ``(subjects, frames, height, width)``, the file's numbers; floating ones as float32.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no MATLAB file up to version 7, lacks the variable, or that is not
            ``(height, width, subjects * frames)``.
    """
    import zlib

    import scipy.io

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Expected a MATLAB file. Received: {path}, which is none.")
    try:
        arrays = scipy.io.loadmat(path, variable_names=[variable])
    except NotImplementedError as error:  # SciPy's answer to version 7.3, which is HDF5
        raise ValueError(
            "Expected a MATLAB file up to version 7; save it by `save(..., '-v7')`. "
            f"Received: {path}, of version 7.3."
        ) from error
    except (
        OSError, ValueError, EOFError, TypeError, zlib.error, scipy.io.matlab.MatReadError,
    ) as error:  # fmt: skip
        raise ValueError(f"Expected a MATLAB file. Received: {path}: {error}") from error
    if variable not in arrays:
        names = ", ".join(name for name, _, _ in scipy.io.whosmat(path))
        raise ValueError(
            f"Expected a variable {variable!r} in {path}; name another by `variable`. "
            f"Received: {names or 'none'}."
        )
    images = arrays[variable]
    if images.ndim != 3 or frames < 1 or images.shape[-1] % frames:
        raise ValueError(
            f"Expected {variable} of shape (height, width, subjects * {frames}); `frames` says "
            f"how many each subject has. Received: shape {images.shape}."
        )
    images = np.moveaxis(images, -1, 0).reshape(-1, frames, *images.shape[:2])
    return images.astype("float32") if images.dtype.kind == "f" else images


def load_cine_folder(path: str | os.PathLike, pattern: str = "*") -> list[ImageFiles]:
    """Return a sequence for each folder within a folder: its image files, in natural order.

    ``frame2.png`` comes before ``frame10.png``. Files are read as they are asked for, see
    `FolderPairs`; hidden ones are left out.

    Args:
        path: the folder of all subjects.
        pattern: which files, such as ``"*.png"``.

    Raises:
        FileNotFoundError: if there is no such folder, or no folder within it has such files.
        ValueError: if a first frame cannot be read; later ones when they are asked for.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(
            f"Expected a folder with a folder for each subject. Received: {path}, which is none."
        )
    sequences = []
    for subject in sorted(filter(Path.is_dir, path.iterdir()), key=_natural):
        files = [
            file
            for file in subject.glob(pattern)
            if file.is_file() and not file.name.startswith(".")
        ]
        if files and not subject.name.startswith("."):
            sequences.append(ImageFiles(sorted(files, key=_natural)))
    if not sequences:
        raise FileNotFoundError(
            f"Expected folders with files that fit the pattern {pattern!r}, one folder a subject. "
            f"Received: none in {path}."
        )
    return sequences


def _natural(path: Path) -> list:
    """A key by which 2 comes before 10."""
    parts = re.split(r"(\d+)", path.name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
