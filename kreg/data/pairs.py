"""Pairs of images for `fit`, drawn batch by batch."""

from collections.abc import Sequence

import keras
import numpy as np


def as_images(images, name: str = "images") -> np.ndarray:
    """Return `images` with a channel axis, checked; uint8 and uint16 stay as they are.

    Args:
        images: ``(n, *spatial)`` or ``(n, *spatial, channels)``. With three axes they are grey
            2-D images; with four, the last is the channels if it has at most 4 entries, else
            they are grey volumes; with five, the last is the channels.
        name: what to call them in errors.

    Raises:
        ValueError: for another rank, channels first, no images, NaN or infinite values, or a dtype
            other than uint8, uint16 and floating point.
    """
    images = np.asarray(images)
    if images.dtype not in (np.uint8, np.uint16) and not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"Expected `{name}` to be uint8, uint16 or floating point; convert them first. "
            f"Received: dtype {images.dtype}."
        )
    if images.ndim == 5 and images.shape[1] <= 4 < images.shape[-1]:
        raise ValueError(
            f"Expected `{name}` with channels last; `numpy.moveaxis({name}, 1, -1)` moves them. "
            f"Received: shape {images.shape}."
        )
    if images.ndim == 3 or (images.ndim == 4 and images.shape[-1] > 4):
        if images.ndim == 4 and images.shape[1] <= 4:
            raise ValueError(
                f"Expected `{name}` with channels last; `numpy.moveaxis({name}, 1, -1)` moves "
                f"them (or `{name}[..., None]`, if these are thin grey volumes). "
                f"Received: shape {images.shape}."
            )
        images = images[..., None]
    if images.ndim not in (4, 5) or not images.size:
        raise ValueError(
            f"Expected `{name}` of shape (n, *spatial) or (n, *spatial, channels), 2-D or 3-D, "
            f"n >= 1. Received: shape {images.shape}."
        )
    # One by one: a mask of all of a memory-mapped stack may not fit into memory.
    wrong = 0
    if np.issubdtype(images.dtype, np.floating):
        wrong = sum(int((~np.isfinite(image)).sum()) for image in images)
    if wrong:
        raise ValueError(
            f"Expected finite values in `{name}`. Received: {wrong} NaN or infinite voxels; mask "
            "or fill them first."
        )
    return images


def to_float(images: np.ndarray) -> np.ndarray:
    """Return float32 images: integers divided by the largest value of their type."""
    if np.issubdtype(images.dtype, np.integer):
        return images.astype("float32") / np.iinfo(images.dtype).max
    return images.astype("float32", copy=False)


class PairDataset(keras.utils.PyDataset):
    """Batches {"moving", "fixed"} from two stacks of images; the base of all pair data sets.

    A stack has a ``shape`` ``(n, *spatial, channels)`` and takes an array of indices in brackets:
    an array in memory, or files that are read as they are asked for. Integer images stay as they
    are; each batch becomes float32 as it is drawn, divided by the largest value of their type.

    Args:
        moving, fixed: stacks of images of equal size.
        batch_size: pairs a batch.

    Raises:
        ValueError: if sizes differ or the batch size is not positive.
    """

    def __init__(self, moving, fixed, *, batch_size: int = 32, **kwargs):
        super().__init__(**kwargs)
        self.moving, self.fixed = moving, fixed
        if self.moving.shape[1:] != self.fixed.shape[1:]:
            raise ValueError(
                "Expected moving and fixed images of equal size and channels; pad, resample or "
                f"convert one to the other first. Received: {self.moving.shape[1:]} and "
                f"{self.fixed.shape[1:]}."
            )
        if batch_size < 1:
            raise ValueError(f"Expected `batch_size` >= 1. Received: {batch_size}.")
        self.batch_size = batch_size

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image, ``(*spatial, channels)``: what the model builders take."""
        return self.moving.shape[1:]

    def indices(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return which moving and which fixed images make up batch number `batch`."""
        raise NotImplementedError(f"{type(self).__name__} must define indices().")

    def __getitem__(self, batch: int):
        moving, fixed = self.indices(batch)
        return ({"moving": to_float(self.moving[moving]), "fixed": to_float(self.fixed[fixed])},)


