"""Fisher scoring: a second-order step for transforms of few coefficients."""

import functools
from dataclasses import dataclass

import numpy as np
from keras import ops

from kreg import backend
from kreg.ops.linear import transform_points
from kreg.pairwise.blocks import carried, read

#: Evaluations of fewer numbers than this are not worth the seconds that XLA takes.
_COMPILED = 8_000_000


@dataclass(frozen=True)
class FisherScoring:
    """H <- exp(sum_k d_k B_k) H with d = D^-1 (D^-1 A D^-1 + lambda I)^-1 D^-1 g, D^2 = diag A.

    g = E[u] and A = E[u u^T] over the samples, where u_k is the slope of the log-ratio T(f, m) of a
    sample along generator k: u_k = dT/dm grad m . b_k. A is the Fisher information of the
    coefficients, so there is no learning rate for the transform.

    Args:
        damping: lambda; where None, what suits the similarity.
        cap: the furthest a step may move a corner of the fixed image, in voxels of the level.
    """

    damping: float | None = None
    cap: float = 2.0


class Scorer:
    """The compiled half of a step, for one similarity.

    ``step(...)`` returns g, A, the similarity and the overlap, having trained the similarity's
    weights by one step of Adam. Points come as ``(batch * n, D)``, generators as
    ``(K, (D + 1)^2)``.
    """

    def __init__(self, similarity):
        self.similarity = similarity
        own = similarity.any_length
        self.trained_only = backend.jit(self._train, any_length=own)
        self.step = backend.jit(self._step, any_length=own)

        # A verdict asks twice, each time for other shapes: for one pair not worth XLA's seconds.
        self.evaluate = backend.jit(self._evaluate, _COMPILED, any_length=own)

    def _evaluate(self, images, points, block, matrix):
        """The similarity, by a log-ratio without weights, and the overlap."""
        fixed, _, moving, inside, overlap = sampled(images, _batch(points, matrix), block, matrix)
        return self.similarity.log_ratio([], fixed, moving, inside)[1], overlap

    def _train(self, weights, state, rate, images, points, block, matrix):
        """One step of Adam on the similarity's weights; the transform stays."""
        fixed, _, moving, inside, _ = sampled(images, _batch(points, matrix), block, matrix)
        return self.similarity.learn(weights, state, rate, fixed, moving, inside)[:2]

    def _step(self, weights, state, rate, images, points, block, matrix, generators):
        points = _batch(points, matrix)
        if self.similarity.trained:
            fixed, _, moving, inside, _ = sampled(images, points, block, matrix)
            weights, state, bound = self.similarity.learn(
                weights, state, rate, fixed, moving, inside
            )
        fixed, own = fixed_values(images, block, points)

        def total(variables):
            moving, inside, overlap = moving_values(images, block, variables[0], own)
            ratio, value = self.similarity.log_ratio(weights, fixed, moving, inside)
            return ops.sum(ratio * inside), (value, inside, overlap)

        there = transform_points(matrix, points)
        (_, aside), (slope,) = backend.value_and_gradients(total, [there])
        similarity, inside, overlap = aside
        similarity = bound if self.similarity.trained else similarity
        # b_k(y) = B y - y (p . y) for the last row p of B: both halves in one outer product.
        slope = ops.concatenate([slope, -ops.sum(slope * there, -1, keepdims=True)], -1)
        there = ops.concatenate([there, ops.ones_like(there[..., :1])], -1)
        outer = slope[..., :, None] * there[..., None, :]
        outer = ops.reshape(outer, (*ops.shape(there)[:2], generators.shape[1]))
        scores = ops.matmul(outer, ops.transpose(generators))  # (batch, n, K)
        count = ops.maximum(ops.sum(inside, axis=1), 1.0)
        gradient = ops.sum(scores, axis=1) / count[:, None]
        information = ops.matmul(ops.swapaxes(scores, 1, 2), scores) / count[:, None, None]
        return weights, state, gradient, information, similarity, overlap


@functools.lru_cache(maxsize=64)
def scorer(similarity) -> Scorer:
    """Return the `Scorer` for a similarity; the same one, compiled once, each time."""
    return Scorer(similarity)


