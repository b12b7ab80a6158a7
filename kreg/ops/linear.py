"""Linear transforms as homogeneous matrices ``(batch, D + 1, D + 1)``, affine and homography."""

from collections.abc import Sequence

import numpy as np
from keras import ops

from kreg.ops.coordinates import COORDINATE_DTYPE, centred_frame, grid_axes, identity_grid


def check_matrix(matrix, dimensions: int):
    """Return `matrix` as float32 ``(batch, D + 1, D + 1)``, or raise ValueError."""
    matrix = ops.cast(matrix, COORDINATE_DTYPE)
    if tuple(matrix.shape[1:]) != (dimensions + 1, dimensions + 1):
        raise ValueError(
            f"Expected homogeneous matrices of shape (batch, {dimensions + 1}, {dimensions + 1}) "
            f"for images with {dimensions} spatial axes; append the row (0, ..., 0, 1) to an "
            f"affine (D, D + 1) matrix. Received: shape {tuple(matrix.shape)}."
        )
    return matrix


def _check_either(matrix, name: str = "matrix"):
    """Return `matrix` as float32 ``(batch, D + 1, D + 1)`` in 2-D or 3-D, or raise ValueError."""
    matrix = ops.cast(matrix, COORDINATE_DTYPE)
    if len(matrix.shape) != 3 or tuple(matrix.shape[1:]) not in ((3, 3), (4, 4)):
        raise ValueError(
            f"Expected `{name}` to hold homogeneous matrices, shape (batch, 3, 3) in 2-D or "
            "(batch, 4, 4) in 3-D; append the row (0, ..., 0, 1) to an affine (D, D + 1) matrix, "
            f"and `{name}[None]` makes a batch of one. Received: shape {tuple(matrix.shape)}."
        )
    return matrix


def small_product(left, right):
    """C = A B for matrices ``(..., n, n)`` of a few rows, in float32 on every device.

    `ops.matmul` on a GPU may round its factors to 10 bits (TF32), a quarter voxel at index 256.
    """
    return ops.sum(ops.expand_dims(left, -1) * ops.expand_dims(right, -3), axis=-2)


def compose_matrices(outer, inner):
    """C = A B: the map x -> outer(inner(x)).

    Args:
        outer, inner: ``(batch, D + 1, D + 1)``, equal batches or one of them 1.

    Returns:
        ``(batch, D + 1, D + 1)``.

    Raises:
        ValueError: if they are no homogeneous matrices, or their sizes differ.
    """
    outer, inner = _check_either(outer, "outer"), _check_either(inner, "inner")
    batches = {outer.shape[0], inner.shape[0]} - {None, 1}
    if outer.shape[1:] != inner.shape[1:] or len(batches) > 1:
        raise ValueError(
            "Expected `outer` and `inner` of equal shape (batch, D + 1, D + 1), or one of them a "
            f"batch of one. Received: {tuple(outer.shape)} and {tuple(inner.shape)}."
        )
    return small_product(outer, inner)


def invert_matrix(matrix):
    """A^-1: the map from moving back to fixed points.

    Args:
        matrix: ``(batch, D + 1, D + 1)``, none of them singular.

    Returns:
        ``(batch, D + 1, D + 1)``.

    Raises:
        ValueError: if it is no homogeneous matrix.
    """
    return ops.inv(_check_either(matrix))


def transform_points(matrix, points):
    """y = (A x + t) / (p x + q) for the homogeneous matrix [[A, t], [p, q]].

    Args:
        matrix: ``(batch, D + 1, D + 1)``.
        points: ``(batch, ..., D)`` or, the same for all of the batch, ``(1, ..., D)``, in the
            frame that the matrix maps from.

    Returns:
        Points ``(batch, ..., D)`` in the frame that the matrix maps to.

    Raises:
        ValueError: if the sizes of matrix and points do not fit.
    """
    dimensions = points.shape[-1]
    matrix = check_matrix(matrix, dimensions)
    batches = {matrix.shape[0], points.shape[0]} - {None, 1}
    if len(points.shape) < 3 or len(batches) > 1:
        raise ValueError(
            f"Expected `points` of shape (batch, ..., {dimensions}), as many sets of points as "
            "matrices, or one for all (`points[None]`). Received: points "
            f"{tuple(points.shape)}, matrix {tuple(matrix.shape)}."
        )
    shape = ops.shape(points)
    rows = ops.reshape(ops.cast(points, COORDINATE_DTYPE), (shape[0], -1, dimensions))
    image = _transformed(matrix, ops.unstack(rows, axis=-1))
    return ops.reshape(image, (-1, *shape[1:-1], dimensions))


