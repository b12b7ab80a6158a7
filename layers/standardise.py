"""Standardise the grey values of an image."""

import keras
from keras import ops

from kreg.ops.coordinates import check_image
from kreg.ops.intensity import standardise


@keras.saving.register_keras_serializable("kreg")
class Standardise(keras.layers.Layer):
    """out = (x - mean) / std over the voxels of each channel of each sample; 0 if x is constant.

    At the inputs of a network it makes the prediction independent of brightness and contrast:
    the same for a x + b as for x (a > 0).

    Call arguments:
        images: ``(batch, *spatial, channels)``, floating.

    Raises:
        ValueError: if the rank is not 4 or 5.
    """

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)  # statistics in float32

    def call(self, images):
        """Return the standardised images, in the compute dtype."""
        return ops.cast(standardise(ops.cast(check_image(images), "float32")), self.compute_dtype)

    def compute_output_shape(self, images_shape):
        """Return the same shape."""
        return images_shape
