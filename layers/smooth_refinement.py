"""What a matrix leaves: the smooth displacement that makes two images most alike, solved for."""

import functools
import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from kreg import backend
from kreg.ops.composition import compose_linear
from kreg.ops.coordinates import check_image, check_same_size, identity_grid
from kreg.ops.displacement import spatial_gradient, warp
from kreg.ops.filters import along_axis, known_sizes, resize_image
from kreg.ops.interpolation import nearest_border
from kreg.ops.linear import check_matrix, voxel_matrix

#: Control points lie so many of their Gaussians' widths apart, and go on so many beyond the image.
_PITCH, _MARGIN = 1.3, 1.0
#: More coefficients than this take longer to solve for than a network would.
_MOST = 1200
#: Differences are taken for noise of at least this share of the fixed image's deviation.
_LEAST_NOISE = 0.01
#: At least so many iterations for the gradient: what it lacks is not made good by a next step.
_BACKWARD = 30
#: Of a point on the border, in voxels.
_ROUNDING = 1e-3


@keras.saving.register_keras_serializable("kreg")
class SmoothRefinement(keras.layers.Layer):
    """u = argmin sum_x t (f - a m(A (x + u)))^2 / s^2 + ||c||^2,  u = B c: linear and smooth.

    Unrolled Gauss-Newton steps on all of the image at once. u is a linear function of the position
    and a sum of Gaussians; ||c||^2 says how large either is expected to be, so u is about the most
    probable field (a Gaussian process): exact where the images have edges, and where they have none
    the smoothest continuation, of the linear part too. f and m are fixed and moving image without
    their means; a, the contrast between them, and s^2, the mean square of what is left, are found
    anew in each step and for each channel, over what lies inside of the moving image; t is the
    trust in single voxels, whose differences are not independent. Equations of voxels within a cell
    are averaged. For what is small: no farther than the structures of the image are wide.

    Three weights, learned unless ``trainable=False``: t, and how far voxels are expected to move.
    It works untrained. The images are taken for data, gradients reach the matrix. A pair without
    differences is left as it is. Each pair by itself; where an image is not finite neither is u,
    nor are the gradients of the weights, which all pairs share.
    JAX solves in float32 unless ``jax_enable_x64`` is set: less exact for large images.

    Args:
        steps: of Gauss and Newton.
        deviation: standard deviation of the smooth part, as a share of the longest side; the first
            value.
        linear: the same of a shift, and of what rotation, scale and shear add at the middle of the
            longest side; the first value.
        trust: t, the first value.
        correlation: over this distance, as a share of the longest side, the smooth part is
            correlated by exp(-1/2). The smaller, the more coefficients.
        cells: the longest side has at most so many, which should be smaller than `correlation`.
        iterations: of conjugate gradients in each step, each beginning where the one before ended.
            By the other defaults 20 end within a hundredth of a voxel of the solution on average,
            a tenth at worst; several times larger `trust`, `deviation`, `linear` want 100 or more.
            Gradients are about those of the exact solution.
        spacing: for the matrix, the distance of voxel centres along each axis; 1 where None. How u
            is expected to be is said in voxels, whatever their spacing.

    Call arguments:
        fixed, moving: ``(batch, *spatial, channels)``, floating, equal sizes that are known.
        matrix: A ``(batch, D + 1, D + 1)``, fixed to moving points in the centred world frame.

    Returns:
        u ``(batch, *spatial, D)``, voxels, float32: phi = A o (id + u) (`ComposeLinear`).

    Raises:
        ValueError: if a number is not positive, the shapes differ, a spatial size is unknown, the
            images are not floating, or `correlation` asks for more than 1200 coefficients, as the
            default does in 3-D, where 0.3 is about right.
    """

    def __init__(
        self,
        steps: int = 3,
        *,
        deviation: float = 0.006,
        linear: float = 0.02,
        trust: float = 0.2,
        correlation: float = 0.15,
        cells: int = 16,
        iterations: int = 20,
        spacing: Sequence[float] | None = None,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)  # displacements stay float32
        numbers = (deviation, linear, trust, correlation)
        counts = (steps, cells, iterations)
        whole = all(isinstance(count, int | np.integer) and count > 0 for count in counts)
        if not whole or not all(number > 0 for number in numbers):
            raise ValueError(
                "Expected whole `steps`, `cells` and `iterations`, and `deviation`, `linear`, "
                "`trust` and `correlation`, all of them positive. "
                f"Received: {counts} and {numbers}."
            )
        if spacing is not None and not (np.ndim(spacing) == 1 and all(x > 0 for x in spacing)):
            raise ValueError(
                "Expected `spacing` to be None or a positive number for each axis. "
                f"Received: {spacing}."
            )
        self.steps = steps
        self.deviation = deviation
        self.linear = linear
        self.trust = trust
        self.correlation = correlation
        self.cells = cells
        self.iterations = iterations
        self.spacing = None if spacing is None else tuple(spacing)

    def build(self, *_):
        """Make the weights: logarithms, so that what they stand for stays positive."""
        values = np.log([self.trust, self.linear, self.deviation]).astype("float32")
        self._logarithms = self.add_weight(
            shape=(3,), dtype="float32", name="logarithms", autocast=False,
            initializer=lambda shape, dtype: ops.convert_to_tensor(values, dtype),
        )  # fmt: skip

    def call(self, fixed, moving, matrix):
        """Return the displacement, ``(batch, *spatial, D)`` float32 voxels."""
        self._check(fixed, moving, matrix)
        fixed, moving = ops.cast(fixed, "float32"), ops.cast(moving, "float32")
        sizes = known_sizes(fixed)
        axes = len(sizes)
        voxels = voxel_matrix(
            matrix, sizes, fixed_spacing=self.spacing, moving_spacing=self.spacing
        )
        longest = max(sizes)
        cells = tuple(min(size, math.ceil(size * self.cells / longest)) for size in sizes)
        control = self.control_shape(sizes)
        trust, *expected = ops.unstack(ops.exp(ops.convert_to_tensor(self._logarithms)))
        # Coefficients of unit variance to voxels.
        amounts = ops.concatenate(
            [
                ops.broadcast_to(longest * expected[0], (axes + 1,)),
                ops.broadcast_to(longest * expected[1], (math.prod(control),)),
            ]
        )
        step, field = _compiled(sizes, cells, control, self.correlation, self.iterations)
        coefficients = ops.zeros((amounts.shape[0], axes, ops.shape(fixed)[0]), "float32")
        for _ in range(self.steps):
            coefficients = step(fixed, moving, voxels, amounts, trust, coefficients)
        return field(amounts, coefficients)

    def control_shape(self, sizes) -> tuple[int, ...]:
        """Return the number of control points along each axis, or say that they are too many."""
        width = self.correlation / math.sqrt(2)
        points = [
            1 + math.ceil((size / max(sizes) + 2 * _MARGIN * width) / (_PITCH * width))
            for size in sizes
        ]
        unknowns = len(sizes) * (math.prod(points) + len(sizes) + 1)
        if unknowns > _MOST:
            raise ValueError(
                f"Expected a `correlation` of which a grid needs at most {_MOST} coefficients; a "
                f"larger one needs fewer. Received: {self.correlation}, which needs {unknowns} for "
                f"images of {tuple(sizes)}."
            )
        return tuple(points)

    def compute_output_spec(self, fixed, moving, matrix):
        """Return the shape of the displacement, float32 whatever the policy."""
        self._check(fixed, moving, matrix)
        shape = self.compute_output_shape(fixed.shape, moving.shape, matrix.shape)
        return keras.KerasTensor(shape, dtype="float32")

    def _check(self, fixed, moving, matrix):
        """Raise ValueError for what does not fit."""
        fixed, moving = check_image(fixed, "fixed"), check_image(moving, "moving")
        check_same_size(fixed, moving, ("fixed", "moving"))
        check_matrix(matrix, len(known_sizes(fixed)))

    def compute_output_shape(self, fixed_shape, moving_shape, matrix_shape):
        """Return ``(batch, *spatial, D)``."""
        sizes = known_sizes(keras.KerasTensor(fixed_shape))
        self.control_shape(sizes)
        return (fixed_shape[0], *sizes, len(sizes))

    def get_config(self):
        """Return the constructor arguments."""
        return {
            **super().get_config(),
            "steps": self.steps,
            "deviation": self.deviation,
            "linear": self.linear,
            "trust": self.trust,
            "correlation": self.correlation,
            "cells": self.cells,
            "iterations": self.iterations,
            "spacing": self.spacing,
        }


