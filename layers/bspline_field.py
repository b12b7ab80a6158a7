"""The displacement field of a grid of cubic B-splines."""

from collections.abc import Sequence

import keras

from kreg.ops.bspline import bspline_displacement, bspline_grid_shape


@keras.saving.register_keras_serializable("kreg")
class BSplineField(keras.layers.Layer):
    """u(x) = sum_i c_i prod_d B3(x_d / spacing_d - (i_d - 1)): a free-form deformation.

    Smooth by construction, of few coefficients: as many as `grid_shape` says, one spacing beyond
    the image on every side (Rueckert et al., IEEE TMI 1999).

    Args:
        spacing: distance of control points in voxels, for all axes or one for each.

    Call arguments:
        coefficients: ``(batch, *grid, D)``, voxels, `grid` being ``grid_shape(spatial)``.
        image: ``(batch, *spatial, channels)``, any tensor of the size wanted, which must be known.

    Raises:
        ValueError: if the coefficients are not on that grid, a size is unknown, or `spacing` is
            not positive.
    """

    def __init__(self, spacing, **kwargs):
        super().__init__(autocast=False, **kwargs)  # displacements stay float32
        self.spacing = tuple(spacing) if isinstance(spacing, Sequence) else spacing

    def grid_shape(self, shape) -> tuple[int, ...]:
        """Return the sizes of the control grid for an image of these spatial sizes."""
        return bspline_grid_shape(shape, self.spacing)

    def call(self, coefficients, image):
        """Return the displacement on the grid of the image, ``(batch, *spatial, D)`` float32."""
        return bspline_displacement(coefficients, tuple(image.shape[1:-1]), spacing=self.spacing)

    def compute_output_spec(self, coefficients, image):
        """Return the displacement's shape, float32 whatever the policy."""
        shape = self.compute_output_shape(coefficients.shape, image.shape)
        return keras.KerasTensor(shape, dtype="float32")

    def compute_output_shape(self, coefficients_shape, image_shape):
        """Return the sizes of the image with the components of the coefficients."""
        self.grid_shape(image_shape[1:-1])  # refuses unknown sizes
        return (coefficients_shape[0], *image_shape[1:-1], coefficients_shape[-1])

    def get_config(self):
        """Return the constructor arguments."""
        return {**super().get_config(), "spacing": self.spacing}
