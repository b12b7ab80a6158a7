"""Pure functions on tensors; the conventions are stated in `kreg.ops.coordinates`."""

from kreg.ops.bspline import bspline_displacement, bspline_grid_shape, bspline_operator
from kreg.ops.composition import compose_linear, displace_points
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
from kreg.ops.intensity import normalise_locally, standardise
from kreg.ops.interpolation import (
    nearest_border,
    reflect_border,
    sample,
    sample_nearest,
    zero_border,
)
from kreg.ops.linear import (
    change_frame,
    compose_matrices,
    invert_matrix,
    matrix_to_displacement,
    transform_points,
    voxel_matrix,
)
from kreg.ops.matrix_exponential import matrix_exponential
from kreg.ops.pyramid import downsample, gaussian_pyramid, pyramid_frames
from kreg.ops.saliency import (
    LocallyNormalised,
    OriginalSaliency,
    TensorCorrelation,
    original_joint_saliency,
    single_saliency,
    structure_tensor,
    tensor_correlation,
    tensor_distance,
)
from kreg.ops.thin_plate import thin_plate_displacement, thin_plate_spline

__all__ = [
    "LocallyNormalised",
    "OriginalSaliency",
    "TensorCorrelation",
    "box_filter",
    "box_sum",
    "bspline_displacement",
    "bspline_grid_shape",
    "bspline_operator",
    "centred_frame",
    "change_frame",
    "compose",
    "compose_linear",
    "compose_matrices",
    "displace_points",
    "downsample",
    "gaussian_filter",
    "gaussian_pyramid",
    "identity_grid",
    "integrate",
    "invert",
    "invert_matrix",
    "jacobian_determinant",
    "matrix_exponential",
    "matrix_to_displacement",
    "nearest_border",
    "normalise_locally",
    "original_joint_saliency",
    "pyramid_frames",
    "reflect_border",
    "resize",
    "sample",
    "sample_nearest",
    "single_saliency",
    "spatial_gradient",
    "spatial_shape",
    "standardise",
    "structure_tensor",
    "tensor_correlation",
    "tensor_distance",
    "thin_plate_displacement",
    "thin_plate_spline",
    "transform_points",
    "voxel_matrix",
    "warp",
    "zero_border",
]
