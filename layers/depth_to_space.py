"""Turn channels into resolution."""

import itertools

import keras
from keras import ops


@keras.saving.register_keras_serializable("kreg")
class DepthToSpace(keras.layers.Layer):
    """out[2 x + o] = features[x, channels of o] for the 2^D offsets o: each voxel becomes 2^D.

    The sub-pixel convolution of Shi et al. (CVPR 2016) in any number of dimensions. The offset
    varies slowest along the channels, its last axis fastest.

    Call arguments:
        features: ``(batch, *spatial, 2^D channels)``.

    Raises:
        ValueError: if the channels are not a multiple of 2^D.
    """

    def build(self, features_shape):
        """Check that the channels can be shared out."""
        block = 2 ** (len(features_shape) - 2)
        if features_shape[-1] % block:
            raise ValueError(
                f"Expected a multiple of {block} channels. Received: shape {features_shape}."
            )

    def call(self, features):
        """Return ``(batch, *2 spatial, channels)``."""
        dimensions = len(features.shape) - 2
        batch, *sizes, depth = ops.shape(features)
        channels = depth // 2**dimensions
        split = ops.reshape(features, (batch, *sizes, *(2,) * dimensions, channels))
        # (batch, x0, x1, o0, o1, c) -> (batch, x0, o0, x1, o1, c)
        axes = itertools.chain.from_iterable((1 + d, 1 + dimensions + d) for d in range(dimensions))
        split = ops.transpose(split, (0, *axes, 1 + 2 * dimensions))
        return ops.reshape(split, (batch, *(2 * size for size in sizes), channels))

    def compute_output_shape(self, features_shape):
        """Return twice the sizes, a 2^D-th of the channels."""
        batch, *sizes, depth = features_shape
        doubled = [None if size is None else 2 * size for size in sizes]
        return (batch, *doubled, depth // 2 ** len(sizes))
