import json

import numpy as np
import pytest
from PIL import Image as pillow
from skimage.metrics import structural_similarity

from kreg.cli.images import read_mask
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


ANISOTROPIC = np.diag([0.5, 3.0, 1.0])


@pytest.mark.parametrize("axis", [0, 1])
def test_distances_are_measured_along_each_axis(kreg, folder, axis):
    first, second = np.zeros(SHAPE, "uint8"), np.zeros(SHAPE, "uint8")
    first[8:12, 10:14] = 3
    second[8:12, 10:14] = 3
    second = np.roll(second, 2, axis)
    for name, labels in (("a", first), ("b", second)):
        write(folder / f"{name}.npz", Image(labels, ANISOTROPIC, "mm"))
    arguments = ("--fixed_labels=a.npz", "--moving_labels=b.npz", "--json")
    found = json.loads(kreg("evaluate", *arguments)[1])
    assert found["HD95"]["3"] == pytest.approx((1.0, 6.0)[axis])
    assert found["HD95 mean"] == pytest.approx((1.0, 6.0)[axis])


def test_the_moving_side_is_carried_from_fixed_to_moving(kreg, folder):
    grid = read(folder / "fixed.png").grid
    matrix = np.array([[1.0, 0, -2], [0, 1, 3], [0, 0, 1]])  # (x, y), fixed to moving
    save_transform(folder / "t.npz", Transform(matrix, grid, grid))
    fixed = scene()
    moving = np.zeros_like(fixed)
    moving[3:, :-2] = fixed[:-3, 2:]  # moving(row + 3, column - 2) = fixed(row, column)
    write(folder / "m.png", moving)
    arguments = ("--fixed=fixed.png", "--moving=m.png", "--transform=t.npz", "--json")
    found = json.loads(kreg("evaluate", *arguments)[1])
    # What lies beyond the moving image does not count.
    assert found["NCC"] == pytest.approx(1, abs=1e-4)
    assert found["SSIM"] == pytest.approx(1, abs=1e-4)
    assert found["overlap"] == pytest.approx((SHAPE[0] - 3) * (SHAPE[1] - 2) / np.prod(SHAPE))
    # Before is what they are without the transform.
    as_they_lie = json.loads(kreg("evaluate", "--fixed=fixed.png", "--moving=m.png", "--json")[1])
    assert as_they_lie.keys() == {"NCC", "SSIM"}
    # Of the voxels that count after it, too.
    expected = np.corrcoef(fixed[:-3, 2:].ravel(), moving[:-3, 2:].ravel())[0, 1]
    assert found["NCC before"] == pytest.approx(expected, abs=1e-4)
    assert found["NCC before"] != pytest.approx(as_they_lie["NCC"], abs=1e-3)
    assert found["SSIM before"] < 0.9
    labels = [np.zeros(SHAPE, "uint8") for _ in range(2)]
    labels[0][10:14, 10:14], labels[1][13:17, 8:12] = 4, 4
    labels[0][-2:, 10:14] = 4  # has no place in the moving map: lost
    labels[1][:2, 4:8] = 9  # nor has this in the fixed one
    for name, one in zip("ab", labels, strict=True):
        write(folder / f"{name}.png", one)
    arguments = ("--fixed_labels=a.png", "--moving_labels=b.png", "--transform=t.npz", "--json")
    found = json.loads(kreg("evaluate", *arguments)[1])
    assert found["Dice"] == pytest.approx({"4": 2 * 16 / (16 + 8 + 16), "9": 0.0})
    assert found["HD95 mean"] == found["HD95"]["4"] > 0
    assert (found["HD95"]["9"], found["labels without HD95"]) == (None, 1)
    as_they_lie = json.loads(kreg("evaluate", *arguments[:2], "--json")[1])
    for name in ("Dice", "HD95"):
        assert found[f"{name} before mean"] == as_they_lie[f"{name} mean"] != found[f"{name} mean"]
    matrix[0, 2] = 1e4
    save_transform(folder / "t.npz", Transform(matrix, grid, grid), overwrite=True)
    found = json.loads(kreg("evaluate", *arguments)[1])
    assert found["Dice mean"] == 0
    images = ("--fixed=fixed.png", "--moving=m.png", "--transform=t.npz")
    code, _, said = kreg("evaluate", *images)
    assert (code, said.count("\n")) == (1, 1)
    assert "no overlap" in said


