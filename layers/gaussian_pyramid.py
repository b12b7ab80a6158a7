"""An image at ever coarser resolution."""

import keras
from keras import ops

from kreg.ops.coordinates import centred_frame, check_image
from kreg.ops.filters import known_sizes
from kreg.ops.pyramid import check_levels, gaussian_pyramid, pyramid_frames


@keras.saving.register_keras_serializable("kreg")
class GaussianPyramid(keras.layers.Layer):
    """p[0] = image, p[l + 1] = p[l] blurred, at half the resolution (Burt and Adelson, 1983).

    Each level is centred on the image, so one world matrix aligns all of them: `frames` says where
    their voxels lie (a level's shape alone cannot: 32 voxels become 16, of which the outer centres
    are 30 apart, not 31).

    Args:
        levels: how many images are returned, the given one among them.
        sigma: standard deviation of each low-pass, in voxels of the finer level.

    Call arguments:
        images: ``(batch, *spatial, channels)``, floating; spatial sizes must be known.

    Raises:
        ValueError: if there are fewer levels than 1 or more than the image has voxels for, a
            size is unknown or the rank is not 4 or 5.

    Example:
        >>> import numpy as np
        >>> import kreg
        >>> pyramid = kreg.layers.GaussianPyramid(levels=3)
        >>> levels = pyramid(np.ones((1, 32, 20, 1), "float32"))
        >>> [tuple(level.shape) for level in levels]
        [(1, 32, 20, 1), (1, 16, 10, 1), (1, 8, 5, 1)]
        >>> pyramid.frames((32, 20))[1]  # voxels of the second level: 2 long, the first at -15, -9
        array([[  2.,   0., -15.],
               [  0.,   2.,  -9.],
               [  0.,   0.,   1.]], dtype=float32)
    """

    def __init__(self, levels, *, sigma=1.0, **kwargs):
        super().__init__(autocast=False, **kwargs)  # blurred in float32
        check_levels(levels)
        self.levels = levels
        self.sigma = sigma

    def call(self, images):
        """Return the levels, finest first, in the compute dtype."""
        images = ops.cast(check_image(images), "float32")
        levels = gaussian_pyramid(images, self.levels, sigma=self.sigma)
        return [ops.cast(level, self.compute_dtype) for level in levels]

    def frames(self, shape, spacing=None):
        """Return the voxel-to-world matrix of each level, ``(D + 1, D + 1)``, finest first.

        Args:
            shape: spatial sizes of the images.
            spacing: distance between their voxel centres along each axis; 1 where None.
        """
        return [centred_frame(*grid) for grid in pyramid_frames(shape, self.levels, spacing)]

    def compute_output_shape(self, images_shape):
        """Return the shape of each level."""
        sizes = known_sizes(keras.KerasTensor(images_shape))
        batch, channels = images_shape[0], images_shape[-1]
        return [(batch, *level, channels) for level, _ in pyramid_frames(sizes, self.levels)]

    def get_config(self):
        """Return the constructor arguments."""
        return {**super().get_config(), "levels": self.levels, "sigma": self.sigma}
