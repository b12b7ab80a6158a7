"""Coordinates and frames: the conventions that all of kreg keeps.

* Images are ``(batch, *spatial, channels)``, channels last, in 2-D and 3-D alike.
* A point is a voxel index in axis order ij (row, column; or depth, row, column). An integer
  is the *centre* of a voxel, so an axis of n voxels reaches from 0 to n - 1.
* Transforms pull back: ``warped(x) = moving(phi(x))`` for every point x of the fixed image. A
  displacement field is ``phi(x) = x + u(x)``, ``u`` of shape ``(batch, *spatial, D)`` in voxels
  of the fixed grid.
* A linear transform is a homogeneous matrix ``(batch, D + 1, D + 1)`` from fixed to moving
  points in a *world* frame: centred on the image, isotropic, in physical units where the spacing
  is known. Each image has a voxel-to-world matrix M, so the map between the voxels of two images
  is ``inv(M_moving) @ A @ M_fixed``, whatever their sizes and spacings.
* Coordinates are float32 whatever the dtype policy (float16 is 0.25 wide beyond index 256).
"""

from collections.abc import Sequence

import numpy as np
from keras import backend, ops

#: The dtype of points, displacements and matrices.
COORDINATE_DTYPE = "float32"


def spatial_shape(image) -> tuple:
    """Return the sizes between the batch and the channel axis: ints, or tensors where unknown."""
    return tuple(ops.shape(image)[1:-1])


def check_image(image, name: str = "image"):
    """Return `image` as a floating tensor ``(batch, *spatial, channels)``, or say what is wrong.

    float64 becomes float32; other floating types stay.

    Raises:
        ValueError: if the rank is not 4 or 5, or the values are not floating point.
    """
    image = ops.convert_to_tensor(image)
    dtype = backend.standardize_dtype(image.dtype)
    if "float" not in dtype:
        raise ValueError(
            f"Expected `{name}` to hold floating-point values; scale integers first, such as "
            f"`{name}.astype('float32') / 255`. Received: dtype {dtype}."
        )
    if len(image.shape) not in (4, 5):
        raise ValueError(
            f"Expected `{name}` of shape (batch, *spatial, channels), rank 4 in 2-D and 5 in 3-D; "
            f"add the missing axes, such as `{name}[None, ..., None]` for one grey image. "
            f"Received: shape {tuple(image.shape)}."
        )
    return ops.cast(image, "float32") if dtype == "float64" else image


def check_same_size(fixed, warped, names: tuple[str, str] = ("fixed", "warped")) -> None:
    """Raise ValueError where two images differ in a size that is known."""
    shapes = tuple(fixed.shape), tuple(warped.shape)
    if len(shapes[0]) != len(shapes[1]) or any(
        a is not None and b is not None and a != b for a, b in zip(*shapes, strict=True)
    ):
        raise ValueError(
            f"Expected `{names[0]}` and `{names[1]}` of equal shape (batch, *spatial, channels); "
            f"warp, resize or crop one to the other first. Received: {shapes[0]} and {shapes[1]}."
        )


def check_displacement(displacement, name: str = "displacement"):
    """Return `displacement` as a float32 tensor ``(batch, *spatial, D)``, or say what is wrong.

    Raises:
        ValueError: if the last axis is not as long as there are spatial axes (2 or 3).
    """
    displacement = ops.cast(displacement, COORDINATE_DTYPE)
    shape = tuple(displacement.shape)
    if len(shape) not in (4, 5) or shape[-1] != len(shape) - 2:
        raise ValueError(
            f"Expected `{name}` of shape (batch, *spatial, D), with as many components D, in axis "
            "order ij, as there are spatial axes (2 or 3); move a leading component axis to the "
            f"end. Received: shape {shape}."
        )
    return displacement


def grid_axes(shape: Sequence) -> list:
    """The coordinates of `identity_grid`, which broadcast: along axis d ``(n_d, 1, ..., 1)``.

    Where a grid goes into sums and products, it is cheaper axis by axis than stored as points.

    Args:
        shape: the D spatial sizes, ints or scalar tensors.

    Returns:
        D tensors, float32 voxels.
    """
    return [
        ops.reshape(ops.arange(size, dtype=COORDINATE_DTYPE), (-1,) + (1,) * trailing)
        for size, trailing in zip(shape, reversed(range(len(shape))), strict=True)
    ]


def identity_grid(shape: Sequence):
    """grid[x] = x: the voxel index of every voxel.

    Args:
        shape: the D spatial sizes, ints or scalar tensors.

    Returns:
        Points ``(*shape, D)``, float32 voxels.
    """
    axes = [ops.arange(size, dtype=COORDINATE_DTYPE) for size in shape]
    return ops.stack(ops.meshgrid(*axes, indexing="ij"), axis=-1)


def centred_frame(shape: Sequence[int], spacing: Sequence[float] | None = None) -> np.ndarray:
    """M = diag(spacing) translated by -spacing (n - 1) / 2: voxel index to world.

    The world frame has its origin in the middle of the image and the same unit on all axes.

    Args:
        shape: the D spatial sizes.
        spacing: distance between voxel centres along each axis; 1 where None.

    Returns:
        Homogeneous matrix ``(D + 1, D + 1)``, float32.

    Raises:
        ValueError: if `spacing` has another length than `shape` or is not positive.
    """
    step = np.ones(len(shape)) if spacing is None else np.asarray(spacing, "float64")
    if step.shape != (len(shape),) or not np.all(step > 0):
        raise ValueError(
            f"Expected one positive spacing for each of the {len(shape)} spatial axes. "
            f"Received: {spacing}."
        )
    frame = np.diag([*step, 1.0])
    frame[:-1, -1] = -step * (np.asarray(shape, "float64") - 1) / 2
    return frame.astype(COORDINATE_DTYPE)