@pytest.mark.parametrize(("rows", "offset"), [(20, 0.0), (SHAPE[0], 7.0)])
def test_what_does_not_compare_as_it_lies_has_no_before(kreg, folder, rows, offset):
    matrix = np.eye(3)
    matrix[0, 2] = offset
    images = [Image(scene(), np.eye(3), "mm"), Image(scene()[:rows], matrix, "mm")]
    for name, image in zip("ab", images, strict=True):
        write(folder / f"{name}.npz", image)
    save_transform(folder / "t.npz", Transform(matrix, images[0].grid, images[1].grid))
    options = ("--transform=t.npz", "--json")
    printed = kreg("evaluate", "--fixed=a.npz", "--moving=b.npz", *options)[1]
    assert json.loads(printed).keys() == {"NCC", "SSIM", "overlap"}
    printed = kreg("evaluate", "--fixed_labels=a.npz", "--moving_labels=b.npz", *options)[1]
    assert "before" not in printed


@pytest.mark.parametrize(("unit", "rows"), [("mm", SHAPE[0]), ("px", 20)])
def test_landmarks_of_worlds_that_differ_have_no_before(kreg, folder, unit, rows):
    grids = [Image(scene()[:n], np.eye(3), u).grid for n, u in ((SHAPE[0], "px"), (rows, unit))]
    save_transform(folder / "t.npz", Transform(np.eye(3), *grids))
    (folder / "p.csv").write_text("x,y\n3,4\n5,6\n")
    points = ("--fixed_points=p.csv", "--moving_points=p.csv", "--transform=t.npz")
    code, printed, _ = kreg("evaluate", *points, "--json")
    assert code == 0
    assert "TRE mean" in json.loads(printed)
    assert "before" not in printed


@pytest.mark.parametrize("carried", [(), ("--transform=t.npz",)])
def test_unequal_channels_are_no_matter_of_the_transform(kreg, folder, carried):
    grid = read(folder / "fixed.png").grid
    save_transform(folder / "t.npz", Transform(np.eye(3), grid, grid))
    write(folder / "colour.png", np.stack([scene()] * 3, axis=-1))
    code, printed, said = kreg("evaluate", "--fixed=fixed.png", "--moving=colour.png", *carried)
    assert (code, printed, said.count("\n")) == (1, "", 1)
    assert "as many channels as the fixed image has, 1, at 'colour.png'; convert" in said
    assert said.endswith("Received: 3.\n")


def palette(path, indices):
    """Save labels as programs do that colour them: an index of each colour."""
    picture = pillow.fromarray(indices).convert("P")
    # Two labels of one colour; that of 0 is not black.
    picture.putpalette([9, 9, 9, 200, 0, 0, 200, 0, 0, 0, 200, 0] + [0] * 756)
    picture.putdata(np.ravel(indices).tolist())
    picture.save(path)


@pytest.mark.parametrize("suffix", [".png", ".gif", ".tif"])
def test_labels_with_a_palette_are_their_indices(kreg, folder, suffix):
    labels = np.zeros(SHAPE, "uint8")
    labels[4:8, 4:8], labels[14:18, 14:18], labels[14:18, 4:8] = 1, 2, 3
    palette(folder / f"a{suffix}", labels)
    write(folder / "b.npy", labels)
    arguments = (f"--fixed_labels=a{suffix}", "--moving_labels=b.npy", "--json")
    found = json.loads(kreg("evaluate", *arguments)[1])
    assert found["Dice"] == {"1": 1.0, "2": 1.0, "3": 1.0}
    grid = read(folder / "fixed.png").grid
    save_transform(folder / "t.npz", Transform(np.eye(3), grid, grid))
    assert kreg("apply", "t.npz", f"a{suffix}", "--labels", "--output=o.png")[0] == 0
    np.testing.assert_array_equal(read(folder / "o.png").array, labels)
    assert kreg("apply", "t.npz", f"a{suffix}", "--output=c.png")[0] == 0
    assert read(folder / "c.png").array[5, 5].tolist() == [200, 0, 0]
    # A mask, too, is where the index is not 0.
    image = read(folder / "fixed.png")
    np.testing.assert_array_equal(read_mask(folder / f"a{suffix}", image).array, labels > 0)


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
