"""Gaussian pyramids whose levels are centred on the image."""

from collections.abc import Sequence

import numpy as np
from keras import ops

from kreg.ops.coordinates import centred_frame, check_image
from kreg.ops.filters import along_axis, gaussian_operator, known_sizes, mirrored

#: Up to this length an axis is halved by a matrix product, beyond by a sum of slices.
_MATRIX_LIMIT = 512


def downsample(image, *, sigma: float = 1.0, truncate: float = 3.0):
    """out[i] = (g_sigma * image)(2 i + s): every axis longer than 1 at half its resolution.

    An axis of n voxels becomes one of ceil(n / 2), sampled at 0.5, 2.5, ... (s = 1/2) where n is
    even, at 0, 2, 4, ... (s = 0) where it is odd. Either way its centre (n - 1) / 2 stays the
    centre, so the voxel-to-world matrix of the result is simply
    ``centred_frame(new_shape, 2 * spacing)``, an axis of one voxel keeping its spacing
    (`pyramid_frames`). Beyond its edges the image is mirrored, as by `gaussian_filter`.

    Args:
        image: ``(batch, *spatial, channels)``, floating; spatial sizes must be known.
        sigma: standard deviation of the low-pass, in voxels of `image`.
        truncate: radius of its kernel in standard deviations.

    Returns:
        ``(batch, *halved, channels)`` in the dtype of `image`.

    Raises:
        ValueError: if `sigma` is not positive, a size is unknown or the image is none.
    """
    image = check_image(image)
    if not sigma > 0:
        raise ValueError(f"Expected `sigma` > 0 voxels. Received: {sigma}.")
    result = ops.cast(image, "float32")  # weights in half precision would not add up to 1
    operators = {}
    for axis, size in enumerate(known_sizes(image), 1):
        kernel = _kernel(size, sigma, truncate)
        if size > max(_MATRIX_LIMIT, len(kernel)):
            result = _every_second(result, kernel, size, axis)
        elif size > 1:
            points = 2.0 * np.arange((size + 1) // 2) + (0.0 if size % 2 else 0.5)
            operators[axis + 1] = gaussian_operator(points, size, sigma, truncate)
    if operators:
        # Channels first: an axis is then followed by a whole row, or by nothing.
        result = ops.moveaxis(result, -1, 1)
        for axis, operator in operators.items():
            result = along_axis(result, operator, axis)
        result = ops.moveaxis(result, 1, -1)
    return ops.cast(result, image.dtype)


def _kernel(size: int, sigma: float, truncate: float) -> np.ndarray:
    """The weights of the voxels around a sample: an odd number on odd axes, an even on even."""
    reach = truncate * sigma + 0.5
    taps = 2 * int(reach) + 1 if size % 2 else 2 * int(reach + 0.5)
    return gaussian_operator([(taps - 1) / 2], taps, sigma, truncate)[0]


def _every_second(image, kernel: np.ndarray, size: int, axis: int):
    """Sum of slices, as `gaussian_filter` on a long axis, but of the samples that stay only."""
    padded = mirrored(image, len(kernel) // 2 + 1, axis)
    *before, length = ops.shape(padded)[: axis + 1]
    after = ops.shape(padded)[axis + 1 :]

    def part(tensor, start, stop):
        return tensor[(slice(None),) * axis + (slice(start, stop),)]

    # Even and odd voxels apart: slices with a step of 2 cost five times as much.
    pairs = ops.reshape(part(padded, 0, length // 2 * 2), (*before, length // 2, 2, *after))
    phases = [pairs[(slice(None),) * (axis + 1) + (phase,)] for phase in (0, 1)]
    result = 0.0
    for tap, weight in enumerate(kernel, 1 if size % 2 else 2):
        window = part(phases[tap % 2], tap // 2, tap // 2 + (size + 1) // 2)
        result = result + float(weight) * window
    return result


def gaussian_pyramid(image, levels: int, *, sigma: float = 1.0) -> list:
    """p[0] = image, p[l + 1] = downsample(p[l]): the image at ever coarser resolution.

    `pyramid_frames` says where the levels lie: one world matrix holds for all of them (Burt and
    Adelson, IEEE Transactions on Communications 1983).

    Args:
        image: ``(batch, *spatial, channels)``, floating; spatial sizes must be known.
        levels: how many images, the given one among them.
        sigma: standard deviation of each low-pass, in voxels of the finer level.

    Returns:
        The levels, finest first, ``(batch, *level_shape, channels)`` each.

    Raises:
        ValueError: if there are fewer levels than 1 or more than the image has voxels for,
            `sigma` is not positive, a size is unknown or the image is none.
    """
    result = [check_image(image)]
    pyramid_frames(known_sizes(result[0]), levels)  # refuses too many
    for _ in range(levels - 1):
        result.append(downsample(result[-1], sigma=sigma))
    return result


def pyramid_frames(
    shape: Sequence[int], levels: int, spacing: Sequence[float] | None = None
) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """The shape and the spacing of each level: (shape, spacing), (halved shape, 2 spacing), ...

    They are the arguments of `centred_frame`, and those that `voxel_matrix` takes for an image.
    Sizes are rounded up; an axis of one voxel keeps its spacing.

    Args:
        shape: the D spatial sizes of the finest level.
        levels: how many levels, the finest among them.
        spacing: distance between voxel centres along each axis; 1 where None.

    Returns:
        One pair a level, finest first.

    Raises:
        ValueError: if there are fewer levels than 1, or so many that no axis of the coarsest has
            2 voxels, or the spacing does not fit.
    """
    check_levels(levels)
    centred_frame(shape, spacing)  # refuses a spacing that does not fit
    most = max(1, (max(shape) - 1).bit_length())
    if levels > most:
        raise ValueError(
            f"Expected at most {most} levels for an image of {tuple(shape)} voxels, so that the "
            f"longest axis keeps 2; ask for fewer. Received: levels={levels}."
        )
    spacing = [1.0] * len(shape) if spacing is None else spacing
    result = [(tuple(shape), tuple(map(float, spacing)))]
    for _ in range(levels - 1):
        finer = list(zip(*result[-1], strict=True))
        sizes = tuple((size + 1) // 2 for size, _ in finer)
        result.append((sizes, tuple(step * (2 if size > 1 else 1) for size, step in finer)))
    return result


def check_levels(levels: int) -> None:
    """Raise ValueError for fewer levels than 1."""
    if levels < 1:
        raise ValueError(f"Expected `levels` >= 1, the image itself included. Received: {levels}.")
