"""Samplers: which points of the fixed image a step looks at. Drawn anew every step."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Draw = Callable[[np.random.Generator, int], np.ndarray]


class Sampler:
    """Draws sub-pixel points from a density over the voxels of the fixed image.

    Subclasses write ``density(values)``.
    """

    def density(self, values: np.ndarray) -> np.ndarray | None:
        """Return weights of the voxels, or None where all weigh the same.

        Args:
            values: one level of one image, ``(*spatial, channels)``.

        Returns:
            None or non-negative weights ``spatial``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define density().")

    def drawer(self, values: np.ndarray, mask: np.ndarray | None) -> Draw:
        """Return ``draw(generator, n) -> (n, D)`` voxel indices, float, neighbours in turn.

        Args:
            values: one level of one image, ``(*spatial, channels)``.
            mask: None or weights of the voxels, ``spatial``.

        Raises:
            ValueError: if no voxel has a weight.
        """
        shape = values.shape[:-1]
        density = self.density(values)
        if mask is not None:
            density = mask if density is None else density * mask
        if density is None:
            return lambda generator, n: _stratified(generator, shape, n)
        total = np.cumsum(density, dtype="float64", axis=None)
        if not total[-1] > 0:
            raise ValueError(
                "Expected the fixed image to have voxels to sample: a mask, or edges, within it. "
                "Received: weights that are all zero; widen the mask, or use UniformSampler()."
            )
        return lambda generator, n: _systematic(generator, shape, total, n)


@dataclass(frozen=True)
class UniformSampler(Sampler):
    """Every point of the fixed image, or of its mask, is as likely: one point a cell of a grid."""

    def density(self, values: np.ndarray) -> np.ndarray | None:
        """Return None: all voxels weigh the same."""
        return None


@dataclass(frozen=True)
class EdgeSampler(Sampler):
    """Points near edges are likelier: p(x) ~ floor + abs(grad f(x)) / mean(abs(grad f)).

    Args:
        floor: share that flat regions keep; 0 samples edges alone.
    """

    floor: float = 0.1

    def density(self, values: np.ndarray) -> np.ndarray | None:
        """Return the gradient's magnitude over its mean, plus the floor."""
        axes = [axis for axis, size in enumerate(values.shape[:-1]) if size > 1]
        squares = sum(np.square(np.gradient(values, axis=axis)) for axis in axes)
        magnitude = np.sqrt(np.sum(squares, axis=-1))
        mean = magnitude.mean()
        return self.floor + (magnitude / mean if mean > 0 else 0 * magnitude)


def _stratified(generator: np.random.Generator, shape: Sequence[int], n: int) -> np.ndarray:
    """One uniform point in each of about n equal cells, exactly n in all."""
    volume = math.prod(shape)
    cells = [max(round(size * (n / volume) ** (1 / len(shape))), 1) for size in shape]
    while math.prod(cells) > n:  # never more cells than points
        cells[int(np.argmax(cells))] -= 1
    grid = np.indices(cells, dtype="float32").reshape(len(shape), -1).T
    # What is missing to n falls anywhere.
    extra = generator.random((n - len(grid), len(shape)), dtype="float32") * np.asarray(cells)
    points = grid + generator.random(grid.shape, dtype="float32")
    points = np.concatenate([points, extra.astype("float32")])
    return points * (np.asarray(shape, "float32") / cells).astype("float32") - 0.5


def _systematic(generator, shape: Sequence[int], total: np.ndarray, n: int) -> np.ndarray:
    """Points spread evenly over the summed density, each anywhere within its voxel."""
    marks = (np.arange(n) + generator.random(n)) * (total[-1] / n)
    index = np.minimum(np.searchsorted(total, marks, side="right"), len(total) - 1)
    points = np.stack(np.unravel_index(index, shape), axis=-1).astype("float32")
    points += generator.random(points.shape, dtype="float32") - 0.5
    return points
