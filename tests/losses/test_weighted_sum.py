import numpy as np
import pytest

from kreg.losses import NCC, Diffusion, Folding, LocalNCC, WeightedSum
from tests.fields import smooth_field


def test_adds_the_weighted_losses():
    field = smooth_field((9, 12), 8.0, sigma=1.0, batch=3)
    parts = [float(loss(field, field)) for loss in (Diffusion(), Folding())]
    assert min(parts) > 0
    total = WeightedSum([Diffusion(), Folding()], [2, 0.5])(field, field)
    assert float(total) == pytest.approx(2 * parts[0] + 0.5 * parts[1], rel=1e-5)


def test_each_loss_applies_the_mask_in_its_own_way():
    rng = np.random.default_rng(0)
    fixed, warped, mask = rng.random((3, 2, 9, 12, 1)).astype("float32")
    parts = [float(loss(fixed, warped, mask)) for loss in (NCC(), LocalNCC(5))]
    total = WeightedSum([NCC(), LocalNCC(5)], [1, 3])(fixed, warped, mask)
    assert float(total) == pytest.approx(parts[0] + 3 * parts[1], rel=1e-5)
    unmasked = WeightedSum([NCC(), LocalNCC(5)], [1, 3])(fixed, warped)
    assert float(total) != pytest.approx(float(unmasked), rel=1e-3)


@pytest.mark.parametrize(("losses", "weights"), [([], []), ([Diffusion()], []), ([NCC()], [1, 2])])
def test_refuses_another_number_of_weights_than_losses(losses, weights):
    with pytest.raises(ValueError, match=r"as many weights as losses\. Received: \d losses, \d"):
        WeightedSum(losses, weights)
