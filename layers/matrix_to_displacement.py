"""The displacement field of a linear transform."""

import keras

from kreg.ops.filters import known_sizes
from kreg.ops.linear import matrix_to_displacement, voxel_matrix


@keras.saving.register_keras_serializable("kreg")
class MatrixToDisplacement(keras.layers.Layer):
    """u(x) = H x - x, H = inv(M) A M: a matrix A between world frames as a field in voxels.

    M is the voxel-to-world matrix of the centred frame (`kreg.ops.coordinates`), the same for the
    fixed and the moving image.

    Args:
        spacing: distance of voxel centres along each axis; 1 where None.

    Call arguments:
        matrix: ``(batch, D + 1, D + 1)``, fixed to moving points in the world.
        image: ``(batch, *spatial, channels)``, any tensor of the size wanted, which must be known.

    Raises:
        ValueError: if the sizes of matrix, image and spacing do not fit, or one is unknown.
    """

    def __init__(self, *, spacing=None, **kwargs):
        super().__init__(autocast=False, **kwargs)  # displacements stay float32
        self.spacing = None if spacing is None else tuple(spacing)

    def call(self, matrix, image):
        """Return the displacement on the grid of the image, ``(batch, *spatial, D)`` float32."""
        sizes = known_sizes(image)
        voxels = voxel_matrix(
            matrix, sizes, fixed_spacing=self.spacing, moving_spacing=self.spacing
        )
        return matrix_to_displacement(voxels, sizes)

    def compute_output_spec(self, matrix, image):
        """Return the displacement's shape, float32 whatever the policy."""
        shape = self.compute_output_shape(matrix.shape, image.shape)
        return keras.KerasTensor(shape, dtype="float32")

    def compute_output_shape(self, matrix_shape, image_shape):
        """Return the sizes of the image, with as many components."""
        sizes = known_sizes(keras.KerasTensor(image_shape))
        return (matrix_shape[0], *sizes, len(sizes))

    def get_config(self):
        """Return the constructor arguments."""
        return {**super().get_config(), "spacing": self.spacing}
