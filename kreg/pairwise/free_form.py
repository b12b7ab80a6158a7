"""Gradient descent with any Keras optimizer and any loss on B-splines of a displacement."""

import functools
from collections.abc import Iterator, Sequence

import keras
import numpy as np
from keras import ops

from kreg import backend
from kreg.layers import ComposeDisplacements
from kreg.ops.bspline import bspline_operator
from kreg.pairwise.descent import deserialised, serialised
from kreg.pairwise.field import Field, along, fit, flat, level_inputs, unfolded, warped
from kreg.pairwise.pairs import Pairs, to_tensors
from kreg.pairwise.progress import Progress
from kreg.pairwise.schedule import Stage
from kreg.pairwise.similarity import LogRatio
from kreg.transforms import FreeForm


def _look(moving, mask, matrix, u):
    """The warped image and its weights, differentiable in the displacement alone."""
    return warped(ops.stop_gradient(moving), ops.stop_gradient(mask), matrix, u)


_compiled_look = backend.compiled(_look)


class FreeFormStep:
    """The compiled step on one level: a Keras optimizer on control points and T's weights.

    The loss is that of the images and the transform's penalty, summed over the pairs, which are
    independent.
    """

    def __init__(self, similarity, transform: FreeForm, optimizer, shape, shapes):
        self.similarity, self.transform, self.optimizer = similarity, transform, optimizer
        self.spline = [bspline_operator(size, transform.spacing) for size in shape]
        self.variables = [keras.Variable(np.zeros(shape, "float32")) for shape in shapes]
        optimizer.build(self.variables)
        self._initial = [ops.convert_to_numpy(variable) for variable in optimizer.variables]
        # Not XLA as a whole, which would fuse the warps of an integration into one another.
        self.step = backend.training_step(self._loss, self.variables, optimizer, whole=False)

    def restart(self, values: list) -> None:
        """Begin anew from values of the variables."""
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(value)
        for variable, value in zip(self.optimizer.variables, self._initial, strict=True):
            variable.assign(value)

    def fields(self, control, start):
        """Return the field of the control points, and the displacement that it means."""
        field = along(control, self.spline)
        return field, ComposeDisplacements()(start, self.transform.displacement(field))

    def _loss(self, variables, start, fixed, mask, moving, moving_mask, matrix):
        control, *weights = variables
        field, u = self.fields(control, start)
        both = _compiled_look(moving, moving_mask, matrix, u)
        image, inside = both[..., :-1], both[..., -1:] * mask
        pairs = u.shape[0]
        if isinstance(self.similarity, LogRatio):
            weight = flat(inside)[..., 0]
            value, similarity = self.similarity.descent(weights, flat(fixed), flat(image), weight)
            loss = ops.sum(value)
        else:
            mean = self.similarity(fixed, image, sample_weight=ops.stop_gradient(inside[..., 0]))
            loss, similarity = pairs * mean, ops.broadcast_to(-mean, (pairs,))
        overlap = ops.mean(inside, axis=tuple(range(1, len(inside.shape))))
        penalised = self.transform.penalised(field, u)
        penalty = pairs * self.transform.penalty(ops.zeros_like(penalised), penalised)
        return loss + penalty, (similarity, overlap, field, u)


@functools.lru_cache(maxsize=32)
def _step(similarity, transform, config: str, shape, shapes) -> FreeFormStep:
    return FreeFormStep(similarity, transform, deserialised(config), shape, shapes)


def descend_field(
    pairs: Pairs,
    similarity: LogRatio | keras.losses.Loss,
    transform: FreeForm,
    optimizer: keras.optimizers.Optimizer,
    stages: Sequence[Stage],
    matrices: np.ndarray,
    start: Field,
    seed: int,
    progress: Progress,
) -> Iterator[Field]:
    """Yield the displacement before each step; at last, free of folds where they can be removed."""
    config = serialised(optimizer)
    weights = []
    if isinstance(similarity, LogRatio):
        weights = similarity.initial(pairs.count, *pairs.channels, seed)
    field = current = Field.still(pairs)
    for stage in stages:
        (level,) = stage.levels
        frame, shape = pairs.fixed.frames[level], pairs.fixed.levels[level].shape[1:-1]
        coarser = pairs.voxel(level) / pairs.voxel(-1)
        here = transform.at(coarser)
        field, beginning = field.on(frame, shape), start.on(frame, shape)
        control = along(field.values, [fit(bspline_operator(n, here.spacing)) for n in shape])
        variables = [to_tensors(ops.convert_to_numpy(control)), *weights]
        shapes = tuple(tuple(variable.shape) for variable in variables)
        compiled = _step(similarity, here, config, tuple(shape), shapes)
        compiled.restart(variables)
        inputs = to_tensors(beginning.values), *level_inputs(pairs, level, matrices)
        last = current.on(frame, shape).values
        for _ in range(stage.steps):
            similarities, overlap, *fields = compiled.step(*inputs)
            field, current = (Field(ops.convert_to_numpy(values), frame) for values in fields)
            change = np.square(current.values - last).sum(-1)
            last = current.values
            progress.step(
                f"dense, {stage.label}",
                similarity=ops.convert_to_numpy(similarities),
                overlap=ops.convert_to_numpy(overlap),
                motion=coarser * np.sqrt(change.reshape(pairs.count, -1).mean(1)),
            )
            yield current
            if progress.stopped:
                break
        values, *weights = [variable.value for variable in compiled.variables]
        fields = compiled.fields(values, inputs[0])
        field, current = (Field(ops.convert_to_numpy(values), frame) for values in fields)
        if progress.stopped:
            break
    whole = current.whole(pairs)
    yield Field(unfolded(whole.values), whole.frame)
