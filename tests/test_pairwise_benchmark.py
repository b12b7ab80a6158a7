"""The benchmark of pairwise registration: its truth is true, and it scores, resumes and reports."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent

if importlib.util.find_spec("scipy") is None:
    pytest.skip("needs scipy: pip install -e '.[bench]'", allow_module_level=True)

from scipy.ndimage import map_coordinates  # noqa: E402

from benchmarks.pairwise import __main__ as benchmark  # noqa: E402
from benchmarks.pairwise import cases, real, report, synthetic  # noqa: E402


@pytest.mark.parametrize("kind", ["affine", "homography", "large"])
def test_moving_at_the_true_point_is_fixed(kind):
    truth = synthetic.draw(kind, 3)
    fixed, moving = (synthetic.render(m, 1)[..., 0] for m in (np.eye(3), truth))
    rows, columns = np.meshgrid(*[np.arange(10.0, 500, 7)] * 2, indexing="ij")
    points = np.c_[rows.ravel(), columns.ravel()]
    image = cases.apply(truth, points)
    inside = np.all((image > 10) & (image < 500), axis=1)
    assert inside.sum() > 500

    def moving_at(shift):
        return map_coordinates(moving, image[inside].T + np.reshape(shift, (2, 1)), order=3)

    difference = map_coordinates(fixed, points[inside].T, order=3) - moving_at([0, 0])
    slopes = [moving_at(d) - moving_at(-d) for d in np.eye(2) / 2]
    offset = np.linalg.lstsq(np.transpose(slopes), difference, rcond=None)[0]
    np.testing.assert_allclose(offset, 0, atol=0.002)
    assert np.sqrt(np.mean(difference**2)) < 1e-3


def test_transforms_stay_within_what_is_said():
    centre = np.array([[255.5, 255.5]])
    for seed in range(20):
        affine = synthetic.draw("affine", seed)
        assert np.all(np.abs(cases.apply(affine, centre) - centre) <= 0.08 * 512)
        assert np.all(np.abs(np.linalg.svd(affine[:2, :2])[1] - 1) < 0.16)
        scale = np.linalg.svd(synthetic.draw("large", seed)[:2, :2])[1]
        assert scale[0] == pytest.approx(scale[1])
        assert 0.7 <= scale[0] <= 1.4
        projective = synthetic.draw("homography", seed)
        fitted = cases.affine_floor(cases.grid_truth(projective, (512, 512)))
        assert 0 < fitted < 0.05 * 512


def test_a_seed_is_one_transform_and_one_noise():
    mono, again = (synthetic.make("affine", "mono", "grey", 1) for _ in range(2))
    remapped = synthetic.make("affine", "remapped", "grey", 1)
    np.testing.assert_array_equal(mono.moving, again.moving)
    np.testing.assert_array_equal(mono.truth.moving, remapped.truth.moving)
    assert not np.allclose(mono.moving, remapped.moving, atol=0.05)
    assert synthetic.make("affine", "inverted", "rgb", 1).moving.shape == (512, 512, 3)
    # No border of zeros within the frame.
    assert min(mono.fixed.min(), mono.moving.min()) > 0.05


def test_the_floor_is_what_an_affine_fit_leaves():
    points = np.random.default_rng(0).uniform(0, 100, (30, 2))
    matrix = np.array([[1.1, 0.2, 5], [-0.1, 0.9, 3], [0, 0, 1]])
    truth = cases.Points(points, cases.apply(matrix, points))
    np.testing.assert_allclose(cases.affine_fit(truth), matrix, atol=1e-10)
    off = truth._replace(moving=truth.moving + np.array([3.0, 4.0]))
    assert cases.distances(matrix, off) == pytest.approx(5.0)
    assert cases.affine_floor(off) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("matrix", [None, np.full((3, 3), np.nan), np.zeros((3, 3))])
def test_no_matrix_is_a_failure_that_json_can_hold(matrix):
    truth = cases.grid_truth(np.eye(3), (8, 8))
    case = cases.Case("affine", np.zeros(0), np.zeros(0), truth, 1.0, other_truths={"b": truth})
    row = benchmark.score(case, matrix)
    json.dumps(row, allow_nan=False)
    assert row["error"] is None
    assert report.error_of(row) == np.inf


def test_coordinates_of_files_become_rows_and_columns_from_zero(tmp_path):
    from skimage.io import imsave

    images = {"fixed": "f.png", "moving": "m.png"}
    for name in images.values():
        imsave(tmp_path / name, np.zeros((40, 50, 3), "uint8"), check_contrast=False)
    about = images | {
        "landmarks_fixed_xy": [[1, 1], [11, 1], [1, 21], [5, 5]],
        "landmarks_moving_xy": [[4, 6], [14, 6], [4, 26], [8, 10]],
        # Moving to fixed: 3 columns to the left, 5 rows up.
        "T_rowvec_moving_to_fixed": [[1, 0, 0], [0, 1, 0], [-3, -5, 1]],
    }
    path = tmp_path / "pair.json"
    path.write_text(json.dumps(about))
    case = real._multimodal(path, exact=False)
    np.testing.assert_array_equal(case.truth.fixed[:3], [[0, 0], [0, 10], [20, 0]])
    assert case.limit == pytest.approx(1.0)
    exact = real._multimodal(path, exact=True)
    for truth in (case.truth, exact.truth):
        np.testing.assert_allclose(truth.moving - truth.fixed, [[5, 3]] * len(truth.fixed))


def test_without_data_there_are_no_real_pairs(monkeypatch):
    monkeypatch.delenv("KREG_DATA", raising=False)
    assert real.entries() == []


def test_a_run_scores_the_peers_resumes_and_reports(tmp_path):
    log = tmp_path / "log.jsonl"
    group = "synthetic/affine/mono/grey"
    peers = {"ECC": "cv2", "SIFT": "cv2", "SimpleITK": "SimpleITK"}
    command = [sys.executable, "-m", "benchmarks.pairwise", "--cases", group, "--seeds", "1"]
    command += ["--methods", "identity", *peers, "--log", str(log), "--output", str(tmp_path)]

    def run():
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run()
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    present = [name for name, module in peers.items() if importlib.util.find_spec(module)]
    assert [row["method"] for row in rows] == ["identity", *present]
    assert rows[0]["error"] > 10
    for row in rows[1:]:
        assert row["error"] < 0.15, row
        assert row["seconds"] > 0
    assert "## synthetic, affine, mono, grey" in first
    # A line that an end cut short is done again, and only that one.
    log.write_text(log.read_text()[:-30])
    run()
    assert len(log.read_text().splitlines()) == len(rows) + 1
    again = json.loads((tmp_path / "pairwise.json").read_text())["rows"]
    assert [row["method"] for row in again] == ["identity", *present]
