"""The example of learned registration of brains, run as a person would run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

EXAMPLE = Path(__file__).parents[2] / "examples" / "brains.py"

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="one backend is enough for the example"
)


def run(*arguments, data=None):
    environment = {name: value for name, value in os.environ.items() if name != "KREG_DATA"}
    if data is not None:
        environment["KREG_DATA"] = str(data)
    return subprocess.run(
        [sys.executable, EXAMPLE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def test_quick_run_leaves_figures_model_and_scores(tmp_path):
    folder = os.environ.get("KREG_DATA")
    if not folder or not Path(folder, "oasis2d", "oasis2d_100.npz").exists():
        pytest.skip("KREG_DATA has no oasis2d/oasis2d_100.npz")
    output = tmp_path / "result"
    done = run("--quick", "--output", output, data=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert {file.name for file in output.iterdir()} == {
        "checkerboards.png", "model.keras", "pairs.png", "scores.json", "training.png",
    }  # fmt: skip
    scores = json.loads((output / "scores.json").read_text())["scores"]
    assert scores["after"]["NCC"] > scores["before"]["NCC"]
    assert f"{scores['after']['NCC']:.4f}" in done.stdout


def test_images_of_ones_own_and_an_output_folder_that_is_kept(run_here, tmp_path):
    images = gaussian_filter(np.random.default_rng(0).random((12, 24, 20)), (0, 3, 3))
    np.savez(tmp_path / "own.npz", images=images)
    output = tmp_path / "result"
    output.mkdir()
    (output / "precious.txt").write_text("keep me")
    done = run_here(
        "brains", "--quick", "--overwrite", "--data", tmp_path / "own.npz", "--output", output
    )
    assert done.returncode == 1
    assert "--overwrite" in done.stderr
    assert (output / "precious.txt").read_text() == "keep me"


def test_without_data_it_says_where_to_put_them(run_here):
    done = run_here("brains", "--quick")
    assert done.returncode == 1
    assert "KREG_DATA" in done.stderr
    assert "Received: None" in done.stderr
