import itertools

import keras
import numpy as np
import pytest
from keras import ops

from kreg.layers import DepthToSpace


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_voxel_becomes_a_block(shape, channels):
    dimensions = len(shape)
    depth = channels * 2**dimensions
    features = np.random.default_rng(0).normal(size=(2, *shape, depth)).astype("float32")
    found = ops.convert_to_numpy(DepthToSpace()(features))
    assert found.shape == (2, *(2 * size for size in shape), channels)
    for number, offset in enumerate(itertools.product((0, 1), repeat=dimensions)):
        every_second = (slice(None), *(slice(start, None, 2) for start in offset))
        expected = features[..., number * channels : (number + 1) * channels]
        np.testing.assert_array_equal(found[every_second], expected)


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (2, 3, 4, 5, 12)])
def test_refuses_channels_that_cannot_be_shared_out(shape):
    message = rf"Expected a multiple of {2 ** (len(shape) - 2)} channels\. Received: shape"
    with pytest.raises(ValueError, match=message):
        DepthToSpace()(np.zeros(shape, "float32"))
    with pytest.raises(ValueError, match=message):
        DepthToSpace()(keras.KerasTensor(shape))
