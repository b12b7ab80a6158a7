"""Global to local: a coarse displacement, refined where joint saliency says it can be."""

from collections.abc import Sequence
from dataclasses import dataclass

from keras import layers as keras_layers
from keras import ops

from kreg.layers import (
    CropLike,
    JointSaliency,
    RefinementStage,
    ResizeDisplacement,
    SaliencyRefinement,
    SelectDisplacement,
    SpatialTransformer,
)
from kreg.models.blocks import convolution_block, image_inputs, standard_pair
from kreg.models.heads import field_convolution
from kreg.ops.saliency import TensorCorrelation
from kreg.training import RegistrationModel


@dataclass(frozen=True)
class FlowNetSize:
    """The widths of a network in the style of FlowNet-S.

    Args:
        encoder: for each level, full size first, its convolutions as (channels, kernel size); the
            first of each level but the first halves the size. The first level may be empty.
        decoder: channels of the transposed convolutions, from the coarsest level up. Where they
            end before full size, the flow is enlarged from there.
        last: channels of convolutions after the last of them.

    Raises:
        ValueError: if the encoder has fewer than two levels, a later one is empty, or the decoder
            does not have between one entry and one for each halving.
    """

    encoder: Sequence[Sequence[tuple[int, int]]]
    decoder: Sequence[int]
    last: Sequence[int] = ()

    def __post_init__(self):
        levels = len(self.encoder)
        if levels < 2 or not all(self.encoder[1:]) or not 1 <= len(self.decoder) < levels:
            raise ValueError(
                "Expected an encoder of two or more levels, none empty but the first, and a "
                f"decoder of 1 to {max(levels - 1, 1)} entries. Received: {self}."
            )


#: Trains in minutes on two cores: no convolution at full size.
LEAN = FlowNetSize(
    encoder=((), ((16, 5), (16, 3)), ((32, 3), (32, 3)), ((64, 3), (64, 3)), ((64, 3), (64, 3))),
    decoder=(64, 32, 16),
)
#: The widths of the original for digits of 64 x 64.
MNIST_64 = FlowNetSize(
    encoder=(((16, 5),), ((32, 5), (64, 3)), ((128, 3), (256, 3))), decoder=(64, 32), last=(16,)
)
#: The widths of the original for hearts of 128 x 128.
CARDIAC_128 = FlowNetSize(
    encoder=(
        ((128, 7), (128, 5)),
        ((256, 3), (256, 3)),
        ((512, 3), (512, 3)),
        ((1024, 3), (1024, 3)),
    ),
    decoder=(512, 256, 128),
)


#: Stages for drawings and for tissue.
DRAWINGS = (
    RefinementStage(6, 2, 16, power=6, elastic=2.5),
    RefinementStage(5, 1, 16, power=6, elastic=2),
    RefinementStage(3.5, 0.5, 16, power=6, elastic=1.5),
    RefinementStage(2, 0, 12, power=5, elastic=1.2, stiffness=0.03),
)
TISSUE = (
    RefinementStage(12, 3, 5, power=2),
    RefinementStage(8, 2, 6, power=3),
    RefinementStage(6, 1, 8, power=4),
    RefinementStage(4, 0, 10, power=2, stiffness=0.02),
)


@dataclass(frozen=True)
class UnrolledRefinement:
    """`kreg.layers.SaliencyRefinement`, saliency as the weight of local least squares.

    The first half of the stages is done with weights and without, and
    `kreg.layers.SelectDisplacement` goes on with what explains more of the pair: equal weights
    never take a displaced part for a missing one.

    Args:
        stages: `kreg.layers.RefinementStage` objects, such as `DRAWINGS` or `TISSUE`: made for
            displacements of up to a dozen voxels.
        normalisation: None, or the width in voxels of the local normalisation of what is compared;
            for images whose contrast differs, together with `kreg.ops.LocallyNormalised`.
    """

    stages: Sequence[RefinementStage] = DRAWINGS
    normalisation: float | None = None

    def __call__(self, fixed, moving, coarse, saliency):
        """Return the refined displacement; `saliency` is a kind, or None for equal weights."""
        half = len(self.stages) // 2
        first, rest = self.stages[:half], self.stages[half:]

        def refine(displacement, stages, kind, name):
            layer = SaliencyRefinement(
                stages, saliency=kind, normalisation=self.normalisation, name=name
            )
            return layer(fixed, moving, displacement)

        if saliency is None or not first:
            return refine(coarse, self.stages, saliency, "displacement")
        select = SelectDisplacement(saliency=saliency, name="selected")
        weighted = refine(coarse, first, saliency, "weighted")
        unweighted = refine(coarse, first, None, "unweighted")
        selected = select(fixed, moving, weighted, unweighted)
        return refine(selected, rest, saliency, "displacement")


