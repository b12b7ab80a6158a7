"""The verdict: does a transform fit better than transforms that are wrong on purpose?"""

from typing import NamedTuple

import numpy as np
from keras import ops

from kreg.groups import Group, Similarity
from kreg.ops.displacement import jacobian_determinant
from kreg.pairwise.field import Field, deformed, mirrored
from kreg.pairwise.fisher import exponential
from kreg.pairwise.pairs import Pairs
from kreg.pairwise.scoring import Scoring
from kreg.pairwise.start import COARSE, Start

#: How many transforms are scored beside the one found: as many as candidates of a start.
_COUNT = 40
_SAMPLES = 1024
#: Least overlap, and least distance from chance in standard deviations, to be trusted: without a
#: global start, and with one, where the second best place counts as well.
_OVERLAP = 0.25
_DEVIATIONS = 10.0
_CLEAR_DEVIATIONS = 6.0
#: A runner-up of this share of the best similarity leaves open which one is right.
_AMBIGUOUS = 0.9
#: Fewer wrong places say nothing about chance.
_ENOUGH = 4
#: Voxels that a corner may move in the last step, and still count as found.
_RESTLESS = 1.0
#: A displacement must fit this many times better than one of the mirrored image, or need as many
#: times less motion for as good a fit, or both in part.
_BEYOND = 1.5
#: With a displacement the similarity must not fall below this share of that by the matrix alone.
_WORSE = 0.95
#: Lengths may shrink or grow by this factor at most.
_STRETCH = 4.0


class Ending(NamedTuple):
    """How a registration came to its end."""

    interrupted: bool
    motion: list[float]  # of each pair in its last step, voxels


def judge(pairs: Pairs, start: Start, matrices, ending: Ending, seed: int) -> list[dict]:
    """Return, for each pair, what a `Registration` says of its transform.

    Args:
        pairs: what was registered.
        start: where it began.
        matrices: normalised, ``(pairs, D + 1, D + 1)``.
        ending: how it ended.
        seed: of the transforms that are wrong on purpose.
    """
    wrong = _displaced(matrices, pairs, np.random.default_rng(seed))
    similarity, overlap = _scores(pairs, wrong, pairs.coarse, _SAMPLES, seed)
    fine = np.stack([matrices, np.broadcast_to(np.eye(matrices.shape[-1]), matrices.shape)], 1)
    after, share = _scores(pairs, fine, 0, 4096, seed)
    verdicts = []
    for pair in range(pairs.count):
        chance = similarity[pair, 1:][overlap[pair, 1:] > _OVERLAP]
        known = len(chance) >= _ENOUGH
        mean, deviation = (chance.mean(), chance.std()) if known else (0.0, 0.0)
        found = similarity[pair, 0]
        runner_up = start.runner_up[pair]
        needed = _needed(runner_up)
        limit = mean + needed * deviation
        margin = (found - mean) / max(deviation, 1e-6)
        reason = None
        if not (pairs.fixed.textured[pair % len(pairs.fixed.textured)]):
            reason = "the fixed image has no texture"
        elif not (pairs.moving.textured[pair % len(pairs.moving.textured)]):
            reason = "the moving image has no texture"
        elif (stretch := _stretch(matrices[pair], pairs.corners)) > _STRETCH:
            reason = "the matrix is degenerate: it mirrors, or sends points to infinity"
            if np.isfinite(stretch):
                reason = f"the matrix is degenerate: it changes lengths {stretch:.3g} times"
        elif overlap[pair, 0] < _OVERLAP:
            reason = f"the images hardly meet: only {overlap[pair, 0]:.0%} overlap"
        elif not known:
            reason = "there is no chance level to compare with: too few wrong places overlap"
        elif (runner_up or 0) > _AMBIGUOUS and margin > _CLEAR_DEVIATIONS:
            reason = f"another place fits almost as well: {runner_up:.0%} of the similarity"
        elif found <= limit:
            reason = _too_close(margin, runner_up)
        elif after[pair, 0] < 0.9 * after[pair, 1] - 0.01:
            reason = f"the similarity fell, from {after[pair, 1]:.3g} to {after[pair, 0]:.3g}"
        elif ending.motion[pair] > _RESTLESS:
            reason = f"it still moved by {ending.motion[pair]:.2g} voxels in its last step"
        trusted = reason is None and not ending.interrupted
        if ending.interrupted:
            reason = "interrupted: the last transform" + (f"; {reason}" if reason else "")
        verdicts.append(
            {
                "similarity_before": max(float(after[pair, 1]), 0.0),
                "similarity_after": max(float(after[pair, 0]), 0.0),
                "overlap": float(share[pair, 0]),
                "chance": float(limit),
                "runner_up": runner_up,
                "trusted": trusted,
                "reason": reason
                or f"{margin:.0f} standard deviations above wrong places, where {needed:.0f} are "
                "enough",
            }
        )
    return verdicts


