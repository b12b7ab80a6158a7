"""The MNIST example, run as a person would run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from kreg.data import load_handwritten_digits

EXAMPLE = Path(__file__).parents[2] / "examples" / "mnist.py"

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="one backend is enough for the example"
)


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, EXAMPLE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture
def mnist_file(tmp_path):
    """Real digits in a file of MNIST's layout."""
    digits = load_handwritten_digits()
    path = tmp_path / "mnist.npz"
    np.savez(
        path,
        x_train=digits.train.images,
        y_train=digits.train.labels,
        x_test=digits.test.images,
        y_test=digits.test.labels,
    )
    return path


def test_quick_run_leaves_figures_model_and_scores_with_real_digits_where_mnist_is_missing(
    tmp_path,
):
    output = tmp_path / "result"
    # An empty cache and a proxy that refuses: MNIST can't be had.
    missing = {"KERAS_HOME": str(tmp_path / "home"), "KREG_DATA": str(tmp_path)}
    done = run(
        "--quick", "--output", output, "--digit", 5, https_proxy="http://127.0.0.1:9", **missing
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "MNIST is not at hand" in done.stdout
    assert "scikit-learn" in done.stdout
    for word in ("before", "after", "A fresh process"):
        assert word in done.stdout
    assert {file.name for file in output.iterdir()} == {
        "model.keras", "new_pair.npz", "new_pair.png", "pair.png", "pairs.png", "scores.json",
        "training.png",
    }  # fmt: skip
    scores = json.loads((output / "scores.json").read_text())["scores"]
    assert scores["after"]["NCC"] > scores["before"]["NCC"]
    assert [path.name for path in tmp_path.iterdir() if "unfinished" in path.name] == []


def test_existing_output_is_refused_and_kept(run_here, mnist_file, tmp_path):
    output = tmp_path / "result"
    output.mkdir()
    (output / "precious.txt").write_text("keep me")
    done = run_here("mnist", "--quick", "--mnist", mnist_file, "--output", output)
    assert done.returncode != 0
    assert "--overwrite" in done.stderr
    assert (output / "precious.txt").read_text() == "keep me"


def test_overwrite_replaces_only_an_earlier_result(run_here, mnist_file, tmp_path):
    output = tmp_path / "thesis"
    output.mkdir()
    (output / "precious.txt").write_text("keep me")
    done = run_here("mnist", "--quick", "--overwrite", "--mnist", mnist_file, "--output", output)
    assert done.returncode != 0
    assert (output / "precious.txt").read_text() == "keep me"


def test_broken_mnist_file_leaves_nothing_behind(run_here, tmp_path):
    broken = tmp_path / "mnist.npz"
    broken.write_bytes(b"PK\x03\x04 not an archive")
    output = tmp_path / "result"
    done = run_here("mnist", "--quick", "--mnist", broken, "--output", output)
    assert done.returncode != 0
    assert "mnist.npz" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mnist.npz"]