@dataclass(frozen=True)
class ConvolutionalRefinement:
    """u = u_coarse + conv([J, u_coarse]), J the saliency of fixed and coarsely warped image.

    The original's: saliency as one more channel. Without a saliency, of u_coarse alone.

    Args:
        filters: channels of its convolutions.
    """

    filters: Sequence[int] = (128, 64, 32)

    def __call__(self, fixed, moving, coarse, saliency):
        """Return the refined displacement; `saliency` is a kind, or None."""
        x = coarse
        if saliency is not None:
            warped = _warp(moving, coarse, "halfway")
            joint = JointSaliency(saliency, name="coarse_saliency")(fixed, warped)
            x = keras_layers.Concatenate(name="saliency_and_displacement")([joint, coarse])
        for i, channels in enumerate(self.filters):
            x = convolution_block(x, channels, f"refinement{i}")
        residual = field_convolution(x, "residual")
        return keras_layers.Add(name="displacement", dtype="float32")([coarse, residual])


def global_to_local(
    image_shape: Sequence,
    *,
    size: FlowNetSize = LEAN,
    saliency=TensorCorrelation(),  # noqa: B008, it is frozen
    refinement=UnrolledRefinement(),
    name: str = "global_to_local",
) -> RegistrationModel:
    """u = refine(fixed, moving, u_coarse), u_coarse = flownet([moving, fixed]).

    For pairs of which one lacks what the other has. A network in the style of FlowNet-S
    (Dosovitskiy et al., ICCV 2015) finds the coarse displacement: an encoder, and a linear head on
    each level of the decoder, each adding to the enlarged field of the coarser one. The refinement
    trusts the images where their joint saliency is high. All is trained end to end: through the
    weights that the saliency gives, gradients reach the network. The coarse displacement is 0 at
    start; the refinement registers untrained.

    Image losses belong on ``warped_trusted`` = fixed + J (warped - fixed), whatever the
    similarity: nothing then rewards the network for closing a hole.

    Args:
        image_shape: ``(*spatial, channels)``, 2-D or 3-D; spatial sizes must be known.
        size: widths of the network: `LEAN`, `MNIST_64`, `CARDIAC_128`, or your own.
        saliency: the kind, such as `kreg.ops.TensorCorrelation`, within
            `kreg.ops.LocallyNormalised` where contrast differs, or `kreg.ops.OriginalSaliency`;
            None for a model without.
        refinement: `UnrolledRefinement` or `ConvolutionalRefinement`, the original's.
        name: of the model.

    Returns:
        A model of ``{"moving", "fixed"}`` with outputs ``warped``, ``displacement``
        ``(batch, *spatial, D)``, ``warped_coarse`` and ``coarse_displacement``; unless `saliency`
        is None also ``saliency``, J in [0, 1] of fixed and warped image, and ``warped_trusted``.

    Raises:
        ValueError: if `image_shape` is not that of a channels-last image of known size.
    """
    inputs = image_inputs(image_shape)
    moving, fixed = inputs["moving"], inputs["fixed"]
    coarse = _flownet(standard_pair(inputs), fixed, size)
    displacement = refinement(fixed, moving, coarse, saliency)
    outputs = {
        "warped": _warp(moving, displacement, "warped"),
        "displacement": displacement,
        "warped_coarse": _warp(moving, coarse, "warped_coarse"),
        "coarse_displacement": coarse,
    }
    if saliency is not None:
        joint = JointSaliency(saliency, name="saliency")(fixed, outputs["warped"])
        outputs["saliency"] = joint
        difference = ops.cast(outputs["warped"], "float32") - ops.cast(fixed, "float32")
        outputs["warped_trusted"] = fixed + ops.stop_gradient(joint) * difference
    return RegistrationModel(inputs, outputs, name=name)


def _warp(moving, displacement, name):
    transformer = SpatialTransformer(image_gradient=False, dtype="float32", name=name)
    return transformer(moving, displacement)


def _flownet(x, image, size: FlowNetSize):
    """Return the displacement ``(batch, *spatial, D)`` for `image`."""
    skips = []
    for level, blocks in enumerate(size.encoder):
        for i, (channels, kernel) in enumerate(blocks):
            strides = 2 if level and not i else 1
            x = convolution_block(x, channels, f"encoder{level}_{i}", strides, kernel)
        skips.append(x)
    skips.pop()
    flow = field_convolution(x, "flow0")
    for level, channels in enumerate(size.decoder, 1):
        skip = skips.pop()
        transposed = getattr(keras_layers, f"Conv{len(x.shape) - 2}DTranspose")
        x = transposed(
            channels, 4, 2, padding="same", use_bias=False, name=f"decoder{level}"
        )(x)  # fmt: skip
        x = CropLike(name=f"decoder{level}_crop")(x, skip)
        x = keras_layers.BatchNormalization(name=f"decoder{level}_norm")(x)
        x = keras_layers.LeakyReLU(0.1, name=f"decoder{level}_relu")(x)
        flow = ResizeDisplacement(name=f"flow{level}_enlarged")(flow, skip)
        x = keras_layers.Concatenate(name=f"decoder{level}_concatenate")([x, skip, flow])
        if level == len(size.decoder):
            for i, last in enumerate(size.last):
                x = convolution_block(x, last, f"last{i}")
        residual = field_convolution(x, f"flow{level}")
        flow = keras_layers.Add(name=f"flow{level}_sum", dtype="float32")([flow, residual])
    return ResizeDisplacement(name="coarse_displacement")(flow, image)
