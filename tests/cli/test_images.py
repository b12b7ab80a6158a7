import numpy as np

from kreg.cli.images import read_mask
from kreg.io import Image, write


def test_nan_is_outside_of_a_mask(tmp_path):
    values = np.array([[np.nan, 0, 2], [1, np.nan, 0]])
    write(tmp_path / "mask.npy", values)
    mask = read_mask(tmp_path / "mask.npy", Image(np.ones((2, 3))))
    np.testing.assert_array_equal(mask.array, [[0, 0, 1], [1, 0, 0]])
