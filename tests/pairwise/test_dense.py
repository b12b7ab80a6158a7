import sys

import keras
import numpy as np
import pytest
from scipy import ndimage

import kreg
from kreg.losses import NCC
from kreg.ops import jacobian_determinant
from kreg.pairwise import (
    AllLevels,
    CoarseToFine,
    FisherScoring,
    GaussNewton,
    Standardisation,
)
from kreg.pairwise.blocks import Frame
from kreg.pairwise.dense import _solve_blocks, _squares, _stiffness
from kreg.pairwise.field import Field, shuffled, unfolded
from kreg.transforms import Composed, Dense, FreeForm, Linear
from tests.fields import smooth_field
from tests.pairwise.scenes import photograph, rendered, turned

SIZE = (64, 72)
SOLID = (20, 24, 28)
FINE = Dense(spacing=8, elastic=1e-3, fluid=1e-3)


def texture(shape, seed=0):
    noise = np.random.default_rng(seed).normal(size=shape)
    return sum(s * ndimage.gaussian_filter(noise, s) for s in (1.5, 4)).astype("float32")


def deformed(image, displacement):
    points = np.indices(image.shape) + np.moveaxis(displacement, -1, 0)
    return ndimage.map_coordinates(image, points, order=3, mode="nearest").astype("float32")


def scene(shape, size, seed=0):
    """A moving image, what it looks like under a displacement, and the displacement."""
    moving = texture(shape, seed)
    displacement = smooth_field(shape, size, sigma=8.0, seed=seed)[0]
    return deformed(moving, displacement), moving, displacement


def inner(field, margin=4):
    return field[(slice(margin, -margin),) * (field.ndim - 1)]


@pytest.fixture(scope="module")
def flat():
    fixed, moving, truth = scene(SIZE, 3.0)
    return fixed, moving, truth, kreg.register(fixed, moving, transform=FINE)


def test_finds_a_smooth_displacement(flat):
    fixed, _, truth, result = flat
    gap = np.linalg.norm(inner(result.displacement() - truth), axis=-1).mean()
    assert gap < 0.1 * np.linalg.norm(inner(truth), axis=-1).mean()
    assert result.field.shape == (*SIZE, 2)
    assert result.similarity_after > 2 * result.similarity_before
    assert result.trusted, result.reason
    rest = inner(result.warped - fixed[..., None])
    assert np.sqrt(np.mean(rest**2)) < 0.1 * fixed.std()
    np.testing.assert_array_equal(result.matrix, np.eye(3))
    assert result.runner_up is None


def test_finds_a_displacement_of_a_volume():
    fixed, moving, truth = scene(SOLID, 2.0)
    result = kreg.register(fixed, moving, transform=Dense(6, 1e-3, 1e-3))
    gap = np.linalg.norm(inner(result.displacement() - truth), axis=-1).mean()
    assert gap < 0.25 * np.linalg.norm(inner(truth), axis=-1).mean()
    assert result.trusted, result.reason


def test_points_go_there_and_back(flat):
    *_, result = flat
    points = np.random.default_rng(0).uniform(5, 55, (20, 2))
    there = result.transform_points(points)
    components = [
        ndimage.map_coordinates(c, points.T, order=1) for c in np.moveaxis(result.field, -1, 0)
    ]
    np.testing.assert_allclose(there, points + np.stack(components, -1), atol=1e-5)
    np.testing.assert_allclose(result.inverse_transform_points(there), points, atol=1e-3)


def test_a_matrix_comes_first_and_the_moving_image_is_read_once():
    """y = H (x + u(x)): the warped image and the points say the same."""
    shape = (72, 72)
    moving = texture((96, 80))
    truth = smooth_field(shape, 2.0, sigma=8.0, seed=3)[0]
    matrix = np.array([[0.99, 0.1, 14], [-0.1, 0.99, 6], [0, 0, 1]])
    grid = np.moveaxis(np.indices(shape), 0, -1) + truth
    ends = grid @ matrix[:2, :2].T + matrix[:2, 2]
    fixed = ndimage.map_coordinates(moving, np.moveaxis(ends, -1, 0), order=3).astype("float32")
    result = kreg.register(fixed, moving, transform=Composed(Linear(), FINE))
    found = result.transform_points(np.moveaxis(np.indices(shape), 0, -1))
    assert np.linalg.norm(inner(found - ends), axis=-1).mean() < 0.3
    assert result.trusted, result.reason
    assert 0 <= result.runner_up < 0.9
    expected = ndimage.map_coordinates(moving, np.moveaxis(found, -1, 0), order=1)
    inside = ((found >= 0) & (found <= np.array(moving.shape) - 1)).all(-1)
    np.testing.assert_allclose(result.warped[inside, 0], expected[inside], atol=1e-3)
    stages = result.history["stage"]
    assert stages.index("level 0") < stages.index("dense, level 0")


