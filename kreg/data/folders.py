"""Pairs of image files from two folders."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as imageio
import numpy as np

from kreg.data.pairs import OrderedPairs, PairDataset, as_images, to_float


class ImageFiles:
    """A stack of images of equal size in files, read as they are asked for.

    ``files[indices]`` is ``(len(indices), *spatial, channels)`` float32; integer files are divided
    by the largest value of their type. NumPy's ``.npy``, TIFF, and what Pillow reads, 2-D or 3-D;
    axes as in `as_images`. An alpha channel of an image file is left out.

    Args:
        paths: the files, at least one. The first is read at once and sets the size.

    Raises:
        ValueError: if a file is not an image, has another size, or holds NaN or infinite values;
            the message names the file.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)
        self.shape = (len(self.paths), *read_image(self.paths[0]).shape)

    def __getitem__(self, indices) -> np.ndarray:
        images = [read_image(self.paths[i]) for i in indices]
        for i, image in zip(indices, images, strict=True):
            if image.shape != self.shape[1:]:
                raise ValueError(
                    f"Expected images of equal size, {self.shape[1:]} as {self.paths[0]}; pad or "
                    f"resample the others first. Received: {image.shape} in {self.paths[i]}."
                )
        return np.stack(images)


def read_image(path: Path) -> np.ndarray:
    """Return the image in a file, ``(*spatial, channels)`` float32, integers scaled to [0, 1].

    Raises:
        ValueError: if the file is not an image, or holds NaN or infinite values.
    """
    try:
        if path.suffix == ".npy":
            image = np.load(path, allow_pickle=False)
        else:
            # Named, for imageio would try its other readers on a broken file: ITK's may crash.
            tiff = path.suffix.lower() in (".tif", ".tiff")
            image = imageio.imread(path, plugin="tifffile" if tiff else "pillow")
            if image.ndim == 3 and image.shape[-1] in (2, 4):  # grey or RGB, and alpha
                image = image[..., :-1]
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise ValueError(
            "Expected an image (PNG, JPEG, TIFF ...) or a .npy file; exclude others by "
            f"`pattern`. Received: {path}, {type(error).__name__}: {error}"
        ) from error
    if image.dtype == bool:
        image = image.astype("uint8") * 255
    return to_float(as_images(image[None], str(path)))[0]


class FolderPairs(OrderedPairs):
    """Pairs of files of equal name: ``moving_folder/a.png`` with ``fixed_folder/a.tif``.

    Names are compared without their last suffix; hidden files are left out. Files that have no
    partner are left out with a warning. Images are read batch by batch, grey or RGB, 2-D or 3-D
    (``.npy``), as float32, integers scaled to [0, 1].

    ``workers=4`` reads the next batches in four threads while the network trains (each of
    `max_queue_size` batches takes memory). On JAX and PyTorch Keras 3 then begins `fit` with a few
    batches of the order before the first epoch's. ``use_multiprocessing=True`` copies the whole
    process: a JAX program may hang.

    Label maps beside the images are added by a class of one's own::

        class Labelled(kreg.data.FolderPairs):
            def __getitem__(self, batch):
                (data,) = super().__getitem__(batch)
                for side, chosen in zip(("moving", "fixed"), self.indices(batch)):
                    maps = np.stack([np.load(f"{side}_labels/{self.names[i]}.npy") for i in chosen])
                    data[f"{side}_labels"] = np.float32(maps[..., None] == [2, 3, 4])  # one-hot
                return (data,)

    A ``tf.data`` pipeline, to go on in TensorFlow::

        def batches():
            pairs.on_epoch_end()  # the order of another epoch
            yield from (data for (data,) in pairs)

        image = tf.TensorSpec((None, *pairs.image_shape))
        dataset = tf.data.Dataset.from_generator(
            batches, output_signature={"moving": image, "fixed": image}
        ).apply(tf.data.experimental.assert_cardinality(len(pairs)))

    Args:
        moving_folder, fixed_folder: where the files lie; folders within are not searched.
        pattern: which files, such as ``"*.png"``.
        batch_size: pairs a batch; the last may be smaller.
        shuffle: whether each epoch draws another order.
        seed: of the order.

    Attributes:
        names: the names of the pairs, sorted.

    Raises:
        FileNotFoundError: if a folder does not exist or holds no file that fits the pattern.
        ValueError: if no name is in both folders, a name has two files in one folder, or sizes
            differ; when a batch is drawn, if a file cannot be read, has another size, or holds NaN
            (the message names it).
    """

    def __init__(
        self,
        moving_folder: str | os.PathLike,
        fixed_folder: str | os.PathLike,
        *,
        pattern: str = "*",
        batch_size: int = 32,
        shuffle: bool = False,
        seed: int = 0,
        **kwargs,
    ):
        moving = _files(Path(moving_folder), pattern)
        fixed = _files(Path(fixed_folder), pattern)
        self.names = sorted(moving.keys() & fixed.keys())
        if not self.names:
            raise ValueError(
                "Expected files of equal name (without suffix) in both folders; rename them to "
                f"match. Received: {_some(moving)} in {moving_folder}, {_some(fixed)} in "
                f"{fixed_folder}."
            )
        alone = sorted(moving.keys() ^ fixed.keys())
        if alone:
            warnings.warn(
                f"{len(alone)} files in {moving_folder} and {fixed_folder} have no partner of "
                f"equal name and are left out: {_some(alone)}.",
                stacklevel=2,
            )
        super().__init__(
            ImageFiles([moving[name] for name in self.names]),
            ImageFiles([fixed[name] for name in self.names]),
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            **kwargs,
        )


