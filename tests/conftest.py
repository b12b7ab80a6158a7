"""What every test shares: a quiet backend, fixed seeds, and real data where it is at hand."""

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

# Read once, when matplotlib is imported: so before anything else here imports it.
os.environ.setdefault("MPLBACKEND", "Agg")

import kreg  # first: it silences TensorFlow's greeting

# isort: split
import keras
import pytest

kreg.machine.keep_freed_memory()  # tests that train take half as long


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random state, whichever ran before it."""
    keras.utils.set_random_seed(0)


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """TensorFlow step by step: for what takes few steps, most of the time goes to compiling."""
    if keras.config.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Even though the `tf.config", UserWarning)
        yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="session")
def data_file() -> Callable[[str], Path]:
    """`data_file("mnist/mnist.npz")` is that file under $KREG_DATA; without it the test skips."""
    root = os.environ.get("KREG_DATA")

    def find(name: str) -> Path:
        if root is None:
            pytest.skip(f"needs {name}: set KREG_DATA to the folder that holds it")
        path = Path(root, name)
        if not path.exists():
            pytest.skip(f"needs {name}, which KREG_DATA={root} does not hold")
        return path

    return find
