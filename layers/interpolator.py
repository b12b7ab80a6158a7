"""Features of an image on a grid of their own, learned and learnedly resampled."""

import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from kreg.groups import Affine
from kreg.layers.matrix_exp_affine import MatrixExpAffine
from kreg.layers.spatial_transformer import SpatialTransformer
from kreg.ops.coordinates import centred_frame
from kreg.ops.filters import known_sizes, resize_image
from kreg.ops.interpolation import nearest_border
from kreg.ops.linear import change_frame, matrix_to_displacement


@keras.saving.register_keras_serializable("kreg")
class Interpolator(keras.layers.Layer):
    """out(x) = h(A x), h = relu(conv(relu(conv(image)))), x on a grid `factor` times finer.

    Features of an image, to be compared with those of another by a `Matcher`: two convolutions,
    then upsampling and an affine resampling, both in one linear interpolation. A is a matrix of
    weights, the identity at start, the same for every image. So where ``moving(T x) = fixed(x)``,
    the features of the two match under M = A^-1 T A, not under T: a matrix M found between them
    means T = A M A^-1 (`return_matrix`).

    The features' cells divide the image evenly and are centred on it: cell i of n looks at
    (i + 1/2) / n of the width, symmetrically. A kernel therefore grows by a voxel where it and its
    stride are not both even or both odd, to the stride at least, and an image that the strides
    do not divide is resized first (`ResizeImage`).

    Args:
        filters: channels of the two convolutions.
        kernel_size: of the convolutions, voxels; where the stride asks for it, more (see above).
        strides: of the two convolutions; h is smaller than `image` by their product.
        factor: how many times finer than h the result is; 1 for no upsampling.
        resampling: whether A is learned; without, it is the identity.
        group: of `kreg.groups`, what A is a member of; ``Affine()`` where None.
        kernel_initializer: of the convolutions.

    Call arguments:
        image: ``(batch, *spatial, channels)``; spatial sizes must be known.
        reference: any tensor of the size of the full image, of which `image` is a smaller version;
            `image` itself where None. A lies in the world of the full image.
        return_matrix: whether to return A, ``(batch, D + 1, D + 1)`` in the centred world frame,
            beside the features.

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
        channels = image_shape[-1]
        for i, (filters, stride) in enumerate(zip(self.filters, self.strides, strict=True)):
            size = max(self.kernel_size, stride)
            size += (size - stride) % 2  # the padding, size - stride, is the same at either end
            layer = convolution(
                filters, size, stride, padding="same", activation="relu",
                kernel_initializer=self.kernel_initializer, dtype=self.dtype_policy,
                name=f"convolution{i}",
            )  # fmt: skip
            layer.build((*[None] * (dimensions + 1), channels))
            channels = filters
            self._convolutions.append(layer)
        self._coefficients = None
        if self.resampling:
            self._coefficients = self.add_weight(
                shape=(1, self.group.size(dimensions)), initializer="zeros", dtype="float32",
                autocast=False, name="coefficients",
            )  # fmt: skip
        self._warp = SpatialTransformer(border=nearest_border, dtype=self.dtype_policy)
        self._warp.build((*[None] * (dimensions + 1), channels))

    def call(self, image, reference=None, return_matrix=False):
        """Return the features, ``(batch, *new_spatial, filters[1])``, in the compute dtype."""
        sizes = known_sizes(image)
        cells = self._cells(sizes)
        features = resize_image(image, [cell * math.prod(self.strides) for cell in cells])
        for convolution in self._convolutions:
            features = _convolved(convolution, features)
        batch = ops.shape(features)[0]
        extent = np.array(sizes if reference is None else known_sizes(reference), "float64")
        matrix = self._matrix(extent)
        if self.factor > 1 or self.resampling:
            # Both grids are centred on the image: A is the map between them in the world.
            finer = [self.factor * size for size in cells]
            here, there = (centred_frame(grid, extent / grid) for grid in (finer, cells))
            field = matrix_to_displacement(change_frame(matrix, here, there), finer)
            features = self._warp(features, ops.repeat(field, batch, axis=0))
        if return_matrix:
            return features, ops.repeat(matrix, batch, axis=0)
        return features

    def _cells(self, sizes):
        """How many cells h has along each axis."""
        return [-(-size // math.prod(self.strides)) for size in sizes]

    def _matrix(self, extent):
        """A in the world, ``(1, D + 1, D + 1)``."""
        if not self.resampling:
            return ops.eye(len(extent) + 1, dtype="float32")[None]
        exponential = MatrixExpAffine(self.group, scale=float(extent.max()) / 2)
        return exponential(ops.convert_to_tensor(self._coefficients))

    def compute_output_spec(self, image, reference=None, return_matrix=False):
        """Return the shape of the features, in the compute dtype; A is float32."""
        features = keras.KerasTensor(
            self.compute_output_shape(image.shape), dtype=self.compute_dtype
        )
        if not return_matrix:
            return features
        if reference is not None:
            known_sizes(reference)  # refuses unknown sizes
        side = len(image.shape) - 1
        return features, keras.KerasTensor((image.shape[0], side, side), dtype="float32")

    def compute_output_shape(self, image_shape):
        """Return ``(batch, *new_spatial, filters[1])``."""
        cells = self._cells(known_sizes(keras.KerasTensor(image_shape)))
        return (image_shape[0], *(self.factor * size for size in cells), self.filters[1])

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


def _convolved(layer, image):
    """layer(image); of cells side by side it is one product of matrices: up to 5 times faster."""
    sizes, strides = known_sizes(image), layer.strides  # which divide the sizes
    if layer.kernel_size != strides:
        return layer(image)
    dtype, channels = layer.compute_dtype, image.shape[-1]
    cells = [n // s for n, s in zip(sizes, strides, strict=True)]
    split = [part for pair in zip(cells, strides, strict=True) for part in pair]
    axes = range(1, 2 * len(cells) + 1)
    patches = ops.reshape(ops.cast(image, dtype), (-1, *split, channels))
    patches = ops.transpose(patches, (0, *axes[::2], *axes[1::2], axes[-1] + 1))
    patches = ops.reshape(patches, (-1, *cells, math.prod(strides) * channels))
    kernel = ops.reshape(ops.cast(layer.kernel, dtype), (-1, layer.filters))
    return layer.activation(ops.matmul(patches, kernel) + ops.cast(layer.bias, dtype))
