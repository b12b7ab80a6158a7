import numpy as np
import pytest
from keras import ops

from kreg.layers import CropLike


@pytest.mark.parametrize(
    ("large", "small"), [((6, 8), (5, 8)), ((6, 8), (6, 8)), ((4, 6, 5), (3, 5, 5))]
)
def test_drops_the_last_voxels_of_each_axis(large, small):
    features = np.random.default_rng(0).normal(size=(2, *large, 3)).astype("float32")
    found = ops.convert_to_numpy(CropLike()(features, np.zeros((2, *small, 1), "float32")))
    kept = (slice(None), *(slice(size) for size in small))
    np.testing.assert_array_equal(found, features[kept])
    assert found.shape == (2, *small, 3)
