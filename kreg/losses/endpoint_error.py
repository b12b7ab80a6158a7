"""The distance between a displacement and the known one."""

import keras
from keras import ops

from kreg.losses.field_loss import sample_mean
from kreg.ops.coordinates import check_displacement, check_same_size


@keras.saving.register_keras_serializable("kreg")
def endpoint_error(truth, displacement, *, epsilon=1e-3):
    """mean over voxels of sqrt(||u - v||^2 + eps^2) - eps, v the truth; 0 is best.

    Args:
        truth: v, ``(batch, *spatial, D)``, voxels.
        displacement: u, same shape.
        epsilon: below this distance, in voxels, the penalty is quadratic; positive.

    Returns:
        ``(batch,)``, voxels.

    Raises:
        ValueError: if the shapes differ or are not those of displacements, or `epsilon` is not
            positive.
    """
    truth = check_displacement(truth, "truth")
    displacement = check_displacement(displacement)
    check_same_size(truth, displacement, ("truth", "displacement"))
    if not epsilon > 0:
        raise ValueError(f"Expected `epsilon` > 0 voxels. Received: {epsilon}.")
    square = ops.sum(ops.square(displacement - truth), axis=-1)
    return sample_mean(ops.sqrt(square + epsilon**2) - epsilon)


@keras.saving.register_keras_serializable("kreg")
class EndpointError(keras.losses.Loss):
    """loss = mean over voxels of ||u - v||: how far each voxel is sent from where it belongs.

    The same as `kreg.losses.endpoint_error`: supervision by displacements that one has drawn
    oneself (`kreg.data.KnownTransforms`), or that are known otherwise, as for optical flow.

    Args:
        epsilon: below this distance, in voxels, the penalty is quadratic; positive.

    Call arguments:
        y_true: the known displacement, ``(batch, *spatial, D)``, voxels.
        y_pred: the predicted one, same shape.
        sample_weight: None or ``(batch,)``.

    Raises:
        ValueError: when called, if the shapes do not fit or `epsilon` is not positive.
    """

    #: `kreg.RegistrationModel` gives zeros to no such loss where the data hold no truth.
    needs_target = True

    def __init__(
        self, epsilon=1e-3, name="endpoint_error", reduction="sum_over_batch_size", dtype=None
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.epsilon = epsilon

    def call(self, y_true, y_pred):
        """Return the mean distance of each sample, ``(batch,)``."""
        return endpoint_error(y_true, y_pred, epsilon=self.epsilon)

    def get_config(self):
        """Return the constructor arguments."""
        return {**super().get_config(), "epsilon": self.epsilon}
