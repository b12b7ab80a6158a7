import keras
import numpy as np
import pytest
from scipy import ndimage

import kreg
from kreg.losses import MINE, NCC, BendingEnergy, Diffusion, LocalNCC, WeightedSum
from kreg.ops import bspline_grid_shape, compose, jacobian_determinant
from kreg.pairwise import CoarseToFine, GaussNewton, Unchanged
from kreg.pairwise.free_form import FreeFormStep, per_pair
from kreg.transforms import Composed, Dense, FreeForm, Linear, Velocity
from tests.pairwise.test_dense import inner, scene

SIZE = (40, 44)
STEPS = CoarseToFine((20, 20, 20))
LOOSE = WeightedSum([BendingEnergy()], [0.01])


def adam(rate=0.2):
    return keras.optimizers.Adam(rate)


def error(result, truth):
    """Mean distance from the truth, as a share of its own length."""
    gap = np.linalg.norm(inner(result.displacement() - truth), axis=-1).mean()
    return gap / np.linalg.norm(inner(truth), axis=-1).mean()


@pytest.fixture(scope="module")
def pair():
    return scene(SIZE, 3.0)


@pytest.mark.parametrize(
    ("transform", "similarity"),
    [
        (FreeForm(8, LOOSE), None),
        (FreeForm(8, LOOSE), keras.losses.MeanSquaredError()),
        (Velocity(8, LOOSE), LocalNCC(window=7)),
    ],
    ids=["log-ratio", "keras-loss", "velocity"],
)
def test_any_loss_and_a_keras_optimizer_find_a_displacement(pair, transform, similarity):
    fixed, moving, truth = pair
    result = kreg.register(
        fixed, moving, transform=transform, similarity=similarity, optimizer=adam(), schedule=STEPS
    )
    assert error(result, truth) < 0.25
    assert result.trusted, result.reason
    history = result.history
    assert history["similarity"][-1] > history["similarity"][-20]
    assert set(history["stage"]) >= {"dense, level 0", "dense, level 1"}
    assert (np.asarray(jacobian_determinant(result.field[None])) > 0).all()


def test_finds_the_displacement_of_a_volume():
    fixed, moving, truth = scene((12, 14, 16), 2.0)
    steps = CoarseToFine((10, 10, 15))
    result = kreg.register(
        fixed, moving, transform=FreeForm(6, LOOSE), optimizer=adam(0.3), schedule=steps
    )
    assert error(result, truth) < 0.5


def test_a_network_s_prediction_is_refined_by_the_losses_it_was_trained_with(pair):
    fixed, moving, truth = pair
    predicted = truth + 0.8 * scene(SIZE, 1.0, seed=5)[2]
    transform = FreeForm(8, WeightedSum([Diffusion()], [0.01]))
    options = {"transform": transform, "similarity": LocalNCC(window=7), "optimizer": adam(0.05)}
    result = kreg.register(
        fixed, moving, start=predicted, schedule=CoarseToFine((0, 0, 40)), **options
    )
    before = np.linalg.norm(inner(predicted - truth), axis=-1).mean()
    after = np.linalg.norm(inner(result.displacement() - truth), axis=-1).mean()
    assert after < 0.5 * before
    assert result.trusted, result.reason


def test_a_velocity_is_integrated_as_by_the_layer_and_penalised_itself():
    field = 0.5 * scene(SIZE, 1.0, seed=2)[2][None]
    velocity = Velocity(steps=5)
    found = velocity.displacement(field)
    # exp(v) by 512 small steps.
    steps = np.zeros_like(field)
    for _ in range(512):
        steps = np.asarray(compose(field / 512, steps))
    np.testing.assert_allclose(found, steps, atol=0.02)
    assert velocity.penalised("v", "u") == "v"
    assert FreeForm().penalised("v", "u") == "u"


def test_the_loss_sees_the_image_at_what_is_found_and_then_at_the_start():
    """moving(x + d(x) + u_0(x + d(x))), which the other order would not give."""
    shape, seen = (20, 22), []
    fixed, moving, start = scene(shape, 2.0)
    generator = np.random.default_rng(0)

    class Spy(keras.losses.Loss):
        def call(self, y_true, y_pred):
            seen.append(keras.ops.convert_to_numpy(y_pred))
            return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=(1, 2, 3))

    transform = FreeForm(6)
    grid = bspline_grid_shape(shape, 6)
    control = generator.normal(size=(1, *grid, 2)).astype("float32")
    step = FreeFormStep(Spy(), transform, adam(), shape, ((1, *grid, 2),))
    ones = np.ones((1, *shape, 1), "float32")
    images = fixed[None, ..., None], ones, moving[None, ..., None], ones
    eye = np.eye(3, dtype="float32")[None]
    control, u, *rest = map(keras.ops.convert_to_tensor, (control, start[None], *images, eye))
    _, (*_, found) = step._loss([control], [u], *rest)
    found = keras.ops.convert_to_numpy(found)[0]
    points = np.indices(shape) + np.moveaxis(found, -1, 0)
    outer = [
        ndimage.map_coordinates(u, points, order=1, mode="nearest")
        for u in np.moveaxis(start, -1, 0)
    ]
    ends = points + np.stack(outer)
    expected = ndimage.map_coordinates(moving, ends, order=1, mode="nearest")
    inside = ((ends >= 0) & (ends <= np.array(shape)[:, None, None] - 1)).all(0)
    np.testing.assert_allclose(seen[0][0, ..., 0][inside], expected[inside], atol=1e-3)


