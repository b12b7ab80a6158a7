"""An array that is read piece by piece, its axes in another order."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


class View:
    """view[i, j, ...]: `base` with its axes in the given order, some of them flipped.

    Args:
        base: has `shape`, `dtype` and slicing, such as an array of zarr.
        order: the axes of `base` that are kept; of those left out, which have one index each,
            that is taken.
        flips: which of the kept axes run backwards; none where None.
    """

    def __init__(self, base: Any, order: Sequence[int], flips: Sequence[bool] | None = None):
        self._base, self._order = base, list(order)
        self._flips = [False] * len(self._order) if flips is None else list(flips)
        self.shape = tuple(int(base.shape[axis]) for axis in self._order)
        self.dtype = np.dtype(base.dtype)
        self.ndim = len(self.shape)
        self.size = math.prod(self.shape)

    def __getitem__(self, index) -> np.ndarray:
        """Return a part, by slices without steps or by integers."""
        index = index if isinstance(index, tuple) else (index,)
        index = [*index, *[slice(None)] * (self.ndim - len(index))]
        whole = [one if isinstance(one, slice) else slice(one, one + 1 or None) for one in index]
        request = [slice(0, 1)] * len(self._base.shape)
        for axis, flip, size, part in zip(self._order, self._flips, self.shape, whole, strict=True):
            start, stop, step = part.indices(size)
            if step != 1:
                raise IndexError(f"Expected slices without steps. Received: {part}.")
            stop = max(start, stop)
            request[axis] = slice(size - stop, size - start) if flip else slice(start, stop)
        values = np.asarray(self._base[tuple(request)])
        left_out = [axis for axis in range(values.ndim) if axis not in self._order]
        values = values.transpose([*self._order, *left_out])
        values = values.reshape(values.shape[: self.ndim])
        values = values[tuple(slice(None, None, -1 if flip else 1) for flip in self._flips)]
        return values[tuple(slice(None) if isinstance(one, slice) else 0 for one in index)]

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        whole = self[()]
        return whole if dtype is None else whole.astype(dtype)
