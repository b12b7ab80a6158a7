"""Mutual information of grey values, from a smoothed joint histogram (Parzen windows)."""

import functools

import keras
from keras import ops

from kreg import backend
from kreg.losses.image_loss import ImageLoss
from kreg.ops.coordinates import check_image, check_same_size
from kreg.ops.filters import gaussian_filter
from kreg.ops.histogram import joint_counts
from kreg.ops.intensity import TINY, voxel_weights

#: A range of grey values below this share of the largest is rounding, not contrast (float32).
_RELATIVE_FLOOR = 1e-6
#: Beyond any grey value.
_LARGE = 1e30


def _position(values, weights, bins):
    """Where values lie between their smallest, 0, and their largest, bins - 1."""
    inside = weights > 0
    values = ops.where(inside, values, 0.0)  # what is masked may be NaN
    low = ops.min(ops.where(inside, values, _LARGE), axis=-1, keepdims=True)
    high = ops.max(ops.where(inside, values, -_LARGE), axis=-1, keepdims=True)
    floor = _RELATIVE_FLOOR * ops.maximum(ops.abs(low), ops.abs(high))
    scale = ops.where(high - low > floor, (bins - 1) / ops.maximum(high - low, TINY), 0.0)
    position = (values - ops.stop_gradient(low)) * ops.stop_gradient(scale)
    return ops.clip(position, 0.0, bins - 1.0)


def _counts(fixed, warped, weights, *, bins):
    """Linearly binned joint counts of ``(batch, *spatial, channels)``."""
    batch, channels = ops.shape(fixed)[0], fixed.shape[-1]
    fixed, warped, weights = (
        ops.swapaxes(ops.reshape(x, (batch, -1, x.shape[-1])), 1, 2)
        for x in (fixed, warped, weights)
    )  # (batch, channels, voxels)
    fixed, warped = (_position(x, weights, bins) for x in (fixed, warped))
    weights = ops.broadcast_to(weights, ops.shape(fixed))
    flat = (ops.reshape(x, (batch * channels, -1)) for x in (fixed, warped, weights))
    return ops.reshape(joint_counts(*flat, bins), (batch, channels, bins, bins))


@functools.lru_cache
def _compiled(bins):
    return backend.compiled(functools.partial(_counts, bins=bins))


def _probabilities(fixed, warped, mask, bins, sigma):
    """``(batch, channels, bins, bins)``: the joint histogram of each channel."""
    if int(bins) != bins or bins < 2:
        raise ValueError(f"Expected `bins` to be an integer, at least 2. Received: {bins}.")
    fixed, warped = check_image(fixed, "fixed"), check_image(warped, "warped")
    if fixed.shape[-1] != warped.shape[-1]:
        raise ValueError(
            "Expected `fixed` and `warped` of equal shape: channel c of one is compared with "
            "channel c of the other. Compare images of unlike channels with `MINE`, or average "
            "theirs first (`ops.mean(image, axis=-1, keepdims=True)`). "
            f"Received: {tuple(fixed.shape)} and {tuple(warped.shape)}."
        )
    check_same_size(fixed, warped)
    fixed, warped = ops.cast(fixed, "float32"), ops.cast(warped, "float32")
    weights = ops.ones_like(fixed[..., :1]) if mask is None else voxel_weights(mask, fixed)
    counts = _compiled(int(bins))(fixed, warped, weights)
    joint = counts / ops.maximum(ops.sum(counts, axis=(2, 3), keepdims=True), TINY)
    joint = ops.transpose(joint, (0, 2, 3, 1))
    return ops.transpose(gaussian_filter(joint, sigma), (0, 3, 1, 2))


def _entropy(probabilities, axes):
    logarithm = ops.log(ops.maximum(probabilities, TINY))
    return -ops.sum(probabilities * logarithm, axis=axes)


def _entropies(joint):
    """H(f), H(w) and H(f, w) of each channel, ``(batch, channels)``."""
    of_fixed, of_warped = ops.sum(joint, axis=3), ops.sum(joint, axis=2)
    return _entropy(of_fixed, -1), _entropy(of_warped, -1), _entropy(joint, (2, 3))


@keras.saving.register_keras_serializable("kreg")
def joint_histogram(fixed, warped, mask=None, *, bins=32, sigma=1.0):
    """p[i, j] = G_sigma * mean over voxels of hat(i - f) hat(j - w), hat(t) = max(0, 1 - abs(t)).

    The grey values f and w are those of the images, scaled to [0, bins - 1] by the smallest and
    the largest of each sample within the mask. No gradient flows to these two.

    Args:
        fixed, warped: ``(batch, *spatial, 1)``, floating.
        mask: None, or weights of the voxels, ``(batch, *spatial)`` or ``(batch, *spatial, 1)``.
        bins: number of grey values along each side, at least 2.
        sigma: standard deviation of the smoothing in bins; 0 for none.

    Returns:
        ``(batch, bins, bins)``, rows for the fixed image, which sums to 1 (0 in an empty mask).

    Raises:
        ValueError: if there is more than one channel, the shapes differ, the images are not
            floating, or bins or sigma are too small.
    """
    joint = _probabilities(fixed, warped, mask, bins, sigma)
    if joint.shape[1] != 1:
        raise ValueError(
            "Expected images of one channel; pass one at a time (`image[..., :1]`). "
            f"Received: {joint.shape[1]} channels."
        )
    return joint[:, 0]


