"""The example of pairwise registration, run as a person would run it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from skimage import data
from skimage.io import imread, imsave

EXAMPLE = Path(__file__).parents[2] / "examples" / "pairwise.py"

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="one backend is enough for the example"
)


def run(*arguments):
    without_data = {name: value for name, value in os.environ.items() if name != "KREG_DATA"}
    return subprocess.run(
        [sys.executable, EXAMPLE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=without_data,
    )


@pytest.fixture(scope="module")
def example():
    """The script as a module: its functions, without a run."""
    spec = importlib.util.spec_from_file_location("pairwise_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_without_data_it_says_so_and_aligns_pairs_of_known_transform(tmp_path):
    output = tmp_path / "result"
    done = run("--quick", "--output", output)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("not at hand (the environment variable KREG_DATA") == 2
    rows = json.loads((output / "scores.json").read_text())
    names = [(row["pair"], row["similarity"]) for row in rows]
    assert names == [(p, s) for p in ("retina", "stains") for s in ("default", "MINE")]
    for row in rows:
        # Of the stains, 128 pixels are too few to tell a good fit from chance for certain.
        assert row["trusted"] or row["pair"] == "stains", row
        assert row["errors"]["before"] > 10
        assert row["errors"]["after"] < 0.5
        assert f"{row['errors']['after']:.2f}" in done.stdout
    figures = {f"{pair}-{similarity}.png" for pair, similarity in names}
    assert {file.name for file in output.iterdir()} == {"scores.json", *figures}


def test_own_images_leave_the_warped_one(run_here, tmp_path):
    image = data.retina()[600:728, 600:728]
    fixed, moving = tmp_path / "a.png", tmp_path / "b.tif"
    imsave(fixed, image)
    imsave(moving, 60_000 - 200 * image[5:, 7:, 1].astype("uint16"))
    done = run_here(
        "pairwise", "--fixed", fixed, "--moving", moving, "--output", tmp_path / "result"
    )
    assert done.returncode == 0, done.stderr
    for row in json.loads((tmp_path / "result" / "scores.json").read_text()):
        expected = [[1, 0, -5], [0, 1, -7], [0, 0, 1]]
        np.testing.assert_allclose(row["voxel_matrix"], expected, atol=0.1)
    warped = imread(tmp_path / "result" / "b-to-a-default.tif")
    assert (warped.shape, warped.dtype) == ((128, 128), np.uint16)
    inside = warped[10:-10, 10:-10].astype(float)
    difference = inside - (60_000 - 200.0 * image[10:-10, 10:-10, 1])
    assert np.abs(difference).mean() < 0.1 * inside.std()


def test_existing_output_is_refused_and_kept(run_here, tmp_path):
    (tmp_path / "precious.txt").write_text("keep me")
    done = run_here("pairwise", "--quick", "--output", tmp_path)
    assert done.returncode != 0
    assert "another with --output" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_one_image_alone_is_refused(run_here, tmp_path):
    done = run_here("pairwise", "--fixed", tmp_path / "a.png", "--output", tmp_path / "result")
    assert done.returncode != 0
    assert "both of --fixed and --moving" in done.stdout + done.stderr
    assert not (tmp_path / "result").exists()


def test_folders_are_numbered(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert example.output_folder(None) == Path("outputs/pairwise-1")
    Path("outputs/pairwise-1").mkdir(parents=True)
    assert example.output_folder(None) == Path("outputs/pairwise-2")


@pytest.mark.parametrize("shrink", [False, True])
def test_moving_at_the_true_points_is_fixed_inverted(example, shrink):
    pair = example.retina()
    if shrink:
        pair = example.shrunk(pair, 256)
        assert pair.fixed.shape == (256, 256, 1)
    fixed, moving = (
        map_coordinates(image[..., 0], points.T, order=1)
        for image, points in (
            (pair.fixed, pair.fixed_points),
            (pair.moving, pair.moving_points),
        )
    )
    size = len(pair.fixed)
    inside = np.all((pair.moving_points > 2) & (pair.moving_points < size - 3), axis=1)
    inside &= np.all((pair.fixed_points > 0) & (pair.fixed_points < size - 1), axis=1)
    assert inside.sum() > 150
    assert np.abs(moving - (1 - fixed) ** 1.8)[inside].mean() < 0.015


def test_stains_are_filled_from_beyond_the_frame(example):
    pair = example.stains()
    assert pair.fixed.shape == pair.moving.shape == (384, 384, 3)
    assert pair.moving.max(axis=-1).min() > 0


def test_fire_is_halved_with_its_points_and_masked(example, tmp_path):
    folder = tmp_path / "fire_retina"
    folder.mkdir()
    rows, columns = np.indices((400, 400)) - 199.5
    disc = 150.0 * (np.hypot(rows, columns) < 180)[..., None].repeat(3, -1)
    for i in (1, 2):
        imsave(folder / f"A01_{i}.jpg", disc.astype("uint8"))
    pair = example.fire(tmp_path)
    assert pair.fixed.shape == (200, 200, 3)
    assert pair.fixed_points is None
    assert pair.fixed_mask[100, 100] == 1
    assert pair.fixed_mask[100, 12] == 0  # the rim
    marks = {"note": "x, y", "fixed": [[1, 3], [0.5, 0.5]], "moving": [[5, 7], [9, 11]]}
    (folder / "A01_landmarks.json").write_text(json.dumps(marks))
    # Where the first two pixels meet is the centre of the first one of half the size.
    np.testing.assert_array_equal(example.fire(tmp_path).fixed_points, [[1.25, 0.25], [0, 0]])


def test_landmarks_become_rows_and_columns_and_those_without_partner_go(example, tmp_path):
    folder = tmp_path / "histology"
    folder.mkdir()
    for name, lines in (
        ("Rat-Kidney_HE", "1,10,20\n2,30,40\n3,1,1"),
        ("Rat-Kidney_PanCytokeratin", "1,12,21\n2,32,41"),
    ):
        imsave(folder / f"{name}.jpg", np.full((50, 60, 3), 200, "uint8"), check_contrast=False)
        (folder / f"{name}.csv").write_text(f",X,Y\n{lines}\n")
    pair = example.rat_kidney(tmp_path)
    np.testing.assert_array_equal(pair.fixed_points, [[19.5, 9.5], [39.5, 29.5]])
    np.testing.assert_array_equal(pair.moving_points, [[20.5, 11.5], [40.5, 31.5]])


def test_real_pairs_load(example, data_file):
    root = data_file("fire_retina/A01_landmarks.json").parents[1]
    data_file("histology/Rat-Kidney_HE.jpg")
    for pair in (example.fire(root), example.rat_kidney(root)):
        identity = np.linalg.norm(pair.fixed_points - pair.moving_points, axis=1)
        assert 10 < identity.mean() < 60


def test_errors_are_those_of_the_points(example):
    points = np.random.default_rng(0).uniform(0, 30, (20, 2))
    image = np.zeros((31, 31))
    truth = points @ [[1.1, 0.1], [0, 0.9]] + [3, 4]
    pair = example.Pair("x", image, image, points, truth)

    class Shift:
        def transform_points(self, points):
            return points + np.array([3, 4])

    found = example.errors(pair, Shift())
    assert found["floor"] == pytest.approx(0, abs=1e-9)
    assert found["before"] == pytest.approx(np.linalg.norm(truth - points, axis=1).mean())
    assert found["after"] == pytest.approx(np.linalg.norm(truth - points - [3, 4], axis=1).mean())
    assert example.errors(example.Pair("x", image, image), Shift()) == {}
