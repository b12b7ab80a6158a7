"""What is malformed ends with one clear line, an exit code, and nothing left behind."""

import os
import resource
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kreg.io import Transform, read, save_transform, write
from tests.cli.conftest import FEW, scene, untouched

ALIGN = ("register", "fixed.png", "bad", "--output", "out")


def nifti(shape):
    """A NIfTI file of 1000 bytes of values whose header says more."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 64, 64)  # float64
    struct.pack_into("<8f", header, 76, *[1.0] * 8)
    struct.pack_into("<f", header, 108, 352.0)
    header[344:348] = b"n+1\0"
    return bytes(header) + bytes(1000)


def cut(name, share=0.6):
    """A file of the pair's kind that ends too early."""

    def make(folder):
        whole = folder / f"whole{Path(name).name}"
        write(whole, scene())
        (folder / name).write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
        whole.unlink()

    return make


def holds(name, content):
    """A file of bytes, of text, or of an image."""

    def make(folder):
        if isinstance(content, (bytes, str)):
            raw = content if isinstance(content, bytes) else content.encode()
            (folder / name).write_bytes(raw)
        else:
            write(folder / name, content)

    return make


def transform(folder):
    grid = read(folder / "fixed.png").grid
    save_transform(folder / "t.npz", Transform(np.eye(3), grid, grid))


def unfinished_zoo(folder):
    for side in ("fixed", "moving"):
        (folder / "pairs" / side).mkdir(parents=True)
    write(folder / "pairs" / "fixed" / "a.png", scene())
    write(folder / "pairs" / "moving" / "b.png", scene())


def unequal_zoo(folder):
    for side in ("fixed", "moving"):
        (folder / "pairs" / side).mkdir(parents=True)
        write(folder / "pairs" / side / "a.png", scene())
    write(folder / "pairs" / "fixed" / "b.png", scene())
    write(folder / "pairs" / "moving" / "b.png", scene(shape=(24, 20)))


def foreign(folder):
    (folder / "out").mkdir()
    (folder / "out" / "thesis.txt").write_text("years of work")


NAN = scene().astype("float32")
NAN[3, 4] = np.nan
VOLUME = np.random.default_rng(0).integers(0, 9, (6, 7, 8)).astype("uint8")
POINTS = "x,y\n1,2\n3,4\n"

TABLE = ("apply", "t.npz", "p.csv", "--output", "o.csv")


def table(content):
    """A transform, and a table of points."""

    def make(folder):
        transform(folder)
        raw = content if isinstance(content, bytes) else content.encode()
        (folder / "p.csv").write_bytes(raw)

    return make


def to_infinity(folder):
    """A homography whose inverse carries no point from x = 10."""
    grid = read(folder / "fixed.png").grid
    matrix = np.eye(3)
    matrix[2, 0] = 0.1
    save_transform(folder / "t.npz", Transform(matrix, grid, grid))
    (folder / "p.csv").write_text("x,y\n1,1\n10,0\n")


def extra_member(folder):
    np.savez(folder / "a.npz", moving=scene()[None], fixed=scene()[None])
    with zipfile.ZipFile(folder / "a.npz", "a") as archive:
        archive.writestr("readme.txt", "hello")


def detached(suffix):
    """A header of ITK whose values are to come from a pipe."""

    def make(folder):
        text = {
            ".mhd": "ObjectType = Image\nNDims = 2\nDimSize = 8 8\nElementType = MET_UCHAR\n"
            "ElementDataFile = pipe\n",
            ".nhdr": "NRRD0004\ntype: uchar\ndimension: 2\nsizes: 8 8\nencoding: raw\n"
            "data file: pipe\n\n",
        }[suffix]
        (folder / f"a{suffix}").write_text(text)
        os.mkfifo(folder / "pipe")

    return make


def loop(folder):
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")


