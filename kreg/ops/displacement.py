"""Displacement fields: warp, compose, integrate, invert, resize, Jacobian.

A field ``u`` of shape ``(batch, *spatial, D)``, in voxels, is the map phi(x) = x + u(x).
"""

import numpy as np
from keras import ops

from kreg.backend import repeat
from kreg.ops.coordinates import (
    COORDINATE_DTYPE,
    check_displacement,
    check_image,
    grid_axes,
    spatial_shape,
)
from kreg.ops.filters import along_axis
from kreg.ops.interpolation import Border, nearest_border, sample, zero_border


def warp(moving, displacement, *, border: Border = zero_border, sampler=sample):
    """warped(x) = moving(x + u(x)).

    Args:
        moving: ``(batch, *moving_spatial, channels)``, floating.
        displacement: ``(batch, *spatial, D)``, voxels.
        border: what lies outside the moving image: `zero_border`, `nearest_border`,
            `reflect_border`.
        sampler: `sample` (linear) or `sample_nearest` (labels).

    Returns:
        ``(batch, *spatial, channels)``.

    Raises:
        ValueError: if ranks, components or batch sizes do not fit, or the image is not floating.

    Example:
        >>> import numpy as np
        >>> from kreg import ops
        >>> moving = np.float32([[1, 2, 3], [4, 5, 6]])[None, ..., None]
        >>> half = np.tile(np.float32([0, 0.5]), (1, 2, 3, 1))  # half a pixel further right
        >>> np.asarray(ops.warp(moving, half, border=ops.nearest_border))[0, ..., 0]
        array([[1.5, 2.5, 3. ],
               [4.5, 5.5, 6. ]], dtype=float32)
    """
    displacement = check_displacement(displacement)
    moving = check_image(moving, "moving")
    if len(moving.shape) != len(displacement.shape):
        raise ValueError(
            "Expected a displacement with as many spatial axes as the moving image. Received: "
            f"displacement {tuple(displacement.shape)}, moving {tuple(moving.shape)}."
        )
    return sampler(moving, _displaced(displacement), border=border)


def _displaced(displacement):
    """phi(x) = x + u(x). Axis by axis, as the sampler goes on: XLA then never stores the points."""
    axes = grid_axes(spatial_shape(displacement))
    pairs = zip(ops.unstack(displacement, axis=-1), axes, strict=True)
    return ops.stack([component + axis for component, axis in pairs], axis=-1)


def compose(outer, inner):
    """u(x) = inner(x) + outer(x + inner(x)), the field of phi_outer o phi_inner.

    Warping once with the result is warping first with `outer`, then with `inner`. Beyond its
    grid `outer` goes on as at its border.

    Args:
        outer, inner: ``(batch, *spatial, D)``, voxels.

    Returns:
        ``(batch, *spatial, D)``.

    Raises:
        ValueError: if the shapes are not those of displacements.
    """
    inner = check_displacement(inner, "inner")
    return inner + warp(check_displacement(outer, "outer"), inner, border=nearest_border)


def integrate(velocity, steps: int = 7, *, square=None):
    """phi = exp(v): 2^steps compositions of x + v / 2^steps, by repeated squaring.

    For a smooth stationary velocity field the result is a diffeomorphism, and
    ``integrate(-v)`` is its inverse (Arsigny et al., MICCAI 2006).

    Args:
        velocity: ``(batch, *spatial, D)``, voxels per unit time.
        steps: number of squarings; each first displacement should stay below half a voxel.
        square: one squaring, u -> u o u; the layer passes a compiled one.

    Returns:
        Displacement ``(batch, *spatial, D)``, voxels.

    Raises:
        ValueError: if `steps` is negative or the shape is not that of a field.
    """
    if steps < 0:
        raise ValueError(f"Expected `steps` >= 0. Received: {steps}.")
    displacement = check_displacement(velocity, "velocity") / 2**steps
    return repeat(square or self_compose, steps, displacement)


def self_compose(displacement):
    """u(x) + u(x + u(x)): one squaring."""
    return compose(displacement, displacement)


def invert(displacement, iterations: int = 20):
    """v with v(x) = -u(x + v(x)), so that phi_u o phi_v = identity, by fixed-point iteration.

    Converges where u changes by less than a voxel per voxel (Chen et al., Medical Physics 2008);
    where it folds there is no inverse. `compose(u, invert(u))` shows what is left.

    Args:
        displacement: ``(batch, *spatial, D)``, voxels.
        iterations: number of steps; the error shrinks by the field's Lipschitz constant in each.

    Returns:
        ``(batch, *spatial, D)``.

    Raises:
        ValueError: if `iterations` is negative or the shape is not that of a displacement.
    """
    if iterations < 0:
        raise ValueError(f"Expected `iterations` >= 0. Received: {iterations}.")
    displacement = check_displacement(displacement)

    def improve(inverse):
        return -warp(displacement, inverse, border=nearest_border)

    return repeat(improve, iterations, -displacement)


