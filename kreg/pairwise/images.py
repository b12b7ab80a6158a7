"""What a user hands to `register`, checked: arrays in memory, or read piece by piece."""

from collections.abc import Sequence
from typing import Any

import numpy as np

#: An image of more voxels is read in pieces: whole only after averaging blocks of voxels.
IN_MEMORY = 2**23


class Image:
    """One image or a batch of them, ``(batch, *spatial, channels)``, in memory or not.

    Args:
        array: ``(*spatial)``, or ``(*spatial, channels)`` in 2-D, for one image, ``(batch,
            *spatial, channels)`` for a batch. An array of rank 3 is a 2-D image with channels if
            its last axis is 4 or shorter, else a volume. Anything with `shape`, `dtype` and
            slicing will do (NumPy, memory-mapped, zarr, tensors).
        name: what error messages call it.

    Attributes:
        single: whether it came without a batch axis.
        shape: the spatial sizes.
        channels, batch: their numbers.
    """

    def __init__(self, array: Any, name: str):
        self.name = name
        if isinstance(array, np.ma.MaskedArray):
            raise ValueError(
                f"Expected `{name}` without a mask of its own: pass `{name}.data`, and "
                f"`~{name}.mask` as `{name}_mask`. Received: a masked array."
            )
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            array = np.asarray(array)
        dtype = str(getattr(array.dtype, "name", array.dtype)).replace("torch.", "")
        if not any(kind in dtype for kind in ("int", "float", "bool")) or "complex" in dtype:
            raise ValueError(f"Expected `{name}` to hold real numbers. Received: dtype {dtype}.")
        shape = tuple(int(size) for size in array.shape)
        rank = len(shape)
        if rank not in (2, 3, 4, 5) or 0 in shape:
            raise ValueError(
                f"Expected `{name}` of shape (*spatial), (*spatial, channels) or (batch, "
                f"*spatial, channels), 2-D or 3-D, and not empty. Received: shape {shape}."
            )
        self._array = array
        self.single = rank < 4
        grey = rank == 2 or (rank == 3 and shape[-1] > 4)
        self._grey = grey
        self.batch = 1 if self.single else shape[0]
        self.channels = 1 if grey else shape[-1]
        self.shape = shape if grey else shape[0 if self.single else 1 : -1]
        if max(self.shape) < 4 or min(self.shape) < 2:
            raise ValueError(
                f"Expected `{name}` to have at least 2 voxels along each spatial axis and 4 along "
                "the longest; a single slice is a 2-D image (`volume[0]`), channels come last. "
                f"Received: shape {shape}."
            )

    @property
    def voxels(self) -> int:
        """Voxels of one image."""
        return int(np.prod([float(size) for size in self.shape]))

    def read(self, *slices: slice) -> np.ndarray:
        """Return a part ``(batch, *spatial, channels)`` as float32.

        Raises:
            ValueError: if it holds NaN or infinite values.
        """
        index = slices or tuple(slice(None) for _ in self.shape)
        part = self._array[index if self.single else (slice(None), *index)]
        if hasattr(part, "detach"):
            part = part.detach().cpu()
        part = np.asarray(part).astype("float32")
        if not np.isfinite(part).all():
            raise ValueError(
                f"Expected `{self.name}` to be finite. Received: NaN or infinite values; fill "
                "them (`numpy.nan_to_num`) and leave them out by a mask."
            )
        part = part[..., None] if self._grey else part
        return part[None] if self.single else part

    def reduced(self, factor: int) -> np.ndarray:
        """Return the image averaged over blocks of `factor` voxels along every axis.

        What is left over at the far ends is left out. At most a few rows are in memory at once.
        """
        if factor == 1:
            return self.read()
        sizes = [max(size // factor, 1) for size in self.shape]
        result = np.empty((self.batch, *sizes, self.channels), "float32")
        rows = max(1, 2**24 // max(self.voxels // self.shape[0] * factor * self.channels, 1))
        for start in range(0, sizes[0], rows):
            stop = min(start + rows, sizes[0])
            slices = [slice(start * factor, stop * factor)]
            slices += [slice(0, size * factor) for size in sizes[1:]]
            result[:, start:stop] = block_mean(self.read(*slices), factor)
        return result


def block_mean(part: np.ndarray, factor: int) -> np.ndarray:
    """Return means over blocks of `factor` voxels along each axis that is as long."""
    for axis in range(1, part.ndim - 1):
        step = min(factor, part.shape[axis])
        size = part.shape[axis] // step
        shape = (*part.shape[:axis], size, step, *part.shape[axis + 1 :])
        part = part.reshape(shape).mean(axis=axis + 1, dtype="float32")
    return part


def as_mask(mask: Any, image: Image, name: str) -> Image | None:
    """Return the mask of an image as an `Image` of one channel, checked, or None.

    Raises:
        ValueError: if it does not fit the image.
    """
    if mask is None:
        return None
    if not hasattr(mask, "shape"):
        mask = np.asarray(mask)
    if not image.single and len(mask.shape) == len(image.shape) + 1:
        mask = mask[..., None]  # (batch, *spatial)
    checked = Image(mask, name)
    if (
        checked.shape != image.shape
        or checked.channels != 1
        or checked.batch not in (1, image.batch)
    ):
        raise ValueError(
            f"Expected `{name}` of the spatial shape {image.shape} of its image. "
            f"Received: shape {tuple(mask.shape)}."
        )
    return checked


def check_weights(weights: np.ndarray, name: str) -> None:
    """Raise ValueError for weights of voxels beyond [0, 1], or an image where all are 0."""
    largest = weights.reshape(len(weights), -1).max(axis=1)
    if weights.min() < 0 or largest.max() > 1 + 1e-6 or largest.min() == 0:
        raise ValueError(
            f"Expected `{name}` to hold weights from 0 to 1, in every image some above 0; other "
            f"values become such by `{name} > 0`. Received: {weights.min():.3g} to "
            f"{largest.max():.3g}, at most {largest.min():.3g} in one image."
        )


def check_spacing(spacing: Sequence[float] | None, dimensions: int, name: str) -> np.ndarray:
    """Return the spacing as an array, ones where None, or raise ValueError."""
    if spacing is None:
        return np.ones(dimensions)
    values = np.asarray(spacing, "float64")
    if values.shape != (dimensions,) or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(
            f"Expected `{name}` to be {dimensions} positive numbers. Received: {spacing}."
        )
    return values