#: name -> what is made beforehand, the command line ("bad" is the first file made), words of the
#: message.
CASES = {
    # images
    "no such file": (None, ("register", "fixed.png", "none.png", "--output", "out"), "no such"),
    "a folder": (lambda f: (f / "dir").mkdir(), ("info", "dir"), "without files"),
    "an empty file": (holds("a.png", b""), ("info", "a.png"), "empty file"),
    "truncated PNG": (cut("a.png"), ALIGN, "a.png"),
    "truncated TIFF": (cut("a.tif"), ALIGN, "a.tif"),
    "truncated NIfTI": (cut("a.nii"), ALIGN, "truncated"),
    "truncated NIfTI, packed": (cut("a.nii.gz"), ALIGN, "a.nii.gz"),
    "truncated npz": (cut("a.npz"), ALIGN, "a.npz"),
    "text named .nii.gz": (holds("a.nii.gz", "no image\n"), ALIGN, "a.nii.gz"),
    "text named .png": (holds("a.png", "no image\n"), ALIGN, "a.png"),
    "a huge header": (holds("a.nii", nifti((30000, 30000, 30000))), ALIGN, "truncated"),
    "another suffix": (holds("a.docx", "PK"), ALIGN, "suffix"),
    "one pixel": (holds("a.png", scene()[:1, :1]), ALIGN, "2 voxels"),
    "one row": (holds("a.png", scene()[:1]), ALIGN, "2 voxels"),
    "NaN": (holds("a.npy", NAN), ALIGN, "1 NaN"),
    "all black": (holds("a.png", 0 * scene()), ALIGN, "0 everywhere"),
    "all NaN": (holds("a.npy", np.full((9, 9), np.nan)), ALIGN, "81 NaN"),
    "a volume and a picture": (holds("a.npy", VOLUME), ALIGN, "both 2-D or both 3-D"),
    "homography in 3-D": (
        holds("a.npy", VOLUME),
        ("register", "a.npy", "a.npy", "--output", "out", "--transform", "homography"),
        "2 dimensions",
    ),
    "a mask of another size": (
        holds("a.png", scene()[:-1]),
        ("register", "fixed.png", "moving.png", "--output", "out", "--fixed_mask", "a.png"),
        "of its image",
    ),
    "an empty mask": (
        holds("a.png", 0 * scene()),
        ("register", "fixed.png", "moving.png", "--output", "out", "--moving_mask", "a.png"),
        "0 everywhere",
    ),
    # where to write
    "no folder to write into": (None, (*ALIGN[:2], "moving.png", "--output", "no/out"), "create"),
    "a file as the folder": (
        None,
        (*ALIGN[:2], "moving.png", "--output", "fixed.png"),
        "name of a folder",
    ),
    "a folder with other files": (
        foreign,
        (*ALIGN[:2], "moving.png", "--output", "out", "--overwrite"),
        "thesis.txt",
    ),
    "a file that exists": (
        transform,
        ("apply", "t.npz", "moving.png", "--output", "fixed.png"),
        "--overwrite",
    ),
    # transforms and points
    "no transform": (holds("a.npz", scene()), ("apply", "a.npz", "fixed.png", "--output", "o.png"),
                     "transform that kreg saved"),
    "a truncated transform": (
        lambda f: (transform(f), (f / "t.npz").write_bytes((f / "t.npz").read_bytes()[:900])),
        ("apply", "t.npz", "fixed.png", "--output", "o.png"),
        "t.npz",
    ),
    "a result without a transform": (
        foreign, ("apply", "out", "fixed.png", "--output", "o.png"), "no such file"
    ),
    "a volume for a plane": (
        lambda f: (transform(f), write(f / "a.npy", VOLUME)),
        ("apply", "t.npz", "a.npy", "--output", "o.npy"),
        "2 dimensions",
    ),
    "wrong columns": (
        lambda f: (transform(f), (f / "p.csv").write_text("row,column\n1,2\n")),
        ("apply", "t.npz", "p.csv", "--output", "o.csv"),
        "columns x, y",
    ),
    "a word for a number": (
        lambda f: (transform(f), (f / "p.csv").write_text("x,y\n1,two\n")),
        ("apply", "t.npz", "p.csv", "--output", "o.csv"),
        "'two' in row 1",
    ),
    "a row too short": (
        lambda f: (transform(f), (f / "p.csv").write_text("x,y\n1\n")),
        ("apply", "t.npz", "p.csv", "--output", "o.csv"),
        "1 values in row 1",
    ),
    "bytes for a table": (
        lambda f: (transform(f), (f / "p.csv").write_bytes(b"x,y\n\xff\xfe\x00")),
        ("apply", "t.npz", "p.csv", "--output", "o.csv"),
        "p.csv",
    ),
    "semicolons": (table("x;y\n1,5;2,5\n"), TABLE, "commas between values"),
    "tabs": (table("x\ty\n1\t2\n"), TABLE, "apart by tabs"),
    "UTF-16": (table("x,y\n1,2\n".encode("utf-16")), TABLE, "save it as UTF-8"),
    "no header": (table("10,10\n20,20\n"), TABLE, "add the header. Received: '10,10'"),
    "a column twice": (table("x,y,X\n1,2,9\n"), TABLE, "'x' twice"),
    "an underscore in a number": (table("x,y\n1_0,2\n"), TABLE, "'1_0' in row 1"),
    "a number beyond all": (table("x,y\n1e400,2\n"), TABLE, "infinity"),
    "a quote that does not end": (table('x,y\n"1,2\n'), TABLE, "p.csv"),
    "a point without a place": (to_infinity, TABLE, "the first in row 2"),
    "landmarks without a place": (
        lambda f: (to_infinity(f), (f / "p.csv").write_text("x,y\n1,1\n-10,0\n")),
        ("evaluate", "--transform=t.npz", "--fixed_points=p.csv", "--moving_points=p.csv"),
        "the first in row 2",
    ),
    # what never ends, and what leads nowhere
    "a pipe for points": (
        lambda f: (transform(f), os.mkfifo(f / "p.csv")), TABLE, "a device or pipe"
    ),
    "a pipe for a list": (
        lambda f: os.mkfifo(f / "p.csv"), ("batch", "p.csv", "--output", "out"), "device or pipe"
    ),
    "a pipe for a transform": (
        lambda f: os.mkfifo(f / "t.npz"),
        ("apply", "t.npz", "fixed.png", "--output", "o.png"),
        "device or pipe",
    ),
    "a pipe to look at": (lambda f: os.mkfifo(f / "t.npz"), ("info", "t.npz"), "device or pipe"),
    "a pipe to train on": (
        lambda f: os.mkfifo(f / "t.npz"), ("train", "t.npz", "--output", "out"), "device or pipe"
    ),
    "a pipe behind a link": (lambda f: (f / "a.png").symlink_to("/dev/null"), ALIGN, "or pipe"),
    "a link to itself": (loop, ("info", "a"), "symbolic links"),
    "a link to itself as the folder": (
        loop, ("register", "fixed.png", "moving.png", "--output", "a", *FEW), "name another"
    ),
    "a link to nothing as the file": (
        lambda f: (transform(f), (f / "o.png").symlink_to("nowhere.png")),
        ("apply", "t.npz", "moving.png", "--output", "o.png"),
        "--overwrite",
    ),
    # arrays
    "Python objects": (
        lambda f: np.save(f / "a.npy", np.array([{1: 2}], object), allow_pickle=True),
        ALIGN,
        "never loaded",
    ),
    "two arrays": (
        lambda f: np.savez(f / "a.npz", one=scene(), two=scene()), ALIGN, "one, two"
    ),
    "five axes": (
        lambda f: np.save(f / "a.npy", np.ones((2, 4, 4, 4, 4))), ALIGN, "(2, 4, 4, 4, 4)"
    ),
    "another unit": (
        lambda f: np.savez(f / "a.npz", array=scene(), unit="inch"), ALIGN, "'inch'"
    ),
    "values beyond float32": (holds("a.npy", scene() * 1e300), ALIGN, "scale them"),
    "infinity": (holds("a.npy", np.where(scene() > 250, np.inf, scene())), ALIGN, "infinite"),
    "a size of zero": (holds("a.nii", nifti((10, 0, 10))), ALIGN, "(10, 0, 10)"),
    "a size below zero": (holds("a.nii", nifti((10, -5, 10))), ALIGN, "a.nii"),
    "a foreign member": (
        extra_member, ("train", "a.npz", "--output", "out"), "called moving and fixed"
    ),
    "a result of others": (
        lambda f: ((f / "net").mkdir(), (f / "net" / "result.json").write_text('{"files": [1]}')),
        ("info", "net"),
        "lacks parts",
    ),
    # evaluate
    "infinite labels": (
        holds("a.npy", np.where(scene() > 250, np.inf, 1.0)),
        ("evaluate", "--fixed_labels", "a.npy", "--moving_labels", "a.npy"),
        "1 to inf",
    ),
    "unequal landmarks": (
        lambda f: [(f / name).write_text(text) for name, text in
                   (("a.csv", POINTS), ("b.csv", POINTS + "5,6\n"))],
        ("evaluate", "--fixed_points", "a.csv", "--moving_points", "b.csv"),
        "as many landmarks",
    ),
    "unequal sizes": (
        holds("a.png", scene()[:-1]),
        ("evaluate", "--fixed", "fixed.png", "--moving", "a.png"),
        "--transform",
    ),
    "labels that are none": (
        holds("a.npy", scene() + 0.5),
        ("evaluate", "--fixed_labels", "a.npy", "--moving_labels", "a.npy"),
        "whole numbers",
    ),
    # batch
    "a list without columns": (
        holds("p.csv", "a,b\n1,2\n"), ("batch", "p.csv", "--output", "out"), "fixed and moving"
    ),
    "a list without rows": (
        holds("p.csv", "fixed,moving\n"), ("batch", "p.csv", "--output", "out"), "1 lines"
    ),
    "a name twice": (
        holds("p.csv", "name,fixed,moving\na,fixed.png,moving.png\na,fixed.png,moving.png\n"),
        ("batch", "p.csv", "--output", "out"),
        "'a' in row 2",
    ),
    "a name that leads away": (
        holds("p.csv", "name,fixed,moving\n../a,fixed.png,moving.png\n"),
        ("batch", "p.csv", "--output", "out"),
        "'../a' in row 1",
    ),
    # train and predict
    "no pairs": (None, ("train", ".", "--output", "out"), "two folders moving and fixed"),
    "a file without partner": (
        unfinished_zoo, ("train", "pairs", "--output", "out"), "'a' without a partner"
    ),
    "pairs of unequal sizes": (
        unequal_zoo, ("train", "pairs", "--output", "out", "--epochs", "1"), "(24, 28, 1)"
    ),
    "arrays of other names": (
        holds("a.npz", scene()), ("train", "a.npz", "--output", "out"), "called moving and fixed"
    ),
    "no model": (
        lambda f: (unequal_zoo(f), (f / "m.keras").write_text("no model")),
        ("predict", "m.keras", "pairs", "--output", "out"),
        "m.keras",
    ),
}  # fmt: skip


