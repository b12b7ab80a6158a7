"""Gauss-Newton steps for displacements: a B-spline on the voxels of one level after another."""

import copy
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from keras import ops

from kreg import backend
from kreg.losses.field_loss import difference
from kreg.ops.bspline import bspline_operator
from kreg.ops.coordinates import identity_grid
from kreg.ops.displacement import compose, jacobian_determinant, spatial_gradient
from kreg.ops.filters import along_axis, gaussian_filter
from kreg.ops.interpolation import nearest_border, sample
from kreg.ops.linear import transform_points
from kreg.pairwise.blocks import Frame
from kreg.pairwise.pairs import Pairs, Side, to_tensors
from kreg.pairwise.progress import Progress
from kreg.pairwise.schedule import Stage
from kreg.pairwise.similarity import LogRatio
from kreg.transforms import Dense

#: Besides bending: the share of first differences, and that of the displacement itself, which
#: keep it from running away where the images say nothing, as beyond the moving image.
_MEMBRANE, _ANCHOR = 0.3, 0.3
#: Large images: voxels this close to the moving image's edge do not count, for what comes from
#: beyond is no longer the image; one for each so many voxels of its width, two at most.
_EDGE_PER, _EDGE = 48, 2
#: Where the volume shrinks below this share, the displacement is smoothed by a Gaussian of this
#: standard deviation in voxels, until it no longer does, at most so many times.
_LEAST_VOLUME, _SMOOTHING, _ROUNDS = 0.05, 1.5, 100


@dataclass(frozen=True)
class GaussNewton:
    """phi <- phi o (id + B d), (B^T W B + lambda (a + b) R) d = B^T r - lambda a R c.

    r = E over voxels of s grad w, W = E[s^2] grad w grad w^T, where s is the slope of the
    log-ratio T(f, w) at the warped value w; B are B-splines, R the stiffness of `Dense`, a and b
    its elastic and fluid weights, c the displacement so far. For the correlation this is
    least squares on the images after the best linear map of the grey values.

    Args:
        iterations: of conjugate gradients on each system.
        stretch: the most that one step may stretch or shrink along an axis, below 1: steps
            do not fold.
    """

    iterations: int = 15
    stretch: float = 0.45

    def __post_init__(self):
        if self.iterations < 1 or not 0 < self.stretch < 1:
            raise ValueError(
                f"Expected at least 1 iteration and 0 < stretch < 1. Received: {self}."
            )


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
        return Field(ops.convert_to_numpy(values * ratio), frame)

    def whole(self, pairs: Pairs) -> "Field":
        """Return the displacement on the voxels of the fixed images themselves."""
        return self.on(pairs.fixed.frames[0], pairs.fixed.levels[0].shape[1:-1])


def deform(
    pairs: Pairs,
    similarity: LogRatio,
    dense: Dense,
    optimizer: GaussNewton,
    stages: list[Stage],
    matrices: np.ndarray,
    start: Field,
    seed: int,
    progress: Progress,
) -> Iterator[Field]:
    """Yield the displacement after each step; at last, free of folds where they can be removed."""
    weights = similarity.initial(pairs.count, *pairs.channels, seed)
    state = similarity.train_state(weights)
    field = start
    for stage in stages:
        (level,) = stage.levels
        frames = pairs.fixed.frames[level], pairs.moving.frames[level]
        voxels = np.linalg.inv(frames[1].matrix()) @ matrices @ frames[0].matrix()
        images = to_tensors([*_values(pairs.fixed, level), *_values(pairs.moving, level)])
        images += [to_tensors(voxels.astype("float32"))]
        field = field.on(frames[0], pairs.fixed.levels[level].shape[1:-1])
        values = to_tensors(field.values)
        values = ops.broadcast_to(values, (pairs.count, *values.shape[1:]))
        coarser = pairs.voxel(level) / pairs.voxel(-1)
        compiled = _step(similarity, dense.at(coarser), optimizer)
        name = f"dense, {stage.label}"
        for step in range(stage.pretraining + stage.steps):
            rate = to_tensors(np.float32(stage.rate(max(step - stage.pretraining, 0))))
            inputs = weights, state, rate, *images, values
            if step < stage.pretraining:
                weights, state = compiled.trained_only(*inputs)
                continue
            weights, state, values, *logs = compiled.step(*inputs)
            similarities, overlap, motion, volume = (ops.convert_to_numpy(log) for log in logs)
            if volume < _LEAST_VOLUME:
                values, _ = _relaxed(values)
            progress.step(name, similarity=similarities, overlap=overlap, motion=motion * coarser)
            yield Field(ops.convert_to_numpy(values), frames[0])
            if progress.stopped:
                break
        field = Field(ops.convert_to_numpy(values), frames[0])
        if progress.stopped:
            break
    field = field.whole(pairs)
    yield Field(unfolded(field.values), field.frame)


