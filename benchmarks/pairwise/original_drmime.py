"""DRMIME as published (Nan et al., MIDL 2020), reduced to one optimiser step: what does it cost?

Written from the description of the method: one exponential of six (affine) or eight generators, a
Gaussian pyramid of 6 levels optimised at once, the whole moving image warped by `grid_sample` at
each level, then the first tenth of its rows taken; MINE by a network 2C -> 100 -> 100 -> 1, one
for all levels; Adam with amsgrad. It is timed, not scored.
"""

import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.pairwise.cases import FRACTION, LEVELS

WIDTH, TERMS = 100, 10


def _generators() -> torch.Tensor:
    """The eight generators of the homographies of the plane, the first six affine."""
    basis = torch.zeros(8, 3, 3)
    for k, entries in enumerate(
        (
            {(0, 2): 1},
            {(1, 2): 1},
            {(0, 1): 1},
            {(1, 0): 1},
            {(0, 0): 1, (1, 1): -1},
            {(1, 1): -1, (2, 2): 1},
            {(2, 0): 1},
            {(2, 1): 1},
        )
    ):
        for index, value in entries.items():
            basis[(k, *index)] = value
    return basis


def _exponential(matrix) -> torch.Tensor:
    """The Taylor series, without scaling."""
    total = term = torch.eye(3)
    for n in range(1, TERMS + 1):
        term = term @ matrix / n
        total = total + term
    return total


def _pyramid(image) -> list[torch.Tensor]:
    """``(1, C, H, W)`` of each level, finest first."""
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    weights = (kernel[:, None] * kernel).expand(image.shape[1], 1, 5, 5)
    levels = [image]
    for _ in range(LEVELS - 1):
        blurred = F.conv2d(levels[-1], weights, padding=2, groups=image.shape[1])
        levels.append(blurred[..., ::2, ::2])
    return levels


class Original:
    """Images ``(H, W, C)``, the network, the coefficients and their optimiser."""

    def __init__(self, fixed, moving):
        torch.manual_seed(0)
        images = (torch.tensor(np.moveaxis(x, -1, 0)[None]) for x in (fixed, moving))
        self.fixed, self.moving = map(_pyramid, images)
        channels = self.fixed[0].shape[1]
        self.network = nn.Sequential(
            nn.Linear(2 * channels, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, 1),
        )
        self.generators = _generators()
        self.all_levels = nn.Parameter(torch.zeros(8))
        self.finest = nn.Parameter(torch.zeros(8))
        self.optimiser = torch.optim.Adam(
            [
                {"params": self.network.parameters(), "lr": 1e-3},
                {"params": [self.all_levels], "lr": 5e-3},
                {"params": [self.finest], "lr": 1e-4},
            ],
            amsgrad=True,
        )

    def _information(self, fixed, warped):
        """mean T(joint) - log mean exp T(marginal) on the first rows."""
        rows = int(FRACTION * fixed.shape[2])
        f, w = (x[0, :, :rows].flatten(1).T for x in (fixed, warped))  # (n, C)
        joint = self.network(torch.cat([f, w], 1))
        marginal = self.network(torch.cat([f, w[torch.randperm(len(w))]], 1))
        return joint.mean() - torch.log(torch.exp(marginal).mean())

    def _warp(self, moving, shape, coefficients):
        matrix = _exponential((coefficients[:, None, None] * self.generators).sum(0))
        axes = [torch.linspace(-1, 1, n) for n in shape]
        y, x = torch.meshgrid(*axes, indexing="ij")
        points = torch.stack([x, y, torch.ones_like(x)], -1) @ matrix.T
        grid = points[..., :2] / points[..., 2:]
        return F.grid_sample(moving, grid[None], align_corners=False)

    def step(self) -> float:
        """One iteration; returns the loss."""
        loss = 0.0
        for level, (fixed, moving) in enumerate(zip(self.fixed, self.moving, strict=True)):
            coefficients = self.all_levels + (self.finest if level == 0 else 0)
            warped = self._warp(moving, fixed.shape[2:], coefficients)
            loss = loss - self._information(fixed, warped) / LEVELS
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.item()


def seconds_per_iteration(fixed, moving, steps: int = 5) -> float:
    """Return the median CPU seconds of a step after the first."""
    torch.set_num_threads(1)
    original = Original(fixed, moving)
    original.step()
    durations = []
    for _ in range(steps):
        start = time.process_time()
        original.step()
        durations.append(time.process_time() - start)
    return float(np.median(durations))
