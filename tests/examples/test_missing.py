"""The example of missing correspondence, run as a person would run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "missing.py"

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="one backend is enough for the example"
)


def run(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "KREG_DATA"}
    command = [sys.executable, EXAMPLE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_quick_run_leaves_figures_model_and_scores(tmp_path):
    rng = np.random.default_rng(0)
    strokes = np.zeros((40, 28, 28), "uint8")
    for image in strokes:  # a bent stroke each: no data set is needed
        t = np.linspace(0, 1, 60)
        ends = rng.uniform(6, 21, (3, 2))
        course = np.outer((1 - t) ** 2, ends[0]) + np.outer(2 * t * (1 - t), ends[1])
        row, column = np.rint(course + np.outer(t**2, ends[2])).astype(int).T
        for shift in (0, 1):
            image[row + shift, column] = image[row, column + shift] = 255
    labels = np.zeros(20, "uint8")
    np.savez(
        tmp_path / "mnist.npz", x_train=strokes[:20], y_train=labels, x_test=strokes[20:],
        y_test=labels,
    )  # fmt: skip
    output = tmp_path / "result"
    done = run("--digits", "--quick", "--data", tmp_path / "mnist.npz", "--output", output)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert {file.name for file in output.iterdir()} == {
        "landmarks.png", "model.keras", "pairs.png", "scores.json", "training.png",
    }  # fmt: skip
    report = json.loads((output / "scores.json").read_text())
    assert report["scores"]["with saliency"]["TRE"] < 0.7 * report["scores"]["before"]["TRE"]
    assert f"{report['scores']['with saliency']['TRE']:.3f}" in done.stdout


def test_brains_that_are_not_there_are_asked_for(run_here, tmp_path):
    done = run_here("missing", "--data", tmp_path, "--output", tmp_path / "result")
    assert done.returncode == 1
    assert "oasis2d_100.npz" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "result").exists()
