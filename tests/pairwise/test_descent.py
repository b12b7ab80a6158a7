import keras
import numpy as np

from kreg import register
from kreg.pairwise import AllLevels
from tests.fields import grid
from tests.pairwise.scenes import photograph, rendered, transformed, turned

SIZE = (96, 96)


def world(shape):
    return grid(shape) - (np.asarray(shape) - 1) / 2


def test_a_keras_optimizer_finds_an_affine_transform_and_shares_compiled_steps():
    truth = turned(6, scale=1.04, shift=(3, -2))
    fixed, moving = rendered(photograph(), SIZE), rendered(photograph(), SIZE, truth)
    options = {"optimizer": keras.optimizers.Adam(2e-3), "schedule": AllLevels(60, 2048)}
    results = [register(fixed, moving, start=None, seed=1, **options) for _ in range(2)]
    points = world(SIZE)[::8, ::8]
    expected = transformed(truth, points)
    before = np.linalg.norm(points - expected, axis=-1).mean()
    errors = [
        np.linalg.norm(transformed(r.matrix, points) - expected, axis=-1).mean() for r in results
    ]
    assert errors[0] < 0.25 * before
    assert len(results[0].history["similarity"]) == 60
    # A second call begins anew: nothing of the first is left in the optimizer.
    np.testing.assert_allclose(results[0].matrix, results[1].matrix, atol=1e-4)
