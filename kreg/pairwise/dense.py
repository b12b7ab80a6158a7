"""Gauss-Newton steps for displacements: a B-spline on the voxels of one level after another."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from keras import ops

from kreg import backend
from kreg.losses.field_loss import difference
from kreg.ops.bspline import bspline_operator
from kreg.ops.displacement import compose, jacobian_determinant, spatial_gradient
from kreg.ops.filters import along_axis
from kreg.pairwise.field import (
    LEAST_VOLUME,
    Field,
    along,
    fit,
    flat,
    level_inputs,
    relaxed,
    shuffled,
    warped,
)
from kreg.pairwise.pairs import Pairs, to_tensors
from kreg.pairwise.progress import Progress
from kreg.pairwise.schedule import Stage
from kreg.pairwise.similarity import LogRatio
from kreg.transforms import Dense

#: Besides bending: the share of first differences, and that of the displacement itself, which
#: keep it from running away where the images say nothing, as beyond the moving image.
_MEMBRANE, _ANCHOR = 0.3, 0.3
#: Steps on fewer numbers than this are not worth the seconds that XLA takes for each level.
_COMPILED = 200_000


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


def deform(
    pairs: Pairs,
    similarity: LogRatio,
    dense: Dense,
    optimizer: GaussNewton,
    stages: Sequence[Stage],
    matrices: np.ndarray,
    start: Field | None,
    seed: int,
    progress: Progress,
) -> Iterator[Field]:
    """Yield, after each step, the displacement that comes before that of the start, if any."""
    weights = similarity.initial(pairs.count, *pairs.channels, seed)
    state = similarity.train_state(weights)
    field = Field.still(pairs)
    for stage in stages:
        (level,) = stage.levels
        frame, images = pairs.fixed.frames[level], level_inputs(pairs, level, matrices)
        shape = pairs.fixed.levels[level].shape[1:-1]
        values = to_tensors(field.on(frame, shape).values)
        outer = [] if start is None else to_tensors([start.on(frame, shape).values])
        coarser = pairs.voxel(level) / pairs.voxel(-1)
        compiled = _step(similarity, dense.at(coarser), optimizer)
        name = f"dense, {stage.label}"
        for step in range(stage.pretraining + stage.steps):
            rate = to_tensors(np.float32(stage.rate(max(step - stage.pretraining, 0))))
            inputs = weights, state, rate, *images, values, outer
            if step < stage.pretraining:
                weights, state = compiled.trained_only(*inputs)
                continue
            weights, state, values, *logs = compiled.step(*inputs)
            similarities, overlap, motion, volume = (ops.convert_to_numpy(log) for log in logs)
            if volume < LEAST_VOLUME:
                values, _ = relaxed(values, to_tensors(np.float32(LEAST_VOLUME)))
            progress.step(name, similarity=similarities, overlap=overlap, motion=motion * coarser)
            yield Field(ops.convert_to_numpy(values), frame)
            if progress.stopped:
                break
        field = Field(ops.convert_to_numpy(values), frame)
        if progress.stopped:
            break


class DenseStep:
    """The compiled step of one similarity, stiffness and optimizer."""

    def __init__(self, similarity: LogRatio, dense: Dense, optimizer: GaussNewton):
        self.similarity, self.dense, self.optimizer = similarity, dense, optimizer
        self.trained_only = backend.jit(self._train, _COMPILED)
        self.step = backend.jit(self._step, _COMPILED)

    def _train(self, weights, state, rate, fixed, mask, moving, moving_mask, matrix, u, outer):
        both = warped(moving, moving_mask, matrix, _total(outer, u))
        samples = flat(fixed), flat(both[..., :-1]), flat(both[..., -1:] * mask)[..., 0]
        return self.similarity.learn(weights, state, rate, *map(shuffled, samples))[:2]

    def _step(self, weights, state, rate, fixed, mask, moving, moving_mask, matrix, u, outer):
        both = warped(moving, moving_mask, matrix, _total(outer, u))
        image, inside = both[..., :-1], both[..., -1:] * mask
        samples, weight = flat(fixed), flat(inside)[..., 0]
        if self.similarity.trained:
            drawn = map(shuffled, (samples, flat(image), weight))
            weights, state, _ = self.similarity.learn(weights, state, rate, *drawn)

        def total(variables):
            ratio, value = self.similarity.log_ratio(weights, samples, variables[0], weight)
            return ops.sum(ratio * weight), value

        (_, value), (slope,) = backend.value_and_gradients(total, [flat(image)])
        count = ops.maximum(ops.sum(weight, axis=1), 1.0)
        information = ops.sum(slope**2, axis=1) / count[:, None]  # (batch, channels)
        shape = (-1, *(1,) * len(u.shape[1:-1]))
        scale = ops.reshape(ops.sum(information, axis=-1), shape)  # takes the units out
        information = information / ops.maximum(ops.sum(information, -1, keepdims=True), 1e-12)
        slope = ops.reshape(slope, image.shape) / ops.maximum(scale, 1e-12)[..., None]
        gradient = spatial_gradient(image)  # (batch, *spatial, channels, D)
        force = ops.sum(slope[..., None] * gradient, axis=-2)
        information = ops.reshape(information, (*shape, information.shape[-1]))
        change = _solve(gradient, information * inside, force, u, self.dense, self.optimizer)
        overlap = ops.mean(weight, axis=1)
        squares = ops.sum(change**2, axis=-1)
        motion = ops.sqrt(ops.mean(squares, axis=tuple(range(1, len(squares.shape)))))
        u = compose(u, change)
        return weights, state, u, value, overlap, motion, ops.min(jacobian_determinant(u))


def _total(outer, u):
    """The displacement of the start, if any, after that which has been found."""
    return compose(outer[0], u) if outer else u


@functools.lru_cache(maxsize=32)
def _step(similarity: LogRatio, dense: Dense, optimizer: GaussNewton) -> DenseStep:
    return DenseStep(similarity, dense, optimizer)


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
        field = along(control, spline)
        seen = [
            sum(tensor[i, j] * field[..., j] for j in range(dimensions)) for i in range(dimensions)
        ]
        stiff = weights * _stiffness(control) + 1e-4 * control
        return along(ops.stack(seen, axis=-1), adjoint) + unit * stiff

    right = along(force, adjoint)
    if dense.elastic:
        inverse = [fit(operator) for operator in spline]
        right = right - unit * dense.elastic * _stiffness(along(u, inverse))
    diagonal = along(products, [operator**2 for operator in adjoint])
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
    return along(control, spline)


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
