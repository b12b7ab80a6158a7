"""A batch of pairs made ready: pyramids in flat buffers, in one normalised world."""

import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from keras import ops

from kreg.pairwise.blocks import Block, Blocks, Frame
from kreg.pairwise.images import IN_MEMORY, Image, check_weights
from kreg.pairwise.preparation import Preparation, mask_levels
from kreg.pairwise.samplers import Draw, Sampler

#: What `numpy.random.default_rng` takes.
Seed = int | tuple[int, ...]

#: About the longest side of the coarsest level, in voxels, by dimensions.
COARSEST = {2: 64, 3: 32}


class Side:
    """One side of a batch of pairs, fixed or moving, as levels of a pyramid.

    Args:
        image: the images.
        mask: weights of their voxels, or None.
        spacing: distance of voxel centres, normalised.
        grey: whether to average the channels.
        preparation: what makes values of grey values.
        coarsest: about the longest side of the coarsest level; `COARSEST` where None.

    Attributes:
        frame: where the voxels of the image itself lie.
        factor: 1, or how many voxels were averaged along each axis before level 0.
        levels, masks: values ``(batch, *spatial, channels)`` and weights, finest first.
        frames: where the voxels of each level lie.
        blocks: the levels in one buffer, the mask as their last channel.
    """

    def __init__(
        self,
        image: Image,
        mask: Image | None,
        spacing: np.ndarray,
        *,
        grey: bool,
        preparation: Preparation,
        coarsest: int | None = None,
    ):
        self.image = image
        self.mask = mask
        self.frame = Frame(spacing, -spacing * (np.asarray(image.shape) - 1) / 2)
        self.factor = 1
        while image.voxels / self.factor ** len(image.shape) > IN_MEMORY:
            self.factor *= 2
        values = image.reduced(self.factor)
        self.values = values.mean(axis=-1, keepdims=True) if grey else values
        weights: np.ndarray | None = None
        if mask is not None:
            weights = mask.reduced(self.factor)
            check_weights(weights, mask.name)
            weights = np.broadcast_to(weights, (image.batch, *weights.shape[1:]))
        frame = reduced_frame(self.frame, self.factor, image.shape)
        shape = self.values.shape[1:-1]
        count = 1
        while max(shape) / 2 ** (count - 1) > 1.5 * (coarsest or COARSEST[len(shape)]):
            count += 1
        self.levels = preparation.levels(self.values, weights, count)
        self.masks = mask_levels(weights, count)
        shapes = [level.shape[1:-1] for level in self.levels]
        self.frames = [frame.coarser(shape, s, 2**i) for i, s in enumerate(shapes)]
        self.textured = [bool(np.ptp(level) > 1e-6) for level in self.levels[0]]

    def channels(self) -> int:
        """Return the number of channels that are compared."""
        return self.levels[0].shape[-1]

    def buffer(self, count: int) -> Blocks:
        """Return the first `count` levels as blocks; the mask is the last channel."""
        blocks = []
        for level, mask, frame in itertools.islice(
            zip(self.levels, self.masks, self.frames, strict=True), count
        ):
            weight = np.ones_like(level[..., :1]) if mask is None else mask
            blocks.append(Block(np.concatenate([level, weight], axis=-1), frame))
        return Blocks(blocks)


def reduced_frame(frame: Frame, factor: int, shape: Sequence[int]) -> Frame:
    """Return where the means over blocks of `factor` voxels lie, fewer along shorter axes."""
    factors = np.minimum(factor, shape)
    return Frame(frame.spacing * factors, frame.to_world((factors - 1) / 2))


