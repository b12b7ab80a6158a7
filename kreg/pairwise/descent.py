"""Gradient descent with any Keras optimizer on a transform's coefficients."""

import functools
import json
from collections.abc import Iterator, Sequence

import keras
import numpy as np
from keras import ops

from kreg import backend
from kreg.groups import Group
from kreg.ops.matrix_exponential import matrix_exponential
from kreg.pairwise.blocks import carried
from kreg.pairwise.fisher import sampled
from kreg.pairwise.pairs import Pairs, to_tensors
from kreg.pairwise.progress import Progress
from kreg.pairwise.schedule import Stage
from kreg.pairwise.similarity import LogRatio


class Descender:
    """The compiled step: H = exp(sum_k c_k B_k) H_0, a Keras optimizer on c and on T's weights.

    The loss is minus the similarity, summed over the pairs, which are independent.
    """

    def __init__(self, similarity: LogRatio, generators: np.ndarray, optimizer, shapes):
        self.similarity = similarity
        self.generators = generators
        self.variables = [keras.Variable(np.zeros(shape, "float32")) for shape in shapes]
        self.optimizer = optimizer
        optimizer.build(self.variables)
        self._initial = [ops.convert_to_numpy(variable) for variable in optimizer.variables]
        self.step = backend.training_step(self._loss, self.variables, optimizer)

    def restart(self, values: list) -> None:
        """Begin anew from values of the variables."""
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(value)
        for variable, value in zip(self.optimizer.variables, self._initial, strict=True):
            variable.assign(value)

    def matrices(self, coefficients, base):
        """Return exp(sum_k c_k B_k) H_0."""
        tangent = ops.tensordot(coefficients, self.generators, axes=1)
        return ops.matmul(matrix_exponential(tangent), base)

    def _loss(self, variables, base, images, points, block):
        coefficients, *weights = variables
        matrix = self.matrices(coefficients, base)
        fixed, _, moving, inside, overlap = sampled(images, points, block, matrix)
        value, similarity = self.similarity.descent(weights, fixed, moving, inside)
        return ops.sum(value), (similarity, overlap)


@functools.lru_cache(maxsize=16)
def _descender(similarity, group: Group, dimensions: int, config: str, shapes) -> Descender:
    return Descender(similarity, group.generators(dimensions), deserialised(config), shapes)


def serialised(optimizer: keras.optimizers.Optimizer) -> str:
    """Return what makes the same optimizer anew, alike for alike ones: compiled code is kept."""
    config = keras.optimizers.serialize(optimizer)
    config["config"].pop("name", None)  # Keras numbers them
    return json.dumps(config, sort_keys=True)


def deserialised(config: str) -> keras.optimizers.Optimizer:
    """Return a new optimizer, with no state."""
    return keras.optimizers.deserialize(json.loads(config))


def descend(
    pairs: Pairs,
    similarity: LogRatio,
    group: Group,
    optimizer: keras.optimizers.Optimizer,
    stages: Sequence[Stage],
    matrices: np.ndarray,
    seed: int,
    progress: Progress,
) -> Iterator[np.ndarray]:
    """Yield the matrices ``(pairs, D + 1, D + 1)`` after each step.

    The optimizer moves transform and similarity at once, by its own rate: of a stage only levels,
    steps and samples count.
    """
    draws = 0
    owner = np.arange(pairs.count)
    size = group.size(pairs.dimensions)
    variables = to_tensors([np.zeros((pairs.count, size), "float32")])
    variables += similarity.initial(pairs.count, *pairs.channels, seed)
    shapes = tuple(tuple(variable.shape) for variable in variables)
    compiled = _descender(similarity, group, pairs.dimensions, serialised(optimizer), shapes)
    compiled.restart(variables)
    base, images = to_tensors(matrices.astype("float32")), to_tensors(pairs.images(owner))
    finest = pairs.voxel(-1)
    for stage in stages:
        for _ in range(stage.steps):
            draws += 1
            drawn = pairs.draw(
                (seed, draws), owner, stage.levels, stage.samples, shuffled=similarity.trained
            )
            draw = to_tensors(list(drawn))
            before = matrices
            similarities, overlap = compiled.step(base, images, *draw)
            coefficients = ops.convert_to_numpy(compiled.variables[0])
            matrices = ops.convert_to_numpy(compiled.matrices(coefficients, base)).astype("float64")
            motion = np.abs(carried(matrices, pairs.corners) - carried(before, pairs.corners))
            progress.step(
                stage.label,
                similarity=ops.convert_to_numpy(similarities),
                overlap=ops.convert_to_numpy(overlap),
                motion=motion.max(axis=(1, 2)) / finest,
            )
            yield matrices
            if progress.stopped:
                return
