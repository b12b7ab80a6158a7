import numpy as np
import pytest
from keras import ops

from kreg.layers.matrix_to_displacement import MatrixToDisplacement
from kreg.layers.spatial_transformer import SpatialTransformer
from tests.fields import SHAPES, grid

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def matrices(dimensions, seed=0):
    noise = np.random.default_rng(seed).normal(0, 0.1, (2, dimensions + 1, dimensions + 1))
    noise[:, -1] = 0
    return (np.eye(dimensions + 1) + noise).astype("float32")


def image(shape):
    return np.random.default_rng(1).uniform(size=(2, *shape, 1)).astype("float32")


@each_shape
@pytest.mark.parametrize("anisotropic", [False, True])
def test_each_voxel_goes_where_the_matrix_takes_its_point_in_the_world(shape, anisotropic):
    dimensions = len(shape)
    spacing = (2.0, 1.0, 0.5)[:dimensions] if anisotropic else None
    step = np.array(spacing or (1,) * dimensions)
    found = ops.convert_to_numpy(
        MatrixToDisplacement(spacing=spacing)(matrices(dimensions), image(shape))
    )
    middle = (np.array(shape) - 1) / 2
    world = (grid(shape) - middle) * step
    for matrix, field in zip(matrices(dimensions), found, strict=True):
        moved = world @ matrix[:-1, :-1].T + matrix[:-1, -1]
        np.testing.assert_allclose(field, moved / step + middle - grid(shape), atol=1e-4)


@each_shape
def test_warping_by_the_field_is_warping_by_the_matrix(shape):
    spacing = (1.5, 1.0, 0.5)[: len(shape)]
    matrix, moving = matrices(len(shape)), image(shape)
    field = MatrixToDisplacement(spacing=spacing)(matrix, moving)
    np.testing.assert_allclose(
        ops.convert_to_numpy(SpatialTransformer()(moving, field)),
        ops.convert_to_numpy(SpatialTransformer(spacing=spacing)(moving, matrix)),
        atol=1e-4,
    )


def test_the_config_holds_the_spacing():
    layer = MatrixToDisplacement(spacing=(2, 1))
    assert MatrixToDisplacement.from_config(layer.get_config()).spacing == (2, 1)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"homogeneous matrices of shape \(batch, 4, 4\).*Receiv"):
        MatrixToDisplacement()(matrices(2), image((6, 7, 8)))
    with pytest.raises(ValueError, match=r"one positive spacing.*Received"):
        MatrixToDisplacement(spacing=(1, 2, 3))(matrices(2), image((6, 7)))
