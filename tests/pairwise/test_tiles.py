import numpy as np
import pytest
from scipy import ndimage

from kreg import register
from kreg.pairwise import pairs, tiles
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


def test_tiles_keep_to_the_masks_and_each_pair_has_its_own_history(scene, monkeypatch):
    """A texture that does not move with the rest, on 40 % of both images."""
    monkeypatch.setattr(pairs, "IN_MEMORY", 200**2)
    truth = turned(0.2, shift=(1.5, -1))
    fixed, moving = rendered(scene, SIZE), rendered(scene, SIZE, truth)
    rng = np.random.default_rng(1)
    still = 3 * ndimage.gaussian_filter(rng.normal(size=SIZE), 2).astype("float32")
    mask = np.ones(SIZE, "float32")
    mask[:, 360:] = 0
    both = [np.where(mask > 0, image, still) for image in (fixed, moving)]
    images = [np.stack(two)[..., None] for two in zip(both, (fixed, moving), strict=True)]
    masks = np.stack([mask, np.ones_like(mask)])
    results = register(*images, fixed_mask=masks, moving_mask=masks, start=None)
    points = (grid(SIZE) - (np.asarray(SIZE) - 1) / 2)[::50, ::50]
    for result in results:
        gap = transformed(result.matrix, points) - transformed(truth, points)
        assert np.linalg.norm(gap, axis=-1).mean() < 0.2
        lengths = {len(values) for values in result.history.values()}
        assert len(lengths) == 1
        # A whole number of rounds: they go on while the pair moves.
        assert result.history["stage"].count("tiles 1/1") in tiles.TILE_STEPS * np.arange(1, 5)
