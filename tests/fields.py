"""Displacement fields to test with."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

#: Sizes that differ along every axis, so that no two axes can be mistaken for one another.
SHAPES = [(9, 12), (6, 7, 8)]


def grid(shape: Sequence[int]) -> np.ndarray:
    """Return the index of every voxel, ``(*shape, D)``."""
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).astype("float32")


def smooth_field(
    shape: Sequence[int], largest: float, *, sigma: float = 3.0, batch: int = 1, seed: int = 0
) -> np.ndarray:
    """Return random fields ``(batch, *shape, D)``, blurred, with components up to `largest`."""
    noise = np.random.default_rng(seed).normal(size=(batch, *shape, len(shape)))
    blur = (0, *(sigma for _ in shape), 0)
    field = ndimage.gaussian_filter(noise, blur)
    return (largest * field / np.abs(field).max()).astype("float32")


def affine_field(matrix, shift, shape: Sequence[int]) -> np.ndarray:
    """Return u(x) = A x + t on a grid of that shape, ``(1, *shape, D)``."""
    field = grid(shape) @ np.transpose(matrix) + shift
    return field[None].astype("float32")


def interior(array: np.ndarray, margin: int) -> np.ndarray:
    """Return `array` ``(batch, *spatial, any)`` without its outer `margin` voxels."""
    inside = (slice(margin, -margin),) * (array.ndim - 2)
    return array[(slice(None), *inside)]


def random_pair(shape: Sequence[int], *, batch: int = 2, channels: int = 1, seed: int = 0):
    """Return two images that correlate in part, positive values."""
    rng = np.random.default_rng(seed)
    fixed, noise = rng.uniform(size=(2, batch, *shape, channels))
    return fixed.astype("float32"), (0.5 * fixed + 0.5 * noise).astype("float32")