# --- the field: u = B c ---


def _positions(count: int, size: int, longest: int) -> np.ndarray:
    """The middles of `count` parts of a side, in units of the longest side, centred."""
    return ((np.arange(count) + 0.5) / count - 0.5) * size / longest


def _gaussians(count, size, longest, points, correlation) -> np.ndarray:
    """``(count, points)``: Gaussians of control points along an axis, each row of norm 1.

    A Gaussian and itself overlap as a Gaussian sqrt(2) times as wide.
    """
    width = correlation / math.sqrt(2)
    at = (np.arange(points) - (points - 1) / 2) * _PITCH * width
    weights = np.exp(-0.5 * ((_positions(count, size, longest)[:, None] - at) / width) ** 2)
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype("float32")


def _linear_basis(shape, sizes) -> np.ndarray:
    """``(*shape, D + 1)``: 1 and the position, 1 at the end of the longest side."""
    longest = max(sizes)
    axes = [2 * _positions(n, size, longest) for n, size in zip(shape, sizes, strict=True)]
    grid = np.meshgrid(*axes, indexing="ij")
    return np.stack([np.ones(tuple(shape)), *grid], axis=-1).astype("float32")


def _basis(shape, sizes, control, correlation) -> np.ndarray:
    """B for a grid of `shape` over an image of `sizes`: ``(prod(shape), K)``."""
    smooth = np.ones((1, 1), "float32")
    for n, size, points in zip(shape, sizes, control, strict=True):
        smooth = np.kron(smooth, _gaussians(n, size, max(sizes), points, correlation))
    linear = _linear_basis(shape, sizes).reshape(len(smooth), -1)
    return np.concatenate([linear, smooth], axis=1)


