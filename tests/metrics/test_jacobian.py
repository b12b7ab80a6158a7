import keras
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from kreg.metrics import FoldingFraction, folding_fraction, jacobian_statistics


def smooth_field(shape, amplitude, seed=0):
    rng = np.random.default_rng(seed)
    components = [gaussian_filter(rng.normal(size=shape), 1.5) for _ in shape]
    return (amplitude * np.stack(components, -1)).astype("float32")[None]


def determinant(field):
    """det of numpy.gradient, voxel by voxel through numpy.linalg."""
    d = field.shape[-1]
    rows = [np.stack(np.gradient(field[0, ..., i].astype("float64")), -1) for i in range(d)]
    return np.linalg.det(np.eye(d) + np.stack(rows, -2))


@pytest.mark.parametrize("shape", [(16, 18), (9, 10, 11)])
def test_statistics_follow_their_definitions(shape):
    field = smooth_field(shape, 12.0 if len(shape) == 2 else 30.0)
    found = jacobian_statistics(field)
    det = determinant(field)
    inner = det[(slice(2, -2),) * len(shape)]
    assert 0.01 < found.folding[0] < 0.5
    assert found.folding == pytest.approx([np.mean(det <= 0)])
    assert found.minimum == pytest.approx([det.min()], rel=1e-3)
    assert found.maximum == pytest.approx([det.max()], rel=1e-3)
    expected = np.std(np.log(np.clip(inner + 3, 1e-9, 1e9)))
    assert found.sd_log == pytest.approx([expected], rel=1e-3)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_uniform_scaling_changes_volume_but_spreads_nothing(dimensions):
    grid = np.stack(np.indices((7,) * dimensions), -1).astype("float32")
    found = jacobian_statistics(0.2 * grid[None])
    assert found.folding == [0]
    assert found.minimum == pytest.approx([1.2**dimensions], rel=1e-5)
    assert found.maximum == pytest.approx([1.2**dimensions], rel=1e-5)
    assert found.sd_log == pytest.approx([0], abs=1e-6)


def test_a_reflection_folds_everywhere_and_two_do_not():
    grid = np.stack(np.indices((6, 6)), -1).astype("float32")
    fields = np.stack([-2 * grid * [1, 0], -2 * grid, 0 * grid])
    assert keras.ops.convert_to_numpy(folding_fraction(fields)).tolist() == [1, 0, 0]


def test_a_determinant_of_zero_counts_as_folding():
    grid = np.stack(np.indices((6, 6)), -1).astype("float32")
    assert keras.ops.convert_to_numpy(folding_fraction(-grid[None])).tolist() == [1]


def test_too_few_voxels_for_sdlogj_are_refused():
    with pytest.raises(ValueError, match="more than 4 voxels"):
        jacobian_statistics(np.zeros((1, 9, 4, 2), "float32"))


def test_metric_is_the_mean_over_samples_and_ignores_the_target():
    fields = np.concatenate([smooth_field((12, 12), a) for a in (0, 8, 14, 20, 30)])
    values = keras.ops.convert_to_numpy(folding_fraction(fields))
    assert values[0] == 0
    assert values[-1] > 0.1
    metric = FoldingFraction()
    for batch in (fields[:2], fields[2:]):
        metric.update_state(np.zeros(3), batch)
    assert float(metric.result()) == pytest.approx(values.mean(), rel=1e-5)
    metric.reset_state()
    metric.update_state(None, fields, sample_weight=np.array([1, 0, 0, 0, 3], "float32"))
    assert float(metric.result()) == pytest.approx(0.75 * values[-1], rel=1e-5)


def test_metric_refuses_a_mask():
    with pytest.raises(ValueError, match=r"\(batch,\)"):
        FoldingFraction().update_state(
            None, np.zeros((1, 6, 6, 2), "float32"), sample_weight=np.ones((1, 6, 6))
        )
