import numpy as np
import pytest
from keras import ops
from scipy.linalg import expm

from kreg.groups import Affine, Homography, Rigid, Translation
from kreg.pairwise import CriticRatio, FisherScoring, HistogramRatio, LogRatio
from kreg.pairwise.blocks import Block, Blocks, Frame
from kreg.pairwise.fisher import exponential, sampled, scorer, solve, update
from kreg.pairwise.pairs import to_tensors
from tests.fields import grid

GROUPS = [(Rigid(), 2), (Homography(), 2), (Affine(), 3)]  # each is compiled once
each_group = pytest.mark.parametrize(
    ("group", "dimensions"), GROUPS, ids=lambda x: type(x).__name__ if x not in (2, 3) else f"{x}-D"
)
CORNERS = {d: grid([2] * d).reshape(-1, d) * 2.0 - 1.0 for d in (2, 3)}


def near_identity(group, dimensions, *, batch=2, size=0.1, seed=0):
    """Matrices of a group."""
    generators = group.generators(dimensions).astype("float64")
    coefficients = np.random.default_rng(seed).uniform(-size, size, (batch, len(generators)))
    return np.stack([expm(np.tensordot(c, generators, 1)) for c in coefficients])


def moved(matrix, points):
    image = np.c_[points, np.ones(len(points))] @ matrix.T
    return image[:, :-1] / image[:, -1:]


@pytest.mark.parametrize("norm", [0, 1e-6, 0.1, 1, 10])
@pytest.mark.parametrize("size", [3, 4])
def test_the_exponential_is_scipys(size, norm):
    matrices = np.random.default_rng(0).normal(size=(2, 5, size, size))
    matrices *= norm / np.linalg.norm(matrices, 2, axis=(-2, -1), keepdims=True)
    expected = np.array([[expm(one) for one in row] for row in matrices])
    scale = np.abs(expected).max(axis=(-2, -1), keepdims=True)
    np.testing.assert_allclose(exponential(matrices) / scale, expected / scale, atol=1e-12)


# --- the step ---


def information_of(size, *, batch=3, seed=0):
    scores = np.random.default_rng(seed).normal(size=(batch, 50, size)) * 10.0 ** np.arange(size)
    return np.swapaxes(scores, 1, 2) @ scores / 50


@pytest.mark.parametrize("damping", [0.0, 1e-3, 0.5])
def test_solves_the_documented_equation(damping):
    information = information_of(4)
    gradient = np.random.default_rng(1).normal(size=(3, 4))
    for a, g, found in zip(
        information, gradient, solve(gradient, information, damping), strict=True
    ):
        inverse = np.diag(1 / np.sqrt(np.diag(a)))
        damped = inverse @ a @ inverse + damping * np.eye(4)
        np.testing.assert_allclose(found, inverse @ np.linalg.inv(damped) @ inverse @ g, rtol=1e-6)


def test_the_step_does_not_depend_on_the_units_of_the_coefficients():
    information, gradient = information_of(4), np.random.default_rng(1).normal(size=(3, 4))
    units = np.array([1, 100, 0.01, 7])
    expected = solve(gradient, information, 0.1)
    scaled = solve(gradient * units, information * units[:, None] * units, 0.1)
    np.testing.assert_allclose(scaled * units, expected, rtol=1e-9)


def test_what_nothing_depends_on_stays():
    information, gradient = information_of(4), np.ones((3, 4))
    information[:, 2] = information[:, :, 2] = gradient[:, 2] = 0
    found = solve(gradient, information, 1e-3)
    np.testing.assert_array_equal(found[:, 2], 0)
    rest = [0, 1, 3]
    kept = solve(gradient[:, rest], information[np.ix_(range(3), rest, rest)], 1e-3)
    np.testing.assert_allclose(found[:, rest], kept, rtol=1e-9)
    np.testing.assert_array_equal(solve(0 * gradient, 0 * information, 1e-3), 0)


@each_group
def test_small_steps_are_the_exponential_from_the_left(group, dimensions):
    generators = group.generators(dimensions)
    matrices = near_identity(group, dimensions)
    step = 1e-3 * np.random.default_rng(2).normal(size=(2, len(generators)))
    found, motion = update(matrices, step, generators, CORNERS[dimensions], cap=1.0)
    for one, before, after, largest in zip(step, matrices, found, motion, strict=True):
        expected = expm(np.tensordot(one, generators.astype("float64"), 1)) @ before
        np.testing.assert_allclose(after, expected / expected[-1, -1], atol=1e-12)
        ends = [moved(m, CORNERS[dimensions]) for m in (before, after)]
        way = np.linalg.norm(ends[1] - ends[0], axis=1).max()
        assert largest == pytest.approx(way, rel=0.02)