def unfolded(displacement: np.ndarray) -> np.ndarray:
    """Return a displacement smoothed where it folds, until it no longer does."""
    for _ in range(_ROUNDS):
        smoothed, worst = _relaxed(to_tensors(displacement))
        if float(ops.min(worst)) > 0:
            break
        displacement = ops.convert_to_numpy(smoothed)
    return np.asarray(displacement)


@backend.jit
def _relaxed(displacement):
    """The displacement, smoother where it shrinks volumes most, and the least volume before."""
    volume = jacobian_determinant(displacement)[..., None]
    near = ops.cast(volume < _LEAST_VOLUME, "float32")
    near = ops.minimum(8 * gaussian_filter(near, _SMOOTHING), 1.0)
    smooth = gaussian_filter(displacement, _SMOOTHING)
    return displacement + near * (smooth - displacement), ops.min(volume)


def _values(side: Side, level: int) -> list[np.ndarray]:
    values, mask = side.levels[level], side.masks[level]
    return [values, np.ones_like(values[..., :1]) if mask is None else mask]


def deformed(pairs: Pairs, matrices: np.ndarray, field: Field) -> Pairs:
    """Return pairs whose moving images are the warped ones, on the levels of the fixed images."""
    side = copy.copy(pairs.moving)
    side.frames = pairs.fixed.frames[: pairs.levels]
    side.levels, side.masks = [], []
    for level, frame in enumerate(side.frames):
        shape = pairs.fixed.levels[level].shape[1:-1]
        voxels = np.linalg.inv(pairs.moving.frames[level].matrix()) @ matrices @ frame.matrix()
        inputs = *_values(pairs.moving, level), voxels.astype("float32"), field.on(frame, shape)
        warped, seen = _resampled(*to_tensors([*inputs[:3], inputs[3].values]))
        side.levels.append(ops.convert_to_numpy(warped))
        side.masks.append(ops.convert_to_numpy(seen))
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


