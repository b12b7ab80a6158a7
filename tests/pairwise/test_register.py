import re

import keras
import numpy as np
import pytest

import kreg
from kreg.groups import Affine, Group, Homography, Rigid, Similarity, Translation
from kreg.losses import MINE, NCC
from kreg.pairwise import (
    AllLevels,
    CoarseToFine,
    EdgeSampler,
    FisherScoring,
    MultiStart,
    Standardisation,
)
from kreg.transforms import Linear
from tests.pairwise.scenes import coloured, error, photograph, rendered, turned, volume

SIZE = (128, 128)
#: Few samples, as many on each level: one function is compiled for both.
SHORT = CoarseToFine(steps=(8, 6, 10), samples=(8192, 8192, 8192))
AFFINE = Affine()
NEAR = turned(4, scale=1.02, shift=(2, -3), shear=0.02)
FAR = turned(-35, scale=1.25, shift=(20, -26), shear=0.03)


def pair(truth, *, change=lambda image: image, size=SIZE):
    fixed, moving = rendered(photograph(), size), rendered(photograph(), size, truth)
    return fixed, change(moving)


def near(*, group: Group = AFFINE, truth=NEAR, images=None, **options):
    """From the identity, in few steps."""
    options = {"start": None, "schedule": SHORT, **options}
    return kreg.register(*(images or pair(truth)), transform=Linear(group), **options)


@pytest.fixture(scope="module")
def found():
    """An affine registration with all defaults."""
    return kreg.register(*pair(FAR))


# --- what it finds ---


def test_finds_a_large_affine_transform(found):
    assert error(found, FAR) < 0.15
    assert found.trusted
    assert "standard deviations above" in found.reason
    assert found.similarity_after > 3 * found.similarity_before
    assert found.similarity_after > found.chance
    assert 0.4 < found.overlap < 0.9
    assert found.runner_up < 0.9


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda image: 1 - image, {}),
        (lambda image: (1 - np.clip(image, 0, 1)) ** 0.6 * np.linspace(0.7, 1.3, 128), {}),
        # What little it has to hold on to takes more steps than the default.
        (lambda image: np.abs(image - 0.4), {"schedule": CoarseToFine(steps=(20, 15, 40))}),
        (lambda image: np.round(250 * np.clip(image, 0, 1)).astype("uint8"), {}),
    ],
    ids=["inverted", "gamma and bias", "not monotone", "uint8"],
)
def test_finds_it_whatever_the_contrast(change, options):
    result = kreg.register(*pair(FAR, change=change), **options)
    assert error(result, FAR) < 0.2
    assert result.trusted


@pytest.mark.parametrize(
    ("group", "truth"),
    [
        (Translation(), turned(0, shift=(3, -4))),
        (Rigid(), turned(4, shift=(3, -4))),
        (Similarity(), turned(4, scale=1.05, shift=(3, -4))),
        (Homography(), turned(4, scale=1.02, shift=(2, -3), projection=(4e-4, -3e-4))),
    ],
    ids=repr,
)
def test_each_group_finds_its_own(group, truth):
    result = near(group=group, truth=truth)
    assert error(result, truth) < 0.1
    assert result.trusted
    linear = result.matrix[:2, :2]
    if isinstance(group, Translation):
        np.testing.assert_allclose(linear, np.eye(2), atol=1e-9)
    if isinstance(group, Rigid):
        np.testing.assert_allclose(linear @ linear.T, np.eye(2), atol=1e-9)
    if not isinstance(group, Homography):
        np.testing.assert_array_equal(result.matrix[2], (0, 0, 1))


def test_rigid_is_rigid_even_when_it_is_stopped_on_its_way():
    schedule = CoarseToFine(steps=(3, 3, 3), samples=(8192, 8192, 8192))
    result = near(group=Rigid(), truth=turned(20, shift=(3, -4)), schedule=schedule)
    linear = result.matrix[:2, :2]
    np.testing.assert_allclose(linear @ linear.T, np.eye(2), atol=1e-9)