def test_a_loss_of_each_pair_whatever_its_reduction(pair):
    fixed, moving = (np.stack([x, x[::-1]])[..., None] for x in pair[:2])
    inside = np.ones_like(fixed)
    inside[:, :10] = 0
    one, two = NCC(), NCC(reduction="sum")
    expected = [one(fixed[i : i + 1], moving[i : i + 1], inside[i : i + 1]) for i in range(2)]
    for loss in (one, two, WeightedSum([two], [1.0])):
        found = per_pair(loss, fixed, moving, inside)
        np.testing.assert_allclose(found, np.stack(expected), rtol=1e-5)
    square = per_pair(keras.losses.MeanSquaredError(reduction="sum"), fixed, moving, inside)
    gap = np.square(fixed - moving)[:, 10:].sum(axis=(1, 2, 3)) / fixed[0].size
    np.testing.assert_allclose(square, gap, rtol=1e-4)


def test_a_matrix_comes_first(pair):
    fixed, moving, truth = pair
    result = kreg.register(
        fixed,
        np.roll(moving, 4, axis=0),
        transform=Composed(Linear(kreg.groups.Translation()), FreeForm(8, LOOSE)),
        optimizer=adam(),
        schedule=STEPS,
    )
    found = result.transform_points(np.moveaxis(np.indices(SIZE), 0, -1))
    wanted = np.moveaxis(np.indices(SIZE), 0, -1) + truth + [4, 0]
    assert np.linalg.norm(inner(found - wanted, 8), axis=-1).mean() < 0.5


def test_each_pair_of_a_batch_is_registered_for_itself():
    pairs = [scene((20, 24), 2.0, seed=seed)[:2] for seed in (0, 4)]
    options = {
        "transform": FreeForm(8, LOOSE),
        "schedule": CoarseToFine((5, 5, 5)),
        "similarity": keras.losses.MeanSquaredError(reduction="sum"),
    }
    alone = kreg.register(*pairs[0], **options)
    fixed, moving = (np.stack(side)[..., None] for side in zip(*pairs, strict=True))
    first, second = kreg.register(fixed, moving, **options)
    np.testing.assert_allclose(first.field, alone.field, atol=1e-3)
    assert np.abs(second.field - first.field).max() > 0.1


def test_losses_see_the_images_as_they_are(pair):
    fixed, moving, _ = pair
    seen = []

    class Spy(keras.losses.Loss):
        def call(self, y_true, y_pred):
            seen.append(float(keras.ops.max(y_true)))
            return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=(1, 2, 3))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kreg.backend.jit", lambda function, least=0: function)
        kreg.register(
            fixed + 300,
            moving + 300,
            transform=FreeForm(8),
            similarity=Spy(),
            schedule=CoarseToFine((0, 0, 1)),
        )
    assert max(seen) > 290


def test_unchanged_keeps_the_range_of_the_image():
    image = np.full((1, 16, 16, 1), 200.0, "float32")
    levels = Unchanged().levels(image, None, 2)
    assert [level.shape[1] for level in levels] == [16, 8]
    for level in levels:
        np.testing.assert_allclose(level, 200, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": GaussNewton()}, "object of keras's Optimizer"),
        ({"transform": Dense(), "optimizer": adam()}, "kreg's GaussNewton"),
        ({"transform": Dense(), "similarity": LocalNCC()}, "LogRatio"),
        ({"similarity": MINE(), "optimizer": "adam"}, "Optimizer"),
    ],
    ids=["gauss-newton", "dense-adam", "dense-loss", "string"],
)
def test_refuses_what_does_not_fit_the_transform(pair, options, message):
    with pytest.raises(ValueError, match=message):
        kreg.register(*pair[:2], **{"transform": FreeForm(), **options})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FreeForm(0.5), "at least 1 voxel"),
        (lambda: FreeForm(penalty="bending"), "a loss on the field"),
        (lambda: Velocity(steps=-1), "steps"),
    ],
)
def test_refuses_transforms_that_do_not_exist(make, message):
    with pytest.raises(ValueError, match=message):
        make()
