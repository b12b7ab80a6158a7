"""Charbonnier's smooth absolute difference, of grey values and of edge strength."""

import keras
from keras import ops

from kreg.losses.image_loss import ImageLoss
from kreg.ops.coordinates import check_image, check_same_size
from kreg.ops.displacement import spatial_gradient
from kreg.ops.filters import box_filter
from kreg.ops.intensity import TINY, voxel_weights


def _checked(fixed, warped, epsilon):
    if not epsilon > 0:
        raise ValueError(f"Expected `epsilon` > 0, a grey value. Received: {epsilon}.")
    fixed, warped = check_image(fixed, "fixed"), check_image(warped, "warped")
    check_same_size(fixed, warped)
    return ops.cast(fixed, "float32"), ops.cast(warped, "float32")


def _mean_magnitude(difference, weights, epsilon):
    """The mean of sqrt(d^2 + eps^2) - eps over channels and weighted voxels, ``(batch,)``."""
    axes = tuple(range(1, len(difference.shape)))
    if weights is None:
        return ops.mean(ops.sqrt(ops.square(difference) + epsilon**2) - epsilon, axis=axes)
    difference = ops.where(weights > 0, difference, 0.0)  # what is masked may be NaN
    magnitude = ops.sqrt(ops.square(difference) + epsilon**2) - epsilon
    total = ops.maximum(ops.sum(weights, axis=axes), TINY)
    return ops.sum(weights * ops.mean(magnitude, axis=-1, keepdims=True), axis=axes) / total


@keras.saving.register_keras_serializable("kreg")
def charbonnier(fixed, warped, mask=None, *, epsilon=1e-3):
    """mean over voxels and channels of sqrt((f - w)^2 + eps^2) - eps; 0 is best.

    The absolute difference, but smooth at 0 (Charbonnier et al., ICIP 1994): large differences,
    as where one image lacks a part, count less than if squared.

    Args:
        fixed, warped: ``(batch, *spatial, channels)``, floating.
        mask: None, or weights of the voxels, ``(batch, *spatial)`` or ``(batch, *spatial, 1)``.
            Where it is 0 the images may hold anything.
        epsilon: the difference of grey values where it turns from square to linear; positive.

    Returns:
        ``(batch,)``, not negative.

    Raises:
        ValueError: if the shapes differ, the images are not floating or `epsilon` not positive.
    """
    fixed, warped = _checked(fixed, warped, epsilon)
    weights = None if mask is None else voxel_weights(mask, fixed)
    return _mean_magnitude(fixed - warped, weights, epsilon)


@keras.saving.register_keras_serializable("kreg")
class Charbonnier(ImageLoss):
    """loss = mean sqrt((f - w)^2 + eps^2) - eps, 0 at a perfect match.

    The same as `kreg.losses.charbonnier`. On differences of a displacement it is
    `kreg.losses.TotalVariation`.

    Args:
        epsilon: the difference of grey values where it turns from square to linear; positive.

    Call arguments:
        y_true: fixed images, ``(batch, *spatial, channels)``.
        y_pred: warped images, same shape.
        sample_weight: None, ``(batch,)``, or a mask ``(batch, *spatial[, 1])``.

    Raises:
        ValueError: when called, if the shapes do not fit or `epsilon` is not positive.
    """

    def __init__(
        self, epsilon=1e-3, name="charbonnier", reduction="sum_over_batch_size", dtype=None
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.epsilon = epsilon

    def compare(self, fixed, warped, mask):
        """Return the mean smoothed absolute difference of each pair, ``(batch,)``."""
        return charbonnier(fixed, warped, mask, epsilon=self.epsilon)

    def get_config(self):
        """Return the constructor arguments."""
        return {**super().get_config(), "epsilon": self.epsilon}


def _gradient_magnitude(image, epsilon):
    """sqrt(||grad I||^2 + eps^2) of each channel."""
    square = ops.sum(ops.square(spatial_gradient(image)), axis=-1)
    return ops.sqrt(square + epsilon**2)


@keras.saving.register_keras_serializable("kreg")
def gradient_magnitude_distance(fixed, warped, mask=None, *, epsilon=1e-3):
    """mean of sqrt(d^2 + eps^2) - eps, d = G_f - G_w, G = sqrt(||grad I||^2 + eps^2); 0 is best.

    How far the edges of both images differ in strength, whichever way they run. Derivatives are
    central differences, one-sided at the edges.

    Args:
        fixed, warped: ``(batch, *spatial, channels)``, floating.
        mask: None, or weights of the voxels, ``(batch, *spatial)`` or ``(batch, *spatial, 1)``.
            A voxel with a neighbour of weight 0 is left out too: its derivative reaches there.
        epsilon: the difference of gradients, grey values a voxel, where it turns from square to
            linear; positive.

    Returns:
        ``(batch,)``, not negative.

    Raises:
        ValueError: if the shapes differ, the images are not floating or `epsilon` not positive.
    """
    fixed, warped = _checked(fixed, warped, epsilon)
    inner = None
    if mask is not None:
        weights = voxel_weights(mask, fixed)
        filled = box_filter(ops.cast(weights > 0, "float32"), 3)
        inner = weights * ops.cast(filled > 1 - 1e-3, "float32")
        fixed, warped = (ops.where(weights > 0, image, 0.0) for image in (fixed, warped))
    strength = [_gradient_magnitude(image, epsilon) for image in (fixed, warped)]
    return _mean_magnitude(strength[0] - strength[1], inner, epsilon)


@keras.saving.register_keras_serializable("kreg")
class GradientMagnitude(ImageLoss):
    """loss = mean sqrt(d^2 + eps^2) - eps of the difference d of gradient magnitudes.

    The same as `kreg.losses.gradient_magnitude_distance`; beside `Charbonnier` it lets edges
    count for more.

    Args:
        epsilon: the difference of gradients where it turns from square to linear; positive.

    Call arguments:
        y_true: fixed images, ``(batch, *spatial, channels)``.
        y_pred: warped images, same shape.
        sample_weight: None, ``(batch,)``, or a mask ``(batch, *spatial[, 1])``.

    Raises:
        ValueError: when called, if the shapes do not fit or `epsilon` is not positive.
    """

    def __init__(
        self, epsilon=1e-3, name="gradient_magnitude", reduction="sum_over_batch_size", dtype=None
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.epsilon = epsilon

    def compare(self, fixed, warped, mask):
        """Return the mean smoothed difference of edge strength of each pair, ``(batch,)``."""
        return gradient_magnitude_distance(fixed, warped, mask, epsilon=self.epsilon)

    def get_config(self):
        """Return the constructor arguments."""
        return {**super().get_config(), "epsilon": self.epsilon}
