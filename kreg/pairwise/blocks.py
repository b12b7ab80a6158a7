"""Blocks: pieces of an image in one flat buffer, each with the frame that says where it lies.

A block is a level of a pyramid, or a tile of a very large image. Samples of all blocks are read
by one gather from one buffer, so that one compiled function serves every level of every pair of
images of a size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from keras import ops

from kreg.ops.interpolation import linear_rows, lower_corner


@dataclass(frozen=True)
class Frame:
    """world = spacing * voxel + origin, axis by axis, in the normalised world of a pair."""

    spacing: np.ndarray  # (D,)
    origin: np.ndarray  # (D,): where voxel 0 lies

    def to_world(self, voxels: np.ndarray) -> np.ndarray:
        """Return the world points of voxel indices ``(..., D)``."""
        return voxels * self.spacing + self.origin

    def to_voxels(self, points: np.ndarray) -> np.ndarray:
        """Return the voxel indices of world points ``(..., D)``."""
        return (points - self.origin) / self.spacing

    def matrix(self) -> np.ndarray:
        """Return the voxel-to-world matrix ``(D + 1, D + 1)``."""
        matrix = np.diag([*self.spacing, 1.0])
        matrix[:-1, -1] = self.origin
        return matrix

    def coarser(self, shape: Sequence[int], coarse_shape: Sequence[int], factor: int) -> "Frame":
        """Return the frame of a level of `coarse_shape` that lies centred over this one."""
        factors = np.where(np.asarray(shape) > 1, factor, 1)
        middle = self.to_world((np.asarray(shape) - 1) / 2)
        spacing = self.spacing * factors
        return Frame(spacing, middle - spacing * (np.asarray(coarse_shape) - 1) / 2)


def carried(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return where homogeneous matrices ``(..., D + 1, D + 1)`` send points ``(n, D)``."""
    image = points @ np.swapaxes(matrix[..., :-1], -1, -2) + matrix[..., None, :, -1]
    return image[..., :-1] / image[..., -1:]


@dataclass(frozen=True)
class Block:
    """Voxel values of one piece of each image of a batch, and where they lie."""

    values: np.ndarray  # (batch, *spatial, channels), float32
    frame: Frame

    @property
    def shape(self) -> tuple[int, ...]:
        """The spatial sizes."""
        return self.values.shape[1:-1]


class Blocks:
    """Several blocks of a batch of images in one buffer.

    Args:
        blocks: of one batch, with the same channels.

    Attributes:
        rows: ``(at least batch * voxels, channels)``: the values, image after image.
        count: voxels of one image.
        starts, sizes, spacing, origin: of each block: its first row, ``(G,)``, and ``(G, D)``.
    """

    def __init__(self, blocks: Sequence[Block]):
        self.blocks = list(blocks)
        first = self.blocks[0].values
        batch, channels = first.shape[0], first.shape[-1]
        flat = [block.values.reshape(batch, -1, channels) for block in self.blocks]
        self.count = sum(part.shape[1] for part in flat)
        if batch * self.count >= 2**31:
            raise ValueError(
                "Expected fewer than 2^31 voxels in the pyramids of a batch; register fewer "
                f"pairs at once. Received: {batch} images of {self.count} voxels."
            )
        # Up to the next power of 2, so that images of many sizes share compiled code.
        rows = np.zeros((_next_power(batch * self.count), channels), "float32")
        np.concatenate(
            flat, axis=1, out=rows[: batch * self.count].reshape(batch, self.count, channels)
        )
        self.rows = ops.convert_to_tensor(rows)
        starts = np.cumsum([0, *(part.shape[1] for part in flat)])[:-1]
        sizes = np.array([block.shape for block in self.blocks])
        self.spacing = spacing = np.array([block.frame.spacing for block in self.blocks])
        self.origin = origin = np.array([block.frame.origin for block in self.blocks])
        self.starts = starts.astype("int32")
        self.sizes = sizes.astype("int32")
        self.scale = (1 / spacing).astype("float32")
        self.shift = (-origin / spacing).astype("float32")

    def table(self) -> list[np.ndarray]:
        """Return what `read` needs to find a voxel: arrays with a row a block, and spare rows."""
        columns = [self.starts, self.sizes, self.scale, self.shift]
        spare = max(_next_power(len(self.starts)), 16) - len(self.starts)
        return [np.concatenate([c, np.repeat(c[-1:], spare, axis=0)]) for c in columns]


def _next_power(number: int) -> int:
    return 1 << (number - 1).bit_length()


def read(rows, table, first, block, points):
    """Return the values at world points by linear interpolation, and which points lie inside.

    Args:
        rows: the buffer ``(voxels, channels)``.
        table: `Blocks.table`.
        first: ``(batch,)``: the row where the image of each sample of the batch begins.
        block: ``(n,)``, or ``(1,)`` for all: the block that each point is read from.
        points: ``(batch, n, D)``, world.

    Returns:
        Values ``(batch, n, channels)`` and a mask ``(batch, n)`` of ones and zeros, float32.
    """
    starts, sizes, scale, shift = (ops.take(column, block, axis=0) for column in table)
    voxels = points * scale + shift
    last = ops.cast(sizes - 1, "float32")
    inside = ops.all((voxels >= 0) & (voxels <= last), axis=-1)
    # NaN, where a homography divides by nothing, fails both; it must not reach a gather.
    voxels = ops.where(inside[..., None], voxels, 0.0)
    sizes = ops.unstack(sizes, axis=-1)
    lower, fraction = lower_corner(voxels, sizes, "int32")
    stride, strides = 1, []
    for size in reversed(sizes):
        strides.insert(0, stride)
        stride = stride * size
    index = first[:, None] + starts + sum(i * s for i, s in zip(lower, strides, strict=True))
    steps = [s * ops.minimum(n - 1, 1) for s, n in zip(strides, sizes, strict=True)]
    return linear_rows(rows, index, steps, fraction), ops.cast(inside, "float32")
