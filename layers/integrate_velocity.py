"""Integrate a stationary velocity field."""

import itertools
import math

import keras
from keras import ops

from kreg import backend
from kreg.ops.coordinates import COORDINATE_DTYPE, grid_axes, spatial_shape
from kreg.ops.displacement import integrate, self_compose
from kreg.ops.interpolation import lower_corner


def _cells(displacement):
    """The 2^D voxels around each x + u(x), where the border of the grid goes on beyond it.

    Returns:
        corners: 2^D tensors ``(batch, *spatial)``, rows of the flattened batch.
        fraction: D tensors, the position within the cell, 0 to 1.
        inside: D tensors, 1 where the point lies within the grid along that axis, else 0.
    """
    sizes = spatial_shape(displacement)
    known = [size for size in displacement.shape[:-1] if size is not None]
    dtype = "int64" if math.prod(known) >= 2**31 else "int32"
    dimensions = len(sizes)
    points, inside = [], []
    components = ops.unstack(displacement, axis=-1)
    for component, axis, size in zip(components, grid_axes(sizes), sizes, strict=True):
        point = component + axis
        points.append(ops.clip(point, 0.0, ops.cast(size - 1, COORDINATE_DTYPE)))
        inside.append(ops.cast(point == points[-1], COORDINATE_DTYPE))
    lower, fraction = lower_corner(ops.stack(points, axis=-1), sizes, dtype)

    strides = [1]
    for size in reversed(sizes):
        strides.insert(0, strides[0] * size)
    first = ops.arange(ops.shape(displacement)[0], dtype=dtype) * strides.pop(0)
    # A reduction, whose result XLA stores, as in `kreg.ops.sample`.
    weighted = ops.stack(lower, axis=-1) * ops.stack([ops.cast(s, dtype) for s in strides])
    row = ops.reshape(first, (-1,) + (1,) * dimensions) + ops.sum(weighted, axis=-1)
    # An axis of one voxel has no upper neighbour.
    steps = [
        ops.cast(stride * ops.minimum(size - 1, 1), dtype)
        for stride, size in zip(strides, sizes, strict=True)
    ]
    corners = [
        row + sum(o * s for o, s in zip(offsets, steps, strict=True))
        for offsets in itertools.product((0, 1), repeat=dimensions)
    ]
    return corners, fraction, inside


def _slope(values, fraction, axis: int):
    """The derivative along an axis of linear interpolation between the values at 2^D corners."""
    for d in reversed(range(len(fraction))):  # the last axis varies fastest
        pairs = zip(values[0::2], values[1::2], strict=True)
        if d == axis:
            values = [high - low for low, high in pairs]
        else:
            values = [low + (high - low) * fraction[d] for low, high in pairs]
    return values[0]


def _weights(fraction):
    """The weights of the 2^D corners in linear interpolation, in their order."""
    sides = [(1 - f, f) for f in fraction]
    return [math.prod(weights) for weights in itertools.product(*sides)]


def _gradient(displacement, upstream):
    """The gradient of u(x) + u(x + u(x)) for that of a loss by it, g.

    With corners k of weight w_k around x + u(x): at x it is g + sum_k dw_k/du (u_k . g), and every
    k gets w_k g. The products with g come first, so that one number a corner is interpolated
    instead of D; differentiating the forward pass takes twice as long.
    """
    corners, fraction, inside = _cells(displacement)
    rows = ops.reshape(displacement, (-1, displacement.shape[-1]))
    products = [ops.sum(ops.take(rows, k, axis=0) * upstream, axis=-1) for k in corners]
    slopes = [_slope(products, fraction, d) * within for d, within in enumerate(inside)]
    total = ops.reshape(upstream + ops.stack(slopes, axis=-1), ops.shape(rows))
    for corner, weight in zip(corners, _weights(fraction), strict=True):
        share = ops.reshape(weight[..., None] * upstream, ops.shape(rows))
        total = total + ops.segment_sum(share, ops.reshape(corner, (-1,)), ops.shape(rows)[0])
    return ops.reshape(total, ops.shape(displacement))


def _self_compose(displacement):
    # Decorated in here: compiled itself, what `custom_gradient` returns loses XLA on TensorFlow.
    @ops.custom_gradient
    def forward(displacement):
        def gradient(*args, upstream=None):
            return _gradient(displacement, args[-1] if upstream is None else upstream)

        return self_compose(displacement), gradient

    return forward(displacement)


# One boundary a squaring: fused into one another, XLA would compile chained warps for minutes.
_square = backend.compiled(_self_compose)


@keras.saving.register_keras_serializable("kreg")
class IntegrateVelocity(keras.layers.Layer):
    """phi = exp(v), by `steps` squarings of x + v / 2^steps: a diffeomorphism for smooth v.

    The exponential of -v is its inverse (Arsigny et al., MICCAI 2006; Dalca et al., MICCAI 2018).

    Args:
        steps: number of squarings.

    Call arguments:
        velocity: ``(batch, *spatial, D)``, voxels per unit time.

    Raises:
        ValueError: if `steps` is negative or the shape is not that of a field.
    """

    def __init__(self, steps=7, **kwargs):
        super().__init__(autocast=False, **kwargs)  # displacements stay float32
        if steps < 0:
            raise ValueError(f"Expected `steps` >= 0. Received: {steps}.")
        self.steps = steps

    def call(self, velocity):
        """Return the displacement, ``(batch, *spatial, D)`` float32 voxels."""
        return integrate(velocity, self.steps, square=_square)

    def compute_output_spec(self, velocity):
        """Return the velocity's shape, float32 whatever the policy."""
        return keras.KerasTensor(velocity.shape, dtype="float32")

    def compute_output_shape(self, velocity_shape):
        """Return the velocity's shape."""
        return velocity_shape

    def get_config(self):
        """Return the constructor arguments."""
        return {**super().get_config(), "steps": self.steps}
