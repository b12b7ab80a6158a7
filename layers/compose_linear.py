"""Compose a linear transform and a displacement field."""

import keras

from kreg.ops.composition import compose_linear
from kreg.ops.filters import known_sizes
from kreg.ops.linear import voxel_matrix


@keras.saving.register_keras_serializable("kreg")
class ComposeLinear(keras.layers.Layer):
    """u'(x) = H (x + u(x)) - x, H = inv(M) A M: warping by u' is warping by A, then by u.

    Where u was found between the fixed image and the one that A has already warped, one warp with
    u' does both. M is the voxel-to-world matrix of the centred frame (`kreg.ops.coordinates`),
    the same for the fixed and the moving image.

    Args:
        spacing: distance of voxel centres along each axis; 1 where None.

    Call arguments:
        matrix: A ``(batch, D + 1, D + 1)``, fixed to moving points in the world.
        displacement: u ``(batch, *spatial, D)``, voxels; spatial sizes must be known.

    Raises:
        ValueError: if the sizes of matrix, displacement and spacing do not fit, or one is unknown.
    """

    def __init__(self, *, spacing=None, **kwargs):
        super().__init__(autocast=False, **kwargs)  # displacements stay float32
        self.spacing = None if spacing is None else tuple(spacing)

    def call(self, matrix, displacement):
        """Return the composed displacement, ``(batch, *spatial, D)`` float32 voxels."""
        voxels = voxel_matrix(
            matrix,
            known_sizes(displacement),
            fixed_spacing=self.spacing,
            moving_spacing=self.spacing,
        )
        return compose_linear(voxels, displacement)

    def compute_output_spec(self, matrix, displacement):
        """Return the displacement's shape, float32 whatever the policy."""
        shape = self.compute_output_shape(matrix.shape, displacement.shape)
        return keras.KerasTensor(shape, dtype="float32")

    def compute_output_shape(self, matrix_shape, displacement_shape):
        """Return the displacement's shape."""
        known_sizes(keras.KerasTensor(displacement_shape))  # refuses unknown sizes
        return tuple(displacement_shape)

    def get_config(self):
        """Return the constructor arguments."""
        return {**super().get_config(), "spacing": self.spacing}
