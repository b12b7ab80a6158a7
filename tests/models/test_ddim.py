import functools

import keras
import numpy as np
import pytest
from keras import ops
from scipy.ndimage import gaussian_filter

from kreg import groups
from kreg.data.known_transforms import KnownTransforms, RandomAffine
from kreg.layers import MatrixExpAffine, integrate_velocity, matcher, spatial_transformer
from kreg.losses import NCC
from kreg.losses.endpoint_error import EndpointError
from kreg.losses.feature_residual import FeatureResidual
from kreg.losses.known_transform import GridDistance
from kreg.models.ddim import (
    GradientMagnitudes,
    GreyValues,
    MatchingStage,
    NetworkStep,
    SmoothStep,
    ddim,
)
from kreg.models.ddim import _resolutions as resolutions
from kreg.models.heads import DenseHead
from kreg.models.two_pass import two_pass
from kreg.models.voxelmorph import voxelmorph
from kreg.ops import centred_frame, nearest_border, standardise, warp
from kreg.ops.displacement import self_compose
from kreg.ops.filters import resize_image
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
UNET = functools.partial(voxelmorph, encoder=(4, 4), decoder=(4, 4))
SMALL_DENSE = NetworkStep(functools.partial(UNET, head=DenseHead()))


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch, uncompiled):
    """Warps run op by op: XLA takes a second to compile one for each shape."""
    monkeypatch.setattr(spatial_transformer.backend, "compiled", lambda function: function)
    caches = spatial_transformer._compiled_warp, matcher._compiled_seen
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setattr(integrate_velocity, "_square", self_compose)
    monkeypatch.setattr(matcher, "_compiled_sums", matcher._sums)
    yield
    for cache in caches:
        cache.cache_clear()


def small(shape, **options):
    options = {"stage": SMALL, "dense": SMALL_DENSE, "depth": 2, **options}
    return ddim((*shape, 1), **options)


def outputs(model, data):
    return {name: ops.convert_to_numpy(value) for name, value in model(data).items()}


def affine_displacement(matrix, shape, full=None):
    """The field of a world matrix, on a grid of `shape` over an image of the size `full`."""
    spacing = np.array(full or shape) / shape
    frame = centred_frame(shape, spacing)
    voxels = np.linalg.inv(frame) @ matrix @ frame
    return grid(shape) @ (voxels[:-1, :-1].T - np.eye(len(shape))) + voxels[:-1, -1]


def warped_by(matrices, image, full=None, **options):
    image = ops.convert_to_tensor(image)
    field = [affine_displacement(matrix, image.shape[1:-1], full) for matrix in matrices]
    return ops.convert_to_numpy(warp(image, np.stack(field).astype("float32"), **options))


def halved(image):
    """Means of 2^D voxels."""
    for axis in range(1, image.ndim - 1):
        image = (np.take(image, range(0, image.shape[axis], 2), axis)
                 + np.take(image, range(1, image.shape[axis], 2), axis)) / 2  # fmt: skip
    return image


@pytest.mark.parametrize("shape", [(17, 22), (9, 7, 12)], ids=str)
def test_identity_at_start(shape):
    dense = NetworkStep(UNET, downsize=2)
    model = small(shape, features=True, dense=dense)
    result = check_identity_at_start(model, shape)
    eye = np.eye(len(shape) + 1)
    np.testing.assert_allclose(result["matrix"], np.stack([eye] * 2), atol=1e-6)
    np.testing.assert_allclose(result["stage_matrices"], np.stack([[eye] * 2] * 2), atol=1e-6)
    assert {"residual", "velocity", "warped_linear", "features1", "features2"} <= set(result)


@pytest.mark.parametrize("shape", [(16, 24), (64, 80), (8, 10, 12)], ids=str)
def test_stages_are_composed_each_finding_what_the_one_before_left(shape):
    model = small(shape, dense=None, features=True)
    make_active(model, 0.05)
    data = noise(shape)
    result = outputs(model, data)
    first, both = np.moveaxis(result["stage_matrices"], 1, 0)
    # The second stage by itself: given the moving image that the first has warped.
    views = [data[name] for name in ("fixed", "moving")]
    if shape == (64, 80):  # the second stage sees it half as large
        views = [halved(view) for view in views]
    views = [ops.convert_to_numpy(standardise(view)) for view in views]
    views[1] = warped_by(first, views[1], shape, border=nearest_border)
    interpolator, matcher = (model.get_layer(f"{kind}2") for kind in ("interpolator", "matcher"))
    fixed, moving = (interpolator(view) for view in views)
    left = ops.convert_to_numpy(matcher(fixed, moving, data["fixed"]))
    expected = first @ left
    assert np.abs(first - np.eye(len(shape) + 1)).max() > 0.05
    assert np.abs(both - first).max() > 0.05
    np.testing.assert_allclose(both, expected, atol=2e-3 * np.abs(expected).max())
    # What the feature residual compares.
    expected = warped_by(left, moving, shape, border=nearest_border)
    expected = np.concatenate([ops.convert_to_numpy(fixed), expected], axis=-1)
    np.testing.assert_allclose(result["features2"], expected, atol=5e-3 * expected.max())


