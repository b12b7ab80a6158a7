"""How far the maps of both directions are from being each other's inverse."""

import keras
from keras import ops

from kreg import backend
from kreg.losses.field_loss import FieldLoss, sample_mean
from kreg.ops.coordinates import COORDINATE_DTYPE, check_displacement, check_same_size
from kreg.ops.displacement import compose


def _mean_square(outer, inner):
    return sample_mean(ops.sum(ops.square(compose(outer, inner)), axis=-1))


# Two boundaries, one for each warp: see `kreg.backend.compiled`.
_compiled = backend.compiled(_mean_square)


@keras.saving.register_keras_serializable("kreg")
def inverse_consistency(forward, backward):
    """(E(f, b) + E(b, f)) / 2, E(f, b) = mean over voxels x of ||f(x) + b(x + f(x))||^2.

    0 where the two maps are each other's inverse (Christensen & Johnson, IEEE TMI 2001). Beyond
    its grid a field goes on as at its border. Gradients flow to both fields.

    Args:
        forward, backward: displacements ``(batch, *spatial, D)``, voxels of one common grid.

    Returns:
        ``(batch,)``, voxels squared.

    Raises:
        ValueError: if the shapes differ or are not those of displacements.
    """
    forward = check_displacement(forward, "forward")
    backward = check_displacement(backward, "backward")
    check_same_size(forward, backward, ("forward", "backward"))
    return (_compiled(backward, forward) + _compiled(forward, backward)) / 2


@keras.saving.register_keras_serializable("kreg")
class InverseConsistency(FieldLoss):
    """mean of ||f(x) + b(x + f(x))||^2 and of ||b(x) + f(x + b(x))||^2: 0 for inverse maps.

    The same as `kreg.losses.inverse_consistency`, for a pair of fields in one tensor, since a
    Keras loss takes one output: ``Concatenate(name="both")([forward, backward])``.

    Call arguments:
        y_true: ignored.
        y_pred: ``(batch, *spatial, 2 D)``: the D components of the forward displacement, then
            those of the backward one, voxels.

    Raises:
        ValueError: when called, if there are not twice as many components as spatial axes.
    """

    def __init__(self, name="inverse_consistency", reduction="sum_over_batch_size", dtype=None):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def call(self, y_true, y_pred):
        """Return one value a sample, ``(batch,)``."""
        field = ops.cast(y_pred, COORDINATE_DTYPE)
        shape = tuple(field.shape)
        if len(shape) not in (4, 5) or shape[-1] != 2 * (len(shape) - 2):
            raise ValueError(
                "Expected a forward and a backward displacement in one tensor, "
                "(batch, *spatial, 2 D), with twice as many components as there are spatial axes; "
                "concatenate the two along the last axis. "
                f"Received: shape {shape}."
            )
        return self.penalise(field)

    def penalise(self, field):
        """Return the inconsistency of each pair ``(*spatial, 2 D)``, ``(batch,)``."""
        forward, backward = ops.split(field, 2, axis=-1)
        return inverse_consistency(forward, backward)
