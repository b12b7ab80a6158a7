"""What SelectDisplacement does, beside what holds for every layer."""

import numpy as np
import pytest
from keras import ops
from scipy import ndimage

from kreg.layers import SelectDisplacement
from kreg.ops import LocallyNormalised, TensorCorrelation, nearest_border, warp
from tests.fields import smooth_field
from tests.gradients import gradients


@pytest.fixture(autouse=True)
def _uncompiled(uncompiled_refinement):
    """See there."""


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def pairs(shape, batch=3):
    """Fixed and moving images, the fields between them and wrong ones."""
    noise = np.random.default_rng(0).normal(size=(batch, *shape, 1))
    moving = ndimage.gaussian_filter(noise, (0, *(1.5,) * len(shape), 0)).astype("float32")
    truth = smooth_field(shape, 1.5, sigma=5.0, batch=batch)
    return numpy(warp(moving, truth, border=nearest_border)), moving, truth, -truth


@pytest.mark.parametrize("shape", [(24, 30), (12, 14, 13)], ids=str)
@pytest.mark.parametrize("kind", [TensorCorrelation(), LocallyNormalised(sigma=4)], ids=str)
def test_takes_what_explains_the_pair_each_by_itself(shape, kind):
    fixed, moving, truth, wrong = pairs(shape)
    first = np.stack([truth[0], wrong[1], truth[2]])
    second = np.stack([wrong[0], truth[1], wrong[2]])
    layer = SelectDisplacement(saliency=kind)
    np.testing.assert_array_equal(numpy(layer(fixed, moving, first, second)), truth)


def test_the_cost_is_that_of_the_docstring():
    fixed, moving, truth, _ = pairs((20, 26), batch=1)
    power, kind = 3.0, TensorCorrelation((1.0,))

    def terms(u):
        warped = warp(moving, u, border=nearest_border)
        joint = numpy(kind(fixed, warped))
        slopes = np.stack(np.gradient(u[0], axis=(0, 1)))
        return 1 - np.mean(joint**power), np.mean(slopes**2)

    half = 0.5 * truth  # explains less, and bends less
    (unexplained, bending), (more, less) = terms(truth), terms(half)
    assert unexplained < more
    assert bending > less
    even = (more - unexplained) / (bending - less)  # the smoothness at which both cost the same
    for smoothness, expected in ((0.98 * even, truth), (1.02 * even, half)):
        layer = SelectDisplacement(saliency=kind, power=power, smoothness=smoothness)
        np.testing.assert_array_equal(numpy(layer(fixed, moving, half, truth)), expected)


def test_gradients_reach_what_is_taken_alone():
    fixed, moving, truth, wrong = pairs((16, 18), batch=2)
    layer = SelectDisplacement()
    found = gradients(
        lambda first, second: ops.sum(ops.square(layer(fixed, moving, first, second))),
        truth,
        wrong,
    )
    np.testing.assert_allclose(numpy(found[0]), 2 * truth, rtol=1e-5)
    np.testing.assert_array_equal(numpy(found[1]), 0)


@pytest.mark.parametrize("options", [{"power": 0}, {"smoothness": -1}], ids=str)
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"Expected.*Received"):
        SelectDisplacement(**options)


def test_displacements_of_another_size_are_refused():
    fixed, moving, truth, wrong = pairs((16, 18), batch=2)
    with pytest.raises(ValueError, match=r"grid of the images.*Received"):
        SelectDisplacement()(fixed, moving, truth, wrong[:, :-1])
