"""Saved models opened where nothing but kreg has been imported."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

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
    with np.load(path.with_suffix(".npz")) as arrays:
        inputs = [arrays[f"arr_{i}"] for i in range(len(arrays))]
    inputs = inputs if len(inputs) > 1 else inputs[0]
    outputs = {"output": model.predict_on_batch(inputs)}
    if model.compiled:
        outputs["loss"] = model.test_on_batch(inputs, outputs["output"])
    np.savez(path.with_suffix(".out.npz"), **outputs)
"""


class Saved(NamedTuple):
    """A model of one output, what to give it, and, where it is compiled, its loss on that."""

    model: object
    inputs: list[np.ndarray]


def in_fresh_process(saved: dict[str, Saved], folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return {"output", "loss"} of each model, saved here, loaded and run in another process."""
    for name, (model, inputs) in saved.items():
        model.save(folder / f"{name}.keras")
        np.savez(folder / f"{name}.npz", *inputs)
    command = [sys.executable, "-c", _SCRIPT, str(folder)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = {}
    for name in saved:
        with np.load(folder / f"{name}.out.npz") as arrays:
            found[name] = dict(arrays)
    return found
