"""Training for hours as Keras users do it: interrupted, watched, in half precision, from disk."""

import keras
import numpy as np
import pytest

import kreg
from kreg.data import ArrayPairs, FolderPairs, RandomPairs
from tests.models.pairs import images, under_bfloat16

SHAPE, VOLUME = (16, 16), (8, 10, 9)


def compiled_model(shape=SHAPE, **options):
    """The smallest voxelmorph, with weights of its own in each call."""
    model = kreg.models.voxelmorph(
        (*shape, 1), encoder=(4,), decoder=(4,), head=kreg.models.DenseHead()
    )
    model.compile(
        keras.optimizers.Adam(0.01),
        loss={"warped": kreg.losses.NCC(), "displacement": kreg.losses.Diffusion()},
        loss_weights={"warped": 1.0, "displacement": 0.1},
        metrics={"warped": [kreg.metrics.NCC(name="ncc")]},
        **options,
    )
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.fixture(scope="module")
def compiled():
    """Models that are compiled once for the whole file, and the state they start from."""
    models = {}

    def make(name, **options):
        if name not in models:
            keras.utils.set_random_seed(0)
            model = compiled_model(**options)
            variables = [*model.variables, *model.optimizer.variables]
            models[name] = model, variables, [keras.ops.convert_to_numpy(v) for v in variables]
        model, variables, start = models[name]
        for variable, value in zip(variables, start, strict=True):
            variable.assign(value)
        return model

    return make


def assert_equal_weights(model, expected):
    for one, other in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


# --- interrupted ---


