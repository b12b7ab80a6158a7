import numpy as np
import pytest

from kreg.io import Image, Transform, load_transform, read, save_transform, write
from tests.cli.conftest import SHAPE, scene

MATRIX = np.array([[1.0, 0, -2], [0, 1, 3], [0, 0, 1]])  # (x, y), fixed to moving


@pytest.fixture
def transform(folder):
    grid = read(folder / "fixed.png").grid
    (folder / "out").mkdir()
    save_transform(folder / "out" / "transform.npz", Transform(MATRIX, grid, grid))
    return load_transform(folder / "out" / "transform.npz")


@pytest.mark.parametrize("which", ["out", "out/transform.npz"])
def test_images_are_laid_over_the_fixed_one(kreg, folder, transform, which):
    assert kreg("apply", which, "moving.png", "--output", "o.png")[0] == 0
    expected = np.zeros(SHAPE)
    expected[:-3, 2:] = scene((1.5, -2.0))[3:, :-2]  # moving(row + 3, column - 2)
    np.testing.assert_array_equal(read(folder / "o.png").array, expected)
    assert kreg("apply", which, "o.png", "--output", "b.png", "--inverse")[0] == 0
    back = read(folder / "b.png").array
    np.testing.assert_array_equal(back[3:, :-2], scene((1.5, -2.0))[3:, :-2])


def test_labels_stay_whole_and_grids_may_differ(kreg, folder, transform):
    labels = (scene() // 64 * 7).astype("int16")
    write(folder / "labels.npy", labels)
    fine = np.diag([1.0, 1.0, 1.0])
    fine[:2, :2] = [[0, 0.5], [0.5, 0]]
    write(folder / "like.npz", Image(np.zeros((30, 40)), fine))
    arguments = ("labels.npy", "--labels", "--outside=9", "--like=like.npz", "--output=o.npz")
    assert kreg("apply", "out", *arguments)[0] == 0
    found = read(folder / "o.npz")
    assert (found.array.dtype, found.shape) == ("int16", (30, 40))
    assert set(np.unique(found.array)) <= {0, 7, 14, 21, 9}
    np.testing.assert_array_equal(found.array[10:20:2, 20:30:2], labels[8:13, 8:13])


def rows_of(path):
    return [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]


def test_points_go_with_the_images(kreg, folder, transform):
    (folder / "p.csv").write_text("\ufeffname,X,Y\nnose,10,20\n\near,1.5,2\n", encoding="utf-8")
    assert kreg("apply", "out", "p.csv", "--output", "o.csv")[0] == 0
    rows = rows_of(folder / "o.csv")
    assert [row[0] for row in rows] == ["name", "nose", "ear"]
    # moving (x, y) = fixed (x - 2, y + 3)
    np.testing.assert_allclose(np.float64([row[1:] for row in rows[1:]]), [[12, 17], [3.5, -1]])
    assert kreg("apply", "out", "o.csv", "--output", "b.csv", "--inverse")[0] == 0
    rows = rows_of(folder / "b.csv")
    np.testing.assert_allclose(np.float64([row[1:] for row in rows[1:]]), [[10, 20], [1.5, 2]])


def test_replaces_only_when_asked(kreg, folder, transform):
    for expected, flag in ((0, "--nooverwrite"), (1, "--nooverwrite"), (0, "--overwrite")):
        code, _, said = kreg("apply", "out", "moving.png", "--output", "o.png", flag)
        assert code == expected
        assert ("--overwrite replaces it" in said) == bool(expected)


@pytest.mark.parametrize("outside", ["300", "-1", "nan", "0.5"])
def test_refuses_a_value_that_the_image_cannot_hold(kreg, folder, transform, outside):
    for labels in ("--labels", "--nolabels"):
        arguments = ("fixed.png", labels, f"--outside={outside}", "--output=o.png")
        code, _, said = kreg("apply", "out", *arguments)
        assert (code, said.count("\n")) == (1, 1)
        assert f"uint8 can hold. Received: {outside}" in said
        assert not (folder / "o.png").exists()


def test_labels_are_not_damaged_by_jpeg(kreg, folder, transform):
    code, _, said = kreg("apply", "out", "fixed.png", "--labels", "--output=o.jpg")
    assert code != 0
    assert "keeps labels" in said
    assert not (folder / "o.jpg").exists()


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "uint64"])
def test_large_integers_keep_their_values(kreg, folder, transform, dtype):
    highest = min(np.iinfo(dtype).max, 2**53 - 1)
    write(folder / "a.npy", np.full(SHAPE, highest, dtype))
    assert kreg("apply", "out", "a.npy", "--output", "o.npy")[0] == 0
    found = read(folder / "o.npy").array
    assert found[10, 10] == highest
    write(folder / "b.npy", np.full(SHAPE, np.iinfo(dtype).max, dtype))
    assert kreg("apply", "out", "b.npy", "--output", "p.npy")[0] == 0
    assert int(read(folder / "p.npy").array[10, 10]) >= np.iinfo(dtype).max - 2048


def test_slices_of_scans_are_written_where_the_fixed_one_lies(kreg, folder):
    c, s = np.cos(0.5), np.sin(0.5)
    plane = np.array([[c, 0, -4 * s, 20], [0, 1, 0, -7], [s, 0, 4 * c, 30], [0, 0, 0, 1]])
    fixed = Image(scene(), np.diag([0.7, 1.1, 1]), "mm", "", plane)
    moving = Image(scene((1.5, -2.0)), np.diag([0.7, 1.1, 1]), "mm", "", plane)
    for name, image in (("fixed", fixed), ("moving", moving)):
        write(folder / f"{name}.nii", image)
    grids = [read(folder / f"{name}.nii").grid for name in ("fixed", "moving")]
    save_transform(folder / "t.npz", Transform(np.eye(3), *grids))
    for suffix in (".nii.gz", ".npz"):
        assert kreg("apply", "t.npz", "moving.nii", "--output", f"o{suffix}")[0] == 0
        found = read(folder / f"o{suffix}")
        assert found.grid.agrees_with(grids[0])
        np.testing.assert_allclose(found.grid.scan, fixed.grid.scan, atol=1e-4)
    # A map of labels in another plane is not compared as it lies.
    aside = plane.copy()
    aside[:3, 3] += 4
    write(folder / "aside.nii", Image(scene(), np.diag([0.7, 1.1, 1]), "mm", "", aside))
    code, _, said = kreg("evaluate", "--fixed_labels=fixed.nii", "--moving_labels=aside.nii")
    assert (code, said.count("\n")) == (1, 1)
    assert "the frame of 'fixed.nii', " in said
    assert "from [24.0, -3.0, 34.0]" in said
