import json
import os
import re
import shutil

import numpy as np
import pytest

from kreg.cli.images import read_image
from kreg.io import Grid, Image, Transform, read, save_transform, write
from tests.cli.conftest import SHAPE, scene


def test_says_what_an_image_is(kreg, folder):
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = 5, 6, 7
    values = np.arange(4 * 5 * 6, dtype="float32").reshape(4, 5, 6)
    values[0, 0, 0] = np.nan
    write(folder / "a.nii.gz", Image(values, affine, "mm"))
    code, printed, said = kreg("info", "a.nii.gz", "--json")
    found = json.loads(printed)
    assert (code, said) == (0, "")
    assert (found["sizes"], found["spacing"], found["unit"]) == ([4, 5, 6], [2, 3, 4], "mm")
    assert (found["axes"], found["first_voxel"]) == ("LPS", [5, 6, 7])
    assert (found["lowest"], found["highest"], found["nan_or_infinite"]) == (1, 119, 1)
    assert "4 5 6" in kreg("info", "a.nii.gz")[1]


def test_says_what_a_transform_is(kreg, folder):
    grid = read(folder / "fixed.png").grid
    field = np.zeros((*SHAPE, 2), "float32")
    field[0, 0] = 3, 4
    save_transform(folder / "t.npz", Transform(np.eye(3), grid, grid, field))
    found = json.loads(kreg("info", "t.npz", "--json")[1])
    assert (found["kind"], found["fixed_sizes"]) == ("transform", list(SHAPE))
    assert found["displacement"]["largest"] == 5
    printed = kreg("info", "t.npz")[1]
    assert "after a displacement" in printed
    assert "world points (x, y), fixed to moving, in px\n" in printed


def test_displacements_are_told_in_the_unit_of_the_fixed_image(kreg, folder):
    fixed = Grid((6, 7), np.array([[0, 2.0, 0], [0.5, 0, 0], [0, 0, 1]]), "mm")
    field = np.zeros((6, 7, 2), "float32")
    field[2, 3] = 12, 4  # 6 mm along the first axis, 8 mm along the second
    save_transform(
        folder / "t.npz", Transform(np.eye(3), fixed, Grid((9, 9), np.eye(3), "px"), field)
    )
    assert "fixed to moving, in mm to px\n" in kreg("info", "t.npz")[1]
    found = json.loads(kreg("info", "t.npz", "--json")[1])["displacement"]
    assert found["largest"] == pytest.approx(10.0)
    assert found["mean"] == pytest.approx(10.0 / 42)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (
            {"files": ["model.keras"], "settings": {"model": "dirnet"}},
            "a trained dirnet: model.keras",
        ),
        ({"files": ["a", "b"], "pairs": []}, "predictions: a b"),
    ],
)
def test_results_of_networks_are_told(kreg, folder, result, words):
    (folder / "net").mkdir()
    (folder / "net" / "result.json").write_text(json.dumps(result), encoding="utf-8")
    assert kreg("info", "net") == (0, f"{words}\n", "")


SUMMARY = """name,fixed,moving,state,similarity,seconds,reason
a,f.png,a.png,done,0.5,2.5,fits
b,f.png,b.png,failed,,,no such file
c,f.png,c.png,not trusted,0.1,3.0,it still moved
d,f.png,d.png,waiting,,,
"""


@pytest.fixture
def results(folder):
    """The folder of a batch, with a summary and the results that it lists."""
    path = folder / "all"
    path.mkdir()
    (path / "summary.csv").write_text(SUMMARY, encoding="utf-8")
    common = {"files": ["result.json"], "settings": {}, "fixed": "f.png"}
    for name, trusted, similarity, seconds, reason in (
        ("a", True, 0.5, 2.5, "fits"),
        ("c", False, 0.1, 3.0, "it still moved"),
    ):
        told = {"moving": f"{name}.png", "trusted": trusted, "similarity_after": similarity}
        told |= {"seconds": seconds, "reason": reason}
        (path / name).mkdir()
        (path / name / "result.json").write_text(json.dumps(common | told), encoding="utf-8")
    return path


