import keras
import numpy as np
import pytest

from kreg.metrics import Dice, dice, dice_labels


def disk(centre, radius, shape):
    grid = np.moveaxis(np.indices(shape), 0, -1)
    return (np.linalg.norm(grid - centre, axis=-1) <= radius).astype("float32")[None, ..., None]


def sets_dice(a, b):
    """Dice of Python sets of indices."""
    a, b = set(map(tuple, np.argwhere(a))), set(map(tuple, np.argwhere(b)))
    return 2 * len(a & b) / (len(a) + len(b))


@pytest.mark.parametrize("shape", [(20, 24), (9, 10, 12)])
def test_dice_is_the_overlap_of_sets(shape):
    a, b = disk([6] * len(shape), 4, shape), disk([7] * len(shape), 3.2, shape)
    value = keras.ops.convert_to_numpy(dice(0.9 * a, 0.7 * b, 0.6))
    assert value == pytest.approx([sets_dice(a, b)])
    assert 0.3 < value[0] < 0.95


def test_dice_is_per_sample_and_knows_its_extremes():
    a = np.zeros((4, 5, 5, 1), "float32")
    b = a.copy()
    a[:3, 1:3], b[0, 1:3], b[1, 3:] = 1, 1, 1
    # equal, apart, one empty, both empty
    assert keras.ops.convert_to_numpy(dice(a, b)).tolist() == [1, 0, 0, 1]


def test_dice_threshold_itself_is_outside():
    a = np.full((1, 3, 3, 1), 0.5, "float32")
    a[0, 0] = 1
    assert keras.ops.convert_to_numpy(dice(a, np.ones_like(a))) == pytest.approx([6 / 12])


def test_dice_mask_leaves_voxels_aside():
    a, b = np.ones((1, 4, 4, 1), "float32"), np.ones((1, 4, 4, 1), "float32")
    b[:, :2] = 0
    mask = np.zeros((1, 4, 4), "float32")
    mask[:, 2:] = 1
    assert keras.ops.convert_to_numpy(dice(a, b, mask=mask)) == pytest.approx([1])
    assert keras.ops.convert_to_numpy(dice(a, b, mask=1 - mask)) == pytest.approx([0])


def test_dice_labels_each_alone():
    fixed = np.array([[[1, 1, 2, 2], [0, 0, 2, 2]]])
    warped = np.array([[[1, 0, 2, 2], [0, 0, 2, 0]]])
    values = keras.ops.convert_to_numpy(dice_labels(fixed, warped, [2, 1, 7]))
    np.testing.assert_allclose(values, [[6 / 7, 2 / 3, np.nan]], rtol=1e-6)


def test_dice_labels_takes_what_the_warp_of_a_label_map_returns():
    fixed = np.random.default_rng(0).integers(0, 3, (2, 4, 5, 6, 1)).astype("float32")
    values = keras.ops.convert_to_numpy(dice_labels(fixed, fixed, (1, 2)))
    assert values.tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("labels", [[], [1, 1]])
def test_dice_labels_refuses_no_or_repeated_labels(labels):
    maps = np.zeros((1, 4, 4), "int32")
    with pytest.raises(ValueError, match="each label once"):
        dice_labels(maps, maps, labels)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="equal shape"):
        dice(np.zeros((1, 4, 4, 1), "float32"), np.zeros((1, 4, 5, 1), "float32"))
    with pytest.raises(ValueError, match="equal shape"):
        dice_labels(np.zeros((1, 4, 4), "int32"), np.zeros((1, 4, 5), "int32"), [1])


def test_metric_is_the_mean_over_all_samples():
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 7, 6, 6, 1), "float32")
    metric = Dice(threshold=0.3)
    metric.update_state(a[:4], b[:4])
    metric.update_state(a[4:], b[4:])
    expected = np.mean(keras.ops.convert_to_numpy(dice(a, b, 0.3)))
    assert float(metric.result()) == pytest.approx(expected, rel=1e-5)
    metric.reset_state()
    metric.update_state(a[:1], a[:1])
    assert float(metric.result()) == 1


def test_metric_config_brings_the_threshold_back():
    saved = keras.saving.serialize_keras_object(Dice(threshold=0.2, name="overlap"))
    back = keras.saving.deserialize_keras_object(saved)
    assert (type(back), back.threshold, back.name) == (Dice, 0.2, "overlap")
