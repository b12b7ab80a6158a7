import re

import numpy as np
import pytest

from kreg.pairwise.start import Start
from kreg.pairwise.verdict import Ending, _displaced, _needed, _stretch, _too_close, judge
from tests.pairwise.scenes import photograph, rendered, transformed, turned
from tests.pairwise.test_start import CORNERS, SIZE, normalised, pairs_of

TRUTH = turned(6, shift=(3, -4))


def verdict(matrix, *, images=None, runner_up=None, interrupted=False, motion=0.1):
    if images is None:
        images = rendered(photograph(), SIZE), rendered(photograph(), SIZE, TRUTH)
    matrices = normalised(matrix)[None]
    ending = Ending(interrupted, [motion])
    (found,) = judge(pairs_of(*images), Start(matrices, [runner_up]), matrices, ending, seed=0)
    return found


def test_the_right_place_is_trusted():
    found = verdict(TRUTH, runner_up=0.3)
    assert found["trusted"]
    # Six without a second best place, and more the closer that comes: 6 / (1 - 0.3).
    said = r"\d+ standard deviations above wrong places, where 9 are enough"
    assert re.fullmatch(said, found["reason"])
    assert found["similarity_after"] > 2 * found["similarity_before"] >= 0
    assert found["similarity_after"] > found["chance"] > 0
    assert 0.75 < found["overlap"] < 1
    assert found["runner_up"] == 0.3


def edge(shape):
    return np.ones(shape, "float32")


@pytest.mark.parametrize(
    ("matrix", "options", "reason"),
    [
        (turned(40, shift=(-9, 7)), {}, "not above chance: .* at least 10.0 "),
        (np.eye(3), {"images": (edge(SIZE), rendered(photograph(), SIZE))}, "fixed.*no texture"),
        (np.eye(3), {"images": (rendered(photograph(), SIZE), edge(SIZE))}, "moving.*no texture"),
        (turned(0, shift=(52, 0)), {}, "hardly meet: only"),
        (turned(0, shift=(500, 0)), {}, "hardly meet: only 0%"),
        (turned(0, scale=0.2), {}, "degenerate.*lengths 5 times"),
        (np.diag([1.0, -1, 1]), {}, "degenerate.*mirrors"),
        (turned(0, projection=(-0.04, 0)), {}, "degenerate.*infinity"),
        (np.full((3, 3), np.nan), {}, "degenerate"),
        (TRUTH, {"motion": 3.0}, "still moved by 3 voxels"),
        (TRUTH, {"runner_up": 0.95}, "another place fits almost as well: 95%"),
        # However many deviations it would take: they are not to be had.
        (TRUTH, {"runner_up": 0.9999}, "another place fits almost as well: 100%"),
    ],
    ids=str,
)
def test_everything_else_is_not_for_a_reason(matrix, options, reason):
    found = verdict(matrix, **options)
    assert not found["trusted"]
    assert re.search(reason, found["reason"])


def test_a_reason_says_when_it_is_the_second_best_place_that_asks_for_more():
    assert _too_close(20, 0.87) == (
        "another place has 87% of the similarity: this one should stand 47 standard deviations "
        "above wrong places, and stands 20"
    )
    assert re.search("stand at least 6.0 .* stands 4.0", _too_close(4, 0.999))
    assert re.search("not above chance: .* at least 10.0 .* stands 8.0", _too_close(8, None))


@pytest.mark.parametrize(("margin", "runner_up"), [(7.40, 0.19), (46.1, 0.87), (9.99, None)])
def test_a_reason_never_says_that_it_reached_what_it_did_not(margin, runner_up):
    assert margin < _needed(runner_up)
    needed, stands = re.findall(r"stands? (?:at least )?([\d.]+)", _too_close(margin, runner_up))
    assert float(stands) <= margin < _needed(runner_up) <= float(needed)
    assert stands != needed


def test_a_second_best_place_below_chance_asks_for_no_less():
    assert _needed(-0.3) == _needed(0.0) == 6


def test_an_interrupt_is_never_trusted():
    assert verdict(TRUTH, interrupted=True)["reason"].startswith("interrupted: the last")
    both = verdict(turned(0, shift=(500, 0)), interrupted=True)
    assert not both["trusted"]
    assert "interrupted" in both["reason"]
    assert "hardly meet" in both["reason"]


def test_noise_is_no_match_for_noise_however_little_it_varies():
    """The similarity less its bias is below 0 nearly everywhere: it must not be cut off there."""
    rng = np.random.default_rng(0)
    trusted = 0
    for _ in range(10):
        images = rng.normal(size=(2, *SIZE)).astype("float32")
        trusted += verdict(np.eye(3), images=tuple(images))["trusted"]
    assert trusted == 0


def test_too_few_wrong_places_that_overlap_say_nothing(monkeypatch):
    from kreg.pairwise import verdict as module

    monkeypatch.setattr(module, "_COUNT", 4)
    found = verdict(turned(6, shift=(30, -28)))
    assert not found["trusted"]


def test_wrong_places_are_far_away_along_a_long_image_too():
    images = [rendered(photograph(), (14, 120))] * 2
    pairs = pairs_of(*images, unit=60.0)
    wrong = _displaced(np.eye(3)[None], pairs, np.random.default_rng(0))[0]
    np.testing.assert_array_equal(wrong[0], np.eye(3))
    centre = 60 * wrong[1:, :2, 2]
    # Most of them still meet the image, none is close.
    assert np.mean(np.abs(centre[:, 0]) < 7) > 0.5
    ways = 60 * np.abs(transformed(wrong[1:], pairs.corners[None]) - pairs.corners).max((1, 2))
    assert ways.min() > 6


def test_the_stretch_is_that_of_differences():
    rng = np.random.default_rng(0)
    for _ in range(5):
        matrix = np.eye(3) + rng.uniform(-0.2, 0.2, (3, 3))
        step, worst = 1e-6, 1.0
        for point in [*CORNERS, np.zeros(2)]:
            ends = transformed(matrix, point + step * np.eye(2)) - transformed(matrix, point)
            values = np.linalg.svd(ends / step, compute_uv=False)
            worst = max(worst, values.max(), 1 / values.min())
        assert _stretch(matrix / matrix[2, 2], CORNERS) == pytest.approx(worst, rel=1e-4)
    assert _stretch(turned(70, shift=(9, 9)), CORNERS) == pytest.approx(1)


def test_what_fits_worse_than_the_identity_is_not_trusted():
    image = rendered(photograph(), SIZE)
    found = verdict(turned(1.5, shift=(1, -1)), images=(image, image))
    assert not found["trusted"]
    assert re.search("the similarity fell, from .* to", found["reason"])
    assert found["similarity_after"] < found["similarity_before"]
