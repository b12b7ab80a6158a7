"""Train a network of the zoo on pairs of images, without ground truth.

usage: kreg train DATA --output FOLDER [options]

DATA is a folder with two folders, moving and fixed, that hold images of one size and of equal
names; or an .npz file with the arrays moving and fixed, (n, *spatial[, channels]). Images are
scaled by the largest value of their type. Of images in millimetres the moving one is laid on the
grid of the fixed one, as their frames say, and all need the same axes (kreg info).

In FOLDER you find model.keras, for `kreg predict` and `keras.saving.load_model` (after `import
kreg`), and result.json with the losses of each epoch. Interrupted, by Ctrl-C or a power cut, the
same command goes on with the epoch that it was in; until then a hidden folder beside FOLDER
keeps what it has learned. Should that be damaged, the command says so and names it, to remove it.

This is the plain recipe: Adam, one similarity, smoothness. For more (several losses, schedules,
masks, labels, several devices) write the few lines of Keras that the README shows.

Examples:
  kreg train pairs --output trained --epochs 50
  kreg train volumes.npz --output trained --model voxelmorph --loss local_ncc --batch_size 1
  kreg train pairs --output trained --validation other_pairs
"""

import hashlib
import json
import os
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from kreg.cli.new_folder import RESULT, check_free, new_folder
from kreg.cli.outcome import Outcome, UsageError, as_json, check_finite
from kreg.cli.pairs import training_pairs
from kreg.cli.terminal import is_terminal, start_keras
from kreg.io.errors import reason, refusal
from kreg.io.files import replacing
from kreg.version import __version__

_MODELS = ("two_pass", "encoder_decoder", "voxelmorph", "dirnet", "affine_net", "affine_dense")
_LOSSES = {"ncc": "NCC", "local_ncc": "LocalNCC", "mi": "MutualInformation", "mind": "MIND"}
_HISTORY = "history.json"
#: What smoothness is asked of, the first that the model has: not of a matrix's displacement.
_SMOOTH = ("velocity", "residual", "displacement")


