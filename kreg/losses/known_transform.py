"""How far predicted matrices lead from where known ones do: the loss of a grid."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from kreg.ops.coordinates import COORDINATE_DTYPE
from kreg.ops.linear import transform_points

#: Points along each axis: a matrix differs smoothly, so that more change nothing.
_POINTS = 5


@keras.saving.register_keras_serializable("kreg")
def grid_distance(truth, matrix, extent: Sequence[float], *, epsilon=0.1):
    """mean over x of sqrt(d^2 + eps^2) - eps, d = 100 ||B x - A x|| / L, L the longest side.

    The distance, in per cent of the longest side, between where two matrices send the points x of
    an even grid over the image: unlike a difference of the matrices' entries it weighs a shift, an
    angle and a stretch by how far they move the image (Rocco et al., CVPR 2017).

    Args:
        truth: A, ``(batch, D + 1, D + 1)``, fixed to moving points in the centred world frame;
            or ``(batch, n, D + 1, D + 1)``, for several a sample.
        matrix: B, the predicted matrices, as `truth`; where there are n of them, one true matrix
            a sample stands for all.
        extent: the length of each side of the image in world units: its spatial sizes, times the
            spacing where that isn't 1.
        epsilon: below this distance, in per cent, the penalty is quadratic; positive.

    Returns:
        ``(batch,)``, per cent of the longest side, the mean over the n.

    Raises:
        ValueError: if the shapes do not fit, or an extent or `epsilon` is not positive.
    """
    truth, matrix = (ops.cast(x, COORDINATE_DTYPE) for x in (truth, matrix))
    lengths = np.asarray(extent, "float64")
    _check(truth, matrix, lengths, epsilon)
    side = len(lengths) + 1
    if len(truth.shape) == 3:
        truth = truth[:, None]
    if len(matrix.shape) == 3:
        matrix = matrix[:, None]
    axes = [(np.arange(_POINTS) + 0.5) / _POINTS * length - length / 2 for length in lengths]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(1, -1, side - 1)
    points = points.astype(COORDINATE_DTYPE)
    there = [transform_points(ops.reshape(m, (-1, side, side)), points) for m in (truth, matrix)]
    # (batch, n, points, D), n perhaps 1 on either side
    there = [
        ops.reshape(x, (-1, m.shape[1], *x.shape[1:]))
        for x, m in zip(there, (truth, matrix), strict=True)
    ]
    square = ops.sum(ops.square((there[1] - there[0]) * (100 / lengths.max())), axis=-1)
    return ops.mean(ops.sqrt(square + epsilon**2) - epsilon, axis=(1, 2))


def _check(truth, matrix, extent, epsilon):
    if extent.ndim != 1 or len(extent) not in (2, 3) or not np.all(extent > 0) or not epsilon > 0:
        raise ValueError(
            "Expected `extent` to be 2 or 3 positive lengths, those of the image's sides, and "
            f"`epsilon` > 0. Received: {extent} and {epsilon}."
        )
    shapes = tuple(truth.shape), tuple(matrix.shape)
    square = (len(extent) + 1,) * 2
    counts = [1 if len(shape) == 3 else shape[1] for shape in shapes if len(shape) in (3, 4)]
    batches = {shape[0] for shape in shapes} - {None}
    if (
        len(counts) < 2
        or any(shape[-2:] != square for shape in shapes)
        or None in counts
        or counts[0] not in (1, counts[1])
        or len(batches) > 1
    ):
        raise ValueError(
            f"Expected predicted and true matrices of shape (batch, {square[0]}, {square[0]}) or "
            f"(batch, n, {square[0]}, {square[0]}) for an image of {len(extent)} axes, one true "
            "matrix a sample or as many as predicted ones. "
            f"Received: predicted {shapes[1]}, true {shapes[0]}."
        )


@keras.saving.register_keras_serializable("kreg")
class GridDistance(keras.losses.Loss):
    """loss = mean over a grid of 100 ||B x - A x|| / L: matrices against the known ones.

    The same as `kreg.losses.grid_distance`: supervision by transforms that one has drawn oneself
    (`kreg.data.KnownTransforms`), for a matrix or for those of several stages; 0 where they agree.

    Args:
        extent: the length of each side of the image in world units: its spatial sizes, times the
            spacing where that isn't 1.
        epsilon: below this distance, in per cent, the penalty is quadratic; positive.

    Call arguments:
        y_true: the known matrices, ``(batch, D + 1, D + 1)``, or ``(batch, 1 or n, D + 1, D + 1)``.
        y_pred: the predicted ones, ``(batch, D + 1, D + 1)`` or ``(batch, n, D + 1, D + 1)``.
        sample_weight: None or ``(batch,)``.

    Raises:
        ValueError: when called, if the shapes do not fit, or extent or `epsilon` is not positive.
    """

    #: `kreg.RegistrationModel` gives zeros to no such loss where the data hold no truth.
    needs_target = True

    def __init__(
        self,
        extent,
        epsilon=0.1,
        name="grid_distance",
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.extent = [float(length) for length in extent]
        self.epsilon = epsilon

    def call(self, y_true, y_pred):
        """Return the mean distance of each sample, ``(batch,)``."""
        return grid_distance(y_true, y_pred, self.extent, epsilon=self.epsilon)

    def get_config(self):
        """Return the constructor arguments."""
        return {**super().get_config(), "extent": self.extent, "epsilon": self.epsilon}
