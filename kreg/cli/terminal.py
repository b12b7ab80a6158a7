"""What a person at a terminal, or the reader of a log, sees while a command works."""

import contextlib
import gc
import sys
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from kreg.silence import import_keras

#: Seconds between two lines of a log that tell how far a registration is.
_APART = 10.0
_logged: ContextVar[bool] = ContextVar("logged", default=False)


def is_terminal() -> bool:
    """Whether somebody looks at stderr: bars are shown there, and nowhere else."""
    return bool(getattr(sys.stderr, "isatty", lambda: False)())


@contextlib.contextmanager
def logged(wanted: bool) -> Iterator[None]:
    """Within, what is said goes to stderr without a terminal, too: a log tells that it lives."""
    token = _logged.set(wanted)
    try:
        yield
    finally:
        _logged.reset(token)


def say(text: str) -> None:
    """Tell somebody at a terminal, or the reader of a log, what goes on."""
    if is_terminal() or _logged.get():
        print(text, file=sys.stderr, flush=True)


def steps_told() -> list[Any]:
    """Return the callbacks of a registration that say now and then how far it is.

    At a terminal none: a bar tells it there.
    """
    if is_terminal() or not _logged.get():
        return []
    import keras

    class Told(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.last = time.monotonic()

        def on_epoch_end(self, epoch, logs=None):
            if time.monotonic() - self.last < _APART:
                return
            self.last = time.monotonic()
            done, planned = epoch + 1, self.params["epochs"]
            of = f" of {planned}" if done <= planned else ""  # the last stage may go on
            say(f"step {done}{of}: similarity {logs['similarity']:.4g}")

    return [Told()]


def start_keras() -> None:
    """Import Keras, quietly; say so, as it takes seconds."""
    if "keras" in sys.modules:
        return
    say("starting Keras, which takes some seconds ...")
    # Keras imports these where they are there, for what no command uses: two more seconds. Looking
    # for garbage among what an import leaves for good takes another.
    gc.disable()
    try:
        with _absent("matplotlib", "pandas", "sklearn"):
            import_keras()
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def _absent(*names: str) -> Iterator[None]:
    """Within, modules that are not imported yet cannot be."""
    hidden: dict[str, Any] = {name: None for name in names if name not in sys.modules}
    sys.modules.update(hidden)
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


def counted(items: Iterable[Any], total: int, kind: str) -> Iterator[Any]:
    """Yield the items; tell which of how many it is, and the name where it is a name and more."""
    for number, item in enumerate(items, 1):
        name = f": {item[0]}" if isinstance(item, tuple) else ""
        say(f"{kind} {number} of {total}{name}")
        yield item
