"""Local (windowed) normalised cross-correlation."""

import functools

import keras
from keras import ops

from kreg import backend
from kreg.losses.image_loss import ImageLoss
from kreg.ops.coordinates import check_image, check_same_size
from kreg.ops.filters import box_sum, check_window
from kreg.ops.intensity import standardise, voxel_weights

#: Added to the local variances of the standardised images: flat windows count as unrelated.
_EPSILON = 1e-3


def _moments(fixed, warped, weights, window):
    count = ops.maximum(box_sum(weights, window), 1e-6)
    inverse = 1.0 / count
    mean_f = box_sum(weights * fixed, window) * inverse
    mean_w = box_sum(weights * warped, window) * inverse
    square_f = box_sum(weights * fixed * fixed, window) * inverse
    square_w = box_sum(weights * warped * warped, window) * inverse
    product = box_sum(weights * fixed * warped, window) * inverse
    var_f = ops.maximum(square_f - mean_f * mean_f, 0.0) + _EPSILON
    var_w = ops.maximum(square_w - mean_w * mean_w, 0.0) + _EPSILON
    return inverse, mean_f, mean_w, var_f, var_w, product - mean_f * mean_w


def _squared_correlation(fixed, warped, weights, window, fixed_gradient):
    """Map of squared local correlation, with the gradient written out.

    The box filter B is self-adjoint, so with P = 2 c / (a b n) and Q = -c^2 / (a b^2 n) times
    the upstream gradient, d/dw = m (f B[P] + 2 w B[Q] - B[P mean_f + 2 Q mean_w]): three boxes,
    where differentiating the forward pass would take six.
    """

    @ops.custom_gradient
    def forward(fixed, warped, weights):
        _, _, _, a, b, c = _moments(fixed, warped, weights, window)

        def gradient(*args, upstream=None):
            upstream = args[-1] if upstream is None else upstream
            inverse, mean_f, mean_w, a, b, c = _moments(fixed, warped, weights, window)
            common = upstream * c * inverse / (a * b)
            box_common = box_sum(2 * common, window)

            def towards(x, other, mean_x, mean_other, variance):
                share = -common * c / variance
                pull = box_sum(2 * common * mean_other + 2 * share * mean_x, window)
                return weights * (other * box_common + 2 * x * box_sum(share, window) - pull)

            to_fixed = ops.zeros_like(fixed)
            if fixed_gradient:
                to_fixed = towards(fixed, warped, mean_f, mean_w, a)
            to_warped = towards(warped, fixed, mean_w, mean_f, b)
            return to_fixed, to_warped, ops.zeros_like(weights)

        return c * c / (a * b), gradient

    return forward(fixed, warped, weights)


def _mean_squared_correlation(fixed, warped, weights, *, window, fixed_gradient):
    fixed, warped = standardise(fixed, weights), standardise(warped, weights)
    if not fixed_gradient:
        fixed = ops.stop_gradient(fixed)
    square = _squared_correlation(fixed, warped, weights, window, fixed_gradient)
    axes = tuple(range(1, len(fixed.shape)))
    total = ops.maximum(ops.sum(weights, axis=axes) * fixed.shape[-1], 1e-6)
    return ops.sum(weights * square, axis=axes) / total


@functools.lru_cache
def _compiled(window, fixed_gradient):
    return backend.compiled(
        functools.partial(_mean_squared_correlation, window=window, fixed_gradient=fixed_gradient)
    )


@keras.saving.register_keras_serializable("kreg")
def local_ncc(fixed, warped, mask=None, *, window=9, fixed_gradient=False):
    """mean over x of cov_x(f, w)^2 / (var_x f var_x w), in windows around every voxel x; best 1.

    The squared correlation of a window is blind to its contrast and to contrast inversion
    (Avants et al., Medical Image Analysis 2008). Both images are first standardised as a whole;
    windows whose standard deviation is below about 3 % of the image's count as flat, 0.
    At the edges a window holds the voxels that exist.

    Args:
        fixed, warped: ``(batch, *spatial, channels)``, floating.
        mask: None, or weights of the voxels, ``(batch, *spatial)`` or ``(batch, *spatial, 1)``.
        window: odd length in voxels, for all axes or one for each.
        fixed_gradient: whether gradients flow to `fixed` too. It usually is data, and its
            gradient costs as much as that to `warped`.

    Returns:
        ``(batch,)`` in [0, 1].

    Raises:
        ValueError: if the shapes differ, the images are not floating or a window is even.
    """
    fixed, warped = check_image(fixed, "fixed"), check_image(warped, "warped")
    check_same_size(fixed, warped)
    fixed, warped = ops.cast(fixed, "float32"), ops.cast(warped, "float32")
    windows = tuple(check_window(window, len(fixed.shape) - 2))
    weights = ops.ones_like(fixed[..., :1]) if mask is None else voxel_weights(mask, fixed)
    return _compiled(windows, fixed_gradient)(fixed, warped, weights)


@keras.saving.register_keras_serializable("kreg")
class LocalNCC(ImageLoss):
    """loss = 1 - local NCC(fixed, warped), in [0, 1]; smaller is better.

    The similarity itself is `kreg.losses.local_ncc`: squared correlation in windows.

    Args:
        window: odd length in voxels, for all axes or one for each.
        fixed_gradient: whether gradients flow to the fixed image too.

    Call arguments:
        y_true: fixed images, ``(batch, *spatial, channels)``.
        y_pred: warped images, same shape.
        sample_weight: None, ``(batch,)``, or a mask ``(batch, *spatial[, 1])``.

    Raises:
        ValueError: when called, if a window is even or the shapes do not fit.
    """

    def __init__(
        self,
        window=9,
        fixed_gradient=False,
        name="local_ncc",
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.window = window
        self.fixed_gradient = fixed_gradient

    def compare(self, fixed, warped, mask):
        """Return 1 - local NCC of each pair, ``(batch,)``."""
        return 1.0 - local_ncc(
            fixed, warped, mask, window=self.window, fixed_gradient=self.fixed_gradient
        )

    def get_config(self):
        """Return the constructor arguments."""
        own = {"window": self.window, "fixed_gradient": self.fixed_gradient}
        return {**super().get_config(), **own}
