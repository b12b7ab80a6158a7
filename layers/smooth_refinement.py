"""What a matrix leaves: the smooth displacement that makes two images most alike, solved for."""

import functools
import math

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
    differences is left as it is. Each pair by itself; where an image is not finite neither is u.
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
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)  # displacements stay float32
        numbers = (deviation, linear, trust, correlation)
        whole = isinstance(steps, int) and isinstance(cells, int) and min(steps, cells) > 0
        if not whole or not all(number > 0 for number in numbers):
            raise ValueError(
                "Expected whole `steps` and `cells`, and `deviation`, `linear`, `trust` and "
                f"`correlation`, all of them positive. Received: {steps}, {cells} and {numbers}."
            )
        self.steps = steps
        self.deviation = deviation
        self.linear = linear
        self.trust = trust
        self.correlation = correlation
        self.cells = cells

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
        voxels = voxel_matrix(matrix, sizes)
        longest = max(sizes)
        cells = [max(1, min(size, math.ceil(size * self.cells / longest))) for size in sizes]
        control = self.control_shape(sizes)
        trust, *expected = ops.unstack(ops.exp(ops.convert_to_tensor(self._logarithms)))
        # Coefficients of unit variance to voxels: a row for each coefficient of one component.
        amounts = ops.concatenate(
            [
                ops.broadcast_to(longest * expected[0], (axes + 1,)),
                ops.broadcast_to(longest * expected[1], (math.prod(control),)),
            ]
        )
        here = _basis(cells, sizes, control, self.correlation) * amounts  # (cells, K)

        shape = (ops.shape(fixed)[0], here.shape[1], axes)
        coefficients = ops.zeros(shape, "float32")
        for step in range(self.steps):
            u = _field(coefficients, amounts, sizes, control, self.correlation)
            tensor, force = _equations(tuple(cells))(fixed, moving, compose_linear(voxels, u))
            count = math.prod(sizes) / math.prod(cells)
            tensor, force = trust * count * tensor, trust * count * force
            if step:  # the force on c as a whole, not on its change
                moved = ops.matmul(here, coefficients)  # (batch, cells, D)
                force = force + ops.sum(tensor * moved[:, :, None], axis=-1)
            coefficients = _solve(here, tensor, force)
        return _field(coefficients, amounts, sizes, control, self.correlation)

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


def _field(coefficients, amounts, sizes, control, correlation):
    """u = B c on the grid of the image, axis by axis."""
    axes = len(sizes)
    weighted = amounts[:, None] * coefficients  # (batch, K, D)
    u = ops.reshape(weighted[:, axes + 1 :], (-1, *control, axes))
    for axis, (size, points) in enumerate(zip(sizes, control, strict=True), 1):
        u = along_axis(u, _gaussians(size, size, max(sizes), points, correlation), axis)
    # No product of matrices, which a GPU may round to 10 bits.
    one = (slice(None), *[None] * axes)
    places = np.moveaxis(_linear_basis(sizes, sizes), -1, 0)[..., None]
    return u + sum(place * weighted[:, k][one] for k, place in enumerate(places))


# --- the equations ---


@functools.lru_cache
def _equations(cells):
    """Return the function of (fixed, moving, displacement) that gives the cells' equations."""

    def tensor(fixed, moving, displacement):
        # Stopped inside the boundary: outside it, XLA would still compute the gradients.
        fixed, moving = ops.stop_gradient(fixed), ops.stop_gradient(moving)
        sizes = known_sizes(fixed)
        within = tuple(range(1, len(sizes) + 1))
        points = identity_grid(sizes) + displacement
        last = np.array(sizes, "float32") - 1
        inside = ops.logical_and(points >= -_ROUNDING, points <= last + _ROUNDING)
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
        size = len(slopes)
        products = [slopes[i] * slopes[j] for i in range(size) for j in range(i, size)]
        products += [slope * difference for slope in slopes]
        products = ops.stack([ops.sum(product, axis=-1) for product in products], axis=-1)
        return resize_image(inside * products, cells)

    compiled = backend.compiled(tensor)

    def equations(fixed, moving, displacement):
        axes = len(cells)
        products = compiled(fixed, moving, displacement)
        columns = ops.unstack(
            ops.reshape(products, (-1, math.prod(cells), products.shape[-1])), axis=-1
        )
        entries, force = iter(columns[:-axes]), ops.stack(columns[-axes:], axis=-1)
        upper = {(i, j): next(entries) for i in range(axes) for j in range(i, axes)}
        rows = [
            ops.stack([upper[min(i, j), max(i, j)] for j in range(axes)], axis=-1)
            for i in range(axes)
        ]
        return ops.stack(rows, axis=-2), force  # (batch, cells, D, D), (batch, cells, D)

    return equations


def _solve(basis, tensor, force):
    """c = (B^T T B + I)^-1 B^T force, ``(batch, K, D)``."""
    # In float64 where there is one: rounded, the well determined swamps what is hardly so.
    precise = backend.widest_float()
    basis, tensor, force = (ops.cast(x, precise) for x in (basis, tensor, force))
    axes, size = tensor.shape[-1], basis.shape[1]
    transposed = ops.transpose(basis)  # (K, cells)
    block = {
        (i, j): ops.matmul(transposed * tensor[:, None, :, i, j], basis)
        for i in range(axes)
        for j in range(i, axes)
    }
    rows = [
        ops.concatenate([block[min(i, j), max(i, j)] for j in range(axes)], axis=-1)
        for i in range(axes)
    ]
    one = ops.eye(axes * size, dtype=precise)
    normal = ops.concatenate(rows, axis=-2) + one
    right = ops.transpose(ops.matmul(transposed, force), (0, 2, 1))  # (batch, D, K)
    right = ops.reshape(right, (-1, axes * size, 1))
    # A NaN among the equations of one sample would end the whole batch: it stays on the right.
    finite = ops.all(ops.isfinite(normal), axis=(1, 2), keepdims=True)
    # Not by Cholesky factors, whose gradient takes far longer than that of a solution.
    found = ops.solve(ops.where(finite, normal, one), right)
    found = ops.cast(ops.reshape(found, (-1, axes, size)), "float32")
    return ops.transpose(found, (0, 2, 1))
