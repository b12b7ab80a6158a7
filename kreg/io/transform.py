"""A transform between the worlds of two images."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from kreg.io.image import Grid, Image
from kreg.mapping import Mapping, carried, linear, nearest, pieces, resampled


@dataclass(frozen=True, eq=False)
class Transform:
    """y = A M_fixed (x + u(x)): from voxels x of the fixed image to points y of the moving world.

    It pulls back: an image is carried along by reading it, for each voxel of the fixed grid, at
    the point where that voxel goes.

    Args:
        matrix: A, homogeneous ``(D + 1, D + 1)``: world points of the fixed image to world points
            of the moving one (`kreg.io`), affine or a homography.
        fixed, moving: the grids of the two images; M_fixed is the affine of the fixed one.
        field: u, ``(*fixed spatial, D)`` in voxels of the fixed image; None for a linear
            transform.

    Raises:
        ValueError: if the sizes do not fit, or the values are not finite, or A has no inverse.
    """

    matrix: np.ndarray
    fixed: Grid
    moving: Grid
    field: np.ndarray | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self):
        matrix = np.array(self.matrix, "float64")
        dimensions = self.fixed.dimensions
        size = dimensions + 1
        if self.moving.dimensions != dimensions or matrix.shape != (size, size):
            raise ValueError(
                "Expected two grids of D dimensions and a matrix (D + 1, D + 1). Received: "
                f"{dimensions}-D and {self.moving.dimensions}-D, and shape {matrix.shape}."
            )
        if not np.isfinite(matrix).all() or not matrix[-1, -1] or not np.linalg.det(matrix):
            raise ValueError(
                "Expected a matrix that is finite, can be inverted and whose last entry is not 0. "
                f"Received: {matrix.tolist()}."
            )
        object.__setattr__(self, "matrix", matrix / matrix[-1, -1])
        if self.field is not None:
            shape = (*self.fixed.shape, dimensions)
            if np.shape(self.field) != shape or not np.isfinite(self.field).all():
                raise ValueError(
                    f"Expected a finite displacement of shape {shape}. "
                    f"Received: shape {np.shape(self.field)}."
                )

    @classmethod
    def from_registration(
        cls, registration: Any, fixed: Image | None = None, moving: Image | None = None
    ) -> "Transform":
        """Return what `kreg.register` found, between the worlds of the two images.

        Args:
            registration: a `kreg.Registration`.
            fixed, moving: the images whose arrays were registered; in pixels times the spacings
                that were passed, centred, where None.
        """
        first, second = (
            _centred(shape, spacing) if image is None else image.grid
            for image, shape, spacing in (
                (fixed, registration.fixed_shape, registration.fixed_spacing),
                (moving, registration.moving.shape, registration.moving_spacing),
            )
        )
        matrix = second.affine @ registration.voxel_matrix @ np.linalg.inv(first.affine)
        return cls(matrix, first, second, registration.field)

    @cached_property
    def mapping(self) -> Mapping:
        """From voxels of the fixed grid to voxels of the moving grid."""
        matrix = np.linalg.inv(self.moving.affine) @ self.matrix @ self.fixed.affine
        return Mapping(matrix / matrix[-1, -1], self.field)

    def transform_points(self, points) -> np.ndarray:
        """Return where voxels ``(..., D)`` of the fixed image lie in the moving image, voxels."""
        return self.mapping(np.asarray(points, "float64"))

    def inverse_transform_points(self, points) -> np.ndarray:
        """Return where voxels ``(..., D)`` of the moving image lie in the fixed image, voxels."""
        return self.mapping.inverse(np.asarray(points, "float64"))

    def transform_world_points(self, points) -> np.ndarray:
        """Return where world points ``(..., D)`` of the fixed image lie in the moving world."""
        voxels = carried(np.linalg.inv(self.fixed.affine), np.asarray(points, "float64"))
        return carried(self.moving.affine, self.mapping(voxels))

    def inverse_transform_world_points(self, points) -> np.ndarray:
        """Return where world points ``(..., D)`` of the moving image lie in the fixed world."""
        voxels = carried(np.linalg.inv(self.moving.affine), np.asarray(points, "float64"))
        return carried(self.fixed.affine, self.mapping.inverse(voxels))

    def apply(
        self, image: Image, grid: Grid | None = None, *, labels: bool = False, outside: float = 0.0
    ) -> Image:
        """Return an image that lies in the moving world, laid over the fixed one.

        Args:
            image: lies where its own affine says: the moving image, or another of its world.
            grid: the grid of the result, in the fixed world; that of the fixed image if None.
            labels: whether to take the nearest voxel, not values between voxels.
            outside: the value beyond the image.

        Returns:
            An image of the dtype of `image`, rounded and clipped where that is integers, or
            float32 where it is floats.

        Raises:
            ValueError: if the image or the grid has another number of dimensions, or another unit
                than the transform; or if the dtype cannot hold `outside`.
        """
        grid = self.fixed if grid is None else grid
        for given, own, name in ((image, self.moving, "an image"), (grid, self.fixed, "a grid")):
            if (given.dimensions, given.unit) != (own.dimensions, own.unit):
                raise ValueError(
                    f"Expected {name} of {own.dimensions} dimensions in {own.unit}. Received: "
                    f"{given.dimensions} dimensions in {given.unit}."
                )
        dimensions = grid.dimensions
        dtype = np.dtype(image.array.dtype)
        if not labels and dtype.kind == "f":
            dtype = np.dtype("float32")
        if dtype.kind in "biu" and not _holds(dtype, outside):
            raise ValueError(
                f"Expected a value of outside that {dtype} can hold. Received: {outside:g}."
            )
        # The affine of the image itself, which may have other voxels than the moving one.
        last = np.linalg.inv(image.affine) @ self.moving.affine @ self.mapping.matrix
        mapping = Mapping(last / last[-1, -1], self.field)
        first = np.linalg.inv(self.fixed.affine) @ grid.affine
        sampler = partial(nearest if labels else linear, outside=outside)
        channels = () if image.channels is None else (image.channels,)
        result = np.empty((*grid.shape, *channels), dtype)
        for rows, voxels in pieces(grid.shape):
            points = mapping(voxels if grid is self.fixed else carried(first, voxels))
            values = resampled(image.array, points, dimensions, sampler)
            values = values if channels else values[..., 0]
            result[rows] = values if labels else _rounded(values, dtype)
        return Image(result, grid.affine, grid.unit, image.source, grid.plane)

    def inverse(self) -> "Transform":
        """Return the transform from the moving image to the fixed one.

        A displacement is inverted voxel by voxel of the moving grid.

        Raises:
            ValueError: if some voxel finds no inverse, as where the displacement folds.
        """
        field = None
        if self.field is not None:
            # x = inv(H) (y + u'(y)), so u'(y) = H x - y.
            field = np.empty((*self.moving.shape, self.moving.dimensions), "float32")
            for rows, voxels in pieces(self.moving.shape):
                field[rows] = carried(self.mapping.matrix, self.mapping.inverse(voxels)) - voxels
            lost = int(np.isnan(field).any(-1).sum())
            if lost:
                raise ValueError(
                    "Expected a displacement that can be inverted. Received: one without an "
                    f"inverse at {lost} of {field[..., 0].size} voxels, as where it folds."
                )
        return Transform(np.linalg.inv(self.matrix), self.moving, self.fixed, field)


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "f":
        return values
    if dtype.kind == "b":
        return values >= 0.5
    limits = np.iinfo(dtype)
    # In float64, where the limits of 32 bits are exact; the highest of 64 rounds up, beyond it.
    highest = float(limits.max)
    highest = highest if int(highest) <= limits.max else float(np.nextafter(highest, 0))
    return np.clip(np.rint(values.astype("float64")), limits.min, highest).astype(dtype)


def _holds(dtype: np.dtype, value: float) -> bool:
    """Whether booleans or integers have the value."""
    limits = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return bool(np.isfinite(value)) and value == int(value) and limits[0] <= value <= limits[1]


def _centred(shape: tuple[int, ...], spacing: tuple[float, ...]) -> Grid:
    steps = np.asarray(spacing)
    affine = np.diag([*steps, 1.0])
    affine[:-1, -1] = -steps * (np.asarray(shape) - 1) / 2
    return Grid(shape, affine)
