"""Two small networks in a row: the second registers what the first has left."""

from collections.abc import Sequence

from keras import layers as keras_layers

from kreg.layers import (
    ComposeDisplacements,
    CropLike,
    DepthToSpace,
    IntegrateVelocity,
    ResizeDisplacement,
    SpatialTransformer,
    Standardise,
)
from kreg.models.blocks import (
    by_dimension,
    convolution_block,
    image_inputs,
    pool,
    upsample_and_add,
)
from kreg.models.heads import field_convolution
from kreg.ops import nearest_border
from kreg.training import RegistrationModel


def _features(moving, fixed, filters, name):
    """Return features at half resolution, from a U-Net that never works at full resolution."""
    x = keras_layers.Concatenate(name=f"{name}_pair")([moving, fixed])
    x = convolution_block(x, filters[0], f"{name}_stem", strides=2)
    skip = convolution_block(x, filters[0], f"{name}_encoder")
    x = convolution_block(pool(skip), filters[1], f"{name}_bottom_a")
    x = convolution_block(x, filters[1], f"{name}_bottom_b")
    x = upsample_and_add(x, skip, name)
    x = convolution_block(x, filters[0], f"{name}_decoder_a")
    return convolution_block(x, filters[0], f"{name}_decoder_b")


def _shuffled_field(features, image, name):
    """Return a full-resolution field from half-resolution features, by depth to space."""
    dimensions = len(image.shape) - 2
    field = by_dimension(
        "Conv", dimensions, dimensions * 2**dimensions, 3, padding="same",
        kernel_initializer="zeros", dtype="float32", name=name,
    )(features)  # fmt: skip
    # In float32 whatever the policy: a velocity.
    field = DepthToSpace(name=f"{name}_shuffle", dtype="float32")(field)
    return CropLike(name=f"{name}_crop", dtype="float32")(field, image)


def two_pass(
    image_shape: Sequence,
    *,
    filters: Sequence[int] = (32, 64),
    steps: Sequence[int] = (5, 4),
    name: str = "two_pass",
) -> RegistrationModel:
    """phi = exp(v1) o exp(v2): v1 from [moving, fixed], v2 from [moving o exp(v1), fixed].

    Both networks are small U-Nets with weights of their own. The first predicts a velocity at
    half resolution, the second, which sees the image that the first has warped, one at full
    resolution. The original moving image is warped once, by the composed field. The networks see
    standardised images: brightness and contrast change nothing. Identity at start. Any image size.

    Args:
        image_shape: ``(*spatial, channels)``, 2-D or 3-D; spatial sizes may be None.
        filters: channels at half and at quarter resolution.
        steps: squarings of the two integrations.
        name: of the model.

    Returns:
        A model of ``{"moving", "fixed"}`` with outputs ``warped``, ``displacement``
        ``(batch, *spatial, D)``, ``coarse_velocity`` (voxels of the half grid) and ``velocity``.

    Raises:
        ValueError: if `image_shape` is not that of a channels-last image.
    """
    inputs = image_inputs(image_shape)
    moving, fixed = inputs["moving"], inputs["fixed"]
    standard = {
        name: Standardise(name=f"{name}_standard", dtype="float32")(image)
        for name, image in inputs.items()
    }

    features = _features(standard["moving"], standard["fixed"], filters, "first")
    coarse_velocity = field_convolution(features, "coarse_velocity")
    coarse = IntegrateVelocity(steps[0], name="first_integration")(coarse_velocity)
    coarse = ResizeDisplacement(name="first_displacement")(coarse, fixed)
    # The background of a standardised image isn't 0: its border goes on.
    halfway = SpatialTransformer(
        border=nearest_border, image_gradient=False, dtype="float32", name="halfway"
    )(standard["moving"], coarse)

    features = _features(halfway, standard["fixed"], filters, "second")
    velocity = _shuffled_field(features, fixed, "velocity")
    fine = IntegrateVelocity(steps[1], name="second_integration")(velocity)
    displacement = ComposeDisplacements(name="displacement")(coarse, fine)
    warped = SpatialTransformer(image_gradient=False, dtype="float32", name="warped")(
        moving, displacement
    )
    outputs = {
        "warped": warped,
        "displacement": displacement,
        "coarse_velocity": coarse_velocity,
        "velocity": velocity,
    }
    return RegistrationModel(inputs, outputs, name=name)
