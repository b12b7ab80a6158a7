import hashlib
import html
import json
import os
import re
import shlex
import signal

import numpy as np
import pytest

from kreg import pairwise, transforms
from kreg.cli import terminal
from kreg.cli.method import Method
from kreg.io import Image, align, load_transform, read, write
from kreg.losses import MINE
from kreg.pairwise.progress import Progress
from tests.cli.conftest import FEW, scene, untouched

ALIGN = ("register", "fixed.png", "moving.png", "--output", "out", *FEW)


def test_a_linked_folder_stays_a_link_and_any_name_of_a_file_will_do(kreg, folder, quick):
    odd = os.fsdecode(b"mo\xe9.png")  # no UTF-8
    (folder / "moving.png").rename(folder / odd)
    (folder / "elsewhere").mkdir()
    (folder / "out").symlink_to("elsewhere")
    code, _, said = kreg(*(odd if word == "moving.png" else word for word in ALIGN))
    assert code in (0, 3), said
    assert (folder / "out").is_symlink()
    text = (folder / "elsewhere" / "result.json").read_text(encoding="utf-8")
    assert json.loads(text)["moving"] == odd
    assert "report.html" in os.listdir(folder / "elsewhere")


def test_leaves_image_transform_and_numbers(kreg, folder, quick):
    code, printed, said = kreg(*ALIGN, "--export=tfm", "--export=nii.gz")
    result = json.loads((folder / "out" / "result.json").read_text(encoding="utf-8"))
    assert code == (0 if result["trusted"] else 3)
    assert printed.startswith("trusted: " if result["trusted"] else "NOT TRUSTED: ")
    assert said == "looking for the transform ...\n"
    written = [
        "report.html",
        "result.json",
        "transform.nii.gz",
        "transform.npz",
        "transform.tfm",
        "warped.png",
    ]
    assert sorted(os.listdir(folder / "out")) == sorted(result["files"]) == written
    # World points are (x, y): columns first.
    matrix = load_transform(folder / "out" / "transform.npz").matrix
    np.testing.assert_allclose(matrix, [[1, 0, -2], [0, 1, 1.5], [0, 0, 1]], atol=0.15)
    np.testing.assert_allclose(result["matrix"], matrix)
    warped = read(folder / "out" / "warped.png").array.astype(float)
    difference = np.abs(warped - scene())[4:-4, 4:-4]
    assert difference.mean() < 4