def resize(displacement, shape):
    """Linear resampling to another grid over the same area; values follow the voxel size.

    The grids share their outer edges, as two images of the same object do: voxel i of n lies at
    (i + 1/2) / n of the width. Values are multiplied by new size / old size along each axis.

    Args:
        displacement: ``(batch, *spatial, D)``, voxels of its own grid.
        shape: the D new sizes.

    Returns:
        ``(batch, *shape, D)``, voxels of the new grid.

    Raises:
        ValueError: if `shape` has another length than there are spatial axes.
    """
    displacement = check_displacement(displacement)
    old = spatial_shape(displacement)
    if len(shape) != len(old) or any(isinstance(new, int) and new < 1 for new in shape):
        raise ValueError(f"Expected {len(old)} new sizes, each at least 1. Received: {shape}.")
    for axis, (size, new) in enumerate(zip(old, shape, strict=True), 1):
        if not (isinstance(size, int) and isinstance(new, int) and size == new):
            displacement = along_axis(displacement, _linear_operator(size, new), axis)
    ratio = [
        ops.cast(new, COORDINATE_DTYPE) / ops.cast(size, COORDINATE_DTYPE)
        for size, new in zip(old, shape, strict=True)
    ]
    return displacement * ops.stack(ratio)


def _linear_operator(size, new):
    """Matrix ``(new, size)`` of linear interpolation between grids that share their edges."""
    if isinstance(size, int) and isinstance(new, int):
        at = np.clip((np.arange(new) + 0.5) * (size / new) - 0.5, 0, size - 1)
        hat = 1 - np.abs(at[:, None] - np.arange(size))
        return np.maximum(hat, 0).astype(COORDINATE_DTYPE)
    float_size = ops.cast(size, COORDINATE_DTYPE)
    at = ops.arange(new, dtype=COORDINATE_DTYPE) + 0.5
    at = at * (float_size / ops.cast(new, COORDINATE_DTYPE)) - 0.5
    at = ops.clip(at, 0.0, float_size - 1)
    hat = 1 - ops.abs(at[:, None] - ops.arange(size, dtype=COORDINATE_DTYPE))
    return ops.maximum(hat, 0.0)


def spatial_gradient(field):
    """g[..., c, d] = df_c / dx_d: central differences, one-sided at the edges.

    Args:
        field: ``(batch, *spatial, channels)``; an axis of one voxel has derivative 0.

    Returns:
        ``(batch, *spatial, channels, D)``, per voxel.
    """
    return ops.stack([_difference(field, axis) for axis in range(1, len(field.shape) - 1)], -1)


def _difference(field, axis: int):
    if field.shape[axis] == 1:
        return ops.zeros_like(field)

    def part(start, stop):
        return field[(slice(None),) * axis + (slice(start, stop),)]

    first, last = part(1, 2) - part(0, 1), part(-1, None) - part(-2, -1)
    middle = (part(2, None) - part(0, -2)) / 2
    return ops.concatenate([first, middle, last], axis=axis)


def jacobian_determinant(displacement):
    """det(I + du/dx), the local change of volume: 1 where nothing changes, <= 0 where it folds.

    Derivatives are central differences, one-sided at the edges (as ``numpy.gradient``).

    Args:
        displacement: ``(batch, *spatial, D)``, voxels.

    Returns:
        ``(batch, *spatial)``.

    Raises:
        ValueError: if the shape is not that of a displacement.
    """
    displacement = check_displacement(displacement)
    dimensions = displacement.shape[-1]
    gradient = spatial_gradient(displacement)
    rows = [
        [gradient[..., i, j] + (1.0 if i == j else 0.0) for j in range(dimensions)]
        for i in range(dimensions)
    ]
    return _determinant(rows)


def _determinant(rows):
    """Laplace expansion along the first row: exact and elementwise for the sizes at hand."""
    if len(rows) == 1:
        return rows[0][0]
    total = 0.0
    for j, entry in enumerate(rows[0]):
        minor = [row[:j] + row[j + 1 :] for row in rows[1:]]
        total = total + (-1) ** j * entry * _determinant(minor)
    return total
