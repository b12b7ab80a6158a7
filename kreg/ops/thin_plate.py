"""Thin-plate splines: the smoothest map that takes control points to where they belong."""

import math
from collections.abc import Sequence

from keras import ops

from kreg.ops.coordinates import COORDINATE_DTYPE, identity_grid

#: Squared distances from here down are taken for this one: the root has no slope at zero.
_TINY = 1e-30

#: How many pairs of a voxel and a control point to work on at a time.
_PAIRS = 2**26


def thin_plate_spline(source, target, points, *, regularisation: float = 0.0):
    """f(x) = x + a + B x + sum_i w_i phi(abs(x - s_i)): the smoothest f with f(s_i) = t_i.

    phi is the biharmonic kernel, r^2 log r in 2-D and -r in 3-D. Among all maps f minimises
    ``sum_i abs(f(s_i) - t_i)^2 + regularisation / (8 pi) * integral of abs(D^2 f)^2``, D^2 the
    second derivatives; without regularisation it meets every control point (Bookstein, IEEE PAMI
    1989; Wahba, Spline Models for Observational Data, 1990), in float32 to about 1e-3 voxels for
    tens of points in an image of 256. Differentiable in source, target and points.

    Where the source points all lie on a line (in 3-D: in a plane), what happens across it is
    undetermined, and where two of them coincide, so is the map without regularisation: the
    result is the backend's error for a singular matrix, or values that mean nothing.

    Args:
        source, target: control points s_i and t_i, ``(batch, n, D)``, n at least D + 1, in 2-D
            or 3-D.
        points: where to evaluate, ``(batch, ..., D)`` in the frame of `source`; here and there
            a batch of one serves all.
        regularisation: weight of the bending, in units of length^(4 - D); the larger, the closer
            to the best affine map.

    Returns:
        ``(batch, ..., D)``, float32, in the frame of `target`.

    Raises:
        ValueError: if shapes do not fit, there are fewer than D + 1 control points, or
            `regularisation` is negative.
    """
    source, target = _check(source, target, regularisation)
    points = ops.cast(points, COORDINATE_DTYPE)
    dimensions = source.shape[-1]
    batches = {source.shape[0], points.shape[0]} - {None, 1}
    if len(points.shape) < 3 or points.shape[-1] != dimensions or len(batches) > 1:
        raise ValueError(
            f"Expected `points` of shape (batch, ..., {dimensions}), as many sets of points as "
            "of control points, or one for all (`points[None]`). Received: points "
            f"{tuple(points.shape)}, source {tuple(source.shape)}."
        )
    return points + spline_sum(points, *_fit(source, target - source, regularisation))