class Sampled(Protocol):
    """What scoring steps ask of the images: `Pairs`, or tiles of one of them."""

    count: int
    dimensions: int
    corners: np.ndarray

    @property
    def channels(self) -> tuple[int, int]:
        """The channels of fixed and moving values."""

    def voxel(self, level: int) -> float:
        """Return the voxel spacing of a level; of the image itself at -1."""

    def images(self, owner: np.ndarray) -> tuple:
        """Return the buffers and where in them the images of each sample of a batch begin."""

    def draw(
        self,
        seed: Seed,
        owner: np.ndarray,
        levels: Sequence[int],
        samples: int,
        *,
        shuffled: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return world points ``(batch, n, D)`` and their blocks: ``(n,)``, or one for all.

        Where they are not `shuffled`, neighbours may come in turn, which memory reads faster.
        """


class Pairs:
    """Both sides of a batch of pairs, and the points that are drawn from it.

    Args:
        fixed, moving: the sides.
        sampler: where points are drawn.
    """

    def __init__(self, fixed: Side, moving: Side, sampler: Sampler):
        self.fixed, self.moving = fixed, moving
        self.count = max(fixed.image.batch, moving.image.batch)
        self.levels = min(len(fixed.levels), len(moving.levels))
        self.dimensions = len(fixed.image.shape)
        self.fixed_blocks = fixed.buffer(self.levels)
        self.moving_blocks = moving.buffer(self.levels)
        self._least = 0.7 * COARSEST[self.dimensions]
        self._sampler = sampler
        self._drawers: dict[tuple[int, int], Draw] = {}
        density = sampler.density(fixed.levels[-1][0])
        self._alike = fixed.mask is None and density is None  # all pairs draw the same points
        shape = np.asarray(fixed.image.shape)
        ends = np.stack(np.meshgrid(*[(0, 1)] * self.dimensions, indexing="ij"), axis=-1)
        self.corners = fixed.frame.to_world(ends.reshape(-1, self.dimensions) * (shape - 1))

    def images(self, owner: np.ndarray) -> tuple:
        """Return the buffers and where in them the images of each sample of a batch begin."""
        fixed, moving = self.fixed_blocks, self.moving_blocks
        return (
            fixed.rows,
            moving.rows,
            fixed.table(),
            moving.table(),
            (owner * fixed.count).astype("int32"),
            (owner * moving.count).astype("int32"),
        )

    @property
    def channels(self) -> tuple[int, int]:
        """The channels of fixed and moving values."""
        return self.fixed.channels(), self.moving.channels()

    @property
    def coarse(self) -> int:
        """The coarsest level that shows enough to search, and to tell right from wrong."""
        sides = [max(level.shape[1:-1]) for level in self.fixed.levels[: self.levels]]
        return max([i for i, side in enumerate(sides) if side >= self._least], default=0)

    def voxel(self, level: int) -> float:
        """Return the largest voxel spacing of a level of the fixed image; of the image at -1."""
        frame = self.fixed.frame if level < 0 else self.fixed.frames[level]
        return float(frame.spacing.max())

    def _drawer(self, pair: int, level: int) -> Draw:
        mask = self.fixed.masks[level]
        pair = 0 if self._alike else pair
        if (pair, level) not in self._drawers:
            values = self.fixed.levels[level][pair]
            weights = None if mask is None else mask[pair][..., 0]
            self._drawers[pair, level] = self._sampler.drawer(values, weights)
        return self._drawers[pair, level]

    def draw(
        self,
        seed: Seed,
        owner: np.ndarray,
        levels: Sequence[int],
        samples: int,
        *,
        shuffled: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return world points ``(batch, n, D)`` and their blocks, as `Sampled` does.

        Points of the levels take turns, so that half a turn of the samples keeps the level. All
        pairs draw by the same seed: what one gets does not depend on its neighbours.
        """
        each = max(samples // (2 * len(levels)), 8) * 2
        drawn: dict[int, np.ndarray] = {}
        for pair in np.unique(owner):
            if self._alike and drawn:
                drawn[int(pair)] = next(iter(drawn.values()))
                continue
            generator = np.random.default_rng(seed)
            parts = []
            for level in levels:
                voxels = self._drawer(int(pair), level)(generator, each)
                if shuffled:
                    voxels = voxels[generator.permutation(each)]
                last = np.asarray(self.fixed.levels[level].shape[1:-1]) - 1
                parts.append(self.fixed.frames[level].to_world(np.clip(voxels, 0, last)))
            drawn[int(pair)] = np.stack(parts, axis=1).reshape(-1, self.dimensions)
        points = np.stack([drawn[int(pair)] for pair in owner]).astype("float32")
        return points, np.tile(np.asarray(levels, "int32"), each if len(levels) > 1 else 1)


def to_tensors(tree):
    """Return NumPy arrays in tuples and lists as tensors, so that no compiled code holds them."""
    if isinstance(tree, (tuple, list)):
        return type(tree)(to_tensors(item) for item in tree)
    return ops.convert_to_tensor(tree)