@each_group
@pytest.mark.parametrize("cap", [0.02, 0.1])
def test_large_steps_move_no_corner_by_more_than_the_cap(group, dimensions, cap):
    generators = group.generators(dimensions)
    matrices = near_identity(group, dimensions, batch=4)
    step = np.random.default_rng(2).normal(size=(4, len(generators)))
    step[3] *= 1e-5
    found, motion = update(matrices, step, generators, CORNERS[dimensions], cap)
    ways = [
        np.linalg.norm(np.subtract(*(moved(m, CORNERS[dimensions]) for m in two)), axis=1).max()
        for two in zip(matrices, found, strict=True)
    ]
    # The motion is that of the tangent: the exponential bends a little.
    np.testing.assert_allclose(ways[:3], cap, rtol=0.15)
    np.testing.assert_allclose(motion[:3], cap)
    assert ways[3] < 1e-3 * cap * 10
    np.testing.assert_allclose(found[:, -1, -1], 1)


def test_rigid_steps_stay_rigid():
    matrices = np.eye(4)[None]
    generators = Rigid().generators(3)
    rng = np.random.default_rng(0)
    for _ in range(200):
        matrices, _ = update(matrices, rng.normal(size=(1, 6)), generators, CORNERS[3], cap=0.1)
    rotation = matrices[0, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)


# --- scores ---


class Squares(LogRatio):
    """T = -(f - m)^2: nothing to estimate, so that its slope is known."""

    def log_ratio(self, weights, fixed, moving, inside):
        ratio = -ops.sum(ops.square(fixed - moving), axis=-1)
        return ratio, ops.sum(ratio * inside, axis=1) / ops.sum(inside, axis=1)


SQUARES = Squares()


def planes(dimensions, *, seed=0, mask=None):
    """Images whose values are a . x + c in the world: linear interpolation is exact."""
    rng = np.random.default_rng(seed)
    shape = (12, 15, 10)[:dimensions]
    spacing = np.linspace(0.2, 0.25, dimensions)
    frame = Frame(spacing, -spacing * (np.asarray(shape) - 1) / 2)
    slopes, shifts = rng.uniform(-1, 1, (2, dimensions)), rng.uniform(-1, 1, (2, 1))
    world = frame.to_world(grid(shape))
    values = np.stack([world @ slope + shift for slope, shift in zip(slopes, shifts, strict=True)])
    weight = np.ones_like(values) if mask is None else np.broadcast_to(mask, values.shape)
    array = np.stack([values, weight], axis=-1).astype("float32")
    return Blocks([Block(array, frame)]), slopes, shifts, frame


def images_of(fixed, moving):
    first = np.arange(2, dtype="int32")
    buffers = [fixed.rows, moving.rows]
    rest = [fixed.table(), moving.table(), first * fixed.count, first * moving.count]
    return (*buffers, *to_tensors(rest))


def draw(dimensions, n=400, *, size=1.4, seed=3):
    points = np.random.default_rng(seed).uniform(-size, size, (2, n, dimensions))
    return points.astype("float32"), np.zeros(n, "int32")


def rows_of(group, dimensions):
    generators = group.generators(dimensions)
    return generators.reshape(len(generators), -1).astype("float32")


