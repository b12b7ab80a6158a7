"""Dense fields among other maps: a matrix after a displacement, points through one."""

from keras import ops

from kreg.ops.coordinates import COORDINATE_DTYPE, check_displacement, identity_grid, spatial_shape
from kreg.ops.interpolation import nearest_border, sample
from kreg.ops.linear import transform_points


def compose_linear(matrix, displacement):
    """u'(x) = H (x + u(x)) - x, the field of H o phi.

    Warping once with the result is warping first by H, then by u: a dense registration of an
    image that a linear one aligned before, without resampling it twice.

    Args:
        matrix: H ``(batch, D + 1, D + 1)``, between voxel indices (see `voxel_matrix`).
        displacement: u ``(batch, *spatial, D)``, voxels; equal batches or one of them 1.

    Returns:
        ``(batch, *spatial, D)``, voxels.

    Raises:
        ValueError: if the sizes of matrix and displacement do not fit.
    """
    displacement = check_displacement(displacement)
    grid = identity_grid(spatial_shape(displacement))[None]
    return transform_points(matrix, grid + displacement) - grid


def displace_points(points, displacement):
    """phi(x) = x + u(x): where points of the fixed image lie in the moving one.

    Between voxels u is interpolated linearly, beyond the grid it goes on as at its border.

    Args:
        points: x ``(batch, ..., D)``, voxels of the fixed image.
        displacement: u ``(batch, *spatial, D)``, voxels.

    Returns:
        ``(batch, ..., D)``, voxels of the moving image.

    Raises:
        ValueError: if the sizes of points and displacement do not fit.
    """
    points = ops.cast(points, COORDINATE_DTYPE)
    displacement = check_displacement(displacement)
    return points + sample(displacement, points, border=nearest_border)
