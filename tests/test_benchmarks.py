"""The benchmarks run, compare like with like, and report what they measured."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent

for module in ("cv2", "scipy", "torch"):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs {module}: pip install -e '.[bench]'", allow_module_level=True)

from benchmarks import __main__ as benchmark  # noqa: E402
from benchmarks import report  # noqa: E402
from benchmarks.cases import PEERS, QUICK_SIZES, WARP  # noqa: E402


def test_a_quick_run_measures_every_task_and_writes_its_report(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--quick", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.json")
    run = json.loads(path.read_text())
    assert done.stdout.strip() == path.with_suffix(".md").read_text().strip()
    assert [(group["task"], group["size"]) for group in run["groups"]] == [
        (task, str(size)) for size in QUICK_SIZES for task in PEERS
    ]
    for group in run["groups"]:
        names = [row["contender"] for row in group["rows"]]
        flat = len(group["size"].split(" x ")) == 4
        assert names == ["kreg", *(n for n in PEERS[group["task"]] if flat or n != "opencv")]
        assert all(min(turn) > 0 for row in group["rows"] for turn in row["rounds"])
        differences = [row["difference"] for row in group["rows"][1:]]
        if group["task"].startswith("warp"):
            assert max(differences) < 1e-4
    assert set(run["sides"]) == {"kreg", "torch", "scipy", "opencv"}
    assert all(facts["threads"] == 1 for facts in run["sides"].values())


class FakeWorker:
    """Answers at once, with the result it is given."""

    def __init__(self, result, duration=1.0):
        self.result, self.duration = result, duration

    def ask(self, do, **request):
        if do == "finish":
            np.save(request["path"], self.result)
        answers = {"prepare": {"first": 0.0}, "finish": {"peak_bytes": 0}}
        return answers.get(do, {"durations": [self.duration]})


def test_sides_that_compute_different_things_are_not_compared(tmp_path):
    workers = {"kreg": FakeWorker(np.ones(4)), "torch": FakeWorker(np.full(4, 0.99), 3.0)}
    group = benchmark._group(QUICK_SIZES[0], WARP, workers, tmp_path, benchmark.QUICK)
    assert group["rows"][1]["ratio"] == (3.0, 3.0, 3.0)
    assert group["rows"][1]["difference"] == pytest.approx(0.01)
    workers["torch"].result = np.zeros(4)
    with pytest.raises(RuntimeError, match="torch to compute what kreg computes"):
        benchmark._group(QUICK_SIZES[0], WARP, workers, tmp_path, benchmark.QUICK)


def test_load_that_slows_a_whole_round_leaves_the_ratio():
    own, theirs = [[1.0], [10.0], [2.0]], [[3.0], [30.0], [6.0]]
    assert benchmark._ratio(theirs, own) == (3.0, 3.0, 3.0)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(1.2345e-4, "0.123"), (0.012345, "12.3"), (1.2345, "1230")]
)
def test_durations_show_three_digits(seconds, expected):
    assert report._milliseconds(seconds) == expected
