"""Libraries in C++ that print beside what this process has to say."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator


def import_keras() -> None:
    """Import Keras, which takes seconds, and print nothing; nothing changes where it is there."""
    if "keras" in sys.modules:
        return
    # At level 2 a machine without a GPU is told of a CUDA error; a variable that is set stays.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with without_stderr():  # TensorFlow greets before it can be configured
        import keras  # noqa: F401


class _Stderr:
    """The stderr of the process, silent while somebody asks for that, in whatever thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asking = 0
        self._saved = -1

    def silence(self) -> None:
        """Send it to nowhere."""
        with self._lock:
            self._asking += 1
            if self._asking > 1:
                return
            try:
                sys.stderr.flush()
                self._saved = os.dup(2)
                with open(os.devnull, "wb") as null:
                    os.dup2(null.fileno(), 2)
            except (AttributeError, OSError, ValueError):  # none to silence (pythonw, a daemon)
                self._close()

    def restore(self) -> None:
        """Bring it back, once nobody asks for silence any more."""
        with self._lock:
            self._asking -= 1
            if self._asking == 0 and self._saved >= 0:
                os.dup2(self._saved, 2)
                self._close()

    def _close(self) -> None:
        if self._saved >= 0:
            os.close(self._saved)
        self._saved = -1


_STDERR = _Stderr()


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Silence the process's stderr, what C++ prints there as well."""
    _STDERR.silence()
    try:
        yield
    finally:
        _STDERR.restore()