@pytest.mark.parametrize("shape", [(16, 20), (8, 9, 12)], ids=str)
def test_the_displacement_is_the_residual_then_the_matrix(shape):
    def dense(images, view, matrix):
        return {**SMALL_DENSE(images, view, matrix), "seen_matrix": matrix}

    model = small(shape, dense=dense)
    make_active(model, 0.05)
    data = noise(shape)
    result = outputs(model, data)
    assert np.abs(result["residual"]).max() > 0.05
    frame = centred_frame(shape)
    for matrix, residual, field in zip(
        result["matrix"], result["residual"], result["displacement"], strict=True
    ):
        linear = np.linalg.inv(frame) @ matrix @ frame
        expected = (grid(shape) + residual) @ linear[:-1, :-1].T + linear[:-1, -1] - grid(shape)
        np.testing.assert_allclose(field, expected, atol=2e-3)
    expected = ops.convert_to_numpy(warp(data["moving"], result["displacement"]))
    np.testing.assert_allclose(result["warped"], expected, atol=1e-4)
    expected = warped_by(result["matrix"], data["moving"])
    np.testing.assert_allclose(result["warped_linear"], expected, atol=2e-3)
    np.testing.assert_allclose(result["seen_matrix"], result["matrix"], atol=1e-6)
    # The network sees the warped image.
    halfway = keras.Model(model.input, model.get_layer("halfway").output)(data)
    moving = ops.convert_to_numpy(standardise(data["moving"]))
    expected = warped_by(result["matrix"], moving, border=nearest_border)
    np.testing.assert_allclose(ops.convert_to_numpy(halfway), expected, atol=5e-3)


def test_the_dense_step_may_see_something_else():
    """The stages see edges, the network grey values half as large."""
    dense = NetworkStep(UNET, GreyValues(), downsize=2)
    model = small((16, 20), view=GradientMagnitudes(), dense=dense)
    data = noise((16, 20))
    expected = ops.convert_to_numpy(standardise(halved(data["fixed"])))
    seen = keras.Model(model.input, model.get_layer("fixed_dense").output)(data)
    np.testing.assert_allclose(ops.convert_to_numpy(seen), expected, atol=1e-4)
    edges = keras.Model(model.input, model.get_layer("fixed_view").output)(data)
    slope = np.stack(np.gradient(data["fixed"][..., 0], axis=(1, 2)), -1)
    expected = np.linalg.norm(slope, axis=-1)[..., None]
    expected = ops.convert_to_numpy(standardise(expected.astype("float32")))
    np.testing.assert_allclose(ops.convert_to_numpy(edges), expected, atol=2e-2)


@pytest.mark.parametrize("shape", [(16, 20), (8, 9, 12)], ids=str)
def test_the_dense_step_may_be_any_network(shape):
    """Its outputs are the cascade's too, but for those that the cascade has itself."""
    model = small(shape, dense=NetworkStep(functools.partial(two_pass, filters=(4, 8))))
    make_active(model, 0.05)
    data = noise(shape)
    result = outputs(model, data)
    assert {"velocity", "coarse_velocity"} <= set(result)
    network = model.get_layer("dense_two_pass")
    seen = [model.get_layer(name).output for name in ("halfway", "fixed_dense")]
    seen = keras.Model(model.input, dict(zip(("moving", "fixed"), seen, strict=True)))(data)
    found = network(seen)
    assert "warped" not in found
    for ours, theirs in (("residual", "displacement"), ("velocity", "velocity")):
        expected = ops.convert_to_numpy(found[theirs])
        np.testing.assert_allclose(result[ours], expected, atol=1e-4)
    # A network that gives a matrix and further warped images, of views: the cascade's are its own.
    dense = NetworkStep(lambda shape: small(shape[:-1], dense=None, name="other"))
    model = small(shape, dense=dense)
    make_active(model, 0.05)
    result, other = outputs(model, data), model.get_layer("dense_other")(data)
    stages = keras.Model(model.input, model.get_layer("linear_displacement").input[0])(data)
    assert np.abs(result["matrix"] - ops.convert_to_numpy(other["matrix"])).max() > 1e-3
    np.testing.assert_allclose(result["matrix"], ops.convert_to_numpy(stages), atol=1e-5)