def refused(result, folder, words, code=1):
    """One line on stderr, but for what goes on until then, nothing on stdout."""
    found, printed, said = result
    assert (found, printed) == (code, "")
    said = said.removeprefix("looking for the transform ...\n")
    assert said.count("\n") == 1
    assert said.startswith("kreg ")
    assert "Traceback" not in said
    assert words in said, said
    assert len(said) < 800


@pytest.mark.parametrize("name", CASES)
def test_malformed_input_ends_with_one_line(kreg, folder, name):
    make, arguments, words = CASES[name]
    before = set(os.listdir(folder))
    if make is not None:
        make(folder)
    made = sorted(set(os.listdir(folder)) - before)
    arguments = [made[0] if argument == "bad" else argument for argument in arguments]
    with untouched(folder):
        refused(kreg(*arguments), folder, words)


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_values_from_a_pipe_are_not_waited_for(kreg, folder, suffix):
    pytest.importorskip("SimpleITK")
    detached(suffix)(folder)
    refused(kreg("info", f"a{suffix}"), folder, "device or pipe")


@pytest.mark.parametrize("dtype", ["float16", ">f4", "longdouble"])
def test_unusual_numbers_are_carried_along(kreg, folder, dtype):
    transform(folder)
    np.save(folder / "a.npy", scene().astype(dtype))
    assert kreg("apply", "t.npz", "a.npy", "--output", "o.npy")[0] == 0
    np.testing.assert_array_equal(read(folder / "o.npy").array, scene())


