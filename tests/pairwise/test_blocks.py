import numpy as np
import pytest
from keras import ops
from scipy import ndimage

from kreg.ops import centred_frame
from kreg.pairwise import pairs as pairs_module
from kreg.pairwise.blocks import Block, Blocks, Frame, read
from kreg.pairwise.images import Image
from kreg.pairwise.pairs import Pairs, Side, reduced_frame, to_tensors
from kreg.pairwise.preparation import Preparation
from kreg.pairwise.samplers import EdgeSampler, UniformSampler
from tests.fields import grid

#: Spatial sizes of the blocks of one buffer; one has an axis of a single voxel.
SHAPES = {2: [(7, 9), (4, 5), (1, 6)], 3: [(5, 6, 7), (3, 3, 4), (4, 1, 3)]}
each_dimension = pytest.mark.parametrize("dimensions", [2, 3])


def random_blocks(dimensions, *, batch=2, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    blocks = []
    for shape in SHAPES[dimensions]:
        frame = Frame(rng.uniform(0.1, 0.4, dimensions), rng.uniform(-1, 0, dimensions))
        values = rng.normal(size=(batch, *shape, channels)).astype("float32")
        blocks.append(Block(values, frame))
    return blocks


def read_all(blocks, block, points):
    """`read` with every image of the batch."""
    buffer = Blocks(blocks)
    first = np.arange(len(points), dtype="int32") * buffer.count
    tensors = to_tensors([buffer.table(), first, block.astype("int32"), points.astype("float32")])
    return [ops.convert_to_numpy(x) for x in read(buffer.rows, *tensors)]


@each_dimension
def test_reads_each_point_from_its_block_as_scipy_does(dimensions):
    blocks = random_blocks(dimensions)
    rng = np.random.default_rng(1)
    block = rng.integers(len(blocks), size=300)
    voxels = np.empty((2, 300, dimensions))
    points = np.empty_like(voxels)
    for k, (b, _) in enumerate(zip(block, voxels[0], strict=True)):
        voxels[:, k] = rng.uniform(-0.4, np.asarray(blocks[b].shape) - 0.6, (2, dimensions))
        points[:, k] = blocks[b].frame.to_world(voxels[:, k])
    values, inside = read_all(blocks, block, points)
    for i in range(2):
        for k, b in enumerate(block):
            last = np.asarray(blocks[b].shape) - 1
            within = ((voxels[i, k] >= 0) & (voxels[i, k] <= last)).all()
            near = np.abs(voxels[i, k] * (voxels[i, k] - last)).min() < 1e-5
            assert near or inside[i, k] == within
            if inside[i, k]:
                expected = [
                    ndimage.map_coordinates(channel, voxels[i, k][:, None], order=1)[0]
                    for channel in np.moveaxis(blocks[b].values[i], -1, 0)
                ]
                np.testing.assert_allclose(values[i, k], expected, atol=2e-5)
    assert 0.2 < inside.mean() < 0.9


@each_dimension
def test_corner_voxels_are_inside_and_read_exactly(dimensions):
    shape = SHAPES[dimensions][0]
    values = np.random.default_rng(0).normal(size=(1, *shape, 1)).astype("float32")
    block = Block(values, Frame(np.full(dimensions, 0.25), np.full(dimensions, -1.0)))
    ends = grid([2] * dimensions).reshape(-1, dimensions) * (np.asarray(shape) - 1)
    points = block.frame.to_world(ends)[None]
    found, inside = read_all([block], np.zeros(len(ends)), points)
    np.testing.assert_array_equal(inside, 1)
    expected = values[0, ..., 0][tuple(ends.astype(int).T)]
    np.testing.assert_allclose(found[0, :, 0], expected, atol=1e-6)


@each_dimension
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_points_that_are_nowhere_are_outside_and_finite(dimensions, value):
    blocks = random_blocks(dimensions)
    points = np.zeros((2, 3, dimensions))
    points[:, 1, 0] = value
    values, inside = read_all(blocks, np.array([0, 1, 2]), points)
    np.testing.assert_array_equal(inside[:, 1], 0)
    assert np.isfinite(values).all()


def test_frames_lead_there_and_back():
    frame = Frame(np.array([0.5, 2.0]), np.array([-3.0, 1.0]))
    points = np.random.default_rng(0).normal(size=(5, 2))
    np.testing.assert_allclose(frame.to_voxels(frame.to_world(points)), points)
    homogeneous = np.c_[points, np.ones(5)] @ frame.matrix().T
    np.testing.assert_allclose(homogeneous[:, :2], frame.to_world(points))
    np.testing.assert_array_equal(homogeneous[:, 2], 1)


class Plain(Preparation):
    """Grey values as they are."""

    def normalise(self, image, mask, longest):
        return image

    def clipped(self, values, mask):
        return values


def side_of(array, spacing, *, mask=None):
    spacing = np.asarray(spacing, "float64")
    return Side(Image(array, "fixed"), mask, spacing, grey=True, preparation=Plain())


@pytest.mark.parametrize("shape", [(200, 131), (197, 260), (70, 81, 98)], ids=str)
def test_every_level_is_centred_on_the_image_at_twice_the_spacing(shape):
    spacing = np.linspace(0.5, 1.5, len(shape))
    side = side_of(np.zeros(shape, "float32"), spacing)
    assert len(side.frames) >= 2
    for k, (level, frame) in enumerate(zip(side.levels, side.frames, strict=True)):
        np.testing.assert_allclose(frame.spacing, spacing * 2**k)
        # World 0 is the centre of the image.
        expected = centred_frame(level.shape[1:-1], spacing * 2**k)
        np.testing.assert_allclose(frame.matrix(), expected, atol=1e-5)
    assert max(side.levels[-1].shape[1:-1]) <= 1.5 * pairs_module.COARSEST[len(shape)]


@pytest.mark.parametrize("shape", [(200, 131), (70, 81, 50)], ids=str)
def test_a_plane_keeps_its_place_on_every_level(shape):
    slope = np.linspace(1, 2, len(shape))
    spacing = np.linspace(0.5, 1.5, len(shape))
    plane = ((grid(shape) - (np.asarray(shape) - 1) / 2) * spacing) @ slope
    side = side_of(plane.astype("float32"), spacing)
    for level, frame in zip(side.levels, side.frames, strict=True):
        expected = frame.to_world(grid(level.shape[1:-1])) @ slope
        inner = (slice(7, -7),) * len(shape)  # mirrored edges bend it
        np.testing.assert_allclose(level[0, ..., 0][inner], expected[inner], atol=2e-3)


@pytest.mark.parametrize("shape", [(90, 101), (40, 37, 44)], ids=str)
def test_averaged_images_keep_their_place(monkeypatch, shape):
    monkeypatch.setattr(pairs_module, "IN_MEMORY", 3000)
    slope, spacing = np.linspace(1, 2, len(shape)), np.linspace(0.5, 1.5, len(shape))
    plane = ((grid(shape) - (np.asarray(shape) - 1) / 2) * spacing) @ slope
    side = side_of(plane.astype("float32"), spacing)
    assert side.factor > 1
    assert side.levels[0].shape[1:-1] == tuple(size // side.factor for size in shape)
    expected = side.frames[0].to_world(grid(side.levels[0].shape[1:-1])) @ slope
    np.testing.assert_allclose(side.levels[0][0, ..., 0], expected, atol=1e-3)
    np.testing.assert_allclose(
        reduced_frame(side.frame, side.factor, shape).matrix(), side.frames[0].matrix()
    )


@pytest.mark.parametrize("levels", [(0,), (1, 0)])
def test_draws_world_points_that_take_turns_between_the_levels(levels):
    image = np.random.default_rng(0).normal(size=(2, 130, 101, 1)).astype("float32")
    side = side_of(image, (0.02, 0.03))
    pairs = Pairs(side, side, UniformSampler())
    owner = np.array([0, 1, 1])
    points, block = pairs.draw(0, owner, levels, 64)
    assert points.shape == (3, 64, 2)
    turns = 64 // len(levels) if len(levels) > 1 else 1  # one level is that of all points
    np.testing.assert_array_equal(block, np.tile(levels, turns))
    half = 0.02 * 129 / 2, 0.03 * 100 / 2
    assert (np.abs(points) <= np.asarray(half) + 1e-6).all()
    for other in points[1:]:  # what a pair gets does not depend on its neighbours
        np.testing.assert_array_equal(points[0], other)
    assert not np.array_equal(points, pairs.draw(1, owner, levels, 64)[0])


def test_points_come_in_random_order_where_asked():
    side = side_of(np.zeros((1, 64, 64, 1), "float32"), (1.0, 1.0))
    pairs, owner = Pairs(side, side, UniformSampler()), np.array([0])
    points, *_ = pairs.draw(0, owner, (0,), 2000, shuffled=True)[0]
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert steps.mean() > 20  # 0.52 * 64 for independent points
    assert abs(points[:1000].mean(0) - points[1000:].mean(0)).max() < 4
    in_turn = pairs.draw(0, owner, (0,), 2000)[0][0]
    np.testing.assert_array_equal(np.sort(points, axis=0), np.sort(in_turn, axis=0))


def test_pairs_that_are_not_alike_draw_points_of_their_own():
    image = np.random.default_rng(0).normal(size=(2, 96, 80, 1)).astype("float32")
    together, alone = (
        Pairs(side_of(part, (0.02, 0.02)), side_of(part, (0.02, 0.02)), EdgeSampler())
        for part in (image, image[1:])
    )
    points = together.draw(3, np.array([0, 1]), (0,), 64)[0]
    assert not np.array_equal(points[0], points[1])
    np.testing.assert_array_equal(points[1], alone.draw(3, np.array([0]), (0,), 64)[0][0])


def test_corners_are_the_outermost_voxel_centres():
    side = side_of(np.zeros((40, 31), "float32"), (0.5, 0.25))
    corners = Pairs(side, side, UniformSampler()).corners
    expected = {(a * 0.5 * 39 / 2, b * 0.25 * 30 / 2) for a in (-1, 1) for b in (-1, 1)}
    assert {tuple(corner) for corner in corners} == expected
