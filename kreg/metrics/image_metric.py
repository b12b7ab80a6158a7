"""The base of metrics between images: masks as sample weights."""

import keras
from keras import ops


class ImageMetric(keras.metrics.Mean):
    """The mean over all samples seen of a value between the fixed and the warped image.

    A `sample_weight` of shape ``(batch,)`` weights the samples; one of shape ``(batch, *spatial)``
    or ``(batch, *spatial, 1)`` is a mask: it weights the voxels of each sample, as in
    `kreg.losses.ImageLoss`. Subclasses write ``compare(fixed, warped, mask)``.
    """

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add the samples of one batch: `y_true` the fixed, `y_pred` the warped images."""
        fixed, warped = ops.cast(y_true, self.dtype), ops.cast(y_pred, self.dtype)
        mask = None
        if sample_weight is not None and len(sample_weight.shape) > 2:
            mask, sample_weight = sample_weight, None
        return super().update_state(self.compare(fixed, warped, mask), sample_weight)

    def compare(self, fixed, warped, mask):
        """Return ``(batch,)``: the value of each pair, `mask` None or weights of the voxels."""
        raise NotImplementedError(f"{type(self).__name__} must define compare().")
