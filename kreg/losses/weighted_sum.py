"""Several losses on one output."""

import keras


@keras.saving.register_keras_serializable("kreg")
class WeightedSum(keras.losses.Loss):
    """loss = sum_k weight_k loss_k: several losses on one output of a model.

    Each loss keeps its own reduction and dtype.

    Args:
        losses: Keras losses, such as ``[Diffusion(), Folding()]``.
        weights: one number for each.

    Raises:
        ValueError: if there are not as many weights as losses.
    """

    def __init__(self, losses, weights, name="weighted_sum"):
        super().__init__(name=name)
        if len(losses) != len(weights) or not losses:
            raise ValueError(
                "Expected at least one loss and as many weights as losses. "
                f"Received: {len(losses)} losses, {len(weights)} weights."
            )
        self.losses = list(losses)
        self.weights = [float(weight) for weight in weights]

    def __call__(self, y_true, y_pred, sample_weight=None):
        """Return the sum of the reduced losses; each applies `sample_weight` in its own way."""
        terms = zip(self.weights, self.losses, strict=True)
        return sum(weight * loss(y_true, y_pred, sample_weight) for weight, loss in terms)

    def get_config(self):
        """Return the constructor arguments."""
        losses = [keras.saving.serialize_keras_object(loss) for loss in self.losses]
        return {"name": self.name, "losses": losses, "weights": self.weights}

    @classmethod
    def from_config(cls, config):
        """Rebuild the losses, then the sum."""
        losses = [keras.saving.deserialize_keras_object(loss) for loss in config["losses"]]
        return cls(**{**config, "losses": losses})
