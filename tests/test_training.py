import keras
import numpy as np
import pytest
from keras import ops

import kreg
from kreg import RegistrationModel
from kreg.data import ArrayPairs
from kreg.layers import SpatialTransformer
from kreg.losses import (
    NCC,
    Diffusion,
    EndpointError,
    Folding,
    GridDistance,
    LandmarkDistance,
    LocalNCC,
    SoftDice,
    WeightedSum,
)
from kreg.losses.mine import MINE
from tests.fresh_process import Saved, in_fresh_process

SHAPES = [(8, 10), (4, 6, 5)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def small_model(shape, *, channels=1, **outputs):
    """A convolution to a displacement, the identity at start; `outputs` replaces some."""
    inputs = {name: keras.Input((*shape, channels), name=name) for name in ("moving", "fixed")}
    x = keras.layers.Concatenate()([inputs["moving"], inputs["fixed"]])
    convolution = getattr(keras.layers, f"Conv{len(shape)}D")
    x = convolution(6, 3, padding="same", activation="tanh")(x)
    field = convolution(
        len(shape), 3, padding="same", kernel_initializer="zeros", name="displacement"
    )(x)
    warped = SpatialTransformer(image_gradient=False, name="warped")(inputs["moving"], field)
    return RegistrationModel(inputs, {"warped": warped, "displacement": field, **outputs})


def compiled_model(shape, **options):
    model = small_model(shape)
    model.compile(
        keras.optimizers.Adam(0.01),
        loss={"warped": "mean_squared_error", "displacement": Diffusion()},
        loss_weights={"warped": 1.0, "displacement": 0.1},
        **options,
    )
    return model


def pairs(shape, number=8):
    """Smooth pictures, and the same ones shifted by half a voxel."""
    rng = np.random.default_rng(0)
    coordinates = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    phase = rng.uniform(0, 6, (number, len(shape), *(1 for _ in shape)))
    fixed, moving = (
        np.prod(1 + np.sin(0.9 * (coordinates + shift) + phase), axis=1)[..., None]
        for shift in (0.0, 0.6)
    )
    return {"moving": moving.astype("float32"), "fixed": fixed.astype("float32")}


class Batches(keras.utils.PyDataset):
    """A user's own data set, which yields dicts alone: no targets."""

    def __init__(self, images, batch_size=4):
        super().__init__()
        self.images, self.batch_size = images, batch_size

    def __len__(self):
        return len(self.images["fixed"]) // self.batch_size

    def __getitem__(self, batch):
        part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
        return ({name: stack[part] for name, stack in self.images.items()},)


def tensorflow_dataset(images):
    if keras.config.backend() != "tensorflow":
        pytest.skip("tf.data needs TensorFlow")
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(images).batch(4)


SOURCES = {
    "arrays": lambda images: images,
    "own-batches": Batches,
    "pairs": lambda images: ArrayPairs(images["moving"], images["fixed"], batch_size=4),
    "tf.data": tensorflow_dataset,
}


@pytest.mark.parametrize("source", SOURCES)
@each_shape
def test_fit_takes_pairs_without_targets(source, shape):
    images = pairs(shape)
    data = SOURCES[source](images)
    options = {"batch_size": 4} if source == "arrays" else {}
    model = compiled_model(shape)
    history = model.fit(
        data, epochs=8, validation_data=data, shuffle=False, verbose=0, **options
    ).history
    names = {"loss", "warped_loss", "displacement_loss"}
    assert set(history) == names | {f"val_{name}" for name in names}
    # At start nothing moves.
    untrained = np.mean((images["moving"] - images["fixed"]) ** 2)
    assert history["loss"][-1] < 0.95 * untrained
    assert history["val_loss"][-1] < 0.95 * untrained
    losses = model.evaluate(data, return_dict=True, verbose=0, **options)
    assert losses["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-3)
    total = losses["warped_loss"] + 0.1 * losses["displacement_loss"]
    assert losses["loss"] == pytest.approx(total, rel=1e-3)


@each_shape
def test_the_target_is_the_fixed_image(shape):
    images = pairs(shape)
    losses = compiled_model(shape).evaluate(images, return_dict=True, verbose=0)
    # At start nothing moves.
    expected = np.mean((images["moving"] - images["fixed"]) ** 2)
    assert losses["warped_loss"] == pytest.approx(expected, rel=1e-4)
    assert losses["displacement_loss"] == 0


def test_targets_may_be_given_all_the_same():
    images = pairs((8, 10))
    y = {"warped": np.zeros_like(images["fixed"]), "displacement": np.zeros((8, 8, 10, 2))}
    losses = compiled_model((8, 10)).evaluate(images, y, return_dict=True, verbose=0)
    assert losses["warped_loss"] == pytest.approx(np.mean(images["moving"] ** 2), rel=1e-4)


def test_any_output_named_warped_is_compared_with_the_fixed_image():
    inputs = {name: keras.Input((8, 10, 1), name=name) for name in ("moving", "fixed")}
    doubled = keras.layers.Rescaling(2.0)(inputs["moving"])
    outputs = {"warped": inputs["moving"], "warped_coarse": doubled, "other": doubled}
    model = RegistrationModel(inputs, outputs)
    model.compile(loss=dict.fromkeys(outputs, "mean_squared_error"))
    images = pairs((8, 10))
    losses = model.evaluate(images, return_dict=True, verbose=0)
    expected = np.mean((2 * images["moving"] - images["fixed"]) ** 2)
    assert losses["warped_coarse_loss"] == pytest.approx(expected, rel=1e-4)
    expected = np.mean((2 * images["moving"]) ** 2)  # against zeros
    assert losses["other_loss"] == pytest.approx(expected, rel=1e-4)


# --- annotations ---


def annotated_model():
    """It moves nothing, but doubles labels and points, each of them an input and an output."""
    shapes = {
        "moving": (8, 10, 1),
        "fixed": (8, 10, 1),
        "moving_labels": (8, 10, 3),
        "fixed_points": (5, 2),
    }
    inputs = {name: keras.Input(shape, name=name) for name, shape in shapes.items()}
    outputs = {
        "warped": inputs["moving"],
        "warped_labels": keras.layers.Rescaling(2.0)(inputs["moving_labels"]),
        "points": keras.layers.Rescaling(2.0)(inputs["fixed_points"]),
    }
    model = RegistrationModel(inputs, outputs)
    model.compile(loss=dict.fromkeys(outputs, "mean_squared_error"))
    return model


def annotations():
    rng = np.random.default_rng(1)
    labels = {
        f"{name}_labels": rng.random((8, 8, 10, 3), "float32") for name in ("moving", "fixed")
    }
    points = {f"{name}_points": rng.random((8, 5, 2), "float32") for name in ("moving", "fixed")}
    return {**pairs((8, 10)), **labels, **points}


def test_annotations_are_compared_with_their_partners():
    data = annotations()
    model = annotated_model()
    expected = {
        "warped_loss": data["moving"] - data["fixed"],
        "warped_labels_loss": 2 * data["moving_labels"] - data["fixed_labels"],
        "points_loss": 2 * data["fixed_points"] - data["moving_points"],
    }
    losses = model.evaluate(data, return_dict=True, verbose=0)
    for name, difference in expected.items():
        assert losses[name] == pytest.approx(np.mean(difference**2), rel=1e-4)


@pytest.mark.parametrize(
    ("partner", "given"), [("fixed_labels", "moving_labels"), ("moving_points", "fixed_points")]
)
def test_refuses_annotations_without_their_partner(partner, given):
    data = annotations()
    del data[partner]
    model = annotated_model()
    assert set(model.predict(data, verbose=0)) == {"warped", "warped_labels", "points"}
    with pytest.raises(ValueError, match=rf'Expected "{partner}".*Received: "{given}"'):
        model.evaluate(data, verbose=0)


class Still(keras.layers.Layer):
    """Identity matrices, a sample each."""

    def call(self, image):
        return ops.repeat(ops.eye(3)[None], ops.shape(image)[0], axis=0)

    def compute_output_shape(self, image_shape):
        return (image_shape[0], 3, 3)


@pytest.mark.parametrize("as_list", [False, True])
def test_refuses_to_make_up_the_truth_that_a_loss_needs(as_list, uncompiled):
    inputs = {name: keras.Input((8, 10, 1), name=name) for name in ("moving", "fixed")}
    matrix = Still(name="matrix")(inputs["moving"])
    field = keras.layers.Conv2D(2, 3, padding="same")(inputs["moving"])
    outputs = {"displacement": field, "matrix": matrix}
    model = RegistrationModel(inputs, outputs)
    data = {
        **pairs((8, 10)),
        "moving_displacement": np.zeros((8, 8, 10, 2), "float32"),
        "moving_matrix": np.tile(np.eye(3, dtype="float32"), (8, 1, 1)),
    }
    for name, loss in (
        ("displacement", EndpointError()),
        ("matrix", WeightedSum([GridDistance((8, 10))], [1.0])),
    ):
        losses = {name: loss}
        model.compile("sgd", loss=[losses.get(key) for key in outputs] if as_list else losses)
        assert np.isfinite(model.evaluate(data, verbose=0))
        less = {key: value for key, value in data.items() if key != f"moving_{name}"}
        with pytest.raises(ValueError, match=rf'Expected "moving_{name}" in the data.*Received'):
            model.fit(less, verbose=0)


def test_refuses_annotations_of_another_size():
    data = annotations()
    data["fixed_labels"] = data["fixed_labels"][..., :2]
    with pytest.raises(ValueError, match=r"`fixed_labels` and `warped_labels` of equal shape"):
        annotated_model().evaluate(data, verbose=0)


def test_a_mask_weights_warped_labels_and_no_points():
    data = annotations()
    data["mask"] = (np.random.default_rng(2).random((8, 8, 10)) < 0.5).astype("float32")
    model = annotated_model()
    model.compile(loss={"warped": NCC(), "warped_labels": SoftDice(), "points": LandmarkDistance()})
    losses = model.evaluate(data, return_dict=True, verbose=0)
    mask = ops.convert_to_tensor(data["mask"])
    expected = SoftDice()(data["fixed_labels"], 2 * data["moving_labels"], mask)
    assert losses["warped_labels_loss"] == pytest.approx(float(expected), rel=1e-3)
    distances = LandmarkDistance()(data["moving_points"], 2 * data["fixed_points"])
    assert losses["points_loss"] == pytest.approx(float(distances), rel=1e-3)


def test_metrics_see_the_fixed_image_too():
    images = pairs((8, 10))
    model = compiled_model((8, 10), metrics={"warped": ["mean_absolute_error"]})
    history = model.fit(images, epochs=1, verbose=0).history
    assert history["warped_mean_absolute_error"][0] > 0.01
    found = model.evaluate(images, return_dict=True, verbose=0)["warped_mean_absolute_error"]
    warped = model.predict(images, verbose=0)["warped"]
    expected = np.mean(np.abs(warped - images["fixed"]))
    assert found == pytest.approx(expected, rel=1e-4)


def test_predict_and_call_leave_other_keys_aside():
    images = pairs((8, 10))
    model = compiled_model((8, 10))
    extra = {**images, "mask": np.ones_like(images["fixed"]), "age": np.ones((8, 1), "float32")}
    expected = model.predict(images, verbose=0)
    found = model.predict(extra, verbose=0)
    assert set(found) == {"warped", "displacement"}
    np.testing.assert_allclose(found["warped"], expected["warped"], atol=1e-6)
    called = ops.convert_to_numpy(model(extra)["warped"])
    np.testing.assert_allclose(called, expected["warped"], atol=1e-5)


# --- masks ---


@pytest.mark.usefixtures("uncompiled")
@each_shape
@pytest.mark.parametrize("channel_axis", [True, False])
@pytest.mark.parametrize("loss", [NCC(), LocalNCC(3)], ids=lambda loss: loss.name)
def test_a_mask_weights_the_voxels_of_the_fixed_image(shape, channel_axis, loss):
    images = pairs(shape, number=4)
    mask = (np.random.default_rng(1).random(images["fixed"].shape) < 0.5).astype("float32")
    given = mask if channel_axis else mask[..., 0]
    model = small_model(shape)
    model.compile(loss={"warped": loss, "displacement": Diffusion()})
    found = model.evaluate({**images, "mask": given}, return_dict=True, verbose=0)
    expected = float(loss(images["fixed"], images["moving"], ops.convert_to_tensor(mask)))
    assert found["warped_loss"] == pytest.approx(expected, rel=1e-3)
    without = model.evaluate(images, return_dict=True, verbose=0)
    assert found["warped_loss"] != pytest.approx(without["warped_loss"], rel=1e-2)
    assert found["displacement_loss"] == without["displacement_loss"]


def test_what_lies_outside_the_mask_does_not_train():
    images = pairs((8, 10))
    mask = np.ones((8, 8, 10, 1), "float32")
    mask[:, :, 6:] = 0
    spoiled = {**images, "fixed": np.where(mask > 0, images["fixed"], 7.0).astype("float32")}
    # The network sees the fixed image as well: one that does not look at it.
    inputs = {name: keras.Input((8, 10, 1), name=name) for name in ("moving", "fixed")}
    field = keras.layers.Conv2D(2, 3, padding="same", name="displacement")(inputs["moving"])
    warped = SpatialTransformer(image_gradient=False, name="warped")(inputs["moving"], field)
    model = RegistrationModel(inputs, {"warped": warped, "displacement": field})
    model.compile("sgd", loss={"warped": NCC(), "displacement": None})
    start = model.get_weights()
    trained = []
    for data in (images, spoiled):
        model.set_weights(start)
        model.fit({**data, "mask": mask}, batch_size=8, shuffle=False, verbose=0)
        trained.append(model.get_weights()[0])
    assert np.abs(trained[0] - start[0]).max() > 1e-5
    np.testing.assert_allclose(trained[0], trained[1], atol=1e-6)


class WeightedBatches(Batches):
    def __getitem__(self, batch):
        (images,) = super().__getitem__(batch)
        return images, None, {"warped": np.ones(4, "float32"), "displacement": None}


def test_a_mask_and_sample_weights_are_refused_together():
    images = {**pairs((8, 10)), "mask": np.ones((8, 8, 10, 1), "float32")}
    model = compiled_model((8, 10))
    with pytest.raises(ValueError, match=r'(?s)either a "mask".*Received: both.*multiply'):
        model.fit(WeightedBatches(images), verbose=0)


# --- what does not fit ---


def test_refuses_other_keys_and_names_those_expected():
    images = pairs((8, 10))
    renamed = {"moving": images["moving"], "target": images["fixed"]}
    model = compiled_model((8, 10))
    for call in (model.fit, model.predict, model.evaluate):
        with pytest.raises(ValueError, match=r"(?s)keys .*fixed"):
            call(renamed, verbose=0)


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_refuses_integer_images_and_says_how_to_scale_them(dtype):
    images = {name: (50 * x).astype(dtype) for name, x in pairs((8, 10)).items()}
    message = rf"(?s)to hold floating-point values; scale.*astype.*Received: dtype {dtype}"
    model = compiled_model((8, 10))
    for call in (model.fit, model.predict):
        with pytest.raises(ValueError, match=message):
            call(images, verbose=0)


@pytest.mark.parametrize("loss", [NCC(), "mean_squared_error"], ids=["ncc", "broadcasting"])
@pytest.mark.parametrize("shape", [(6, 10, 1), (8, 10, 2)], ids=str)
def test_refuses_a_warped_image_of_another_size_than_the_fixed(shape, loss):
    inputs = {
        "moving": keras.Input((8, 10, 1), name="moving"),
        "fixed": keras.Input(shape, name="fixed"),
    }
    model = RegistrationModel(inputs, {"warped": keras.layers.Rescaling(1.0)(inputs["moving"])})
    model.compile("sgd", loss={"warped": loss})
    images = {"moving": np.ones((4, 8, 10, 1), "float32"), "fixed": np.ones((4, *shape), "float32")}
    with pytest.raises(ValueError, match=r"(?s)`fixed` and `warped` of equal shape.*crop"):
        model.evaluate(images, verbose=0)


@pytest.mark.parametrize(
    "inputs",
    [
        {"moving": (8, 10, 1), "reference": (8, 10, 1)},
        {"image": (8, 10, 1)},
    ],
)
def test_refuses_inputs_that_are_no_pair(inputs):
    inputs = {name: keras.Input(shape, name=name) for name, shape in inputs.items()}
    with pytest.raises(ValueError, match=r'inputs \{"moving": \.\.\., "fixed": \.\.\.\}.*Received'):
        RegistrationModel(inputs, {"warped": next(iter(inputs.values()))})


def test_refuses_a_list_of_inputs():
    inputs = [keras.Input((8, 10, 1)), keras.Input((8, 10, 1))]
    with pytest.raises(ValueError, match=r'inputs \{"moving": \.\.\., "fixed": \.\.\.\}.*Received'):
        RegistrationModel(inputs, {"warped": inputs[0]})


# --- saved files ---


def trained(shape):
    model = small_model(shape)
    model.compile(
        keras.optimizers.Adam(0.02),
        loss={
            "warped": WeightedSum([NCC(), LocalNCC(3)], [1.0, 0.5]),
            "displacement": WeightedSum([Diffusion(), Folding(0.2)], [0.1, 1.0]),
        },
        loss_weights={"warped": 1.0, "displacement": 0.3},
    )
    model.fit(pairs(shape), batch_size=4, epochs=2, verbose=0)
    return model


def test_a_saved_model_brings_back_class_losses_and_optimiser(tmp_path):
    images = pairs((8, 10))
    model = trained((8, 10))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is RegistrationModel
    assert loaded.get_compile_config() == model.get_compile_config()
    expected = model.evaluate(images, return_dict=True, verbose=0)
    found = loaded.evaluate(images, return_dict=True, verbose=0)
    assert found == pytest.approx(expected, rel=1e-4)
    # The optimiser goes on where it stopped.
    for each in (model, loaded):
        each.fit(images, batch_size=8, shuffle=False, verbose=0)
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_saved_model_opens_in_a_fresh_process(tmp_path):
    shape = (8, 10)
    images = pairs(shape)
    model = trained(shape)
    found = in_fresh_process({"model": Saved(model, images)}, tmp_path)["model"]
    expected = model.predict_on_batch(images)
    np.testing.assert_allclose(found["warped"], expected["warped"], atol=1e-5)
    np.testing.assert_allclose(found["displacement"], expected["displacement"], atol=1e-5)
    loss = float(model.evaluate(images, return_dict=True, verbose=0)["loss"])
    assert float(found["loss"]) == pytest.approx(loss, rel=1e-4)


@pytest.mark.skipif(keras.config.backend() == "torch", reason="torch.compile is not kreg's matter")
def test_training_under_an_outer_jit_is_the_same():
    # Keras compiles whole steps by default where there is a GPU.
    rng = np.random.default_rng(0)
    images = {name: rng.random((4, 12, 12, 1), "float32") for name in ("moving", "fixed")}
    losses_seen = []
    for jit in (False, True):
        keras.utils.set_random_seed(0)
        model = kreg.models.encoder_decoder(
            (12, 12, 1), encoder=(4, 8), decoder=(8, 4), head=kreg.models.VelocityHead(steps=3)
        )
        model.compile(
            "sgd",
            loss={
                "warped": kreg.losses.LocalNCC(window=5),
                "displacement": kreg.losses.Diffusion(),
            },
            jit_compile=jit,
        )
        history = model.fit(images, epochs=3, batch_size=4, verbose=0).history
        losses_seen.append(history["loss"])
    np.testing.assert_allclose(losses_seen[1], losses_seen[0], rtol=1e-4)


# --- losses that own a network ---


def structures(mine):
    """Where a loss may hide."""
    other = WeightedSum([WeightedSum([mine], [0.5]), NCC()], [1.0, 1.0])
    return {
        "dict": {"warped": mine, "displacement": Diffusion()},
        "sum": {"warped": other, "displacement": Diffusion()},
        "list": [Diffusion(), mine],  # outputs in the order of their names
    }


def numbers(variables):
    return [ops.convert_to_numpy(variable) for variable in variables]


@pytest.mark.parametrize("kind", ["dict", "sum", "list"])
def test_fit_trains_the_network_of_a_loss_and_moves_its_state(kind):
    shape = (8, 10)
    images = pairs(shape)
    mine = MINE(samples=64, bias_corrected=True)
    model = small_model(shape)
    plain = len(model.trainable_variables)
    model.compile(keras.optimizers.Adam(0.01), loss=structures(mine)[kind])
    assert len(model.trainable_variables) == plain + 5
    model.fit(images, batch_size=4, epochs=1, verbose=0)
    before = numbers(mine.estimator.variables)
    model.fit(images, batch_size=4, epochs=1, verbose=0)
    for variable, old in zip(mine.estimator.variables, before, strict=True):
        assert (ops.convert_to_numpy(variable) != old).any(), variable.path


def test_the_network_goes_with_its_loss():
    images = pairs((8, 10))
    first, second = MINE(samples=64), MINE(samples=64)
    model = small_model((8, 10))
    plain = len(model.trainable_variables)
    model.compile("sgd", loss={"warped": "mean_squared_error", "displacement": None})
    model.fit(images, verbose=0)
    for loss in (first, second):
        model.compile(keras.optimizers.SGD(0.1), loss={"warped": loss, "displacement": None})
        model.fit(images, verbose=0)
        assert len(model.trainable_variables) == plain + 5
    before = numbers(first.estimator.trainable_variables)
    model.fit(images, verbose=0)
    for old, now in zip(before, numbers(first.estimator.trainable_variables), strict=True):
        np.testing.assert_array_equal(now, old)
    model.compile("sgd", loss={"warped": NCC(), "displacement": None})
    assert len(model.trainable_variables) == plain


def test_mine_learns_to_align_images_of_another_contrast():
    images = pairs((8, 10), number=16)
    images["moving"] = np.cos(images["moving"])  # not monotone
    inputs = {name: keras.Input((8, 10, 1), name=name) for name in ("moving", "fixed")}
    # One shift for all pairs: the bias of a convolution that sees nothing.
    field = keras.layers.Conv2D(2, 1, kernel_initializer="zeros", name="displacement")(
        keras.layers.Rescaling(0.0)(inputs["fixed"])
    )
    warped = SpatialTransformer(border=kreg.ops.nearest_border, image_gradient=False)
    outputs = {"warped": warped(inputs["moving"], field), "displacement": field}
    model = RegistrationModel(inputs, outputs)
    mine = MINE(samples=256)
    model.compile(keras.optimizers.Adam(0.02), loss={"warped": mine, "displacement": None})
    model.fit(
        {name: np.concatenate([x] * 100) for name, x in images.items()}, batch_size=16, verbose=0
    )
    # Pictures are made at x and x + 0.6: to find x again, look 0.6 to the left.
    shift = model.predict(images, verbose=0)["displacement"].mean(axis=(0, 1, 2))
    np.testing.assert_allclose(shift, -0.6, atol=0.25)


def test_images_of_unlike_channels_are_taken_by_mine_alone():
    images = pairs((8, 10))
    images["moving"] = np.repeat(images["moving"], 2, axis=-1)
    inputs = {
        "moving": keras.Input((8, 10, 2), name="moving"),
        "fixed": keras.Input((8, 10, 1), name="fixed"),
    }
    model = RegistrationModel(inputs, {"warped": keras.layers.Rescaling(1.0)(inputs["moving"])})
    mine = MINE(channels=(1, 2), samples=64)
    for loss in (mine, {"warped": mine}):
        model.compile("sgd", loss=loss)
        assert np.isfinite(model.evaluate(images, verbose=0))
    model.compile("sgd", loss={"warped": WeightedSum([mine, NCC()], [1, 1])})
    with pytest.raises(ValueError, match=r"`fixed` and `warped` of equal shape"):
        model.evaluate(images, verbose=0)


def test_a_mask_says_where_mine_looks():
    images = pairs((8, 10))
    images["mask"] = np.ones((8, 8, 10), "float32")
    images["mask"][:, :, 6:] = 0
    spoiled = {**images, "fixed": images["fixed"].copy(), "moving": images["moving"].copy()}
    for name in ("fixed", "moving"):
        spoiled[name][:, :, 6:] = np.nan
    inputs = {name: keras.Input((8, 10, 1), name=name) for name in ("moving", "fixed")}
    values = []
    for data in (images, spoiled):
        keras.utils.set_random_seed(0)
        model = RegistrationModel(inputs, {"warped": keras.layers.Rescaling(1.0)(inputs["moving"])})
        model.compile("sgd", loss={"warped": MINE(samples=64)})
        values.append(model.evaluate(data, verbose=0))
    assert values[0] == values[1] != 0


def test_a_saved_model_brings_back_the_network_of_its_loss(tmp_path):
    images = pairs((8, 10))
    mine = MINE(hidden=(6, 5), samples=64, bias_corrected=True)
    model = small_model((8, 10))
    model.compile(
        keras.optimizers.Adam(0.01),
        loss={"warped": WeightedSum([mine, NCC()], [1, 1]), "displacement": Diffusion()},
    )
    model.fit(images, batch_size=4, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    twin = loaded.loss["warped"].losses[0]
    assert twin.get_config() == mine.get_config()
    # All but where the draws go on: Keras keeps the state of no random layer.
    for one, other in zip(mine.estimator.get_weights(), twin.estimator.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(*numbers([one, other]))
    loaded.fit(images, batch_size=4, verbose=0)
    found = in_fresh_process({"model": Saved(loaded, images)}, tmp_path)["model"]
    assert np.isfinite(found["loss"])
    expected = loaded.predict_on_batch(images)["displacement"]
    np.testing.assert_allclose(found["displacement"], expected, atol=1e-5)


@pytest.mark.skipif(keras.config.backend() == "torch", reason="torch.compile is not kreg's matter")
def test_mine_trains_under_an_outer_jit():
    images = {**pairs((8, 10)), "mask": np.ones((8, 8, 10), "float32")}
    model = small_model((8, 10))
    mine = MINE(samples=64, bias_corrected=True)
    model.compile("adam", loss={"warped": mine, "displacement": None}, jit_compile=True)
    before = numbers(mine.estimator.trainable_variables)
    history = model.fit(images, batch_size=8, epochs=3, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    for old, now in zip(before, numbers(mine.estimator.trainable_variables), strict=True):
        assert (now != old).any()


def test_an_ordinary_loss_on_a_field_penalises_its_size():
    class Shift(keras.layers.Layer):
        def call(self, image):
            return keras.ops.repeat(0 * image, 2, axis=-1) + 0.5

        def compute_output_shape(self, image_shape):
            return (*image_shape[:-1], 2)

    inputs = {name: keras.Input((8, 8, 1), name=name) for name in ("moving", "fixed")}
    field = Shift()(inputs["moving"])
    warped = kreg.layers.SpatialTransformer()(inputs["moving"], field)
    model = kreg.RegistrationModel(inputs, {"warped": warped, "displacement": field})
    model.compile(loss={"displacement": "mse"})
    images = {name: np.ones((2, 8, 8, 1), "float32") for name in ("moving", "fixed")}
    assert model.evaluate(images, verbose=0) == pytest.approx(0.25)
