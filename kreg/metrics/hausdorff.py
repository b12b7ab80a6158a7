"""The distance between the surfaces of structures."""

from collections.abc import Sequence

import numpy as np
from keras import ops
from scipy import ndimage

from kreg.ops.coordinates import check_same_size


def hd95(
    fixed, warped, labels: Sequence[int], *, spacing: Sequence[float] | None = None
) -> np.ndarray:
    """HD95_l = max(P95 of d(a, B) over a in A, P95 of d(b, A) over b in B); 0 is best.

    A and B are the surfaces of label l in both maps: its voxels with a neighbour across a face
    that lies outside the label, or outside the image. d(a, B) is the distance from the centre of
    a to the nearest centre of B. The larger of the two directions' 95th percentiles (interpolated
    linearly between ranks), as in MONAI; to pool both directions first gives smaller values.

    A label that neither map holds has no surface: NaN, for ``numpy.nanmean`` to leave aside. One
    that only one map holds is lost: infinity.

    Args:
        fixed, warped: label maps ``(batch, *spatial)`` or ``(batch, *spatial, 1)``, integers or
            whole floating-point numbers; warp them with `kreg.ops.sample_nearest`.
        labels: which ones; 0, the background, usually not among them.
        spacing: distance of voxel centres along each axis; 1 where None.

    Returns:
        ``(batch, len(labels))``, float64, voxels or the unit of the spacing.

    Raises:
        ValueError: if the shapes differ or are not those of 2-D or 3-D maps, `labels` is empty or
            holds one twice, or a spacing is not positive.
    """
    fixed, warped = (ops.convert_to_numpy(x) for x in (fixed, warped))
    check_same_size(fixed, warped)
    if fixed.ndim > 3 and fixed.shape[-1] == 1:
        fixed, warped = fixed[..., 0], warped[..., 0]
    if fixed.ndim not in (3, 4):
        raise ValueError(
            "Expected label maps of shape (batch, *spatial) or (batch, *spatial, 1) in 2-D or 3-D; "
            f"`labels[None]` for those of one pair. Received: shape {fixed.shape}."
        )
    labels = [int(label) for label in labels]
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(
            "Expected `labels` to list each label once, such as "
            f"`numpy.unique(fixed)[1:]`. Received: {labels}."
        )
    step = np.ones(fixed.ndim - 1) if spacing is None else np.asarray(spacing, "float64")
    if step.shape != (fixed.ndim - 1,) or not np.all(step > 0):
        raise ValueError(
            f"Expected one positive spacing for each of the {fixed.ndim - 1} axes. "
            f"Received: {spacing}."
        )
    return np.array(
        [
            [_hd95(f == label, w == label, step) for label in labels]
            for f, w in zip(fixed, warped, strict=True)
        ]
    )


def _hd95(fixed, warped, spacing) -> float:
    """HD95 of two sets of voxels, given as booleans."""
    if not fixed.any() or not warped.any():
        return np.inf if fixed.any() or warped.any() else np.nan
    # Only the box around both: all distances run within it.
    (box,) = ndimage.find_objects((fixed | warped).astype("int8"))
    surfaces = [_surface(x[box]) for x in (fixed, warped)]
    return max(
        np.percentile(ndimage.distance_transform_edt(~to, sampling=spacing)[of], 95)
        for of, to in (surfaces, surfaces[::-1])
    )


def _surface(voxels):
    """The voxels with a neighbour across a face that is none of them, or beyond the edge."""
    return voxels & ~ndimage.binary_erosion(voxels)