@pytest.mark.parametrize("size", [64, 9])
@pytest.mark.parametrize("shape", [(24, 20), (12, 10, 11)], ids=str)
def test_by_default_the_rest_is_solved_for_without_training(shape, size):
    """Images larger than `size` are seen smaller, the displacement is that of their own voxels."""
    model = small(shape, dense=SmoothStep(size=size))
    image = gaussian_filter(
        np.random.default_rng(0).random((2, *shape, 1)), (0, *[1.5] * len(shape), 0)
    )
    truth = affine_displacement(np.eye(len(shape) + 1), shape) + np.linspace(0.5, -0.3, len(shape))
    truth = np.stack([truth] * 2).astype("float32")
    fixed = ops.convert_to_numpy(warp(image.astype("float32"), truth, border=nearest_border))
    result = outputs(model, {"moving": image.astype("float32"), "fixed": fixed})
    inside = (slice(None), *[slice(2, -2)] * len(shape))
    assert np.abs(result["displacement"] - truth)[inside].mean() < 0.1
    np.testing.assert_allclose(result["residual"], result["displacement"], atol=1e-4)
    assert "velocity" not in result
    seen = keras.Model(model.input, model.get_layer("fixed_dense").output).output_shape
    assert max(seen[1:-1]) == min(size, max(shape))


@pytest.mark.parametrize("shape", [(64, 64, 1), (32, 32, 32, 1), (160, 192, 224, 1), (64, 9, 2)])
def test_the_default_is_made_for_every_size(shape):
    assert ddim(shape).output["residual"].shape == (None, *shape[:-1], len(shape) - 1)


@pytest.mark.parametrize(("shape", "size"), [((40, 33), 20), ((48, 44, 5), 16)], ids=str)
def test_what_is_solved_for_on_smaller_images_starts_from_the_matrix_too(shape, size):
    """Voxels three to one, not quite the same along each axis; few slices stay as many."""
    axes = len(shape)
    matrix = np.eye(axes + 1)
    matrix[:2, :2] = [[0.9, -0.3], [0.3, 1.0]]
    matrix[:-1, -1] = [3.0, -2.0, 0.3][:axes]
    truth = np.full(shape, 1.0)[..., None] * [0.8, -0.6, 0.0][:axes]
    noise = np.random.default_rng(0).random((2, *shape, 1))
    moving = gaussian_filter(noise, (0, 3, 3, *[1] * (axes - 2), 0)).astype("float32")
    linear = np.linalg.inv(centred_frame(shape)) @ matrix @ centred_frame(shape)
    phi = (grid(shape) + truth) @ linear[:-1, :-1].T + linear[:-1, -1] - grid(shape)
    fixed = warp(moving, np.stack([phi] * 2).astype("float32"), border=nearest_border)
    inputs = {name: keras.Input((*shape, 1)) for name in ("moving", "fixed")}
    transform = keras.Input((axes + 1, axes + 1))
    field = SmoothStep(size=size)(inputs, GreyValues(), transform)["displacement"]
    model = keras.Model([*inputs.values(), transform], field)
    matrices = np.stack([matrix] * 2).astype("float32")
    found = model.predict([moving, ops.convert_to_numpy(fixed), matrices], verbose=0)
    error = np.linalg.norm(found - truth, axis=-1)[:, 8:-8, 8:-8]
    assert error.mean() < 0.3  # without the spacing more than 1
    assert max(model.get_layer("fixed_dense").output.shape[1:-1]) == size
    with pytest.raises(ValueError, match=r"Expected `size` >= 8"):
        SmoothStep(size=4)(inputs, GreyValues(), transform)


