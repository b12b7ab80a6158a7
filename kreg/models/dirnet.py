"""DIRNet: a convolutional regressor of the control points of a B-spline."""

from collections.abc import Sequence
from itertools import chain, repeat

from kreg.layers import BSplineField, SpatialTransformer
from kreg.models.blocks import (
    by_dimension,
    convolution_block,
    image_inputs,
    pool,
    standard_pair,
)
from kreg.training import RegistrationModel


def dirnet(
    image_shape: Sequence,
    *,
    spacing: int = 8,
    filters: Sequence[int] = (16,),
    name: str = "dirnet",
) -> RegistrationModel:
    """u = sum_i c_i B3_i, c = regressor([moving, fixed]); warped(x) = moving(x + u(x)).

    Convolutions and average pooling by 2 go down to the grid of control points; there follow a
    convolution that looks at neighbouring points, and two of single points, the last of which
    gives each its displacement (de Vos et al., DLMIA 2017). Smooth by construction, and cheap: no
    decoder. Identity at start.

    What differs from the paper: the network sees standardised images, so that brightness and
    contrast change nothing; before the last pooling the features are padded, so that the cell
    pooled for a control point has it in its middle, also for the points beyond the image that a
    cubic B-spline needs; LeakyReLU takes the place of the exponential linear unit.

    Args:
        image_shape: ``(*spatial, channels)``, 2-D or 3-D; spatial sizes must be known.
        spacing: distance of control points in voxels, a power of 2: one pooling for each.
        filters: channels of the convolutions in their order; the last number goes on.
        name: of the model.

    Returns:
        A model of ``{"moving", "fixed"}`` with outputs ``warped`` ``(batch, *spatial, channels)``
        and ``displacement`` ``(batch, *spatial, D)``.

    Raises:
        ValueError: if `image_shape` is not that of a channels-last image of known size, `spacing`
            is no power of 2 from 2 on, or there are no filters.
    """
    inputs = image_inputs(image_shape)
    if not isinstance(spacing, int) or spacing < 2 or spacing & (spacing - 1):
        raise ValueError(
            "Expected `spacing` to be a power of 2, at least 2: each pooling doubles it. "
            f"Received: {spacing}."
        )
    if not filters:
        raise ValueError(f"Expected at least one number of filters. Received: {tuple(filters)}.")
    dimensions = len(inputs["fixed"].shape) - 2
    spline = BSplineField(spacing, name="displacement")
    grid = spline.grid_shape(inputs["fixed"].shape[1:-1])
    width = chain(filters, repeat(filters[-1]))
    levels = spacing.bit_length() - 1

    x = standard_pair(inputs)
    for level in range(levels - 1):
        x = pool(convolution_block(x, next(width), f"level{level}"))
    x = convolution_block(x, next(width), f"level{levels - 1}")
    # Control point i lies at voxel (i - 1) spacing, its cell begins half a spacing before: three
    # voxels of this level, of which a cell has two, before the image for the first. (Padding not
    # ahead of the convolution: TensorFlow fuses the two wrongly in 3-D.)
    padding = tuple(
        (3, 2 * points - size - 3) for points, size in zip(grid, x.shape[1:-1], strict=True)
    )
    x = pool(by_dimension("ZeroPadding", dimensions, padding, name="surroundings")(x))
    x = convolution_block(x, next(width), "neighbours")
    x = convolution_block(x, next(width), "point", size=1)
    coefficients = by_dimension(
        "Conv", dimensions, dimensions, 1,
        kernel_initializer="zeros", dtype="float32", name="control_points",
    )(x)  # fmt: skip
    displacement = spline(coefficients, inputs["fixed"])
    transformer = SpatialTransformer(image_gradient=False, dtype="float32", name="warped")
    warped = transformer(inputs["moving"], displacement)
    return RegistrationModel(inputs, {"warped": warped, "displacement": displacement}, name=name)
