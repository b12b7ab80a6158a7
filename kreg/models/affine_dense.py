"""A linear transform, then a dense field for what it has left."""

from collections.abc import Sequence

from keras import layers as keras_layers

from kreg.layers import ComposeLinear, MatrixToDisplacement, SpatialTransformer, Standardise
from kreg.models.affine_net import matrix_regressor
from kreg.models.blocks import image_inputs, unet
from kreg.models.heads import VelocityHead
from kreg.ops import nearest_border
from kreg.training import RegistrationModel


def affine_dense(
    image_shape: Sequence,
    *,
    group=None,
    filters: Sequence[int] = (16, 32, 64, 64),
    encoder: Sequence[int] = (16, 32, 32, 32),
    decoder: Sequence[int] = (32, 32, 32, 32, 32, 16, 16),
    head=None,
    name: str = "affine_dense",
) -> RegistrationModel:
    """phi = A o (x + u(x)): A from [moving, fixed], u from [moving o A, fixed].

    The regressor of `affine_net`, then the U-Net of `voxelmorph`, which sees the image that A has
    warped; both are trained at once. The original moving image is warped once, by the composed
    field. The networks see standardised images: brightness and contrast change nothing. Identity
    at start.

    Smoothness is to be asked of ``residual`` or ``velocity``: asked of the whole
    ``displacement``, `kreg.losses.Diffusion` would hold A back. A loss on ``warped_affine`` keeps
    the dense stage from doing the work of the linear one.

    Args:
        image_shape: ``(*spatial, channels)``, 2-D or 3-D; spatial sizes must be known.
        group: of `kreg.groups`, an object; ``Affine()`` where None.
        filters: channels of each convolution of the linear stage, finest first.
        encoder: channels of each level of the dense stage, finest first.
        decoder: channels of each level on the way up; further entries are convolutions at full
            size.
        head: `VelocityHead()`, the default, or `DenseHead()`.
        name: of the model.

    Returns:
        A model of ``{"moving", "fixed"}`` with outputs ``warped`` and, by A alone,
        ``warped_affine`` ``(batch, *spatial, channels)``, ``matrix`` A ``(batch, D + 1, D + 1)``,
        fixed to moving points in the centred world frame, ``displacement`` (of phi) and
        ``residual`` (u) ``(batch, *spatial, D)``; ``velocity`` of u too with a `VelocityHead`.

    Raises:
        ValueError: if `image_shape` is not that of a channels-last image of known size, there are
            no filters, no such group in as many dimensions, the encoder is empty or the decoder
            shorter than the encoder.
    """
    inputs = image_inputs(image_shape)
    moving, fixed = inputs["moving"], inputs["fixed"]
    standard = {
        image: Standardise(name=f"{image}_standard", dtype="float32")(inputs[image])
        for image in ("moving", "fixed")
    }

    def warp(image, displacement, name, **options):
        transformer = SpatialTransformer(
            image_gradient=False, dtype="float32", name=name, **options
        )
        return transformer(image, displacement)

    pair = keras_layers.Concatenate(name="pair")([standard["moving"], standard["fixed"]])
    matrix = matrix_regressor(pair, group, filters)
    linear = MatrixToDisplacement(name="linear_displacement")(matrix, fixed)
    # The background of a standardised image isn't 0: its border goes on.
    halfway = warp(standard["moving"], linear, "halfway", border=nearest_border)

    pair = keras_layers.Concatenate(name="dense_pair")([halfway, standard["fixed"]])
    fields = (head or VelocityHead())(unet(pair, encoder, decoder), fixed)
    residual = fields.pop("displacement")
    displacement = ComposeLinear(name="composition")(matrix, residual)
    outputs = {
        "warped": warp(moving, displacement, "warped"),
        "warped_affine": warp(moving, linear, "warped_affine"),
        "matrix": matrix,
        "displacement": displacement,
        "residual": residual,
        **fields,
    }
    return RegistrationModel(inputs, outputs, name=name)
