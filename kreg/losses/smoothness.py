"""Smoothness of a displacement or velocity field."""

import keras
from keras import ops

from kreg.losses.field_loss import (
    FieldLoss,
    compiled_penalty,
    difference,
    forward_differences,
    sample_mean,
)


def _mean_over_axes(terms, field):
    """The mean of the terms of all axes; 0 for a field of a single voxel."""
    if not terms:
        return ops.zeros_like(field[(slice(None),) + (0,) * (len(field.shape) - 1)])
    return sum(sample_mean(term) for term in terms) / len(terms)


def diffusion(field):
    """mean over voxels, components and axes d of (u(x + e_d) - u(x))^2.

    Args:
        field: displacement or velocity ``(batch, *spatial, D)``, voxels.

    Returns:
        ``(batch,)``.
    """
    return compiled_penalty(_diffusion)(field)


def _diffusion(field):
    return _mean_over_axes([ops.square(d) for d in forward_differences(field)], field)


@keras.saving.register_keras_serializable("kreg")
class Diffusion(FieldLoss):
    """mean of squared first differences of the field: smooth everywhere (VoxelMorph's "l2").

    Call arguments:
        y_true: ignored.
        y_pred: displacement or velocity ``(batch, *spatial, D)``, voxels.
    """

    def __init__(self, name="diffusion", reduction="sum_over_batch_size", dtype=None):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def penalise(self, field):
        """Return the diffusion energy of each field, ``(batch,)``."""
        return diffusion(field)


def total_variation(field, epsilon=1e-3):
    """mean over voxels, components and axes d of sqrt((u(x + e_d) - u(x))^2 + eps^2) - eps.

    Charbonnier's smooth absolute value: l1 where differences exceed `epsilon`, squares below.

    Args:
        field: displacement or velocity ``(batch, *spatial, D)``, voxels.
        epsilon: where the penalty turns from quadratic to linear, voxels; positive.

    Returns:
        ``(batch,)``.

    Raises:
        ValueError: if `epsilon` is not positive (the gradient at 0 would be NaN).
    """
    if not epsilon > 0:
        raise ValueError(f"Expected `epsilon` > 0 voxels. Received: {epsilon}.")
    return compiled_penalty(_total_variation, epsilon=epsilon)(field)


def _total_variation(field, epsilon):
    terms = [ops.sqrt(ops.square(d) + epsilon**2) - epsilon for d in forward_differences(field)]
    return _mean_over_axes(terms, field)


@keras.saving.register_keras_serializable("kreg")
class TotalVariation(FieldLoss):
    """mean of sqrt(d^2 + eps^2) - eps over first differences d: piecewise smooth, edges allowed.

    Args:
        epsilon: where the penalty turns from quadratic to linear, voxels; positive.

    Call arguments:
        y_true: ignored.
        y_pred: displacement or velocity ``(batch, *spatial, D)``, voxels.
    """

    def __init__(
        self, epsilon=1e-3, name="total_variation", reduction="sum_over_batch_size", dtype=None
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.epsilon = epsilon

    def penalise(self, field):
        """Return the total variation of each field, ``(batch,)``."""
        return total_variation(field, self.epsilon)

    def get_config(self):
        """Return the constructor arguments."""
        return {**super().get_config(), "epsilon": self.epsilon}


def bending_energy(field):
    """mean over voxels and components of sum over axes i, j of (d^2 u / dx_i dx_j)^2.

    Zero for every affine map, unlike `diffusion` (Rueckert et al., IEEE TMI 1999). Mixed
    derivatives count twice, as i, j and j, i.

    Args:
        field: displacement or velocity ``(batch, *spatial, D)``, voxels.

    Returns:
        ``(batch,)``.
    """
    return compiled_penalty(_bending_energy)(field)


def _bending_energy(field):
    axes = [axis for axis in range(1, len(field.shape) - 1) if field.shape[axis] != 1]
    total = _mean_over_axes([], field)
    for i, axis in enumerate(axes):
        first = difference(field, axis)
        if field.shape[axis] != 2:
            total = total + sample_mean(ops.square(difference(first, axis)))
        for other in axes[i + 1 :]:
            total = total + 2 * sample_mean(ops.square(difference(first, other)))
    return total


@keras.saving.register_keras_serializable("kreg")
class BendingEnergy(FieldLoss):
    """mean of squared second derivatives of the field; blind to affine maps.

    Call arguments:
        y_true: ignored.
        y_pred: displacement or velocity ``(batch, *spatial, D)``, voxels.
    """

    def __init__(self, name="bending_energy", reduction="sum_over_batch_size", dtype=None):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def penalise(self, field):
        """Return the bending energy of each field, ``(batch,)``."""
        return bending_energy(field)
