"""Every model of the zoo: its promises, by one test each."""

from functools import partial

import keras
import numpy as np
import pytest
from keras import ops

import kreg
from kreg import losses, models
from kreg.groups import Rigid
from kreg.metrics import folding_fraction
from tests.fresh_process import Saved, in_fresh_process
from tests.models import pairs

BUILDERS = {
    "encoder_decoder": lambda shape: models.encoder_decoder(
        shape, encoder=(4, 8, 8), decoder=(8, 8, 4)
    ),
    "encoder_decoder_velocity": lambda shape: models.encoder_decoder(
        shape, encoder=(4, 8), decoder=(8, 4), head=models.VelocityHead(steps=3)
    ),
    "two_pass": lambda shape: models.two_pass(shape, filters=(4, 8)),
}


def dirnet(shape):
    return models.dirnet(shape, spacing=4, filters=(4,))


def affine_net(shape, group=None):
    return models.affine_net(shape, group=group, filters=(4, 8, 8))


def affine_dense(shape, group=None):
    sizes = {"filters": (4, 8), "encoder": (4, 8), "decoder": (8, 8, 4)}
    return models.affine_dense(shape, group=group, head=models.VelocityHead(steps=3), **sizes)


builder = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS.keys())


def smooth_pair(shape, batch=2, seed=0):
    """A blob, and the same blob elsewhere."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).astype("float32")
    images = {}
    for name in ("moving", "fixed"):
        centre = np.array(shape) / 2 + rng.uniform(-1.5, 1.5, (batch, len(shape)))
        centre = centre.reshape(batch, *[1] * len(shape), len(shape))
        squares = np.sum((grid - centre) ** 2, -1, keepdims=True)
        images[name] = np.exp(-squares / (2 * (np.array(shape).min() / 6) ** 2)).astype("float32")
    return images


def make_active(model):
    """Give the heads weights, so that the model does more than the identity."""
    for layer in model.layers:
        for weight in layer.trainable_weights:
            if not np.any(ops.convert_to_numpy(weight)) and "kernel" in weight.path:
                values = np.random.default_rng(0).normal(0, 0.05, weight.shape)
                weight.assign(values.astype("float32"))


@pytest.mark.usefixtures("uncompiled")
@builder
@pytest.mark.parametrize("shape", [(17, 30), (5, 4), (9, 7, 12)])
def test_identity_at_start_and_shapes(build, shape):
    model = build((*shape, 1))
    images = smooth_pair(shape)
    result = model.predict(images, verbose=0)
    assert {"warped", "displacement"} <= set(result)
    assert result["displacement"].shape == (2, *shape, len(shape))
    np.testing.assert_array_equal(result["displacement"], 0)
    np.testing.assert_allclose(result["warped"], images["moving"], atol=1e-6)


@builder
@pytest.mark.parametrize("dimensions", [2, 3])
def test_unknown_sizes(build, dimensions):
    if keras.config.backend() != "tensorflow" and dimensions == 3:
        pytest.skip("one case is enough where sizes are static when the model runs")
    model = build((*[None] * dimensions, 1))
    make_active(model)
    for shape in ((12, 9, 8)[:dimensions], (7, 10, 6)[:dimensions]):
        result = model.predict(smooth_pair(shape), verbose=0)
        assert result["warped"].shape == (2, *shape, 1)


@builder
def test_output_shapes_are_known_symbolically(build):
    model = build((20, 13, 2))
    assert model.output["warped"].shape == (None, 20, 13, 2)
    assert model.output["displacement"].shape == (None, 20, 13, 2)


@builder
def test_fit_improves_similarity(build):
    model = build((16, 16, 1))
    images = smooth_pair((16, 16), batch=8)
    model.compile(
        keras.optimizers.Adam(1e-2),
        loss={"warped": losses.NCC(), "displacement": losses.Diffusion()},
        loss_weights={"warped": 1.0, "displacement": 0.01},
    )
    before = float(ops.mean(losses.ncc(images["fixed"], images["moving"])))
    history = model.fit(images, batch_size=8, epochs=40, verbose=0).history
    assert {"loss", "warped_loss", "displacement_loss"} <= set(history)
    after = 1 - history["warped_loss"][-1]
    assert after > before + 0.5 * (1 - before)


#: Models to save: builder, spatial shape, size of the weights that are zero at start, and the
#: output that is not to be 0.
SAVED = {
    **{name: (build, (12, 11), 0.05, "displacement") for name, build in BUILDERS.items()},
    "dirnet-2d": (dirnet, (12, 11), 0.5, "displacement"),
    "dirnet-3d": (dirnet, (6, 7, 8), 0.5, "displacement"),
    "affine_net-3d": (affine_net, (6, 7, 8), 0.05, "displacement"),
    "affine_net-rigid-2d": (partial(affine_net, group=Rigid()), (12, 11), 0.05, "displacement"),
    "affine_dense-3d": (affine_dense, (6, 7, 8), 0.05, "residual"),
    "affine_dense-rigid-2d": (partial(affine_dense, group=Rigid()), (12, 11), 0.05, "residual"),
}


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory):
    """All models, and what each gives in one fresh process."""
    keras.utils.set_random_seed(0)  # this comes before the seed of a test
    saved = {}
    for name, (build, shape, size, _) in SAVED.items():
        model = build((*shape, 1))
        pairs.make_active(model, size)
        data = pairs.noise(shape) if name.startswith("affine") else smooth_pair(shape)
        saved[name] = Saved(model, data)
    return saved, in_fresh_process(saved, tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", SAVED)
def test_saved_model_gives_the_same_in_a_fresh_process(name, reloaded):
    saved, found = reloaded
    model, images, _ = saved[name]
    expected = model.predict(images, verbose=0)
    assert np.abs(expected[SAVED[name][-1]]).max() > 1e-3
    assert expected.keys() == found[name].keys()
    for output, value in expected.items():
        np.testing.assert_allclose(found[name][output], value, atol=1e-5)


@builder
def test_saved_model_is_of_its_class(build, tmp_path):
    build((12, 11, 1)).save(tmp_path / "model.keras")
    assert type(keras.saving.load_model(tmp_path / "model.keras")) is kreg.RegistrationModel


def test_velocity_head_does_not_fold_where_the_dense_head_does():
    rng = np.random.default_rng(0)
    images = {name: rng.random((2, 24, 24, 1), "float32") for name in ("moving", "fixed")}
    folding = {}
    for name, head in {"field": models.DenseHead(), "velocity": models.VelocityHead()}.items():
        keras.utils.set_random_seed(0)
        model = models.encoder_decoder((24, 24, 1), encoder=(4, 8), decoder=(8, 4), head=head)
        make_active(model)
        linear = model.get_layer(name)
        output = keras.Model(model.inputs, linear.output)
        largest = np.abs(output.predict(images, verbose=0)).max()
        linear.set_weights([5.0 / largest * weight for weight in linear.get_weights()])
        displacement = model.predict(images, verbose=0)["displacement"]
        folding[name] = float(keras.ops.mean(folding_fraction(displacement)))
    assert folding["field"] > 0.02
    assert folding["velocity"] < 0.25 * folding["field"]


@builder
def test_brightness_and_contrast_change_nothing(build):
    model = build((16, 15, 1))
    make_active(model)
    images = smooth_pair((16, 15))
    changed = {"moving": 0.5 * images["moving"] + 0.3, "fixed": 3 * images["fixed"]}
    expected = model.predict(images, verbose=0)["displacement"]
    assert np.abs(expected).max() > 1e-3
    received = model.predict(changed, verbose=0)["displacement"]
    np.testing.assert_allclose(received, expected, atol=1e-3 * np.abs(expected).max())


@builder
def test_constant_images_give_finite_fields(build):
    model = build((12, 12, 1))
    make_active(model)
    images = {name: np.full((1, 12, 12, 1), 0.7, "float32") for name in ("moving", "fixed")}
    assert np.isfinite(model.predict(images, verbose=0)["displacement"]).all()


@builder
def test_mixed_precision_keeps_coordinates_float32(build):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build((12, 12, 1))
    finally:
        keras.config.set_dtype_policy(policy)
    result = model.predict(smooth_pair((12, 12)), verbose=0)
    for name, output in model.output.items():
        assert output.dtype == "float32", name
        assert result[name].dtype == "float32", name


@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (28,), (2, 28, 28, 1), (28, 28, None)])
@pytest.mark.parametrize("build", [models.encoder_decoder, models.two_pass])
def test_wrong_image_shape(build, shape):
    with pytest.raises(ValueError, match="Expected an image shape"):
        build(shape)


def test_decoder_must_reach_full_resolution():
    with pytest.raises(ValueError, match="decoder"):
        models.encoder_decoder((28, 28, 1), encoder=(4, 8, 16), decoder=(8,))