def test_a_folder_that_cannot_be_written(kreg, folder, monkeypatch):
    def denied(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with untouched(folder):
        for command in (("register", "fixed.png", "moving.png"), ("batch", "p.csv")):
            (folder / "p.csv").write_text("fixed,moving\nfixed.png,moving.png\n")
            refused(kreg(*command, "--output", "out"), folder, "Permission denied")
        (folder / "p.csv").unlink()


def test_a_file_that_may_not_be_read(kreg, folder, monkeypatch):
    def denied(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with untouched(folder):
        refused(kreg("info", "fixed.png"), folder, "permission denied")


@pytest.mark.parametrize("command", ["register", "apply"])
def test_a_full_disk(kreg, folder, quick, command):
    transform(folder)
    write(folder / "large.png", np.random.default_rng(0).integers(0, 255, (90, 90)).astype("uint8"))
    arguments = {
        "register": ("register", "fixed.png", "moving.png", "--output", "out", *FEW),
        "apply": ("apply", "t.npz", "large.png", "--like", "large.png", "--output", "o.png"),
    }[command]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with untouched(folder):
            result = kreg(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    refused(result, folder, "check the space left")
    assert "unfinished" not in result[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "expected a command"),
        (("registre", "a", "b"), "did you mean register"),
        (("register", "fixed.png"), "Expected two images"),
        (("register", "fixed.png", "moving.png"), "--output missing"),
        (("register", "a", "b", "--output", "o", "--transform", "bent"), "'bent'"),
        (("register", "a", "b", "--output", "o", "--transform", "dense+rigid"), "'dense+rigid'"),
        (("register", "a", "b", "--output", "o", "--similarity", "ssd"), "similarity"),
        (("register", "a", "b", "--output", "o", "--speed", "high"), "speed"),
        (("register", "a", "b", "--output", "o", "--seed", "one"), "seed"),
        (("register", "a", "b", "--output", "o", "--export=tfm", "--transform=dense"), "nii.gz"),
        (("register", "a", "b", "--output", ""), "--output missing"),
        (("register", "a", "b", "--output=o", "--elastic=nan"), "--elastic to be a finite"),
        (("register", "a", "b", "--output=o", "--control_spacing=inf"), "finite number"),
        (("train", "a", "--output=o", "--learning_rate=inf"), "--learning_rate to be a finite"),
        (("apply", "t.npz", "a.png", "--output", "b.csv"), "points"),
        (("evaluate", "--fixed", "fixed.png"), "half of --fixed"),
        (("train", "--output", "o"), "Expected DATA"),
    ],
)
def test_wrong_usage_is_told_from_bad_input(kreg, folder, arguments, words):
    code, printed, said = kreg(*arguments)
    assert (code, printed, said.count("\n")) == (2, "", 1)
    assert words in said


def test_tracebacks_are_shown_when_asked_for(kreg):
    code, _, said = kreg("info", "none.png", "--verbose")
    assert code == 1
    assert "Traceback" in said
    assert said.splitlines()[-1].startswith("kreg info: ")


def test_machines_are_told_of_errors_as_well(kreg):
    import json

    code, printed, said = kreg("info", "none.png", "--json")
    found = json.loads(printed)
    assert found["exit_code"] == code == 1
    assert f"kreg info: {found['error']}\n" == said


def test_a_bug_is_one_line_too(kreg, monkeypatch):
    from kreg.cli import info

    def broken(arguments, values):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(info, "run", broken)
    code, _, said = kreg("info", "fixed.png")
    assert (code, said) == (1, "kreg info: ZeroDivisionError: division by zero\n")
