"""What every test shares: a quiet backend, fixed seeds, and real data where it is at hand."""

import os
from collections.abc import Callable
from pathlib import Path

# Read once, when matplotlib is imported: so before anything else here imports it.
os.environ.setdefault("MPLBACKEND", "Agg")

import kreg  # noqa: F401, first: it silences TensorFlow's greeting

# isort: split
import keras
import pytest


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random state, whichever ran before it."""
    keras.utils.set_random_seed(0)


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
