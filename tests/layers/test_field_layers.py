"""Layers on fields: each is its function, and refuses what is no field."""

import numpy as np
import pytest
from keras import ops

import kreg
from kreg.layers import ComposeDisplacements, IntegrateVelocity, ResizeDisplacement
from kreg.ops import compose, integrate, resize
from tests.fields import SHAPES, smooth_field
from tests.gradients import central_differences, gradients

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


@each_shape
def test_compose_keeps_the_order_of_its_arguments(shape):
    outer, inner = smooth_field(shape, 1.0, seed=1), smooth_field(shape, 1.0, seed=2)
    found = numpy(ComposeDisplacements()(outer, inner))
    np.testing.assert_allclose(found, numpy(compose(outer, inner)), atol=1e-5)
    assert np.abs(found - numpy(compose(inner, outer))).max() > 1e-2


@pytest.mark.parametrize("shape", [(7, 9), (1, 6), (4, 5, 6)], ids=str)
def test_the_gradient_of_the_integral_is_that_of_the_function(shape):
    rng = np.random.default_rng(0)
    # Long enough for points beyond the border.
    velocity = rng.normal(0, 3, (2, *shape, len(shape))).astype("float32")
    weights = rng.normal(size=velocity.shape).astype("float32")
    functions = IntegrateVelocity(3), lambda field: integrate(field, 3)
    found, expected = (
        gradients(lambda field, own=own: ops.sum(ops.multiply(weights, own(field))), velocity)[0]
        for own in functions
    )
    np.testing.assert_allclose(numpy(found), numpy(expected), atol=1e-5 * np.abs(expected).max())


@each_shape
@pytest.mark.parametrize("steps", [0, 4, 7])
def test_integrate_is_the_function_and_inverted_by_the_negative(shape, steps):
    velocity = smooth_field(shape, 0.8)
    layer = IntegrateVelocity(steps)
    found = numpy(layer(velocity))
    np.testing.assert_allclose(found, numpy(integrate(velocity, steps)), atol=1e-5)
    if steps == 7:
        residual = numpy(compose(layer(velocity), layer(-velocity)))
        assert np.abs(residual).mean() < 0.02 < np.abs(found).mean()


@each_shape
def test_resize_takes_the_size_of_the_reference(shape):
    displacement = smooth_field(shape, 2.0)
    new = tuple(2 * size - 1 for size in shape)
    found = numpy(ResizeDisplacement()(displacement, np.zeros((1, *new, 4), "float32")))
    np.testing.assert_allclose(found, numpy(resize(displacement, new)), atol=1e-5)


@pytest.mark.parametrize("argument", [0, 1])
def test_gradients_of_compose_equal_central_differences(argument):
    # A quarter of a voxel off the centres: no cell ends within a step.
    fields = [0.3 + smooth_field((4, 5), 0.1, seed=seed) for seed in (1, 2)]

    def energy(outer, inner):
        return ops.sum(ops.square(ComposeDisplacements()(outer, inner)), axis=(1, 2, 3))

    found = gradients(lambda *x: ops.sum(energy(*x)), *fields)[argument]
    expected = central_differences(energy, *fields, argument=argument)
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_gradient_of_integrate_equals_central_differences():
    # Positive, below a voxel: every path stays within the cell that it starts in.
    velocity = 0.4 + smooth_field((4, 4), 0.1)
    layer = IntegrateVelocity(3)

    def energy(velocity):
        return ops.sum(ops.square(layer(velocity)), axis=(1, 2, 3))

    (found,) = gradients(lambda x: ops.sum(energy(x)), velocity)
    expected = central_differences(energy, velocity)
    np.testing.assert_allclose(found, expected, atol=5e-3)
    assert np.abs(expected).max() > 0.5


@pytest.mark.parametrize("wrong", [(2, 2, 9, 12), (2, 9, 12, 3), (9, 12, 2)])
@pytest.mark.parametrize(
    "call",
    [
        IntegrateVelocity(),
        lambda field: ComposeDisplacements()(field, field),
        lambda field: ResizeDisplacement()(field, np.zeros((2, 4, 4, 1), "float32")),
    ],
    ids=["IntegrateVelocity", "ComposeDisplacements", "ResizeDisplacement"],
)
def test_refuses_what_is_no_field(call, wrong):
    with pytest.raises(ValueError, match=r"as many components D.*Received: shape"):
        call(np.zeros(wrong, "float32"))


def test_refuses_unequal_batches_and_ranks():
    field = np.zeros((2, 9, 12, 2), "float32")
    with pytest.raises(ValueError, match=r"`outer` and `inner` of equal shape"):
        ComposeDisplacements()(field, field[:1])
    with pytest.raises(ValueError, match=r"Expected 2 new sizes.*Received"):
        ResizeDisplacement()(field, np.zeros((2, 4, 4, 4, 1), "float32"))


def test_integrate_refuses_negative_steps_when_made():
    with pytest.raises(ValueError, match=r"`steps` >= 0\. Received: -2"):
        IntegrateVelocity(-2)


def test_fields_of_unequal_size_are_not_composed():
    outer, inner = np.zeros((1, 8, 8, 2), "float32"), np.zeros((1, 16, 16, 2), "float32")
    with pytest.raises(ValueError, match="`outer` and `inner` of equal shape"):
        kreg.layers.ComposeDisplacements()(outer, inner)
