"""Global normalised cross-correlation."""

import keras
from keras import ops

from kreg.losses.image_loss import ImageLoss
from kreg.ops.coordinates import check_image, check_same_size
from kreg.ops.intensity import TINY, standardise, voxel_weights


@keras.saving.register_keras_serializable("kreg")
def ncc(fixed, warped, mask=None):
    """NCC = cov(f, w) / sqrt(var f var w), over all voxels; 1 is best, a x + b changes nothing.

    Channels are correlated one by one and averaged. A constant image correlates with nothing: 0.

    Args:
        fixed, warped: ``(batch, *spatial, channels)``, floating.
        mask: None, or weights of the voxels, ``(batch, *spatial)`` or ``(batch, *spatial, 1)``.

    Returns:
        ``(batch,)`` in [-1, 1].

    Raises:
        ValueError: if the shapes differ or the images are not floating.
    """
    fixed, warped = check_image(fixed, "fixed"), check_image(warped, "warped")
    check_same_size(fixed, warped)
    fixed, warped = ops.cast(fixed, "float32"), ops.cast(warped, "float32")
    weights = None if mask is None else voxel_weights(mask, fixed)
    product = standardise(fixed, weights) * standardise(warped, weights)
    axes = tuple(range(1, len(fixed.shape) - 1))
    if weights is None:
        correlation = ops.mean(product, axis=axes)
    else:
        total = ops.maximum(ops.sum(weights, axis=axes), TINY)
        correlation = ops.sum(weights * product, axis=axes) / total
    return ops.mean(correlation, axis=-1)


@keras.saving.register_keras_serializable("kreg")
class NCC(ImageLoss):
    """loss = 1 - NCC(fixed, warped), in [0, 2]; smaller is better, 0 at a perfect match.

    The similarity itself is `kreg.losses.ncc`. Unaffected by a x + b on either image (a > 0).

    Call arguments:
        y_true: fixed images, ``(batch, *spatial, channels)``.
        y_pred: warped images, same shape.
        sample_weight: None, ``(batch,)``, or a mask ``(batch, *spatial[, 1])``.

    Example:
        >>> import numpy as np
        >>> import kreg
        >>> fixed = np.random.default_rng(0).random((2, 8, 8, 1), dtype="float32")
        >>> loss = kreg.losses.NCC()
        >>> round(float(loss(fixed, 0.5 * fixed + 0.2)), 4), round(float(loss(fixed, -fixed)), 4)
        (0.0, 2.0)
    """

    def __init__(self, name="ncc", reduction="sum_over_batch_size", dtype=None):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def compare(self, fixed, warped, mask):
        """Return 1 - NCC of each pair, ``(batch,)``."""
        return 1.0 - ncc(fixed, warped, mask)
