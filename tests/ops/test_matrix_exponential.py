import numpy as np
import pytest
from keras import ops
from scipy.linalg import expm

from kreg import backend
from kreg.ops.matrix_exponential import matrix_exponential
from tests.gradients import central_differences, gradients


def matrices(kind, size, norm, *, batch=20):
    """Random matrices of that 1-norm, float32."""
    matrix = np.random.default_rng(0).normal(size=(batch, size, size))
    transposed = np.swapaxes(matrix, -1, -2)
    matrix = {
        "any": matrix,
        "skew": matrix - transposed,
        "symmetric": matrix + transposed,
        "growing": matrix @ transposed,
        "decaying": -(matrix @ transposed),
        "uniform decay": np.broadcast_to(-np.eye(size), matrix.shape),
        "affine": matrix * np.append(np.ones(size - 1), 0)[:, None],
    }[kind]
    norms = np.linalg.norm(matrix, 1, axis=(-2, -1), keepdims=True)
    return (norm * matrix / norms).astype("float32")


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def size_of(matrix):
    return np.linalg.norm(matrix, axis=(-2, -1))


@pytest.mark.parametrize("size", [3, 4])
@pytest.mark.parametrize("norm", [1e-4, 1e-2, 0.5, 3.0, 10.0, 16.0])
@pytest.mark.parametrize(
    "kind",
    ["any", "skew", "symmetric", "growing", "decaying", "uniform decay", "affine"],
)
def test_equals_the_exponential_in_double_precision(kind, size, norm):
    matrix = matrices(kind, size, norm)
    expected = expm(matrix.astype("float64"))
    error = size_of(numpy(matrix_exponential(matrix)) - expected) / size_of(expected)
    assert error.max() < (5e-6 if norm <= 10 else 1e-5)


def test_keeps_what_is_small_against_the_identity():
    matrix = matrices("any", 4, 1e-4)
    excess = numpy(matrix_exponential(matrix)).astype("float64") - np.eye(4)
    expected = expm(matrix.astype("float64")) - np.eye(4)
    # To the resolution of float32 next to 1, with a few roundings.
    np.testing.assert_allclose(excess, expected, atol=5e-7)


@pytest.mark.parametrize("size", [3, 4])
def test_zero_becomes_exactly_the_identity(size):
    found = numpy(matrix_exponential(np.zeros((2, size, size), "float32")))
    np.testing.assert_array_equal(found, np.broadcast_to(np.eye(size), found.shape))


def test_an_affine_matrix_keeps_its_last_row_exactly():
    found = numpy(matrix_exponential(matrices("affine", 4, 5.0)))
    np.testing.assert_array_equal(found[:, -1], np.broadcast_to([0, 0, 0, 1], (20, 4)))


def test_the_negative_is_the_inverse():
    matrix = matrices("any", 4, 2.0)
    product = numpy(matrix_exponential(matrix)) @ numpy(matrix_exponential(-matrix))
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(4), product.shape), atol=1e-5)


@pytest.mark.parametrize("leading", [(), (1,), (2, 3)])
def test_takes_any_leading_axes(leading):
    matrix = matrices("any", 3, 1.0)[0] * np.ones((*leading, 1, 1), "float32")
    found = numpy(matrix_exponential(matrix))
    expected = np.broadcast_to(expm(matrix.astype("float64")), matrix.shape)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("norm", [0.0, 0.5, 3.0])
def test_gradient_equals_central_differences(norm):
    matrix = matrices("any", 3, norm, batch=1)
    weights = np.random.default_rng(1).normal(size=(3, 3)).astype("float32")

    def energy(matrix):
        return ops.sum(ops.multiply(weights, matrix_exponential(matrix)), axis=(1, 2))

    (found,) = gradients(lambda x: ops.sum(energy(x)), matrix)
    expected = central_differences(energy, matrix)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
    if norm == 0:  # d exp(A) = dA there
        np.testing.assert_allclose(found[0], weights, atol=1e-5)
    assert np.abs(expected).max() > 0.5


def test_compiled_it_is_the_same_and_has_the_same_gradient():
    matrix = matrices("any", 3, 3.0, batch=2)
    compiled = backend.compiled(matrix_exponential)
    np.testing.assert_allclose(
        numpy(compiled(matrix)), numpy(matrix_exponential(matrix)), rtol=1e-5, atol=1e-5
    )
    found, expected = (
        gradients(lambda x, function=function: ops.sum(ops.square(function(x))), matrix)[0]
        for function in (compiled, matrix_exponential)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(expected).max() > 0.5


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (3, 2)])
def test_refuses_what_is_not_square(shape):
    with pytest.raises(ValueError, match=r"square matrices, \(\.\.\., n, n\)\. Received: shape"):
        matrix_exponential(np.zeros(shape, "float32"))
