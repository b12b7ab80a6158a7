"""Global normalised cross-correlation, as a similarity to report."""

import keras

from kreg.losses.ncc import ncc
from kreg.metrics.image_metric import ImageMetric


# A package name of its own: the loss NCC is saved as "kreg>NCC".
@keras.saving.register_keras_serializable("kreg.metrics")
class NCC(ImageMetric):
    """NCC(fixed, warped) in [-1, 1]; larger is better, 1 at a perfect match.

    The similarity itself, where `kreg.losses.NCC` is 1 minus it.

    Call arguments:
        y_true: fixed images, ``(batch, *spatial, channels)``.
        y_pred: warped images, same shape.
        sample_weight: None, ``(batch,)``, or a mask ``(batch, *spatial[, 1])``.
    """

    def __init__(self, name="ncc", dtype=None):
        super().__init__(name=name, dtype=dtype)

    def compare(self, fixed, warped, mask):
        """Return the NCC of each pair, ``(batch,)``."""
        return ncc(fixed, warped, mask)