def test_a_start_stays_as_the_linear_part():
    truth = turned(8, shift=(5, -3))
    fixed, moving = rendered(photograph(), SIZE), rendered(photograph(), SIZE, truth)
    result = kreg.register(fixed, moving, transform=FINE, start=truth)
    np.testing.assert_allclose(result.matrix, truth, atol=1e-6)
    assert np.abs(inner(result.field)).mean() < 0.3
    assert result.trusted, result.reason


def test_refines_a_displacement(flat):
    """Such as a network's prediction: from closer by, the same steps get further."""
    fixed, moving, truth, _ = flat
    hurried = {"transform": FINE, "schedule": CoarseToFine(steps=(1, 1, 1))}
    guess = 0.8 * truth
    gaps = [
        np.linalg.norm(
            inner(kreg.register(fixed, moving, start=start, **hurried).field - truth), axis=-1
        ).mean()
        for start in (guess, guess[None], None)
    ]
    assert gaps[0] == pytest.approx(gaps[1], rel=1e-4)
    assert gaps[0] < 0.5 * np.linalg.norm(inner(guess - truth), axis=-1).mean()
    assert gaps[0] < gaps[2]
    with pytest.raises(ValueError, match=r"`start` to be finite"):
        kreg.register(fixed, moving, start=guess * np.nan, **hurried)


@pytest.mark.parametrize("transform", [FINE, FreeForm(8)], ids=["Gauss-Newton", "Adam"])
def test_without_a_step_a_displacement_stays_as_it_is(flat, transform):
    """In all its detail, which the coarse levels cannot hold."""
    fixed, moving, *_ = flat
    detail = smooth_field(SIZE, 1.0, sigma=2.5, seed=8)[0]
    still = kreg.register(
        fixed, moving, transform=transform, start=detail, schedule=CoarseToFine((0, 0, 0))
    )
    np.testing.assert_allclose(still.field, detail, atol=1e-4)


def test_what_is_found_comes_before_the_displacement_of_the_start(flat, monkeypatch):
    """y = x + d(x) + u_0(x + d(x))."""
    fixed, moving, truth, _ = flat
    found = smooth_field(SIZE, 2.0, sigma=6.0, seed=7)

    def one_step(pairs, *_):
        yield Field(found, pairs.fixed.frames[0])

    monkeypatch.setattr(sys.modules["kreg.pairwise.register"], "deform", one_step)
    result = kreg.register(fixed, moving, transform=FINE, start=truth)
    points = np.indices(SIZE) + np.moveaxis(found[0], -1, 0)
    there = [
        ndimage.map_coordinates(u, points, order=1, mode="nearest")
        for u in np.moveaxis(truth, -1, 0)
    ]
    np.testing.assert_allclose(result.field, found[0] + np.stack(there, -1), atol=1e-4)


def test_a_displacement_to_start_from_leaves_no_room_for_a_matrix(flat):
    fixed, moving, truth, _ = flat
    with pytest.raises(ValueError, match=r"`start` to be a matrix.*Received: a displacement"):
        kreg.register(fixed, moving, transform=Composed(Linear(), FINE), start=truth)


def test_a_critic_is_trained_beforehand_and_by_unrelated_voxels(flat):
    fixed, moving, truth, _ = flat
    result = kreg.register(fixed, moving, transform=FINE, similarity=kreg.losses.MINE())
    gap = np.linalg.norm(inner(result.displacement() - truth), axis=-1).mean()
    assert gap < 0.4 * np.linalg.norm(inner(truth), axis=-1).mean()


