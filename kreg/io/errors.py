"""What is wrong with a file, in one line."""

import stat
from pathlib import Path

#: The longest part of a decoder's own message that is repeated.
_LONGEST = 200


class FileError(ValueError):
    """A file that cannot be read or written; the message is one line that says what to do."""


def refusal(path: Path | str, expected: str, received: str, remedy: str = "") -> FileError:
    """Return the error that names the file, what it should hold, what it holds, and the way out."""
    remedy = f"; {remedy}" if remedy else ""
    message = f"Expected {expected} at '{path}'{remedy}. Received: {received}."
    return FileError(" ".join(message.split()))


def missing_package(path: Path | str, package: str, extra: str, what: str) -> FileError:
    """Return the error for a package that an optional format needs."""
    return refusal(path, package, "no such package", f'{what} need it: pip install "kreg[{extra}]"')


def reason(error: BaseException) -> str:
    """Return the last line of an exception's message, or its name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1].rstrip(".") if lines else type(error).__name__
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."


def check_file(path: Path, expected: str) -> None:
    """Raise `FileError` unless there is a file: one that would wait for a pipe never ends."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise refusal(path, expected, "no such file", "check the spelling") from error
    except (OSError, ValueError) as error:
        raise refusal(path, expected, reason(error)) from error
    if not stat.S_ISREG(mode):
        received = "a folder" if stat.S_ISDIR(mode) else "a device or pipe"
        raise refusal(path, expected, received, "name a file")


def check_size(path: Path, promised: int, held: int, compressed: bool) -> None:
    """Raise `FileError` if a file of `held` bytes cannot hold what its header promises.

    DEFLATE packs at most 1032 bytes into one. Told before memory is asked for.
    """
    if promised > held * (1100 if compressed else 1):
        raise refusal(
            path,
            f"{promised} bytes of values, as its header says,",
            f"{held} bytes{', compressed' if compressed else ''}: it is truncated or damaged",
            "copy or export it again",
        )
