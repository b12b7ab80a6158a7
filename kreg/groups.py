"""Groups of linear transforms, as the generators of their matrix exponential.

Every matrix of a group near the identity is exp(sum_k c_k B_k), B_k its generators and c_k the
coefficients. The generators of each group are the first ones of the next larger group.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import keras
import numpy as np


def _translations(dimensions: int) -> Iterator[np.ndarray]:
    for axis in range(dimensions):
        matrix = np.zeros((dimensions + 1, dimensions + 1))
        matrix[axis, -1] = 1
        yield matrix


def _rotations(dimensions: int) -> Iterator[np.ndarray]:
    for first, second in combinations(range(dimensions), 2):
        matrix = np.zeros((dimensions + 1, dimensions + 1))
        matrix[second, first], matrix[first, second] = 1, -1
        yield matrix


def _uniform_scale(dimensions: int) -> Iterator[np.ndarray]:
    yield np.diag([1.0] * dimensions + [0.0])


def _stretches(dimensions: int) -> Iterator[np.ndarray]:
    """Symmetric, without trace, at right angles to one another, of the norm of a rotation."""
    for axis in range(1, dimensions):
        entries = np.zeros(dimensions + 1)
        entries[:axis], entries[axis] = 1, -axis
        yield np.diag(entries) * np.sqrt(2 / (axis * (axis + 1)))
    for first, second in combinations(range(dimensions), 2):
        matrix = np.zeros((dimensions + 1, dimensions + 1))
        matrix[first, second] = matrix[second, first] = 1
        yield matrix


def _projections(dimensions: int) -> Iterator[np.ndarray]:
    return (matrix.T for matrix in _translations(dimensions))


@dataclass(frozen=True)
class Group:
    """G = {exp(sum_k c_k B_k)}: what all groups share.

    Subclasses name the families that their generators B_k belong to.
    """

    families: ClassVar[tuple[Callable[[int], Iterator[np.ndarray]], ...]] = ()
    allowed: ClassVar[tuple[int, ...]] = (2, 3)

    def generators(self, dimensions: int) -> np.ndarray:
        """Return the B_k, ``(K, D + 1, D + 1)`` float32, for D spatial axes in order ij.

        Raises:
            ValueError: if there is no such group in D dimensions.
        """
        if dimensions not in self.allowed:
            raise ValueError(
                f"Expected {type(self).__name__}() in {' or '.join(map(str, self.allowed))} "
                "dimensions; in 2 and 3 use Affine() or a part of it. "
                f"Received: {dimensions} dimensions."
            )
        found = [matrix for family in self.families for matrix in family(dimensions)]
        return np.stack(found).astype("float32")

    def size(self, dimensions: int) -> int:
        """Return the number of coefficients K for D spatial axes."""
        return len(self.generators(dimensions))

    def dimensions(self, size: int) -> int:
        """Return the D for which there are `size` coefficients.

        Raises:
            ValueError: if there is none.
        """
        sizes = {self.size(dimensions): dimensions for dimensions in self.allowed}
        if size not in sizes:
            expected = " or ".join(f"{k} in {d}-D" for k, d in sizes.items())
            raise ValueError(
                f"Expected as many coefficients as {type(self).__name__}() has generators, "
                f"{expected}. Received: {size}."
            )
        return sizes[size]

    def get_config(self) -> dict:
        """Return the constructor arguments: none."""
        return {}

    @classmethod
    def from_config(cls, config):
        """Return the group."""
        return cls(**config)


@keras.saving.register_keras_serializable("kreg")
class Translation(Group):
    """A = [[1, t], [0, 1]]: 2 coefficients in 2-D, 3 in 3-D, the shift t itself."""

    families = (_translations,)


@keras.saving.register_keras_serializable("kreg")
class Rigid(Group):
    """A = [[R, t], [0, 1]], R orthogonal with determinant 1: 3 coefficients in 2-D, 6 in 3-D.

    To the translations it adds a rotation for each pair of axes, in radians, from the first axis
    of the pair towards the second; in 3-D the pairs are (0, 1), (0, 2), (1, 2).
    """

    families = (*Translation.families, _rotations)


@keras.saving.register_keras_serializable("kreg")
class Similarity(Group):
    """A = [[s R, t], [0, 1]], s > 0: 4 coefficients in 2-D, 7 in 3-D.

    To the rigid transforms it adds log s: angles stay.
    """

    families = (*Rigid.families, _uniform_scale)


@keras.saving.register_keras_serializable("kreg")
class Affine(Group):
    """A = [[M, t], [0, 1]], det M > 0: 6 coefficients in 2-D, 12 in 3-D.

    To the similarities it adds the stretches that keep the volume: symmetric generators without
    trace, at right angles to one another.
    """

    families = (*Similarity.families, _stretches)


@keras.saving.register_keras_serializable("kreg")
class Homography(Group):
    """A = [[M, t], [p, q]], x -> (M x + t) / (p x + q), in 2-D only: 8 coefficients.

    To the affine transforms it adds the p of the last row: straight lines stay straight, parallel
    ones meet.
    """

    families = (*Affine.families, _projections)
    allowed = (2,)
