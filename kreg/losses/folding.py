"""A penalty on folding."""

import keras
from keras import ops

from kreg.losses.field_loss import FieldLoss, compiled_penalty, sample_mean
from kreg.ops.displacement import jacobian_determinant


def folding(displacement, margin=0.1):
    """mean over voxels of max(0, margin - det(I + du/dx)).

    Args:
        displacement: ``(batch, *spatial, D)``, voxels.
        margin: volumes below this share of the original are penalised; 0 only where it folds.

    Returns:
        ``(batch,)``.
    """
    return compiled_penalty(_folding, margin=margin)(displacement)


def _folding(displacement, margin):
    return sample_mean(ops.relu(margin - jacobian_determinant(displacement)))


@keras.saving.register_keras_serializable("kreg")
class Folding(FieldLoss):
    """mean of max(0, margin - det(I + du/dx)): 0 for a map that nowhere shrinks below margin.

    Args:
        margin: volumes below this share of the original are penalised; a little above 0 keeps
            a trained network from folding on pairs that it has not seen.

    Call arguments:
        y_true: ignored.
        y_pred: displacement ``(batch, *spatial, D)``, voxels.
    """

    def __init__(self, margin=0.1, name="folding", reduction="sum_over_batch_size", dtype=None):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.margin = margin

    def penalise(self, field):
        """Return the folding penalty of each displacement, ``(batch,)``."""
        return folding(field, self.margin)

    def get_config(self):
        """Return the constructor arguments."""
        return {**super().get_config(), "margin": self.margin}
