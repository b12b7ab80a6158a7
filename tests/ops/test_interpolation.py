import numpy as np
import pytest
from keras import backend, ops
from scipy import ndimage

from kreg.ops import nearest_border, reflect_border, sample, sample_nearest, zero_border
from tests.gradients import central_differences, gradients

# Our borders and what SciPy calls them.
BORDERS = {zero_border: "grid-constant", nearest_border: "nearest", reflect_border: "reflect"}
SAMPLERS = {sample: 1, sample_nearest: 0}
SHAPES = [(7, 10), (4, 5, 6), (1, 6), (5, 1, 1)]

each_border = pytest.mark.parametrize("border", BORDERS, ids=lambda f: f.__name__)
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda f: f.__name__)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def random_image(shape, *, batch=2, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, *shape, channels)).astype("float32")


def random_points(shape, number=(40,), *, batch=2, beyond=9.0, seed=1):
    """Points in and around an image, none within 0.05 of where a cell or a voxel ends."""
    rng = np.random.default_rng(seed)
    size = (batch, *number, len(shape))
    half_cell = rng.integers(-2 * beyond, 2 * (np.array(shape) + beyond), size)
    return (half_cell / 2 + rng.uniform(0.05, 0.45, size)).astype("float32")


def scipy_sample(image, points, order, mode):
    return np.stack(
        [
            np.stack(
                [
                    ndimage.map_coordinates(
                        one[..., channel], np.moveaxis(at, -1, 0), order=order, mode=mode
                    )
                    for channel in range(one.shape[-1])
                ],
                axis=-1,
            )
            for one, at in zip(image, points, strict=True)
        ]
    )


@each_shape
@each_sampler
@each_border
def test_equals_scipy_inside_and_outside(border, sampler, shape):
    image, points = random_image(shape), random_points(shape)
    expected = scipy_sample(image, points, SAMPLERS[sampler], BORDERS[border])
    found = ops.convert_to_numpy(sampler(image, points, border=border))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@each_sampler
@pytest.mark.parametrize("number", [(5,), (3, 4), (2, 3, 4)])
def test_points_may_have_any_number_of_axes(sampler, number):
    image, points = random_image((7, 8)), random_points((7, 8), number)
    flat = sampler(image, points.reshape(2, -1, 2))
    shaped = ops.convert_to_numpy(sampler(image, points))
    assert shaped.shape == (2, *number, 3)
    np.testing.assert_array_equal(shaped, ops.convert_to_numpy(flat).reshape(shaped.shape))


@each_sampler
@each_border
def test_voxel_centres_give_the_voxels(border, sampler):
    image = random_image((5, 6))
    points = np.stack(np.meshgrid(np.arange(5), np.arange(6), indexing="ij"), -1)
    points = np.repeat(points[None], 2, axis=0)
    found = ops.convert_to_numpy(sampler(image, points, border=border))
    np.testing.assert_allclose(found, image, atol=1e-6)


def test_nearest_rounds_halves_up():
    image = np.arange(12, dtype="float32").reshape(1, 3, 4, 1)
    points = np.array([[[0.5, 0.0], [0.0, 1.5], [1.5, 2.5]]], "float32")
    assert ops.convert_to_numpy(sample_nearest(image, points)).ravel().tolist() == [4, 2, 11]


@each_sampler
@pytest.mark.parametrize("far", [1e4, 1e9, np.inf])
def test_far_outside_lies_zero_or_the_nearest_corner(sampler, far):
    image = random_image((5, 6), batch=1)
    points = np.array([[[-far, -far], [far, far], [-far, far]]], "float32")
    zeros = ops.convert_to_numpy(sampler(image, points))
    corners = ops.convert_to_numpy(sampler(image, points, border=nearest_border))
    np.testing.assert_array_equal(zeros, np.zeros((1, 3, 3)))
    np.testing.assert_array_equal(corners[0], image[0, [0, -1, 0], [0, -1, -1]])


@each_sampler
@each_border
def test_a_nan_point_spoils_no_other(border, sampler):
    image, points = random_image((5, 6)), random_points((5, 6))
    expected = ops.convert_to_numpy(sampler(image, points, border=border))
    points[:, 3] = np.nan
    points[:, 4, 1] = np.nan
    found = ops.convert_to_numpy(sampler(image, points, border=border))
    others = np.delete(np.arange(points.shape[1]), [3, 4])
    np.testing.assert_array_equal(found[:, others], expected[:, others])


