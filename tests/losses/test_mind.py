import itertools

import keras
import numpy as np
import pytest
from keras import ops
from scipy.ndimage import gaussian_filter

from kreg.losses.mind import MIND, mind, mind_descriptor
from tests.fields import random_pair
from tests.gradients import central_differences, gradients

SHAPES = [(6, 7), (4, 5, 6)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def pairs(dimensions, distance):
    """All pairs of the 2 D neighbours that do not lie opposite one another."""
    steps = [
        sign * distance * np.eye(dimensions, dtype=int)[axis]
        for axis in range(dimensions)
        for sign in (1, -1)
    ]
    return [(a, b) for a, b in itertools.combinations(steps, 2) if np.any(a + b)]


def slow_descriptor(image, mask, window, distance):
    """The documented equation for one channel: one voxel, one pair, one voxel of a patch a time."""
    shape = np.array(image.shape)
    image = image.astype("float64")
    image = image - np.average(image, weights=mask)
    image /= np.sqrt(np.average(image**2, weights=mask))
    radii = np.broadcast_to(window, image.ndim) // 2
    patch = list(itertools.product(*(range(-r, r + 1) for r in radii)))

    def weight(y):
        return mask[tuple(y)] if np.all(y >= 0) and np.all(y < shape) else 0.0

    both = pairs(image.ndim, distance)
    apart = np.zeros((*shape, len(both)))
    for x in np.ndindex(*shape):
        for k, (a, b) in enumerate(both):
            total = count = 0.0
            for r in patch:
                one, other = np.add(x, a) + r, np.add(x, b) + r
                if weight(one) * weight(other) > 0:
                    m = weight(one) * weight(other)
                    total += m * (image[tuple(one)] - image[tuple(other)]) ** 2
                    count += m
            apart[(*x, k)] = total / count if count else 0.0
    variance = apart.mean(-1)
    variance = variance + 1e-3 * np.average(variance, weights=mask)
    return np.exp(-(apart - apart.min(-1, keepdims=True)) / variance[..., None])


def slow_mind(fixed, warped, mask, window, distance):
    values = []
    for f, w, m in zip(fixed, warped, mask, strict=True):
        squares = [
            np.square(
                slow_descriptor(f[..., c], m, window, distance)
                - slow_descriptor(w[..., c], m, window, distance)
            )
            for c in range(f.shape[-1])
        ]
        values.append(np.average(np.mean(squares, axis=(0, -1)), weights=m))
    return values


@pytest.mark.parametrize(
    ("shape", "window", "distance"),
    [((6, 7), 3, 1), ((6, 7), (1, 5), 1), ((6, 7), 3, 2), ((4, 5, 6), 3, 2)],
)
def test_the_descriptor_equals_a_loop_over_voxels_and_pairs(shape, window, distance):
    images, _ = random_pair(shape)
    found = numpy(mind_descriptor(images, window=window, distance=distance))
    assert found.shape == (2, *shape, {2: 4, 3: 12}[len(shape)])
    for image, descriptor in zip(images, found, strict=True):
        expected = slow_descriptor(image[..., 0], np.ones(shape), window, distance)
        assert 0.05 < expected.min(-1).mean() < 0.7
        # The order of the pairs is nobody's business.
        np.testing.assert_allclose(np.sort(descriptor), np.sort(expected), atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "channels", "distance"), [((6, 7), 2, 1), ((4, 5, 6), 1, 2)], ids=str
)
@pytest.mark.usefixtures("uncompiled")
def test_the_loss_compares_descriptors_within_the_mask(shape, channels, distance):
    fixed, warped = random_pair(shape, channels=channels)
    mask = np.random.default_rng(3).random((2, *shape))
    mask[1] = mask[1] < 0.7
    expected = slow_mind(fixed, warped, mask, 3, distance)
    assert min(expected) > 0.01
    found = numpy(mind(fixed, warped, mask, distance=distance))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    loss = MIND(distance=distance, reduction=None)
    np.testing.assert_allclose(numpy(loss(fixed, warped, mask)), found, rtol=1e-6)


@pytest.mark.usefixtures("uncompiled")
def test_voxels_outside_the_mask_play_no_part_and_may_be_nan():
    fixed, warped = random_pair((6, 7))
    mask = np.zeros((2, 6, 7, 1), "float32")
    mask[:, 1:, 1:-2] = 1
    expected = numpy(mind(fixed, warped, mask))
    other = np.where(mask > 0, warped, np.nan).astype("float32")
    np.testing.assert_allclose(numpy(mind(fixed, other, mask)), expected, rtol=1e-5)
    descriptor = numpy(mind_descriptor(other, mask))
    assert np.isfinite(descriptor).all()
    _, gradient = gradients(lambda *images: ops.sum(mind(*images, mask)), fixed, other)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 1e-3
    # The same as of images that end where the mask does.
    inside = [x[:, 1:, 1:-2] for x in (fixed, warped)]
    np.testing.assert_allclose(numpy(mind(*inside)), expected, rtol=1e-4)


@each_shape
def test_a_mask_of_ones_changes_nothing(shape):
    fixed, warped = random_pair(shape)
    expected = numpy(mind(fixed, warped))
    np.testing.assert_allclose(
        numpy(mind(fixed, warped, np.ones((2, *shape)))), expected, rtol=1e-5
    )


