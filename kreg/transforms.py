"""Transforms that `kreg.register` can find."""

from dataclasses import dataclass, field, replace

from kreg.groups import Affine, Group


@dataclass(frozen=True)
class Transform:
    """A map from fixed to moving points: y = H (x + u(x)).

    Attributes:
        linear: how H is found; None where it is given.
        dense: how u is found; None where it is 0.
    """

    @property
    def linear(self) -> "Linear | None":
        """The part that is a matrix."""
        return None

    @property
    def dense(self) -> "Dense | None":
        """The part that is a displacement."""
        return None


@dataclass(frozen=True)
class Linear(Transform):
    """y = H x, H = exp(sum_k c_k B_k) of a group: a homogeneous matrix from fixed to moving points.

    Args:
        group: which matrices: `kreg.groups.Translation`, `Rigid`, `Similarity`, `Affine` or
            `Homography`.
    """

    group: Group = field(default_factory=Affine)

    @property
    def linear(self) -> "Linear":
        """Itself."""
        return self


@dataclass(frozen=True)
class Dense(Transform):
    """y = x + u(x), u composed of steps that are cubic B-splines on a grid of control points.

    Smoothness is the mean over control points of bending energy, with a little of the first
    differences and of u itself, in units of what the images have to say on average.

    Args:
        spacing: of the control points, in voxels of the image: u cannot vary faster. On coarser
            levels it is the same distance, but not below 8 of their voxels where it is more.
        elastic: how much the whole displacement resists: high for smooth, small motion.
        fluid: how much each step resists, with nothing kept of what was before: a small
            `elastic` and a large `fluid` follow large deformation without folding.

    Raises:
        ValueError: if `spacing` is below 1, a weight negative, or both are 0.
    """

    spacing: float = 12.0
    elastic: float = 2e-3
    fluid: float = 1e-3

    def __post_init__(self):
        positive = self.elastic >= 0 and self.fluid >= 0 and self.elastic + self.fluid > 0
        if not self.spacing >= 1 or not positive:
            raise ValueError(
                "Expected a spacing of at least 1 voxel, `elastic` and `fluid` of at least 0 and "
                f"one of them above. Received: {self}."
            )

    @property
    def dense(self) -> "Dense":
        """Itself."""
        return self

    def at(self, factor: float) -> "Dense":
        """Return the same in voxels of a level that are `factor` times as large."""
        return replace(self, spacing=min(self.spacing, max(self.spacing / factor, 8.0)))


@dataclass(frozen=True)
class Composed(Transform):
    """y = H (x + u(x)): a linear transform first, then a displacement of the fixed image's grid.

    Args:
        first: the linear transform.
        then: the displacement.
    """

    first: Linear = field(default_factory=Linear)
    then: Dense = field(default_factory=Dense)

    @property
    def linear(self) -> Linear:
        """The linear transform."""
        return self.first

    @property
    def dense(self) -> Dense:
        """The displacement."""
        return self.then
