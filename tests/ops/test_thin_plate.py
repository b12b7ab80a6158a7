import numpy as np
import pytest
from keras import ops
from scipy.interpolate import RBFInterpolator

from kreg.ops import thin_plate, warp
from kreg.ops.thin_plate import thin_plate_displacement, thin_plate_spline
from tests.fields import SHAPES, grid
from tests.gradients import central_differences, gradients

each_dimension = pytest.mark.parametrize("dimensions", [2, 3])
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)

# SciPy's names of the biharmonic kernels in 2-D and in 3-D.
SCIPY_KERNELS = {2: "thin_plate_spline", 3: "linear"}


def control_points(dimensions, *, number=8, batch=2, size=20.0, moved=2.0, seed=0):
    """Points all over an image of that size, and where they go."""
    rng = np.random.default_rng(seed)
    source = rng.uniform(0, size, (batch, number, dimensions))
    target = source + rng.normal(0, moved, source.shape)
    return source.astype("float32"), target.astype("float32")


def random_points(dimensions, *number, batch=2, size=20.0):
    rng = np.random.default_rng(1)
    return rng.uniform(-2, size + 2, (batch, *number, dimensions)).astype("float32")


def by_scipy(source, target, points, regularisation=0.0):
    mapped = [
        RBFInterpolator(
            s.astype("float64"),
            t.astype("float64"),
            kernel=SCIPY_KERNELS[s.shape[-1]],
            smoothing=regularisation,
            degree=1,
        )(x.reshape(-1, s.shape[-1]).astype("float64"))
        for s, t, x in zip(source, target, points, strict=True)
    ]
    return np.reshape(mapped, points.shape)


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


@each_dimension
@pytest.mark.parametrize("regularisation", [0.0, 3.0])
def test_equals_scipy(dimensions, regularisation):
    source, target = control_points(dimensions)
    points = random_points(dimensions, 3, 10)
    found = numpy(thin_plate_spline(source, target, points, regularisation=regularisation))
    expected = by_scipy(source, target, points, regularisation)
    assert np.abs(expected - points).max() > 1
    np.testing.assert_allclose(found, expected, atol=5e-4)


@each_dimension
def test_meets_thirty_control_points_of_a_large_image(dimensions):
    source, target = control_points(dimensions, number=30, size=255.0, moved=5.0)
    np.testing.assert_allclose(numpy(thin_plate_spline(source, target, source)), target, atol=1e-3)


@each_dimension
def test_two_points_in_one_place_meet_in_the_middle(dimensions):
    source, target = control_points(dimensions)
    source[:, 1] = source[:, 0]
    points = random_points(dimensions, 20)
    found = numpy(thin_plate_spline(source, target, points, regularisation=2.0))
    np.testing.assert_allclose(found, by_scipy(source, target, points, 2.0), atol=1e-4)


@each_dimension
@pytest.mark.parametrize("regularisation", [0.0, 10.0])
def test_points_moved_by_an_affine_map_give_that_map(dimensions, regularisation):
    rng = np.random.default_rng(3)
    matrix = np.eye(dimensions) + rng.normal(0, 0.3, (dimensions, dimensions))
    source, _ = control_points(dimensions)
    points = random_points(dimensions, 20)
    found = thin_plate_spline(source, source @ matrix + 5, points, regularisation=regularisation)
    np.testing.assert_allclose(numpy(found), points @ matrix + 5, atol=1e-3)


@each_dimension
def test_much_regularisation_leaves_the_best_affine_map(dimensions):
    source, target = control_points(dimensions, batch=1)
    points = random_points(dimensions, 20, batch=1)

    def rows(x):
        return np.concatenate([np.ones((len(x), 1)), x], axis=1)

    affine = np.linalg.lstsq(rows(source[0]), target[0], rcond=None)[0]
    found = numpy(thin_plate_spline(source, target, points, regularisation=1e7))
    np.testing.assert_allclose(found[0], rows(points[0]) @ affine, atol=2e-3)
    assert np.abs(rows(source[0]) @ affine - target[0]).max() > 0.5


@each_dimension
def test_another_unit_and_origin_change_nothing(dimensions):
    source, target = control_points(dimensions)
    points = random_points(dimensions, 20)
    unit, origin = 0.25, 30.0
    expected = numpy(thin_plate_spline(source, target, points, regularisation=3.0))
    others = (unit * x + origin for x in (source, target, points))
    found = thin_plate_spline(*others, regularisation=3.0 * unit ** (4 - dimensions))
    np.testing.assert_allclose(numpy(found), unit * expected + origin, atol=1e-4)


def test_one_set_serves_a_batch():
    source, target = control_points(2)
    points = random_points(2, 9, batch=1)
    found = numpy(thin_plate_spline(source, target, points))
    repeated = numpy(thin_plate_spline(source, target, np.repeat(points, 2, axis=0)))
    np.testing.assert_allclose(found, repeated, atol=1e-5)
    more = random_points(2, 9, batch=3)
    found = numpy(thin_plate_spline(source[:1], target[:1], more))
    expected = by_scipy(np.repeat(source[:1], 3, 0), np.repeat(target[:1], 3, 0), more)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(("dimensions", "regularisation"), [(2, 0.0), (2, 0.5), (3, 0.0)])
