"""Image registration for Keras 3.

``kreg.layers`` and ``kreg.losses`` plug into any Keras model, ``kreg.models`` is a zoo of
registration networks, ``kreg.data`` feeds pairs to ``fit``, ``kreg.metrics`` and ``kreg.plots``
show the result; ``kreg.register`` aligns one pair; ``kreg.io`` reads and writes images and
transforms; ``kreg.ops`` holds the mathematics.
"""

import contextlib as _contextlib
import os as _os
import sys as _sys

__version__ = "0.1.0"


@_contextlib.contextmanager
def _without_stderr():
    """Silence the process's stderr: TensorFlow's C++ greets there before it can be configured."""
    try:
        _sys.stderr.flush()
        saved = _os.dup(2)
    except (AttributeError, OSError, ValueError):  # no stderr to silence (pythonw, a daemon)
        yield
        return
    try:
        with open(_os.devnull, "wb") as null:
            _os.dup2(null.fileno(), 2)
        yield
    finally:
        _os.dup2(saved, 2)
        _os.close(saved)


if "keras" not in _sys.modules:
    # At level 2 a machine without a GPU is told of a CUDA error; a variable that is set stays.
    _os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _without_stderr():
        import keras as _keras  # noqa: F401

from kreg import (  # noqa: E402
    data,
    groups,
    io,
    layers,
    losses,
    metrics,
    models,
    ops,
    pairwise,
    plots,
    transforms,
)
from kreg.pairwise import Registration, register  # noqa: E402
from kreg.training import RegistrationModel  # noqa: E402

__all__ = [
    "Registration",
    "RegistrationModel",
    "data",
    "groups",
    "io",
    "layers",
    "losses",
    "metrics",
    "models",
    "ops",
    "pairwise",
    "plots",
    "register",
    "transforms",
]