class DenseStep:
    """The compiled step of one similarity, stiffness and optimizer."""

    def __init__(self, similarity: LogRatio, dense: Dense, optimizer: GaussNewton):
        self.similarity, self.dense, self.optimizer = similarity, dense, optimizer
        self.trained_only = backend.jit(self._train)
        self.step = backend.jit(self._step)

    def _train(self, weights, state, rate, fixed, mask, moving, moving_mask, matrix, u):
        warped, inside = _warped(moving, moving_mask, matrix, u)
        samples = _flat(fixed), _flat(warped), _flat(inside * mask)[..., 0]
        return self.similarity.learn(weights, state, rate, *samples)[:2]

    def _step(self, weights, state, rate, fixed, mask, moving, moving_mask, matrix, u):
        warped, inside = _warped(moving, moving_mask, matrix, u)
        inside = inside * mask
        flat, weight = _flat(fixed), _flat(inside)[..., 0]
        if self.similarity.trained:
            weights, state, _ = self.similarity.learn(
                weights, state, rate, flat, _flat(warped), weight
            )

        def total(variables):
            ratio, value = self.similarity.log_ratio(weights, flat, variables[0], weight)
            return ops.sum(ratio * weight), value

        (_, value), (slope,) = backend.value_and_gradients(total, [_flat(warped)])
        count = ops.maximum(ops.sum(weight, axis=1), 1.0)
        information = ops.sum(slope**2, axis=1) / count[:, None]  # (batch, channels)
        shape = (-1, *(1,) * len(u.shape[1:-1]))
        scale = ops.reshape(ops.sum(information, axis=-1), shape)  # takes the units out
        information = information / ops.maximum(ops.sum(information, -1, keepdims=True), 1e-12)
        slope = ops.reshape(slope, warped.shape) / ops.maximum(scale, 1e-12)[..., None]
        gradient = spatial_gradient(warped)  # (batch, *spatial, channels, D)
        force = ops.sum(slope[..., None] * gradient, axis=-2)
        information = ops.reshape(information, (*shape, information.shape[-1]))
        change = _solve(gradient, information * inside, force, u, self.dense, self.optimizer)
        overlap = ops.mean(weight, axis=1)
        squares = ops.sum(change**2, axis=-1)
        motion = ops.sqrt(ops.mean(squares, axis=tuple(range(1, len(squares.shape)))))
        u = compose(u, change)
        return weights, state, u, value, overlap, motion, ops.min(jacobian_determinant(u))


@functools.lru_cache(maxsize=32)
def _step(similarity: LogRatio, dense: Dense, optimizer: GaussNewton) -> DenseStep:
    return DenseStep(similarity, dense, optimizer)


def _flat(values):
    return ops.reshape(values, (values.shape[0], -1, values.shape[-1]))


