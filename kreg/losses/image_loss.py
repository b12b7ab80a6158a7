"""The base of losses between images: masks as sample weights."""

import keras
from keras import ops


class ImageLoss(keras.losses.Loss):
    """A loss between the fixed and the warped image, one value a sample, smaller is better.

    Called as ``loss(fixed, warped, sample_weight=None)``. A `sample_weight` of shape ``(batch,)``
    weights the samples; one of shape ``(batch, *spatial)`` or ``(batch, *spatial, 1)`` is a mask:
    it weights the voxels of each sample, inside the similarity. Subclasses write
    ``compare(fixed, warped, mask)`` and return ``(batch,)``.
    """

    def __call__(self, y_true, y_pred, sample_weight=None):
        """Return the reduced loss of `y_true` (fixed) and `y_pred` (warped)."""
        if sample_weight is None or len(ops.shape(sample_weight)) < 3:
            return super().__call__(y_true, y_pred, sample_weight)
        # Keras hands its structure of targets to `call` as it is: the mask travels in it.
        return super().__call__([y_true, sample_weight], y_pred)

    def call(self, y_true, y_pred):
        """Return one value a sample, ``(batch,)``."""
        fixed, mask = y_true if isinstance(y_true, list) else (y_true, None)
        return self.compare(fixed, y_pred, mask)

    def compare(self, fixed, warped, mask):
        """Return ``(batch,)``: the loss of each pair, `mask` None or weights of the voxels."""
        raise NotImplementedError(f"{type(self).__name__} must define compare().")
