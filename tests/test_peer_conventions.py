"""What the benchmark of displacements takes from other libraries is in kreg's convention."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from benchmarks.dense import cases
from benchmarks.dense.__main__ import ONE_THREAD
from benchmarks.report import ROOT

#: Sides that differ, so that no two axes can be mistaken for one another.
SHAPES = {2: (72, 96), 3: (28, 36, 32)}
ANTS = ROOT / ".venv-ants/bin/python"


def pair(shape):
    """Smooth noise, itself pulled back by shifts of another sign and size along each axis.

    To the shifts comes some unevenness. Returns fixed, moving and the displacement.
    """
    generator = np.random.default_rng(0)
    moving = gaussian_filter(generator.random(shape), 2, mode="wrap")
    moving = (moving - moving.min()) / (moving.max() - moving.min())
    truth = np.array([-1.0, 2.0, 0.5])[: len(shape)] + cases.random_field(generator, shape, 8, 0.3)
    return cases.pull_back(moving, truth), moving, truth


# In processes of their own, as in the benchmark: some of the libraries do not bear one another.
@pytest.mark.parametrize(
    ("method", "dimensions"),
    [
        ("demons", (2, 3)),
        ("elastix, NCC", (2,)),
        ("ILK", (2,)),
        ("DIS", (2,)),
        ("ANTs, mean squares", (2, 3)),
    ],
)
def test_a_peer_finds_a_known_displacement_axis_by_axis(method, dimensions, tmp_path):
    pairs = [pair(SHAPES[d]) for d in dimensions]
    for number, (fixed, moving, _) in enumerate(pairs):
        np.savez(tmp_path / f"{number}.npz", fixed=fixed, moving=moving)
    python = ANTS if method.startswith("ANTs") else sys.executable
    if not os.path.exists(python):
        pytest.skip(f"needs an environment of ANTs's own, {ANTS.relative_to(ROOT)}")
    done = subprocess.run(
        [python, "-m", "benchmarks.dense.worker", method, "smooth", tmp_path],
        cwd=ROOT, env=os.environ | ONE_THREAD, capture_output=True, text=True, check=True,
    )  # fmt: skip
    missing = json.loads(done.stdout.splitlines()[0]).get("missing")
    if missing:
        pytest.skip(f"{missing}: pip install -e '.[bench]'")
    for number, (_, _, truth) in enumerate(pairs):
        found = np.load(tmp_path / f"{number}.npy")
        assert found.shape == truth.shape
        inside = (slice(6, -6),) * (truth.ndim - 1)
        error = np.abs(found - truth)[inside].reshape(-1, truth.shape[-1]).mean(0)
        # Another sign, order or unit would leave half a voxel or more along some axis.
        assert (error < 0.25).all(), error
