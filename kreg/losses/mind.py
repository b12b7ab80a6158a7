"""MIND: images of two modalities, compared by how similar each is to itself nearby."""

import functools
import itertools

import keras
import numpy as np
from keras import ops

from kreg import backend
from kreg.losses.image_loss import ImageLoss
from kreg.ops.coordinates import check_image, check_same_size
from kreg.ops.filters import box_sum, check_window
from kreg.ops.intensity import TINY, standardise, voxel_weights

#: Least local variance as a share of its mean over the image: below it patches count as alike.
_FLOOR = 1e-3
#: Added to the variances of the standardised image: below it they are rounding.
_EPSILON = 1e-10


def _neighbours(dimensions: int, distance: int) -> list[tuple]:
    """The pairs (a, b) of unlike axes among the 2 D offsets: 4 in 2-D, 12 in 3-D; a < b."""
    steps = distance * np.concatenate(
        [np.eye(dimensions, dtype=int), -np.eye(dimensions, dtype=int)]
    )
    pairs = itertools.combinations(sorted(map(tuple, steps.tolist())), 2)
    return [(a, b) for a, b in pairs if np.any(np.add(a, b))]


def _padded(image, width: int):
    return ops.pad(image, [(0, 0), *[(width, width)] * (len(image.shape) - 2), (0, 0)])


def _moved(padded, offset, width: int):
    """The image at x + offset, of one that was padded by `width` voxels."""
    window = [slice(width + step, (step - width) or None) for step in offset]
    return padded[(slice(None), *window)]


def _patch_distance(image, weights, offset, window, distance):
    """Mean squared difference of the patches at y and y + offset, of voxels that both exist.

    For y on the grid and `distance` voxels beyond it, where patches may still overlap the image.
    """
    both = weights * _moved(_padded(weights, distance), offset, distance)
    square = both * ops.square(image - _moved(_padded(image, distance), offset, distance))
    count = box_sum(_padded(both, distance), window)
    return box_sum(_padded(square, distance), window) / ops.maximum(count, 1e-6)


def _descriptor(image, weights, *, window, distance):
    """``(pairs, batch, *spatial, channels)``."""
    image = standardise(image, weights)
    distances, apart = {}, []
    for a, b in _neighbours(len(image.shape) - 2, distance):
        # Pairs of one orientation see the same differences, from two places.
        offset = tuple(np.subtract(b, a).tolist())
        if offset not in distances:
            distances[offset] = _patch_distance(image, weights, offset, window, distance)
        apart.append(_moved(distances[offset], a, distance))
    # One tensor and reductions over it: XLA would work out a sum of slices once more for each pair.
    apart = ops.stack(apart)
    variance = ops.mean(apart, axis=0)
    axes = tuple(range(1, len(image.shape) - 1))
    total = ops.maximum(ops.sum(weights, axis=axes, keepdims=True), TINY)
    mean = ops.sum(weights * variance, axis=axes, keepdims=True) / total
    inverse = 1.0 / (variance + _FLOOR * mean + _EPSILON)
    return ops.exp((ops.min(apart, axis=0) - apart) * inverse)


@functools.lru_cache
def _compiled(window, distance):
    return backend.compiled(functools.partial(_descriptor, window=window, distance=distance))


def _mean_square(fixed, warped, weights):
    """The mean over voxels, pairs and channels of descriptors, ``(batch,)``."""
    square = ops.mean(ops.square(fixed - warped), axis=(0, -1))[..., None]
    axes = tuple(range(1, len(square.shape)))
    return ops.sum(weights * square, axis=axes) / ops.maximum(ops.sum(weights, axis=axes), TINY)


_compiled_mean_square = backend.compiled(_mean_square)


def _weights(mask, image):
    return ops.ones_like(image[:1, ..., :1]) if mask is None else voxel_weights(mask, image)


def _described(image, weights, window, distance):
    windows = tuple(check_window(window, len(image.shape) - 2))
    if int(distance) != distance or distance < 1:
        raise ValueError(
            f"Expected `distance` to be an integer, at least 1 voxel. Received: {distance}."
        )
    return _compiled(windows, int(distance))(image, weights)


