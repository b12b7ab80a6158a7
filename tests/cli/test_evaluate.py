import json

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from kreg.io import Image, Transform, read, save_transform, write
from tests.cli.conftest import SHAPE, scene


def test_landmarks_before_and_after(kreg, folder):
    grid = read(folder / "fixed.png").grid
    matrix = np.array([[1.0, 0, -2], [0, 1, 3], [0, 0, 1]])
    save_transform(folder / "t.npz", Transform(matrix, grid, grid))
    (folder / "a.csv").write_text("x,y\n10,10\n5,6\n7,7\n")
    (folder / "b.csv").write_text("x,y\n8,13\n3,12\n5,6\n")  # errors 0, 3 and 4
    arguments = ("--fixed_points", "a.csv", "--moving_points", "b.csv", "--json")
    found = json.loads(kreg("evaluate", *arguments, "--transform", "t.npz")[1])
    assert (found["landmarks"], found["unit"]) == (3, "px")
    assert found["TRE mean"] == pytest.approx(7 / 3)
    assert found["TRE median"] == pytest.approx(3)
    assert found["rTRE maximum"] == pytest.approx(4 / np.hypot(*SHAPE))
    before = [np.hypot(2, 3), np.hypot(2, 6), np.hypot(2, 1)]
    assert found["TRE before mean"] == pytest.approx(np.mean(before))
    plain = json.loads(kreg("evaluate", *arguments)[1])
    assert plain["TRE mean"] == pytest.approx(np.mean(before))


def test_landmarks_of_volumes(kreg, folder):
    (folder / "a.csv").write_text("x,y,z\n0,0,0\n")
    (folder / "b.csv").write_text("z,y,x\n2,0,1\n")
    code, printed, _ = kreg("evaluate", "--fixed_points=a.csv", "--moving_points=b.csv")
    assert code == 0
    assert "2.2361" in printed


def test_labels_by_dice_and_distance(kreg, folder):
    first, second = np.zeros(SHAPE, "uint8"), np.zeros(SHAPE, "uint8")
    first[4:8, 4:8], second[4:8, 6:10] = 2, 2
    first[14:18, 14:18] = second[14:18, 14:18] = 5
    first[20, 20] = 7  # lost in the other
    affine = np.array([[0, 0.5, 0], [0.5, 0, 0], [0, 0, 1]])
    write(folder / "a.nii.gz", Image(first, affine, "mm"))
    write(folder / "b.nii.gz", Image(second, affine, "mm"))
    arguments = ("--fixed_labels", "a.nii.gz", "--moving_labels", "b.nii.gz")
    code, printed, _ = kreg("evaluate", *arguments, "--json")
    found = json.loads(printed)
    assert code == 0
    assert found["Dice"] == pytest.approx({"2": 0.5, "5": 1.0, "7": 0.0})
    assert found["HD95"]["2"] == pytest.approx(1.0)  # two voxels of half a millimetre
    assert found["HD95"]["7"] is None  # infinite
    assert found["HD95 unit"] == "mm"


def test_images_by_correlation_and_structure(kreg, folder):
    fixed, moving = scene().astype("float32"), scene((1.5, -2.0)).astype("float32")
    code, printed, _ = kreg("evaluate", "--fixed=fixed.png", "--moving=moving.png", "--json")
    found = json.loads(printed)
    assert code == 0
    assert found["NCC"] == pytest.approx(np.corrcoef(fixed.ravel(), moving.ravel())[0, 1], abs=1e-4)
    expected = structural_similarity(fixed, moving, data_range=np.ptp(fixed))
    assert found["SSIM"] == pytest.approx(expected, abs=1e-4)


def test_maps_of_unequal_frames_are_not_compared_as_they_lie(kreg, folder):
    labels = np.zeros((6, 7, 8), "uint8")
    labels[1:3, 2:5, 2:5] = 1
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    flipped = affine @ np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = 5
    write(folder / "a.nii", Image(labels, affine, "mm"))
    write(folder / "b.nii", Image(labels[::-1], flipped, "mm"))  # the same anatomy
    code, _, said = kreg("evaluate", "--fixed_labels=a.nii", "--moving_labels=b.nii")
    assert (code, said.count("\n")) == (1, 1)
    assert all(part in said for part in ("a.nii", "b.nii", "RPS"))