def test_edges_are_seen_before_a_small_image_is_enlarged():
    """The stages see 64 by 9 voxels in 64 by 16: enlarged first, edges along them would fade."""
    model = small((64, 9), view=GradientMagnitudes(), dense=None)
    y, x = np.mgrid[:64, :9]
    image = np.stack([np.sin(y / 3), np.sin(x / 3)])[..., None].astype("float32")
    seen = keras.Model(model.input, model.get_layer("fixed_view").output)
    view = ops.convert_to_numpy(seen({"moving": image, "fixed": image}))
    slope = np.stack(np.gradient(image[..., 0], axis=(1, 2)), -1)
    expected = ops.convert_to_numpy(standardise(np.linalg.norm(slope, axis=-1)[..., None]))
    np.testing.assert_allclose(view, expected, atol=2e-2)


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
@pytest.mark.parametrize("output", ["matrix", "displacement"])
def test_gradients_stop_at_the_matrix_that_a_step_starts_from(output, detached):
    """Only the last step has a loss: it alone is trained, or those before it, too."""
    shape = (16, 20)
    dense, loss = {
        "matrix": (None, GridDistance(shape)), "displacement": (SMALL_DENSE, EndpointError())
    }[output]  # fmt: skip
    model = small(shape, detached=detached, dense=dense)
    make_active(model, 0.05)
    model.compile(keras.optimizers.SGD(1e-3), loss={output: loss})
    truth = np.stack([np.diag([1.2, 0.8, 1])] * 2)
    field = np.stack([affine_displacement(matrix, shape) for matrix in truth])
    start = model.get_weights()
    data = {**noise(shape), "moving_matrix": truth, "moving_displacement": field}
    model.fit({name: x.astype("float32") for name, x in data.items()}, verbose=0)
    moved = {"1": 0.0, "2": 0.0, "dense": 0.0}
    for weight, before, after in zip(model.weights, start, model.get_weights(), strict=True):
        layer = weight.path.split("/")[0]
        step = layer[-1] if layer.startswith(("interpolator", "matcher")) else "dense"
        moved[step] = max(moved[step], np.abs(after - before).max())
    earlier, last = (["1"], "2") if output == "matrix" else (["1", "2"], "dense")
    assert moved[last] > 0
    assert [moved[step] == 0 for step in earlier] == [detached] * len(earlier)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((28, 28), (4, [16, 16], [28, 28])),
        ((32, 32), (4, [16, 16], [32, 32])),
        ((8, 8), (1, [4, 4], [8, 8])),
        ((72, 80), (8, [24, 24], [40, 40])),
        ((128, 128), (8, [32, 32], [64, 64])),
        # Whole cells: a multiple of the stride.
        ((25, 25), (4, [16, 16], [28, 28])),
        # Two cells along a short axis, at least.
        ((160, 192, 12), (8, [24, 24, 16], [40, 48, 16])),
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
    )
    history = model.fit(pairs, epochs=3, verbose=0).history
    assert history["stage_matrices_loss"][-1] < 0.9 * history["stage_matrices_loss"][0]
    assert history["displacement_loss"][-1] < 0.9 * history["displacement_loss"][0]


def test_every_weight_is_trained_by_the_feature_residual():
    model = small((12, 16), features=True, dense=None, depth=2)
    loss = {"features1": FeatureResidual(), "features2": FeatureResidual()}
    model.compile(keras.optimizers.Adam(5e-3), loss=loss)
    check_every_weight_is_trained(model, noise((12, 16)))


def test_an_image_loss_trains_every_stage_where_gradients_flow_through():
    model = small((12, 16), detached=False)
    model.compile(keras.optimizers.Adam(5e-3), loss={"warped": NCC()})
    check_every_weight_is_trained(model, noise((12, 16)))


def test_frozen_stages_leave_the_dense_step_to_train_without_a_warning():
    model = small((12, 16))
    stages = RegistrationModel(model.input, {"matrix": model.output["matrix"]})
    stages.trainable = False
    model.compile("sgd", loss={"displacement": EndpointError()})
    data = {**noise((12, 16)), "moving_displacement": np.ones((2, 12, 16, 2), "float32")}
    start = stages.get_weights()
    assert len(model.trainable_weights) == len(model.weights) - len(start) > 0
    model.fit(data, verbose=0)  # a warning is an error here
    for before, after in zip(start, stages.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_voxel_that_is_not_finite_harms_its_own_sample_alone():
    model = small((12, 16))
    make_active(model, 0.05)
    data = noise((12, 16))
    expected = outputs(model, data)
    data["moving"][0, 3, 3] = np.nan
    for name, value in outputs(model, data).items():
        np.testing.assert_allclose(value[1], expected[name][1], atol=1e-4)
    assert np.isnan(outputs(model, data)["matrix"][0]).any()


def test_contrast_changes_nothing_where_gradients_are_seen():
    model = small((16, 15), view=GradientMagnitudes())
    make_active(model)
    data = images((16, 15))
    expected = outputs(model, data)["displacement"]
    assert np.abs(expected).max() > 1e-3
    inverted = {**data, "moving": 1 - data["moving"]}
    dim = {name: 1e-3 * image for name, image in data.items()}
    for changed in (inverted, dim):
        found = outputs(model, changed)["displacement"]
        np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())
    plain = small((16, 15), view=GreyValues())
    make_active(plain)
    first, second = (outputs(plain, x)["displacement"] for x in (data, inverted))
    assert np.abs(first - second).max() > 0.01 * np.abs(first).max()