@each_border
@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 5)])
def test_gradients_equal_central_differences(border, shape):
    image = random_image(shape, batch=1, channels=2)
    points = random_points(shape, (12,), batch=1, beyond=2.0)
    weights = np.random.default_rng(2).normal(size=(12, 2)).astype("float32")

    def weighted_sum(image, points):
        return ops.sum(ops.multiply(weights, sample(image, points, border=border)), axis=(1, 2))

    found = gradients(lambda *tensors: ops.sum(weighted_sum(*tensors)), image, points)
    for argument, gradient in enumerate(found):
        expected = central_differences(weighted_sum, image, points, argument=argument)
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(gradient, expected, atol=1e-3)


@each_border
def test_nearest_passes_gradients_to_the_image_alone(border):
    image, points = random_image((5, 6), batch=1), random_points((5, 6), (7,), batch=1)

    def total(image, points):
        return ops.sum(sample_nearest(image, points, border=border), axis=(1, 2))

    to_image, to_points = gradients(lambda *x: ops.sum(total(*x)), image, points)
    np.testing.assert_allclose(to_image, central_differences(total, image, points), atol=1e-3)
    np.testing.assert_array_equal(to_points, np.zeros_like(points))


@each_sampler
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_keeps_the_dtype_of_the_image(sampler, dtype):
    image, points = random_image((5, 6)), random_points((5, 6))
    found = sampler(ops.cast(image, dtype), points)
    assert backend.standardize_dtype(found.dtype) == dtype
    expected = ops.convert_to_numpy(sampler(image, points))
    np.testing.assert_allclose(
        ops.convert_to_numpy(ops.cast(found, "float32")), expected, atol=0.05
    )


def test_half_precision_images_leave_points_precise():
    # float16 is 0.25 wide beyond index 256: rounded points would hit the neighbour.
    image = np.zeros((1, 1, 700, 1), "float32")
    image[0, 0, 601] = 1
    found = sample(ops.cast(image, "float16"), np.array([[[0.0, 600.9]]], "float32"))
    assert float(ops.convert_to_numpy(ops.cast(found, "float32")).item()) == pytest.approx(
        0.9, abs=1e-3
    )


def test_a_border_may_be_the_users_own():
    def wrap_border(image, points):
        sizes = np.array(image.shape[1:-1], "float32")
        image = ops.concatenate([image, image[:, :1]], axis=1)
        image = ops.concatenate([image, image[:, :, :1]], axis=2)
        return image, ops.mod(points, sizes)

    image, points = random_image((5, 6)), random_points((5, 6))
    found = ops.convert_to_numpy(sample(image, points, border=wrap_border))
    np.testing.assert_allclose(found, scipy_sample(image, points, 1, "grid-wrap"), atol=1e-5)


@each_sampler
@pytest.mark.parametrize(
    ("image", "points", "message"),
    [
        (np.zeros((5, 6), "float32"), np.zeros((1, 4, 2)), r"rank 4 in 2-D.*Received: shape"),
        (np.zeros((1, 5, 6, 1), "uint8"), np.zeros((1, 4, 2)), r"floating-point.*dtype uint8"),
        (np.zeros((1, 5, 6, 1), "float32"), np.zeros((1, 4, 3)), r"\(batch, \.\.\., 2\) for an"),
        (np.zeros((1, 5, 6, 7, 1), "float32"), np.zeros((1, 4, 2)), r"\(batch, \.\.\., 3\) for an"),
        (np.zeros((1, 5, 6, 1), "float32"), np.zeros((4, 2)), r"`points` of shape.*Received"),
        (np.zeros((3, 5, 6, 1), "float32"), np.zeros((2, 4, 2)), r"as many images as sets of poi"),
        (np.zeros((1, 5, 6, 1), "float32"), np.zeros((2, 4, 2)), r"repeat the smaller batch"),
    ],
)
def test_refuses_what_does_not_fit(sampler, image, points, message):
    with pytest.raises(ValueError, match=message):
        sampler(image, points)
