"""VoxelMorph: a U-Net to a velocity or displacement field, also trained with annotations."""

from collections.abc import Sequence

from keras import Input

from kreg.layers import DisplacePoints, SpatialTransformer
from kreg.models.blocks import image_inputs, standard_pair, unet
from kreg.models.heads import VelocityHead
from kreg.training import RegistrationModel


def voxelmorph(
    image_shape: Sequence,
    *,
    encoder: Sequence[int] = (16, 32, 32, 32),
    decoder: Sequence[int] = (32, 32, 32, 32, 32, 16, 16),
    head=None,
    labels: int | None = None,
    landmarks: bool = False,
    name: str = "voxelmorph",
) -> RegistrationModel:
    """u = head(unet([moving, fixed])); warped(x) = moving(x + u(x)).

    The U-Net of Balakrishnan et al. (IEEE TMI 2019), by default with the widths of its public
    code, and the diffeomorphism of Dalca et al. (MICCAI 2018): in 3-D with one channel 327 331
    weights. Max pooling, upsampling beside the encoder's features, no normalisation. Identity at
    start. Any image size. What differs: the network sees standardised images, so that brightness
    and contrast change nothing; the velocity is integrated at full resolution unless the head is
    ``VelocityHead(downsize=2)``, the original's default, several times cheaper in 3-D.

    With annotations, which only the training needs::

        model = voxelmorph((160, 192, 1), labels=4, landmarks=True)
        model.compile("adam", loss={"warped": NCC(), "displacement": Diffusion(),
                                    "warped_labels": SoftDice(), "landmarks": LandmarkDistance()})
        model.fit(pairs)  # with moving_labels, fixed_labels, fixed_landmarks, moving_landmarks
        plain = voxelmorph((160, 192, 1))
        plain.set_weights(model.get_weights())  # registers without annotations

    Args:
        image_shape: ``(*spatial, channels)``, 2-D or 3-D; spatial sizes may be None.
        encoder: channels of each level, finest first.
        decoder: channels of each level on the way up; further entries are convolutions at full
            size.
        head: `VelocityHead()`, the default, or `DenseHead()`.
        labels: None, or the channels of one-hot or probability maps ``(batch, *spatial, labels)``
            floating, the further input ``moving_labels``, of which ``warped_labels`` is made.
        landmarks: whether there is a further input ``fixed_landmarks`` ``(batch, n, D)``, voxels,
            floating, any n, NaN where missing, which the output ``landmarks`` shows in the moving
            image.
        name: of the model.

    Returns:
        A model of ``{"moving", "fixed"}`` and the annotations asked for, with outputs ``warped``
        ``(batch, *spatial, channels)`` and ``displacement`` ``(batch, *spatial, D)``, ``velocity``
        with a `VelocityHead`, ``warped_labels`` and ``landmarks`` where asked for.

    Raises:
        ValueError: if `image_shape` is not that of a channels-last image, the encoder is empty,
            the decoder shorter than the encoder, or `labels` not positive.
    """
    inputs = image_inputs(image_shape)
    if labels is not None and labels < 1:
        raise ValueError(f"Expected `labels` >= 1, a number of channels. Received: {labels}.")
    features = unet(standard_pair(inputs), encoder, decoder)
    fields = (head or VelocityHead())(features, inputs["fixed"])

    def warp(image, name):
        transformer = SpatialTransformer(image_gradient=False, dtype="float32", name=name)
        return transformer(image, fields["displacement"])

    outputs = {"warped": warp(inputs["moving"], "warped"), **fields}
    spatial = tuple(inputs["moving"].shape[1:-1])
    if labels is not None:
        inputs["moving_labels"] = Input((*spatial, labels), name="moving_labels")
        outputs["warped_labels"] = warp(inputs["moving_labels"], "warped_labels")
    if landmarks:
        points = Input((None, len(spatial)), name="fixed_landmarks")
        inputs["fixed_landmarks"] = points
        outputs["landmarks"] = DisplacePoints(name="landmarks")(points, fields["displacement"])
    return RegistrationModel(inputs, outputs, name=name)
