"""Register pairs in one pass each, by a model that `kreg train` or Keras saved.

usage: kreg predict MODEL DATA --output FOLDER [options]

MODEL is a .keras file, or the folder of `kreg train`. DATA is as in training: a folder with two
folders, moving and fixed, with images of equal names; or an .npz with the arrays moving and fixed.

Images in millimetres lie where their frames say: the network is shown the moving image on the
grid of the fixed one, and the transform leads from one world to the other. It knows no frames
itself: all fixed images need its size, and the axes (kreg info) of those it was trained on.
Pictures and others in pixels are laid voxel over voxel.

Of a folder, each pair gets FOLDER/NAME with warped.* and transform.npz (for `kreg apply`); of an
.npz there is one predictions.npz with the arrays warped and displacement. In FOLDER/result.json
stands the NCC of each pair before and after.

Examples:
  kreg predict trained pairs --output predicted
  kreg predict model.keras volumes.npz --output predicted --batch_size 1
"""

from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from kreg import io
from kreg.cli import images
from kreg.cli.new_folder import RESULT, new_folder, result_of
from kreg.cli.outcome import Outcome, UsageError, as_json
from kreg.cli.pairs import arrays_of, paired_files, placed, training_pairs
from kreg.cli.terminal import counted, start_keras
from kreg.io.errors import reason, refusal
from kreg.version import __version__


def define(values: flags.FlagValues) -> None:
    """Define the options."""
    flags.DEFINE_string("output", None, "the folder of the results", flag_values=values)
    flags.DEFINE_integer("batch_size", 8, "pairs at once", 1, flag_values=values)


def run(arguments: list[str], values: flags.FlagValues) -> Outcome:
    """Register all pairs by a model."""
    if len(arguments) != 2 or not values.output:
        raise UsageError(
            "Expected MODEL, DATA and --output FOLDER. Received: "
            f"{len(arguments)} paths, --output {values.output or 'missing'}."
        )
    given, data = Path(arguments[0]), Path(arguments[1])
    packed = data.suffix.lower() == ".npz"
    names = list(arrays_of(data) if packed else paired_files(data))
    if packed:
        names = []
    with new_folder(Path(values.output), values.overwrite) as folder:
        model = load_model(given)
        pairs = training_pairs(data, values.batch_size, shuffle=False, seed=0)
        if not packed:
            _check_axes(given, data, pairs.fixed.axes)
        scores, files = _predict(model, pairs, data, names, folder)
        result = {"kreg": __version__, "model": str(given), "data": str(data), "pairs": scores}
        result |= {"files": [*files, RESULT]}
        (folder / RESULT).write_text(as_json(result) + "\n", encoding="utf-8")
    means = [float(np.mean([one[when] for one in scores])) for when in ("NCC before", "NCC after")]
    lines = [f"{len(scores)} pairs, NCC {means[0]:.4f} before, {means[1]:.4f} after, on average"]
    lines += [f"written to {values.output}"]
    return Outcome({"output": values.output, **result}, lines)


def load_model(path: Path) -> Any:
    """Return a saved registration model. Imports Keras, and all that kreg registers with it.

    Raises:
        FileError: if there is none.
    """
    path = path / "model.keras" if path.is_dir() else path
    expected = "a registration model that Keras saved (.keras)"
    if not path.is_file() or path.suffix != ".keras":
        received = f"the suffix {path.suffix!r}" if path.is_file() else "no such file"
        raise refusal(path, expected, received, "check the spelling")
    start_keras()
    import keras

    from kreg import groups, layers, losses, metrics, models, training  # noqa: F401

    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:
        raise refusal(path, expected, reason(error)) from error
    if not isinstance(model, training.RegistrationModel):
        raise refusal(path, expected, f"a {type(model).__name__}")
    return model


def _check_axes(model: Path, data: Path, axes: str | None) -> None:
    """Raise `FileError` if a network was trained on images that lay otherwise in their arrays."""
    trained = (result_of(model if model.is_dir() else model.parent) or {}).get("axes")
    if trained and axes and trained != axes:
        remedy = "reorient them: the network knows no frames"
        raise refusal(data, f"images of the axes {trained}, as in training,", axes, remedy)


def _predict(model, pairs, data: Path, names: list[str], folder: Path) -> tuple[list, list[str]]:
    """Write the results of all pairs, and return their scores and the names that were written."""
    from keras import ops

    from kreg import metrics

    kept: dict[str, list[np.ndarray]] = {"warped": [], "displacement": []}
    files = paired_files(data) if names else {}
    scores: list[dict[str, Any]] = []
    for batch in counted(range(len(pairs)), len(pairs), "batch"):
        (images_of,) = pairs[batch]
        found = model.predict_on_batch(images_of)
        before, after = (
            ops.convert_to_numpy(metrics.ncc(images_of["fixed"], moving))
            for moving in (images_of["moving"], found["warped"])
        )
        for index in range(len(before)):
            name = names[len(scores)] if names else str(len(scores))
            score = {"NCC before": float(before[index]), "NCC after": float(after[index])}
            scores.append({"name": name, **score})
            if not names:
                for part, values in kept.items():
                    values.append(np.asarray(found[part][index], "float32"))
                continue
            moving, fixed = files[name]
            _write(folder / name, moving, placed(moving, fixed, found["displacement"][index]))
    if names:
        return scores, names
    warped, displacement = (np.stack(kept[part]) for part in ("warped", "displacement"))
    np.savez_compressed(folder / "predictions.npz", warped=warped, displacement=displacement)
    return scores, ["predictions.npz"]


def _write(folder: Path, moving: Path, transform: io.Transform) -> None:
    folder.mkdir()
    warped = transform.apply(io.read(moving))
    io.write(folder / f"warped{images.suffix_for(warped, moving)}", warped)
    io.save_transform(folder / "transform.npz", transform)
