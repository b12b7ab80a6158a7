"""Features of an image on a grid of their own, learned and learnedly resampled."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from kreg.groups import Affine
from kreg.layers.matrix_exp_affine import MatrixExpAffine
from kreg.layers.spatial_transformer import SpatialTransformer
from kreg.ops.coordinates import centred_frame
from kreg.ops.filters import known_sizes
from kreg.ops.interpolation import nearest_border
from kreg.ops.linear import change_frame, matrix_to_displacement


@keras.saving.register_keras_serializable("kreg")
class Interpolator(keras.layers.Layer):
    """out(x) = h(A x), h = relu(conv(relu(conv(image)))), x on a grid `factor` times finer.

    Features of an image, to be compared with those of another by a `Matcher`: two convolutions,
    then upsampling and an affine resampling, both in one linear interpolation. A is a matrix of
    weights, the identity at start. Since it is the same for every image, features of two images
    stay comparable.

    Args:
        filters: channels of the two convolutions.
        kernel_size: of the convolutions, voxels.
        strides: of the two convolutions; h is smaller than `image` by their product.
        factor: how many times finer than h the result is; 1 for no upsampling.
        resampling: whether A is learned; without, it is the identity.
        group: of `kreg.groups`, what A is a member of; ``Affine()`` where None.
        kernel_initializer: of the convolutions.

    Call arguments:
        image: ``(batch, *spatial, channels)``; spatial sizes must be known.

    Raises:
        ValueError: if there are not two filters and two strides, `factor` is not a positive
            integer, or a spatial size is unknown.
    """

    def __init__(
        self,
        filters: Sequence[int] = (16, 32),
        *,
        kernel_size: int = 3,
        strides: Sequence[int] = (1, 1),
        factor: int = 2,
        resampling: bool = True,
        group=None,
        kernel_initializer="he_normal",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters, self.strides = tuple(filters), tuple(strides)
        whole = isinstance(factor, int) and factor >= 1
        if len(self.filters) != 2 or len(self.strides) != 2 or not whole:
            raise ValueError(
                "Expected two `filters` and two `strides`, one for each convolution, and an "
                f"integer `factor` >= 1. Received: {self.filters}, {self.strides} and {factor}."
            )
        self.kernel_size = kernel_size
        self.factor = factor
        self.resampling = resampling
        self.group = Affine() if group is None else group
        self.kernel_initializer = kernel_initializer

    def build(self, image_shape):
        """Make the convolutions and the coefficients of A."""
        dimensions = len(image_shape) - 2
        convolution = getattr(keras.layers, f"Conv{dimensions}D")
        self._convolutions = []
        for i, (filters, strides) in enumerate(zip(self.filters, self.strides, strict=True)):
            layer = convolution(
                filters, self.kernel_size, strides, padding="same", activation="relu",
                kernel_initializer=self.kernel_initializer, dtype=self.dtype_policy,
                name=f"convolution{i}",
            )  # fmt: skip
            layer.build(image_shape)
            image_shape = layer.compute_output_shape(image_shape)
            self._convolutions.append(layer)
        self._coefficients = None
        if self.resampling:
            self._coefficients = self.add_weight(
                shape=(1, self.group.size(dimensions)), initializer="zeros", dtype="float32",
                autocast=False, name="coefficients",
            )  # fmt: skip
        self._warp = SpatialTransformer(border=nearest_border, dtype=self.dtype_policy)
        self._warp.build(image_shape)

    def call(self, image):
        """Return the features, ``(batch, *new_spatial, filters[1])``, in the compute dtype."""
        features = image
        for convolution in self._convolutions:
            features = convolution(features)
        if self.factor == 1 and not self.resampling:
            return features
        sizes = known_sizes(features)
        finer = [self.factor * size for size in sizes]
        matrix = np.eye(len(sizes) + 1, dtype="float32")[None]
        if self.resampling:
            exponential = MatrixExpAffine(self.group, scale=max(sizes) / 2)
            matrix = exponential(ops.convert_to_tensor(self._coefficients))
        # Both grids are centred on the image: A is the map between them in the world.
        frame = centred_frame(finer, [1 / self.factor] * len(finer))
        matrix = change_frame(matrix, frame, centred_frame(sizes))
        displacement = matrix_to_displacement(matrix, finer)
        batch = ops.shape(features)[0]
        return self._warp(features, ops.repeat(displacement, batch, axis=0))

    def compute_output_spec(self, image):
        """Return the shape of the features, in the compute dtype."""
        return keras.KerasTensor(self.compute_output_shape(image.shape), dtype=self.compute_dtype)

    def compute_output_shape(self, image_shape):
        """Return ``(batch, *new_spatial, filters[1])``."""
        sizes = known_sizes(keras.KerasTensor(image_shape))
        for strides in self.strides:
            sizes = [-(-size // strides) for size in sizes]
        return (image_shape[0], *(self.factor * size for size in sizes), self.filters[1])

    def get_config(self):
        """Return the constructor arguments."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "factor": self.factor,
            "resampling": self.resampling,
            "group": keras.saving.serialize_keras_object(self.group),
            "kernel_initializer": keras.saving.serialize_keras_object(self.kernel_initializer),
        }

    @classmethod
    def from_config(cls, config):
        """Rebuild group and initializer, then the layer."""
        config = {**config}
        for name in ("group", "kernel_initializer"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)
