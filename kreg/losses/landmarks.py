"""The distance between corresponding landmarks, to train on."""

import keras
import numpy as np
from keras import ops

from kreg.ops.coordinates import COORDINATE_DTYPE


@keras.saving.register_keras_serializable("kreg")
def landmark_distance(reference, points, *, spacing=None, epsilon=1e-3):
    """mean over landmarks of sqrt(||p - q||^2 + eps^2) - eps, p predicted, q the reference.

    The mean distance, but for `epsilon`, without which it had no gradient where p = q. A landmark
    whose reference is NaN is missing and left out: fill sets up with NaN where they are of
    unequal size. A set without any landmark costs nothing: 0.

    Args:
        reference: ``(batch, n, D)``, where the points should lie: landmarks of the moving image
            for fixed landmarks that the map has carried there.
        points: ``(batch, n, D)``, the predicted points, voxel indices in axis order ij.
        spacing: distance of voxel centres along each axis; 1 where None.
        epsilon: below this distance the penalty is quadratic; positive, in the unit of the result.

    Returns:
        ``(batch,)``, voxels or the unit of the spacing.

    Raises:
        ValueError: if the shapes do not fit, or the spacing or `epsilon` is not positive.
    """
    reference = ops.cast(reference, COORDINATE_DTYPE)
    points = ops.cast(points, COORDINATE_DTYPE)
    _check_points(reference, points)
    if not epsilon > 0:
        raise ValueError(f"Expected `epsilon` > 0. Received: {epsilon}.")
    step = np.ones(points.shape[-1]) if spacing is None else np.asarray(spacing, "float64")
    if step.shape != (points.shape[-1],) or not np.all(step > 0):
        raise ValueError(
            f"Expected one positive spacing for each of the {points.shape[-1]} axes. "
            f"Received: {spacing}."
        )
    present = ops.logical_not(ops.any(ops.isnan(reference), axis=-1))
    # Filled before the difference is taken: behind it, the gradient would be 0 times NaN.
    reference = ops.where(present[..., None], reference, 0.0)
    offset = ops.where(present[..., None], points - reference, 0.0)
    offset = offset * ops.convert_to_tensor(step, COORDINATE_DTYPE)
    distance = ops.sqrt(ops.sum(ops.square(offset), axis=-1) + epsilon**2) - epsilon
    count = ops.sum(ops.cast(present, COORDINATE_DTYPE), axis=-1)
    distance = ops.where(present, distance, 0.0)
    return ops.sum(distance, axis=-1) / ops.maximum(count, 1.0)


def _check_points(reference, points):
    shapes = tuple(reference.shape), tuple(points.shape)
    if (
        len(shapes[0]) != 3
        or len(shapes[1]) != 3
        or shapes[1][-1] not in (2, 3)
        or any(None not in (a, b) and a != b for a, b in zip(*shapes, strict=True))
    ):
        raise ValueError(
            "Expected predicted and reference points of equal shape (batch, n, D), D 2 or 3; fill "
            "sets of unequal size up with NaN in the reference. "
            f"Received: predicted {shapes[1]}, reference {shapes[0]}."
        )


@keras.saving.register_keras_serializable("kreg")
class LandmarkDistance(keras.losses.Loss):
    """mean over landmarks of sqrt(||p - q||^2 + eps^2) - eps: how far predicted points p lie off.

    The same as `kreg.losses.landmark_distance`; smaller is better, 0 where all landmarks meet.

    Args:
        spacing: distance of voxel centres along each axis; 1 where None.
        epsilon: below this distance the penalty is quadratic; positive.

    Call arguments:
        y_true: where the points should lie, ``(batch, n, D)``; a landmark of NaN is left out.
        y_pred: the predicted points, same shape, voxel indices in axis order ij.
        sample_weight: None or ``(batch,)``.

    Raises:
        ValueError: when called, if the shapes do not fit, or spacing or `epsilon` is not positive.
    """

    def __init__(
        self,
        spacing=None,
        epsilon=1e-3,
        name="landmark_distance",
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.spacing = None if spacing is None else [float(step) for step in spacing]
        self.epsilon = epsilon

    def call(self, y_true, y_pred):
        """Return the distance of each set of points, ``(batch,)``."""
        return landmark_distance(y_true, y_pred, spacing=self.spacing, epsilon=self.epsilon)

    def get_config(self):
        """Return the constructor arguments."""
        return {**super().get_config(), "spacing": self.spacing, "epsilon": self.epsilon}
