"""Means of an image over the voxels of another grid."""

from collections.abc import Sequence

import keras

from kreg.ops.filters import check_new_shape, known_sizes, resize_image


@keras.saving.register_keras_serializable("kreg")
class ResizeImage(keras.layers.Layer):
    """out_i = the mean of the image over the area of voxel i: a grid that shares its outer edges.

    Voxel i of n lies at (i + 1/2) / n of the width, whatever the sizes: unlike a pooling, whose
    padding moves what an odd size leaves over by half a voxel, this keeps the middle in the middle.

    Args:
        shape: the new size of each spatial axis.

    Call arguments:
        image: ``(batch, *spatial, channels)``; spatial sizes must be known.

    Raises:
        ValueError: if `shape` does not hold a positive integer for each spatial axis, or a size is
            unknown.

    Example:
        >>> import numpy as np
        >>> import kreg
        >>> row = np.float32([1, 2, 6]).reshape(1, 1, 3, 1)
        >>> small = kreg.layers.ResizeImage((1, 2))(row)  # 1 and half of 2, half of 2 and 6
        >>> np.round(np.asarray(small)[0, 0, :, 0], 3)
        array([1.333, 4.667], dtype=float32)
    """

    def __init__(self, shape: Sequence[int], **kwargs):
        super().__init__(**kwargs)
        self.shape = tuple(shape)

    def call(self, image):
        """Return the resized image, ``(batch, *shape, channels)``, in the compute dtype."""
        return resize_image(image, self.shape)

    def compute_output_spec(self, image):
        """Return the shape of the resized image, in the compute dtype."""
        return keras.KerasTensor(self.compute_output_shape(image.shape), dtype=self.compute_dtype)

    def compute_output_shape(self, image_shape):
        """Return the new sizes between batch and channels."""
        check_new_shape(self.shape, known_sizes(keras.KerasTensor(image_shape)))
        return (image_shape[0], *self.shape, image_shape[-1])

    def get_config(self):
        """Return the constructor arguments."""
        return {**super().get_config(), "shape": self.shape}