def judge_dense(
    pairs: Pairs, start: Start, matrices, field: Field, null: Field, ending: Ending, seed: int
) -> list[dict]:
    """Return, for each pair, what a `Registration` says of its displacement.

    The warped image stands in for the moving one, which it should fit as it is. A displacement
    has the freedom to make unrelated images fit too: how well, and at the cost of how much motion,
    the image mirrored along all axes tells (in 2-D turned by half a circle: what looks the same
    then, as a disc, is never trusted).

    Args:
        pairs: what was registered.
        start: where the linear part began.
        matrices: its linear part, normalised.
        field: its displacement, on the voxels of the fixed images.
        null: that which was found in the same way for the mirrored moving images.
        ending: how it ended.
        seed: of the transforms that are wrong on purpose.
    """
    still = np.broadcast_to(np.eye(matrices.shape[-1]), matrices.shape)
    before, alone = (_scores(pairs, m[:, None], 0, 4096, seed)[0][:, 0] for m in (still, matrices))
    warped, mirror = deformed(pairs, matrices, field), deformed(mirrored(pairs), matrices, null)
    calm = ending._replace(interrupted=False)  # said at the end
    verdicts = judge(warped, start, still, calm, seed)
    found, by_chance = (
        _scores(one, still[:, None], pairs.coarse, 4096, seed)[0][:, 0] for one in (warped, mirror)
    )
    motion, by_chance_motion = (_size(one) for one in (field, null))
    volumes = ops.convert_to_numpy(jacobian_determinant(field.values))
    for pair, (verdict, volume) in enumerate(zip(verdicts, volumes, strict=True)):
        verdict["similarity_before"] = max(float(before[pair]), 0.0)
        after = verdict["similarity_after"]
        ease = by_chance_motion[pair] / max(motion[pair], 1e-6)
        if verdict["trusted"] and after < 0.9 * before[pair] - 0.01:
            verdict["trusted"] = False
            verdict["reason"] = f"the similarity fell, from {before[pair]:.3g} to {after:.3g}"
        if verdict["trusted"] and after < _WORSE * alone[pair]:
            verdict["trusted"] = False
            verdict["reason"] = (
                f"the matrix alone fits better: with the displacement the similarity fell, from "
                f"{alone[pair]:.3g} to {after:.3g}"
            )
        if verdict["trusted"] and found[pair] * ease < _BEYOND * by_chance[pair]:
            verdict["trusted"] = False
            verdict["reason"] = (
                f"the mirrored image can be deformed to fit as well: {ease:.2g} times the motion "
                f"gives {by_chance[pair] / found[pair]:.0%} of the similarity"
            )
        if folds := np.mean(volume <= 0):
            verdict["trusted"] = False
            verdict["reason"] = f"the displacement folds at {folds:.2%} of the voxels"
        elif (stretch := _stretch(matrices[pair], pairs.corners)) > _STRETCH:
            verdict["trusted"] = False
            verdict["reason"] = f"the matrix is degenerate: it changes lengths {stretch:.3g} times"
        if ending.interrupted:
            doubt = "" if verdict["trusted"] else f"; {verdict['reason']}"
            verdict["trusted"] = False
            verdict["reason"] = f"interrupted: the last displacement{doubt}"
    return verdicts


