"""The benchmark of large motion reads OpenCV's maps the right way round."""

import numpy as np
import pytest
from scipy import ndimage

cv2 = pytest.importorskip("cv2", reason="needs OpenCV: pip install -e '.[bench]'")

from benchmarks import ddim as benchmark  # noqa: E402
from kreg.data.known_transforms import KnownTransforms, RandomAffine  # noqa: E402


@pytest.mark.parametrize("register", [benchmark.ecc, benchmark.sift])
def test_opencv_finds_the_displacement_of_a_known_matrix(register):
    image = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(96, 96)), 3)
    image = ((image - image.min()) / np.ptp(image)).astype("float32")
    affine = RandomAffine(rotation=5, scale=(0.95, 1.05), stretch=1.05, translation=0.04)
    pairs = KnownTransforms(image[None], affine=affine, deformation=None, batch_size=1)
    (pair,) = pairs[0]
    fixed, moving = (np.uint8(255 * pair[name][0, ..., 0]) for name in ("fixed", "moving"))
    truth = pair["moving_displacement"][0]
    found = benchmark.pixels_displaced(register(cv2, fixed, moving), fixed.shape)
    before, after = (np.linalg.norm(x, axis=-1).mean() for x in (truth, found - truth))
    assert before > 2
    assert after < 0.3


def test_what_leads_nowhere_is_the_identity():
    flat = np.full((32, 32), 9, "uint8")
    for register in (benchmark.ecc, benchmark.sift):
        np.testing.assert_array_equal(register(cv2, flat, flat), np.eye(2, 3))


def test_a_job_without_what_it_starts_from_is_refused(monkeypatch, tmp_path):
    log = tmp_path / "log.jsonl"
    monkeypatch.setattr("sys.argv", ["ddim", "--jobs", "digits/affine_net", "--log", str(log)])
    with pytest.raises(SystemExit, match="Expected digits/ddim, which digits/affine_net starts"):
        benchmark.main()
