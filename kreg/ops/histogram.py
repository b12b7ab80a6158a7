"""Joint histograms of two values, linearly binned."""

from keras import ops


def joint_counts(first, second, weights, bins: int):
    """out[i, j] = sum over n of w hat(i - first) hat(j - second), hat(t) = max(0, 1 - abs(t)).

    Every sample adds four values to one cell, which its neighbours collect afterwards: a scatter
    of rows of four is several times faster than a product of (samples, bins) matrices of weights.

    Args:
        first, second: ``(images, n)``, from 0 to bins - 1.
        weights: likewise.
        bins: number of bins, at least 2.

    Returns:
        ``(images, bins, bins)``, differentiable in all three.
    """
    row, down = _lower(first, bins)
    column, right = _lower(second, bins)
    both, lower = down * right * weights, down * weights
    upper = weights - lower
    aside = right * weights - both
    corners = ops.stack([upper - aside, aside, lower - both, both], axis=-1)
    images = ops.shape(first)[0]
    image = ops.arange(images, dtype="int32")[:, None]
    cell = (image * bins + row) * bins + column
    sums = ops.segment_sum(
        ops.reshape(corners, (-1, 4)), ops.reshape(cell, (-1,)), images * bins * bins
    )
    sums = ops.reshape(sums, (-1, bins, bins, 4))

    def moved(corner, down, right):  # the last row and column hold nothing that would move on
        part = sums[:, : bins - down, : bins - right, corner]
        return ops.pad(part, ((0, 0), (down, 0), (right, 0)))

    return moved(0, 0, 0) + moved(1, 0, 1) + moved(2, 1, 0) + moved(3, 1, 1)


def _lower(position, bins: int):
    """The lower of the two bins that each position lies between, and how far it is to the upper."""
    lower = ops.stop_gradient(ops.clip(ops.floor(position), 0.0, bins - 2.0))
    # Clipped once more: NaN becomes any integer.
    return ops.clip(ops.cast(lower, "int32"), 0, bins - 2), position - lower
