import numpy as np
import pytest
from keras import ops

from kreg.layers.compose_linear import ComposeLinear
from kreg.layers.matrix_to_displacement import MatrixToDisplacement
from tests.fields import SHAPES, grid, smooth_field

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def matrices(dimensions, seed=0):
    noise = np.random.default_rng(seed).normal(0, 0.1, (2, dimensions + 1, dimensions + 1))
    noise[:, -1] = 0
    return (np.eye(dimensions + 1) + noise).astype("float32")


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


@each_shape
@pytest.mark.parametrize("anisotropic", [False, True])
def test_the_matrix_comes_after_the_displacement(shape, anisotropic):
    dimensions = len(shape)
    spacing = (2.0, 1.0, 0.5)[:dimensions] if anisotropic else None
    step = np.array(spacing or (1,) * dimensions)
    inner = smooth_field(shape, 1.5, batch=2)
    found = numpy(ComposeLinear(spacing=spacing)(matrices(dimensions), inner))
    middle = (np.array(shape) - 1) / 2
    for matrix, field, total in zip(matrices(dimensions), inner, found, strict=True):
        world = (grid(shape) + field - middle) * step
        moved = world @ matrix[:-1, :-1].T + matrix[:-1, -1]
        np.testing.assert_allclose(total, moved / step + middle - grid(shape), atol=1e-4)


@each_shape
def test_the_identity_on_either_side_changes_nothing(shape):
    side = len(shape) + 1
    field, matrix = smooth_field(shape, 1.5, batch=2), matrices(len(shape))
    identity = np.stack([np.eye(side, dtype="float32")] * 2)
    np.testing.assert_allclose(numpy(ComposeLinear()(identity, field)), field, atol=1e-5)
    np.testing.assert_allclose(
        numpy(ComposeLinear()(matrix, np.zeros_like(field))),
        numpy(MatrixToDisplacement()(matrix, field)),
        atol=1e-5,
    )


def test_the_config_holds_the_spacing():
    layer = ComposeLinear(spacing=(2, 1))
    assert ComposeLinear.from_config(layer.get_config()).spacing == (2, 1)


def test_refuses_what_does_not_fit():
    field = smooth_field((6, 7, 8), 1.0, batch=2)
    with pytest.raises(ValueError, match=r"homogeneous matrices of shape \(batch, 4, 4\).*Receiv"):
        ComposeLinear()(matrices(2), field)
    with pytest.raises(ValueError, match=r"one positive spacing.*Received"):
        ComposeLinear(spacing=(1, 2))(matrices(3), field)
