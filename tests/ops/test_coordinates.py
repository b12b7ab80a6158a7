import numpy as np
import pytest
from keras import backend, ops

from kreg.ops import centred_frame, identity_grid, spatial_shape
from kreg.ops.coordinates import check_displacement, check_image, check_same_size
from tests.fields import SHAPES


@pytest.mark.parametrize("shape", SHAPES)
def test_identity_grid_holds_the_index_of_every_voxel(shape):
    grid = ops.convert_to_numpy(identity_grid(shape))
    assert grid.dtype == "float32"
    assert grid.shape == (*shape, len(shape))
    for index in np.ndindex(*shape):
        assert tuple(grid[index]) == index


def test_spatial_shape_leaves_out_batch_and_channels():
    assert spatial_shape(np.zeros((2, 5, 6, 7, 3))) == (5, 6, 7)


def test_centred_frame_maps_the_corners_to_opposite_points():
    frame = centred_frame((5, 8), (2.0, 0.5))
    assert frame.dtype == "float32"
    np.testing.assert_allclose(frame @ [0, 0, 1], [-4, -1.75, 1])
    np.testing.assert_allclose(frame @ [4, 7, 1], [4, 1.75, 1])


def test_centred_frame_has_unit_spacing_by_default():
    np.testing.assert_array_equal(centred_frame((3, 4, 6)), centred_frame((3, 4, 6), (1, 1, 1)))


@pytest.mark.parametrize("spacing", [(1.0,), (1.0, 2.0, 3.0), (1.0, 0.0), (1.0, -2.0), 2.0])
def test_centred_frame_refuses_a_wrong_spacing(spacing):
    with pytest.raises(ValueError, match=r"one positive spacing .* 2 spatial axes\. Received"):
        centred_frame((4, 5), spacing)


def test_check_image_makes_float32_of_float64_and_leaves_other_floats():
    doubles = check_image(np.zeros((1, 4, 4, 1), "float64"))
    halves = check_image(ops.zeros((1, 4, 4, 1), "bfloat16"))
    assert backend.standardize_dtype(doubles.dtype) == "float32"
    assert backend.standardize_dtype(halves.dtype) == "bfloat16"


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
def test_check_image_refuses_integers_and_names_the_remedy(dtype):
    with pytest.raises(ValueError, match=rf"`fixed` to hold floating.*astype.*dtype {dtype}"):
        check_image(np.zeros((1, 4, 4, 1), dtype), "fixed")


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4), (1, 4, 4, 4, 4, 1)])
def test_check_image_refuses_another_rank(shape):
    with pytest.raises(ValueError, match=r"\(batch, \*spatial, channels\).*Received: shape"):
        check_image(np.zeros(shape, "float32"))


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (1, 8, 8, 3), (1, 8, 8, 8, 2), (8, 8, 2)])
def test_check_displacement_refuses_other_components_than_axes(shape):
    with pytest.raises(ValueError, match=r"as many components D.*Received: shape"):
        check_displacement(np.zeros(shape, "float32"))


@pytest.mark.parametrize("shape", [(2, 8, 9, 1), (2, 8, 8, 1, 1), (2, 8, 8, 2), (1, 8, 8, 1)])
def test_check_same_size_refuses_a_known_difference(shape):
    with pytest.raises(ValueError, match=r"`fixed` and `warped` of equal shape.*Received"):
        check_same_size(np.zeros((2, 8, 8, 1)), np.zeros(shape))
