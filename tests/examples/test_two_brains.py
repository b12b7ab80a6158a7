"""The example of two brains, run as a person would run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from skimage.io import imread

EXAMPLE = Path(__file__).parents[2] / "examples" / "two_brains.py"

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


def test_two_brains_meet_without_folds(tmp_path):
    data = os.environ.get("KREG_DATA")
    if not data or not Path(data, "brain3d").is_dir():
        pytest.skip("needs the environment variable KREG_DATA with brain3d")
    output = tmp_path / "result"
    done = run("--quick", "--output", output, KREG_DATA=data)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = json.loads((output / "scores.json").read_text())
    before, after = (np.mean(list(report[name].values())) for name in ("before", "after"))
    assert before < 0.4
    assert after > 0.55
    assert report["trusted"], report["reason"]
    assert "Folds: 0.000 %" in done.stdout
    assert imread(output / "two_brains.png")[..., :3].std() > 10


def test_says_where_scans_are_expected(run_here, tmp_path):
    done = run_here("two_brains", "--output", tmp_path / "result")
    assert done.returncode != 0
    assert "KREG_DATA" in done.stdout + done.stderr
    assert not (tmp_path / "result").exists()
