"""Metrics: objects for `compile`, and functions that return one value a sample.

Keras hands masks and sample weights to the objects under ``weighted_metrics=`` only, not to
those under ``metrics=``.
"""

from kreg.metrics.dice import Dice, dice, dice_labels
from kreg.metrics.hausdorff import hd95
from kreg.metrics.image_metric import ImageMetric
from kreg.metrics.jacobian import (
    FoldingFraction,
    JacobianStatistics,
    folding_fraction,
    jacobian_statistics,
)
from kreg.metrics.landmarks import fire_auc, landmark_error, naed, rtre
from kreg.metrics.ncc import NCC, ncc
from kreg.metrics.ssim import ssim

__all__ = [
    "NCC",
    "Dice",
    "FoldingFraction",
    "ImageMetric",
    "JacobianStatistics",
    "dice",
    "dice_labels",
    "fire_auc",
    "folding_fraction",
    "hd95",
    "jacobian_statistics",
    "landmark_error",
    "naed",
    "ncc",
    "rtre",
    "ssim",
]