def _warped(moving, mask, matrix, u):
    """The moving image at H (x + u(x)), and the weights of what was seen there."""
    shape = u.shape[1:-1]
    points = transform_points(matrix, identity_grid(shape) + u)
    values = sample(ops.concatenate([moving, mask], -1), points, border=nearest_border)
    size = np.asarray(moving.shape[1:-1])
    edge = np.minimum(size // _EDGE_PER, _EDGE).astype("float32")
    last = (size - 1 - edge).astype("float32")
    seen = ops.all((points >= edge) & (points <= last), axis=-1, keepdims=True)
    return values[..., :-1], values[..., -1:] * ops.cast(seen, "float32")


@backend.jit
def _resampled(moving, mask, matrix, u):
    return _warped(moving, mask, matrix, u)


def _solve(gradient, weight, force, u, dense: Dense, optimizer: GaussNewton):
    """The step's displacement ``(batch, *spatial, D)`` by preconditioned conjugate gradients."""
    shape, dimensions = u.shape[1:-1], u.shape[-1]
    axes = tuple(range(1, dimensions + 1))
    spline = [bspline_operator(size, dense.spacing) for size in shape]
    adjoint = [np.ascontiguousarray(operator.T) for operator in spline]
    pairs = [(i, j) for i in range(dimensions) for j in range(i, dimensions)]
    products = ops.stack(
        [ops.sum(weight * gradient[..., i] * gradient[..., j], axis=-1) for i, j in pairs], -1
    )
    tensor = _symmetric(products, pairs)
    trace = sum(tensor[i, i] for i in range(dimensions))
    # The unit of the stiffness: what the voxels of one control point say on average.
    unit = ops.mean(trace, axis=axes, keepdims=True)[..., None] * dense.spacing**dimensions
    weights = dense.elastic + dense.fluid

    def system(control):
        field = _along(control, spline)
        seen = [
            sum(tensor[i, j] * field[..., j] for j in range(dimensions)) for i in range(dimensions)
        ]
        stiff = weights * _stiffness(control) + 1e-4 * control
        return _along(ops.stack(seen, axis=-1), adjoint) + unit * stiff

    right = _along(force, adjoint)
    if dense.elastic:
        inverse = [_fit(operator) for operator in spline]
        right = right - unit * dense.elastic * _stiffness(_along(u, inverse))
    diagonal = _along(products, [operator**2 for operator in adjoint])
    diagonal = _symmetric(diagonal, pairs)
    own = 6 * dimensions + 4 * dimensions * (dimensions - 1) + _MEMBRANE * 2 * dimensions + _ANCHOR
    for i in range(dimensions):
        diagonal[i, i] = diagonal[i, i] + unit[..., 0] * (weights * own + 1e-4) + 1e-12

    control = _conjugate_gradients(system, right, diagonal, optimizer.iterations)
    steepest = [
        ops.max(ops.abs(difference(control, axis)), axis=(*axes, -1), keepdims=True)
        for axis in axes
    ]
    steepest = functools.reduce(ops.maximum, steepest) / dense.spacing
    control = control * ops.minimum(1.0, optimizer.stretch / (steepest + 1e-9))
    return _along(control, spline)


def _conjugate_gradients(system, right, diagonal, iterations: int):
    """Solve system(x) = right from 0, preconditioned by the D x D blocks on the diagonal."""
    axes = tuple(range(1, len(right.shape)))

    def product(a, b):
        return ops.sum(a * b, axis=axes, keepdims=True)

    def step(_, state):
        x, residual, direction, size = state
        image = system(direction)
        length = size / (product(direction, image) + 1e-20)
        x, residual = x + length * direction, residual - length * image
        scaled = _solve_blocks(diagonal, residual)
        new = product(residual, scaled)
        return x, residual, scaled + new / (size + 1e-20) * direction, new

    scaled = _solve_blocks(diagonal, right)
    state = ops.zeros_like(right), right, scaled, product(right, scaled)
    return ops.fori_loop(0, iterations, step, state)[0]


def _solve_blocks(blocks: np.ndarray, right):
    """Solve the symmetric D x D system at each place by elimination."""
    size = len(blocks)
    rows = [[blocks[i, j] for j in range(size)] + [right[..., i]] for i in range(size)]
    for k in range(size):
        for i in range(k + 1, size):
            factor = rows[i][k] / rows[k][k]
            for j in range(k + 1, size + 1):
                rows[i][j] = rows[i][j] - factor * rows[k][j]
    found: list = [None] * size
    for i in reversed(range(size)):
        rest = sum(rows[i][j] * found[j] for j in range(i + 1, size))
        found[i] = (rows[i][size] - rest) / rows[i][i]
    return ops.stack(found, axis=-1)


def _symmetric(entries, pairs) -> np.ndarray:
    """The matrix, of tensors, whose upper half the last axis holds."""
    size = max(j for _, j in pairs) + 1
    matrix = np.empty((size, size), object)
    for index, (i, j) in enumerate(pairs):
        matrix[i, j] = matrix[j, i] = entries[..., index]
    return matrix


def _along(field, operators):
    """One matrix along each spatial axis."""
    for axis, operator in enumerate(operators, 1):
        field = along_axis(field, operator, axis)
    return field


def _fit(operator: np.ndarray) -> np.ndarray:
    """The matrix that finds the control points of given voxels by least squares."""
    exact = operator.astype("float64")
    normal = exact.T @ exact + 1e-3 * np.eye(exact.shape[1])
    return np.linalg.solve(normal, exact.T).astype("float32")


def _stiffness(control):
    """R c: the gradient of half the bending energy, natural at the edges, and what is added."""
    total = _ANCHOR * control
    axes = range(1, len(control.shape) - 1)
    for axis in axes:
        first, second = _squares(control.shape[axis])
        total = total + along_axis(control, second + np.float32(_MEMBRANE) * first, axis)
        for other in axes[axis:]:
            mixed = along_axis(control, first, axis)
            total = total + 2 * along_axis(mixed, _squares(control.shape[other])[0], other)
    return total


@functools.lru_cache
def _squares(size: int) -> tuple[np.ndarray, np.ndarray]:
    """D^T D of the first and of the second differences of `size` numbers."""
    once = np.diff(np.eye(size, dtype="float32"), axis=0)
    twice = np.diff(np.eye(size, dtype="float32"), n=2, axis=0)
    return once.T @ once, twice.T @ twice