class OrderedPairs(PairDataset):
    """Pairs of equal index, moving[i] with fixed[i], in order or shuffled.

    Args:
        moving, fixed: stacks of equally many images of equal size, see `PairDataset`.
        batch_size: pairs a batch; the last may be smaller.
        shuffle: whether each epoch draws another order.
        seed: of the order.

    Raises:
        ValueError: see `PairDataset`; also if there are not as many moving as fixed images.
    """

    def __init__(
        self, moving, fixed, *, batch_size: int = 32, shuffle: bool = False, seed: int = 0, **kwargs
    ):
        super().__init__(moving, fixed, batch_size=batch_size, **kwargs)
        if self.moving.shape[0] != self.fixed.shape[0]:
            raise ValueError(
                "Expected as many moving as fixed images. Received: "
                f"{self.moving.shape[0]} and {self.fixed.shape[0]}."
            )
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0
        self.on_epoch_end(0)

    def __len__(self) -> int:
        return -(-self.moving.shape[0] // self.batch_size)

    def indices(self, batch):
        """Return the same images on both sides, in the order of this epoch."""
        chosen = self._order[batch * self.batch_size : (batch + 1) * self.batch_size]
        return chosen, chosen

    def on_epoch_end(self, step: int = 1):
        """Draw the order of the next epoch."""
        self.epoch += step
        order = np.arange(self.moving.shape[0])
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        self._order = order


class ArrayPairs(OrderedPairs):
    """Pairs given one by one in arrays: moving[i] with fixed[i].

    Args:
        moving, fixed: ``(n, *spatial[, channels])``, equal shapes.
        batch_size: pairs a batch; the last may be smaller.
        shuffle: whether each epoch draws another order.
        seed: of the order.

    Raises:
        ValueError: see `as_images` and `OrderedPairs`.
    """

    def __init__(self, moving, fixed, **kwargs):
        super().__init__(as_images(moving, "moving"), as_images(fixed, "fixed"), **kwargs)


def _same_array(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are one: not only overlapping views of one."""
    first, second = a.__array_interface__, b.__array_interface__
    return a.strides == b.strides and all(first[key] == second[key] for key in ("data", "shape"))


class RandomPairs(PairDataset):
    """Random pairs, drawn anew for every batch: any moving with any fixed image, or by label.

    The draw depends on seed, epoch and batch alone: the same seed gives the same pairs (with more
    than one worker on JAX or PyTorch, Keras 3 begins `fit` with a few of the epoch before). Where
    `moving` and `fixed` are the same array, no image is paired with itself.

    Args:
        moving, fixed: ``(n, *spatial[, channels])``, ``(m, *spatial[, channels])``.
        moving_labels, fixed_labels: one integer an image; pairs are then of equal label, labels
            drawn in equal shares. Both or neither.
        batch_size: pairs a batch.
        steps: batches an epoch.
        seed: of the draw.
        fresh: whether each epoch draws other pairs; False for a fixed validation set.

    Raises:
        ValueError: see `as_images` and `PairDataset`; also if labels and images do not fit, or no
            label occurs on both sides.
    """

    def __init__(
        self,
        moving,
        fixed,
        *,
        moving_labels=None,
        fixed_labels=None,
        batch_size: int = 32,
        steps: int = 100,
        seed: int = 0,
        fresh: bool = True,
        **kwargs,
    ):
        stacks = as_images(moving, "moving"), as_images(fixed, "fixed")
        super().__init__(*stacks, batch_size=batch_size, **kwargs)
        if steps < 1:
            raise ValueError(f"Expected `steps` >= 1. Received: {steps}.")
        self.steps, self.seed, self.fresh, self.epoch = steps, seed, fresh, 0
        self._groups = self._group(moving_labels, fixed_labels)
        self._same = moving is fixed or _same_array(self.moving, self.fixed)
        if self._same:
            self._groups = [(m, f) for m, f in self._groups if len(f) > 1 or f[0] not in m]
        if not self._groups:
            raise ValueError(
                "Expected at least two images (of one label), since `moving` and `fixed` are the "
                f"same array and no image is paired with itself. Received: {len(self.moving)} "
                "images, no two to pair."
            )

    def _group(self, moving_labels, fixed_labels) -> Sequence[tuple[np.ndarray, np.ndarray]]:
        if moving_labels is None and fixed_labels is None:
            return [(np.arange(len(self.moving)), np.arange(len(self.fixed)))]
        labels = np.asarray(moving_labels), np.asarray(fixed_labels)
        if labels[0].shape != (len(self.moving),) or labels[1].shape != (len(self.fixed),):
            raise ValueError(
                "Expected one label for each moving and each fixed image. Received: labels "
                f"{labels[0].shape} and {labels[1].shape}, images {len(self.moving)} and "
                f"{len(self.fixed)}."
            )
        common = np.intersect1d(*labels)
        if not len(common):
            raise ValueError(
                "Expected a label that occurs on both sides. Received: moving labels "
                f"{np.unique(labels[0])}, fixed labels {np.unique(labels[1])}."
            )
        return [(np.flatnonzero(labels[0] == c), np.flatnonzero(labels[1] == c)) for c in common]

    def __len__(self) -> int:
        return self.steps

    def indices(self, batch):
        """Return random images of equal label on both sides."""
        rng = np.random.default_rng((self.seed, self.epoch if self.fresh else 0, batch))
        groups = rng.integers(len(self._groups), size=self.batch_size)
        place = rng.random((2, self.batch_size))
        pairs = [self._pair(*self._groups[g], *at) for g, at in zip(groups, place.T, strict=True)]
        moving, fixed = np.array(pairs).T
        return moving, fixed

    def _pair(self, moving, fixed, at_moving, at_fixed):
        """Return the images at two places in [0, 1) of a group."""
        chosen = moving[int(at_moving * len(moving))]
        if self._same:
            fixed = fixed[fixed != chosen]
        return chosen, fixed[int(at_fixed * len(fixed))]

    def on_epoch_end(self):
        """Go on to the draws of the next epoch."""
        self.epoch += 1
