"""What a command has to say, to people and to machines, and how it ends."""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags

#: Exit codes. 130 is the shell's own for Ctrl-C, 143 for a process that was told to end.
DONE, BAD_INPUT, USAGE, NOT_TRUSTED, INTERRUPTED = 0, 1, 2, 3, 130


class UsageError(Exception):
    """A command line that says too little, too much, or what cannot be."""


def check_finite(values: Any, *names: str) -> None:
    """Raise `UsageError` if options that are numbers are NaN or infinite."""
    for name in names:
        if not math.isfinite(values[name].value):
            raise UsageError(
                f"Expected --{name} to be a finite number. Received: {values[name].value}."
            )


class Outcome(NamedTuple):
    """The result of a command.

    Args:
        values: what ``--json`` prints.
        lines: what is printed otherwise.
        code: the exit code.
    """

    values: dict[str, Any]
    lines: Sequence[str]
    code: int = DONE


def as_json(values: Any) -> str:
    """Return values as JSON: NaN and infinity, which it does not have, as null."""
    plain = _plain(values)
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # the name of a file need not be UTF-8
        return json.dumps(plain, indent=2, allow_nan=False)
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if hasattr(value, "tolist"):  # arrays and numbers of NumPy
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def one_line(error: BaseException) -> str:
    """Return an exception's message as one line, with its name where that is no user's mistake."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (ValueError, OSError, UsageError, flags.Error)):
        return text
    return f"{type(error).__name__}: {text}" if str(error) else text
