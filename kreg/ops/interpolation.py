"""Sampling an image at points: linear or nearest, with the border as an object.

A border is a function ``(image, points) -> (image, points)`` that returns points which all lie
within the image it returns. Pass one of `zero_border`, `nearest_border`, `reflect_border`, or
your own.
"""

import itertools
import math
from collections.abc import Callable

import keras
from keras import ops

from kreg.ops.coordinates import COORDINATE_DTYPE, check_image, spatial_shape

Border = Callable[..., tuple]


def _each_axis(function, image, points):
    """function(coordinates along an axis, size of the image along it), for each axis.

    Axis by axis, as `sample` goes on: XLA then computes points in registers and never stores them.
    """
    sizes = [ops.cast(n, COORDINATE_DTYPE) for n in spatial_shape(image)]
    axes = zip(ops.unstack(points, axis=-1), sizes, strict=True)
    return ops.stack([function(x, n) for x, n in axes], axis=-1)


@keras.saving.register_keras_serializable("kreg")
def zero_border(image, points):
    """Beyond the image lie zeros: ``0 0 0 | a b c d | 0 0 0`` (SciPy's ``grid-constant``)."""
    # One voxel of padding turns "zero outside" into "nearest": no weight needs a mask.
    dimensions = len(image.shape) - 2
    image = ops.pad(image, [(0, 0), *[(1, 1)] * dimensions, (0, 0)])
    return image, _each_axis(lambda x, n: ops.clip(x + 1, 0.0, n - 1), image, points)


@keras.saving.register_keras_serializable("kreg")
def nearest_border(image, points):
    """Beyond the image its border goes on: ``a a a | a b c d | d d d`` (SciPy's ``nearest``)."""
    return image, _each_axis(lambda x, n: ops.clip(x, 0.0, n - 1), image, points)


@keras.saving.register_keras_serializable("kreg")
def reflect_border(image, points):
    """The image is mirrored at its edge: ``c b a | a b c d | d c b`` (SciPy's ``reflect``)."""

    def reflect(x, n):
        folded = ops.mod(x + 0.5, 2 * n)
        return ops.clip(ops.minimum(folded, 2 * n - folded) - 0.5, 0.0, n - 1)

    return image, _each_axis(reflect, image, points)


def _check(image, points):
    image = check_image(image)
    points = ops.cast(points, COORDINATE_DTYPE)
    dimensions = len(image.shape) - 2
    if len(points.shape) < 3 or points.shape[-1] != dimensions:
        raise ValueError(
            f"Expected `points` of shape (batch, ..., {dimensions}) for an image with "
            f"{dimensions} spatial axes. Received: points {tuple(points.shape)}, "
            f"image {tuple(image.shape)}."
        )
    batches = image.shape[0], points.shape[0]
    if None not in batches and batches[0] != batches[1]:
        raise ValueError(
            "Expected as many images as sets of points; repeat the smaller batch first "
            f"(`keras.ops.repeat`). Received: points {tuple(points.shape)}, "
            f"image {tuple(image.shape)}."
        )
    return image, points


def _rows(image, dtype):
    """The image as rows of channels, and the row where each image of the batch begins."""
    sizes = spatial_shape(image)
    strides = [1]
    for size in reversed(sizes):
        strides.insert(0, strides[0] * size)
    flat = ops.reshape(image, (-1, image.shape[-1]))
    starts = ops.arange(ops.shape(image)[0], dtype=dtype) * strides[0]
    return flat, starts, strides[1:]


def _index_dtype(image):
    """int32, the faster, unless the voxels known of the batch outnumber it.

    A batch of unknown size that does would need 8 GiB for its indices alone.
    """
    rows = math.prod(size for size in image.shape[:-1] if size is not None)
    return "int64" if rows >= 2**31 else "int32"


def lower_corner(points, sizes, dtype):
    """Return the index of each cell's lower corner and the position in the cell, axis by axis.

    Args:
        points: ``(..., D)``, voxel indices within the image.
        sizes: D sizes, ints or tensors that fit the points' leading axes.
        dtype: of the index.

    Returns:
        Two lists of D tensors ``(...,)``.
    """
    lower, fraction = [], []
    for coordinate, size in zip(ops.unstack(points, axis=-1), sizes, strict=True):
        # The cast is a floor: the border leaves no negative coordinate. The int is clipped too:
        # the cast of NaN is any int, and a gather must stay inside.
        index = ops.cast(coordinate, dtype)
        index = ops.clip(index, 0, ops.maximum(ops.cast(size, dtype) - 2, 0))
        lower.append(index)
        fraction.append(coordinate - ops.cast(index, COORDINATE_DTYPE))
    return lower, fraction


