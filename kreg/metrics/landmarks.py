"""The distance between corresponding landmarks."""

from collections.abc import Sequence

import numpy as np
from keras import ops

from kreg.ops.coordinates import COORDINATE_DTYPE, check_displacement
from kreg.ops.interpolation import nearest_border, sample


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
        points = points + sample(field, points, border=nearest_border)
    step = np.ones(shapes[0][-1]) if spacing is None else np.asarray(spacing, "float64")
    if step.shape != shapes[0][-1:] or not np.all(step > 0):
        raise ValueError(
            f"Expected one positive spacing for each of the {shapes[0][-1]} axes. "
            f"Received: {spacing}."
        )
    offset = (points - partners) * ops.convert_to_tensor(step, COORDINATE_DTYPE)
    return ops.sqrt(ops.sum(ops.square(offset), axis=-1))
