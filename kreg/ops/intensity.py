"""Grey values: standardisation, of the whole image and locally."""

import math

import numpy as np
from keras import ops

from kreg.ops.coordinates import check_image
from kreg.ops.filters import along_axis, gaussian_operator, known_sizes

#: Variance below this share of the mean square is rounding, not contrast (float32).
_RELATIVE_FLOOR = 1e-10
#: Smallest variance whose rsqrt has a finite gradient in float32, with room to spare.
TINY = 1e-24
#: Local variances, of images with values in [0, 1], below which contrast is rounding.
_LOCAL_FLOOR = 1e-12
#: Samples of a wide average per standard deviation: 2 are about 1 % off, 3 half that.
_SAMPLES = 2


def standardise(image, weights=None):
    """(x - mean) / std over the voxels of each channel of each sample; 0 where x is constant.

    Args:
        image: ``(batch, *spatial, channels)``, floating.
        weights: None, or weights of the voxels, ``(batch, *spatial, 1)``.

    Returns:
        As `image`; the same for a x + b as for x (a > 0).
    """
    image = ops.convert_to_tensor(image)
    axes = tuple(range(1, len(image.shape) - 1))

    def mean(x):
        if weights is None:
            return ops.mean(x, axis=axes, keepdims=True)
        total = ops.maximum(ops.sum(weights, axis=axes, keepdims=True), TINY)
        return ops.sum(weights * x, axis=axes, keepdims=True) / total

    if weights is not None:
        image = ops.where(weights > 0, image, 0.0)  # what is masked may be NaN
    middle = mean(image)
    centred = image - middle
    # Once more: over many voxels a float32 mean is off by more than the floor below.
    centred = centred - mean(centred)
    variance = mean(ops.square(centred))
    floor = _RELATIVE_FLOOR * (variance + ops.square(middle)) + TINY  # of the mean square
    return centred * ops.rsqrt(variance + floor)


def normalise_locally(image, sigma: float, mask=None, *, floor: float = 0.02):
    """out = d / (sqrt(g * d^2) + floor range), d = I - g * I, g a Gaussian of width `sigma`.

    Takes away shading and evens out contrast that vary more slowly than over `sigma` voxels; the
    same for a I + b as for I (a > 0). The range, max - min of each channel of each sample, keeps
    noise in flat regions from being blown up; a constant channel becomes 0.

    From `sigma` = 4 on the averages g * are evaluated on a grid of 2 samples per sigma and
    interpolated linearly, which is within about 1 % of the definition. The image is mirrored at
    its edges; with a mask each average is over what is valid, g * (m I) / g * m.

    Args:
        image: ``(batch, *spatial, channels)``, floating; spatial sizes must be known.
        sigma: standard deviation of the window, in voxels.
        mask: None, or weights of the voxels, ``(batch, *spatial)`` or ``(batch, *spatial, 1)``.
            Where it is 0 the result is 0 and the image may hold anything.
        floor: added to the local deviation, as a share of the range.

    Returns:
        As `image`.

    Raises:
        ValueError: if `sigma` is not positive or `floor` negative, a size is unknown, or image or
            mask do not fit.
    """
    image = check_image(image)
    if not sigma > 0:
        raise ValueError(f"Expected `sigma` > 0 voxels. Received: {sigma}.")
    if not floor >= 0:
        raise ValueError(f"Expected `floor` >= 0. Received: {floor}.")
    operators = [_average_operators(size, sigma) for size in known_sizes(image)]
    # In float32, and channels first: an axis is then followed by a whole row, or by nothing.
    values = ops.moveaxis(ops.cast(image, "float32"), -1, 1)
    weights = None
    if mask is not None:
        weights = ops.moveaxis(ops.cast(voxel_weights(mask, image), "float32"), -1, 1)
        total = ops.maximum(_averaged(weights, operators), TINY)

    def average(x):
        if weights is None:
            return _averaged(x, operators)
        return _averaged(weights * x, operators) / total

    values = _to_unit_range(values, weights)
    difference = values - average(values)
    if weights is not None:
        difference = ops.where(weights > 0, difference, 0.0)
    deviation = ops.sqrt(average(ops.square(difference)) + _LOCAL_FLOOR)
    result = ops.moveaxis(difference / (deviation + floor), 1, -1)
    return ops.cast(result, image.dtype)


def _to_unit_range(image, weights):
    """(x - min) / (max - min) of each channel ``(batch, channels, *spatial)``; 0 if constant."""
    axes = tuple(range(2, len(image.shape)))
    low = high = image
    if weights is not None:
        image = ops.where(weights > 0, image, 0.0)  # what is masked may be NaN
        low = ops.where(weights > 0, image, math.inf)
        high = ops.where(weights > 0, image, -math.inf)
    low = ops.min(low, axis=axes, keepdims=True)
    contrast = ops.max(high, axis=axes, keepdims=True) - low
    constant = contrast <= TINY
    scaled = (image - low) / ops.where(constant, 1.0, contrast)
    outside = constant if weights is None else ops.logical_or(constant, weights <= 0)
    return ops.where(outside, 0.0, scaled)


def _average_operators(size: int, sigma: float) -> list[np.ndarray]:
    """Matrices whose product is g_sigma * along an axis: to a coarse grid, and back from it.

    The coarse grid shares its edges with the fine one, so that both mirror alike. Linear
    interpolation over its step h is a low-pass too, of variance h^2 / 6.
    """
    if sigma < 2 * _SAMPLES:
        return [gaussian_operator(np.arange(size), size, sigma)]
    coarse = math.ceil(_SAMPLES * size / sigma)
    step = size / coarse
    points = (np.arange(coarse) + 0.5) * step - 0.5
    reduce = gaussian_operator(points, size, math.sqrt(sigma**2 - step**2 / 6))
    position = np.clip((np.arange(size) + 0.5) / step - 0.5, 0, coarse - 1)
    expand = np.maximum(1 - np.abs(position[:, None] - np.arange(coarse)), 0)
    return [reduce, expand]


def _averaged(image, operators: list[list[np.ndarray]]):
    """g * image, for channels first: all axes to their coarse grids, then all axes back."""
    for stage in zip(*operators, strict=True):
        for axis, operator in enumerate(stage, 2):
            image = along_axis(image, operator, axis)
    return image


def voxel_weights(mask, image):
    """Return `mask` as weights ``(batch, *spatial, 1)`` for `image`, or raise ValueError.

    No gradient flows to the mask.
    """
    mask = ops.cast(mask, image.dtype)
    if len(mask.shape) == len(image.shape) - 1:
        mask = mask[..., None]
    shape = tuple(image.shape)
    known = zip(tuple(mask.shape), (*shape[:-1], 1), strict=False)
    if len(mask.shape) != len(shape) or any(None not in (a, b) and a != b for a, b in known):
        raise ValueError(
            "Expected a mask of shape (batch, *spatial) or (batch, *spatial, 1) that fits the "
            f"image. Received: mask {tuple(mask.shape)}, image {shape}."
        )
    return ops.stop_gradient(mask)
