import keras
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


def test_a_jitted_function_takes_and_returns_lists_of_tensors():
    @backend.jit
    def swapped(first, others):
        return [other + first for other in reversed(others)], ops.sum(first)

    for size in (3, 5):  # compiled anew for new shapes
        first, others = X[:size], [X[:size], 2 * X[:size]]
        (high, low), total = swapped(
            ops.convert_to_tensor(first), [ops.convert_to_tensor(x) for x in others]
        )
        np.testing.assert_allclose(ops.convert_to_numpy(high), 3 * first, rtol=1e-6)
        np.testing.assert_allclose(ops.convert_to_numpy(low), 2 * first, rtol=1e-6)
        assert float(total) == pytest.approx(float(first.sum()), abs=1e-5)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="TensorFlow's choice")
def test_for_one_call_small_inputs_are_left_to_the_graph():
    import tensorflow as tf

    function = backend.jit(lambda x: ops.sum(ops.exp(x)))
    kinds = []

    def watched(*arguments, jit_compile, **options):
        kinds.append(jit_compile)
        return plain(*arguments, jit_compile=jit_compile, **options)

    plain, tf.function = tf.function, watched
    try:
        with backend.for_one_call(least=100):
            inside = [float(function(ops.ones(size))) for size in (10, 100)]
        outside = float(function(ops.ones(10)))
    finally:
        tf.function = plain
    assert kinds == [False, True, True]
    np.testing.assert_allclose([*inside, outside], np.e * np.array([10, 100, 10]), rtol=1e-6)


@pytest.mark.parametrize("least", [0, 100])
def test_a_jitted_function_gives_the_same_whether_small_inputs_are_compiled_or_not(least):
    function = backend.jit(lambda x: ops.sum(ops.exp(x)), least)
    for size in (3, 200):
        x = np.linspace(0, 1, size, dtype="float32")
        assert float(function(ops.convert_to_tensor(x))) == pytest.approx(np.exp(x).sum(), 1e-5)


def three_variables(variables):
    """x^2 y: nothing depends on the third."""
    x, y, _ = variables
    return cube(x, y), (x + y, ops.sum(x))


@pytest.mark.parametrize("jitted", [False, True])
def test_value_and_gradients_differentiates_each_variable(jitted):
    y = X[::-1] + 2
    tensors = [ops.convert_to_tensor(np.array(x)) for x in (X, y, X[:2])]

    def differentiated(variables):
        return backend.value_and_gradients(three_variables, variables)

    (value, aux), found = (backend.jit(differentiated) if jitted else differentiated)(tensors)
    assert float(value) == pytest.approx(float(np.sum(X**2 * y)), rel=1e-5)
    np.testing.assert_allclose(ops.convert_to_numpy(aux[0]), X + y, atol=1e-6)
    assert float(aux[1]) == pytest.approx(0, abs=1e-6)
    for gradient, expected in zip(found, (2 * X * y, X**2, 0 * X[:2]), strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(gradient), expected, atol=1e-5)


def test_value_and_gradients_may_be_asked_within_one_another():
    """Second derivatives are not: what is returned is a plain value."""

    def inner(variables):
        (_, aux), (gradient,) = backend.value_and_gradients(
            lambda v: (ops.sum(v[0] ** 3), v[0]), [ops.convert_to_tensor(X)]
        )
        return ops.sum(variables[0]) * ops.sum(gradient), aux

    (value, aux), (gradient,) = backend.value_and_gradients(inner, [ops.convert_to_tensor(X)])
    np.testing.assert_allclose(ops.convert_to_numpy(aux), X, atol=1e-6)
    np.testing.assert_allclose(
        ops.convert_to_numpy(gradient), np.full(6, np.sum(3 * X**2)), rtol=1e-5
    )
    assert float(value) == pytest.approx(0, abs=1e-5)