def _batch(points, matrix):
    """Return points ``(batch * n, D)`` as ``(batch, n, D)``."""
    return ops.reshape(points, (ops.shape(matrix)[0], -1, points.shape[-1]))


def sampled(images, points, block, matrix):
    """Return what a step sees of its images (`Pairs.images`) at points under matrices.

    Returns:
        Fixed values ``(batch, n, channels)``, the points in the moving world, moving values
        there, the weights ``(batch, n)``: the masks, 0 outside the moving image, and the overlap
        ``(batch,)``: the share that these are of the fixed image's own weights.
    """
    fixed, own = fixed_values(images, block, points)
    there = transform_points(matrix, points)
    moving, inside, overlap = moving_values(images, block, there, own)
    return fixed, there, moving, inside, overlap


def fixed_values(images, block, points):
    """Return fixed values ``(batch, n, channels)`` at points, and the weight of each."""
    rows, _, table, _, first, _ = images
    fixed, here = read(rows, table, first, block, points)
    # The last channel is the mask.
    return fixed[..., :-1], here * fixed[..., -1]


def moving_values(images, block, points, own):
    """Return moving values at points, weights, and overlap, as `sampled`; `own` are the fixed's."""
    _, rows, _, table, _, first = images
    moving, inside = read(rows, table, first, block, points)
    inside = ops.stop_gradient(inside * own * moving[..., -1])
    overlap = ops.sum(inside, axis=1) / ops.maximum(ops.sum(own, axis=1), 1e-6)
    return moving[..., :-1], inside, overlap


def solve(gradient: np.ndarray, information: np.ndarray, damping: float) -> np.ndarray:
    """Return the damped step ``(batch, K)``, in float64; zero along what nothing depends on."""
    gradient, information = np.asarray(gradient, "float64"), np.asarray(information, "float64")
    scale = np.sqrt(np.einsum("bii->bi", information))
    scale = np.where(scale > 1e-12, scale, np.inf)
    scaled = information / scale[:, :, None] / scale[:, None, :]
    scaled = scaled + damping * np.eye(scaled.shape[-1])
    with np.errstate(invalid="ignore"):
        return np.linalg.solve(scaled, (gradient / scale)[..., None])[..., 0] / scale


def update(
    matrix: np.ndarray, step: np.ndarray, generators: np.ndarray, corners: np.ndarray, cap: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return exp(sum_k step_k B_k) matrix, no corner moved by more than `cap`, and the motion.

    Args:
        matrix: ``(batch, D + 1, D + 1)``.
        step: ``(batch, K)``.
        generators: ``(K, D + 1, D + 1)``.
        corners: of the fixed image, ``(c, D)``, world.
        cap: world units.

    Returns:
        Matrices ``(batch, D + 1, D + 1)`` with a last entry of 1, and the largest motion of a
        corner ``(batch,)``.
    """
    tangent = np.tensordot(step, generators.astype("float64"), axes=1)
    moved = carried(matrix, corners)
    flow = moved @ np.swapaxes(tangent[:, :, :-1], 1, 2) + tangent[:, None, :, -1]
    flow = flow[..., :-1] - moved * flow[..., -1:]
    motion = np.sqrt(np.square(flow).sum(-1)).max(-1)
    shrink = np.minimum(1, cap / np.maximum(motion, 1e-300))
    update = exponential(tangent * shrink[:, None, None]) @ matrix
    return update / update[:, -1:, -1:], np.minimum(motion, cap)


def exponential(matrix: np.ndarray) -> np.ndarray:
    """Return exp of small matrices ``(..., n, n)`` in float64, all at once.

    SciPy's goes through threaded BLAS one matrix at a time, which here costs 100 times more.
    """
    scaled = matrix / 64
    term = total = np.broadcast_to(np.eye(matrix.shape[-1]), matrix.shape)
    for order in range(1, 13):  # to 1e-16 for norms up to 10
        term = term @ scaled / order
        total = total + term
    for _ in range(6):
        total = total @ total
    return total
