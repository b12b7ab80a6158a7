"""Pure functions on tensors; the conventions are stated in `kreg.ops.coordinates`."""

from kreg.ops.coordinates import centred_frame, identity_grid, spatial_shape
from kreg.ops.displacement import (
    compose,
    integrate,
    invert,
    jacobian_determinant,
    resize,
    spatial_gradient,
    warp,
)
from kreg.ops.filters import box_filter, box_sum, gaussian_filter
from kreg.ops.intensity import standardise
from kreg.ops.interpolation import (
    nearest_border,
    reflect_border,
    sample,
    sample_nearest,
    zero_border,
)
from kreg.ops.linear import matrix_to_displacement, transform_points, voxel_matrix

__all__ = [
    "box_filter",
    "box_sum",
    "centred_frame",
    "compose",
    "gaussian_filter",
    "identity_grid",
    "integrate",
    "invert",
    "jacobian_determinant",
    "matrix_to_displacement",
    "nearest_border",
    "reflect_border",
    "resize",
    "sample",
    "sample_nearest",
    "spatial_gradient",
    "spatial_shape",
    "standardise",
    "transform_points",
    "voxel_matrix",
    "warp",
    "zero_border",
]
