"""Losses: objects for `compile`, and beside each the function that holds its equation.

All are smaller where the registration is better, and return one value a sample.
"""

from kreg.losses.field_loss import FieldLoss
from kreg.losses.folding import Folding, folding
from kreg.losses.image_loss import ImageLoss
from kreg.losses.local_ncc import LocalNCC, local_ncc
from kreg.losses.mine import MINE, Critic, donsker_varadhan
from kreg.losses.mutual_information import (
    MutualInformation,
    NormalisedMutualInformation,
    joint_histogram,
    mutual_information,
    normalised_mutual_information,
)
from kreg.losses.ncc import NCC, ncc
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
    "MINE",
    "NCC",
    "BendingEnergy",
    "Critic",
    "Diffusion",
    "FieldLoss",
    "Folding",
    "ImageLoss",
    "LocalNCC",
    "MutualInformation",
    "NormalisedMutualInformation",
    "TotalVariation",
    "WeightedSum",
    "bending_energy",
    "diffusion",
    "donsker_varadhan",
    "folding",
    "joint_histogram",
    "local_ncc",
    "mutual_information",
    "ncc",
    "normalised_mutual_information",
    "total_variation",
]
