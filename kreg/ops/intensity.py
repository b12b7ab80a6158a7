"""Grey values: standardisation."""

from keras import ops

#: Variance below this share of the mean square is rounding, not contrast (float32).
_RELATIVE_FLOOR = 1e-10
TINY = 1e-20


def standardise(image, weights=None):
    """(x - mean) / std over the voxels of each channel of each sample; 0 where x is constant.

    Args:
        image: ``(batch, *spatial, channels)``, floating.
        weights: None, or weights of the voxels, ``(batch, *spatial, 1)``.

    Returns:
        As `image`; the same for a x + b as for x (a > 0).
    """
    axes = tuple(range(1, len(image.shape) - 1))

    def mean(x):
        if weights is None:
            return ops.mean(x, axis=axes, keepdims=True)
        total = ops.maximum(ops.sum(weights, axis=axes, keepdims=True), TINY)
        return ops.sum(weights * x, axis=axes, keepdims=True) / total

    centred = image - mean(image)
    floor = _RELATIVE_FLOOR * mean(ops.square(image)) + TINY
    return centred * ops.rsqrt(mean(ops.square(centred)) + floor)
