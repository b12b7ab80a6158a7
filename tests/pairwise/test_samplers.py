import numpy as np
import pytest

from kreg.pairwise import EdgeSampler, Sampler, UniformSampler

SHAPES = [(37, 53), (2, 90), (1, 40), (9, 11, 14)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
SAMPLERS = [UniformSampler(), EdgeSampler(), EdgeSampler(floor=0.0)]
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)


def image(shape, *, channels=1, seed=0):
    values = np.random.default_rng(seed).normal(size=(*shape, channels))
    return np.cumsum(values, axis=0).astype("float32")


def drawn(sampler, shape, n, *, mask=None, seed=0, values=None):
    draw = sampler.drawer(image(shape) if values is None else values, mask)
    return draw(np.random.default_rng(seed), n)


@each_sampler
@each_shape
@pytest.mark.parametrize("n", [2, 17, 500])
def test_draws_so_many_points_within_the_image(sampler, shape, n):
    points = drawn(sampler, shape, n)
    assert points.shape == (n, len(shape))
    assert (points >= -0.5).all()
    assert (points <= np.asarray(shape) - 0.5).all()


@each_sampler
def test_the_same_seed_draws_the_same_points(sampler):
    first, second, other = (drawn(sampler, (37, 53), 50, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_uniform_points_are_spread_evenly():
    n = 4096
    points = drawn(UniformSampler(), (128, 256), n)
    counts, *_ = np.histogram2d(*points.T, bins=(8, 16), range=((-0.5, 127.5), (-0.5, 255.5)))
    # 32 a bin: independent points would deviate by 5.7, one in each cell by about 1.
    assert counts.std() < 2.5
    assert abs(points.mean(0) - (63.5, 127.5)).max() < 1.5


def test_uniform_points_are_anywhere_between_the_voxels():
    fraction = drawn(UniformSampler(), (32, 32), 4096) % 1
    counts, *_ = np.histogram2d(*fraction.T, bins=4)
    assert abs(counts / 256 - 1).max() < 0.3


@each_sampler
def test_neighbours_come_in_turn(sampler):
    points = drawn(sampler, (64, 64), 2000)
    assert np.median(np.linalg.norm(np.diff(points, axis=0), axis=1)) < 4


@each_sampler
def test_no_point_lies_in_a_voxel_outside_the_mask(sampler):
    mask = np.zeros((37, 53), "float32")
    mask[5:20, 30:] = 1
    mask[0, 0] = 1
    points = drawn(sampler, mask.shape, 3000, mask=mask)
    nearest = np.clip(np.round(points).astype(int), 0, np.asarray(mask.shape) - 1)
    assert (mask[tuple(nearest.T)] > 0).all()


def test_points_follow_the_weights_of_the_mask():
    mask = np.ones((40, 60), "float32")
    mask[:, 30:] = 0.25
    points = drawn(UniformSampler(), mask.shape, 5000, mask=mask)
    assert np.mean(points[:, 1] < 29.5) == pytest.approx(0.8, abs=0.01)


def test_edges_are_sampled_in_proportion_to_their_slope():
    """A ramp of slope 1 beside a flat half: weights 2 + floor and floor, in units of the mean."""
    values = np.zeros((40, 80, 1), "float32")
    values[:, 40:, 0] = np.arange(40)
    for floor in (0.0, 0.5):
        points = drawn(EdgeSampler(floor), (40, 80), 8000, values=values)
        slope = np.abs(np.gradient(values[..., 0], axis=1))
        density = floor + slope / slope.mean()
        expected = density[:, 40:].sum() / density.sum()
        assert np.mean(points[:, 1] > 39.5) == pytest.approx(expected, abs=0.01)


def test_a_flat_image_is_sampled_evenly_as_far_as_the_floor_allows():
    flat = np.ones((20, 30, 1), "float32")
    points = drawn(EdgeSampler(), (20, 30), 3000, values=flat)
    assert np.mean(points[:, 1] < 14.5) == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ValueError, match=r"voxels to sample.*UniformSampler\(\)"):
        EdgeSampler(floor=0.0).drawer(flat, None)


@each_sampler
def test_an_empty_mask_is_refused(sampler):
    with pytest.raises(ValueError, match=r"mask.*all zero.*widen"):
        sampler.drawer(image((9, 12)), np.zeros((9, 12)))


def test_a_sampler_of_ones_own_is_a_density():
    class Left(Sampler):
        def density(self, values):
            return np.eye(1, values.shape[1], 2) * np.ones((values.shape[0], 1))

    points = drawn(Left(), (20, 30), 400)
    assert (np.round(points[:, 1]) == 2).all()
    with pytest.raises(NotImplementedError, match="Sampler must define density"):
        Sampler().drawer(image((9, 12)), None)
