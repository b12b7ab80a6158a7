"""A network that predicts a linear transform in one pass."""

from collections.abc import Sequence

from keras import layers as keras_layers

from kreg.layers import MatrixExpAffine, MatrixToDisplacement, SpatialTransformer
from kreg.models.blocks import by_dimension, image_inputs, plain_block, standard_pair
from kreg.training import RegistrationModel

#: Along each axis, at most so many cells tell the head where in the image a feature lies.
_CELLS = 4


def matrix_regressor(pair, group, filters: Sequence[int]):
    """Return the matrix ``(batch, D + 1, D + 1)`` of a linear transform, from a pair of images.

    Args:
        pair: ``(batch, *spatial, channels)``, moving and fixed; spatial sizes must be known.
        group: of `kreg.groups`; ``Affine()`` where None.
        filters: channels of each convolution; all but the first halve the resolution.

    Raises:
        ValueError: if a size is unknown, there are no filters, or no such group in D dimensions.
    """
    sizes = pair.shape[1:-1]
    if None in sizes:
        raise ValueError(
            "Expected known spatial sizes, as a matrix lies in a frame centred on the image; give "
            f"them in `image_shape`. Received: spatial sizes {tuple(sizes)}."
        )
    if not filters:
        raise ValueError(f"Expected at least one number of filters. Received: {tuple(filters)}.")
    # Half the longest side: a shift, an angle and a stretch of like size move the image alike.
    exponential = MatrixExpAffine(group, scale=max(sizes) / 2, name="matrix")
    x = pair
    for level, width in enumerate(filters):
        x = plain_block(x, width, f"linear{level}", strides=1 if level == 0 else 2)
    dimensions = len(sizes)
    window = tuple(-(-size // _CELLS) for size in x.shape[1:-1])  # rounded up
    x = by_dimension("AveragePooling", dimensions, window, padding="same", name="cells")(x)
    x = keras_layers.Flatten(name="places")(x)
    x = keras_layers.Dense(filters[-1], kernel_initializer="he_normal", name="dense")(x)
    x = keras_layers.LeakyReLU(0.2, name="dense_relu")(x)
    coefficients = keras_layers.Dense(
        exponential.group.size(dimensions),
        kernel_initializer="zeros",
        dtype="float32",
        name="coefficients",
    )(x)
    return exponential(coefficients)


def affine_net(
    image_shape: Sequence,
    *,
    group=None,
    filters: Sequence[int] = (16, 32, 64, 64),
    name: str = "affine_net",
) -> RegistrationModel:
    """A = exp(sum_k c_k B_k), c = regressor([moving, fixed]); warped = moving o A.

    Convolutions, of which all but the first halve the resolution, averages over a few cells of
    the image, and a dense head: the cells keep where each feature lies. The network sees
    standardised images: brightness and contrast change nothing. Identity at start.

    Args:
        image_shape: ``(*spatial, channels)``, 2-D or 3-D; spatial sizes must be known.
        group: of `kreg.groups`: `Translation`, `Rigid`, `Similarity`, `Affine`, `Homography` (2-D
            only), an object; ``Affine()`` where None.
        filters: channels of each convolution, finest first.
        name: of the model.

    Returns:
        A model of ``{"moving", "fixed"}`` with outputs ``warped`` ``(batch, *spatial, channels)``,
        ``matrix`` ``(batch, D + 1, D + 1)``, fixed to moving points in the centred world frame,
        and, the same in voxels, ``displacement`` ``(batch, *spatial, D)``.

    Raises:
        ValueError: if `image_shape` is not that of a channels-last image of known size, there are
            no filters, or no such group in as many dimensions.
    """
    inputs = image_inputs(image_shape)
    matrix = matrix_regressor(standard_pair(inputs), group, filters)
    displacement = MatrixToDisplacement(name="displacement")(matrix, inputs["fixed"])
    transformer = SpatialTransformer(image_gradient=False, dtype="float32", name="warped")
    warped = transformer(inputs["moving"], displacement)
    outputs = {"warped": warped, "matrix": matrix, "displacement": displacement}
    return RegistrationModel(inputs, outputs, name=name)