def test_voxels_are_shuffled_alike_and_all_of_them():
    samples = np.arange(24.0).reshape(2, 12, 1)
    first, second = (np.asarray(shuffled(samples)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(np.sort(first, axis=1), samples)
    assert (np.diff(first[0, :, 0]) != 1).sum() > 6


def test_a_displacement_that_fits_worse_is_not_trusted(flat):
    fixed, *_ = flat
    away = smooth_field(SIZE, 4.0, sigma=6.0, seed=2)[0]
    result = kreg.register(
        fixed, fixed, transform=FINE, start=away, schedule=CoarseToFine((0, 0, 0))
    )
    assert result.similarity_after < result.similarity_before
    assert not result.trusted
    assert "similarity fell" in result.reason


def test_a_displacement_that_spoils_what_the_matrix_found_is_not_trusted():
    """Too soft, it pulls what is there into the black that the moving image ends in."""
    fixed = photograph()[::2, ::2].astype("float32")
    turn = turned(6, shift=(-11, 10))
    points = np.einsum("ij,jhw->ihw", turn[:2, :2], np.indices(fixed.shape))
    moving = ndimage.map_coordinates(fixed, points + turn[:2, 2, None, None], order=1)
    soft = Composed(Linear(), Dense(spacing=4, elastic=1e-5, fluid=1e-3))
    result = kreg.register(fixed, moving, transform=soft)
    assert not result.trusted
    assert "the matrix alone fits better" in result.reason
    assert kreg.register(fixed, moving, transform=Linear()).trusted


def test_a_batch_gives_what_each_pair_gives_alone(flat):
    fixed, moving, _, alone = flat
    other = scene(SIZE, 3.0, seed=5)
    images = (np.stack(two)[..., None] for two in ((other[0], fixed), (other[1], moving)))
    together = kreg.register(*images, transform=FINE)
    assert len(together) == 2
    np.testing.assert_allclose(together[1].field, alone.field, atol=0.02)
    assert together[1].history["similarity"] == pytest.approx(alone.history["similarity"], rel=1e-2)


def test_large_deformation_does_not_fold():
    """A disc and a ring: no smooth map joins them, and none may fold."""
    grid = np.indices((40, 40)) - 19.5
    radius = np.hypot(*grid)
    disc = ndimage.gaussian_filter((radius < 12).astype("float32"), 1)
    ring = ndimage.gaussian_filter(((radius > 6) & (radius < 15)).astype("float32"), 1)
    fluid = Dense(spacing=2, elastic=0, fluid=0.1)
    result = kreg.register(
        ring,
        disc,
        transform=fluid,
        preparation=Standardisation(),
        schedule=CoarseToFine(steps=(10, 10, 20)),
    )
    assert np.asarray(jacobian_determinant(result.field[None])).min() > 0
    assert np.abs(result.field).max() > 3


def test_folds_are_smoothed_away():
    field = smooth_field((30, 30), 6.0, sigma=1.5, batch=2)
    field[1] /= 60
    assert np.asarray(jacobian_determinant(field)).min() < 0
    mended = unfolded(field)
    assert np.asarray(jacobian_determinant(mended)).min() > 0
    np.testing.assert_allclose(mended[1], field[1], atol=1e-6)  # nothing to mend there
    # Nor where it shrinks without a fold.
    steep = field.copy()
    steep[1, ..., 0] = -0.97 * np.clip(np.arange(30) - 10, 0, 10)[:, None]
    assert 0 < np.asarray(jacobian_determinant(steep[1:])).min() < 0.05
    np.testing.assert_allclose(unfolded(steep)[1], steep[1], atol=1e-6)


def test_masked_parts_do_not_count(flat):
    fixed, moving, truth, _ = flat
    mask = np.ones(SIZE, "float32")
    mask[20:40, 24:44] = 0
    spoilt = np.where(mask > 0, fixed, 3 * texture(SIZE, seed=9))
    gaps = [
        np.linalg.norm(
            inner(kreg.register(spoilt, moving, transform=FINE, **options).displacement() - truth),
            axis=-1,
        ).mean()
        for options in ({}, {"fixed_mask": mask})
    ]
    assert gaps[1] < 0.7 * gaps[0]


@pytest.mark.parametrize(
    ("similarity", "rest"),
    # The histogram is coarse, and steps on it overshoot: less exact.
    [(None, 0.15), (NCC(), 0.15), (kreg.losses.MutualInformation(), 0.8)],
    ids=["default", "NCC", "MutualInformation"],
)
def test_inverted_contrast_changes_little(similarity, rest):
    fixed, moving, truth = scene(SIZE, 3.0)
    result = kreg.register(1 - fixed, moving, transform=FINE, similarity=similarity)
    before = np.linalg.norm(inner(truth), axis=-1).mean()
    assert np.linalg.norm(inner(result.displacement() - truth), axis=-1).mean() < rest * before


def test_an_interrupt_and_a_callback_keep_what_there_is(flat):
    fixed, moving, _, whole = flat

    class Stop(keras.callbacks.Callback):
        def __init__(self, action):
            super().__init__()
            self.action = action

        def on_epoch_end(self, epoch, logs=None):
            if epoch == 7:
                self.action(self.model)

    def interrupt(model):
        raise KeyboardInterrupt

    def stop(model):
        model.stop_training = True

    for action, interrupted in ((interrupt, True), (stop, False)):
        result = kreg.register(fixed, moving, transform=FINE, callbacks=Stop(action))
        assert len(result.history["similarity"]) == 8
        assert result.reason.startswith("interrupted") == interrupted
        assert np.abs(result.field).max() > 0
        assert result.field.shape == whole.field.shape


@pytest.mark.parametrize("seed", [1, 3, 5])
def test_unrelated_images_are_not_trusted(seed):
    """Though a displacement makes them fit far better than wrong places do."""
    result = kreg.register(texture(SIZE, seed), texture(SIZE, seed + 1), transform=FINE)
    assert result.similarity_after > 2 * result.similarity_before
    assert not result.trusted
    assert "the mirrored image" in result.reason


def test_a_field_on_another_grid_is_the_same_in_the_world():
    """Linear in space: interpolation is exact, up to where the grid ends."""
    frame = Frame(np.array([0.5, 0.25]), np.array([-4.0, -3.0]))
    grid = frame.to_world(np.moveaxis(np.indices((17, 25)), 0, -1).astype("float64"))
    slope = np.array([[0.1, 0.02], [-0.05, 0.2]])
    field = Field((grid @ slope / frame.spacing)[None].astype("float32"), frame)
    other = Frame(np.array([0.2, 0.4]), np.array([-3.0, -2.0]))
    places = other.to_world(np.moveaxis(np.indices((20, 9)), 0, -1).astype("float64"))
    found = field.on(other, (20, 9)).values[0] * other.spacing
    np.testing.assert_allclose(found, places @ slope, atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 9), (6, 7, 8)], ids=str)
