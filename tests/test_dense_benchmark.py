import json

import numpy as np
import pytest

from benchmarks.dense import cases, peers
from benchmarks.dense.__main__ import main, report
from benchmarks.dense.worker import METHODS


def test_the_truth_of_a_smooth_case_scores_nothing_and_stillness_its_length():
    case = cases.smooth(100)
    again = cases.smooth(100)
    np.testing.assert_array_equal(case.fixed, again.fixed)
    still = case.judge(peers.nothing(case.fixed, case.moving))
    assert 1 < still["EPE"] < 8
    assert still["folds %"] == 0
    generator = np.random.default_rng(100)
    truth = cases.random_field(generator, (256, 256), generator.uniform(12, 30), 8)
    assert case.judge(truth)["EPE"] == 0
    rest = cases.pull_back(case.moving, truth) - case.fixed
    assert np.abs(rest).mean() < 0.02
    assert np.linalg.norm(truth, axis=-1).max() == pytest.approx(8, rel=1e-5)


def test_the_stereo_truth_leads_to_the_same_points():
    case = cases.stereo()
    assert case.fixed.shape == case.moving.shape == (250, 370)
    # Of shifts to the left the best lies within the range of disparities.
    scores = []
    for shift in range(0, 40, 4):
        field = np.zeros((*case.fixed.shape, 2))
        field[..., 1] = -shift
        scores.append(cases.correlation(case.fixed, cases.pull_back(case.moving, field, 1)))
    assert 4 * int(np.argmax(scores)) in range(8, 32)
    assert case.judge(np.zeros((250, 370, 2)))["EPE visible"] > 8


def test_folds_are_where_neighbours_change_places():
    field = np.zeros((20, 20, 2))
    assert cases.folds(field) == 0
    field[8:12, :, 0] = np.array([3, 1, -1, -3])[:, None]
    assert 5 < cases.folds(field) < 25


def test_dice_is_the_mean_over_the_labels_of_the_fixed_map():
    fixed, moving = np.array([0, 1, 1, 2, 2, 2]), np.array([1, 1, 0, 2, 2, 5])
    assert cases.mean_dice(fixed, moving) == pytest.approx((0.5 + 0.8) / 2)


def test_each_method_has_groups_that_exist():
    for method in METHODS.values():
        assert set(method.groups) <= set(cases.GROUPS)


def test_a_run_leaves_a_report_and_goes_on_where_it_was(tmp_path, capsys):
    log = tmp_path / "log.jsonl"
    arguments = ["--groups", "stereo", "--methods", "nothing", "--log", str(log)]
    main([*arguments, "--output", str(tmp_path)])
    (row,) = map(json.loads, log.read_text().splitlines())
    assert row["scores"]["EPE"] > 8
    main([*arguments, "--output", str(tmp_path)])
    assert len(log.read_text().splitlines()) == 1
    assert "| nothing |" in (tmp_path / "dense.md").read_text()
    assert "## stereo" in capsys.readouterr().out


def test_a_report_shows_what_there_is():
    row = {
        "group": "smooth",
        "method": "kreg",
        "scores": {"EPE": 0.5, "folds %": 0.0},
        "seconds": 0.25,
        "spread": [0.2, 0.3],
        "first": 9.0,
        "trusted": 1.0,
        "versions": {"kreg": "0"},
        "commit": "abc",
    }
    text = report({("smooth", "kreg"): row})
    assert "| kreg | 0.500 | 0 | 0.25 (0.2 - 0.3) | 9.0 | 100% |" in text
    assert "stereo" not in text
