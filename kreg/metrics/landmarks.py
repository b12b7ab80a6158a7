"""The distance between corresponding landmarks, and the scores of data sets made from it."""

from collections.abc import Sequence

import numpy as np
from keras import ops

from kreg.ops.composition import displace_points
from kreg.ops.coordinates import COORDINATE_DTYPE, check_displacement


def landmark_error(
    fixed_points, moving_points, displacement=None, *, spacing: Sequence[float] | None = None
):
    """TRE = ||phi(p) - q||, phi(p) = p + u(p): how far a fixed landmark p lands from its partner q.

    The field maps fixed points to moving points (the images go the other way), so distances are
    measured in the moving image. Between voxels u is linear; beyond its grid it goes on as at
    its border. A landmark that is NaN has error NaN: fill pairs up with NaN where they have
    unequal numbers of landmarks.

    Args:
        fixed_points, moving_points: ``(batch, n, D)``, voxel indices in axis order ij.
        displacement: ``(batch, *spatial, D)``, voxels; None for the error before registration.
        spacing: distance of the moving image's voxel centres along each axis; 1 where None.

    Returns:
        ``(batch, n)``, voxels or the unit of the spacing.

    Raises:
        ValueError: if the shapes do not fit, or a spacing is not positive.
    """
    points = ops.cast(fixed_points, COORDINATE_DTYPE)
    partners = ops.cast(moving_points, COORDINATE_DTYPE)
    shapes = tuple(points.shape), tuple(partners.shape)
    if len(shapes[0]) != 3 or shapes[0] != shapes[1] or shapes[0][-1] not in (2, 3):
        raise ValueError(
            "Expected fixed and moving points of equal shape (batch, n, D), D 2 or 3; "
            f"`points[None]` for those of one pair. Received: {shapes[0]} and {shapes[1]}."
        )
    if displacement is not None:
        field = check_displacement(displacement)
        if (field.shape[0], field.shape[-1]) != (shapes[0][0], shapes[0][-1]):
            raise ValueError(
                "Expected one displacement field for each set of points, with as many components. "
                f"Received: displacement {tuple(field.shape)}, points {shapes[0]}."
            )
        points = displace_points(points, field)
    step = np.ones(shapes[0][-1]) if spacing is None else np.asarray(spacing, "float64")
    if step.shape != shapes[0][-1:] or not np.all(step > 0):
        raise ValueError(
            f"Expected one positive spacing for each of the {shapes[0][-1]} axes. "
            f"Received: {spacing}."
        )
    offset = (points - partners) * ops.convert_to_tensor(step, COORDINATE_DTYPE)
    return ops.sqrt(ops.sum(ops.square(offset), axis=-1))


def _distances(points, reference):
    """||p - q||, ``(..., n)``, and the number of axes D; ValueError if the shapes do not fit."""
    points = ops.cast(points, COORDINATE_DTYPE)
    reference = ops.cast(reference, COORDINATE_DTYPE)
    shapes = tuple(points.shape), tuple(reference.shape)
    if len(shapes[0]) < 2 or shapes[0] != shapes[1] or shapes[0][-1] not in (2, 3):
        raise ValueError(
            "Expected points and reference of equal shape (n, D) or (batch, n, D), D 2 or 3. "
            f"Received: {shapes[0]} and {shapes[1]}."
        )
    return ops.sqrt(ops.sum(ops.square(points - reference), axis=-1)), shapes[0][-1]


def naed(points, reference, normaliser):
    """NAED = mean_i ||p_i - q_i|| / normaliser: the mean distance as a share of the image.

    Publications take the image's height or its diagonal as the normaliser: say which. A landmark
    that is NaN is left out; infinite points, those of a registration that failed, give infinity.

    Args:
        points: landmarks carried over by a transform, ``(n, D)`` or ``(batch, n, D)``.
        reference: where they should lie, of the same shape and in the same unit.
        normaliser: a length in that unit, one for all or ``(batch,)``.

    Returns:
        ``()`` or ``(batch,)``; NaN where there is no landmark.

    Raises:
        ValueError: if the shapes do not fit, or the normaliser is not positive.
    """
    distance, _ = _distances(points, reference)
    length = np.asarray(normaliser, "float64")
    if not np.all(length > 0):
        raise ValueError(
            "Expected a positive `normaliser`: the height or the diagonal of the image. "
            f"Received: {normaliser}."
        )
    present = ops.logical_not(ops.isnan(distance))
    total = ops.sum(ops.where(present, distance, 0.0), axis=-1)
    mean = total / ops.sum(ops.cast(present, COORDINATE_DTYPE), axis=-1)
    return mean / ops.convert_to_tensor(length, COORDINATE_DTYPE)


def rtre(points, reference, shape: Sequence[int]):
    """rTRE = ||p - q|| / diagonal, diagonal^2 = sum of the image's squared sizes.

    The relative error of ANHIR (Borovec et al., IEEE Transactions on Medical Imaging 2020), whose
    averages are over the median, the mean and the maximum of each pair. A landmark that is NaN
    has error NaN; infinite points, those of a registration that failed, have error infinity.

    Args:
        points: landmarks carried over by a transform, ``(n, D)`` or ``(batch, n, D)``, voxels.
        reference: where they should lie, of the same shape.
        shape: the spatial sizes of the image that `reference` lies in.

    Returns:
        ``(n,)`` or ``(batch, n)``.

    Raises:
        ValueError: if the shapes do not fit, or a size is not positive.
    """
    distance, dimensions = _distances(points, reference)
    sizes = np.asarray(shape, "float64")
    if sizes.shape != (dimensions,) or not np.all(sizes > 0):
        raise ValueError(
            f"Expected `shape` to be {dimensions} positive sizes, without batch and channels. "
            f"Received: {shape}."
        )
    return distance / ops.convert_to_tensor(np.sqrt(np.sum(sizes**2)), COORDINATE_DTYPE)


def fire_auc(errors):
    """AUC = sum_{i=1..25} c_i / 2500, c_i the percentage of pairs with an error below i pixels.

    The score of FIRE (Hernandez-Matas et al., Modeling and Artificial Intelligence in
    Ophthalmology 2017): 1 where every pair is below one pixel, 0 where none is below 25.

    Args:
        errors: the mean landmark error of each pair at native size, ``(pairs,)``, pixels; infinite
            (or NaN) for a pair that failed.

    Returns:
        ``()`` in [0, 1].

    Raises:
        ValueError: if `errors` is not one value a pair, or there is no pair.
    """
    errors = ops.cast(errors, COORDINATE_DTYPE)
    if len(errors.shape) != 1 or errors.shape[0] == 0:
        raise ValueError(
            "Expected one error for each pair, (pairs,), and at least one pair; average over a "
            f"pair's landmarks first. Received: shape {tuple(errors.shape)}."
        )
    limits = ops.arange(1, 26, dtype=COORDINATE_DTYPE)
    return ops.mean(ops.cast(errors[:, None] < limits, COORDINATE_DTYPE))
