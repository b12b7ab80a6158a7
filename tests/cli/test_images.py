import numpy as np
import pytest

from kreg.cli.images import read_mask
from kreg.io import FileError, Image, write


def test_nan_is_outside_of_a_mask(tmp_path):
    values = np.array([[np.nan, 0, 2], [1, np.nan, 0]])
    write(tmp_path / "mask.npy", values)
    mask = read_mask(tmp_path / "mask.npy", Image(np.ones((2, 3))))
    np.testing.assert_array_equal(mask.array, [[0, 0, 1], [1, 0, 0]])


def test_a_mask_lies_where_its_image_does(tmp_path):
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    image = Image(np.ones((4, 5, 6)), affine, "mm", "image.nii")
    nearly = affine + 1e-4 * np.eye(4)[[0, 1, 2, 0]] * [1, 1, 1, 0]
    nearly[3] = 0, 0, 0, 1
    write(tmp_path / "mask.nii", Image(np.ones((4, 5, 6)), nearly, "mm"))
    assert read_mask(tmp_path / "mask.nii", image).array.all()
    write(tmp_path / "flip.nii", Image(np.ones((4, 5, 6)), affine @ np.diag([-1, 1, 1, 1]), "mm"))
    with pytest.raises(FileError, match=r"'image\.nii', LPS.*flip\.nii.*Received: RPS"):
        read_mask(tmp_path / "flip.nii", image)
