"""How regular a deformation is: folding and the spread of local volume change."""

from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from kreg.ops.coordinates import COORDINATE_DTYPE
from kreg.ops.displacement import jacobian_determinant

#: Voxels left out along each edge, where differences are one-sided (Learn2Reg's evaluation).
_BORDER = 2


@dataclass(frozen=True, eq=False)
class JacobianStatistics:
    """What `jacobian_statistics` finds, one value a sample, each ``(batch,)``.

    Attributes:
        folding: fraction of the voxels with det <= 0; 0 is best.
        minimum, maximum: of det over all voxels; 1 where the volume is kept.
        sd_log: SDlogJ, the spread of local volume change; 0 for a translation or a rotation.
    """

    folding: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray
    sd_log: np.ndarray


def folding_fraction(displacement):
    """|{x : det(I + du/dx) <= 0}| / |{x}|: the share of voxels where the map folds; 0 is best.

    Args:
        displacement: ``(batch, *spatial, D)``, voxels.

    Returns:
        ``(batch,)`` in [0, 1].

    Raises:
        ValueError: if the shape is not that of a displacement.
    """
    folded = ops.cast(jacobian_determinant(displacement) <= 0, COORDINATE_DTYPE)
    return ops.mean(folded, axis=tuple(range(1, len(folded.shape))))


def jacobian_statistics(displacement) -> JacobianStatistics:
    """Folding, extremes and SDlogJ = std(log(clip(det + 3, 1e-9, 1e9))) of det(I + du/dx).

    SDlogJ is Learn2Reg's: of central differences, two voxels along each edge left out, the 3
    added to the determinant so that folded voxels have a logarithm. The others are over all
    voxels.

    Args:
        displacement: ``(batch, *spatial, D)``, voxels; at least 5 voxels along each axis.

    Returns:
        `JacobianStatistics`, its values ``(batch,)``.

    Raises:
        ValueError: if the shape is not that of a displacement, or an axis is too short.
    """
    determinant = ops.convert_to_numpy(jacobian_determinant(displacement)).astype("float64")
    if min(determinant.shape[1:]) <= 2 * _BORDER:
        raise ValueError(
            f"Expected more than {2 * _BORDER} voxels along each axis, since SDlogJ leaves out "
            f"{_BORDER} at each end; `folding_fraction` has no such need. "
            f"Received: spatial shape {determinant.shape[1:]}."
        )
    axes = tuple(range(1, determinant.ndim))
    inner = determinant[(slice(None), *[slice(_BORDER, -_BORDER)] * len(axes))]
    return JacobianStatistics(
        folding=np.mean(determinant <= 0, axis=axes),
        minimum=determinant.min(axis=axes),
        maximum=determinant.max(axis=axes),
        sd_log=np.std(np.log(np.clip(inner + 3, 1e-9, 1e9)), axis=axes),
    )


@keras.saving.register_keras_serializable("kreg.metrics")
class FoldingFraction(keras.metrics.Mean):
    """The share of voxels where the map folds, det(I + du/dx) <= 0; smaller is better, 0 is best.

    Call arguments:
        y_true: ignored.
        y_pred: displacement ``(batch, *spatial, D)``, voxels.
        sample_weight: None or ``(batch,)``.
    """

    def __init__(self, name="folding_fraction", dtype=None):
        super().__init__(name=name, dtype=dtype)

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add the displacements of one batch."""
        if sample_weight is not None and len(sample_weight.shape) > 2:
            raise ValueError(
                "Expected sample weights of shape (batch,) for a metric on a field; masks weight "
                f"images only. Received: shape {tuple(sample_weight.shape)}."
            )
        return super().update_state(folding_fraction(y_pred), sample_weight)