def test_report_says_how_to_have_the_result_again(kreg, folder, quick):
    mask = np.ones(scene().shape, "uint8")
    mask[:3] = 0
    write(folder / "a mask & more.png", mask)
    printed = kreg(*ALIGN, "--fixed_mask=a mask & more.png")[1]
    assert f"look at it: {os.path.join('out', 'report.html')}\n" in printed
    report = html.unescape((folder / "out" / "report.html").read_text(encoding="utf-8"))
    for name in ("fixed.png", "moving.png", "a mask & more.png"):
        content = (folder / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        assert f"{name}, {len(content)} bytes, SHA-256 {digest}" in report
    (command,) = re.findall(r"kreg (register .*--output=FOLDER)<", report)
    words = shlex.split(command.replace("--report", "--noreport").replace("FOLDER", "again"))
    assert kreg(*words)[0] in (0, 3)
    first, second = (load_transform(folder / name / "transform.npz") for name in ("out", "again"))
    np.testing.assert_array_equal(first.matrix, second.matrix)
    assert sorted(os.listdir(folder / "again")) == ["result.json", "transform.npz", "warped.png"]


def test_machines_get_one_object(kreg, folder, quick):
    code, printed, said = kreg(*ALIGN, "--json")
    found = json.loads(printed)
    stored = json.loads((folder / "out" / "result.json").read_text(encoding="utf-8"))
    assert found == {"output": "out", **stored}
    assert (code == 0) == found["trusted"]
    assert said == ""


def test_a_log_tells_now_and_then_how_far_it_is(kreg, folder, quick, monkeypatch):
    monkeypatch.setattr(terminal, "_APART", 0.0)
    begin, *steps = kreg(*ALIGN)[2].splitlines()
    assert begin == "looking for the transform ..."
    assert steps
    for number, line in enumerate(steps, 1):
        of = " of 8" if number <= 8 else ""  # planned are eight
        assert re.fullmatch(rf"step {number}{of}: similarity [-\d.e]+", line)
    assert kreg(*ALIGN, "--overwrite", "--json")[2] == ""


def test_what_is_not_trusted_is_written_and_has_a_code_of_its_own(kreg, folder, quick):
    noise = np.random.default_rng(5).integers(0, 255, scene().shape).astype("uint8")
    write(folder / "moving.png", noise, overwrite=True)
    code, printed, _ = kreg(*ALIGN)
    assert code == 3
    assert printed.startswith("NOT TRUSTED: ")
    assert (folder / "out" / "transform.npz").exists()


def test_results_are_replaced_when_asked_and_whole(kreg, folder, quick):
    (folder / "out").mkdir()  # an empty folder may be filled
    assert kreg(*ALIGN)[0] in (0, 3)
    with untouched(folder):
        code, _, said = kreg(*ALIGN)
    assert code == 1
    assert "--overwrite" in said
    before = (folder / "out" / "result.json").read_text(encoding="utf-8")
    assert kreg(*ALIGN, "--overwrite", "--export=mat")[0] in (0, 3)
    assert (folder / "out" / "result.json").read_text(encoding="utf-8") != before
    assert sorted(os.listdir(folder)) == ["fixed.png", "moving.png", "out"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(kreg, folder, quick, monkeypatch, number):
    # A registration itself would end here with the last transform.
    step = Progress.step

    def interrupted(self, *args, **kwargs):
        step(self, *args, **kwargs)
        signal.raise_signal(number)

    monkeypatch.setattr(Progress, "step", interrupted)
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with untouched(folder):
        code, printed, said = kreg(*ALIGN)
    assert (code, printed) == (128 + number, "")
    assert said.endswith("\nkreg register: interrupted; nothing was written\n")
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_field_that_itk_cannot_read_is_refused_before_the_work(kreg, folder, monkeypatch):
    seen = passed(monkeypatch)
    sheared = np.array([[1, 0.3, 0], [0, 1, 0], [0, 0, 1]])
    write(folder / "s.npz", Image(scene(), sheared, "mm"))
    command = ("register", "s.npz", "moving.png", "--output=out", *FEW)
    code, printed, said = kreg(*command, "--export=nii.gz")
    assert (code, printed, said.count("\n"), seen) == (1, "", 1, {})
    assert "right angles" in said
    kreg(*command)
    assert seen


def passed(monkeypatch):
    """What reaches `kreg.io.register`, which then fails."""
    seen = {}

    def register(fixed, moving, **options):
        seen.update(options, images=(fixed, moving))
        raise ValueError("seen")

    monkeypatch.setattr(align, "register", register)
    return seen


def test_options_become_objects(kreg, folder, monkeypatch):
    seen = passed(monkeypatch)
    write(folder / "mask.png", (scene() > 100).astype("uint8"))
    kreg(
        *("register", "fixed.png", "moving.png", "--output=out", "--transform=rigid+dense"),
        *("--similarity=mine", "--edges", "--control_spacing=5", "--elastic=0.5", "--fluid=0"),
        *("--fixed_mask=mask.png", "--seed=3", "--start=frames"),
    )
    assert type(seen["transform"].linear.group).__name__ == "Rigid"
    assert seen["transform"].dense == transforms.Dense(5.0, 0.5, 0.0)
    assert isinstance(seen["similarity"], MINE)
    assert isinstance(seen["preparation"], pairwise.EdgeStrength)
    np.testing.assert_array_equal(seen["fixed_mask"].array, scene() > 100)
    assert (seen["start"], seen["seed"], seen["moving_mask"]) == (None, 3, None)


def test_left_out_options_are_those_of_the_library(kreg, folder, monkeypatch):
    seen = passed(monkeypatch)
    kreg("register", "fixed.png", "moving.png", "--output=out")
    assert seen["transform"] == transforms.Linear()
    assert (seen["similarity"], seen["preparation"]) == (None, None)
    assert isinstance(seen["start"], pairwise.MultiStart)
    kreg("register", "fixed.png", "moving.png", "--output=out", "--transform=dense")
    assert seen["transform"] == transforms.Dense()


def test_a_method_can_be_compared_and_kept():
    values = ("affine", None, False, "search", 12.0, 2e-3, 1e-3, 0, (), True)
    assert Method(*values) == Method(*values)
    assert Method(*values).settings()["transform"] == "affine"


def test_warped_images_are_of_a_kind_that_holds_them():
    from kreg.cli.images import suffix_for

    def kind(dtype, path, unit="px", shape=(4, 5)):
        return suffix_for(Image(np.zeros(shape, dtype), unit=unit), path)

    assert kind("uint8", "a.png") == ".png"
    assert kind("uint8", "a.jpg") == ".png"
    assert kind("uint16", "a.png", shape=(4, 5, 3)) == ".tif"
    assert kind("float32", "a.tiff") == ".tiff"
    assert kind("float32", "a.dcm") == ".tif"
    assert kind("uint8", "a.png", "mm") == ".nii.gz"
    assert kind("int16", "A.NII.GZ", "mm", (4, 5, 6)) == ".nii.gz"
    assert kind("int16", "series", "mm", (4, 5, 6)) == ".nii.gz"
