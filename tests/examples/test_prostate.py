"""The example of weakly supervised registration of the prostate, run as a person would run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "prostate.py"

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
    if not folder or not Path(folder, "prostate3d", "deepreg_mrus_12pairs.npz").exists():
        pytest.skip("KREG_DATA has no prostate3d/deepreg_mrus_12pairs.npz")
    output = tmp_path / "result"
    done = run("--quick", "--output", output, data=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert {file.name for file in output.iterdir()} == {
        "model.keras", "pairs.png", "scores.json", "training.png",
    }  # fmt: skip
    scores = json.loads((output / "scores.json").read_text())["scores"]
    # Three steps teach nothing; glands laid centre on centre overlap more than they did.
    assert scores["centroids"]["Dice"] > scores["before"]["Dice"] > 0.5
    assert scores["after"]["folds %"] == 0
    assert f"{scores['after']['Dice']:.3f}" in done.stdout


def test_without_data_it_says_where_to_put_them(run_here):
    done = run_here("prostate", "--quick")
    assert done.returncode == 1
    assert "KREG_DATA" in done.stderr
    assert "Received: None" in done.stderr
