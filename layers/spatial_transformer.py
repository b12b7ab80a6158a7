"""Warp an image by a displacement field or a matrix."""

import functools

import keras
from keras import ops

from kreg import backend
from kreg.ops.coordinates import spatial_shape
from kreg.ops.displacement import warp
from kreg.ops.interpolation import sample, sample_nearest, zero_border
from kreg.ops.linear import transform_grid, voxel_matrix


@functools.lru_cache
def _compiled_warp(sampler, border, image_gradient):
    def function(moving, transform):
        # Stopped inside the boundary: outside it, XLA would still compute the gradient.
        moving = moving if image_gradient else ops.stop_gradient(moving)
        if len(transform.shape) == 3:
            points = transform_grid(transform, spatial_shape(moving))
            return sampler(moving, points, border=border)
        return warp(moving, transform, sampler=sampler, border=border)

    return backend.compiled(function)


@keras.saving.register_keras_serializable("kreg")
class SpatialTransformer(keras.layers.Layer):
    """warped(x) = moving(phi(x)), phi given as a displacement field or as a matrix.

    The rank of the transform says which it is: a displacement ``(batch, *spatial, D)`` in voxels,
    phi(x) = x + u(x), has as many axes as the image; a homogeneous matrix
    ``(batch, D + 1, D + 1)`` from fixed to moving points in the centred world frame
    (`kreg.ops.coordinates`) always has three (Jaderberg et al., NeurIPS 2015).

    Args:
        sampler: `kreg.ops.sample` (linear) or `kreg.ops.sample_nearest` (label maps).
        border: what lies outside: `kreg.ops.zero_border`, `nearest_border`, `reflect_border`.
        image_gradient: whether gradients flow to `moving`. Where it is data, False makes the
            backward pass 2 to 5 times cheaper.
        spacing: for matrices, the distance of voxel centres along each axis; 1 where None.

    Call arguments:
        moving: ``(batch, *spatial, channels)``; spatial sizes may be unknown with a displacement.
        transform: displacement or matrix. With a matrix the output has the size of `moving`.

    Raises:
        ValueError: if the shapes do not fit, or a matrix meets unknown spatial sizes.

    Example:
        >>> import numpy as np
        >>> import kreg
        >>> moving = np.arange(12, dtype="float32").reshape(1, 3, 4, 1)
        >>> up = np.tile(np.float32([1, 0]), (1, 3, 4, 1))  # reads one row further down
        >>> warped = kreg.layers.SpatialTransformer()(moving, up)
        >>> np.asarray(warped)[0, ..., 0]
        array([[ 4.,  5.,  6.,  7.],
               [ 8.,  9., 10., 11.],
               [ 0.,  0.,  0.,  0.]], dtype=float32)
    """

    def __init__(
        self, *, sampler=sample, border=zero_border, image_gradient=True, spacing=None, **kwargs
    ):
        super().__init__(autocast=False, **kwargs)  # coordinates stay float32
        self.sampler = sampler
        self.border = border
        self.image_gradient = image_gradient
        self.spacing = None if spacing is None else tuple(spacing)

    def call(self, moving, transform):
        """Return the warped image, ``(batch, *spatial, channels)``."""
        if self.sampler is not sample_nearest:  # bfloat16 would round labels
            moving = ops.cast(moving, self.compute_dtype)
        if len(transform.shape) == 3:
            shape = self.compute_output_shape(moving.shape, transform.shape)[1:-1]
            transform = voxel_matrix(
                transform, shape, fixed_spacing=self.spacing, moving_spacing=self.spacing
            )
        compiled = _compiled_warp(self.sampler, self.border, self.image_gradient)
        return compiled(moving, ops.cast(transform, "float32"))

    def compute_output_spec(self, moving, transform):
        """Return the output's shape; labels keep their dtype, images take the compute dtype."""
        keeps = self.sampler is sample_nearest
        dtype = keras.backend.standardize_dtype(moving.dtype) if keeps else self.compute_dtype
        shape = self.compute_output_shape(tuple(moving.shape), tuple(transform.shape))
        return keras.KerasTensor(shape, dtype=dtype)

    def compute_output_shape(self, moving_shape, transform_shape):
        """Return the sizes of the transform's grid with the channels of the image."""
        if len(transform_shape) != 3:
            return (moving_shape[0], *transform_shape[1:-1], moving_shape[-1])
        if None in moving_shape[1:-1]:
            raise ValueError(
                "Expected known spatial sizes with a matrix, whose frame is centred on the "
                "image; give them to `keras.Input`, or pass a displacement. "
                f"Received: moving {tuple(moving_shape)}."
            )
        return tuple(moving_shape)

    def get_config(self):
        """Return the constructor arguments."""
        return {
            **super().get_config(),
            "sampler": keras.saving.serialize_keras_object(self.sampler),
            "border": keras.saving.serialize_keras_object(self.border),
            "image_gradient": self.image_gradient,
            "spacing": self.spacing,
        }

    @classmethod
    def from_config(cls, config):
        """Rebuild sampler and border, then the layer."""
        config = {**config}
        for name in ("sampler", "border"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)