def thin_plate_displacement(
    source, target, shape: Sequence, *, regularisation: float = 0.0, evaluate=None
):
    """u(x) = f(x) - x, f the thin-plate spline that takes each `source` to its `target`.

    Warping the moving image by it brings what lies at `target` there to `source` in the fixed.

    Args:
        source: control points in the fixed image, ``(batch, n, D)`` voxels, n at least D + 1.
        target: the same points in the moving image, ``(batch, n, D)`` voxels.
        shape: the D spatial sizes of the fixed image.
        regularisation: as for `thin_plate_spline`, in voxels^(4 - D).
        evaluate: the sum over control points, `spline_sum`; the layer passes a compiled one.

    Returns:
        ``(batch, *shape, D)``, voxels.

    Raises:
        ValueError: as `thin_plate_spline`, or if `shape` does not hold D sizes.
    """
    source, target = _check(source, target, regularisation)
    if len(shape) != source.shape[-1]:
        raise ValueError(
            f"Expected {source.shape[-1]} spatial sizes for points with as many coordinates. "
            f"Received: shape {tuple(shape)}, source {tuple(source.shape)}."
        )
    evaluate = evaluate or spline_sum
    spline = _fit(source, target - source, regularisation)
    grid = identity_grid(shape)[None]
    # Slab by slab: a volume times its control points would fill the memory.
    known = [size for size in (*source.shape[:2], *shape) if isinstance(size, int)]
    if not isinstance(shape[0], int) or math.prod(known) <= _PAIRS:
        return evaluate(grid, *spline)
    thickness = max(1, shape[0] * _PAIRS // math.prod(known))
    starts = range(0, shape[0], thickness)
    return ops.concatenate(
        [evaluate(grid[:, start : start + thickness], *spline) for start in starts], axis=1
    )


def _check(source, target, regularisation: float):
    """Return both sets of control points as float32 tensors, or say what is wrong."""
    source, target = ops.cast(source, COORDINATE_DTYPE), ops.cast(target, COORDINATE_DTYPE)
    shapes = tuple(source.shape), tuple(target.shape)
    if (
        not len(shapes[0]) == len(shapes[1]) == 3
        or shapes[0][-1] not in (2, 3)
        or any(None not in sizes and sizes[0] != sizes[1] for sizes in zip(*shapes, strict=True))
    ):
        raise ValueError(
            "Expected `source` and `target` of equal shape (batch, n, D), D 2 or 3; `[None]` makes "
            f"a batch of one. Received: source {shapes[0]}, target {shapes[1]}."
        )
    dimensions = source.shape[-1]
    numbers = {shape[1] for shape in shapes} - {None}
    if numbers and min(numbers) < dimensions + 1:
        raise ValueError(
            f"Expected at least {dimensions + 1} control points in {dimensions}-D, as an affine "
            f"map needs; add points. Received: source {shapes[0]}."
        )
    if not regularisation >= 0:
        raise ValueError(f"Expected `regularisation` >= 0. Received: {regularisation}.")
    return source, target


def _fit(source, values, regularisation: float) -> tuple:
    """Solve [[K + r I, P], [P^T, 0]] [w; c] = [values; 0], K = phi(distances), P = [1, source].

    Returns:
        What `spline_sum` takes: centre, scale, centred source, weights w, affine part c.
    """
    number, dimensions = ops.shape(source)[1], source.shape[-1]
    # The spline is the same in any frame: no gradient needs to flow through the choice of one. In
    # this one distances are up to about 1, where r^2 log r stays small and rounding costs least.
    centre = ops.stop_gradient(ops.mean(source, axis=1, keepdims=True))
    scale = 2 * ops.max(ops.abs(source - centre), axis=(1, 2), keepdims=True)
    scale = ops.stop_gradient(scale)
    source = (source - centre) / scale  # (batch, n, D)
    kernel = _kernel(_squared_distances(source, source), dimensions)
    if regularisation > 0:
        bending = regularisation / math.prod([scale] * (4 - dimensions))
        kernel = kernel + bending * ops.eye(number, dtype=COORDINATE_DTYPE)
    polynomial = ops.concatenate([ops.ones_like(source[..., :1]), source], axis=-1)
    extra = (0, dimensions + 1)
    upper = ops.concatenate([kernel, polynomial], axis=-1)
    lower = ops.pad(ops.swapaxes(polynomial, 1, 2), [(0, 0), (0, 0), extra])
    system = ops.concatenate([upper, lower], axis=1)  # (batch, n + D + 1, n + D + 1)
    solution = ops.solve(system, ops.pad(values, [(0, 0), extra, (0, 0)]))
    return centre, scale, source, solution[:, :number], solution[:, number:]


def _squared_distances(points, source):
    """d[b, m, i] = abs(points[b, m] - source[b, i])^2, by differences: a product would cancel."""
    axes = zip(ops.unstack(points, axis=-1), ops.unstack(source, axis=-1), strict=True)
    return sum(ops.square(x[:, :, None] - s[:, None, :]) for x, s in axes)


def _kernel(squares, dimensions: int):
    """r^(4 - D), times log r where D is even: the function whose bilaplacian is a point.

    Its sign makes the bending energy of a spline 8 pi sum_ij w_i w_j phi(abs(s_i - s_j)) >= 0.
    """
    distance = ops.sqrt(ops.maximum(squares, _TINY))
    power = math.prod([distance] * (4 - dimensions))
    return power * ops.log(distance) if dimensions % 2 == 0 else -power


def spline_sum(points, centre, scale, source, weights, affine):
    """a + B y + sum_i w_i phi(abs(y - s_i)) at y = (x - centre) / scale, ``(batch, ..., D)``.

    Args:
        points: x, ``(batch, ..., D)``.
        centre, scale: ``(batch, 1, D)`` and ``(batch, 1, 1)``.
        source: s, ``(batch, n, D)``.
        weights: w, ``(batch, n, D)``.
        affine: a and B^T, ``(batch, D + 1, D)``.
    """
    shape, dimensions = ops.shape(points), points.shape[-1]
    rows = (ops.reshape(points, (shape[0], -1, dimensions)) - centre) / scale
    kernel = _kernel(_squared_distances(rows, source), dimensions)  # (batch, points, n)
    total = affine[:, :1]
    for axis, x in enumerate(ops.unstack(rows, axis=-1), 1):
        total = total + x[..., None] * affine[:, axis : axis + 1]
    # Sums, not a product of matrices: the weights cancel one another, and a GPU may round the
    # factors of a product to 10 bits.
    bent = [ops.sum(kernel * w[:, None], axis=-1) for w in ops.unstack(weights, axis=-1)]
    return ops.reshape(total + ops.stack(bent, axis=-1), (-1, *shape[1:-1], dimensions))