def test_sizes_and_spacings_differ_and_rigid_stays_rigid():
    truth = turned(8, shift=(4, -5))
    fixed = rendered(photograph(), (61, 128), spacing=(2.0, 1.0))
    moving = rendered(photograph(), (120, 75), truth, spacing=(1.0, 1.5))
    result = kreg.register(
        fixed,
        moving,
        transform=Linear(Rigid()),
        schedule=SHORT,
        start=None,
        fixed_spacing=(2.0, 1.0),
        moving_spacing=(1.0, 1.5),
    )
    assert error(result, truth) < 0.3
    linear = result.matrix[:2, :2]
    np.testing.assert_allclose(linear @ linear.T, np.eye(2), atol=1e-9)
    assert result.trusted
    # Between voxels it is none: the axes have different units.
    assert abs(np.linalg.det(result.voxel_matrix[:2, :2]) - 2 / 1.5) < 1e-6
    assert result.warped.shape == (61, 128, 1)
    inner = (slice(15, -15), slice(30, -30), 0)
    assert np.corrcoef(result.warped[inner].ravel(), fixed[inner[:2]].ravel())[0, 1] > 0.98


def test_finds_a_rigid_transform_of_a_volume():
    truth = np.eye(4)
    truth[:3, :3] = kreg.ops.matrix_exponential(
        np.array([[[0, -0.1, 0.05], [0.1, 0, -0.08], [-0.05, 0.08, 0]]], "float32")
    )[0]
    truth[:3, 3] = 1.5, -2.0, 1.0
    spacing = (1.5, 1.0, 1.0)
    fixed = rendered(volume(), (18, 28, 26), spacing=spacing)
    moving = rendered(volume(), (18, 28, 26), truth, spacing=spacing)
    mask = np.ones(fixed.shape, bool)
    mask[:2] = False
    result = near(
        group=Rigid(),
        images=(fixed, moving),
        fixed_spacing=spacing,
        moving_spacing=spacing,
        fixed_mask=mask,
    )
    assert error(result, truth) < 0.2
    assert result.trusted
    np.testing.assert_allclose(
        result.matrix[:3, :3] @ result.matrix[:3, :3].T, np.eye(3), atol=1e-9
    )


def test_a_batch_gives_what_each_pair_gives_alone():
    truths = [NEAR, turned(-3, shift=(-2, 4))]
    pairs = [pair(NEAR), pair(truths[1], change=lambda image: 1 - image)]
    fixed, moving = (np.stack(images)[..., None] for images in zip(*pairs, strict=True))
    together = near(images=(fixed, moving))
    assert len(together) == 2
    for k, (truth, result) in enumerate(zip(truths, together, strict=True)):
        alone = near(images=pairs[k])
        assert error(result, truth) < 0.1
        assert error(result, alone.matrix) < 0.01
        assert result.trusted
        assert len(result.history["similarity"]) == len(alone.history["similarity"])
        np.testing.assert_allclose(result.warped, alone.warped, atol=0.03)
        assert result.similarity_after == pytest.approx(alone.similarity_after, rel=1e-3)


def test_masks_are_relative():
    """A faint mask is no less overlap than a full one."""
    faint = np.full((128, 128), 0.2, "float32")
    result = near(fixed_mask=faint, start=MultiStart())
    assert result.trusted, result.reason
    assert result.overlap > 0.5
    assert error(result, NEAR) < 0.1


def test_masked_parts_do_not_count():
    """The same foreign patch in both images, that does not move."""
    truth = turned(4, shift=(6, -7))
    fixed, moving = pair(truth)
    mask = np.ones(SIZE, "uint8")
    for image in (fixed, moving):
        image[:, :75] = rendered(coloured()[..., 0], (128, 75))
    mask[:, :77] = 0
    masked = kreg.register(fixed, moving, fixed_mask=mask, moving_mask=mask)
    assert error(masked, truth) < 0.1
    assert masked.trusted
    assert masked.overlap <= 1
    assert error(kreg.register(fixed, moving), truth) > 0.5