def test_gradients_equal_central_differences(dimensions, regularisation):
    source, target = control_points(dimensions, batch=1, number=6, size=2.0, moved=0.3)
    arrays = source, target, random_points(dimensions, 5, batch=1, size=2.0)

    def energy(source, target, points):
        mapped = thin_plate_spline(source, target, points, regularisation=regularisation)
        return ops.mean(ops.square(mapped - 0.5), axis=(1, 2))

    found = gradients(lambda *x: ops.sum(energy(*x)), *arrays)
    for argument in range(3):
        expected = central_differences(energy, *arrays, argument=argument)
        np.testing.assert_allclose(found[argument], expected, rtol=1e-2, atol=3e-3)
        assert np.abs(expected).max() > 0.02


@each_dimension
def test_gradients_at_the_control_points_are_finite(dimensions):
    source, target = control_points(dimensions, batch=1)
    found = gradients(lambda *x: ops.sum(ops.square(thin_plate_spline(*x))), source, target, source)
    for gradient in found:
        assert np.all(np.isfinite(gradient))
    # At a control point the map stays at its target, which alone has a gradient then.
    np.testing.assert_allclose(found[1], 2 * target, rtol=1e-2, atol=1e-1)


@each_shape
def test_the_displacement_is_the_spline_on_the_grid(shape):
    source, target = control_points(len(shape), size=8.0)
    found = numpy(thin_plate_displacement(source, target, shape, regularisation=1.0))
    points = np.repeat(grid(shape)[None], 2, axis=0)
    np.testing.assert_allclose(found, by_scipy(source, target, points, 1.0) - points, atol=1e-4)


@each_shape
def test_a_slab_at_a_time_gives_the_same(shape, monkeypatch):
    source, target = control_points(len(shape), size=8.0)
    expected = numpy(thin_plate_displacement(source, target, shape))
    for pairs in (1, 2 * source[..., 0].size * int(np.prod(shape[1:]))):  # one plane, or two
        monkeypatch.setattr(thin_plate, "_PAIRS", pairs)
        found = numpy(thin_plate_displacement(source, target, shape))
        np.testing.assert_allclose(found, expected, atol=1e-5)


@each_shape
def test_warping_brings_targets_to_their_sources(shape):
    dimensions = len(shape)
    source = np.array([[1, 2, 1], [5, 1, 3], [4, 6, 2], [2, 5, 5], [1, 1, 4]], "float32")
    source = source[None, :, :dimensions]
    offset = np.array([[1, 0, 0], [0, 1, 1], [-1, 0, 1], [0, -1, 0], [1, 0, -1]], "float32")
    target = source + offset[None, :, :dimensions]
    moving = np.zeros((1, *shape, 1), "float32")
    for value, point in enumerate(target[0].astype(int), 1):
        moving[(0, *point, 0)] = value
    warped = numpy(warp(moving, thin_plate_displacement(source, target, shape)))
    for value, point in enumerate(source[0].astype(int), 1):
        assert warped[(0, *point, 0)] == pytest.approx(value, abs=1e-3)


@each_dimension
def test_refuses_too_few_points(dimensions):
    source, target = control_points(dimensions, number=dimensions)
    with pytest.raises(ValueError, match=rf"at least {dimensions + 1} control points.*Received"):
        thin_plate_spline(source, target, source)


@pytest.mark.parametrize(
    ("source", "target"),
    [((2, 5, 2), (2, 6, 2)), ((5, 2), (5, 2)), ((2, 5, 4), (2, 5, 4)), ((2, 5, 2), (1, 5, 2))],
)
def test_refuses_points_without_partners(source, target):
    with pytest.raises(ValueError, match=r"`source` and `target` of equal shape.*Received: source"):
        thin_plate_spline(np.zeros(source), np.zeros(target), np.zeros(source))


@pytest.mark.parametrize("points", [(4, 2), (2, 4, 3), (3, 4, 2)])
def test_refuses_points_to_map_that_do_not_fit(points):
    source, target = control_points(2)
    with pytest.raises(ValueError, match=r"`points` of shape \(batch, ..., 2\).*Received: points"):
        thin_plate_spline(source, target, np.zeros(points, "float32"))


def test_refuses_a_grid_of_another_dimension():
    with pytest.raises(ValueError, match=r"2 spatial sizes.*Received: shape \(4, 5, 6\)"):
        thin_plate_displacement(*control_points(2), (4, 5, 6))


def test_refuses_negative_regularisation():
    source, target = control_points(2)
    with pytest.raises(ValueError, match=r"`regularisation` >= 0\. Received: -1"):
        thin_plate_spline(source, target, source, regularisation=-1)
