"""RegistrationModel: compile and fit for pairs of images."""

import keras
from keras import ops

from kreg.ops.coordinates import check_same_size


def _is_warped(name: str) -> bool:
    """Whether an output is an image to be compared with the fixed one."""
    return name.startswith("warped")


def _losses(structure):
    """Every loss in what `compile` takes, and those that they are made of."""
    for loss in keras.tree.flatten(structure):
        yield loss
        yield from _losses(getattr(loss, "losses", ()))


class _EndEpochs(keras.callbacks.Callback):
    """Ends on the data set the epochs that a restored training has behind it.

    Keras itself starts the data set anew: a second time the pairs of the first epochs.
    """

    def __init__(self, data, next_epoch):
        super().__init__()
        self.data, self.next_epoch = data, next_epoch

    def on_epoch_begin(self, epoch, logs=None):
        for _ in range(self.next_epoch, epoch):
            self.data.on_epoch_end()
        self.next_epoch = epoch + 1


@keras.saving.register_keras_serializable("kreg")
class RegistrationModel(keras.Model):
    """A functional model of {"moving", "fixed"} whose target is its own fixed image.

    It is compiled and fitted without dummy targets::

        model.compile("adam", loss={"warped": NCC(), "displacement": Diffusion()},
                      loss_weights={"warped": 1.0, "displacement": 0.01})
        model.fit(pairs)  # yields {"moving": ..., "fixed": ...}

    Where no targets are given, an output ``"warped_X"`` is compared with ``"fixed_X"`` of the
    same data (which need not be an input of the model), any other whose name begins with
    ``"warped"`` with ``"fixed"``; points of the fixed image that the model has carried over,
    ``"X"``, with ``"moving_X"``; all else with zeros (which kreg's losses on fields ignore; one
    that says ``needs_target = True`` is refused there). A
    ``"mask"`` in the data, ``(batch, *spatial[, 1])``, weights the voxels of the fixed image in
    the losses on ``"warped"`` (and in metrics given as `weighted_metrics`).

    A loss with a network of its own (`kreg.losses.MINE`) is trained beside the model, which keeps
    the network among its weights, in files too. Under a ``tf.distribute`` strategy model and
    losses are made within its scope; a running average such as that of
    ``MINE(bias_corrected=True)`` then is each device's own.

    Args:
        inputs: ``{"moving": KerasTensor, "fixed": KerasTensor}``.
        outputs: ``{"warped": ..., "displacement": ...}`` and what else the model returns.

    Raises:
        ValueError: if there are no inputs "moving" and "fixed"; when fitted, if the images are
            integers, `fixed` and `warped` differ in size, an input such as "moving_labels" comes
            without its partner "fixed_labels", or a loss that needs a target, such as
            `kreg.losses.EndpointError`, has none.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        inputs = getattr(self, "_inputs_struct", None)
        if not isinstance(inputs, dict) or not {"moving", "fixed"} <= set(inputs):
            raise ValueError(
                'Expected a functional model with inputs {"moving": ..., "fixed": ...} and outputs '
                f'{{"warped": ..., "displacement": ...}}. Received: inputs {inputs}.'
            )

    def compile(self, optimizer="rmsprop", loss=None, *args, **kwargs):
        """Compile as any Keras model, and track the networks that losses own."""
        networks = getattr(self, "_loss_networks", [])
        while networks:  # those of an earlier compile
            networks.pop()
        for each in _losses(loss):
            if hasattr(each, "adopt"):
                each.adopt(self)
        super().compile(optimizer, loss, *args, **kwargs)

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        *args,
        initial_epoch=0,
        **kwargs,
    ):
        """Fit as any Keras model; a data set goes on where a restored training stopped.

        With ``keras.callbacks.BackupAndRestore`` among the callbacks, the same program started
        again goes on with the epoch that was interrupted. A ``keras.utils.PyDataset``, as those
        of `kreg.data` are, is then told of the ends of the epochs before, so that it draws what
        it would have drawn; where you pass `initial_epoch` it is taken to be there already. The
        weights are those of a training without interruption if nothing else draws at random:
        with ``shuffle=False`` (by default Keras shuffles the batches, too, in an order that no
        backup holds), one worker, no `kreg.losses.MINE` and no dropout.
        """
        if isinstance(x, keras.utils.PyDataset):
            callbacks = [*keras.tree.flatten(callbacks or []), _EndEpochs(x, initial_epoch)]
        return super().fit(
            x,
            y,
            batch_size,
            epochs,
            verbose,
            callbacks,
            *args,
            initial_epoch=initial_epoch,
            **kwargs,
        )

    def compile_from_config(self, config):
        """Compile as the saved model was: Keras does so only where `compile` is its own."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

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
        targets = {name: self._target(x, name) for name in y_pred}
        for name in filter(_is_warped, y_pred):
            fixed, warped = targets[name], y_pred[name]
            if self._takes_any_channels(name):
                fixed, warped = fixed[..., :1], warped[..., :1]
            check_same_size(fixed, warped, ("fixed" + name.removeprefix("warped"), name))
        return {
            name: ops.zeros_like(y_pred[name]) if target is None else target
            for name, target in targets.items()
        }

    def _target(self, x, name):
        """Return what an output is compared with, None where it has no partner in the data."""
        kind = name.removeprefix("warped") if _is_warped(name) else f"_{name}"
        own, partner = ("moving", "fixed") if _is_warped(name) else ("fixed", "moving")
        if partner + kind in x:
            return x[partner + kind]
        if own + kind in self._inputs_struct:
            raise ValueError(
                f'Expected "{partner + kind}" in the data, which the output "{name}" is compared '
                f'with. Received: "{own + kind}" without it, in {list(x)}.'
            )
        if _is_warped(name):
            return x["fixed"]
        if any(getattr(loss, "needs_target", False) for loss in _losses(self._loss_of(name))):
            raise ValueError(
                f'Expected "{partner + kind}" in the data, the truth that the loss of the output '
                f'"{name}" compares it with (`kreg.data.KnownTransforms` draws some). '
                f"Received: {list(x)}."
            )
        return None

    def _loss_of(self, name):
        loss = self.loss
        if isinstance(loss, (list, tuple)):  # Keras takes them in the order of the sorted names
            loss = dict(zip(sorted(self._outputs_struct), loss, strict=False))
        return loss.get(name) if isinstance(loss, dict) else loss

    def _takes_any_channels(self, name):
        return getattr(self._loss_of(name), "any_channels", False)

    def _weights(self, x, y_pred, sample_weight):
        if not isinstance(x, dict) or "mask" not in x or not isinstance(y_pred, dict):
            return sample_weight
        if sample_weight is not None:
            raise ValueError(
                'Expected either a "mask" in the inputs or `sample_weight`. Received: both; '
                "multiply the sample weights into the mask."
            )
        return {name: x["mask"] if _is_warped(name) else None for name in y_pred}
