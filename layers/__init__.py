"""The drop-in Keras layers, imported as `kreg.layers`."""

if __name__ != "kreg.layers":
    raise ImportError(
        "Expected this folder to be imported as `kreg.layers`: under another name every layer "
        f"would be defined twice. Received: import of `{__name__}`. Use `from kreg import layers`."
    )

from kreg.layers.bspline_field import BSplineField
from kreg.layers.compose_displacements import ComposeDisplacements
from kreg.layers.compose_linear import ComposeLinear
from kreg.layers.crop_like import CropLike
from kreg.layers.depth_to_space import DepthToSpace
from kreg.layers.displace_points import DisplacePoints
from kreg.layers.gaussian_pyramid import GaussianPyramid
from kreg.layers.integrate_velocity import IntegrateVelocity
from kreg.layers.interpolator import Interpolator
from kreg.layers.joint_saliency import JointSaliency
from kreg.layers.matcher import Matcher
from kreg.layers.matrix_exp_affine import MatrixExpAffine
from kreg.layers.matrix_to_displacement import MatrixToDisplacement
from kreg.layers.resize_displacement import ResizeDisplacement
from kreg.layers.resize_image import ResizeImage
from kreg.layers.saliency_refinement import RefinementStage, SaliencyRefinement
from kreg.layers.select_displacement import SelectDisplacement
from kreg.layers.smooth_refinement import SmoothRefinement
from kreg.layers.spatial_transformer import SpatialTransformer
from kreg.layers.standardise import Standardise
from kreg.layers.thin_plate_spline import ThinPlateSpline

__all__ = [
    "BSplineField",
    "ComposeDisplacements",
    "ComposeLinear",
    "CropLike",
    "DepthToSpace",
    "DisplacePoints",
    "GaussianPyramid",
    "IntegrateVelocity",
    "Interpolator",
    "JointSaliency",
    "Matcher",
    "MatrixExpAffine",
    "MatrixToDisplacement",
    "RefinementStage",
    "ResizeDisplacement",
    "ResizeImage",
    "SaliencyRefinement",
    "SelectDisplacement",
    "SmoothRefinement",
    "SpatialTransformer",
    "Standardise",
    "ThinPlateSpline",
]
