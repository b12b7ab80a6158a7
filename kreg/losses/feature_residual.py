"""The residual between matched features, kept from collapsing to constants."""

import keras
from keras import ops

from kreg.losses.field_loss import sample_mean

#: Added to variances: the root of 0 has no gradient.
_TINY = 1e-6


@keras.saving.register_keras_serializable("kreg")
def feature_residual(fixed, matched, *, variance=1.0, covariance=0.04):
    """1/N sum_i ||h_i - g_i||^2 / C + variance V + covariance K; g fixed, h matched features.

    The residual alone is least for features that are constant, which match everywhere. Two terms
    over the voxels of each image keep them from it (Bardes et al., VICReg, ICLR 2022): V is the
    mean over both images and the C channels of max(0, 1 - std), which holds every channel's
    deviation at 1 or above; K the sum of squared covariances of different channels over C, which
    keeps the channels from all being the same.

    Args:
        fixed: g, ``(batch, *spatial, C)``, features of the fixed image.
        matched: h, same shape: features of the moving image, brought to the fixed one's grid.
        variance, covariance: weights of the terms.

    Returns:
        ``(batch,)``, not negative.

    Raises:
        ValueError: if the shapes differ or a weight is negative.
    """
    fixed, matched = (ops.cast(x, "float32") for x in (fixed, matched))
    shapes = tuple(fixed.shape), tuple(matched.shape)
    if len(shapes[0]) != len(shapes[1]) or any(
        None not in (a, b) and a != b for a, b in zip(*shapes, strict=True)
    ):
        raise ValueError(
            "Expected fixed and matched features of equal shape (batch, *spatial, C). "
            f"Received: {shapes[0]} and {shapes[1]}."
        )
    if not (variance >= 0 and covariance >= 0):
        raise ValueError(
            "Expected `variance` and `covariance` >= 0, weights. "
            f"Received: {variance} and {covariance}."
        )
    loss = sample_mean(ops.square(matched - fixed))
    for features in (fixed, matched):
        deviation, between = _spread(features)
        loss = loss + variance / 2 * deviation + covariance / 2 * between
    return loss


def _spread(features):
    """V and K of one image's features, ``(batch,)`` each."""
    channels = features.shape[-1]
    rows = ops.reshape(features, (ops.shape(features)[0], -1, channels))
    rows = rows - ops.mean(rows, axis=1, keepdims=True)
    count = ops.cast(ops.shape(rows)[1], "float32")
    products = ops.matmul(ops.transpose(rows, (0, 2, 1)), rows) / count  # (batch, C, C)
    variances = ops.mean(ops.square(rows), axis=1)
    deviation = sample_mean(ops.relu(1 - ops.sqrt(variances + _TINY)))
    between = ops.sum(ops.square(products), axis=(1, 2)) - ops.sum(ops.square(variances), axis=1)
    return deviation, ops.relu(between) / channels


@keras.saving.register_keras_serializable("kreg")
class FeatureResidual(keras.losses.Loss):
    """loss = 1/N sum ||h_i - g_i||^2 / C + variance V + covariance K: features that match.

    The same as `kreg.losses.feature_residual`, for a pair of features in one tensor, since a
    Keras loss takes one output: ``Concatenate(name="features")([fixed, matched])``. It goes beside
    a loss that aligns, on known transforms or on images: by itself it hardly aligns anything.

    Args:
        variance: weight of what keeps channels from being constant.
        covariance: weight of what keeps channels from being the same.

    Call arguments:
        y_true: ignored.
        y_pred: ``(batch, *spatial, 2 C)``: the C features of the fixed image, then those of the
            moving one, brought to the fixed one's grid.
        sample_weight: None or ``(batch,)``.

    Raises:
        ValueError: when called, if the number of channels is odd or a weight is negative.
    """

    def __init__(
        self,
        variance=1.0,
        covariance=0.04,
        name="feature_residual",
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.variance = variance
        self.covariance = covariance

    def __call__(self, y_true, y_pred, sample_weight=None):
        """Return the reduced residual of `y_pred`; `sample_weight` is ``(batch,)`` or None."""
        return super().__call__(y_pred, y_pred, sample_weight)

    def call(self, y_true, y_pred):
        """Return one value a sample, ``(batch,)``."""
        if y_pred.shape[-1] is None or y_pred.shape[-1] % 2:
            raise ValueError(
                "Expected features of the fixed and of the moving image in one tensor, "
                "(batch, *spatial, 2 C); concatenate the two along the last axis. "
                f"Received: shape {tuple(y_pred.shape)}."
            )
        fixed, matched = ops.split(y_pred, 2, axis=-1)
        return feature_residual(fixed, matched, variance=self.variance, covariance=self.covariance)

    def get_config(self):
        """Return the constructor arguments."""
        return {
            **super().get_config(),
            "variance": self.variance,
            "covariance": self.covariance,
        }
