"""Losses: objects for `compile`, and beside each the function that holds its equation.

All are smaller where the registration is better, and return one value a sample.
"""

from kreg.losses.charbonnier import (
    Charbonnier,
    GradientMagnitude,
    charbonnier,
    gradient_magnitude_distance,
)
from kreg.losses.dice_loss import SoftDice, soft_dice
from kreg.losses.endpoint_error import EndpointError, endpoint_error
from kreg.losses.feature_residual import FeatureResidual, feature_residual
from kreg.losses.field_loss import FieldLoss
from kreg.losses.folding import Folding, folding
from kreg.losses.gradient_fields import NormalisedGradientFields, normalised_gradient_fields
from kreg.losses.image_loss import ImageLoss
from kreg.losses.inverse_consistency import InverseConsistency, inverse_consistency
from kreg.losses.known_transform import GridDistance, grid_distance
from kreg.losses.landmarks import LandmarkDistance, landmark_distance
from kreg.losses.local_ncc import LocalNCC, local_ncc
from kreg.losses.mind import MIND, mind, mind_descriptor
from kreg.losses.mine import MINE, Critic, donsker_varadhan
from kreg.losses.mutual_information import (
    MutualInformation,
    NormalisedMutualInformation,
    joint_histogram,
    mutual_information,
    normalised_mutual_information,
)
from kreg.losses.ncc import NCC, ncc
from kreg.losses.saliency_weighted import SaliencyWeighted
from kreg.losses.smoothness import (
    BendingEnergy,
    Diffusion,
    TotalVariation,
    bending_energy,
    diffusion,
    total_variation,
)
from kreg.losses.weighted_sum import WeightedSum

__all__ = [
    "MIND",
    "MINE",
    "NCC",
    "BendingEnergy",
    "Charbonnier",
    "Critic",
    "Diffusion",
    "EndpointError",
    "FeatureResidual",
    "FieldLoss",
    "Folding",
    "GradientMagnitude",
    "GridDistance",
    "ImageLoss",
    "InverseConsistency",
    "LandmarkDistance",
    "LocalNCC",
    "MutualInformation",
    "NormalisedGradientFields",
    "NormalisedMutualInformation",
    "SaliencyWeighted",
    "SoftDice",
    "TotalVariation",
    "WeightedSum",
    "bending_energy",
    "charbonnier",
    "diffusion",
    "donsker_varadhan",
    "endpoint_error",
    "feature_residual",
    "folding",
    "gradient_magnitude_distance",
    "grid_distance",
    "inverse_consistency",
    "joint_histogram",
    "landmark_distance",
    "local_ncc",
    "mind",
    "mind_descriptor",
    "mutual_information",
    "ncc",
    "normalised_gradient_fields",
    "normalised_mutual_information",
    "soft_dice",
    "total_variation",
]
