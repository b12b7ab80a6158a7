"""Carry points from the fixed to the moving image."""

import keras
from keras import ops

from kreg.ops.composition import displace_points


@keras.saving.register_keras_serializable("kreg")
class DisplacePoints(keras.layers.Layer):
    """phi(x) = x + u(x): where points of the fixed image lie in the moving one.

    A point that is NaN is missing: it stays NaN and has no part in the gradient. Between voxels u
    is interpolated linearly, beyond the grid it goes on as at its border.

    Call arguments:
        points: ``(batch, n, D)``, voxels of the fixed image.
        displacement: ``(batch, *spatial, D)``, voxels.

    Raises:
        ValueError: if the sizes of points and displacement do not fit.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)  # points stay float32

    def call(self, points, displacement):
        """Return the points in the moving image, ``(batch, n, D)`` float32 voxels."""
        points = ops.cast(points, "float32")
        missing = ops.any(ops.isnan(points), axis=-1, keepdims=True)
        # Filled before they are displaced: behind it, the gradient would be 0 times NaN.
        moved = displace_points(ops.where(missing, 0.0, points), displacement)
        return ops.where(missing, points, moved)

    def compute_output_spec(self, points, displacement):
        """Return the shape of the points, float32 whatever the policy."""
        return keras.KerasTensor(points.shape, dtype="float32")

    def compute_output_shape(self, points_shape, displacement_shape):
        """Return the shape of the points."""
        return points_shape