def test_brightness_and_contrast_change_nothing():
    check_brightness_and_contrast_change_nothing(small((16, 15)), (16, 15))


@pytest.mark.parametrize("dense", [SMALL_DENSE, NetworkStep()])
def test_mixed_precision_keeps_coordinates_float32(dense):
    model = under_bfloat16(lambda: small((12, 11), dense=dense))
    assert model.get_layer("matcher1").compute_dtype == "bfloat16"
    assert check_identity_at_start(model, (12, 11))["matrix"].dtype == "float32"


def test_the_options_of_a_stage():
    # Seen in 20 x 20, and 12 x 12 by the first stage: voxels that are no squares.
    shape = (18, 20)
    stage = MatchingStage((2, 3), 4, upsampling=2, resampling=True, radius=1)
    model = small(shape, stage=stage, group=groups.Rigid(), dense=None, features=True)
    interpolator, matcher = (model.get_layer(f"{kind}1") for kind in ("interpolator", "matcher"))
    assert (interpolator.filters, interpolator.factor, interpolator.strides) == ((2, 3), 2, (4, 2))
    assert interpolator.resampling
    assert (matcher.filters, matcher.radius) == (4, 1)
    make_active(model, 0.05)
    (weight,) = (weight for weight in interpolator.weights if "coefficients" in weight.path)
    weight.assign([[0.2, -0.1, 0.5]])
    data = noise(shape)
    result = outputs(model, data)
    linear = result["matrix"][:, :2, :2]
    np.testing.assert_allclose(
        np.swapaxes(linear, 1, 2) @ linear, np.stack([np.eye(2)] * 2), atol=1e-5
    )
    # Resampled features match under R^-1 A R.
    views = (resize_image(standardise(data[name]), (20, 20)) for name in ("fixed", "moving"))
    fixed, moving = (interpolator(resize_image(x, (12, 12)), data["fixed"]) for x in views)
    between = ops.convert_to_numpy(matcher(fixed, moving, data["fixed"]))
    resampling = ops.convert_to_numpy(
        MatrixExpAffine(groups.Rigid(), scale=10)(np.float32([[0.2, -0.1, 0.5]]))
    )
    expected = resampling @ between @ np.linalg.inv(resampling)
    assert np.abs(expected - between).max() > 0.05
    np.testing.assert_allclose(result["stage_matrices"][:, 0], expected, atol=2e-3)
    expected = warped_by(between, moving, shape, border=nearest_border)
    np.testing.assert_allclose(result["features1"][..., 3:], expected, atol=5e-3 * expected.max())


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


def matrices_alone(shape):
    model = small(shape[:-1], dense=None)
    return keras.Model(model.input, {"stage_matrices": model.output["stage_matrices"]})


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"known spatial sizes.*Received.*None"):
        ddim((None, 16, 1))
    with pytest.raises(ValueError, match=r"`depth` >= 1.*Received.*depth 0"):
        ddim((16, 16, 1), depth=0)
    with pytest.raises(ValueError, match="Expected an image shape"):
        ddim((16, 16))
    with pytest.raises(ValueError, match=r"an output `displacement`.*Received.*stage_matrices"):
        small((16, 16), dense=NetworkStep(matrices_alone))
    for dense in (NetworkStep(UNET, downsize=0), NetworkStep(UNET, downsize=1.5)):
        with pytest.raises(ValueError, match=r"`downsize` a whole number >= 1.*Received"):
            small((16, 16), dense=dense)
    with pytest.raises(ValueError, match=r"a function of an image shape.*Received: a model"):
        small((16, 16), dense=NetworkStep(UNET((16, 16, 1))))
