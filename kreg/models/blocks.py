"""Blocks that the models of the zoo share."""

from collections.abc import Sequence

from keras import Input
from keras import layers as keras_layers

from kreg.layers import CropLike, Standardise


def image_inputs(image_shape) -> dict:
    """Return the inputs {"moving", "fixed"} of a model, or say what is wrong with the shape.

    Args:
        image_shape: ``(*spatial, channels)``, 2-D or 3-D; a spatial size may be None.

    Raises:
        ValueError: for another rank, or sizes that cannot be those of channels-last images.
    """
    shape = tuple(image_shape)
    sizes = [size for size in shape[:-1] if size is not None]
    if len(shape) not in (3, 4) or shape[-1] is None or any(size < 4 for size in sizes):
        raise ValueError(
            "Expected an image shape (*spatial, channels), 2-D or 3-D, channels last, at least 4 "
            "voxels along each spatial axis (None where unknown), such as (28, 28, 1). "
            f"Received: {shape}."
        )
    return {name: Input(shape, name=name) for name in ("moving", "fixed")}


def by_dimension(kind: str, dimensions: int, *args, **kwargs):
    """Return Keras's layer `kind` (Conv, AveragePooling, UpSampling ...) for that many axes."""
    return getattr(keras_layers, f"{kind}{dimensions}D")(*args, **kwargs)


def standard_pair(inputs: dict):
    """Return [moving, fixed], standardised, as the channels of one tensor."""
    standard = [
        Standardise(name=f"{image}_standard")(inputs[image]) for image in ("moving", "fixed")
    ]
    return keras_layers.Concatenate(name="pair")(standard)


def convolution_block(x, filters: int, name: str, strides: int = 1, size: int = 3):
    """Return convolution (size^D) -> batch normalisation -> LeakyReLU(0.1)."""
    dimensions = len(x.shape) - 2
    x = by_dimension(
        "Conv", dimensions, filters, size, strides, padding="same", use_bias=False, name=name
    )(x)
    x = keras_layers.BatchNormalization(name=f"{name}_norm")(x)
    return keras_layers.LeakyReLU(0.1, name=f"{name}_relu")(x)


def pool(x):
    """Return averages of 2^D voxels; an odd axis is rounded up."""
    return by_dimension("AveragePooling", len(x.shape) - 2, 2, padding="same")(x)


def upsample_and_add(x, skip, name: str):
    """Return skip + x, x projected to the channels of `skip` and enlarged to its size.

    Projecting first keeps the convolutions at the finer level as narrow as the skip.
    """
    dimensions = len(x.shape) - 2
    x = by_dimension("Conv", dimensions, skip.shape[-1], 1, name=f"{name}_project")(x)
    x = by_dimension("UpSampling", dimensions, 2, name=f"{name}_upsample")(x)
    return keras_layers.Add(name=f"{name}_add")([CropLike(name=f"{name}_crop")(x, skip), skip])


def plain_block(x, filters: int, name: str, strides: int = 1):
    """Return convolution (3^D) -> LeakyReLU(0.2), without normalisation."""
    dimensions = len(x.shape) - 2
    x = by_dimension(
        "Conv", dimensions, filters, 3, strides, padding="same",
        kernel_initializer="he_normal", name=name,
    )(x)  # fmt: skip
    return keras_layers.LeakyReLU(0.2, name=f"{name}_relu")(x)


def unet(x, encoder: Sequence[int], decoder: Sequence[int]):
    """Return features at full size, from the U-Net of VoxelMorph.

    Each level of the encoder is a convolution and a maximum of 2^D voxels; each of the decoder a
    convolution, an upsampling and the encoder's features of that size beside it. What the decoder
    has beyond the levels are convolutions at full size.

    Raises:
        ValueError: if the encoder is empty, or longer than the decoder.
    """
    if not encoder or len(decoder) < len(encoder):
        raise ValueError(
            "Expected a non-empty encoder and at least one decoder entry for each of its levels. "
            f"Received: encoder {tuple(encoder)}, decoder {tuple(decoder)}."
        )
    dimensions = len(x.shape) - 2
    skips = []
    for level, filters in enumerate(encoder):
        x = plain_block(x, filters, f"encoder{level}")
        skips.append(x)
        x = by_dimension("MaxPooling", dimensions, 2, padding="same", name=f"encoder{level}_pool")(
            x
        )
    for level, filters in enumerate(decoder):
        name = f"decoder{level}"
        x = plain_block(x, filters, name)
        if skips:
            skip = skips.pop()
            x = by_dimension("UpSampling", dimensions, 2, name=f"{name}_upsample")(x)
            x = CropLike(name=f"{name}_crop")(x, skip)
            x = keras_layers.Concatenate(name=f"{name}_concatenate")([x, skip])
    return x
