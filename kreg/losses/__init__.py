"""Losses: objects for `compile`, and beside each the function that holds its equation.

All are smaller where the registration is better, and return one value a sample.
"""

from kreg.losses.field_loss import FieldLoss
from kreg.losses.folding import Folding, folding
from kreg.losses.image_loss import ImageLoss
from kreg.losses.local_ncc import LocalNCC, local_ncc
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
    "NCC",
    "BendingEnergy",
    "Diffusion",
    "FieldLoss",
    "Folding",
    "ImageLoss",
    "LocalNCC",
    "TotalVariation",
    "WeightedSum",
    "bending_energy",
    "diffusion",
    "folding",
    "local_ncc",
    "ncc",
    "total_variation",
]
