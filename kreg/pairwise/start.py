"""The global start: search, refine the best candidates, take the best of them."""

from typing import NamedTuple

import numpy as np

from kreg.groups import Affine, Group, Similarity
from kreg.pairwise.blocks import carried
from kreg.pairwise.fisher import FisherScoring, exponential
from kreg.pairwise.pairs import Pairs, Side
from kreg.pairwise.schedule import Stage
from kreg.pairwise.scoring import Scoring
from kreg.pairwise.search import OVERLAP_POWER, MultiStart, Piece
from kreg.pairwise.similarity import HistogramRatio

#: How candidates are compared, whatever the similarity.
COARSE = HistogramRatio()


class Start:
    """Where a registration begins: a matrix for each pair, and how far ahead of the next it is."""

    def __init__(self, matrices: np.ndarray, runner_up: list[float | None]):
        self.matrices = matrices
        self.runner_up = runner_up


def find_start(pairs: Pairs, start: MultiStart, group: Group, seed: int) -> Start:
    """The global start: search, refine the best candidates twice, take the best."""
    dimensions = pairs.dimensions
    coarsest = pairs.levels - 1
    candidates = np.empty((pairs.count, start.keep, dimensions + 1, dimensions + 1))
    for pair in range(pairs.count):
        fixed, moving = (_piece(side, pair, coarsest) for side in (pairs.fixed, pairs.moving))
        flat = np.ptp(fixed.values) == 0 or np.ptp(moving.values) == 0
        found = [] if flat else start.search(fixed, moving, group)
        matrices = [candidate.matrix for candidate in found] or [np.eye(dimensions + 1)]
        candidates[pair] = (matrices * start.keep)[: start.keep]
    small = _smaller(group, Similarity(), dimensions)
    generator = np.random.default_rng(seed)
    rounds = [
        _Round(small, coarsest, 1024, 6, start.finalists),
        _Round(small, coarsest, 1024, 6, start.finalists),
        _Round(_smaller(group, Affine(), dimensions), max(coarsest - 1, 0), 4096, 6, 1),
    ]
    for index, one in enumerate(rounds):
        if index == 1:
            candidates = _varied(candidates, start.keep, small, pairs, coarsest, generator)
        candidates, scores = _refined(pairs, candidates, one, start.overlap, seed)
    return Start(candidates[:, 0], scores)


class _Round(NamedTuple):
    """One round of refinement of the candidates of a global start."""

    group: Group
    level: int
    samples: int
    steps: int
    keep: int


def _refined(pairs: Pairs, candidates, one: _Round, overlap_limit: float, seed: int):
    """Return the best distinct candidates ``(pairs, keep, ...)``, and the runner-up of each pair.

    That is the information of the best other place as a share of that of the first, whatever
    the overlap: a pattern that repeats fits as well one period on, only with less of it. None
    where nothing fits, or there is no other place to compare with.
    """
    owner = np.repeat(np.arange(pairs.count), candidates.shape[1])
    scoring = Scoring(pairs, COARSE, owner, seed)
    stage = Stage((one.level,), one.steps, one.samples)
    flat = candidates.reshape(-1, *candidates.shape[2:])
    # What counts is the last step: the matrices before it, and how they scored.
    *_, (_, scored, similarity, overlap) = scoring.steps(flat, one.group, stage, FisherScoring())
    bias = COARSE.bias(one.samples * np.maximum(overlap, 0.1))
    information = np.where(overlap >= overlap_limit, np.maximum(similarity - bias, 0), 0)
    score = (information * overlap**OVERLAP_POWER).reshape(pairs.count, -1)
    information = information.reshape(pairs.count, -1)
    refined = scored.reshape(candidates.shape)
    distance = pairs.voxel(one.level)
    kept, runners_up = [], []
    for matrices, values, fit in zip(refined, score, information, strict=True):
        order = _distinct(matrices, values, pairs.corners, distance)
        kept.append(matrices[(order * one.keep)[: one.keep]])
        far = _distinct(matrices, values, pairs.corners, 4 * distance)
        others = fit[far[1:]]
        known = len(others) and fit[far[0]] > 0
        runners_up.append(float(min(others.max() / fit[far[0]], 1)) if known else None)
    return np.stack(kept), runners_up


def _varied(candidates, count: int, group: Group, pairs: Pairs, level: int, generator):
    """Return the candidates and variations of them, `count` for each pair."""
    generators = group.generators(pairs.dimensions).astype("float64")
    voxel = pairs.voxel(level)
    spread = np.full(len(generators), 0.08)  # 5 degrees, 8 % of size
    spread[: pairs.dimensions] = 1.5 * voxel
    repeats = -(-count // candidates.shape[1])
    varied = np.repeat(candidates, repeats, axis=1)[:, :count]
    coefficients = spread * generator.normal(size=(count, len(generators)))
    coefficients[::repeats] = 0  # each candidate itself stays
    return exponential(np.tensordot(coefficients, generators, axes=1)) @ varied


def _piece(side: Side, pair: int, level: int) -> Piece:
    mask = side.masks[level]
    pair = pair if len(side.levels[level]) > 1 else 0
    weight = None if mask is None else mask[pair, ..., 0]
    return Piece(side.levels[level][pair, ..., 0], weight, side.frames[level])


def _smaller(group: Group, other: Group, dimensions: int) -> Group:
    return other if other.size(dimensions) < group.size(dimensions) else group


def _distinct(matrices, score, corners, distance: float) -> list[int]:
    """Return indices, best first, of matrices that send the corners to different places."""
    ends = carried(matrices, corners)
    chosen: list[int] = []
    for index in np.argsort(-score):
        gaps = [np.abs(ends[index] - ends[other]).max() for other in chosen]
        if not chosen or (min(gaps) > distance and score[index] > 0):
            chosen.append(int(index))
    return chosen
