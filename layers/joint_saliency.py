"""Where two images have the same edges."""

import functools

import keras
from keras import ops

from kreg import backend
from kreg.ops.coordinates import check_image, check_same_size
from kreg.ops.saliency import TensorCorrelation


@functools.lru_cache
def _compiled(kind):
    return backend.compiled(kind.describe), backend.compiled(kind.compare)


@keras.saving.register_keras_serializable("kreg")
class JointSaliency(keras.layers.Layer):
    """J(x) in [0, 1]: how far fixed and warped image have the same edges around each voxel x.

    Low where one image shows what the other lacks: a weight for what is done with their
    difference. Each pair by itself, differentiable in both images, float32 whatever the policy.

    Args:
        kind: `kreg.ops.TensorCorrelation` or `kreg.ops.OriginalSaliency`, an object;
            ``TensorCorrelation()`` where None.

    Call arguments:
        fixed, warped: ``(batch, *spatial, channels)``, floating, equal sizes that are known.

    Raises:
        ValueError: if the shapes differ, a spatial size is unknown or the images are not floating.

    Example:
        >>> import numpy as np
        >>> import kreg
        >>> fixed = np.zeros((1, 32, 32, 1), "float32")
        >>> fixed[:, 4:12, 4:12], fixed[:, 20:28, 20:28] = 1, 1
        >>> warped = fixed.copy()
        >>> warped[:, 20:28, 20:28] = 0  # lacks the second square
        >>> saliency = np.asarray(kreg.layers.JointSaliency()(fixed, warped))[0, ..., 0]
        >>> bool(saliency[4, 8] > 0.9), bool(saliency[20, 24] < 0.1)
        (True, True)
    """

    def __init__(self, kind=None, **kwargs):
        super().__init__(autocast=False, **kwargs)  # squares of squares need float32
        self.kind = TensorCorrelation() if kind is None else kind

    def call(self, fixed, warped):
        """Return the saliency, ``(batch, *spatial, 1)``."""
        fixed, warped = check_image(fixed, "fixed"), check_image(warped, "warped")
        check_same_size(fixed, warped)
        describe, compare = _compiled(self.kind)
        # An image at a time: the fixed one usually is data, whose gradient is then never computed.
        images = (ops.cast(image, "float32") for image in (fixed, warped))
        return compare(*map(describe, images))

    def compute_output_spec(self, fixed, warped):
        """Return the shape of the map, float32 whatever the policy."""
        check_same_size(check_image(fixed, "fixed"), check_image(warped, "warped"))
        shape = self.compute_output_shape(tuple(fixed.shape), tuple(warped.shape))
        return keras.KerasTensor(shape, dtype="float32")

    def compute_output_shape(self, fixed_shape, warped_shape):
        """Return the sizes of the fixed image with one channel."""
        if None in fixed_shape[1:-1]:
            raise ValueError(
                "Expected known spatial sizes, over which the structure tensors are smoothed; "
                f"give them to `keras.Input`. Received: fixed {tuple(fixed_shape)}."
            )
        return (*fixed_shape[:-1], 1)

    def get_config(self):
        """Return the constructor arguments."""
        return {**super().get_config(), "kind": keras.saving.serialize_keras_object(self.kind)}

    @classmethod
    def from_config(cls, config):
        """Rebuild the kind, then the layer."""
        kind = keras.saving.deserialize_keras_object(config["kind"])
        return cls(**{**config, "kind": kind})
