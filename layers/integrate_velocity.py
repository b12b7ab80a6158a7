"""Integrate a stationary velocity field."""

import keras

from kreg import backend
from kreg.ops.displacement import integrate, self_compose

# One boundary a squaring: fused into one another, XLA would compile chained warps for minutes.
_square = backend.compiled(self_compose)


@keras.saving.register_keras_serializable("kreg")
class IntegrateVelocity(keras.layers.Layer):
    """phi = exp(v), by `steps` squarings of x + v / 2^steps: a diffeomorphism for smooth v.

    The exponential of -v is its inverse (Arsigny et al., MICCAI 2006; Dalca et al., MICCAI 2018).

    Args:
        steps: number of squarings.

    Call arguments:
        velocity: ``(batch, *spatial, D)``, voxels per unit time.

    Raises:
        ValueError: if `steps` is negative or the shape is not that of a field.
    """

    def __init__(self, steps=7, **kwargs):
        super().__init__(autocast=False, **kwargs)  # displacements stay float32
        if steps < 0:
            raise ValueError(f"Expected `steps` >= 0. Received: {steps}.")
        self.steps = steps

    def call(self, velocity):
        """Return the displacement, ``(batch, *spatial, D)`` float32 voxels."""
        return integrate(velocity, self.steps, square=_square)

    def compute_output_spec(self, velocity):
        """Return the velocity's shape, float32 whatever the policy."""
        return keras.KerasTensor(velocity.shape, dtype="float32")

    def compute_output_shape(self, velocity_shape):
        """Return the velocity's shape."""
        return velocity_shape

    def get_config(self):
        """Return the constructor arguments."""
        return {**super().get_config(), "steps": self.steps}
