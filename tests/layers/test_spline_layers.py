"""Layers of splines: each is its function on the grid of an image."""

import keras
import numpy as np
import pytest
from keras import ops

from kreg.layers.bspline_field import BSplineField
from kreg.layers.thin_plate_spline import ThinPlateSpline
from kreg.ops.bspline import bspline_displacement
from kreg.ops.thin_plate import thin_plate_displacement
from tests.fields import SHAPES
from tests.gradients import gradients

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def control_points(shape, *, number=7, batch=2):
    rng = np.random.default_rng(0)
    source = rng.uniform(0, np.array(shape) - 1, (batch, number, len(shape)))
    target = source + rng.normal(0, 1.5, source.shape)
    return source.astype("float32"), target.astype("float32")


def image(shape, batch=2):
    return np.random.default_rng(1).uniform(size=(batch, *shape, 1)).astype("float32")


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


@each_shape
@pytest.mark.parametrize("regularisation", [0.0, 2.0])
def test_thin_plate_spline_is_its_function(shape, regularisation):
    source, target = control_points(shape)
    found = numpy(ThinPlateSpline(regularisation=regularisation)(source, target, image(shape)))
    expected = thin_plate_displacement(source, target, shape, regularisation=regularisation)
    assert np.abs(found).max() > 1
    np.testing.assert_allclose(found, numpy(expected), atol=1e-4)


@each_shape
def test_thin_plate_spline_passes_gradients_to_both_sets_of_points(shape):
    points, layer = control_points(shape, batch=1), ThinPlateSpline()

    def compiled(source, target):
        return ops.mean(ops.square(layer(source, target, image(shape, 1))))

    def plain(source, target):
        return ops.mean(ops.square(thin_plate_displacement(source, target, shape)))

    for found, expected in zip(
        gradients(compiled, *points), gradients(plain, *points), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
        assert np.abs(expected).max() > 0.1


def test_thin_plate_spline_refuses_what_its_function_does():
    source, target = control_points((9, 12))
    with pytest.raises(ValueError, match=r"at least 3 control points.*Received"):
        ThinPlateSpline()(source[:, :2], target[:, :2], image((9, 12)))
    with pytest.raises(ValueError, match=r"2 spatial sizes.*Received"):
        ThinPlateSpline()(source, target, image((6, 7, 8)))
    with pytest.raises(ValueError, match=r"`regularisation` >= 0\. Received: -1"):
        ThinPlateSpline(regularisation=-1)


@each_shape
@pytest.mark.parametrize("spacing", [3, 2.5])
def test_bspline_field_is_its_function(shape, spacing):
    layer = BSplineField(spacing)
    control = layer.grid_shape(shape)
    coefficients = np.random.default_rng(0).normal(size=(2, *control, len(shape)))
    found = numpy(layer(coefficients.astype("float32"), image(shape)))
    expected = bspline_displacement(coefficients, shape, spacing=spacing)
    np.testing.assert_allclose(found, numpy(expected), atol=1e-6)


def test_bspline_field_keeps_the_spacing_of_each_axis():
    layer = BSplineField((3, 4.5))
    twin = BSplineField.from_config(layer.get_config())
    assert twin.spacing == (3, 4.5)
    assert twin.grid_shape((9, 12)) == layer.grid_shape((9, 12)) == (6, 6)


def test_bspline_field_refuses_what_its_function_does():
    coefficients = np.zeros((1, 6, 7, 2), "float32")
    with pytest.raises(ValueError, match=r"control grid of \(5, 6\).*Received: \(6, 7\)"):
        BSplineField(4)(coefficients, image((9, 12), 1))
    with pytest.raises(ValueError, match=r"known spatial sizes.*Received: \(None, 12\)"):
        BSplineField(3)(keras.Input((6, 7, 2)), keras.Input((None, 12, 1)))
    with pytest.raises(ValueError, match=r"`spacing` to be a positive.*Received: 0"):
        BSplineField(0)(coefficients, image((9, 12), 1))
