"""The displacement field of a thin-plate spline through control points."""

import keras

from kreg import backend
from kreg.ops.coordinates import spatial_shape
from kreg.ops.thin_plate import spline_sum, thin_plate_displacement

# Fused, no product of voxels and control points is ever stored.
_compiled_sum = backend.compiled(spline_sum)


@keras.saving.register_keras_serializable("kreg")
class ThinPlateSpline(keras.layers.Layer):
    """u(x) = f(x) - x, f the smoothest map that takes each control point to its target.

    Differentiable in both sets of points, so that a network that finds them can be trained
    through it (Bookstein, IEEE PAMI 1989). At least D + 1 points, not all of them on a line (in
    3-D: in a plane) and no two in one place: see `kreg.ops.thin_plate_spline`.

    Args:
        regularisation: weight of the bending, in voxels^(4 - D); 0 meets every target.

    Call arguments:
        source: control points in the fixed image, ``(batch, n, D)`` voxels.
        target: the same points in the moving image, ``(batch, n, D)`` voxels.
        image: ``(batch, *spatial, channels)``, any tensor of the size wanted.

    Raises:
        ValueError: if the shapes do not fit, there are fewer than D + 1 points, or
            `regularisation` is negative.
    """

    def __init__(self, *, regularisation=0.0, **kwargs):
        super().__init__(autocast=False, **kwargs)  # points and displacements stay float32
        if not regularisation >= 0:
            raise ValueError(f"Expected `regularisation` >= 0. Received: {regularisation}.")
        self.regularisation = regularisation

    def call(self, source, target, image):
        """Return the displacement on the grid of the image, ``(batch, *spatial, D)`` float32."""
        return thin_plate_displacement(
            source,
            target,
            spatial_shape(image),
            regularisation=self.regularisation,
            evaluate=_compiled_sum,
        )

    def compute_output_spec(self, source, target, image):
        """Return the displacement's shape, float32 whatever the policy."""
        shape = self.compute_output_shape(source.shape, target.shape, image.shape)
        return keras.KerasTensor(shape, dtype="float32")

    def compute_output_shape(self, source_shape, target_shape, image_shape):
        """Return the sizes of the image with the coordinates of the points."""
        return (source_shape[0], *image_shape[1:-1], target_shape[-1])

    def get_config(self):
        """Return the constructor arguments."""
        return {**super().get_config(), "regularisation": self.regularisation}
