"""Image registration for Keras 3.

``kreg.layers`` and ``kreg.losses`` plug into any Keras model, ``kreg.models`` is a zoo of
registration networks, ``kreg.data`` feeds pairs to ``fit``, ``kreg.metrics`` and ``kreg.plots``
show the result; ``kreg.register`` aligns one pair; ``kreg.io`` reads and writes images and
transforms, and ``kreg.report`` puts what they became on a page; ``kreg.ops`` holds the
mathematics. From the shell: ``kreg --help``.
"""

import sys as _sys
from pathlib import Path as _Path

from kreg.version import __version__ as __version__


def _runs_as_command() -> bool:
    """Whether this process is ``kreg`` or ``python -m kreg``, whose help must not wait for Keras.

    Each command then imports the parts that it needs.
    """
    arguments = getattr(_sys, "argv", None) or [""]
    if arguments[0] == "-m":  # while Python looks for the module that it was told to run
        return _sys.orig_argv[-len(arguments)] == "kreg"
    return _Path(arguments[0]).stem == "kreg"


if not _runs_as_command():
    from kreg.silence import import_keras as _import_keras

    _import_keras()

    from kreg import (
        data,
        groups,
        io,
        layers,
        losses,
        machine,
        metrics,
        models,
        ops,
        pairwise,
        plots,
        report,
        transforms,
    )
    from kreg.pairwise import Registration, register
    from kreg.training import RegistrationModel

__all__ = [
    "Registration",
    "RegistrationModel",
    "data",
    "groups",
    "io",
    "layers",
    "losses",
    "machine",
    "metrics",
    "models",
    "ops",
    "pairwise",
    "plots",
    "register",
    "report",
    "transforms",
]