def transform_grid(matrix, shape: Sequence[int]):
    """H x for every voxel x of a grid: `transform_points` of its `identity_grid`, but faster.

    Args:
        matrix: ``(batch, D + 1, D + 1)`` from voxel indices.
        shape: D spatial sizes.

    Returns:
        Points ``(batch, *shape, D)`` in the frame that the matrix maps to.

    Raises:
        ValueError: if the sizes of matrix and grid do not fit.
    """
    columns = [axis[None] for axis in grid_axes(shape)]
    return _transformed(check_matrix(matrix, len(shape)), columns)


def _transformed(matrix, columns):
    """Points whose coordinates are D tensors that broadcast, ``(batch or 1, ...)`` each."""
    dimensions, trailing = len(columns), (1,) * (len(columns[0].shape) - 1)

    def entry(i, j):
        return ops.reshape(matrix[:, i, j], (-1, *trailing))

    # Sums of products: `matmul` may be rounded to 10 bits on a GPU (see `small_product`).
    image = [
        sum(entry(i, j) * columns[j] for j in range(dimensions)) + entry(i, dimensions)
        for i in range(dimensions + 1)
    ]
    return ops.stack([component / image[-1] for component in image[:-1]], axis=-1)


def change_frame(matrix, fixed_frame, moving_frame):
    """inv(M_moving) A M_fixed: a world matrix as a map from fixed to moving voxel indices.

    With the inverses of both frames it leads back: M_moving V inv(M_fixed) is the world matrix
    of a map V between voxels.

    Args:
        matrix: ``(batch, D + 1, D + 1)``, fixed to moving points in world frames.
        fixed_frame, moving_frame: voxel-to-world matrices, constant arrays ``(D + 1, D + 1)`` or
            ``(batch, D + 1, D + 1)``: `centred_frame`, or what the image file says.

    Returns:
        ``(batch, D + 1, D + 1)``.

    Raises:
        ValueError: if the sizes of matrix and frames do not fit, or the moving frame is singular.
    """
    matrix = _check_either(matrix)
    # In float64 and ahead of time: the world's origin may lie far away from the image.
    fixed, moving = np.asarray(fixed_frame, "float64"), np.asarray(moving_frame, "float64")
    batches = {shape[0] for shape in (matrix.shape, fixed.shape, moving.shape) if len(shape) == 3}
    sides = {fixed.shape[-2:], moving.shape[-2:], tuple(matrix.shape[1:])}
    if len(sides) > 1 or not {fixed.ndim, moving.ndim} <= {2, 3} or len(batches - {None, 1}) > 1:
        raise ValueError(
            "Expected frames as large as the matrices, shape (D + 1, D + 1) or "
            f"(batch, D + 1, D + 1). Received: fixed_frame {fixed.shape}, moving_frame "
            f"{moving.shape}, matrix {tuple(matrix.shape)}."
        )
    inverse = np.linalg.inv(moving).astype(COORDINATE_DTYPE)
    return small_product(small_product(inverse, matrix), fixed.astype(COORDINATE_DTYPE))


def voxel_matrix(
    matrix,
    fixed_shape: Sequence[int],
    moving_shape: Sequence[int] | None = None,
    *,
    fixed_spacing: Sequence[float] | None = None,
    moving_spacing: Sequence[float] | None = None,
):
    """inv(M_moving) A M_fixed: a world matrix as a map from fixed to moving voxel indices.

    Args:
        matrix: ``(batch, D + 1, D + 1)``, fixed to moving points in centred world frames.
        fixed_shape, moving_shape: spatial sizes; the moving image is as the fixed where None.
        fixed_spacing, moving_spacing: distance of voxel centres along each axis; 1 where None.

    Returns:
        ``(batch, D + 1, D + 1)``.

    Raises:
        ValueError: if sizes and spacings do not fit one another.
    """
    matrix = check_matrix(matrix, len(fixed_shape))
    fixed = centred_frame(fixed_shape, fixed_spacing)
    if moving_shape is None:
        moving_shape = fixed_shape
    return change_frame(matrix, fixed, centred_frame(moving_shape, moving_spacing))


def matrix_to_displacement(matrix, shape: Sequence[int]):
    """u(x) = H x - x: the displacement field of a map between voxel indices.

    Args:
        matrix: ``(batch, D + 1, D + 1)`` between voxel indices (see `voxel_matrix`).
        shape: spatial sizes of the fixed image.

    Returns:
        ``(batch, *shape, D)``, voxels.
    """
    return transform_grid(matrix, shape) - identity_grid(shape)[None]
