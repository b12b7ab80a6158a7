import keras
import numpy as np
import pytest
from keras import ops

from kreg import groups
from kreg.data.known_transforms import KnownTransforms, RandomAffine
from kreg.layers import integrate_velocity, spatial_transformer
from kreg.losses import NCC
from kreg.losses.endpoint_error import EndpointError
from kreg.losses.feature_residual import FeatureResidual
from kreg.losses.known_transform import GridDistance
from kreg.models.ddim import DenseStep, GradientMagnitudes, GreyValues, MatchingStage, ddim
from kreg.models.ddim import _resolutions as resolutions
from kreg.models.heads import DenseHead
from kreg.ops import centred_frame, nearest_border, standardise, warp
from kreg.ops.displacement import self_compose
from kreg.training import RegistrationModel
from tests.fields import grid
from tests.models.pairs import (
    check_brightness_and_contrast_change_nothing,
    check_every_weight_is_trained,
    check_identity_at_start,
    images,
    make_active,
    noise,
    under_bfloat16,
)

SMALL = MatchingStage(filters=(4, 4), width=4)
SMALL_DENSE = DenseStep(encoder=(4, 4), decoder=(4, 4), head=DenseHead())


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch):
    """Warps run op by op: XLA takes a second to compile one for each shape."""
    monkeypatch.setattr(spatial_transformer.backend, "compiled", lambda function: function)
    spatial_transformer._compiled_warp.cache_clear()
    monkeypatch.setattr(integrate_velocity, "_square", self_compose)
    yield
    spatial_transformer._compiled_warp.cache_clear()


def small(shape, **options):
    options = {"stage": SMALL, "dense": SMALL_DENSE, "depth": 2, **options}
    return ddim((*shape, 1), **options)


def outputs(model, data):
    return {name: ops.convert_to_numpy(value) for name, value in model(data).items()}


def voxels(matrix, shape):
    frame = centred_frame(shape)
    return np.linalg.inv(frame) @ matrix @ frame


def affine_displacement(matrix, shape):
    matrix = voxels(matrix, shape)
    return grid(shape) @ (matrix[:-1, :-1].T - np.eye(len(shape))) + matrix[:-1, -1]


@pytest.mark.parametrize("shape", [(17, 22), (9, 7, 12)], ids=str)
def test_identity_at_start(shape):
    dense = DenseStep(downsize=2, encoder=(4, 4), decoder=(4, 4))
    model = small(shape, features=True, dense=dense)
    result = check_identity_at_start(model, shape)
    eye = np.eye(len(shape) + 1)
    np.testing.assert_allclose(result["matrix"], np.stack([eye] * 2), atol=1e-6)
    np.testing.assert_allclose(result["stage_matrices"], np.stack([[eye] * 2] * 2), atol=1e-6)
    assert {"residual", "velocity", "warped_linear", "features1", "features2"} <= set(result)


@pytest.mark.parametrize("shape", [(16, 24), (8, 9, 12)], ids=str)
def test_stages_are_composed_each_finding_what_the_one_before_left(shape):
    model = small(shape, dense=None)
    make_active(model, 0.05)
    data = noise(shape)
    first, both = np.moveaxis(outputs(model, data)["stage_matrices"], 1, 0)
    # The second stage by itself: given the moving image that the first has warped.
    views = {name: standardise(ops.convert_to_tensor(image)) for name, image in data.items()}
    field = np.stack([affine_displacement(matrix, shape) for matrix in first]).astype("float32")
    warped = warp(views["moving"], field, border=nearest_border)
    interpolator, matcher = (model.get_layer(f"{kind}2") for kind in ("interpolator", "matcher"))
    left = matcher(interpolator(views["fixed"]), interpolator(warped), data["fixed"])
    expected = first @ ops.convert_to_numpy(left)
    assert np.abs(first - np.eye(len(shape) + 1)).max() > 0.05
    assert np.abs(both - first).max() > 0.05
    np.testing.assert_allclose(both, expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("shape", [(16, 20), (8, 9, 12)], ids=str)
def test_the_displacement_is_the_residual_then_the_matrix(shape):
    model = small(shape)
    make_active(model, 0.05)
    data = noise(shape)
    result = outputs(model, data)
    assert np.abs(result["residual"]).max() > 0.05
    for matrix, residual, field in zip(
        result["matrix"], result["residual"], result["displacement"], strict=True
    ):
        linear = voxels(matrix, shape)
        expected = (grid(shape) + residual) @ linear[:-1, :-1].T + linear[:-1, -1] - grid(shape)
        np.testing.assert_allclose(field, expected, atol=2e-3)
    expected = ops.convert_to_numpy(warp(data["moving"], result["displacement"]))
    np.testing.assert_allclose(result["warped"], expected, atol=1e-4)


def test_without_a_dense_step_the_displacement_is_that_of_the_matrix():
    model = small((16, 20), dense=None)
    make_active(model, 0.05)
    result = outputs(model, noise((16, 20)))
    assert set(result) == {"matrix", "stage_matrices", "displacement", "warped"}
    np.testing.assert_allclose(result["matrix"], result["stage_matrices"][:, -1], atol=1e-6)
    for matrix, field in zip(result["matrix"], result["displacement"], strict=True):
        expected = affine_displacement(matrix, (16, 20))
        assert np.abs(expected).max() > 0.05
        np.testing.assert_allclose(field, expected, atol=1e-3)


def test_shared_weights_are_those_of_one_stage():
    counts = [
        small((16, 20), depth=depth, shared=True, dense=None).count_params() for depth in (1, 3)
    ]
    assert counts[0] == counts[1]
    assert small((16, 20), depth=3, dense=None).count_params() == 3 * counts[0]


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("detached", [True, False])
def test_gradients_stop_at_the_matrix_that_a_stage_starts_from(detached):
    model = small((16, 20), detached=detached, dense=None)
    make_active(model, 0.05)
    # Only the last stage has a loss.
    loss = {"matrix": GridDistance((16, 20))}
    model.compile(keras.optimizers.SGD(1e-3), loss=loss, run_eagerly=True)
    data = {**noise((16, 20)), "moving_matrix": np.stack([np.diag([1.2, 0.8, 1])] * 2)}
    start = model.get_weights()
    model.fit(data, verbose=0)
    moved = {1: 0.0, 2: 0.0}
    for weight, before, after in zip(model.weights, start, model.get_weights(), strict=True):
        stage = 1 if weight.path.split("/")[0].endswith("1") else 2
        moved[stage] = max(moved[stage], np.abs(after - before).max())
    assert moved[2] > 0
    assert (moved[1] == 0) == detached


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((28, 28), (2, [14, 14], [28, 28])),
        ((32, 32), (2, [16, 16], [32, 32])),
        ((8, 8), (1, [4, 4], [8, 8])),
        ((72, 80), (4, [20, 20], [36, 40])),
        ((128, 128), (4, [32, 32], [64, 64])),
        # Whole cells: a multiple of the stride.
        ((25, 25), (2, [14, 14], [26, 26])),
        # Four cells along a short axis, at least.
        ((160, 192, 12), (4, [20, 24, 16], [40, 48, 16])),
    ],
)
def test_resolutions(sizes, expected):
    assert resolutions(sizes) == expected


