"""The tutorial's system: an encoder-decoder that predicts a displacement in one pass."""

from collections.abc import Sequence

from keras import layers as keras_layers

from kreg.layers import SpatialTransformer, Standardise
from kreg.models.blocks import (
    convolution_block,
    image_inputs,
    pool,
    upsample_and_add,
)
from kreg.models.heads import DenseHead
from kreg.training import RegistrationModel


def encoder_decoder(
    image_shape: Sequence,
    *,
    encoder: Sequence[int] = (32, 64, 128),
    decoder: Sequence[int] = (64, 32, 16),
    head=None,
    name: str = "encoder_decoder",
) -> RegistrationModel:
    """u = head(decoder(encoder([moving, fixed]))); warped(x) = moving(x + u(x)).

    Each level of the encoder is two convolutions and a pooling (the deepest one convolution, no
    pooling); the decoder climbs back with skip connections. The network sees standardised images:
    brightness and contrast change nothing. Identity at start. Any image size.

    Args:
        image_shape: ``(*spatial, channels)``, 2-D or 3-D; spatial sizes may be None.
        encoder: channels of each level, finest first.
        decoder: channels of each level on the way up; a last entry beyond the levels is one more
            convolution at full size.
        head: `DenseHead()`, the default, or `VelocityHead()` for a diffeomorphism.
        name: of the model.

    Returns:
        A model of ``{"moving", "fixed"}`` with outputs ``warped`` ``(batch, *spatial, channels)``
        and ``displacement`` ``(batch, *spatial, D)``; ``velocity`` too with a `VelocityHead`.

    Raises:
        ValueError: if `image_shape` is not that of a channels-last image, or the decoder has
            fewer entries than the encoder has levels to climb.
    """
    inputs = image_inputs(image_shape)
    if not encoder or len(decoder) < len(encoder) - 1:
        raise ValueError(
            "Expected a non-empty encoder and at least one decoder entry for each level but the "
            f"deepest. Received: encoder {tuple(encoder)}, decoder {tuple(decoder)}."
        )
    standard = [
        Standardise(name=f"{image}_standard")(inputs[image]) for image in ("moving", "fixed")
    ]
    x = keras_layers.Concatenate(name="pair")(standard)
    skips = []
    for level, filters in enumerate(encoder[:-1]):
        x = convolution_block(x, filters, f"encoder{level}a")
        x = convolution_block(x, filters, f"encoder{level}b")
        skips.append(x)
        x = pool(x)
    x = convolution_block(x, encoder[-1], "bottom")
    for level, filters in enumerate(decoder):
        if skips:
            x = upsample_and_add(x, skips.pop(), f"decoder{level}")
        x = convolution_block(x, filters, f"decoder{level}")
    fields = (head or DenseHead())(x, inputs["fixed"])
    transformer = SpatialTransformer(image_gradient=False, dtype="float32", name="warped")
    warped = transformer(inputs["moving"], fields["displacement"])
    return RegistrationModel(inputs, {"warped": warped, **fields}, name=name)