@keras.saving.register_keras_serializable("kreg")
def mutual_information(fixed, warped, mask=None, *, bins=32, sigma=1.0):
    """MI = H(f) + H(w) - H(f, w), of grey values in a joint histogram, in nats.

    How well the grey value of one image predicts that of the other, whatever the relation
    (Viola & Wells, IJCV 1997): invertible maps of either image, such as an inverted contrast,
    change it only by their effect on the bins. Few voxels in many bins predict one another by
    chance, by about (bins - 1)^2 / (2 voxels) without smoothing. Channels are compared one by one
    and averaged. A constant image predicts nothing: 0.

    Args:
        fixed, warped: ``(batch, *spatial, channels)``, floating.
        mask: None, or weights of the voxels, ``(batch, *spatial)`` or ``(batch, *spatial, 1)``.
        bins: number of grey values, at least 2.
        sigma: standard deviation in bins by which the histogram is smoothed; 0 for none. It
            widens the reach of the gradient and lowers the value.

    Returns:
        ``(batch,)``, 0 (independent) to log(bins).

    Raises:
        ValueError: if the shapes differ (channels too), the images are not floating, or bins or
            sigma are too small.
    """
    of_fixed, of_warped, of_both = _entropies(_probabilities(fixed, warped, mask, bins, sigma))
    return ops.mean(of_fixed + of_warped - of_both, axis=-1)


@keras.saving.register_keras_serializable("kreg")
def normalised_mutual_information(fixed, warped, mask=None, *, bins=32, sigma=1.0):
    """NMI = (H(f) + H(w)) / H(f, w), of grey values in a joint histogram.

    Unlike mutual information it hardly depends on how much background two images share
    (Studholme et al., Pattern Recognition 1999). A constant image predicts nothing: 1.

    Args:
        fixed, warped, mask, bins, sigma: as in `mutual_information`.

    Returns:
        ``(batch,)`` in [1, 2]; 2 for an invertible map and sigma 0.

    Raises:
        ValueError: as `mutual_information`.
    """
    of_fixed, of_warped, of_both = _entropies(_probabilities(fixed, warped, mask, bins, sigma))
    # As 1 + MI / H(f, w): two constant images have no entropy at all.
    information = of_fixed + of_warped - of_both
    return ops.mean(1.0 + information / ops.maximum(of_both, 1e-6), axis=-1)


class _HistogramLoss(ImageLoss):
    """A loss with the options of the joint histogram."""

    def __init__(self, bins, sigma, name, reduction, dtype):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.bins = bins
        self.sigma = sigma

    def get_config(self):
        """Return the constructor arguments."""
        return {**super().get_config(), "bins": self.bins, "sigma": self.sigma}


@keras.saving.register_keras_serializable("kreg")
class MutualInformation(_HistogramLoss):
    """loss = -MI(fixed, warped), in [-log(bins), 0]: negative, smaller is better.

    The similarity itself is `kreg.losses.mutual_information`, in nats. For images of one object
    in two modalities.

    Args:
        bins: number of grey values, at least 2.
        sigma: standard deviation in bins by which the joint histogram is smoothed; 0 for none.

    Call arguments:
        y_true: fixed images, ``(batch, *spatial, channels)``.
        y_pred: warped images, same shape.
        sample_weight: None, ``(batch,)``, or a mask ``(batch, *spatial[, 1])``.

    Raises:
        ValueError: when called, if the shapes do not fit, or bins or sigma are too small.
    """

    def __init__(
        self,
        bins=32,
        sigma=1.0,
        name="mutual_information",
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(bins, sigma, name, reduction, dtype)

    def compare(self, fixed, warped, mask):
        """Return -MI of each pair, ``(batch,)``."""
        return -mutual_information(fixed, warped, mask, bins=self.bins, sigma=self.sigma)


@keras.saving.register_keras_serializable("kreg")
class NormalisedMutualInformation(_HistogramLoss):
    """loss = 2 - NMI(fixed, warped), in [0, 1]; smaller is better.

    The similarity itself is `kreg.losses.normalised_mutual_information`.

    Args:
        bins: number of grey values, at least 2.
        sigma: standard deviation in bins by which the joint histogram is smoothed; 0 for none.

    Call arguments:
        y_true: fixed images, ``(batch, *spatial, channels)``.
        y_pred: warped images, same shape.
        sample_weight: None, ``(batch,)``, or a mask ``(batch, *spatial[, 1])``.

    Raises:
        ValueError: when called, if the shapes do not fit, or bins or sigma are too small.
    """

    def __init__(
        self,
        bins=32,
        sigma=1.0,
        name="normalised_mutual_information",
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(bins, sigma, name, reduction, dtype)

    def compare(self, fixed, warped, mask):
        """Return 2 - NMI of each pair, ``(batch,)``."""
        return 2.0 - normalised_mutual_information(
            fixed, warped, mask, bins=self.bins, sigma=self.sigma
        )
