"""The example of training across machines: two processes on one."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from absl import app

from kreg.data import ArrayPairs, RandomPairs, load_handwritten_digits

EXAMPLE = Path(__file__).parents[2] / "examples" / "distributed.py"

on_jax = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="Keras trains across machines on JAX only"
)


@pytest.fixture(scope="module")
def example():
    """The script as a module: its functions, without a run."""
    spec = importlib.util.spec_from_file_location("distributed_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def digits_file(tmp_path):
    """Real digits in a file of MNIST's layout, and the same as arrays."""
    digits = load_handwritten_digits()
    path = tmp_path / "mnist.npz"
    np.savez(
        path,
        x_train=digits.train.images,
        y_train=digits.train.labels,
        x_test=digits.test.images,
        y_test=digits.test.labels,
    )
    return path, digits


def run(*arguments, seconds):
    """Run the example as a person would; nothing of it outlives the test."""
    command = [sys.executable, EXAMPLE, *map(str, arguments)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        out, errors = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors
    return out


@on_jax
def test_two_processes_train_as_one(example, digits_file, tmp_path):
    path, digits = digits_file
    folder, logs = tmp_path / "result", tmp_path / "logs"
    logs.mkdir()
    out = run("--quick", "--mnist", path, "--output", folder, "--logs", logs, seconds=500)
    assert "on cpu:0, cpu:" in out  # two devices
    model, history, losses = example.train(digits, steps=6, batch=8)
    found = json.loads((folder / "losses.json").read_text())
    for name, values in history.items():
        assert found["history"][name] == pytest.approx(values, rel=1e-4), name
    for when in ("before", "after"):
        assert found[when] == pytest.approx(losses[when], rel=1e-4)
    assert found["after"] != pytest.approx(found["before"], rel=1e-3)
    saved = keras.saving.load_model(folder / "model.keras")
    for one, other in zip(saved.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    # To the last bit on both.
    weights = example.fingerprint(saved)
    assert f"Process 0 of 2: weights {weights}" in out
    assert f"Process 1 of 2: weights {weights}" in (logs / "process-1.log").read_text()
    assert "Process 1" not in out


def test_the_shares_of_a_batch_make_it_up(example):
    images = np.random.default_rng(0).random((20, 4, 4), "float32")
    whole, other = (RandomPairs(images, images, batch_size=6, steps=2) for _ in range(2))
    shares = [example.Share(pairs, k, 2) for k, pairs in enumerate((whole, other))]
    for share in shares:
        share.on_epoch_end()
    assert len(shares[0]) == 2
    for side in ("moving", "fixed"):
        parts = [share[1][0][side] for share in shares]
        np.testing.assert_array_equal(np.concatenate(parts), whole[1][0][side])


def test_refuses_a_batch_that_cannot_be_shared(example):
    images = np.ones((8, 4, 4), "float32")
    with pytest.raises(ValueError, match="Received: 8 pairs for 3 processes"):
        example.Share(ArrayPairs(images, images, batch_size=8), 0, 3)


@pytest.mark.skipif(keras.config.backend() == "jax", reason="this is the right backend")
def test_another_backend_is_refused_with_the_remedy(example):
    with pytest.raises(app.UsageError, match=r"KERAS_BACKEND=jax, pip install jax\. Received: "):
        example.main(["distributed.py"])


# --- processes that do not end well ---

_SCRIPT = """
import os, sys, time
from pathlib import Path

(process,) = [a.partition("=")[2] for a in sys.argv if a.startswith("--process=")]
Path(sys.argv[1], process).write_text(str(os.getpid()))
if sys.argv[2] == process:
    while not Path(sys.argv[1], "0").exists():
        time.sleep(0.01)
    sys.exit("the disk is full")
time.sleep(600)
"""


def assert_ended(folder):
    """No process that wrote its number into the folder is there any more."""
    for path in folder.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)


@pytest.mark.parametrize(
    ("failing", "timeout", "error", "message"),
    [
        ("1", 60, RuntimeError, r"process 1, exit code 1:\nthe disk is full"),
        ("none", 1.5, TimeoutError, r"--timeout\. Received: processes \[0, 1\] still at work"),
    ],
)
def test_where_one_does_not_end_well_all_are_ended(
    example, tmp_path, failing, timeout, error, message
):
    numbers = tmp_path / "numbers"
    numbers.mkdir()
    command = [sys.executable, "-c", _SCRIPT, str(numbers), failing]
    start = time.monotonic()
    with pytest.raises(error, match=message):
        example.launch(command, 2, logs=tmp_path, timeout=timeout)
    assert time.monotonic() - start < 30
    assert_ended(numbers)


def test_a_port_is_nobody_elses_meanwhile(example):
    with (
        example.free_port() as port,
        socket.socket() as other,
        pytest.raises(OSError, match="in use"),
    ):
        other.bind(("localhost", port))
