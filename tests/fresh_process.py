"""Saved models opened where nothing but kreg has been imported."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

ROOT = Path(__file__).parent.parent

_SCRIPT = """
import sys
from pathlib import Path

import numpy as np

import kreg
import keras

for path in sorted(Path(sys.argv[1]).glob("*.keras")):
    model = keras.saving.load_model(path)  # safe mode is on unless told otherwise
    with np.load(path.with_suffix(".npz")) as stored:
        arrays = dict(stored)
    target = arrays.pop("target", None)
    # Arrays without a name were a list.
    inputs = list(arrays.values()) if "arr_0" in arrays else arrays
    outputs = model.predict_on_batch(inputs)
    outputs = outputs if isinstance(outputs, dict) else {"output": outputs}
    if model.compiled:
        outputs["loss"] = model.test_on_batch(inputs, target, return_dict=True)["loss"]
    np.savez(path.with_suffix(".out.npz"), **outputs)
"""


class Saved(NamedTuple):
    """A model, the arrays to give it, and the target of its loss where it has one."""

    model: keras.Model
    inputs: list[np.ndarray] | dict[str, np.ndarray]
    target: np.ndarray | None = None


def in_fresh_process(saved: dict[str, Saved], folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return the outputs of each model, saved here, loaded and run in another process.

    An output without a name is called "output"; a compiled model also has its "loss".
    """
    for name, (model, inputs, target) in saved.items():
        model.save(folder / f"{name}.keras")
        named = inputs if isinstance(inputs, dict) else {}
        unnamed = () if isinstance(inputs, dict) else inputs
        extra = {} if target is None else {"target": target}
        np.savez(folder / f"{name}.npz", *unnamed, **named, **extra)
    command = [sys.executable, "-c", _SCRIPT, str(folder)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = {}
    for name in saved:
        with np.load(folder / f"{name}.out.npz") as arrays:
            found[name] = dict(arrays)
    return found