def _field(sizes, control, correlation):
    """Return the function of amounts and c that gives u = B c on the grid of the image."""
    axes, longest = len(sizes), max(sizes)

    def field(amounts, coefficients):
        weighted = ops.transpose(amounts[:, None, None] * coefficients, (2, 0, 1))  # (batch, K, D)
        u = ops.reshape(weighted[:, axes + 1 :], (-1, *control, axes))
        for axis, (size, points) in enumerate(zip(sizes, control, strict=True), 1):
            u = along_axis(u, _gaussians(size, size, longest, points, correlation), axis)
        # No product of matrices, which a GPU may round to 10 bits.
        one = (slice(None), *[None] * axes)
        places = np.moveaxis(_linear_basis(sizes, sizes), -1, 0)[..., None]
        parts = (ops.multiply(place, weighted[:, k][one]) for k, place in enumerate(places))
        return u + sum(parts)

    return field


# --- a step ---


@functools.lru_cache
def _compiled(sizes, cells, control, correlation, iterations):
    """Return two functions: a step to a better c, and of c to u."""
    basis = _basis(cells, sizes, control, correlation)
    field = _field(sizes, control, correlation)

    def step(fixed, moving, voxels, amounts, trust, coefficients):
        # Stopped inside the boundary: outside it, XLA would still compute the gradients.
        fixed, moving = ops.stop_gradient(fixed), ops.stop_gradient(moving)
        u = compose_linear(voxels, field(amounts, coefficients))
        tensor, force = _equations(fixed, moving, u, trust, cells)
        return _improved(coefficients, ops.multiply(basis, amounts), tensor, force, iterations)

    return backend.compiled(step), backend.compiled(field)


def _equations(fixed, moving, displacement, trust, cells):
    """The cells' equations: what `_improved` takes for tensor and force."""
    sizes = known_sizes(fixed)
    within = tuple(range(1, len(sizes) + 1))
    points = identity_grid(sizes) + displacement
    last = np.array(sizes, "float32") - 1
    inside = ops.logical_and(points >= -_ROUNDING, ops.less_equal(points, last + _ROUNDING))
    inside = ops.cast(ops.all(inside, axis=-1, keepdims=True), "float32")
    share = inside / ops.maximum(ops.sum(inside, axis=within, keepdims=True), 1.0)

    def mean(image):
        return ops.sum(share * image, axis=within, keepdims=True)

    def centred(image):
        """Without its mean, and in the unit of its largest value: no square underflows."""
        change = inside * (image - mean(image))
        unit, least = (
            ops.max(ops.abs(x), axis=within, keepdims=True) for x in (change, 1e-6 * image)
        )
        return change / ops.where(unit > least, unit, ops.ones_like(unit))

    fixed, warped = centred(fixed), centred(warp(moving, displacement, border=nearest_border))
    square, own, product = mean(warped**2), mean(fixed**2), mean(fixed * warped)
    warped = warped * product / (square + 1e-12)
    difference = fixed - warped
    # Both images' slopes converge faster; the fixed one's as far as the two are alike at all.
    alike = (product**2 / (square * own + 1e-12))[..., None]
    gradient = (alike * spatial_gradient(fixed) + spatial_gradient(warped)) / (1 + alike)
    # In units of the noise, channel by channel.
    noise = ops.sqrt(mean(difference**2) + _LEAST_NOISE**2 * own + 1e-12)
    difference, gradient = difference / noise, gradient / noise[..., None]

    slopes = ops.unstack(gradient, axis=-1)  # D times (batch, *spatial, channels)
    pairs = _upper(len(slopes))
    products = [slopes[i] * slopes[j] for i, j in pairs]
    products += [slope * difference for slope in slopes]
    products = ops.stack([ops.sum(product, axis=-1) for product in products], axis=-1)
    sums = math.prod(sizes) / math.prod(cells) * resize_image(inside * products, cells)
    sums = ops.reshape(trust * sums, (-1, math.prod(cells), products.shape[-1]))
    sums = ops.transpose(sums, (1, 2, 0))  # (cells, products, batch)
    return ops.unstack(sums[:, : len(pairs)], axis=1), sums[:, len(pairs) :]


