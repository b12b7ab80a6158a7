"""A folder of results, whole or not at all."""

import contextlib
import hashlib
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from kreg.io.errors import FileError, reason, refusal

#: Says what a folder of results holds: its own files under "files".
RESULT = "result.json"
_UNFINISHED = ".unfinished"
#: What results hold: the files of one whose own list is damaged.
_OWN = (RESULT, "report.html", "warped.*", "transform.*", "model.keras", "predictions.npz")


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
        received = f"one that holds '{foreign[0]}'"
        received += f", and a damaged {RESULT}" if is_damaged(path) else ""
        raise refusal(path, expected, received, "name another")
    if not overwrite:
        raise refusal(path, "no folder yet", "one that exists", "--overwrite replaces it")


def result_of(path: Path) -> dict[str, Any] | None:
    """Return what a folder says of the finished result in it; None if there is none."""
    try:
        result = json.loads((path / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(result, dict) and isinstance(result.get("files"), list)
    return result if whole else None


def is_damaged(path: Path) -> bool:
    """Whether a folder has a result.json that says nothing of a result."""
    return (path / RESULT).is_file() and result_of(path) is None


def files_of(path: Path) -> set[str]:
    """Return the names of the files that belong to a result, a damaged one too; none if none."""
    result = result_of(path)
    if result is not None:
        return {str(name) for name in result["files"]}
    if not is_damaged(path):
        return set()
    names = [one.name for one in path.iterdir() if one.is_file()]
    return {name for name in names if any(fnmatch(name, pattern) for pattern in _OWN)}


@contextlib.contextmanager
def new_folder(path: Path, overwrite: bool, mark: str = "") -> Iterator[Path]:
    """Yield a folder beside `path`, hidden, that takes its name once all went well.

    Those that killed processes left there are removed.

    Args:
        path: what is to become of it.
        overwrite: whether it may replace an earlier result.
        mark: by which `clear_unfinished` knows it.

    Raises:
        FileError: if it exists, or cannot be written.
    """
    try:
        path = path.resolve(strict=False) if path.is_symlink() else path.absolute()
    except (OSError, RuntimeError) as error:  # a link to itself
        raise refusal(path, "the name of a folder", reason(error), "name another") from error
    check_free(path, overwrite)
    owner = f"{_host()}-{os.getpid()}"
    unfinished = path.with_name(f".{mark}{secrets.token_hex(6)}-{owner}{_UNFINISHED}")
    try:
        _clear_dead(path.parent)
        unfinished.mkdir()
        yield unfinished
        check_free(path, overwrite)  # another process may have been faster
        _to_disk(unfinished)
        _take_the_place(unfinished, path, overwrite)
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


def _host() -> str:
    """Return what tells the process numbers of this machine, and container, from all others."""
    told = [platform.node()]
    with contextlib.suppress(OSError):  # not on every system
        told.append(Path("/etc/machine-id").read_text(encoding="utf-8"))
        told.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]


def _clear_dead(parent: Path) -> None:
    """Remove the unfinished folders of processes of this machine that are no more."""
    for path in parent.glob(f".*-{_host()}-*{_UNFINISHED}"):
        number = path.name.removesuffix(_UNFINISHED).rpartition("-")[2]
        if number.isdecimal() and not _lives(int(number)):
            shutil.rmtree(path, ignore_errors=True)


def _lives(number: int) -> bool:
    """Whether there may be a process of that number."""
    if os.name != "posix":  # elsewhere asking would end it
        return True
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _take_the_place(folder: Path, path: Path, overwrite: bool) -> None:
    try:
        folder.rename(path)  # where nothing is, or an empty folder
    except OSError:
        if not overwrite or not path.is_dir():
            raise
    else:
        return
    aside = path.with_name(f".{secrets.token_hex(6)}.replaced")
    path.rename(aside)
    try:
        folder.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)
