"""Separable Gaussian and box filters in any number of dimensions."""

from collections.abc import Sequence

import numpy as np
from keras import ops

from kreg.ops.coordinates import check_image

#: Up to this length an axis is filtered by a matrix product, beyond by a sum of shifted slices.
_MATRIX_LIMIT = 128


def _per_axis(value, dimensions: int, name: str) -> list:
    values = list(value) if isinstance(value, Sequence) else [value] * dimensions
    if len(values) != dimensions:
        raise ValueError(
            f"Expected `{name}` to be one number or one for each of the {dimensions} spatial "
            f"axes. Received: {value}."
        )
    return values


def along_axis(image, operator, axis: int):
    """out[..., i, ...] = sum_j operator[i, j] image[..., j, ...]: a matrix applied to one axis.

    Args:
        image: any tensor.
        operator: ``(n_out, n_in)``, n_in the length of `axis`.
        axis: counted from 0.

    Returns:
        The image with `axis` of length n_out, in its own dtype.
    """
    shape = ops.shape(image)
    before, after = shape[:axis], shape[axis + 1 :]
    operator = ops.cast(operator, image.dtype)
    if all(isinstance(size, int) and size == 1 for size in after):
        # One product of two matrices, not a product with a vector for each row of the image.
        stacked = ops.reshape(image, (_product(before), shape[axis]))
        result = ops.matmul(stacked, ops.transpose(operator))
    else:
        stacked = ops.reshape(image, (_product(before), shape[axis], _product(after)))
        result = ops.matmul(operator, stacked)
    return ops.reshape(result, (*before, ops.shape(operator)[0], *after))


def _product(sizes):
    product = 1
    for size in sizes:
        product = product * size
    return product


def mirrored(image, radius: int, axis: int):
    """The image with `radius` more voxels at either end of an axis (``b a | a b c | c b``)."""

    # Not `ops.pad`: on PyTorch Keras repeats the edge where "symmetric" is asked for.
    def part(*bounds):
        return image[(slice(None),) * axis + (slice(*bounds),)]

    head, tail = part(0, radius), part(-radius, None)
    return ops.concatenate([ops.flip(head, axis), image, ops.flip(tail, axis)], axis)