def test_learns_known_transforms_without_targets_of_ones_own():
    y, x = np.mgrid[:16, :16] - 7.5
    shapes = np.stack([np.exp(-((y - 1) ** 2) / 4 - (x + w) ** 2 / 12) for w in (0, 1, 2, 3)])
    pairs = KnownTransforms(
        shapes.astype("float32"), affine=RandomAffine(rotation=20), batch_size=16, steps=8
    )
    keras.utils.set_random_seed(0)
    model = small((16, 16), stage=MatchingStage(filters=(8, 8), width=8), depth=1)
    model.compile(
        keras.optimizers.Adam(1e-2, clipnorm=1.0),
        loss={
            "stage_matrices": GridDistance((16, 16)),
            "displacement": EndpointError(),
            "warped": NCC(),
        },
        run_eagerly=True,
    )
    history = model.fit(pairs, epochs=3, verbose=0).history
    assert history["stage_matrices_loss"][-1] < 0.9 * history["stage_matrices_loss"][0]
    assert history["displacement_loss"][-1] < 0.9 * history["displacement_loss"][0]


def test_every_weight_is_trained_by_the_feature_residual():
    model = small((12, 16), features=True, dense=None, depth=2)
    loss = {"features1": FeatureResidual(), "features2": FeatureResidual()}
    model.compile(keras.optimizers.Adam(5e-3), loss=loss, run_eagerly=True)
    check_every_weight_is_trained(model, noise((12, 16)))


def test_an_inverted_contrast_changes_nothing_where_gradients_are_seen():
    model = small((16, 15), view=GradientMagnitudes())
    make_active(model)
    data = images((16, 15))
    expected = outputs(model, data)["displacement"]
    assert np.abs(expected).max() > 1e-3
    inverted = {**data, "moving": 1 - data["moving"]}
    found = outputs(model, inverted)["displacement"]
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())
    plain = small((16, 15), view=GreyValues())
    make_active(plain)
    first, second = (outputs(plain, x)["displacement"] for x in (data, inverted))
    assert np.abs(first - second).max() > 0.01 * np.abs(first).max()


def test_brightness_and_contrast_change_nothing():
    check_brightness_and_contrast_change_nothing(small((16, 15)), (16, 15))


def test_mixed_precision_keeps_coordinates_float32():
    model = under_bfloat16(lambda: small((12, 11)))
    assert model.get_layer("matcher1").compute_dtype == "bfloat16"
    assert check_identity_at_start(model, (12, 11))["matrix"].dtype == "float32"


def test_the_options_of_a_stage():
    stage = MatchingStage((2, 3), 4, upsampling=2, resampling=True, radius=1)
    model = small((16, 20), stage=stage, group=groups.Rigid(), dense=None)
    interpolator, matcher = (model.get_layer(f"{kind}1") for kind in ("interpolator", "matcher"))
    assert (interpolator.filters, interpolator.factor, interpolator.strides) == ((2, 3), 2, (2, 2))
    assert interpolator.resampling
    assert (matcher.filters, matcher.radius) == (4, 1)
    make_active(model, 0.05)
    linear = outputs(model, noise((16, 20)))["matrix"][:, :2, :2]
    np.testing.assert_allclose(
        np.swapaxes(linear, 1, 2) @ linear, np.stack([np.eye(2)] * 2), atol=1e-5
    )


def test_comes_back_with_its_weights(tmp_path):
    model = small((16, 20), features=True, view=GradientMagnitudes())
    make_active(model)
    data = noise((16, 20))
    expected = outputs(model, data)
    assert np.abs(expected["displacement"]).max() > 1e-3
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(again, RegistrationModel)
    for name, value in outputs(again, data).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-4)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"known spatial sizes.*Received.*None"):
        ddim((None, 16, 1))
    with pytest.raises(ValueError, match=r"`depth` >= 1.*Received.*depth 0"):
        ddim((16, 16, 1), depth=0)
    with pytest.raises(ValueError, match="Expected an image shape"):
        ddim((16, 16))
