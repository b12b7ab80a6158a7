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
    """

    def __init__(self, steps: int = 7):
        self.steps = steps

    def __call__(self, features, image) -> dict:
        """Return ``{"displacement", "velocity"}``; the velocity lies on the features' grid."""
        velocity = field_convolution(features, "velocity")
        field = IntegrateVelocity(self.steps, name="integration")(velocity)
        field = ResizeDisplacement(name="displacement")(field, image)
        return {"displacement": field, "velocity": velocity}
