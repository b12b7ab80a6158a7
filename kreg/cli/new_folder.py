"""A folder of results, whole or not at all."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from kreg.io.errors import FileError, reason, refusal

#: Says what a folder of results holds: its own files under "files".
RESULT = "result.json"
_UNFINISHED = ".unfinished"


def check_free(path: Path, overwrite: bool) -> None:
    """Raise `FileError` unless a folder may be made at `path`, or replaced.

    Replaced is nothing but an earlier result: never a folder with files that are not its own.
    """
    if path.exists() and not path.is_dir():
        raise refusal(path, "the name of a folder", "a file", "name another with --output")
    if not path.parent.is_dir():
        raise refusal(path, "a folder that exists", f"no folder '{path.parent}'", "create it")
    names = os.listdir(path) if path.is_dir() else []
    if not names:
        return
    foreign = sorted(set(names) - files_of(path))
    if foreign:
        expected = "a folder with nothing but an earlier result, or none,"
        raise refusal(path, expected, f"one that holds '{foreign[0]}'", "name another")
    if not overwrite:
        raise refusal(path, "no folder yet", "one that exists", "--overwrite replaces it")


def files_of(path: Path) -> set[str]:
    """Return the names of the files that belong to a finished result; none if it is none."""
    try:
        names = json.loads((path / RESULT).read_text(encoding="utf-8"))["files"]
        return {str(name) for name in names}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


@contextlib.contextmanager
def new_folder(path: Path, overwrite: bool, mark: str = "") -> Iterator[Path]:
    """Yield a folder beside `path`, hidden, that takes its name once all went well.

    Args:
        path: what is to become of it.
        overwrite: whether it may replace an earlier result.
        mark: by which `clear_unfinished` knows it.

    Raises:
        FileError: if it exists, or cannot be written.
    """
    path = path.resolve() if path.is_symlink() else path.absolute()
    check_free(path, overwrite)
    unfinished = path.with_name(f".{mark}{secrets.token_hex(6)}{_UNFINISHED}")
    try:
        unfinished.mkdir()
        yield unfinished
        check_free(path, overwrite)  # another process may have been faster
        _to_disk(unfinished)
        _take_the_place(unfinished, path)
    except FileError as error:  # about the folder that the user named
        raise FileError(str(error).replace(str(unfinished), str(path))) from error
    except OSError as error:
        received = reason(error).replace(str(unfinished), str(path))
        remedy = "check the space left and the permissions"
        raise refusal(path, "a folder that can be written", received, remedy) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _to_disk(folder: Path) -> None:
    """Wait until the files are on the disk: a power cut must not leave a name for nothing."""
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def clear_unfinished(parent: Path, mark: str) -> None:
    """Remove the folders of a mark that processes left when they were killed."""
    for path in parent.glob(f".{mark}*{_UNFINISHED}"):
        shutil.rmtree(path, ignore_errors=True)


def _take_the_place(folder: Path, path: Path) -> None:
    if not path.exists():
        folder.rename(path)
        return
    aside = path.with_name(f".{secrets.token_hex(6)}.replaced")
    path.rename(aside)
    try:
        folder.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)