@each_group
def test_gradient_and_information_are_those_of_the_slopes(group, dimensions):
    """u_k = dT/dm grad m . (B_k y - y (p . y)), point by point in float64."""
    fixed, fixed_slopes, fixed_shifts, _ = planes(dimensions)
    moving, slopes, shifts, frame = planes(dimensions, seed=1)
    points, block = draw(dimensions)
    matrices = near_identity(group, dimensions)
    compiled = scorer(SQUARES)
    *_, gradient, information, similarity, overlap = compiled.step(
        [],
        [],
        to_tensors(np.float32(0)),
        images_of(fixed, moving),
        *to_tensors([points, block, matrices.astype("float32"), rows_of(group, dimensions)]),
    )
    found = [ops.convert_to_numpy(x) for x in (gradient, information, similarity, overlap)]
    generators = group.generators(dimensions).astype("float64")
    for k in range(2):
        there = moved(matrices[k], points[k].astype("float64"))
        f = points[k] @ fixed_slopes[k] + fixed_shifts[k]
        m = there @ slopes[k] + shifts[k]
        inside = (np.abs(points[k]) <= -frame.origin).all(1) & (np.abs(there) <= -frame.origin).all(
            1
        )
        homogeneous = np.c_[there, np.ones(len(there))]
        scores = []
        for generator in generators:
            flow = homogeneous @ generator.T
            flow = flow[:, :-1] - there * flow[:, -1:]
            scores.append(2 * (f - m) * (flow @ slopes[k]) * inside)
        scores = np.stack(scores, axis=1)
        total = inside.sum()
        assert 0.3 < inside.mean() < 1
        expected = scores.sum(0) / total, scores.T @ scores / total
        np.testing.assert_allclose(found[0][k], expected[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found[1][k], expected[1], rtol=1e-3, atol=1e-3)
        assert found[2][k] == pytest.approx(np.mean(-((f - m) ** 2)[inside]), rel=1e-4)
        assert inside.mean() <= found[3][k] <= 1  # a share of the samples in the fixed image


@each_group
def test_the_gradient_is_the_difference_of_similarities(group, dimensions):
    """d/dh similarity(exp(h B_k) H) at 0, for points that all stay inside."""
    fixed, *_ = planes(dimensions)
    moving, *_ = planes(dimensions, seed=1)
    points, block = draw(dimensions, size=0.7)
    compiled = scorer(SQUARES)
    images = images_of(fixed, moving)

    def scored(matrices):
        *_, gradient, _, similarity, overlap = compiled.step(
            [],
            [],
            to_tensors(np.float32(0)),
            images,
            *to_tensors([points, block, matrices.astype("float32"), rows_of(group, dimensions)]),
        )
        np.testing.assert_array_equal(ops.convert_to_numpy(overlap), 1)
        return ops.convert_to_numpy(gradient), ops.convert_to_numpy(similarity).astype("float64")

    matrices = near_identity(group, dimensions, size=0.05)
    gradient, _ = scored(matrices)
    step = 1e-2
    for k, generator in enumerate(group.generators(dimensions).astype("float64")):
        ahead, behind = (scored(expm(h * generator) @ matrices)[1] for h in (step, -step))
        np.testing.assert_allclose(
            gradient[:, k], (ahead - behind) / (2 * step), rtol=5e-3, atol=5e-4
        )


def test_masks_and_borders_weight_the_samples():
    mask = np.ones((12, 15), "float32")
    mask[:, :7] = 0.0
    mask[:, 7] = 0.5
    fixed, *_, frame = planes(2, mask=mask)
    moving, *_ = planes(2, seed=1, mask=mask[:, ::-1])
    points, block = draw(2)
    shift = np.eye(3)
    shift[0, 2] = 0.3
    matrices = np.stack([np.eye(3), shift]).astype("float32")
    _, there, _, inside, overlap = (
        ops.convert_to_numpy(x)
        for x in sampled(images_of(fixed, moving), *to_tensors([points, block, matrices]))
    )
    for k in range(2):
        np.testing.assert_allclose(
            there[k], moved(matrices[k].astype("float64"), points[k]), atol=1e-6
        )
        expected = np.ones(len(points[k]))
        for place, weight in [(points[k], mask), (there[k], mask[:, ::-1])]:
            voxels = frame.to_voxels(place)
            column = np.clip(voxels[:, 1], 0, 14)
            expected *= np.interp(column, np.arange(15), weight[0])
            expected *= ((voxels >= 0) & (voxels <= (11, 14))).all(1)
        np.testing.assert_allclose(inside[k], expected, atol=1e-5)
        voxels = frame.to_voxels(points[k])
        own = np.interp(np.clip(voxels[:, 1], 0, 14), np.arange(15), mask[0])
        own *= ((voxels >= 0) & (voxels <= (11, 14))).all(1)
        assert overlap[k] == pytest.approx(expected.sum() / own.sum(), rel=1e-4)


# --- weights ---


class Fitted(LogRatio):
    """T = w f m, trained to w = 2."""

    trained = True

    def objective(self, weights, fixed, moving, inside):
        return ops.sum(ops.square(weights[0] - 2.0), axis=-1)

    def log_ratio(self, weights, fixed, moving, inside):
        return weights[0] * fixed[..., 0] * moving[..., 0], ops.sum(weights[0], axis=-1)


FITTED = Fitted()


def test_weights_are_trained_by_adam_pair_by_pair():
    fixed, *_ = planes(2)
    points, block = draw(2)
    compiled, generators = scorer(FITTED), to_tensors(rows_of(Translation(), 2))
    matrices = np.stack([np.eye(3)] * 2).astype("float32")
    images, draws = images_of(fixed, fixed), to_tensors([points, block, matrices])
    expected = np.array([[0.0], [5.0]])
    weights = to_tensors([expected.astype("float32")])
    state = compiled.similarity.train_state(weights)
    first = second = np.zeros_like(expected)
    for count in range(1, 6):
        rate = 0.3 / count
        step, more = (compiled.trained_only, []) if count < 3 else (compiled.step, [generators])
        rates = to_tensors(np.float32(rate))
        weights, state, *_ = step(weights, state, rates, images, *draws, *more)
        slope = 2 * (expected - 2)
        first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope**2
        corrected = first / (1 - 0.9**count), second / (1 - 0.99**count)
        expected = expected - rate * corrected[0] / (np.sqrt(corrected[1]) + 1e-7)
        np.testing.assert_allclose(ops.convert_to_numpy(weights[0]), expected, rtol=1e-4)


def test_only_trained_similarities_have_a_state():
    assert HistogramRatio().train_state([]) == []
    count, means, squares = CriticRatio().train_state([ops.ones((2, 3))])
    assert float(count) == 0
    for moments in (means, squares):
        np.testing.assert_array_equal(ops.convert_to_numpy(moments[0]), np.zeros((2, 3)))


def test_one_scorer_serves_all_calls():
    assert scorer(HistogramRatio()) is scorer(HistogramRatio(48))
    assert scorer(HistogramRatio()) is not scorer(HistogramRatio(32))
    assert FisherScoring() == FisherScoring(damping=None, cap=2.0)