def _improved(coefficients, basis, tensor, force, iterations):
    """c nearer to (B^T T B + I)^-1 (force + B^T T B c).

    Args:
        coefficients: c ``(K, D, batch)``.
        basis: B ``(cells, K)``.
        tensor: T, the entries i <= j, row by row: ``(cells, batch)`` each.
        force: of voxels on the change of c, ``(cells, D, batch)``.
        iterations: a number.
    """
    # In float64 where there is one: rounded, the well determined swamps what is hardly so.
    precise = backend.widest_float()
    coefficients, force, *system = (
        ops.cast(x, precise) for x in (coefficients, force, basis, *tensor)
    )
    right = _product(ops.transpose(system[0]), force) - coefficients
    known = [ops.stop_gradient(x) for x in system]
    change = ops.stop_gradient(_solution(iterations, ops.stop_gradient(right), *known))
    left = right - _curvature(change, *system)
    return ops.cast(coefficients + change + _unsolved(iterations)(left, *known), "float32")


def _upper(axes) -> list[tuple[int, int]]:
    """The entries of a symmetric matrix that are kept: i <= j, row by row."""
    return [(i, j) for i in range(axes) for j in range(i, axes)]


def _product(matrix, values):
    """One product of matrices for the whole batch."""
    found = ops.matmul(matrix, ops.reshape(values, (matrix.shape[1], -1)))
    return ops.reshape(found, (matrix.shape[0], values.shape[1], -1))


def _curvature(values, basis, *tensor):
    """(B^T T B + I) values."""
    axes = values.shape[1]
    entries = dict(zip(_upper(axes), tensor, strict=True))
    moved = _product(basis, values)
    forces = [
        sum(entries[min(i, j), max(i, j)] * moved[:, j] for j in range(axes)) for i in range(axes)
    ]
    return _product(ops.transpose(basis), ops.stack(forces, axis=1)) + values


def _solution(iterations, right, basis, *tensor):
    """(B^T T B + I)^-1 right, nearly, by conjugate gradients; not to be differentiated."""

    def dot(one, other):
        return ops.sum(one * other, axis=(0, 1), keepdims=True)

    def ratio(one, other):  # of squares; nothing is left to do where there is nothing
        some = other > 0
        return ops.where(some, one / ops.where(some, other, 1), 0)

    axes = right.shape[1]
    entries = zip(_upper(axes), tensor, strict=True)
    diagonal = ops.stack([entry for (i, j), entry in entries if i == j], axis=1)
    scale = 1 / (1 + _product(ops.transpose(basis) ** 2, diagonal))

    def improve(_, state):
        found, left, direction, size = state
        turned = _curvature(direction, basis, *tensor)
        length = ratio(size, dot(direction, turned))
        found, left = found + length * direction, left - length * turned
        scaled = scale * left
        before, size = size, dot(left, scaled)
        return found, left, scaled + ratio(size, before) * direction, size

    state = (ops.zeros_like(right), right, scale * right, dot(right, scale * right))
    return ops.fori_loop(0, iterations, improve, state)[0]


def _unsolved(iterations):
    """Return a function that is 0, with the gradient of the solution of what is left."""

    @ops.custom_gradient
    def unsolved(left, *system):
        def gradient(*args, upstream=None):
            upstream = args[-1] if upstream is None else upstream
            solution = _solution(max(iterations, _BACKWARD), upstream, *system)
            return solution, *map(ops.zeros_like, system)

        return ops.zeros_like(left), gradient

    return unsolved
