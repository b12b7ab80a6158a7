"""Very large images: refinement on tiles, which are all that is read at full resolution."""

from collections.abc import Sequence

import numpy as np
import scipy.ndimage

from kreg.groups import Group
from kreg.pairwise.blocks import Block, Blocks, Frame, carried
from kreg.pairwise.fisher import FisherScoring
from kreg.pairwise.images import block_mean
from kreg.pairwise.pairs import Pairs, Seed, Side, reduced_frame
from kreg.pairwise.preparation import Preparation
from kreg.pairwise.progress import OfPair, Progress
from kreg.pairwise.schedule import Stage
from kreg.pairwise.scoring import Scoring
from kreg.pairwise.similarity import HistogramRatio

#: Steps of each round of tiles.
TILE_STEPS = 12
#: Voxels of a tile, and tiles of an image, both about, in any number of dimensions.
_VOXELS, _TILES = 96**2, 64
#: Samples of each step.
_SAMPLES = 32768
#: Each round of tiles is this many times finer than what came before.
_FINER = 4


def tile_rounds(pairs: Pairs) -> list[int]:
    """Return how many voxels each round averages along an axis, down to 1; [] for small images."""
    factor = max(pairs.fixed.factor, pairs.moving.factor)
    rounds = []
    while factor > 1:
        factor = max(factor // _FINER, 1)
        rounds.append(factor)
    return rounds


def refine_by_tiles(
    pairs: Pairs,
    group: Group,
    matrices: np.ndarray,
    factor: int,
    preparation: Preparation,
    seed: int,
    progress: Progress,
) -> np.ndarray:
    """Return the matrices after steps on tiles of the images averaged over `factor` voxels."""
    refined = matrices.copy()
    for pair in range(pairs.count):
        tiles = Tiles(pairs, pair, matrices[pair], factor, preparation)
        if not tiles.found:
            continue  # flat everywhere, or no overlap: the verdict says so
        own = OfPair(progress, pair, pairs.count)
        scoring = Scoring(tiles, HistogramRatio(), [0], seed, own)
        stage = Stage((0,), TILE_STEPS, _SAMPLES)
        name = f"tiles 1/{factor}"
        start = matrices[pair : pair + 1]
        *_, (refined[pair],) = scoring.climb(start, group, [stage], FisherScoring(), name)
        if progress.stopped:
            break
    return refined


class Tiles:
    """Tiles of one pair as the blocks of one image.

    Each has texture in the fixed image, and a partner, half as large again, around the place
    where the matrix at hand sends it.

    Args:
        pairs: what the pair belongs to.
        pair: which one.
        matrix: normalised.
        factor: voxels that are averaged along each axis.
        preparation: what makes values of grey values.

    Attributes:
        found: how many tiles there are.
    """

    count = 1
    channels = (1, 1)

    def __init__(
        self, pairs: Pairs, pair: int, matrix: np.ndarray, factor: int, preparation: Preparation
    ):
        self.dimensions = pairs.dimensions
        self.corners = pairs.corners
        self._finest = pairs.voxel(-1)
        self._frame = reduced_frame(pairs.fixed.frame, factor, pairs.fixed.image.shape)
        side = round(_VOXELS ** (1 / self.dimensions))
        partner = side + side // 2
        # Half a tile of margin where local averages are not whole: nothing is drawn there.
        self._margin = side // 6
        fixed, moving = [], []
        for centre in _centres(pairs.fixed, pair):
            there = carried(matrix, centre[None])[0]
            voxel = pairs.moving.frame.to_voxels(there)
            if np.all((voxel > 0) & (voxel < np.asarray(pairs.moving.image.shape) - 1)):
                fixed.append(_tile(pairs.fixed, pair, centre, side, factor))
                moving.append(_tile(pairs.moving, pair, there, partner, factor))
        self.found = len(fixed)
        if self.found:
            self.fixed_blocks = _prepared(fixed, preparation, 3 * side)
            self.moving_blocks = _prepared(moving, preparation, 3 * side)

    def voxel(self, level: int) -> float:
        """Return the voxel spacing of the tiles; of the image itself at -1."""
        return self._finest if level < 0 else float(self._frame.spacing.max())

    def images(self, owner: np.ndarray) -> tuple:
        """Return the buffers and where in them the images of each sample of a batch begin."""
        fixed, moving = self.fixed_blocks, self.moving_blocks
        first = np.zeros(len(owner), "int32")
        return fixed.rows, moving.rows, fixed.table(), moving.table(), first, first

    def draw(
        self,
        seed: Seed,
        owner: np.ndarray,
        levels: Sequence[int],
        samples: int,
        *,
        shuffled: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return world points ``(batch, n, D)`` and their blocks, ``(n,)``; always shuffled."""
        generator = np.random.default_rng(seed)
        block = generator.permutation(np.arange(samples, dtype="int32") % self.found)
        last = self.fixed_blocks.sizes - 1
        margin = np.minimum(self._margin, last // 2)
        share = generator.random((samples, self.dimensions))
        voxels = margin[block] + share * (last - 2 * margin)[block]
        spacing, origin = self.fixed_blocks.spacing, self.fixed_blocks.origin
        points = voxels * spacing[block] + origin[block]
        return np.repeat(points[None].astype("float32"), len(owner), axis=0), block


def _centres(side: Side, pair: int) -> np.ndarray:
    """World points with the most texture in each cell of a grid, ``(n, D)``."""
    level, frame = side.levels[0][pair, ..., 0], side.frames[0]
    edges = sum(np.square(np.gradient(level, axis=axis)) for axis in range(level.ndim))
    if side.masks[0] is not None:
        edges = edges * side.masks[0][pair, ..., 0]
    texture = scipy.ndimage.uniform_filter(edges, 5)
    cells = round(_TILES ** (1 / level.ndim))
    bounds = [np.linspace(0, size, cells + 1).astype(int) for size in level.shape]
    centres = []
    for cell in np.ndindex(*(cells,) * level.ndim):
        low = [bound[i] for bound, i in zip(bounds, cell, strict=True)]
        high = [bound[i + 1] for bound, i in zip(bounds, cell, strict=True)]
        part = texture[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        if part.size and part.max() > 0.1 * texture.mean():
            place = np.unravel_index(np.argmax(part), part.shape)
            centres.append(np.add(low, place))
    return frame.to_world(np.array(centres, "float64").reshape(-1, level.ndim))


def _tile(side: Side, pair: int, centre: np.ndarray, size: int, factor: int) -> Block:
    """Read the tile around a world point, averaged over `factor` voxels, and its mask."""
    frame = reduced_frame(side.frame, factor, side.image.shape)
    shape = np.maximum(np.asarray(side.image.shape) // factor, 1)
    sizes = np.minimum(size, shape)
    start = np.round(frame.to_voxels(centre) - (sizes - 1) / 2).astype(int)
    start = np.clip(start, 0, shape - sizes)
    slices = [slice(a * factor, (a + n) * factor) for a, n in zip(start, sizes, strict=True)]
    values = block_mean(side.image.read(*slices), factor).mean(axis=-1, keepdims=True)
    weight = np.ones_like(values)
    if side.mask is not None:
        weight = block_mean(side.mask.read(*slices), factor)
    both = [part[pair if len(part) > 1 else 0] for part in (values, weight)]
    return Block(np.concatenate(both, axis=-1)[None], Frame(frame.spacing, frame.to_world(start)))


def _prepared(tiles: list[Block], preparation: Preparation, longest: float) -> Blocks:
    """Tiles normalised as parts of an image of `longest` voxels, with their masks, as blocks."""
    batch = np.concatenate([tile.values for tile in tiles])
    batch, weight = batch[..., :1], batch[..., 1:]
    batch = preparation.normalise(batch, weight, longest)
    # Clipped all alike: as one image.
    joined = [part.reshape(1, -1, *part.shape[2:]) for part in (batch, weight)]
    flat = preparation.clipped(*joined).reshape(batch.shape)
    values = np.concatenate([flat, weight], axis=-1)
    return Blocks([Block(v[None], tile.frame) for v, tile in zip(values, tiles, strict=True)])
