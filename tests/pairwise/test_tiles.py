import numpy as np
import pytest
from scipy import ndimage

from kreg import register
from kreg.pairwise import pairs
from tests.fields import grid
from tests.pairwise.scenes import rendered, transformed, turned

SIZE = (600, 600)


@pytest.fixture(scope="module")
def scene():
    """Structure of all sizes, 800^2."""
    noise = np.random.default_rng(0).normal(size=(800, 800))
    parts = [s * ndimage.gaussian_filter(noise, s, mode="wrap") for s in (2, 6, 20)]
    return sum(parts).astype("float32")


def test_a_large_image_is_read_in_pieces_and_matched_at_full_size(scene, monkeypatch, tmp_path):
    monkeypatch.setattr(pairs, "IN_MEMORY", 200**2)  # averaged 4 x 4 before level 0
    truth = turned(4, scale=1.03, shift=(9, -14))
    for name, matrix in (("fixed", None), ("moving", truth)):
        np.save(tmp_path / f"{name}.npy", rendered(scene, SIZE, matrix))
    images = [np.load(tmp_path / f"{n}.npy", mmap_mode="r") for n in ("fixed", "moving")]
    result = register(*images, seed=0)
    assert "tiles 1/1" in result.history["stage"]
    assert result.trusted, result.reason
    points = (grid(SIZE) - (np.asarray(SIZE) - 1) / 2)[::50, ::50]
    gap = transformed(result.matrix, points) - transformed(truth, points)
    assert np.linalg.norm(gap, axis=-1).mean() < 0.2  # a twentieth of an averaged voxel