class RandomFolderPairs(PairDataset):
    """Random pairs of files, drawn anew for every batch: any of one folder with any of another.

    Where both are the same folder, scans of many subjects to be laid on one another, no file is
    paired with itself. The draw depends on seed, epoch and batch alone. Files, threads and label
    maps as in `FolderPairs`.

    Args:
        moving_folder, fixed_folder: where the files lie; folders within are not searched.
        pattern: which files, such as ``"*.npy"``.
        batch_size: pairs a batch.
        steps: batches an epoch.
        seed: of the draw.
        fresh: whether each epoch draws other pairs; False for a fixed validation set.

    Attributes:
        moving_names, fixed_names: the names of the files, which `indices` refers to.

    Raises:
        FileNotFoundError: if a folder does not exist or holds no file that fits the pattern.
        ValueError: if there is one file only, to be paired with itself, or `steps` is not
            positive; for the rest see `FolderPairs`.
    """

    def __init__(
        self,
        moving_folder: str | os.PathLike,
        fixed_folder: str | os.PathLike,
        *,
        pattern: str = "*",
        batch_size: int = 32,
        steps: int = 100,
        seed: int = 0,
        fresh: bool = True,
        **kwargs,
    ):
        moving = _files(Path(moving_folder), pattern)
        fixed = _files(Path(fixed_folder), pattern)
        self.moving_names, self.fixed_names = list(moving), list(fixed)
        super().__init__(
            ImageFiles(list(moving.values())),
            ImageFiles(list(fixed.values())),
            batch_size=batch_size,
            **kwargs,
        )
        if steps < 1:
            raise ValueError(f"Expected `steps` >= 1. Received: {steps}.")
        self.steps, self.seed, self.fresh, self.epoch = steps, seed, fresh, 0
        self._same = Path(moving_folder).samefile(fixed_folder)
        if self._same and len(fixed) == 1:
            raise ValueError(
                "Expected at least two files, since both folders are the same and no file is "
                f"paired with itself. Received: {_some(fixed)} in {fixed_folder}."
            )

    def __len__(self) -> int:
        return self.steps

    def indices(self, batch):
        """Return random files on both sides."""
        rng = np.random.default_rng((self.seed, self.epoch if self.fresh else 0, batch))
        moving = rng.integers(len(self.moving_names), size=self.batch_size)
        files = len(self.fixed_names)
        if self._same:  # any but the moving one, counted from it
            return moving, (moving + rng.integers(1, files, size=self.batch_size)) % files
        return moving, rng.integers(files, size=self.batch_size)

    def on_epoch_end(self):
        """Go on to the draws of the next epoch."""
        self.epoch += 1


def _files(folder: Path, pattern: str) -> dict[str, Path]:
    """Return the files that fit the pattern by their name without suffix."""
    if not folder.is_dir():
        raise FileNotFoundError(f"Expected a folder of images. Received: {folder}, which is none.")
    files: dict[str, Path] = {}
    for path in sorted(folder.glob(pattern)):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.stem in files:
            raise ValueError(
                "Expected one file a name; choose by `pattern`, such as "
                f'"*{path.suffix}". Received: {files[path.stem].name} and {path.name} in {folder}.'
            )
        files[path.stem] = path
    if not files:
        there = _some(sorted(path.name for path in folder.iterdir()))
        raise FileNotFoundError(
            f"Expected files that fit the pattern {pattern!r} in {folder}. Received: {there}."
        )
    return files


def _some(names) -> str:
    names = list(names)
    shown = ", ".join(names[:5]) or "nothing"
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
