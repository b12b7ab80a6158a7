"""Cubic B-splines: smooth displacement fields from a coarse grid of control points."""

import math
from collections.abc import Sequence

import numpy as np

from kreg.ops.coordinates import COORDINATE_DTYPE, check_displacement
from kreg.ops.filters import along_axis


def _spacings(spacing, dimensions: int) -> list[float]:
    """Return one positive spacing for each axis, or raise ValueError."""
    spacings = np.asarray(spacing, "float64")
    if spacings.shape not in ((), (dimensions,)) or not np.all(spacings > 0):
        raise ValueError(
            "Expected `spacing` to be a positive number of voxels, or one for each of the "
            f"{dimensions} spatial axes. Received: {spacing}."
        )
    return np.broadcast_to(spacings, dimensions).tolist()


def _number(size: int, spacing: float) -> int:
    return math.ceil((size - 1) / spacing) + 3


def bspline_grid_shape(shape: Sequence[int], spacing: float | Sequence[float]) -> tuple[int, ...]:
    """g_d = ceil((n_d - 1) / spacing_d) + 3: control points that an image needs along each axis.

    Control point i lies at voxel (i - 1) * spacing: the grid begins one spacing before the first
    voxel and ends at least one beyond the last, so that each voxel has all its support.

    Args:
        shape: the D spatial sizes.
        spacing: distance of control points in voxels, for all axes or one for each.

    Returns:
        The D sizes of the control grid.

    Raises:
        ValueError: if a size is unknown, or `spacing` is not positive or has another length.
    """
    if any(not isinstance(size, int | np.integer) or size < 1 for size in shape):
        raise ValueError(
            "Expected known spatial sizes, as the number of control points depends on them; give "
            f"them to `keras.Input`. Received: {tuple(shape)}."
        )
    spacings = _spacings(spacing, len(shape))
    return tuple(_number(size, step) for size, step in zip(shape, spacings, strict=True))


def bspline_operator(size: int, spacing: float) -> np.ndarray:
    """A[x, i] = B3(x / spacing - (i - 1)): control points to the voxels of one axis.

    B3 is the cubic B-spline, 2/3 at 0 and 0 from 2 on. Rows add up to 1.

    Args:
        size: length of the axis in voxels.
        spacing: distance of control points in voxels.

    Returns:
        ``(size, number of control points)``, float32, for `along_axis`.
    """
    control = np.arange(-1, _number(size, spacing) - 1)
    distance = np.abs(np.arange(size)[:, None] / spacing - control)
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.maximum(2 - distance, 0) ** 3 / 6
    return np.where(distance < 1, near, far).astype(COORDINATE_DTYPE)


def bspline_displacement(coefficients, shape: Sequence[int], *, spacing: float | Sequence[float]):
    """u(x) = sum_i c_i prod_d B3(x_d / spacing_d - (i_d - 1)): a free-form deformation.

    Twice continuously differentiable; equal coefficients c are the constant field c. Control
    point i lies at voxel (i - 1) * spacing and moves what is within two spacings of it (Rueckert
    et al., IEEE TMI 1999).

    Args:
        coefficients: ``(batch, *grid, D)``, voxels, on the grid that `bspline_grid_shape` says.
        shape: the D spatial sizes of the image.
        spacing: distance of control points in voxels, for all axes or one for each.

    Returns:
        ``(batch, *shape, D)``, voxels.

    Raises:
        ValueError: if the coefficients are not on that grid, a size is unknown, or `spacing` is
            not positive.
    """
    field = check_displacement(coefficients, "coefficients")
    expected = bspline_grid_shape(shape, spacing)
    found = tuple(field.shape[1:-1])
    if len(found) != len(expected) or any(
        a is not None and a != b for a, b in zip(found, expected, strict=True)
    ):
        raise ValueError(
            f"Expected `coefficients` on a control grid of {expected}, which `bspline_grid_shape` "
            f"says for an image of {tuple(shape)} and spacing {spacing}. Received: {found}."
        )
    spacings = _spacings(spacing, len(shape))
    # The last axis first: the products of many short rows come while the field is coarse.
    for axis in reversed(range(len(shape))):
        field = along_axis(field, bspline_operator(shape[axis], spacings[axis]), axis + 1)
    return field
