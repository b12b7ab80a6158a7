import os
import subprocess
import sys
from pathlib import Path

import pytest

from kreg.cli import new_folder as module
from kreg.cli.new_folder import RESULT, new_folder
from kreg.io import FileError

ROOT = Path(__file__).parents[2]
KILLED = """
import os, signal
from pathlib import Path
from kreg.cli.new_folder import new_folder
with new_folder(Path("out"), False) as folder:
    (folder / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_killed_processes_left_is_removed(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, env=environment, check=False)
    (left,) = tmp_path.iterdir()
    assert list(left.iterdir()) == [left / "half"]
    # Of the same process, living; of another machine; of older versions: nobody knows.
    foreign = left.name.replace(module._host(), "0" * 12)
    kept = [f".abc-{module._host()}-{os.getpid()}.unfinished", foreign, ".abc.unfinished", ".abc"]
    for name in kept:
        (tmp_path / name).mkdir()
    with new_folder(tmp_path / "out", False) as folder:
        assert not left.exists()
        assert {path.name for path in tmp_path.iterdir()} == {*kept, folder.name}
        with new_folder(tmp_path / "other", False):
            assert folder.exists()
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "out", "other"}


def test_what_is_finished_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    out, checked = tmp_path / "out", module.check_free

    def slower(path, overwrite):
        checked(path, overwrite)
        if list(tmp_path.glob(".*")):  # the second time
            (path / "whole").mkdir(parents=True)

    monkeypatch.setattr(module, "check_free", slower)
    with pytest.raises(FileError, match="out") as caught, new_folder(out, False) as new:
        (new / "half").touch()
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path / "out") == ["whole"]
    assert os.listdir(tmp_path) == ["out"]


def test_a_damaged_result_is_replaced_when_asked_but_not_what_is_not_its_own(tmp_path):
    (tmp_path / "out" / "warped.d").mkdir(parents=True)
    (tmp_path / "out" / RESULT).write_text("{")
    with (
        pytest.raises(FileError, match=r"warped\.d', and a damaged"),
        new_folder(tmp_path / "out", True),
    ):
        pass
    (tmp_path / "out" / "warped.d").rmdir()
    (tmp_path / "out" / "warped.png").touch()
    with pytest.raises(FileError, match="--overwrite"), new_folder(tmp_path / "out", False):
        pass
    with new_folder(tmp_path / "out", True) as new:
        (new / "whole").touch()
    assert os.listdir(tmp_path / "out") == ["whole"]
