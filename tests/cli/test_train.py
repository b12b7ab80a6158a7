import json
import os
import signal

import keras
import numpy as np
import pytest

from kreg import models
from kreg.cli.pairs import training_pairs
from kreg.io import Image, load_transform, read, write
from kreg.training import RegistrationModel
from tests.cli.conftest import SHAPE, scene, untouched

TRAIN = ("train", "pairs", "--output", "net", "--model=dirnet", "--batch_size=2", "--epochs=2")


@pytest.fixture
def pairs(folder):
    """Three pairs, each moved by another step."""
    for side in ("fixed", "moving"):
        (folder / "pairs" / side).mkdir(parents=True)
    for index in range(3):
        write(folder / "pairs" / "fixed" / f"n{index}.png", scene())
        write(folder / "pairs" / "moving" / f"n{index}.tif", scene((index, 1)))
    return folder / "pairs"


@pytest.fixture
def small(monkeypatch):
    """A network that takes no time to compile, in place of the zoo's."""

    def dirnet(shape):
        inputs = {side: keras.Input(shape, name=side) for side in ("moving", "fixed")}
        pair = keras.layers.Concatenate()(list(inputs.values()))
        outputs = {
            "warped": keras.layers.Conv2D(1, 3, padding="same", name="warped")(inputs["moving"]),
            "displacement": keras.layers.Conv2D(2, 3, padding="same", name="displacement")(pair),
        }
        return RegistrationModel(inputs, outputs)

    monkeypatch.setattr(models, "dirnet", dirnet)


def weights(folder):
    model = keras.saving.load_model(folder / "net" / "model.keras", compile=False)
    return np.concatenate([np.ravel(one) for one in model.get_weights()])


