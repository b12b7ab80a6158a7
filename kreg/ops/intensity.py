"""Grey values: standardisation."""

from keras import ops

#: Variance below this share of the mean square is rounding, not contrast (float32).
_RELATIVE_FLOOR = 1e-10
#: Smallest variance whose rsqrt has a finite gradient in float32, with room to spare.
TINY = 1e-24


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

    if weights is not None:
        image = ops.where(weights > 0, image, 0.0)  # what is masked may be NaN
    centred = image - mean(image)
    # Once more: over many voxels a float32 mean is off by more than the floor below.
    centred = centred - mean(centred)
    floor = _RELATIVE_FLOOR * mean(ops.square(image)) + TINY
    return centred * ops.rsqrt(mean(ops.square(centred)) + floor)
