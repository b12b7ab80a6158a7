import contextlib

import numpy as np
import pytest
from scipy import ndimage

from kreg.cli import main
from kreg.io import align, write
from kreg.pairwise import CoarseToFine, register

SHAPE = (24, 28)


def scene(shift=(0.0, 0.0), shape=SHAPE):
    """Blurred noise, moved: scene(s)(x) = scene(x - s), uint8."""
    noise = np.random.default_rng(0).normal(size=(64, 64))
    smooth = ndimage.gaussian_filter(noise, 2)
    smooth = 255 * (smooth - smooth.min()) / np.ptp(smooth)
    points = np.indices(shape).astype(float)
    points += np.reshape([16, 16], (2, 1, 1)) - np.reshape(shift, (2, 1, 1))
    return np.rint(ndimage.map_coordinates(smooth, points, order=1)).astype("uint8")


@pytest.fixture
def folder(tmp_path):
    """A folder with an awkward name, and a pair: moving(x) = fixed(x - s), s = (1.5, -2) pixels."""
    path = tmp_path / "ünï cödé – 画像 #1"
    path.mkdir()
    write(path / "fixed.png", scene())
    write(path / "moving.png", scene((1.5, -2.0)))
    return path


@pytest.fixture
def kreg(folder, monkeypatch, capsys):
    """kreg("info", "fixed.png") -> code, stdout, stderr, as from a shell within the folder."""
    monkeypatch.chdir(folder)

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def quick(monkeypatch):
    """Few steps, on the finest level alone: one function to compile."""

    def few(*images, **options):
        return register(*images, **options, schedule=CoarseToFine(steps=(0, 0, 8)))

    monkeypatch.setattr(align.pairwise, "register", few)


#: What makes a registration of the pair quick, and what it finds then.
FEW = ("--start=frames", "--transform=translation")


@contextlib.contextmanager
def untouched(folder):
    """Nothing in the folder changes within."""
    before = {path: path.lstat().st_mtime_ns for path in folder.rglob("*") if not path.is_dir()}
    folders = {path for path in folder.rglob("*") if path.is_dir()}
    yield
    after = {path: path.lstat().st_mtime_ns for path in folder.rglob("*") if not path.is_dir()}
    assert after == before
    assert {path for path in folder.rglob("*") if path.is_dir()} == folders
