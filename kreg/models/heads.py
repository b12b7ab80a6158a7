"""Heads: from the last features of a network to a displacement field."""

from kreg.layers import IntegrateVelocity, ResizeDisplacement
from kreg.models.blocks import by_dimension


def field_convolution(features, name: str):
    """Return a linear 3^D convolution to a field: zero at start, float32 whatever the policy."""
    dimensions = len(features.shape) - 2
    return by_dimension(
        "Conv", dimensions, dimensions, 3, padding="same", kernel_initializer="zeros",
        dtype="float32", name=name,
    )(features)  # fmt: skip


class DenseHead:
    """u = conv(features): any displacement; it may fold.

    Called with the features and an image of the size wanted, it returns the field outputs.
    """

    def __call__(self, features, image) -> dict:
        """Return ``{"displacement": (batch, *spatial, D)}``."""
        field = field_convolution(features, "field")
        return {"displacement": ResizeDisplacement(name="displacement")(field, image)}


class VelocityHead:
    """u = exp(v), v = conv(features): a diffeomorphism where v is smooth.

    Args:
        steps: squarings of the integration.
        downsize: the velocity is brought to a grid this many times coarser before the
            integration, and the displacement back to the image's: cheaper and smoother. 1 leaves
            it on the grid of the features; VoxelMorph's default is 2.

    Raises:
        ValueError: if `downsize` is not a positive integer.
    """

    def __init__(self, steps: int = 7, *, downsize: int = 1):
        if not isinstance(downsize, int) or downsize < 1:
            raise ValueError(f"Expected `downsize` to be an integer >= 1. Received: {downsize}.")
        self.steps = steps
        self.downsize = downsize

    def __call__(self, features, image) -> dict:
        """Return ``{"displacement", "velocity"}``; the velocity lies on the integration's grid."""
        velocity = field_convolution(features, "velocity")
        if self.downsize > 1:
            coarse = by_dimension(
                "AveragePooling", len(features.shape) - 2, self.downsize, padding="same",
                dtype="float32", name="coarse_grid",
            )(velocity)  # fmt: skip
            velocity = ResizeDisplacement(name="coarse_velocity")(velocity, coarse)
        field = IntegrateVelocity(self.steps, name="integration")(velocity)
        field = ResizeDisplacement(name="displacement")(field, image)
        return {"displacement": field, "velocity": velocity}