def test_an_interrupted_training_goes_on_and_ends_as_if_it_had_not_been(
    kreg, folder, pairs, small, monkeypatch
):
    code, printed, _ = kreg(*TRAIN)
    assert (code, "dirnet for 2 epochs" in printed) == (0, True)
    stored = json.loads((folder / "net" / "result.json").read_text(encoding="utf-8"))
    expected, curve = weights(folder), stored["history"]["loss"]
    assert len(curve) == 2
    assert sorted(os.listdir(folder / "net")) == ["model.keras", "result.json"]
    with untouched(folder):
        assert kreg(*TRAIN)[0] == 1

    ended = keras.callbacks.BackupAndRestore.on_epoch_end

    def interrupted(self, epoch, logs=None):
        ended(self, epoch, logs)
        if epoch == 0:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(keras.callbacks.BackupAndRestore, "on_epoch_end", interrupted)
        code, _, said = kreg(*TRAIN, "--overwrite")
    assert code == 130
    assert said.splitlines()[-1].endswith("goes on with the epoch that it was in")
    np.testing.assert_array_equal(weights(folder), expected)  # the old one stays until then
    assert kreg(*TRAIN, "--overwrite")[0] == 0
    np.testing.assert_allclose(weights(folder), expected, rtol=1e-5, atol=1e-6)
    again = json.loads((folder / "net" / "result.json").read_text(encoding="utf-8"))["history"][
        "loss"
    ]
    np.testing.assert_allclose(again, curve, rtol=1e-4)
    assert sorted(os.listdir(folder)) == ["fixed.png", "moving.png", "net", "pairs"]

    code, _, _ = kreg("predict", "net", "pairs", "--output", "found", "--batch_size=2")
    assert code == 0
    result = json.loads((folder / "found" / "result.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in result["pairs"]] == ["n0", "n1", "n2"]
    transform = load_transform(folder / "found" / "n2" / "transform.npz")
    warped = transform.apply(read(folder / "pairs" / "moving" / "n2.tif")).array
    np.testing.assert_array_equal(read(folder / "found" / "n2" / "warped.tif").array, warped)


def test_arrays_are_registered_by_a_model_that_keras_saved(kreg, folder):
    moving = np.stack([scene((1, 1)), scene((0, 2))])
    np.savez(folder / "a.npz", moving=moving, fixed=np.stack([scene(), scene()]))
    models.dirnet((*SHAPE, 1)).save(folder / "m.keras")  # the identity, untrained
    code, printed, _ = kreg("predict", "m.keras", "a.npz", "--output=found", "--json")
    assert code == 0
    with np.load(folder / "found" / "predictions.npz") as found:
        assert found["displacement"].shape == (2, *SHAPE, 2)
        np.testing.assert_allclose(found["warped"][..., 0], moving / 255, atol=1e-6)
    for one in json.loads(printed)["pairs"]:
        assert one["NCC before"] == pytest.approx(one["NCC after"])


def test_arrays_and_files_are_trained_on_alike(folder, pairs):
    np.savez(
        folder / "a.npz",
        moving=np.stack([scene((index, 1)) for index in range(3)]),
        fixed=np.stack([scene()] * 3),
    )
    both = [training_pairs(path, 2, True, 7) for path in (pairs, folder / "a.npz")]
    for batch in range(2):
        (first,), (second,) = (one[batch] for one in both)
        for side in ("moving", "fixed"):
            np.testing.assert_allclose(first[side], second[side])


@pytest.mark.parametrize("name", ["state/latest.weights.h5", "state/training_metadata.json",
                                  "history.json", None])  # fmt: skip
def test_a_damaged_backup_is_told_and_kept(kreg, folder, pairs, small, monkeypatch, name):
    ended = keras.callbacks.BackupAndRestore.on_epoch_end

    def interrupted(self, epoch, logs=None):
        ended(self, epoch, logs)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(keras.callbacks.BackupAndRestore, "on_epoch_end", interrupted)
        assert kreg(*TRAIN)[0] == 130
    (backup,) = folder.glob(".net.*.training")
    if name is None:  # killed between the two files
        (backup / "state" / "training_metadata.json").unlink()
    else:
        (backup / name).write_bytes((backup / name).read_bytes()[:-20])
    with untouched(folder):
        code, printed, said = kreg(*TRAIN)
    assert (code, printed, said.count("\n")) == (1, "", 1)
    assert f"'{backup}'; remove that folder to train from the beginning" in said
    (backup / "history.json").unlink()
    for path in (backup / "state").iterdir():
        path.unlink()
    assert kreg(*TRAIN)[0] == 0


def test_predictions_honour_frames(kreg, folder):
    """A network that moves nothing lays volumes over one another as their frames say."""
    fixed = Image(np.random.default_rng(0).random((8, 8, 16)), np.diag([2.0, 2, 1, 1]), "mm")
    flipped = np.diag([-2.0, 2, 1, 1])
    flipped[0, 3] = 14
    for side in ("fixed", "moving"):
        (folder / "scans" / side).mkdir(parents=True)
    write(folder / "scans" / "fixed" / "a.nii", fixed)
    moving = np.pad(fixed.array[::-1], [(0, 0), (0, 0), (0, 3)])  # the same, and some more
    write(folder / "scans" / "moving" / "a.nii", Image(moving, flipped, "mm"))
    models.dirnet((8, 8, 16, 1)).save(folder / "model.keras")
    code, printed, said = kreg("predict", "model.keras", "scans", "--output=found", "--json")
    assert code == 0, said
    (score,) = json.loads(printed)["pairs"]
    assert score["NCC before"] > 0.999
    warped = read(folder / "found" / "a" / "warped.nii")
    np.testing.assert_allclose(warped.array, fixed.array, atol=1e-5)
    # The axes of the training are known where its result lies beside the model.
    (folder / "result.json").write_text('{"files": [], "axes": "RAS"}')
    code, _, said = kreg("predict", "model.keras", "scans", "--output=again")
    assert (code, said.count("\n")) == (1, 1)
    assert "axes RAS, as in training, at 'scans'; reorient" in said