@each_shape
@pytest.mark.parametrize(("a", "b"), [(3, 0), (0.02, 5), (-200, 70), (1e-9, 0)])
def test_linear_contrast_and_its_inversion_change_nothing(shape, a, b):
    fixed, warped = random_pair(shape)
    other = (a * warped + b).astype("float32")
    np.testing.assert_allclose(
        numpy(mind_descriptor(other)), numpy(mind_descriptor(warped)), atol=1e-3
    )
    np.testing.assert_allclose(numpy(mind(warped, other)), 0, atol=1e-6)
    np.testing.assert_allclose(numpy(mind(fixed, other)), numpy(mind(fixed, warped)), rtol=1e-2)


@each_shape
def test_flips_move_the_descriptor_along(shape):
    """Edges are treated alike, so it matters to no loss which way an image faces."""
    fixed, warped = random_pair(shape)
    expected = numpy(mind(fixed, warped))
    for axis in range(1, len(shape) + 1):
        flipped = mind(np.flip(fixed, axis), np.flip(warped, axis))
        np.testing.assert_allclose(numpy(flipped), expected, rtol=1e-4)


@each_shape
def test_the_largest_entry_is_one_and_all_are_where_the_image_is_flat(shape):
    image, _ = random_pair(shape)
    descriptor = numpy(mind_descriptor(image))
    np.testing.assert_array_equal(descriptor.max(-1), np.ones((2, *shape)))
    assert descriptor.min() >= 0
    for value in (0.0, 1000.1):
        flat = np.full_like(image, value)
        np.testing.assert_allclose(numpy(mind_descriptor(flat)), 1, atol=1e-3)


def test_half_flat_images_have_finite_gradients():
    _, pattern = random_pair((6, 7))
    half = pattern.copy()
    half[:, :, :4] = 0
    flat = np.full_like(pattern, 3.0)
    for pair in [(half, half), (half, pattern), (pattern, half), (flat, flat), (flat, pattern)]:
        assert np.isfinite(float(MIND()(*pair)))
        for gradient in gradients(MIND(), *pair):
            assert np.isfinite(gradient).all()


@each_shape
def test_is_symmetric_and_zero_only_at_a_match(shape):
    fixed, warped = random_pair(shape)
    forth = numpy(mind(fixed, warped))
    assert forth.min() > 0.01
    np.testing.assert_allclose(numpy(mind(warped, fixed)), forth, rtol=1e-5)
    np.testing.assert_array_equal(numpy(mind(fixed, fixed)), [0, 0])


def test_finds_the_shift_between_inverted_images():
    scene = gaussian_filter(np.random.default_rng(0).normal(size=(40, 40)), 1.0).astype("float32")
    other = -np.square(scene + 2)  # brightness inverted, and not linearly
    fixed = np.repeat(scene[None, 4:-4, 4:-4, None], 9, axis=0)
    shifted = np.stack([other[4 + s : 36 + s, 4:-4, None] for s in range(-4, 5)])
    values = numpy(mind(fixed, shifted))
    assert np.argmin(values) == 4
    assert values[4] < 0.3 * np.delete(values, 4).min()


@pytest.mark.parametrize(
    ("shape", "channels", "masked"),
    [((5, 6), 2, True), ((3, 3, 4), 1, False)],
    ids=str,
)
def test_gradients_equal_central_differences(shape, channels, masked):
    pair = random_pair(shape, batch=1, channels=channels)
    mask = np.random.default_rng(3).random((1, *shape, 1)).astype("float32")

    def difference(fixed, warped):
        weights = np.repeat(mask, fixed.shape[0], axis=0) if masked else None
        return mind(fixed, warped, weights, distance=1)

    found = gradients(lambda *images: ops.sum(difference(*images)), *pair)
    for argument in (0, 1):
        # Small steps: where another pair becomes the least, the derivative jumps.
        expected = central_differences(difference, *pair, argument=argument, step=5e-4)
        assert np.abs(expected).max() > 0.01
        np.testing.assert_allclose(found[argument], expected, atol=1e-4)


def test_survives_keras_serialisation():
    loss = MIND(window=(3, 5), distance=1)
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert twin.get_config() == loss.get_config()
    pair = random_pair((6, 7))
    assert float(twin(*pair)) == float(loss(*pair))


def test_trains_a_model_of_unknown_size():
    fixed, moving = random_pair((8, 10), batch=4)
    image = keras.Input((None, None, 1))
    model = keras.Model(image, keras.layers.Conv2D(1, 3, padding="same")(image))
    model.compile(keras.optimizers.Adam(0.03), loss=MIND())
    history = model.fit(moving, fixed, batch_size=4, epochs=10, verbose=0).history["loss"]
    assert history[-1] < history[0] - 0.004


def test_refuses_options_and_images_that_do_not_fit():
    pair = random_pair((6, 7))
    for window in [4, 0, (3, 5, 7)]:
        with pytest.raises(ValueError, match=r"Expected `window` to be .*Received"):
            mind(*pair, window=window)
    for distance in [0, 1.5]:
        with pytest.raises(ValueError, match=rf"`distance` to be an integer.*Received: {distance}"):
            mind(*pair, distance=distance)
    with pytest.raises(ValueError, match=r"of equal shape.*Received"):
        mind(pair[0], pair[1][:, 1:])
    with pytest.raises(ValueError, match=r"`image` to hold floating-point"):
        mind_descriptor(np.zeros((1, 6, 7, 1), "uint8"))