def test_the_stiffness_is_the_gradient_of_an_energy(shape):
    """Of bending, natural at the edges, .3 of the membrane's and .3 of the size."""
    rng = np.random.default_rng(0)
    control = rng.normal(size=(1, *shape, len(shape)))
    axes = range(1, len(shape) + 1)

    def energy(c):
        total = 0.3 * (c**2).sum()
        for i in axes:
            total += 0.3 * (np.diff(c, axis=i) ** 2).sum() + (np.diff(c, 2, axis=i) ** 2).sum()
            for j in axes:
                if j > i:
                    total += 2 * (np.diff(np.diff(c, axis=i), axis=j) ** 2).sum()
        return total / 2

    found = _stiffness(keras.ops.convert_to_tensor(control.astype("float32")))
    found = keras.ops.convert_to_numpy(found)
    direction = rng.normal(size=control.shape)
    slope = (energy(control + 1e-5 * direction) - energy(control - 1e-5 * direction)) / 2e-5
    assert (found * direction).sum() == pytest.approx(slope, rel=1e-3)
    once, twice = _squares(shape[0])
    np.testing.assert_allclose(once.sum(0), 0, atol=1e-6)
    np.testing.assert_allclose(twice @ np.arange(shape[0]), 0, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_solves_the_blocks(size):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, size, size))
    matrix = root @ np.swapaxes(root, 1, 2) + np.eye(size)
    right = rng.normal(size=(5, size))
    blocks = np.empty((size, size), object)
    for i in range(size):
        for j in range(size):
            blocks[i, j] = matrix[:, i, j].astype("float32")
    found = np.asarray(_solve_blocks(blocks, right.astype("float32")))
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right[..., None])[..., 0], rtol=2e-3)


GOOD = np.random.default_rng(0).normal(size=(24, 26)).astype("float32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": FisherScoring()}, r"`optimizer`.*GaussNewton.*Received: FisherScoring"),
        ({"optimizer": keras.optimizers.Adam()}, r"`optimizer`.*GaussNewton.*Received"),
        ({"schedule": AllLevels()}, r"one level after another.*Received: AllLevels"),
        ({"start": "identity"}, r"`start`.*Received: 'identity'"),
    ],
    ids=["Fisher", "Adam", "all levels", "start"],
)
def test_refuses_what_does_not_fit_a_displacement(options, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        kreg.register(GOOD, GOOD, transform=Dense(), **options)


def test_refuses_images_too_large_for_a_displacement(monkeypatch):
    monkeypatch.setattr(sys.modules["kreg.pairwise.register"], "IN_MEMORY", 100)
    with pytest.raises(ValueError, match=r"at most 100 voxels.*downscale_local_mean.*\(24, 26\)"):
        kreg.register(GOOD, GOOD, transform=Dense())


@pytest.mark.parametrize("options", [{"spacing": 0.5}, {"elastic": -1}, {"elastic": 0, "fluid": 0}])
def test_refuses_a_displacement_without_stiffness(options):
    with pytest.raises(ValueError, match=r"Expected (a spacing|`elastic`).*Received: Dense"):
        Dense(**options)


@pytest.mark.parametrize("options", [{"iterations": 0}, {"stretch": 1.0}, {"stretch": 0.0}])
def test_refuses_steps_that_fold(options):
    with pytest.raises(ValueError, match=r"Expected at least 1 iteration.*Received"):
        GaussNewton(**options)