def define(values: flags.FlagValues) -> None:
    """Define the options."""
    flags.DEFINE_string("output", None, "the folder of the trained model", flag_values=values)
    flags.DEFINE_enum("model", "two_pass", _MODELS, "of kreg.models", flag_values=values)
    flags.DEFINE_enum("loss", "ncc", list(_LOSSES), "what fits", flag_values=values)
    flags.DEFINE_float("smoothness", 0.01, "weight of the field's", 0, flag_values=values)
    flags.DEFINE_integer("epochs", 20, "passes over all pairs", 1, flag_values=values)
    flags.DEFINE_integer("batch_size", 8, "pairs a step", 1, flag_values=values)
    flags.DEFINE_float("learning_rate", 1e-3, "of Adam", 0, flag_values=values)
    flags.DEFINE_string("validation", None, "pairs to watch, as DATA", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of weights and order", 0, flag_values=values)


def run(arguments: list[str], values: flags.FlagValues) -> Outcome:
    """Train a model."""
    if len(arguments) != 1 or not values.output:
        raise UsageError(
            "Expected DATA and --output FOLDER. Received: "
            f"{len(arguments)} paths, --output {values.output or 'missing'}."
        )
    check_finite(values, "smoothness", "learning_rate")
    output = Path(values.output)
    names = ("model", "loss", "smoothness", "epochs", "batch_size", "learning_rate", "seed")
    settings = {name: values[name].value for name in names}
    settings |= {
        name: None if path is None else str(Path(path).absolute())
        for name, path in (("data", arguments[0]), ("validation", values.validation))
    }
    check_free(output.absolute(), values.overwrite)
    start = time.perf_counter()
    backup = backup_of(output, settings)
    try:
        with new_folder(output, values.overwrite) as folder:
            model, axes, history = _fit(settings, backup)
            model.save(folder / "model.keras")
            result = {
                "kreg": __version__,
                "settings": settings,
                "axes": axes,
                "parameters": model.count_params(),
                "history": history,
                "seconds": round(time.perf_counter() - start, 1),
                "files": ["model.keras", RESULT],
            }
            (folder / RESULT).write_text(as_json(result) + "\n", encoding="utf-8")
    except Exception:
        _forget(backup, only_if_empty=True)
        raise
    _forget(backup)
    losses = {name: curve[-1] for name, curve in history.items() if curve}
    lines = [f"trained {settings['model']} for {settings['epochs']} epochs"]
    lines += [f"  {name:24} {value:.4f}" for name, value in losses.items()]
    return Outcome({"output": str(output), **result}, [*lines, f"written to {output}: model.keras"])


def after_interrupt(values: flags.FlagValues) -> str:
    """Return what is left where Ctrl-C ended it."""
    return "the same command goes on with the epoch that it was in"


def backup_of(output: Path, settings: dict[str, Any]) -> Path:
    """Return the hidden folder beside `output` where a training of these settings is backed up."""
    text = json.dumps(settings, sort_keys=True).encode()
    digest = hashlib.sha256(text).hexdigest()[:12]
    return output.absolute().with_name(f".{output.absolute().name}.{digest}.training")


def _forget(backup: Path, only_if_empty: bool = False) -> None:
    """Remove a backup, or what an attempt without a finished epoch has left of one."""
    if not only_if_empty or not (backup.is_dir() and os.listdir(backup)):
        shutil.rmtree(backup, ignore_errors=True)


def _fit(settings: dict[str, Any], backup: Path) -> tuple[Any, str | None, dict[str, list[float]]]:
    """Return the trained model, the axes of its images, and the losses of its epochs."""
    start_keras()
    import keras

    from kreg import losses, models

    keras.utils.set_random_seed(settings["seed"])
    size, seed, validation = (settings[name] for name in ("batch_size", "seed", "validation"))
    data = training_pairs(Path(settings["data"]), size, True, seed)
    watched = validation and training_pairs(Path(validation), size, False, seed)
    model = getattr(models, settings["model"])(data.image_shape)
    loss = {"warped": getattr(losses, _LOSSES[settings["loss"]])()}
    weights = {"warped": 1.0}
    if settings["smoothness"] > 0 and settings["model"] != "affine_net":
        field = next(name for name in _SMOOTH if name in model.output)
        loss[field], weights[field] = losses.Diffusion(), settings["smoothness"]
    optimizer = keras.optimizers.Adam(settings["learning_rate"])
    model.compile(optimizer, loss=loss, loss_weights=weights)
    try:
        backup.mkdir(exist_ok=True)
    except OSError as error:
        raise refusal(backup.parent, "a folder that can be written", reason(error)) from error
    state = _backed_up(backup)
    model.fit(
        data,
        validation_data=watched,
        epochs=settings["epochs"],
        shuffle=False,  # the pairs draw their own order, which a backup knows
        verbose=1 if is_terminal() else 2,
        callbacks=[
            keras.callbacks.LambdaCallback(on_epoch_end=partial(_remember, backup)),
            state,
        ],
    )
    return model, getattr(data.fixed, "axes", None), _curves(backup)


def _backed_up(backup: Path) -> Any:
    """Return the callback that keeps the state of a training, and restores it.

    As it restores it raises `FileError` where that is damaged.
    """
    import keras

    class Backup(keras.callbacks.BackupAndRestore):
        def on_train_begin(self, logs=None):
            try:
                files = set(os.listdir(self.backup_dir)) if os.path.isdir(self.backup_dir) else ()
                if len(files) == 1:
                    raise ValueError(f"nothing but {min(files)}")
                _curves(backup)
                super().on_train_begin(logs)
            except Exception as error:
                expected = "a backup of this training that can be read"
                remedy = "remove that folder to train from the beginning"
                raise refusal(backup, expected, reason(error), remedy) from error

    # Kept until the model itself is written.
    return Backup(str(backup / "state"), delete_checkpoint=False)


def _curves(backup: Path) -> dict[str, list[float]]:
    """Return the losses of the epochs that are done."""
    record = backup / _HISTORY
    return json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}


def _remember(backup: Path, epoch: int, logs: dict[str, Any] | None) -> None:
    """Write down the losses of an epoch, all of them or none."""
    curves = _curves(backup)
    for name, value in (logs or {}).items():
        curves[name] = [*curves.get(name, [])[:epoch], float(value)]
    with replacing(backup / _HISTORY, overwrite=True) as temporary:
        temporary.write_text(json.dumps(curves), encoding="utf-8")
