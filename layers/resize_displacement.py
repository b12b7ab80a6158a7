"""Resample a displacement field to the grid of an image."""

import keras

from kreg.ops.coordinates import spatial_shape
from kreg.ops.displacement import resize


@keras.saving.register_keras_serializable("kreg")
class ResizeDisplacement(keras.layers.Layer):
    """Linear resampling to the grid of `reference`, over the same area; values rescaled.

    Where n voxels become m, displacements along that axis are multiplied by m / n, so that they
    stay in voxels of their own grid.

    Call arguments:
        displacement: ``(batch, *spatial, D)``, voxels of its own grid.
        reference: ``(batch, *new_spatial, channels)``, any tensor of the size wanted.

    Raises:
        ValueError: if the ranks do not fit.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)  # displacements stay float32

    def call(self, displacement, reference):
        """Return the displacement on the new grid, ``(batch, *new_spatial, D)`` float32."""
        return resize(displacement, spatial_shape(reference))

    def compute_output_spec(self, displacement, reference):
        """Return the new shape, float32 whatever the policy."""
        shape = self.compute_output_shape(displacement.shape, reference.shape)
        return keras.KerasTensor(shape, dtype="float32")

    def compute_output_shape(self, displacement_shape, reference_shape):
        """Return the sizes of the reference with the components of the displacement."""
        return (displacement_shape[0], *reference_shape[1:-1], displacement_shape[-1])
