"""Any image loss, weighted by the joint saliency of both images."""

import keras
from keras import ops

from kreg.losses.image_loss import ImageLoss
from kreg.ops.intensity import TINY, voxel_weights
from kreg.ops.saliency import TensorCorrelation


@keras.saving.register_keras_serializable("kreg")
class SaliencyWeighted(ImageLoss):
    """loss(f, w) with the voxels weighted by J^p, J the joint saliency of both images.

    What one image shows and the other lacks hardly counts, where the edges of both agree everything
    does. For training (``loss={"warped": SaliencyWeighted(NCC())}``) and for `kreg.register` with
    `FreeForm` or `Velocity`. No gradient flows through the weights, which are relative: a loss that
    is a mean stays one, so nothing is gained by making edges disagree. Use it where images nearly
    meet, after a training or a registration without: edges far apart count for little, and do not
    pull.

    Args:
        loss: a `kreg.losses.ImageLoss` (but `MINE`, which samples voxels), or a Keras loss whose
            ``call`` returns one value a voxel, such as ``keras.losses.MeanSquaredError()``; of
            either not the reduction.
        saliency: the kind of J, `kreg.ops.TensorCorrelation` or `kreg.ops.OriginalSaliency`.
        power: p, not negative.

    Call arguments:
        y_true: fixed images, ``(batch, *spatial, channels)``; spatial sizes must be known.
        y_pred: warped images, same shape.
        sample_weight: None, ``(batch,)``, or a mask ``(batch, *spatial[, 1])``, which multiplies
            the weights.

    Raises:
        ValueError: if `power` is negative or the loss is `MINE`; when called, if the shapes do not
            fit or the loss has no value for each voxel.
    """

    def __init__(
        self,
        loss,
        saliency=TensorCorrelation(),  # noqa: B008, it is frozen
        power=1.0,
        name="saliency_weighted",
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if not power >= 0:
            raise ValueError(f"Expected `power` >= 0. Received: {power}.")
        if hasattr(loss, "adopt"):
            raise ValueError(
                "Expected a loss without a network of its own, such as `NCC` or "
                f"`MutualInformation`. Received: {loss}."
            )
        self.loss = loss
        self.saliency = saliency
        self.power = power

    def compare(self, fixed, warped, mask):
        """Return the loss of each pair, its voxels weighted, ``(batch,)``."""
        inside = None
        if mask is not None:
            inside = voxel_weights(mask, fixed)
            # What is masked may be NaN, and saliency looks around.
            fixed, warped = (ops.where(inside > 0, image, 0.0) for image in (fixed, warped))
        weights = ops.stop_gradient(ops.power(self.saliency(fixed, warped), self.power))
        weights = weights if inside is None else weights * inside
        if isinstance(self.loss, ImageLoss):
            return self.loss.compare(fixed, warped, weights)
        values = self.loss.call(fixed, warped)
        if len(values.shape) != len(fixed.shape) - 1:
            raise ValueError(
                "Expected an image loss of kreg, or a Keras loss with one value a voxel, "
                f"(batch, *spatial). Received: {self.loss}, with values {tuple(values.shape)} for "
                f"images {tuple(fixed.shape)}."
            )
        axes = tuple(range(1, len(values.shape)))
        weights = weights[..., 0]
        return ops.sum(weights * values, axis=axes) / (ops.sum(weights, axis=axes) + TINY)

    def get_config(self):
        """Return the constructor arguments."""
        return {
            **super().get_config(),
            "loss": keras.saving.serialize_keras_object(self.loss),
            "saliency": keras.saving.serialize_keras_object(self.saliency),
            "power": self.power,
        }

    @classmethod
    def from_config(cls, config):
        """Rebuild loss and saliency, then the weighted loss."""
        rebuilt = {
            key: keras.saving.deserialize_keras_object(config[key]) for key in ("loss", "saliency")
        }
        return cls(**{**config, **rebuilt})
