"""Crop a feature map to the size of another."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("kreg")
class CropLike(keras.layers.Layer):
    """Drop the last voxels of each axis, down to the sizes of `reference`.

    With pooling that rounds up and upsampling by 2, it lets an encoder-decoder take images of
    any size, also one unknown when it is built.

    Call arguments:
        features: ``(batch, *spatial, channels)``.
        reference: ``(batch, *smaller_spatial, any)``.
    """

    def call(self, features, reference):
        """Return ``(batch, *smaller_spatial, channels)``."""
        # A slice of everything is free forward, and copied backward.
        known = features.shape[1:-1]
        if None not in known and tuple(known) == tuple(reference.shape[1:-1]):
            return features
        sizes = ops.shape(reference)[1:-1]
        return features[(slice(None), *(slice(0, size) for size in sizes))]

    def compute_output_shape(self, features_shape, reference_shape):
        """Return the sizes of the reference with the channels of the features."""
        return (features_shape[0], *reference_shape[1:-1], features_shape[-1])
