"""Scoring steps: the loop around `FisherScoring`."""

from collections.abc import Iterator

import keras
import numpy as np

from kreg.groups import Group
from kreg.pairwise.blocks import carried
from kreg.pairwise.fisher import FisherScoring, exponential, scorer, solve, update
from kreg.pairwise.pairs import Sampled, to_tensors
from kreg.pairwise.schedule import Stage
from kreg.pairwise.similarity import LogRatio

#: A pair is still where no corner moved further, in voxels, from one half of the last stage to the
#: other; the stage is done this many times at most.
_STILL = 0.5
_REPEATS = 4


class Scoring:
    """Scoring steps on a batch of matrices, several for each pair if need be.

    Args:
        pairs: what is registered: `Pairs`, or tiles of one.
        similarity: the log-ratio.
        owner: the pair of each matrix.
        seed: of samples and weights.
        progress: what is told of each step, or None.
    """

    def __init__(self, pairs: Sampled, similarity: LogRatio, owner, seed, progress=None):
        self.pairs, self.similarity = pairs, similarity
        self.owner = np.asarray(owner)
        self.images = to_tensors(pairs.images(self.owner))
        self._seed, self._draws = seed, 0
        self.progress = progress
        self.weights = similarity.initial(len(self.owner), *pairs.channels, seed)
        self.state = similarity.train_state(self.weights)

    @property
    def _stopped(self) -> bool:
        return self.progress is not None and self.progress.stopped

    def _draw(self, levels, samples):
        self._draws += 1
        seed = self._seed, self._draws
        points, block = self.pairs.draw(
            seed, self.owner, levels, samples, shuffled=self.similarity.trained
        )
        return to_tensors([points.reshape(-1, self.pairs.dimensions), block])

    def pretrain(self, matrices, stage: Stage) -> None:
        """Train the similarity alone."""
        compiled = scorer(self.similarity)
        for _ in range(stage.pretraining):
            draw = self._draw(stage.levels, stage.samples)
            rate = to_tensors(np.float32(stage.rates[0]))
            matrix = to_tensors(matrices.astype("float32"))
            self.weights, self.state = compiled.trained_only(
                self.weights, self.state, rate, self.images, *draw, matrix
            )

    def score(self, matrices, group: Group, levels, samples, rate: float = 0.0):
        """Return g, A, similarity and overlap of matrices, as arrays."""
        generators = group.generators(self.pairs.dimensions)
        self.weights, self.state, *rest = scorer(self.similarity).step(
            self.weights,
            self.state,
            to_tensors(np.float32(rate)),
            self.images,
            *self._draw(levels, samples),
            to_tensors(matrices.astype("float32")),
            to_tensors(generators.reshape(len(generators), -1).astype("float32")),
        )
        return [keras.ops.convert_to_numpy(value) for value in rest]

    def evaluate(self, matrices, levels, samples):
        """Return similarity and overlap of matrices, as arrays; the log-ratio has no weights."""
        compiled, draw = scorer(self.similarity), self._draw(levels, samples)
        values = compiled.evaluate(self.images, *draw, to_tensors(matrices.astype("float32")))
        return [keras.ops.convert_to_numpy(value) for value in values]

    def steps(
        self, matrices, group: Group, stage: Stage, optimizer: FisherScoring, name: str = ""
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Yield for each step the matrices after it, those before it, and how these scored."""
        self.pretrain(matrices, stage)
        generators = group.generators(self.pairs.dimensions).astype("float64")
        cap = optimizer.cap * self.pairs.voxel(max(stage.levels))
        damping = self.similarity.damping if optimizer.damping is None else optimizer.damping
        finest = self.pairs.voxel(-1)
        length, last = np.ones(len(matrices)), None
        for step in range(stage.steps):
            gradient, information, similarity, overlap = self.score(
                matrices, group, stage.levels, stage.samples, stage.rate(step)
            )
            change = solve(gradient, information, damping)
            length = _adapted(length, change, last, information)
            before, last = matrices, change
            matrices, motion = update(
                matrices, change * length[:, None], generators, self.pairs.corners, cap
            )
            if self.progress is not None:
                logs = {"similarity": similarity, "overlap": overlap, "motion": motion / finest}
                self.progress.step(name, **logs)
            yield matrices, before, similarity, overlap
            if self._stopped:
                return

    def climb(
        self, matrices, group: Group, stages, optimizer: FisherScoring, name: str = ""
    ) -> Iterator[np.ndarray]:
        """Yield the matrices after each step of all stages, at last the mean of the last ones.

        Samples are drawn anew every step: the mean over the second half of the last stage is
        more exact than any one step. The last stage goes on while a pair still moves.
        """
        for stage in stages[:-1]:
            for after, *_ in self.steps(matrices, group, stage, optimizer, name or stage.label):
                matrices = after
                yield after
            if self._stopped:
                return
        generators = group.generators(self.pairs.dimensions).astype("float64")
        mean, moving = matrices, np.ones(len(matrices), bool)
        for again in range(_REPEATS):
            last: list[np.ndarray] = []
            one = stages[-1] if again == 0 else stages[-1].continued()
            for after, *_ in self.steps(matrices, group, one, optimizer, name or one.label):
                last.append(np.where(moving[:, None, None], after, mean))
                yield last[-1]
            if not last:
                return
            matrices = last[-1]
            half = len(last) // 2
            mean = np.where(moving[:, None, None], _mean(last[half:], generators), mean)
            yield mean
            earlier = _mean(last[: max(half, 1)], generators)
            drift = np.abs(carried(mean, self.pairs.corners) - carried(earlier, self.pairs.corners))
            moving = moving & (drift.max(axis=(1, 2)) > _STILL * self.pairs.voxel(-1))
            if not moving.any() or self._stopped:
                return


def _mean(matrices: list[np.ndarray], generators: np.ndarray) -> np.ndarray:
    """Return the mean of matrices near one another, within their group.

    The entries' own means would not be: the mean of two rotations is smaller than a rotation.
    """
    excess = np.stack(matrices) @ np.linalg.inv(matrices[-1])
    excess = (excess / excess[..., -1:, -1:]).mean(axis=0) - np.eye(excess.shape[-1])
    # The generators are at right angles to one another.
    coefficients = np.einsum("bij,kij->bk", excess, generators) / np.square(generators).sum((1, 2))
    mean = exponential(np.tensordot(coefficients, generators, axes=1)) @ matrices[-1]
    return mean / mean[:, -1:, -1:]


def _adapted(length, change, last, information) -> np.ndarray:
    """Return the length of the steps: longer while they agree, shorter when they turn round.

    Far from the optimum the information outweighs the curvature, and full steps are too short.
    """
    if last is None:
        return length

    def product(a, b):
        return np.einsum("bi,bij,bj->b", a, information, b)

    norm = np.sqrt(product(change, change) * product(last, last))
    cosine = product(change, last) / np.maximum(norm, 1e-300)
    return np.clip(length * np.where(cosine > 0.5, 1.5, np.where(cosine < 0, 0.5, 1)), 0.5, 8)
