"""The example of large motion, run as a person would run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from skimage.io import imread

EXAMPLE = Path(__file__).parents[2] / "examples" / "ddim.py"

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="one backend is enough for the example"
)


def run(*arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if name != "KREG_DATA"}
    return subprocess.run(
        [sys.executable, EXAMPLE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=clean | environment,
    )


def test_quick_run_leaves_figures_model_and_scores(tmp_path):
    output = tmp_path / "result"
    digits = np.random.default_rng(0).integers(0, 255, (2, 30, 28, 28), "uint8")
    labels = (np.arange(30) % 10).astype("uint8")
    np.savez(
        tmp_path / "mnist.npz", x_train=digits[0], y_train=labels,
        x_test=digits[1], y_test=labels,
    )  # fmt: skip
    done = run("--quick", "--data", tmp_path / "mnist.npz", "--output", output)
    assert done.returncode == 0, done.stderr
    assert {file.name for file in output.iterdir()} == {
        "model.keras", "scores.json", "stages.png", "training.png",
    }  # fmt: skip
    medians = json.loads((output / "scores.json").read_text())["median error, % of the width"]
    assert list(medians) == ["before", "stage 1", "stage 2", "stage 3", "dense"]
    assert f"{medians['stage 3']:.2f}" in done.stdout
    model = keras.saving.load_model(output / "model.keras")
    assert len(model.trainable_weights) == len(model.weights)  # nothing stayed frozen
    assert np.ptp(imread(output / "stages.png")[..., :3]) > 100


def test_without_brains_it_says_where_to_put_them(run_here, tmp_path):
    done = run_here("ddim", "--quick", "--images", "brains", "--data", tmp_path)
    assert done.returncode == 1
    assert "KREG_DATA" in done.stderr
