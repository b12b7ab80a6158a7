"""Transforms that `kreg.register` can find."""

from dataclasses import dataclass, field, replace
from typing import Self

import keras

from kreg.groups import Affine, Group
from kreg.layers import IntegrateVelocity
from kreg.losses import Diffusion, Folding, WeightedSum

#: Defaults that all transforms share: compiled code is kept for them. What a velocity means does
#: not fold, however it shrinks.
_SMOOTH = WeightedSum([Diffusion(), Folding(0.1)], [0.01, 1.0])
_SMOOTH_VELOCITY = WeightedSum([Diffusion()], [0.01])


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
    def dense(self) -> "Splines | None":
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
class Splines(Transform):
    """y = x + u(x), u made of cubic B-splines on a grid of control points; see its subclasses.

    Args:
        spacing: of the control points, in voxels of the image: u cannot vary faster. On coarser
            levels it is the same distance, but not below 8 of their voxels where it is more.

    Raises:
        ValueError: if `spacing` is below 1.
    """

    spacing: float = 12.0

    def __post_init__(self):
        if not self.spacing >= 1:
            raise ValueError(f"Expected a spacing of at least 1 voxel. Received: {self}.")

    @property
    def dense(self) -> "Splines":
        """Itself."""
        return self

    def at(self, factor: float) -> Self:
        """Return the same in voxels of a level that are `factor` times as large."""
        return replace(self, spacing=min(self.spacing, max(self.spacing / factor, 8.0)))


@dataclass(frozen=True)
class Dense(Splines):
    """y = x + u(x), u composed of steps that are cubic B-splines, found by Gauss-Newton.

    Smoothness is the mean over control points of bending energy, with a little of the first
    differences and of u itself, in units of what the images have to say on average.

    Args:
        spacing: of the control points, as in `Splines`.
        elastic: how much the whole displacement resists: high for smooth, small motion.
        fluid: how much each step resists, with nothing kept of what was before: a small
            `elastic` and a large `fluid` follow large deformation without folding.

    Raises:
        ValueError: if `spacing` is below 1, a weight negative, or both are 0.
    """

    elastic: float = 2e-3
    fluid: float = 1e-3

    def __post_init__(self):
        super().__post_init__()
        if not (self.elastic >= 0 and self.fluid >= 0 and self.elastic + self.fluid > 0):
            raise ValueError(
                "Expected `elastic` and `fluid` of at least 0 and one of them above. "
                f"Received: {self}."
            )


@dataclass(frozen=True)
class FreeForm(Splines):
    """y = (id + u_0) o (id + sum_i c_i B_i)(x), found by any Keras optimizer and any loss.

    A free-form deformation (Rueckert et al., IEEE TMI 1999); u_0 is what `start` gives, or 0.

    Args:
        spacing: of the control points, as in `Splines`.
        penalty: a loss on the displacement, such as `kreg.losses.BendingEnergy`, or a
            `WeightedSum` of several: added to that on the images.

    Raises:
        ValueError: if `spacing` is below 1 or `penalty` is no loss.
    """

    spacing: float = 8.0
    penalty: keras.losses.Loss = _SMOOTH

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.penalty, keras.losses.Loss):
            raise ValueError(
                "Expected `penalty` to be a loss on the field, such as kreg.losses.Diffusion(). "
                f"Received: {self.penalty!r}."
            )

    def displacement(self, field):
        """Return the displacement that a field of splines stands for: itself."""
        return field

    def penalised(self, field, displacement):
        """Return what the penalty weighs: the displacement."""
        return displacement


@dataclass(frozen=True)
class Velocity(FreeForm):
    """y = (id + u_0) o exp(v), v = sum_i c_i B_i: a diffeomorphism of a stationary velocity.

    Found as `FreeForm` is; `penalty` weighs v (Arsigny et al., MICCAI 2006).

    Args:
        spacing: of the control points, as in `Splines`.
        penalty: a loss on the velocity.
        steps: number of squarings.

    Raises:
        ValueError: if `spacing` is below 1, `penalty` is no loss, or `steps` is negative.
    """

    penalty: keras.losses.Loss = _SMOOTH_VELOCITY
    steps: int = 6

    def __post_init__(self):
        super().__post_init__()
        if self.steps < 0:
            raise ValueError(f"Expected `steps` >= 0. Received: {self.steps}.")

    def displacement(self, field):
        """Return exp(v) - id."""
        return IntegrateVelocity(self.steps)(field)

    def penalised(self, field, displacement):
        """Return what the penalty weighs: the velocity."""
        return field


@dataclass(frozen=True)
class Composed(Transform):
    """y = H (x + u(x)): a linear transform first, then a displacement of the fixed image's grid.

    Args:
        first: the linear transform.
        then: the displacement.
    """

    first: Linear = field(default_factory=Linear)
    then: Splines = field(default_factory=Dense)

    @property
    def linear(self) -> Linear:
        """The linear transform."""
        return self.first

    @property
    def dense(self) -> Splines:
        """The displacement."""
        return self.then
