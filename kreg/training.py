"""RegistrationModel: compile and fit for pairs of images."""

import keras
from keras import ops

from kreg.ops.coordinates import check_same_size


def _is_warped(name: str) -> bool:
    """Whether an output is an image to be compared with the fixed one."""
    return name.startswith("warped")


@keras.saving.register_keras_serializable("kreg")
class RegistrationModel(keras.Model):
    """A functional model of {"moving", "fixed"} whose target is its own fixed image.

    It is compiled and fitted without dummy targets::

        model.compile("adam", loss={"warped": NCC(), "displacement": Diffusion()},
                      loss_weights={"warped": 1.0, "displacement": 0.01})
        model.fit(pairs)  # yields {"moving": ..., "fixed": ...}

    Where no targets are given, outputs whose name begins with ``"warped"`` are compared with
    ``"fixed"``, any other output with zeros (which kreg's losses on fields ignore). A ``"mask"``
    in the inputs, ``(batch, *spatial[, 1])``, weights the voxels of the fixed image in the losses
    on ``"warped"`` (and in metrics given as `weighted_metrics`).

    Args:
        inputs: ``{"moving": KerasTensor, "fixed": KerasTensor}``.
        outputs: ``{"warped": ..., "displacement": ...}`` and what else the model returns.

    Raises:
        ValueError: if there are no inputs "moving" and "fixed"; when fitted, if the images are
            integers, or `fixed` and `warped` differ in size.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        inputs = getattr(self, "_inputs_struct", None)
        if not isinstance(inputs, dict) or not {"moving", "fixed"} <= set(inputs):
            raise ValueError(
                'Expected a functional model with inputs {"moving": ..., "fixed": ...} and outputs '
                f'{{"warped": ..., "displacement": ...}}. Received: inputs {inputs}.'
            )

    def call(self, inputs, training=None, mask=None):
        """Return the outputs for a dict of images; keys that are not inputs are left aside."""
        if isinstance(inputs, dict):
            inputs = self._images(inputs)
        return super().call(inputs, training=training, mask=mask)

    def _images(self, inputs):
        names = list(self._inputs_struct)
        missing = [name for name in names if name not in inputs]
        if missing:
            raise ValueError(
                f"Expected images under the keys {names}. Received: {list(inputs)}; add {missing}."
            )
        for name in names:
            dtype = keras.backend.standardize_dtype(inputs[name].dtype)
            if "float" not in dtype:
                raise ValueError(
                    f"Expected `{name}` to hold floating-point values; scale integers first, such "
                    f"as `{name}.astype('float32') / 255`. Received: dtype {dtype}."
                )
        return {name: inputs[name] for name in names}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Return the total loss, the fixed image standing in where no target is given."""
        targets = self._targets(x, y, y_pred)
        weights = self._weights(x, y_pred, sample_weight)
        return super().compute_loss(x, targets, y_pred, weights, training=training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Return the metrics, the fixed image standing in where no target is given."""
        targets = self._targets(x, y, y_pred)
        return super().compute_metrics(x, targets, y_pred, self._weights(x, y_pred, sample_weight))

    def _targets(self, x, y, y_pred):
        if y is not None or not isinstance(y_pred, dict):
            return y
        for name in filter(_is_warped, y_pred):
            check_same_size(x["fixed"], y_pred[name], ("fixed", name))
        return {
            name: x["fixed"] if _is_warped(name) else ops.zeros_like(output)
            for name, output in y_pred.items()
        }

    def _weights(self, x, y_pred, sample_weight):
        if not isinstance(x, dict) or "mask" not in x or not isinstance(y_pred, dict):
            return sample_weight
        if sample_weight is not None:
            raise ValueError(
                'Expected either a "mask" in the inputs or `sample_weight`. Received: both; '
                "multiply the sample weights into the mask."
            )
        return {name: x["mask"] if _is_warped(name) else None for name in y_pred}