def _size(field: Field) -> np.ndarray:
    """Return the root of the mean squared displacement of each pair, in units of the world."""
    world = field.values * field.frame.spacing
    return np.sqrt(np.mean(np.sum(world**2, axis=-1), axis=tuple(range(1, world.ndim - 1))))


def _needed(runner_up: float | None) -> float:
    """Return how many standard deviations above chance are enough to be trusted.

    A global start has seen all places: the further ahead the best one is, the less it takes.
    """
    if runner_up is None:
        return _DEVIATIONS
    return _CLEAR_DEVIATIONS / max(1 - max(runner_up, 0.0), 1e-3)


def _too_close(margin: float, runner_up: float | None) -> str:
    """Return in words that a similarity is not far enough above chance."""
    if runner_up is not None and margin > _CLEAR_DEVIATIONS:
        needed, stands = _apart(_needed(runner_up), margin)
        return (
            f"another place has {runner_up:.0%} of the similarity: this one should stand {needed} "
            f"standard deviations above wrong places, and stands {stands}"
        )
    # What another place asks for beyond that is beside the point.
    least = _DEVIATIONS if runner_up is None else _CLEAR_DEVIATIONS
    needed, stands = _apart(least, margin)
    return (
        f"the similarity is not above chance: it should stand at least {needed} standard "
        f"deviations above wrong places, and stands {stands}"
    )


def _apart(needed: float, reached: float) -> tuple[str, str]:
    """Return two numbers, the second the smaller one, in words that differ."""
    digits = 1 if needed < 20 else 0
    up, down = (10**digits * value for value in (needed, reached))
    return f"{np.ceil(up) / 10**digits:.{digits}f}", f"{np.floor(down) / 10**digits:.{digits}f}"


def _scores(pairs: Pairs, matrices, level: int, samples: int, seed: int):
    """Return mutual information, less its bias, and overlap of ``(pairs, n, ...)`` matrices.

    Chance spreads around 0: cut off there, it would hardly spread.
    """
    count = matrices.shape[1]
    scoring = Scoring(pairs, COARSE, np.repeat(np.arange(pairs.count), count), seed)
    flat = matrices.reshape(-1, *matrices.shape[2:])
    similarity, overlap = scoring.evaluate(flat, (level,), samples)
    corrected = similarity - COARSE.bias(samples * np.maximum(overlap, 0.1))
    return corrected.reshape(-1, count), overlap.reshape(-1, count)


def _displaced(matrices, pairs: Pairs, generator) -> np.ndarray:
    """Return each matrix, followed by versions of it moved, turned and scaled well away."""
    dimensions = pairs.dimensions
    group: Group = Similarity()
    generators = group.generators(dimensions).astype("float64")
    size = np.full(len(generators), 0.7)  # up to 40 degrees
    extent = np.abs(pairs.corners).max(axis=0)
    size[:dimensions] = 0.6 * extent
    size[-1] = 0.15
    coefficients = size * generator.uniform(-1, 1, (_COUNT, len(generators)))
    # Never close to where it was: at least a tenth of the longest axis.
    axis = int(extent.argmax())
    way, least = coefficients[:, axis], 0.2 * extent[axis]
    coefficients[:, axis] = np.where(np.abs(way) < least, np.copysign(least, way), way)
    coefficients[0] = 0
    moves = exponential(np.tensordot(coefficients, generators, axes=1))
    return matrices[:, None] @ moves


def _stretch(matrix, corners) -> float:
    """Return by how much a matrix changes lengths at the corners and the centre, at most."""
    worst = 1.0
    if not np.isfinite(matrix).all():
        return np.inf
    for point in [*corners, corners.mean(0)]:
        weight = matrix[-1, :-1] @ point + matrix[-1, -1]
        if weight <= 1e-6:
            return np.inf
        image = (matrix[:-1, :-1] @ point + matrix[:-1, -1]) / weight
        jacobian = (matrix[:-1, :-1] - np.outer(image, matrix[-1, :-1])) / weight
        if np.linalg.det(jacobian) <= 0:
            return np.inf
        values = np.linalg.svd(jacobian, compute_uv=False)
        worst = max(worst, values.max(), 1 / values.min())
    return float(worst)