def _shifted_sum(image, kernel: np.ndarray, axis: int):
    padded = mirrored(image, len(kernel) // 2, axis)
    size = ops.shape(image)[axis]
    result = 0.0
    for offset, weight in enumerate(kernel):
        window = (slice(None),) * axis + (slice(offset, offset + size),)
        result = result + float(weight) * padded[window]
    return result


def _banded(kernel: np.ndarray, size: int) -> np.ndarray:
    """The kernel as a matrix, its tails folded back at the edges (``b a | a b c | c b``)."""
    radius = len(kernel) // 2
    matrix = np.zeros((size, size))
    rows = np.arange(size)
    for offset, weight in enumerate(kernel, -radius):
        np.add.at(matrix, (rows, _folded(rows + offset, size)), weight)
    return matrix.astype("float32")


def gaussian_kernel(sigma: float, truncate: float = 4.0) -> np.ndarray:
    """g[i] = exp(-i^2 / (2 sigma^2)), normalised, for abs(i) <= truncate sigma + 1/2."""
    radius = int(truncate * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2) if sigma > 0 else np.ones(1)
    return kernel / kernel.sum()


def gaussian_operator(points, size: int, sigma: float, truncate: float = 4.0) -> np.ndarray:
    """A[i, j] = g_sigma(j - points[i]), each row normalised: a low-pass sampled anywhere.

    Rows reach as far as `gaussian_kernel`; what lies beyond the axis is mirrored.

    Args:
        points: where to sample, in voxels of the axis.
        size: length of the axis.
        sigma: standard deviation in voxels, positive.
        truncate: radius in standard deviations.

    Returns:
        ``(len(points), size)``, float32, for `along_axis`.
    """
    points = np.asarray(points, "float64")[:, None]
    reach = truncate * sigma + 0.5
    voxels = np.ceil(points - reach) + np.arange(int(2 * reach) + 1)
    power = 0.5 * ((voxels - points) / sigma) ** 2
    # The nearest voxel has weight 1, or a narrow kernel between two voxels would vanish.
    weights = np.exp(power.min(axis=1, keepdims=True) - power) * (voxels <= points + reach)
    matrix = np.zeros((len(points), size))
    rows = np.arange(len(points))[:, None]
    np.add.at(matrix, (rows, _folded(voxels.astype(int), size)), weights)
    return (matrix / weights.sum(axis=1, keepdims=True)).astype("float32")


def _folded(index: np.ndarray, size: int) -> np.ndarray:
    """Index of the voxel that mirroring (``b a | a b c | c b``) puts at `index`."""
    folded = np.mod(index, 2 * size)
    return np.minimum(folded, 2 * size - 1 - folded)


def gaussian_filter(image, sigma: float | Sequence[float], *, truncate: float = 4.0):
    """out = g_sigma * image, separably, the image mirrored at its edges.

    The same numbers as ``scipy.ndimage.gaussian_filter`` with its default border.

    Args:
        image: ``(batch, *spatial, channels)``, floating; spatial sizes must be known.
        sigma: standard deviation in voxels, for all axes or one for each; 0 leaves an axis.
        truncate: radius of the kernel in standard deviations.

    Returns:
        As `image`.

    Raises:
        ValueError: for a negative sigma, another number of sigmas than axes, or a wrong image.
    """
    image = check_image(image)
    sigmas = _per_axis(sigma, len(image.shape) - 2, "sigma")
    if min(sigmas) < 0:
        raise ValueError(f"Expected `sigma` >= 0 voxels. Received: {sigma}.")
    for axis, one_sigma in enumerate(sigmas, 1):
        kernel = gaussian_kernel(one_sigma, truncate)
        size = _known_size(image, axis)
        if len(kernel) == 1:
            continue
        if size <= max(_MATRIX_LIMIT, len(kernel) // 2):
            image = along_axis(image, _banded(kernel, size), axis)
        else:
            image = _shifted_sum(image, kernel, axis)
    return image


def _known_size(image, axis: int) -> int:
    if image.shape[axis] is None:
        raise ValueError(
            "Expected an image with known spatial sizes; give them to `keras.Input`. "
            f"Received: shape {tuple(image.shape)}."
        )
    return image.shape[axis]


def known_sizes(image) -> tuple[int, ...]:
    """Return the spatial sizes as ints, or raise ValueError where one is unknown."""
    return tuple(_known_size(image, axis) for axis in range(1, len(image.shape) - 1))


def resize_image(image, shape: Sequence[int]):
    """out_i = the mean of the image over the area of voxel i of another grid over the same area.

    The grids share their outer edges: voxel i of n lies at (i + 1/2) / n of the width.

    Args:
        image: ``(batch, *spatial, channels)``, floating; spatial sizes must be known.
        shape: the new spatial sizes.

    Returns:
        ``(batch, *shape, channels)``.

    Raises:
        ValueError: if `shape` does not hold a positive integer for each spatial axis, or a size is
            unknown.
    """
    sizes = known_sizes(image)
    check_new_shape(shape, sizes)
    for axis, (size, new) in enumerate(zip(sizes, shape, strict=True), 1):
        if new != size:
            image = along_axis(image, _area_operator(size, new), axis)
    return image


def check_new_shape(shape, sizes) -> None:
    """Raise ValueError unless `shape` holds a positive integer for each of the sizes."""
    if len(shape) != len(sizes) or any(int(new) != new or new < 1 for new in shape):
        raise ValueError(
            f"Expected {len(sizes)} new sizes, each an integer of at least 1. Received: {shape}."
        )


def _area_operator(size: int, new: int) -> np.ndarray:
    """Matrix ``(new, size)``: the share that each old voxel has in the area of each new one."""
    edges = np.arange(new + 1) * (size / new)
    first = np.arange(size)
    overlap = np.minimum(edges[1:, None], first + 1) - np.maximum(edges[:-1, None], first)
    return (np.maximum(overlap, 0) * (new / size)).astype("float32")


def check_window(window, dimensions: int) -> list[int]:
    """Return one odd window length for each axis, or raise ValueError."""
    windows = _per_axis(window, dimensions, "window")
    if any(int(w) != w or w < 1 or w % 2 == 0 for w in windows):
        raise ValueError(f"Expected `window` to be odd, at least 1 voxel. Received: {window}.")
    return windows


def box_sum(image, window: int | Sequence[int]):
    """out[x] = sum of image over the window centred on x; zeros beyond the edges.

    The filter is its own adjoint, which makes gradients of what is built on it cheap.

    Args:
        image: ``(batch, *spatial, channels)``, floating.
        window: odd length in voxels, for all axes or one for each.

    Returns:
        As `image`.

    Raises:
        ValueError: if a window is even or below 1.
    """
    image = check_image(image)
    for axis, length in enumerate(check_window(window, len(image.shape) - 2), 1):
        image = _running_sum(image, length, axis)
    return image


def _running_sum(image, length: int, axis: int):
    """Sum of `length` neighbours along an axis, by doubling: log2(length) additions a voxel.

    Unlike a cumulative sum it adds only values within the window, so nothing cancels.
    """
    radius = length // 2
    size = ops.shape(image)[axis]
    padding = [(0, 0)] * len(image.shape)
    padding[axis] = (radius, radius)
    power = ops.pad(image, padding)  # sums of `span` neighbours to the right
    span, done, total = 1, 0, None
    extent = size + 2 * radius

    def window(tensor, start, stop):
        return tensor[(slice(None),) * axis + (slice(start, stop),)]

    while True:
        if length & span:
            part = window(power, done, done + size)
            total = part if total is None else total + part
            done += span
        if 2 * span > length:
            return total
        reach = extent - 2 * span + 1
        power = window(power, 0, reach) + window(power, span, span + reach)
        span *= 2


def box_filter(image, window: int | Sequence[int]):
    """out[x] = mean of image over those voxels of the window centred on x that exist.

    Args:
        image: ``(batch, *spatial, channels)``, floating.
        window: odd length in voxels, for all axes or one for each.

    Returns:
        As `image`.

    Raises:
        ValueError: if a window is even or below 1.
    """
    return box_sum(image, window) / box_sum(ops.ones_like(image[:1, ..., :1]), window)
