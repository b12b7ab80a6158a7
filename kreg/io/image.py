"""Images with the grid that says where their voxels lie in the world."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kreg.io.view import View

#: What the world's coordinates count.
UNITS = ("px", "mm")


def pixel_affine(dimensions: int) -> np.ndarray:
    """Return the affine of an array that knows no frame: (x, y[, z]) are its axes, last first."""
    affine = np.eye(dimensions + 1)
    affine[:-1, :-1] = affine[:-1, :-1][::-1]
    return affine


@dataclass(frozen=True, eq=False)
class Grid:
    """world = affine @ voxel: where the voxels of an image lie.

    Args:
        shape: the D spatial sizes.
        affine: homogeneous ``(D + 1, D + 1)`` from voxel indices, in the order of `shape`, to
            the world (`kreg.io`); pixels, (x, y) = (column, row), where None.
        unit: "mm", or "px" where the spacing is unknown.
        plane: of a 2-D image that is a slice of a scan, where its world lies in that of the scan:
            homogeneous ``(4, 4)``, from (x, y, slice) to (x, y, z); the third column is the step
            to the next slice. None where nothing is known of it.

    Raises:
        ValueError: if the affine does not fit the shape, or one cannot be inverted.
    """

    shape: tuple[int, ...]
    affine: Any = None
    unit: str = "px"
    plane: Any = None

    def __post_init__(self):
        shape = tuple(int(size) for size in self.shape)
        dimensions = len(shape)
        given = pixel_affine(dimensions) if self.affine is None else self.affine
        affine = np.array(given, "float64")
        size = dimensions + 1
        if dimensions not in (2, 3) or 0 in shape or affine.shape != (size, size):
            raise ValueError(
                "Expected 2 or 3 spatial sizes above 0 and an affine of one row and column more. "
                f"Received: sizes {shape}, affine of shape {affine.shape}."
            )
        _check_affine(affine)
        if self.unit not in UNITS:
            raise ValueError(f'Expected the unit "mm" or "px". Received: {self.unit!r}.')
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)
        if self.plane is not None:
            plane = np.array(self.plane, "float64")
            if dimensions != 2 or plane.shape != (4, 4):
                raise ValueError(
                    "Expected a plane (4, 4) of a 2-D image, none of a volume. Received: shape "
                    f"{plane.shape}, {dimensions}-D."
                )
            _check_affine(plane)
            object.__setattr__(self, "plane", plane)

    @property
    def dimensions(self) -> int:
        """The number of spatial axes."""
        return len(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """The distance of voxel centres along each axis of the array."""
        return tuple(np.linalg.norm(self.affine[:-1, :-1], axis=0).tolist())

    @property
    def directions(self) -> np.ndarray:
        """The world direction of each axis of the array, a unit column each, ``(D, D)``."""
        return self.affine[:-1, :-1] / self.spacing

    @property
    def sheared(self) -> bool:
        """Whether the axes, of a slice those of its scan, are not at right angles, as ITK minds."""
        axes = (self.affine if self.plane is None else self.scan)[:-1, :-1]
        axes = axes / np.linalg.norm(axes, axis=0)
        return bool(abs(axes.T @ axes - np.eye(len(axes))).max() > 1e-4)

    @property
    def scan(self) -> np.ndarray:
        """Voxels (i, j[, k]) to (x, y, z), ``(4, 4)``: of a 2-D grid, as one slice of a scan."""
        whole = np.eye(4)
        rows = [*range(self.dimensions), 3]
        whole[np.ix_(rows, rows)] = self.affine
        return whole if self.plane is None else self.plane @ whole

    def agrees_with(self, other: "Grid") -> bool:
        """Whether voxels of the same indices lie in the same places, as far as both units tell.

        A tenth of a voxel is borne, which rounded headers differ by.
        """
        if (self.unit, other.unit) != ("mm", "mm"):
            return True
        known = self.plane is not None and other.plane is not None
        one, two = (grid.scan if known else grid.affine for grid in (self, other))
        corners = np.array(list(itertools.product(*([0, size - 1] for size in self.shape))))
        corners = np.pad(corners, [(0, 0), (0, len(one) - 1 - self.dimensions)])
        apart = corners @ (one - two)[:-1, :-1].T + (one - two)[:-1, -1]
        return bool(abs(apart).max() <= 0.1 * min(self.spacing))

    @property
    def orientation(self) -> str:
        """Where each axis of the array points to, such as "LPS" or "xy" in pixels."""
        names = ["LR", "PA", "SI"] if self.unit == "mm" and self.dimensions == 3 else "xyz"
        order, flips = closest_axes(np.eye(self.dimensions), self.directions)
        letters = {axis: names[i][-1 if flips[i] else 0] for i, axis in enumerate(order)}
        return "".join(letters[axis] for axis in range(self.dimensions))


@dataclass(frozen=True, eq=False)
class Image:
    """An array of grey values or channels, and where its voxels lie.

    Args:
        array: ``(*spatial)`` or ``(*spatial, channels)``, real numbers, of 2 or 3 spatial axes.
            Anything with `shape`, `dtype` and slicing will do (memory-mapped, zarr).
        affine: voxel indices, in the order of the array's axes, to the world (`kreg.io`), which
            also tells channels from a third spatial axis. Where None the world is pixels, and an
            array of rank 3 has channels if its last axis is 4 or shorter.
        unit: "mm", or "px" where the spacing is unknown.
        source: where it came from, for messages.
        plane: where a 2-D image lies in the scan that it is a slice of (`Grid`).

    Raises:
        ValueError: if the values are not real numbers, or array and affine do not fit.
    """

    array: Any = field(repr=False)
    affine: Any = None
    unit: str = "px"
    source: str = ""
    plane: Any = None

    def __post_init__(self):
        array = self.array if hasattr(self.array, "dtype") else np.asarray(self.array)
        shape = tuple(int(size) for size in array.shape)
        if np.dtype(array.dtype).kind not in "biuf":
            raise ValueError(
                "Expected an image of real numbers; of complex ones take `abs`. "
                f"Received: dtype {array.dtype}."
            )
        rank = len(shape)
        if self.affine is None:
            dimensions = 2 if rank == 2 or (rank == 3 and shape[-1] <= 4) else 3
        else:
            dimensions = len(self.affine) - 1
        if rank not in (dimensions, dimensions + 1) or 0 in shape:
            raise ValueError(
                "Expected an array (*spatial) or (*spatial, channels) with 2 or 3 spatial axes "
                f"and an affine of one row and column more. Received: shape {shape}."
            )
        grid = Grid(shape[:dimensions], self.affine, self.unit, self.plane)
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "affine", grid.affine)
        object.__setattr__(self, "plane", grid.plane)

    @property
    def grid(self) -> Grid:
        """Where its voxels lie."""
        return Grid(self.array.shape[: len(self.affine) - 1], self.affine, self.unit, self.plane)

    @property
    def shape(self) -> tuple[int, ...]:
        """The spatial sizes."""
        return self.grid.shape

    @property
    def dimensions(self) -> int:
        """The number of spatial axes."""
        return len(self.affine) - 1

    @property
    def channels(self) -> int | None:
        """The number of channels; None without an axis of them."""
        rank = len(self.array.shape)
        return int(self.array.shape[-1]) if rank > self.dimensions else None

    @property
    def spacing(self) -> tuple[float, ...]:
        """The distance of voxel centres along each axis of the array."""
        return self.grid.spacing


def _check_affine(affine: np.ndarray) -> None:
    """Raise `ValueError` unless it is finite and can be inverted; let nothing be written to it."""
    fits = np.isfinite(affine).all() and (affine[-1] == np.eye(len(affine))[-1]).all()
    steps = np.linalg.norm(affine[:-1, :-1], axis=0)
    # Relative to the steps, so that the unit does not matter.
    if not fits or not steps.all() or abs(np.linalg.det(affine[:-1, :-1] / steps)) < 1e-6:
        raise ValueError(
            "Expected an affine that is finite, can be inverted and whose last row is "
            f"0 ... 0 1. Received: {affine.tolist()}."
        )
    affine.setflags(write=False)


def closest_axes(target: np.ndarray, directions: np.ndarray) -> tuple[list[int], list[bool]]:
    """Return the axes, and which of them to flip, that lie along the target's axes.

    Args:
        target, directions: world directions as unit columns, ``(D, D)``.
    """
    along = target.T @ directions
    dimensions = len(along)
    order = max(
        itertools.permutations(range(dimensions)),
        key=lambda axes: sum(abs(along[i, axis]) for i, axis in enumerate(axes)),
    )
    return list(order), [bool(along[i, axis] < 0) for i, axis in enumerate(order)]


def reordering(shape: tuple[int, ...], order: list[int], flips: list[bool]) -> np.ndarray:
    """Return the matrix from voxels of the reordered array to voxels of the array."""
    dimensions = len(shape)
    matrix = np.zeros((dimensions + 1, dimensions + 1))
    matrix[-1, -1] = 1
    for axis, (old, flip) in enumerate(zip(order, flips, strict=True)):
        matrix[old, axis] = -1 if flip else 1
        matrix[old, -1] = shape[old] - 1 if flip else 0
    return matrix


def reordered(array: Any, order: list[int], flips: list[bool]) -> Any:
    """Return the array with its spatial axes in another order, some flipped; nothing is copied."""
    rank = len(array.shape)
    order = [*order, *range(len(order), rank)]
    flips = [*flips, *[False] * (rank - len(flips))]
    if order == list(range(rank)) and not any(flips):
        return array
    if isinstance(array, np.ndarray):
        return array.transpose(order)[tuple(slice(None, None, -1 if f else 1) for f in flips)]
    return View(array, order, flips)


def row_by_row(image: Image) -> np.ndarray:
    """Return the array as pictures have it: columns along x, rows along y, slices along z."""
    order, flips = closest_axes(np.eye(image.dimensions), image.grid.directions)
    return np.asarray(reordered(image.array, order[::-1], flips[::-1]))
