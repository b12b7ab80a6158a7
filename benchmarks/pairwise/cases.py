"""A pair of images with the points that tell how well it has been registered.

Matrices are homogeneous, 3 x 3, and map voxel indices (row, column) of the fixed image to voxel
indices of the moving image.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

AFFINE, HOMOGRAPHY = "affine", "homography"
#: DRMIME's published pyramid and the share of each level's pixels that it samples.
LEVELS, FRACTION = 6, 0.1


class Points(NamedTuple):
    """Where points of the fixed image lie in the moving image; both ``(n, 2)``, (row, column)."""

    fixed: np.ndarray
    moving: np.ndarray


@dataclass(frozen=True)
class Case:
    """One pair: images ``(H, W, C)`` float32, truth, and the error below which it succeeded.

    `floor` is the mean distance that a least-squares affine fit to the truth itself leaves.
    """

    model: str
    fixed: np.ndarray
    moving: np.ndarray
    truth: Points
    limit: float
    floor: float = 0.0
    other_truths: Mapping[str, Points] = field(default_factory=dict)


class Entry(NamedTuple):
    """A case that has not been made yet; the group is the row of the table."""

    group: str
    name: str
    make: Callable[[], Case]


def apply(matrix, points) -> np.ndarray:
    """Map points ``(n, 2)`` by a homogeneous matrix."""
    image = np.c_[points, np.ones(len(points))] @ np.asarray(matrix, "float64").T
    return image[:, :2] / image[:, 2:]


def distances(matrix, truth: Points) -> np.ndarray:
    """|T(x) - y| in voxels of the moving image; infinite where there is no matrix."""
    if matrix is None or not np.all(np.isfinite(matrix)):
        return np.full(len(truth.fixed), np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        result = np.linalg.norm(apply(matrix, truth.fixed) - truth.moving, axis=1)
    return np.where(np.isfinite(result), result, np.inf)


def affine_fit(truth: Points) -> np.ndarray:
    """Return the affine matrix with the least sum of squared distances."""
    points = np.c_[truth.fixed, np.ones(len(truth.fixed))]
    solution = np.linalg.lstsq(points, truth.moving, rcond=None)[0]
    return np.vstack([solution.T, [0.0, 0.0, 1.0]])


def affine_floor(truth: Points) -> float:
    """Return the mean distance that `affine_fit` leaves."""
    return float(distances(affine_fit(truth), truth).mean())


def grid_truth(matrix, shape, size: int = 17) -> Points:
    """Return the truth `matrix` on a grid of ``size x size`` points that spans the fixed frame."""
    axes = [np.linspace(0, n - 1, size) for n in shape[:2]]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    return Points(points, apply(matrix, points))


def swap_axes(matrix) -> np.ndarray:
    """Turn a matrix on (x, y) into one on (row, column), or back."""
    order = [1, 0, 2]
    return np.asarray(matrix, "float64")[np.ix_(order, order)]


def grey(image) -> np.ndarray:
    """Return the luminance ``(H, W)`` of an image ``(H, W, 1 or 3)``."""
    if image.shape[-1] == 1:
        return image[..., 0]
    return (image @ np.asarray([0.2125, 0.7154, 0.0721], image.dtype)).astype(image.dtype)


def published_samples(shape) -> list[int]:
    """Return how many pixels DRMIME samples at each level of an image, finest first."""
    sizes = [[-(-n // 2**level) for n in shape[:2]] for level in range(LEVELS)]
    return [int(FRACTION * height) * width for height, width in sizes]
