import numpy as np
import pytest
from keras import ops

from kreg import backend
from tests.gradients import gradients

X = np.linspace(-1, 1, 6, dtype="float32")


def cube(x, y):
    """x^2 y"""
    return ops.sum(ops.square(x) * y)


def test_a_compiled_function_gives_the_same_values_and_gradients():
    compiled = backend.compiled(cube)
    y = X[::-1] + 2
    tensors = ops.convert_to_tensor(X), ops.convert_to_tensor(y)
    assert float(compiled(*tensors)) == pytest.approx(float(np.sum(X**2 * y)), rel=1e-5)
    to_x, to_y = gradients(compiled, X, y)
    np.testing.assert_allclose(to_x, 2 * X * y, atol=1e-5)
    np.testing.assert_allclose(to_y, X**2, atol=1e-5)


def test_a_compiled_function_takes_any_shape_and_rank():
    compiled = backend.compiled(lambda x: ops.sum(x, axis=-1))
    for shape in [(3,), (2, 3), (4, 3), (2, 2, 3)]:
        x = ops.ones(shape)
        np.testing.assert_array_equal(ops.convert_to_numpy(compiled(x)), np.full(shape[:-1], 3.0))


def test_repeat_applies_a_function_so_many_times():
    start = ops.convert_to_tensor(X)
    for times in (0, 1, 5):
        result = ops.convert_to_numpy(backend.repeat(lambda x: 2 * x, times, start))
        np.testing.assert_array_equal(result, 2**times * X)
    (gradient,) = gradients(lambda x: ops.sum(backend.repeat(ops.square, 2, x)), X)
    np.testing.assert_allclose(gradient, 4 * X**3, atol=1e-5)
