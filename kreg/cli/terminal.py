"""What a person at a terminal sees while a command works."""

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
    if "keras" not in sys.modules:
        say("starting Keras, which takes some seconds ...")
    import_keras()


def counted(items: Iterable[Any], total: int, name: str) -> Iterator[Any]:
    """Yield the items; at a terminal, tell which of how many it is."""
    for number, item in enumerate(items, 1):
        say(f"{name} {number} of {total}")
        yield item
