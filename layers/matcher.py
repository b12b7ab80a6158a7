"""The linear transform between two images, from their features."""

import functools
from collections.abc import Sequence
from itertools import product

import keras
import numpy as np
from keras import ops

from kreg import backend
from kreg.groups import Affine
from kreg.layers.matrix_exp_affine import MatrixExpAffine
from kreg.ops.coordinates import centred_frame, check_same_size
from kreg.ops.filters import known_sizes
from kreg.ops.intensity import standardise

#: Added to the normal equations, whose largest entries are about 1: what the cells leave open
#: stays at the identity.
_RIDGE = 1e-3


@keras.saving.register_keras_serializable("kreg")
class Matcher(keras.layers.Layer):
    """A = exp(sum_k c_k B_k), c = argmin sum_i w_i ||sum_k c_k B_k x_i - v_i||^2; v, w from CNN.

    Two residual blocks on the difference of the features beside those of the fixed image (and,
    if asked for, how they correlate with their neighbours in the moving one) say for each cell
    x_i of the grid how it moves, v_i, and how far that can be trusted, w_i. The regression is the
    weighted least-squares fit of the group's generators B_k: few weights, the same for any number
    of cells. Features are standardised: only their pattern counts. The identity at start. Where a
    sample's features are not finite, neither is its matrix; the others of the batch are unharmed.

    Args:
        filters: channels of the convolutions.
        group: of `kreg.groups`; ``Affine()`` where None.
        radius: None, or the distance in cells up to which features of the fixed image are
            correlated with those of the moving one: ``(2 radius + 1)^D`` more channels.
        spacing: distance of the voxel centres of `image` along each axis; 1 where None.
        kernel_initializer: of the convolutions but the last.
        field_initializer: of the last, which gives v and w.

    Call arguments:
        fixed, moving: features ``(batch, *cells, C)``, cell i of n that of (i + 1/2) / n of the
            image's width, as `Interpolator` has them; their number must be known.
        image: ``(batch, *spatial, any)``, any tensor of the size of the images.

    Raises:
        ValueError: if the features differ in shape, a size is unknown, or `filters` or `radius`
            is not positive.
    """

    def __init__(
        self,
        filters: int = 32,
        *,
        group=None,
        radius: int | None = None,
        spacing: Sequence[float] | None = None,
        kernel_initializer="he_normal",
        field_initializer="zeros",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if filters < 1 or (radius is not None and radius < 1):
            raise ValueError(
                "Expected `filters` >= 1, and `radius` None or >= 1 cells. "
                f"Received: {filters} and {radius}."
            )
        self.filters = filters
        self.group = Affine() if group is None else group
        self.radius = radius
        self.spacing = None if spacing is None else tuple(spacing)
        self.kernel_initializer = kernel_initializer
        self.field_initializer = field_initializer

    def build(self, fixed_shape, moving_shape, image_shape):
        """Make the convolutions."""
        dimensions = len(fixed_shape) - 2
        kind = getattr(keras.layers, f"Conv{dimensions}D")

        def convolution(channels, outputs, size, name, **options):
            options = {
                "kernel_initializer": self.kernel_initializer,
                "dtype": self.dtype_policy,
                **options,
            }
            layer = kind(outputs, size, padding="same", name=name, **options)
            layer.build((*[None] * (dimensions + 1), channels))
            return layer

        channels, width = 2 * fixed_shape[-1], self.filters
        if self.radius is not None:
            channels += (2 * self.radius + 1) ** dimensions
        self._entry = convolution(channels, width, 1, "entry")
        # Two a block; in one list, for Keras saves no layers of a list within a list.
        self._blocks = [convolution(width, width, 3, f"block{i}") for i in range(4)]
        self._field = convolution(
            width, dimensions + 1, 1, "field",
            kernel_initializer=self.field_initializer, dtype="float32",
        )  # fmt: skip

    def call(self, fixed, moving, image):
        """Return matrices ``(batch, D + 1, D + 1)``, fixed to moving, in the centred world."""
        self.compute_output_shape(fixed.shape, moving.shape, image.shape)  # refuses what is wrong
        if self.radius is None:
            seen = _compiled_seen(self.compute_dtype)(fixed, moving)
        else:  # XLA would compile its many shifts for seconds
            seen = _seen(fixed, moving, self.compute_dtype, self.radius)
        x = _leaky(self._entry(seen))
        for first, second in zip(self._blocks[::2], self._blocks[1::2], strict=True):
            x = _leaky(x + second(_leaky(first(x))))
        return self._regression(self._field(x), known_sizes(image))

    def _regression(self, field, sizes):
        """The matrix that fits v = field[..., :D] best, weighted by softmax(field[..., D])."""
        cells = known_sizes(field)
        axes, count = len(cells), int(np.prod(cells))
        extent = np.array(sizes) * (self.spacing or 1.0)
        scale = float(extent.max()) / 2
        grid = np.stack(np.meshgrid(*map(np.arange, cells), indexing="ij"), -1).reshape(-1, axes)
        frame = centred_frame(cells, extent / cells / scale)  # cells to units of `scale`
        points = np.concatenate([grid, np.ones((count, 1))], axis=1) @ frame.T
        # How each coefficient moves each cell, (cells, D, K); the last row is a homography's.
        moves = np.einsum("kde,ne->ndk", self.group.generators(axes), points)
        moves = moves[:, :-1] - points[:, :-1, None] * moves[:, -1:]
        size = moves.shape[-1]
        products = np.einsum("ndk,ndl->nkl", moves, moves).reshape(count, size * size)
        # Most are zero or equal others: 9 of an affine matrix's 36 are left, in 3-D 34 of 144.
        products, places = np.unique(products.astype("float32"), axis=1, return_inverse=True)
        products, moves, ridge = (
            ops.convert_to_tensor(x, "float32") for x in (products, moves, _RIDGE * np.eye(size))
        )
        sums = _compiled_sums(field, products, moves)
        normal = ops.take(sums, places.reshape(size, size), axis=1) + ridge
        right = sums[:, -size:, None]
        # A NaN among the equations of one sample would end the whole batch: it stays on the right.
        finite = ops.all(ops.isfinite(normal), axis=(1, 2), keepdims=True)
        normal = ops.where(finite, normal, ridge)
        coefficients = ops.solve(normal, right)[..., 0]
        return MatrixExpAffine(self.group, scale=scale)(coefficients)

    def compute_output_spec(self, fixed, moving, image):
        """Return the shape of the matrices, float32 whatever the policy."""
        shape = self.compute_output_shape(fixed.shape, moving.shape, image.shape)
        return keras.KerasTensor(shape, dtype="float32")

    def compute_output_shape(self, fixed_shape, moving_shape, image_shape):
        """Return ``(batch, D + 1, D + 1)``."""
        features = [keras.KerasTensor(shape) for shape in (fixed_shape, moving_shape)]
        check_same_size(*features, ("fixed", "moving"))
        for tensor in (*features, keras.KerasTensor(image_shape)):
            known_sizes(tensor)  # refuses unknown sizes
        side = len(fixed_shape) - 1
        return (fixed_shape[0], side, side)

    def get_config(self):
        """Return the constructor arguments."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "filters": self.filters,
            "group": serialize(self.group),
            "radius": self.radius,
            "spacing": self.spacing,
            "kernel_initializer": serialize(self.kernel_initializer),
            "field_initializer": serialize(self.field_initializer),
        }

    @classmethod
    def from_config(cls, config):
        """Rebuild group and initializers, then the layer."""
        config = {**config}
        for name in ("group", "kernel_initializer", "field_initializer"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)


def _seen(fixed, moving, dtype, radius=None):
    """What the blocks see of two images' features: statistics in float32, then in `dtype`."""
    fixed, moving = (ops.cast(standardise(ops.cast(x, "float32")), dtype) for x in (fixed, moving))
    beside = [] if radius is None else [_correlation(fixed, moving, radius)]
    return ops.concatenate([moving - fixed, fixed, *beside], axis=-1)


@functools.lru_cache
def _compiled_seen(dtype):
    return backend.compiled(functools.partial(_seen, dtype=dtype))


def _sums(field, products, moves):
    """sum w p for each column p of the products, then sum w v . m for each move m."""
    products, moves = (ops.stop_gradient(x) for x in (products, moves))  # constants
    count, axes, _ = moves.shape
    field = ops.reshape(ops.cast(field, "float32"), (-1, count, axes + 1))
    weights = ops.softmax(field[..., axes:], axis=1)  # (batch, cells, 1)
    left = ops.sum(weights * products, axis=1)
    right = ops.sum((weights * field[..., :axes])[..., None] * moves, axis=(1, 2))
    return ops.concatenate([left, right], axis=-1)


_compiled_sums = backend.compiled(_sums)


def _leaky(x):
    """x where positive, else x / 5: no cell falls silent for good."""
    # Not `ops.leaky_relu`: TensorFlow fails to fuse it with bfloat16 convolutions, and says so.
    return ops.maximum(x, 0.2 * x)


def _correlation(fixed, moving, radius: int):
    """mean over channels of fixed(x) moving(x + o), a channel for each offset o up to `radius`."""
    sizes = known_sizes(fixed)
    padded = ops.pad(moving, [(0, 0), *[(radius, radius)] * len(sizes), (0, 0)])
    shifted = [
        padded[(slice(None), *(slice(o, o + n) for o, n in zip(offset, sizes, strict=True)))]
        for offset in product(range(2 * radius + 1), repeat=len(sizes))
    ]
    return ops.stack([ops.mean(fixed * other, axis=-1) for other in shifted], axis=-1)
