import keras
import numpy as np
import pytest
from scipy import ndimage

from kreg.data.known_transforms import KnownTransforms, RandomAffine, SmoothNoise
from kreg.ops import centred_frame
from tests.fields import grid

SHAPES = [(20, 26), (9, 12, 10)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def images(shape, count=3, channels=1):
    rng = np.random.default_rng(0)
    noise = rng.random((count, *shape, channels))
    return ndimage.gaussian_filter(noise, (0, *(1 for _ in shape), 0)).astype("float32")


def pairs(shape, **options):
    return KnownTransforms(images(shape), **{"batch_size": 4, "steps": 2, **options})


@each_shape
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_fixed_image_is_the_moving_one_displaced_by_the_truth(shape, mirrored):
    (data,) = pairs(shape, mirrored=mirrored)[0]
    mode = "reflect" if mirrored else "grid-constant"
    points = grid(shape) + data["moving_displacement"].astype("float64")
    for moving, fixed, at in zip(data["moving"], data["fixed"], points, strict=True):
        at = np.moveaxis(at, -1, 0)
        expected = ndimage.map_coordinates(moving[..., 0], at, order=1, mode=mode)
        np.testing.assert_allclose(fixed[..., 0], expected, atol=2e-4)
        assert np.abs(fixed - moving).max() > 0.05
    assert {data[name].dtype for name in data} == {np.dtype("float32")}


@each_shape
def test_without_a_deformation_the_displacement_is_that_of_the_matrix(shape):
    (data,) = pairs(shape, deformation=None)[1]
    frame = centred_frame(shape)
    for matrix, field in zip(data["moving_matrix"], data["moving_displacement"], strict=True):
        voxels = np.linalg.inv(frame) @ matrix @ frame
        expected = grid(shape) @ (voxels[:-1, :-1].T - np.eye(len(shape))) + voxels[:-1, -1]
        np.testing.assert_allclose(field, expected, atol=1e-4)
    np.testing.assert_array_equal(data["moving_stage_matrices"], data["moving_matrix"][:, None])


@each_shape
def test_affine_draws_are_evenly_within_their_range(shape):
    kind = RandomAffine(rotation=30, scale=(0.5, 1.5), translation=0.1)
    matrices = kind.draw(np.random.default_rng(0), 4000, shape)
    axes = len(shape)
    linear, shift = matrices[:, :axes, :axes], matrices[:, :axes, axes]
    products = np.swapaxes(linear, 1, 2) @ linear
    scale = np.sqrt(products[:, 0, 0])
    np.testing.assert_allclose(
        products, scale[:, None, None] ** 2 * np.stack([np.eye(axes)] * 4000), atol=1e-9
    )
    assert np.all(np.linalg.det(linear) > 0)
    np.testing.assert_allclose([scale.min(), scale.max()], (0.5, 1.5), atol=0.01)
    np.testing.assert_allclose(np.median(scale), np.sqrt(0.5 * 1.5), atol=0.03)
    np.testing.assert_allclose(np.abs(shift).max(axis=0), 0.1 * np.array(shape), rtol=0.01)
    if axes == 2:
        angle = np.rad2deg(np.arctan2(linear[:, 1, 0], linear[:, 0, 0]))
        np.testing.assert_allclose([angle.min(), angle.max()], (-30, 30), atol=0.2)
    np.testing.assert_array_equal(matrices[:, -1], np.tile(np.eye(axes + 1)[-1], (4000, 1)))


def test_stretch_makes_scales_differ_by_axis():
    kind = RandomAffine(rotation=0, scale=(1, 1), stretch=1.2, translation=0)
    matrices = kind.draw(np.random.default_rng(0), 2000, (8, 8))
    scales = matrices[:, [0, 1], [0, 1]]
    np.testing.assert_allclose([scales.min(), scales.max()], (1 / 1.2, 1.2), atol=0.01)
    assert abs(np.corrcoef(np.log(scales).T)[0, 1]) < 0.1


@each_shape
def test_noise_has_its_deviation_everywhere_and_its_correlation(shape):
    longest = max(shape)
    noise = SmoothNoise(deviation=0.02, correlation=0.2).draw(np.random.default_rng(0), 3000, shape)
    assert noise.shape == (3000, *shape, len(shape))
    np.testing.assert_allclose(noise.std(axis=0), 0.02 * longest, rtol=0.1)
    rows = noise.reshape(3000, *shape, -1)[..., 0].reshape(3000, shape[0], -1)[..., 0]
    found = np.corrcoef(rows.T)[len(rows.T) // 2]
    distance = np.arange(shape[0]) - len(rows.T) // 2
    np.testing.assert_allclose(found, np.exp(-0.5 * (distance / (0.2 * longest)) ** 2), atol=0.12)


def test_draws_depend_on_seed_epoch_and_batch_alone():
    first, again, other = (pairs((20, 26), seed=seed) for seed in (1, 1, 2))

    def fixed(dataset, batch):
        return dataset[batch][0]["fixed"]

    np.testing.assert_array_equal(fixed(first, 1), fixed(again, 1))
    assert np.abs(fixed(first, 0) - fixed(other, 0)).max() > 0.01
    assert np.abs(fixed(first, 0) - fixed(first, 1)).max() > 0.01
    before = fixed(first, 0)
    first.on_epoch_end()
    assert np.abs(fixed(first, 0) - before).max() > 0.01
    still = pairs((20, 26), seed=1, fresh=False)
    still.on_epoch_end()
    np.testing.assert_array_equal(fixed(still, 0), before)


def test_an_inverted_moving_image_keeps_its_range_and_the_truth():
    plain, inverted = (pairs((20, 26), inverted=share, seed=3)[0][0] for share in (0.0, 1.0))
    ends = [f(plain["moving"], axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max)]
    np.testing.assert_allclose(inverted["moving"], sum(ends) - plain["moving"], atol=1e-6)
    for name in ("fixed", "moving_matrix", "moving_displacement"):
        np.testing.assert_array_equal(inverted[name], plain[name])


def test_the_moving_image_may_be_another():
    stack = images((20, 26))
    (data,) = KnownTransforms(stack, other=1.0, affine=RandomAffine(0, (1, 1), 1, 0),
                              deformation=None, batch_size=16)[0]  # fmt: skip
    for moving, fixed in zip(data["moving"], data["fixed"], strict=True):
        distances = [[np.abs(x - image).max() for image in stack] for x in (moving, fixed)]
        assert np.min(distances, axis=1).max() < 1e-6
        assert np.argmin(distances[0]) != np.argmin(distances[1])


def test_integers_are_scaled_and_batches_are_those_asked_for():
    stack = np.full((2, 12, 12), 255, "uint8")
    dataset = KnownTransforms(stack, batch_size=3, steps=5)
    assert (len(dataset), dataset.image_shape) == (5, (12, 12, 1))
    assert isinstance(dataset, keras.utils.PyDataset)
    assert dataset[0][0]["moving"].shape == (3, 12, 12, 1)
    assert dataset[0][0]["moving"].max() == 1


def test_refuses_what_does_not_fit():
    for options in ({"rotation": -1}, {"scale": (2, 1)}, {"scale": (0, 1)}, {"stretch": 0.9}):
        with pytest.raises(ValueError, match=r"`rotation` and `translation` >= 0.*Received"):
            RandomAffine(**options)
    for options in ({"deviation": -1}, {"correlation": 0}):
        with pytest.raises(ValueError, match=r"`deviation` >= 0 and `correlation` > 0.*Received"):
            SmoothNoise(**options)
    with pytest.raises(ValueError, match=r"`batch_size` and `steps` >= 1\. Received"):
        pairs((20, 26), steps=0)
    with pytest.raises(ValueError, match=r"`other` and `inverted` in \[0, 1\].*Received"):
        pairs((20, 26), inverted=1.5)
    with pytest.raises(ValueError, match=r"two images or more.*Received"):
        KnownTransforms(images((20, 26), count=1), other=0.5)
