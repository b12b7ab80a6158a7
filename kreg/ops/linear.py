"""Linear transforms as homogeneous matrices ``(batch, D + 1, D + 1)``, affine and homography."""

from collections.abc import Sequence

import numpy as np
from keras import ops

from kreg.ops.coordinates import COORDINATE_DTYPE, centred_frame, identity_grid


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
    image = ops.matmul(rows, ops.swapaxes(matrix[:, :, :dimensions], 1, 2))
    image = image + matrix[:, None, :, dimensions]  # (batch, points, D + 1)
    image = image[..., :dimensions] / image[..., dimensions:]
    return ops.reshape(image, (-1, *shape[1:-1], dimensions))


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
    moving = centred_frame(moving_shape, moving_spacing)
    inverse = np.linalg.inv(moving.astype("float64")).astype(COORDINATE_DTYPE)
    return ops.matmul(ops.matmul(inverse, matrix), fixed)


def matrix_to_displacement(matrix, shape: Sequence[int]):
    """u(x) = H x - x: the displacement field of a map between voxel indices.

    Args:
        matrix: ``(batch, D + 1, D + 1)`` between voxel indices (see `voxel_matrix`).
        shape: spatial sizes of the fixed image.

    Returns:
        ``(batch, *shape, D)``, voxels.
    """
    grid = identity_grid(shape)[None]
    return transform_points(matrix, grid) - grid