def test_a_batch_is_told_pair_by_pair(kreg, results):
    code, printed, said = kreg("info", "all")
    assert (code, said) == (0, "")
    first, *others = printed.splitlines()
    listed = os.path.join("all", "summary.csv")
    assert first == f"1 done, 1 not trusted, 1 failed, 1 waiting, of 4 pairs: {listed}"
    assert others == ["  failed: b: no such file", "  not trusted: c: it still moved"]
    found = json.loads(kreg("info", "all", "--json")[1])
    assert (found["kind"], found["done"], found["waiting"]) == ("batch", 1, 1)
    assert found["pairs"][0]["similarity"] == 0.5
    assert "seconds" not in found["pairs"][1]


@pytest.mark.parametrize("damage", ["deleted", "damaged", "of other images", "no number"])
def test_what_a_batch_has_lost_is_not_done(kreg, results, damage):
    path = results / "a" / "result.json"
    text = path.read_text(encoding="utf-8")
    if damage == "deleted":
        shutil.rmtree(results / "a")
    elif damage == "damaged":
        path.write_text(text[:40], encoding="utf-8")
    elif damage == "of other images":
        path.write_text(text.replace("a.png", "e.png"), encoding="utf-8")
    else:
        path.write_text(text.replace("0.5", '"half"'), encoding="utf-8")
    code, printed, _ = kreg("info", "all")
    assert (code, printed.split(",")[0]) == (0, "0 done")
    assert "2 waiting" in printed
    assert "waiting: a: it was done, and its folder holds no finished result" in printed


def test_what_a_killed_batch_has_finished_is_done(kreg, results):
    text = SUMMARY.replace("not trusted,0.1,3.0,it still moved", "waiting,,,")
    (results / "summary.csv").write_text(text, encoding="utf-8")
    found = json.loads(kreg("info", "all", "--json")[1])
    assert (found["done"], found["not_trusted"], found["waiting"]) == (1, 1, 1)
    assert found["pairs"][2]["reason"] == "it still moved"


def test_a_summary_of_another_program_is_not_taken_for_one(kreg, folder):
    (folder / "scan").mkdir()
    (folder / "scan" / "summary.csv").write_text("name,weight\na,70\n", encoding="utf-8")
    code, _, said = kreg("info", "scan")
    assert (code, said.count("\n")) == (1, 1)
    assert "DICOM" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SUMMARY.replace("0.5", "half"), "a number as similarity.*'half' in row 1"),
        (SUMMARY.replace("a,f", ",f"), "a name.*row 1"),
        (SUMMARY.replace("failed", "finished"), "a state, done.*'finished' in row 2"),
        (SUMMARY.replace("failed", ""), "a state, done.*'' in row 2"),
        (SUMMARY[:140], "values in row"),
        (SUMMARY[:20], "lines"),
        (SUMMARY[:55], "2 values in row 1"),
        ("", "0 lines"),
        ("\0" * 300, "the summary of a batch|the columns"),
        (SUMMARY.replace(",", ";"), "semicolons"),
    ],
)
def test_a_damaged_summary_is_refused_by_its_name(kreg, results, text, words):
    (results / "summary.csv").write_text(text, encoding="utf-8")
    code, printed, said = kreg("info", "all")
    assert (code, printed, said.count("\n")) == (1, "", 1)
    assert os.path.join("all", "summary.csv") in said
    assert re.search(words, said)
    assert "run the same `kreg batch` again" in said


def test_slices_tell_where_they_lie_in_their_scan(kreg, folder):
    plane = np.diag([1.0, 1, 4, 1])
    plane[:3, 3] = 0, 0, 30
    write(folder / "a.nii", Image(scene(), np.eye(3), "mm", "", plane))
    found = json.loads(kreg("info", "a.nii", "--json")[1])
    assert (found["sizes"], found["first_voxel_in_scan"]) == (list(SHAPE), [0, 0, 30])


def test_ome_zarr_is_looked_at(kreg, folder):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(folder / "a.zarr", mode="w")
    values = np.arange(2 * 24 * 28, dtype="uint16").reshape(1, 1, 2, 24, 28)
    group["0"] = values
    datasets = [{"path": "0"}]
    axes = [{"name": name} for name in "tczyx"]
    group.attrs["multiscales"] = [{"axes": axes, "datasets": datasets}]
    code, printed, said = kreg("info", "a.zarr", "--json")
    assert (code, said) == (0, "")
    found = json.loads(printed)
    assert (found["sizes"], found["highest"]) == ([2, 24, 28], values.max())
    assert read_image(folder / "a.zarr").shape == (2, 24, 28)
