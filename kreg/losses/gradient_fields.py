"""Normalised gradient fields: edges that run the same way, whatever their contrast."""

import functools

import keras
from keras import ops

from kreg import backend
from kreg.losses.image_loss import ImageLoss
from kreg.ops.coordinates import check_image, check_same_size
from kreg.ops.displacement import spatial_gradient
from kreg.ops.filters import box_filter
from kreg.ops.intensity import TINY, standardise, voxel_weights

#: Added to squared gradients of the standardised images: below it they are rounding.
_EPSILON = 1e-12


def _weighted_mean(values, weights):
    """The mean over the spatial axes, kept."""
    axes = tuple(range(1, len(values.shape) - 1))
    total = ops.maximum(ops.sum(weights, axis=axes, keepdims=True), TINY)
    return ops.sum(weights * values, axis=axes, keepdims=True) / total


def _normalised_gradient(image, weights, inner, *, edge):
    """``(batch, *spatial, channels, D)``: the gradient over its magnitude, damped by `edge`."""
    gradient = spatial_gradient(standardise(image, weights))
    square = ops.sum(ops.square(gradient), axis=-1)
    mean = _weighted_mean(ops.sqrt(square + _EPSILON), inner)
    return gradient * ops.rsqrt(square + ops.square(edge * mean) + _EPSILON)[..., None]


@functools.lru_cache
def _compiled(edge):
    return backend.compiled(functools.partial(_normalised_gradient, edge=edge))


def _agreement(fixed, warped, inner):
    square = ops.square(ops.sum(fixed * warped, axis=-1))
    mean = _weighted_mean(square, inner)
    return ops.mean(mean, axis=tuple(range(1, len(mean.shape))))


_compiled_agreement = backend.compiled(_agreement)


@keras.saving.register_keras_serializable("kreg")
def normalised_gradient_fields(fixed, warped, mask=None, *, edge=1.0):
    """mean over voxels of <n_f, n_w>^2, n = grad I / sqrt(||grad I||^2 + eps^2).

    How far edges of both images run alike (Haber & Modersitzki, MICCAI 2006): blind to the sign
    and the size of contrast, so for images of two modalities. Gradients that are weak beside eps,
    `edge` times the mean gradient magnitude of each image, count for little: a x + b changes
    nothing (a != 0), and even equal images stay below 1. Derivatives are central differences,
    one-sided at the edges; in noise, smooth the images first (`kreg.ops.gaussian_filter`).
    Channels are compared one by one and averaged.

    Args:
        fixed, warped: ``(batch, *spatial, channels)``, floating.
        mask: None, or weights of the voxels, ``(batch, *spatial)`` or ``(batch, *spatial, 1)``.
            A voxel with a neighbour of weight 0 is left out too: its derivative reaches there.
        edge: positive; the larger, the stronger an edge must be to count.

    Returns:
        ``(batch,)`` in [0, 1).

    Raises:
        ValueError: if the shapes differ, the images are not floating or `edge` is not positive.
    """
    if not edge > 0:
        raise ValueError(f"Expected `edge` > 0. Received: {edge}.")
    fixed, warped = check_image(fixed, "fixed"), check_image(warped, "warped")
    check_same_size(fixed, warped)
    fixed, warped = ops.cast(fixed, "float32"), ops.cast(warped, "float32")
    if mask is None:
        weights = inner = ops.ones_like(fixed[:1, ..., :1])
    else:
        weights = voxel_weights(mask, fixed)
        filled = box_filter(ops.cast(weights > 0, "float32"), 3)
        inner = weights * ops.cast(filled > 1 - 1e-3, "float32")
    gradient = _compiled(float(edge))
    # An image at a time: the fixed one usually is data, whose gradient is then never computed.
    normal_f, normal_w = gradient(fixed, weights, inner), gradient(warped, weights, inner)
    return _compiled_agreement(normal_f, normal_w, inner)


@keras.saving.register_keras_serializable("kreg")
class NormalisedGradientFields(ImageLoss):
    """loss = 1 - mean <n_f, n_w>^2, in (0, 1]; smaller is better.

    The similarity itself is `kreg.losses.normalised_gradient_fields`. Not 0 at a perfect match:
    where there are no edges nothing agrees.

    Args:
        edge: the gradient magnitude that counts as an edge, as a share of each image's mean.

    Call arguments:
        y_true: fixed images, ``(batch, *spatial, channels)``.
        y_pred: warped images, same shape.
        sample_weight: None, ``(batch,)``, or a mask ``(batch, *spatial[, 1])``.

    Raises:
        ValueError: when called, if the shapes do not fit or `edge` is not positive.
    """

    def __init__(
        self,
        edge=1.0,
        name="normalised_gradient_fields",
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.edge = edge

    def compare(self, fixed, warped, mask):
        """Return 1 - the agreement of edges of each pair, ``(batch,)``."""
        return 1.0 - normalised_gradient_fields(fixed, warped, mask, edge=self.edge)

    def get_config(self):
        """Return the constructor arguments."""
        return {**super().get_config(), "edge": self.edge}
