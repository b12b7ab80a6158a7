import numpy as np
import pytest
from keras import ops
from scipy.interpolate import BSpline

from kreg.ops.bspline import bspline_displacement, bspline_grid_shape, bspline_operator
from tests.fields import SHAPES, grid
from tests.gradients import central_differences, gradients

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
SPACINGS = [1, 3, 2.5, 4.0, 20]  # some divide the axes, some do not, one is beyond them
each_spacing = pytest.mark.parametrize("spacing", SPACINGS)


def random_coefficients(shape, spacing, *, batch=2):
    control = bspline_grid_shape(shape, spacing)
    rng = np.random.default_rng(0)
    return rng.normal(size=(batch, *control, len(shape))).astype("float32")


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def by_scipy(coefficients, shape, spacings):
    """The tensor product of SciPy's one-dimensional splines, in knots of its own."""
    field = coefficients.astype("float64")
    for axis, (size, spacing) in enumerate(zip(shape, spacings, strict=True), 1):
        number = field.shape[axis]
        # Control point i is the middle of the five knots that its spline reaches over.
        knots = spacing * (np.arange(number + 4) - 3.0)
        # The last voxel may lie on the last knot, where SciPy's spline ends.
        at = np.minimum(np.arange(size), knots[number] * (1 - 1e-12))
        field = np.moveaxis(BSpline(knots, np.moveaxis(field, axis, 0), 3)(at), 0, axis)
    return field


@each_shape
@each_spacing
def test_equals_scipy(shape, spacing):
    coefficients = random_coefficients(shape, spacing)
    found = numpy(bspline_displacement(coefficients, shape, spacing=spacing))
    expected = by_scipy(coefficients, shape, [spacing] * len(shape))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@each_shape
def test_each_axis_may_have_its_spacing(shape):
    spacings = [2, 5.5, 3][: len(shape)]
    coefficients = random_coefficients(shape, spacings)
    found = numpy(bspline_displacement(coefficients, shape, spacing=spacings))
    np.testing.assert_allclose(found, by_scipy(coefficients, shape, spacings), atol=1e-5)


@each_spacing
@pytest.mark.parametrize("size", [1, 2, 12, 13])
def test_the_control_grid_is_the_smallest_with_all_supports(size, spacing):
    operator = bspline_operator(size, spacing)
    assert operator.shape == (size, *bspline_grid_shape([size], spacing))
    np.testing.assert_allclose(operator.sum(axis=1), np.ones(size), atol=1e-6)
    assert np.all(operator.max(axis=0) > 0)  # each control point moves a voxel


def test_control_points_lie_where_they_are_said_to():
    operator = bspline_operator(13, 3)
    for voxel in range(0, 13, 3):
        expected = np.zeros(operator.shape[1])
        expected[voxel // 3 : voxel // 3 + 3] = 1 / 6, 2 / 3, 1 / 6
        np.testing.assert_allclose(operator[voxel], expected, atol=1e-6)


@each_shape
@each_spacing
def test_equal_coefficients_are_a_constant_field(shape, spacing):
    shift = np.arange(1.0, len(shape) + 1)
    coefficients = np.zeros_like(random_coefficients(shape, spacing)) + shift.astype("float32")
    found = numpy(bspline_displacement(coefficients, shape, spacing=spacing))
    np.testing.assert_allclose(found, np.broadcast_to(shift, found.shape), rtol=1e-5)


@each_shape
@each_spacing
def test_linear_coefficients_are_a_linear_field(shape, spacing):
    dimensions = len(shape)
    matrix = np.random.default_rng(0).normal(size=(dimensions, dimensions))
    control = spacing * (grid(bspline_grid_shape(shape, spacing)) - 1)
    found = numpy(bspline_displacement((control @ matrix)[None], shape, spacing=spacing))
    np.testing.assert_allclose(found[0], grid(shape) @ matrix, atol=2e-4)


def test_two_derivatives_are_continuous_and_the_third_is_not():
    # Finely sampled splines with knots 50 voxels apart: what jumps, jumps at a knot.
    spacing = 50
    coefficients = random_coefficients((201,), spacing, batch=1)[0, :, 0]
    values = bspline_operator(201, spacing).astype("float64") @ coefficients
    slopes = np.diff(values) * spacing
    curvatures = np.diff(slopes) * spacing
    thirds = np.diff(curvatures[:190:10]) * 5
    for derivative in (values, slopes, curvatures):
        assert np.abs(np.diff(derivative)).max() < 0.1 * np.ptp(derivative)
    assert np.abs(np.diff(thirds)).max() > 0.3 * np.ptp(thirds)


@each_shape
def test_the_gradient_equals_central_differences(shape):
    coefficients = random_coefficients(shape, 8, batch=1)

    def energy(coefficients):
        field = bspline_displacement(coefficients, shape, spacing=8)
        return ops.mean(ops.square(field - 1), axis=tuple(range(1, len(shape) + 2)))

    (found,) = gradients(lambda x: ops.sum(energy(x)), coefficients)
    expected = central_differences(energy, coefficients, step=0.1)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected).max() > 0.01


def test_refuses_another_control_grid():
    coefficients = random_coefficients((9, 12), 3)
    with pytest.raises(ValueError, match=r"control grid of \(5, 6\).*Received: \(6, 7\)"):
        bspline_displacement(coefficients, (9, 12), spacing=4)
    with pytest.raises(ValueError, match=r"control grid of \(6, 7, 5\).*Received: \(6, 7\)"):
        bspline_displacement(coefficients, (9, 12, 6), spacing=3)


def test_refuses_coefficients_that_are_no_field():
    with pytest.raises(ValueError, match=r"`coefficients` of shape.*Received: shape"):
        bspline_displacement(np.zeros((1, 6, 7, 3), "float32"), (9, 12), spacing=3)


@pytest.mark.parametrize("spacing", [0, -2, (3, 0), (3, 3, 3), float("nan")])
def test_refuses_spacings_that_are_none(spacing):
    with pytest.raises(ValueError, match=r"`spacing` to be a positive.*2 spatial axes\. Received"):
        bspline_grid_shape((9, 12), spacing)


def test_refuses_unknown_sizes():
    with pytest.raises(ValueError, match=r"known spatial sizes.*Received: \(9, None\)"):
        bspline_grid_shape((9, None), 3)
