"""What a person at a terminal sees while a command works."""

import contextlib
import gc
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from kreg.silence import import_keras


def is_terminal() -> bool:
    """Whether somebody looks at stderr: bars are shown there, and nowhere else."""
    return bool(getattr(sys.stderr, "isatty", lambda: False)())


def say(text: str) -> None:
    """Tell somebody at a terminal what goes on."""
    if is_terminal():
        print(text, file=sys.stderr, flush=True)


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


def counted(items: Iterable[Any], total: int, name: str) -> Iterator[Any]:
    """Yield the items; at a terminal, tell which of how many it is."""
    for number, item in enumerate(items, 1):
        say(f"{name} {number} of {total}")
        yield item