def test_colours_are_compared_as_they_are_or_as_grey():
    fixed, moving = (rendered(coloured(), SIZE, matrix) for matrix in (None, NEAR))
    result = near(images=(fixed, moving))
    assert error(result, NEAR) < 0.1
    assert result.warped.shape == (*SIZE, 3)
    grey = moving.mean(-1)
    result = near(
        similarity=MINE(channels=(3, 1), hidden=(16, 16)),
        images=(fixed, 1 - grey),
        schedule=CoarseToFine((15, 10, 20), (4096, 4096, 4096), 30, (1e-2, 1e-3)),
    )
    assert error(result, NEAR) < 0.4
    assert result.trusted
    assert result.warped.shape == (*SIZE, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"similarity": NCC()},
        {"schedule": AllLevels(20, 4096)},
        {"sampler": EdgeSampler()},
        {"preparation": Standardisation()},
        {"optimizer": FisherScoring(damping=0.01, cap=1.0)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_part_may_be_another(options):
    assert error(near(**options), NEAR) < 0.3


# --- how it goes about it ---


def test_the_same_seed_gives_the_same_result():
    first, again, other = (near(seed=seed).matrix for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_allclose(first[:2, :2], other[:2, :2], atol=2e-3)


def test_the_history_has_a_value_a_step():
    history = near().history
    assert set(history) == {"stage", "similarity", "overlap", "motion"}
    assert history["stage"] == ["level 1"] * 8 + ["level 0"] * 10
    for name in ("similarity", "overlap", "motion"):
        assert len(history[name]) == 18
        assert all(isinstance(value, float) for value in history[name])
    assert history["similarity"][-1] > history["similarity"][8]
    assert history["motion"][-1] < history["motion"][0]


def test_goes_on_while_it_moves():
    hurried = CoarseToFine(steps=(1, 1, 4), samples=(4096, 4096, 8192))
    images = pair(NEAR)
    result = near(images=images, schedule=hurried, optimizer=FisherScoring(cap=1.0))
    steps = len(result.history["similarity"])
    assert 5 < steps <= 1 + 4 * 4
    assert set(result.history["stage"][1:]) == {"level 0"}
    assert error(result, NEAR) < 0.3
    # One that stands still is done at once.
    still = near(images=images, schedule=hurried, start=NEAR)
    assert len(still.history["similarity"]) == 5


def test_starts_from_a_matrix():
    schedule = CoarseToFine(steps=(2, 2, 2), samples=(8192, 8192, 8192))
    result = near(truth=FAR, start=FAR, schedule=schedule)
    assert error(result, FAR) < 0.3
    assert result.trusted
    assert result.runner_up is None
    # Nearby images only lead back from nearby.
    lost = near(truth=FAR)
    assert error(lost, FAR) > 5
    assert not lost.trusted


def test_a_start_is_in_world_units():
    """As the result: it may be handed back, whatever the spacing."""
    images = pair(FAR)
    schedule = CoarseToFine(steps=(2, 2, 2), samples=(8192, 8192, 8192))
    spacing = {"fixed_spacing": (0.1, 0.1), "moving_spacing": (0.1, 0.1)}
    small = FAR.copy()
    small[:2, 2] /= 10
    result = near(images=images, start=small, schedule=schedule, **spacing)
    assert error(result, small) < 0.03
    np.testing.assert_allclose(
        result.voxel_matrix,
        near(images=images, start=FAR, schedule=schedule).voxel_matrix,
        atol=0.02,
    )


class At(keras.callbacks.Callback):
    """Does something at the end of a step."""

    def __init__(self, step, action):
        super().__init__()
        self.step, self.action = step, action

    def on_epoch_end(self, epoch, logs=None):
        assert set(logs) == {"similarity", "overlap", "motion"}
        if epoch == self.step:
            self.action(self)


@pytest.mark.parametrize("step", [0, 3, 9])
def test_a_callback_stops_it(step):
    def stop(callback):
        callback.model.stop_training = True

    result = near(callbacks=[At(step, stop)])
    assert len(result.history["similarity"]) == step + 1
    assert "interrupted" not in result.reason


def test_an_interrupt_keeps_the_transform_so_far():
    def interrupt(callback):
        raise KeyboardInterrupt

    result = near(callbacks=[At(12, interrupt)])
    assert len(result.history["similarity"]) == 13
    assert error(result, NEAR) < 0.5 * error(near(schedule=CoarseToFine((0, 0, 0))), NEAR)
    assert not result.trusted
    assert result.reason.startswith("interrupted")
    at_once = near(callbacks=[At(0, interrupt)])
    np.testing.assert_allclose(at_once.matrix, np.eye(3), atol=1e-9)
    assert not at_once.trusted


def test_shows_a_bar_when_asked(capsys):
    near(verbose=True)
    assert "18/18" in capsys.readouterr().out


# --- what must not be believed ---


def noise(seed):
    return np.random.default_rng(seed).normal(size=SIZE).astype("float32")


def flat(value):
    return np.full(SIZE, value, "float32")


DISTRUSTED = {
    "constant fixed": (flat(0.3), noise(0), "fixed image has no texture"),
    "constant moving": (noise(0), flat(0.0), "moving image has no texture"),
    "noise": (noise(0), noise(1), "chance|almost as well|hardly meet"),
}


@pytest.mark.parametrize("name", DISTRUSTED)
def test_images_without_anything_in_common_are_not_trusted(name):
    fixed, moving, reason = DISTRUSTED[name]
    result = kreg.register(fixed, moving)
    assert not result.trusted
    assert re.search(reason, result.reason)
    assert np.isfinite(result.matrix).all()


@pytest.mark.parametrize("seed", range(4))
def test_unrelated_pictures_are_not_trusted(seed):
    from skimage import data

    other = [data.moon()[200:328, 200:328], data.coins()[40:168, 60:188], data.brick()[:128, :128]]
    other = [*other, data.retina()[400:1040:5, 400:1040:5].mean(-1)][seed]
    result = kreg.register(pair(NEAR)[0], other.astype("float32"))
    assert not result.trusted, result.reason


def test_images_that_hardly_meet_are_not_trusted():
    away = np.eye(3)
    away[0, 2] = 110
    result = near(start=away)
    assert not result.trusted
    assert "hardly meet" in result.reason
    beyond = away.copy()
    beyond[0, 2] = 1000
    result = near(start=beyond)
    assert not result.trusted
    assert result.overlap == 0


# --- what is refused ---

GOOD = np.random.default_rng(0).normal(size=(16, 18)).astype("float32")
SOLID = np.random.default_rng(0).normal(size=(9, 10, 11)).astype("float32")
BAD = {
    "rank 1": ((GOOD[0], GOOD[0]), {}, r"2-D or 3-D.*Received: shape \(18,\)"),
    "rank 6": ((np.ones((1,) * 6), GOOD), {}, r"2-D or 3-D.*Received: shape \(1, 1"),
    "2-D and 3-D": ((GOOD, SOLID), {}, r"equal rank.*\(16, 18\) and \(9, 10, 11\)"),
    "batch and none": ((GOOD, GOOD[None, ..., None]), {}, r"equal rank.*batches of 1 and 1"),
    "batches": (
        (np.ones((2, 16, 18, 1)), np.ones((3, 16, 18, 1))),
        {},
        r"as many fixed as moving.*2 and 3",
    ),
    "NaN": ((GOOD, np.where(GOOD > 2, np.nan, GOOD)), {}, r"`moving` to be finite.*mask"),
    "infinite": ((np.where(GOOD > 2, np.inf, GOOD), GOOD), {}, r"`fixed` to be finite"),
    "complex": ((GOOD.astype("complex64"), GOOD), {}, r"real numbers.*complex64"),
    "masked array": (
        (np.ma.masked_array(GOOD, GOOD > 1), GOOD),
        {},
        r"`fixed` without a mask.*`~fixed.mask` as `fixed_mask`",
    ),
    "one slice": ((GOOD[None], GOOD[None]), {}, r"2 voxels along each.*\(1, 16, 18\)"),
    "extents": (
        (GOOD, GOOD),
        {"moving_spacing": (1000, 1000)},
        r"comparable extent.*check the spacings",
    ),
    "tiny": ((GOOD[:3, :3], GOOD[:3, :3]), {}, r"at least 2 voxels.* 4 along"),
    "homography": (
        (SOLID, SOLID),
        {"transform": Linear(Homography())},
        r"Homography\(\) in 2 dimensions.*Received: 3",
    ),
    "mask shape": ((GOOD, GOOD), {"fixed_mask": GOOD.T}, r"`fixed_mask`.*Received: shape"),
    "empty mask": ((GOOD, GOOD), {"fixed_mask": 0 * GOOD}, r"`fixed_mask`.*some above 0"),
    "empty moving mask": ((GOOD, GOOD), {"moving_mask": 0 * GOOD}, r"`moving_mask`.*above 0"),
    "mask of bytes": (
        (GOOD, GOOD),
        {"moving_mask": np.full(GOOD.shape, 255, "uint8")},
        r"`moving_mask`.*from 0 to 1.*`moving_mask > 0`.*255",
    ),
    "NaN mask": ((GOOD, GOOD), {"fixed_mask": np.nan * GOOD}, r"`fixed_mask` to be finite"),
    "spacing": ((GOOD, GOOD), {"fixed_spacing": (1, -1)}, r"`fixed_spacing`.*positive.*\(1, -1\)"),
    "spacings": ((GOOD, GOOD), {"moving_spacing": (1, 1, 1)}, r"`moving_spacing` to be 2"),
    "similarity": ((GOOD, GOOD), {"similarity": "mi"}, r"`similarity`.*Received: 'mi'"),
    "transform": ((GOOD, GOOD), {"transform": Rigid()}, r"`transform`.*Transform.*Received: Rigid"),
    "optimizer": ((GOOD, GOOD), {"optimizer": "adam"}, r"`optimizer`.*FisherScoring.*'adam'"),
    "sampler": ((GOOD, GOOD), {"sampler": "edges"}, r"`sampler`.*Sampler.*'edges'"),
    "schedule": ((GOOD, GOOD), {"schedule": 3}, r"`schedule`.*Schedule.*Received: 3"),
    "preparation": ((GOOD, GOOD), {"preparation": 2}, r"`preparation`.*Received: 2"),
    "callbacks": ((GOOD, GOOD), {"callbacks": [print]}, r"`callbacks`.*Callback.*Received"),
    "start": ((GOOD, GOOD), {"start": "multi"}, r"`start`.*MultiStart.*Received: 'multi'"),
    "start class": ((GOOD, GOOD), {"start": MultiStart}, r"`start`.*MultiStart\(\).*Received"),
    "start shape": ((GOOD, GOOD), {"start": np.eye(4)}, r"`start`.*\(3, 3\)"),
    "start batch": ((GOOD, GOOD), {"start": np.stack([np.eye(3)] * 2)}, r"`start`.*\(1, 3, 3\)"),
    "start NaN": ((GOOD, GOOD), {"start": np.full((3, 3), np.nan)}, r"`start`.*invertible"),
    "start singular": ((GOOD, GOOD), {"start": np.diag([1, 0, 1])}, r"`start`.*invertible"),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses_what_makes_no_sense(name):
    images, options, message = BAD[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        kreg.register(*images, **options)