@keras.saving.register_keras_serializable("kreg")
def mind_descriptor(image, mask=None, *, window=3, distance=2):
    """d_ab(x) = exp(-(P_ab(x) - min P(x)) / V(x)), P_ab the distance of patches at x + a, x + b.

    The self-similarity context (Heinrich et al., MICCAI 2013) of the modality independent
    neighbourhood descriptor (Medical Image Analysis 2012): a, b are the pairs of neighbours of x
    on different axes. P is the mean squared difference of patches, V the mean of P over the pairs
    plus a thousandth of its mean over the image. The same for s I + t as for I (s != 0), so
    for an inverted contrast too; flat regions are alike in all directions: 1.

    A patch holds the voxels that exist; two patches without a common one count as alike.

    Args:
        image: ``(batch, *spatial, channels)``, floating.
        mask: None, or weights of the voxels, ``(batch, *spatial)`` or ``(batch, *spatial, 1)``.
            Where it is 0 the image may hold anything.
        window: odd length of a patch in voxels, for all axes or one for each.
        distance: how far the neighbours lie from x, voxels.

    Returns:
        ``(batch, *spatial, channels * pairs)`` in [0, 1], float32, the largest of all pairs of a
        channel 1; 2 D (D - 1) pairs: 4 in 2-D, 12 in 3-D.

    Raises:
        ValueError: if the image is not floating, a window is even or `distance` below 1.
    """
    image = ops.cast(check_image(image), "float32")
    described = ops.moveaxis(_described(image, _weights(mask, image), window, distance), 0, -1)
    return ops.reshape(described, (*ops.shape(image)[:-1], -1))


@keras.saving.register_keras_serializable("kreg")
def mind(fixed, warped, mask=None, *, window=3, distance=2):
    """mean over voxels and pairs of (d_f - d_w)^2, of the descriptors d of both images; 0 is best.

    Args:
        fixed, warped: ``(batch, *spatial, channels)``, floating.
        mask: None, or weights of the voxels, ``(batch, *spatial)`` or ``(batch, *spatial, 1)``.
        window, distance: as in `mind_descriptor`.

    Returns:
        ``(batch,)`` in [0, 1).

    Raises:
        ValueError: if the shapes differ, the images are not floating, a window is even or
            `distance` below 1.
    """
    fixed, warped = check_image(fixed, "fixed"), check_image(warped, "warped")
    check_same_size(fixed, warped)
    fixed, warped = ops.cast(fixed, "float32"), ops.cast(warped, "float32")
    weights = _weights(mask, fixed)
    # An image at a time: the fixed one usually is data, whose gradient is then never computed.
    of_fixed = _described(fixed, weights, window, distance)
    of_warped = _described(warped, weights, window, distance)
    return _compiled_mean_square(of_fixed, of_warped, weights)


@keras.saving.register_keras_serializable("kreg")
class MIND(ImageLoss):
    """loss = mean (d_f - d_w)^2 of self-similarity descriptors, in [0, 1); smaller is better.

    The same as `kreg.losses.mind`; the descriptor is `kreg.losses.mind_descriptor`. For images of
    two modalities, since neither contrast nor its inversion changes a descriptor.

    Args:
        window: odd length of a patch in voxels, for all axes or one for each.
        distance: how far the neighbours lie from each voxel, voxels.

    Call arguments:
        y_true: fixed images, ``(batch, *spatial, channels)``.
        y_pred: warped images, same shape.
        sample_weight: None, ``(batch,)``, or a mask ``(batch, *spatial[, 1])``.

    Raises:
        ValueError: when called, if the shapes do not fit, a window is even or `distance` below 1.
    """

    def __init__(
        self, window=3, distance=2, name="mind", reduction="sum_over_batch_size", dtype=None
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.window = window
        self.distance = distance

    def compare(self, fixed, warped, mask):
        """Return the mean squared difference of descriptors of each pair, ``(batch,)``."""
        return mind(fixed, warped, mask, window=self.window, distance=self.distance)

    def get_config(self):
        """Return the constructor arguments."""
        return {**super().get_config(), "window": self.window, "distance": self.distance}
