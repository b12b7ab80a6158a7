"""From the voxels of one image to those of another, and images carried along, piece by piece."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Voxels that are resampled at once.
CHUNK = 2**20
#: Steps of the inverse of a displacement, at most, and when it has arrived, voxels.
_INVERSIONS, _ARRIVED = 50, 1e-6
#: How far beside its end a point may come to lie, voxels; of Newton's, the step of its
#: derivatives, voxels, and how often a step is halved.
_MISSED, _STEP, _HALVINGS = 1e-3, 1e-3, 8


def carried(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return where a homogeneous matrix ``(D + 1, D + 1)`` sends points ``(..., D)``."""
    image = points @ matrix[:-1, :-1].T + matrix[:-1, -1]
    if matrix[-1, :-1].any() or matrix[-1, -1] != 1:
        return image / (points @ matrix[-1, :-1] + matrix[-1, -1])[..., None]
    return image


@dataclass(frozen=True, eq=False)
class Mapping:
    """y = H (x + u(x)), x and y voxel indices.

    Args:
        matrix: H, homogeneous ``(D + 1, D + 1)``.
        field: u, ``(*spatial, D)``; 0 where None. Linear between voxels, beyond the grid as at
            its border.
    """

    matrix: np.ndarray
    field: np.ndarray | None = dataclasses.field(default=None, repr=False)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Return where points ``(..., D)`` go."""
        return carried(self.matrix, self.displaced(points))

    def displaced(self, points: np.ndarray) -> np.ndarray:
        """Return x + u(x)."""
        return points if self.field is None else points + _at(self.field, points)

    def inverse(self, points: np.ndarray) -> np.ndarray:
        """Return what comes to points ``(..., D)``.

        Through a displacement by fixed-point iteration, and where that does not arrive by
        Newton's steps from the voxel that comes closest. NaN where neither arrives.
        """
        ends = carried(np.linalg.inv(self.matrix), points)
        if self.field is None:
            return ends
        ends = np.asarray(ends, "float64")
        points = ends
        for _ in range(_INVERSIONS):
            before, points = points, ends - _at(self.field, points)
            if points.size == 0 or np.nanmax(np.abs(points - before)) < _ARRIVED:
                break
        missed = np.linalg.norm(self.displaced(points) - ends, axis=-1)
        late = np.isfinite(ends).all(-1) & ~(missed < _MISSED)
        if late.any():
            points = points.copy()
            points[late] = _newton(self.field, ends[late])
        return points


def _newton(field: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return x with x + u(x) = ends, ``(points, D)``: NaN where none is found."""
    from scipy.spatial import cKDTree

    voxels: np.ndarray = np.moveaxis(np.indices(field.shape[:-1], dtype="float64"), 0, -1)
    voxels = voxels.reshape(-1, ends.shape[-1])
    closest = cKDTree(voxels + field.reshape(voxels.shape)).query(ends)[1]
    points: np.ndarray = voxels[closest]
    rest = points + _at(field, points) - ends
    for _ in range(_INVERSIONS):
        columns = [
            axis
            + (_at(field, points + _STEP * axis) - _at(field, points - _STEP * axis)) / 2 / _STEP
            for axis in np.eye(ends.shape[-1])
        ]
        step = (np.linalg.pinv(np.stack(columns, -1)) @ rest[..., None])[..., 0]
        for _ in range(_HALVINGS):  # until the point comes closer
            tried = points - step
            left = tried + _at(field, tried) - ends
            better = np.linalg.norm(left, axis=-1) < np.linalg.norm(rest, axis=-1)
            points, rest = (
                np.where(better[:, None], new, old) for new, old in ((tried, points), (left, rest))
            )
            step = np.where(better[:, None], 0, step / 2)
            if better.all():
                break
        if np.linalg.norm(rest, axis=-1).max() < _ARRIVED:
            break
    points[np.linalg.norm(rest, axis=-1) > _MISSED] = np.nan
    return points


def _at(values: np.ndarray, points: np.ndarray) -> np.ndarray:
    import scipy.ndimage

    coordinates = points.reshape(-1, points.shape[-1]).T
    components = [
        scipy.ndimage.map_coordinates(component, coordinates, order=1, mode="nearest")
        for component in np.moveaxis(values, -1, 0)
    ]
    return np.stack(components, axis=-1).reshape(points.shape)


def pieces(shape: tuple[int, ...], chunk: int | None = None) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield a slice of rows, and their voxel indices ``(rows, ..., D)``, until the grid is done.

    Args:
        shape: the D sizes of the grid.
        chunk: voxels at once, about; `CHUNK` where None.
    """
    rows = max(1, (chunk or CHUNK) // max(int(np.prod(shape[1:])), 1))
    for start in range(0, shape[0], rows):
        stop = min(start + rows, shape[0])
        grid = np.indices((stop - start, *shape[1:]), dtype="float64")
        grid[0] += start
        yield slice(start, stop), np.moveaxis(grid, 0, -1)


#: ``(part (*spatial, channels), points (..., D)) -> (..., channels)``.
Sampler = Callable[[np.ndarray, np.ndarray], np.ndarray]


def resampled(array: Any, points: np.ndarray, dimensions: int, sampler: Sampler) -> np.ndarray:
    """Return an array's values at points ``(..., D)``, reading no more of it than they touch.

    Args:
        array: ``(*spatial)`` or ``(*spatial, channels)``.
        points: voxel indices; NaN lies outside.
        dimensions: the number of spatial axes.
        sampler: `linear` or `nearest`.
    """
    last = np.asarray(array.shape[:dimensions]) - 1
    axes = tuple(range(points.ndim - 1))
    points = np.where(np.isfinite(points), points, -2)  # beyond the first voxel
    # One voxel around: what is outside then is so beyond the whole image alone.
    low = np.clip(np.floor(points.min(axes)) - 1, 0, last).astype(int)
    high = np.clip(np.ceil(points.max(axes)) + 2, low + 1, last + 1).astype(int)
    part = np.asarray(array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))])
    part = part if part.ndim > dimensions else part[..., None]
    local = np.clip(points - low, -2, high - low + 1)
    return sampler(part, local)


def linear(part: np.ndarray, points: np.ndarray, outside: float = 0.0) -> np.ndarray:
    """Return values between voxels, linear: float32, or float64 of integers above 16 bits."""
    import scipy.ndimage

    coordinates = np.moveaxis(points, -1, 0)
    if part.dtype.kind == "f" and part.dtype.itemsize not in (4, 8):  # SciPy has no others
        part = part.astype("float32")
    dtype = "float64" if part.dtype.kind in "iu" and part.dtype.itemsize > 2 else "float32"
    layers = [
        scipy.ndimage.map_coordinates(
            layer, coordinates, dtype, order=1, mode="grid-constant", cval=outside
        )
        for layer in np.moveaxis(part, -1, 0)
    ]
    return np.stack(layers, axis=-1)


def nearest(part: np.ndarray, points: np.ndarray, outside: float = 0.0) -> np.ndarray:
    """Return the values of the nearest voxels, in their own dtype; halves round up."""
    index = np.floor(points + 0.5).astype(int)
    last = np.asarray(part.shape[:-1]) - 1
    inside = np.all((index >= 0) & (index <= last), axis=-1, keepdims=True)
    values = part[tuple(np.moveaxis(np.clip(index, 0, last), -1, 0))]
    return np.where(inside, values, np.asarray(outside).astype(part.dtype))