class PowerCut(keras.callbacks.Callback):
    """Ends a training in the middle of its third epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (2, 1):
            raise KeyboardInterrupt


DATA = {
    "shuffled": lambda: ArrayPairs(**images(SHAPE, 12), batch_size=4, shuffle=True),
    "random": lambda: RandomPairs(**images(SHAPE, 12), batch_size=4, steps=3),
}


@pytest.mark.parametrize("kind", DATA)
def test_an_interrupted_training_ends_as_one_that_never_was(kind, compiled, tmp_path):
    def train(name, *callbacks):
        model = compiled(name)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        options = {"epochs": 4, "shuffle": False, "verbose": 0}
        model.fit(DATA[kind](), callbacks=[backup, *callbacks], **options)
        return model

    expected = train("model").get_weights()
    with pytest.raises(KeyboardInterrupt):
        train("model", PowerCut())
    start = compiled("model").get_weights()
    resumed = train("resumed")  # a model that has never been trained, as in a new process
    assert len(resumed.history.epoch) == 2
    assert max(np.abs(a - b).max() for a, b in zip(start, expected, strict=True)) > 1e-3
    assert_equal_weights(resumed, expected)


# --- watched ---


class Spoil(keras.callbacks.Callback):
    """Ruins the weights before the third epoch, as a step too long does; keeps those of all."""

    def __init__(self):
        super().__init__()
        self.after = []

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            rng = np.random.default_rng(0)
            self.model.set_weights([rng.normal(0, 1, w.shape) for w in self.model.get_weights()])

    def on_epoch_end(self, epoch, logs=None):
        self.after.append(self.model.get_weights())


def test_the_best_weights_are_kept_and_training_ends(compiled, tmp_path):
    data = images(SHAPE, 12)
    model, spoil = compiled("model"), Spoil()
    callbacks = [
        spoil,
        keras.callbacks.ModelCheckpoint(
            tmp_path / "best.keras", monitor="val_warped_loss", mode="min", save_best_only=True
        ),
        keras.callbacks.EarlyStopping(
            "val_warped_ncc", mode="max", patience=2, restore_best_weights=True
        ),
    ]
    history = model.fit(
        data,
        validation_data=data,
        batch_size=4,
        epochs=9,
        shuffle=False,
        callbacks=callbacks,
        verbose=0,
    ).history
    best = int(np.argmin(history["val_warped_loss"]))
    assert best < 2
    assert len(spoil.after) == best + 1 + 2
    assert_equal_weights(model, spoil.after[best])
    loaded = keras.saving.load_model(tmp_path / "best.keras")
    assert_equal_weights(loaded, spoil.after[best])
    result = loaded.predict(data, batch_size=4, verbose=0)
    found = float(keras.ops.mean(kreg.losses.ncc(data["fixed"], result["warped"])))
    assert found == pytest.approx(history["val_warped_ncc"][best], abs=1e-4)
    assert np.abs(result["displacement"]).max() > 1e-3


def test_tensorboard_gets_its_files(compiled, tmp_path):
    pytest.importorskip("tensorflow", reason="Keras's TensorBoard callback writes by TensorFlow")
    pytest.importorskip("tensorboard", reason="TensorFlow writes summaries by tensorboard")
    board = keras.callbacks.TensorBoard(tmp_path, write_graph=False)
    compiled("model").fit(images(SHAPE), callbacks=[board], verbose=0)
    (written,) = tmp_path.glob("train/events.out.tfevents.*")
    assert b"epoch_warped_loss" in written.read_bytes()


# --- faster ---


def test_half_precision_trains_and_displacements_stay_whole():
    data = images(SHAPE, 12)
    model = under_bfloat16(compiled_model)
    assert "bfloat16" in {layer.compute_dtype for layer in model.layers}
    losses = model.fit(data, batch_size=4, epochs=6, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]
    assert model.predict(data, batch_size=4, verbose=0)["displacement"].dtype == np.float32


@pytest.mark.skipif(keras.config.backend() == "torch", reason="Keras has no such steps on PyTorch")
def test_several_steps_an_execution_are_the_same_steps(compiled):
    data = images(SHAPE, 12)
    options = {"batch_size": 2, "epochs": 2, "shuffle": False, "verbose": 0}
    expected = compiled("model").fit(data, **options)
    # Six batches: the second execution has two steps only.
    found = compiled("several", steps_per_execution=4).fit(data, **options)
    assert found.history.keys() == expected.history.keys()
    for name, values in expected.history.items():
        np.testing.assert_allclose(found.history[name], values, rtol=1e-4)
    assert_equal_weights(found.model, expected.model.get_weights())


# --- from disk ---


@pytest.fixture
def volumes(tmp_path):
    """Volumes, and the two folders that they lie in."""
    data = images(VOLUME, 6)
    folders = [tmp_path / name for name in data]
    for folder, stack in zip(folders, data.values(), strict=True):
        folder.mkdir()
        for i, volume in enumerate(stack):
            np.save(folder / f"subject{i}.npy", volume)
    return data, *folders


def by_generator(moving, fixed):
    """The pipeline in the docstring of `FolderPairs`."""
    tf = pytest.importorskip("tensorflow")
    pairs = FolderPairs(moving, fixed, batch_size=2)

    def batches():
        pairs.on_epoch_end()  # the order of another epoch
        yield from (data for (data,) in pairs)

    image = tf.TensorSpec((None, *pairs.image_shape))
    return tf.data.Dataset.from_generator(
        batches, output_signature={"moving": image, "fixed": image}
    ).apply(tf.data.experimental.assert_cardinality(len(pairs)))


def by_tensorflow(moving, fixed):
    """Files read in parallel by tf.data itself."""
    tf = pytest.importorskip("tensorflow")

    def read(*paths):
        volumes = (tf.numpy_function(np.load, [path], tf.float32) for path in paths)
        moving, fixed = (tf.ensure_shape(volume, (*VOLUME, 1)) for volume in volumes)
        return {"moving": moving, "fixed": fixed}

    names = [sorted(map(str, folder.iterdir())) for folder in (moving, fixed)]
    dataset = tf.data.Dataset.from_tensor_slices(tuple(names))
    return dataset.map(read, num_parallel_calls=2).batch(2).prefetch(2)


SOURCES = {
    "folders": lambda *folders: FolderPairs(*folders, batch_size=2),
    "generator": by_generator,
    "tf.data": by_tensorflow,
}


@pytest.mark.parametrize("source", SOURCES)
def test_volumes_on_disk_train_as_those_in_memory(source, compiled, volumes):
    data, *folders = volumes
    options = {"epochs": 2, "shuffle": False, "verbose": 0}
    dataset = SOURCES[source](*folders)
    expected = compiled("volumes", shape=VOLUME).fit(data, batch_size=2, **options)
    losses, weights = expected.history["loss"], expected.model.get_weights()
    assert losses[1] != pytest.approx(losses[0], rel=1e-3)
    found = compiled("volumes").fit(dataset, **options)
    np.testing.assert_allclose(found.history["loss"], losses, rtol=1e-4)
    assert_equal_weights(found.model, weights)
