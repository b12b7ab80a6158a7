"""Keras imported without TensorFlow's greeting."""

import contextlib
import os
import sys
from collections.abc import Iterator


def import_keras() -> None:
    """Import Keras, which takes seconds, and print nothing; nothing changes where it is there."""
    if "keras" in sys.modules:
        return
    # At level 2 a machine without a GPU is told of a CUDA error; a variable that is set stays.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _without_stderr():
        import keras  # noqa: F401


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Silence the process's stderr: TensorFlow's C++ greets there before it can be configured."""
    try:
        sys.stderr.flush()
        saved = os.dup(2)
    except (AttributeError, OSError, ValueError):  # no stderr to silence (pythonw, a daemon)
        yield
        return
    try:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
