"""Transforms that `kreg.register` can find."""

from dataclasses import dataclass, field

from kreg.groups import Affine, Group


@dataclass(frozen=True)
class Linear:
    """y = H x, H = exp(sum_k c_k B_k) of a group: a homogeneous matrix from fixed to moving points.

    Args:
        group: which matrices: `kreg.groups.Translation`, `Rigid`, `Similarity`, `Affine` or
            `Homography`.
    """

    group: Group = field(default_factory=Affine)
