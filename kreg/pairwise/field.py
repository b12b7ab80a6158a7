"""Displacements on the levels of a pair: carried between them, applied, kept free of folds."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from keras import ops

from kreg import backend
from kreg.ops.coordinates import identity_grid
from kreg.ops.displacement import jacobian_determinant
from kreg.ops.filters import along_axis, gaussian_filter
from kreg.ops.interpolation import nearest_border, sample
from kreg.ops.linear import transform_points
from kreg.pairwise.blocks import Frame
from kreg.pairwise.pairs import Pairs, Side, to_tensors

#: Large images: voxels this close to the moving image's edge do not count, for what comes from
#: beyond is no longer the image; one for each so many voxels of its width, two at most.
_EDGE_PER, _EDGE = 48, 2
#: Where the volume shrinks below this share, a displacement is smoothed by a Gaussian of this
#: standard deviation in voxels: once a step, and at the end, where it folds, at most so many times.
LEAST_VOLUME, _SMOOTHING, _ROUNDS = 0.05, 1.5, 100


@dataclass(frozen=True)
class Field:
    """A displacement in voxels of a grid, and where that grid lies."""

    values: np.ndarray  # (batch, *spatial, D)
    frame: Frame

    @classmethod
    def still(cls, pairs: Pairs) -> "Field":
        """Return the displacement 0 on the coarsest level of the fixed images."""
        coarsest = pairs.levels - 1
        shape = pairs.fixed.levels[coarsest].shape[1:-1]
        values = np.zeros((pairs.count, *shape, pairs.dimensions), "float32")
        return cls(values, pairs.fixed.frames[coarsest])

    def on(self, frame: Frame, shape: Sequence[int]) -> "Field":
        """Return the displacement on another grid, by linear interpolation."""
        values = ops.convert_to_tensor(self.values)
        for axis, size in enumerate(shape):
            world = frame.origin[axis] + np.arange(size) * frame.spacing[axis]
            at = (world - self.frame.origin[axis]) / self.frame.spacing[axis]
            last = values.shape[axis + 1] - 1
            hat = 1 - np.abs(np.clip(at, 0, last)[:, None] - np.arange(last + 1))
            values = along_axis(values, np.maximum(hat, 0).astype("float32"), axis + 1)
        ratio = (self.frame.spacing / frame.spacing).astype("float32")
        return Field(ops.convert_to_numpy(values) * ratio, frame)

    def whole(self, pairs: Pairs) -> "Field":
        """Return the displacement on the voxels of the fixed images themselves."""
        return self.on(pairs.fixed.frames[0], pairs.fixed.levels[0].shape[1:-1])


def level_inputs(pairs: Pairs, level: int, matrices: np.ndarray) -> list:
    """Return fixed, its mask, moving, its mask, and the matrices between them, of one level."""
    voxels = voxel_matrices(pairs, level, pairs.fixed.frames[level], matrices)
    return to_tensors([*values_of(pairs.fixed, level), *values_of(pairs.moving, level), voxels])


def voxel_matrices(pairs: Pairs, level: int, fixed: Frame, matrices: np.ndarray) -> np.ndarray:
    """Return matrices of the world from voxels of a frame to those of a moving level."""
    moving = np.linalg.inv(pairs.moving.frames[level].matrix())
    return (moving @ matrices @ fixed.matrix()).astype("float32")


def values_of(side: Side, level: int) -> list[np.ndarray]:
    """Return one level of a side and the weights of its voxels, 1 without a mask."""
    values, mask = side.levels[level], side.masks[level]
    return [values, np.ones_like(values[..., :1]) if mask is None else mask]


def deformed(pairs: Pairs, matrices: np.ndarray, field: Field) -> Pairs:
    """Return pairs whose moving images are the warped ones, on the levels of the fixed images."""
    side = copy.copy(pairs.moving)
    side.frames = pairs.fixed.frames[: pairs.levels]
    side.levels, side.masks = [], []
    for level, frame in enumerate(side.frames):
        shape = pairs.fixed.levels[level].shape[1:-1]
        voxels = voxel_matrices(pairs, level, frame, matrices)
        inputs = *values_of(pairs.moving, level), voxels, field.on(frame, shape).values
        both = ops.convert_to_numpy(_resampled(*to_tensors(list(inputs))))
        side.levels.append(both[..., :-1])
        side.masks.append(both[..., -1:])
    result = copy.copy(pairs)
    result.moving = side
    result.moving_blocks = side.buffer(pairs.levels)
    return result


def mirrored(pairs: Pairs) -> Pairs:
    """Return pairs whose moving images are mirrored along all axes: as rich, but no partners."""
    side = copy.copy(pairs.moving)

    def flipped(level):
        return None if level is None else np.flip(level, tuple(range(1, level.ndim - 1)))

    side.levels = [flipped(level) for level in side.levels]
    side.masks = [flipped(mask) for mask in side.masks]
    result = copy.copy(pairs)
    result.moving = side
    return result


def flat(values):
    """Return all voxels as samples, ``(batch, n, channels)``."""
    return ops.reshape(values, (values.shape[0], -1, values.shape[-1]))


def shuffled(samples):
    """Return samples ``(batch, n, ...)`` in a random order, always the same.

    A critic takes neighbours in the order for unrelated: so voxels must not come row by row.
    """
    order = np.random.default_rng(0).permutation(samples.shape[1])
    return ops.take(samples, order, axis=1)


def warped(moving, mask, matrix, u):
    """Return the moving image at H (x + u(x)); as a last channel, the weights of what is seen."""
    shape = u.shape[1:-1]
    points = transform_points(matrix, identity_grid(shape) + u)
    values = sample(ops.concatenate([moving, mask], -1), points, border=nearest_border)
    size = np.asarray(moving.shape[1:-1])
    edge = np.minimum(size // _EDGE_PER, _EDGE).astype("float32")
    last = (size - 1 - edge).astype("float32")
    inside = ops.logical_and(ops.greater_equal(points, edge), ops.less_equal(points, last))
    seen = ops.all(inside, axis=-1, keepdims=True)
    return ops.concatenate([values[..., :-1], values[..., -1:] * ops.cast(seen, "float32")], -1)


# Once a size: not worth the seconds that XLA takes.
_resampled = backend.jit(warped, math.inf)


def unfolded(displacement: np.ndarray) -> np.ndarray:
    """Return displacements that fold smoothed, where they shrink most, until they no longer do."""
    for _ in range(_ROUNDS):
        smoothed, worst = relaxed(to_tensors(displacement), to_tensors(np.float32(0)))
        if float(ops.min(worst)) > 0:
            break
        displacement = ops.convert_to_numpy(smoothed)
    return np.asarray(displacement)


def _relaxed(displacement, limit):
    """Return displacements whose volume somewhere shrinks to `limit` smoother there, and the least.

    Those of a batch that do not are left as they are.
    """
    volume = jacobian_determinant(displacement)[..., None]
    worst = ops.min(volume, axis=tuple(range(1, len(volume.shape))), keepdims=True)
    near = ops.cast((volume < LEAST_VOLUME) & (worst <= limit), "float32")
    near = ops.minimum(8 * gaussian_filter(near, _SMOOTHING), 1.0)
    smooth = gaussian_filter(displacement, _SMOOTHING)
    return displacement + near * (smooth - displacement), ops.min(volume)


relaxed = backend.jit(_relaxed, math.inf)


def along(field, operators):
    """Return a field times one matrix along each spatial axis."""
    for axis, operator in enumerate(operators, 1):
        field = along_axis(field, operator, axis)
    return field


def fit(operator: np.ndarray) -> np.ndarray:
    """Return the matrix that finds the control points of given voxels by least squares."""
    exact = operator.astype("float64")
    normal = exact.T @ exact + 1e-3 * np.eye(exact.shape[1])
    return np.linalg.solve(normal, exact.T).astype("float32")