@keras.saving.register_keras_serializable("kreg")
def sample(image, points, *, border: Border = zero_border):
    """out[p] = sum over the 2^D voxels v around p of image[v] prod_d (1 - abs(p_d - v_d)).

    Linear interpolation (bilinear, trilinear), differentiable in the image and in the points.

    Args:
        image: ``(batch, *spatial, channels)``, floating.
        points: ``(batch, ..., D)``, voxel indices.
        border: what lies outside: `zero_border`, `nearest_border` or `reflect_border`.

    Returns:
        ``(batch, ..., channels)`` in the dtype of the image.

    Raises:
        ValueError: if ranks, components or batch sizes do not fit, or the image is not floating.
    """
    image, points = _check(image, points)
    image, points = border(image, points)
    dtype = _index_dtype(image)
    sizes = spatial_shape(image)
    flat, index, strides = _rows(image, dtype)
    lower, fraction = lower_corner(points, sizes, dtype)

    index = ops.reshape(index, (-1,) + (1,) * (len(points.shape) - 2))
    # A product with the strides and a sum over its axis, not one axis after the other: XLA stores
    # the result of a reduction, where it would work out additions, down to the points, once more
    # for each of the 2^D corners.
    weighted = ops.stack(lower, axis=-1) * ops.stack([ops.cast(s, dtype) for s in strides])
    index = index + ops.sum(weighted, axis=-1)
    # An axis of one voxel has no upper neighbour: its step is 0, its fraction as well.
    steps = [
        stride * ops.minimum(ops.cast(size, dtype) - 1, 1)
        for stride, size in zip(strides, sizes, strict=True)
    ]
    return linear_rows(flat, index, steps, fraction)


def linear_rows(rows, index, steps, fraction):
    """Interpolate between the 2^D rows around each point.

    Args:
        rows: ``(n, channels)``.
        index: ``(...,)``: the row of each cell's lower corner.
        steps: D ints or tensors: how many rows on the neighbour along each axis lies.
        fraction: D tensors ``(...,)``: the position within the cell, 0 to 1.

    Returns:
        ``(..., channels)`` in the dtype of the rows.
    """
    values = [
        ops.take(rows, index + sum(o * s for o, s in zip(offsets, steps, strict=True)), axis=0)
        for offsets in itertools.product((0, 1), repeat=len(steps))
    ]
    for weight in reversed(fraction):  # the last axis varies fastest: neighbours in `values`
        weight = ops.cast(weight[..., None], rows.dtype)
        pairs = zip(values[0::2], values[1::2], strict=True)
        values = [low + (high - low) * weight for low, high in pairs]
    return values[0]


@keras.saving.register_keras_serializable("kreg")
def sample_nearest(image, points, *, border: Border = zero_border):
    """out[p] = image[round(p)]: the value of the nearest voxel, for labels and masks.

    Halves round up. Differentiable in the image; the gradient to the points is zero.

    Args:
        image: ``(batch, *spatial, channels)``, floating.
        points: ``(batch, ..., D)``, voxel indices.
        border: what lies outside: `zero_border`, `nearest_border` or `reflect_border`.

    Returns:
        ``(batch, ..., channels)`` in the dtype of the image.

    Raises:
        ValueError: as `sample`.
    """
    image, points = _check(image, points)
    image, points = border(image, ops.floor(points + 0.5))
    dtype = _index_dtype(image)
    flat, index, strides = _rows(image, dtype)
    index = ops.reshape(index, (-1,) + (1,) * (len(points.shape) - 2))
    coordinates = ops.unstack(points, axis=-1)
    for coordinate, stride, size in zip(coordinates, strides, spatial_shape(image), strict=True):
        # Rounded again: a reflected integer may lie on a half.
        nearest = ops.cast(ops.floor(coordinate + 0.5), dtype)
        index = index + ops.clip(nearest, 0, ops.cast(size, dtype) - 1) * stride
    return ops.take(flat, index, axis=0)
