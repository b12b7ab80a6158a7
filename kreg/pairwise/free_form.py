"""Gradient descent with any Keras optimizer and any loss on B-splines of a displacement."""

import functools
from collections.abc import Iterator, Sequence

import keras
import numpy as np
from keras import ops

from kreg import backend
from kreg.layers import ComposeDisplacements
from kreg.losses import ImageLoss, WeightedSum
from kreg.ops.bspline import bspline_operator
from kreg.pairwise.descent import deserialised, serialised
from kreg.pairwise.field import Field, along, fit, flat, level_inputs, shuffled, warped
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
    independent. Compiled once for each loss object: make it once, not for each pair.
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

    def fields(self, control):
        """Return the field of the control points, and the displacement that it means."""
        field = along(control, self.spline)
        return field, self.transform.displacement(field)

    def _loss(self, variables, outer, fixed, mask, moving, moving_mask, matrix):
        control, *weights = variables
        field, found = self.fields(control)
        u = ComposeDisplacements()(outer[0], found) if outer else found
        both = _compiled_look(moving, moving_mask, matrix, u)
        image, inside = both[..., :-1], both[..., -1:] * mask
        if isinstance(self.similarity, LogRatio):
            samples = flat(fixed), flat(image), flat(inside)[..., 0]
            if self.similarity.trained:
                samples = tuple(map(shuffled, samples))
            loss, similarity = self.similarity.descent(weights, *samples)
        else:
            loss = per_pair(self.similarity, fixed, image, ops.stop_gradient(inside))
            similarity = -loss
        overlap = ops.mean(inside, axis=tuple(range(1, len(inside.shape))))
        penalised = self.transform.penalised(field, u)
        penalty = per_pair(self.transform.penalty, ops.zeros_like(penalised), penalised, None)
        return ops.sum(loss + penalty), (similarity, overlap, field, found)


def per_pair(loss: keras.losses.Loss, fixed, warped, inside):
    """Return a loss of each pair ``(batch,)``, whatever its reduction.

    Args:
        loss: a loss of kreg; or any that returns a value a sample or a voxel.
        fixed, warped: what it compares.
        inside: None, or weights of the voxels ``(batch, *spatial, 1)``.
    """
    if isinstance(loss, WeightedSum):
        terms = zip(loss.weights, loss.losses, strict=True)
        return sum(weight * per_pair(one, fixed, warped, inside) for weight, one in terms)
    if isinstance(loss, ImageLoss):
        return loss.compare(fixed, warped, inside)
    if inside is not None:  # no difference where the moving image does not reach
        warped = fixed + inside * (warped - fixed)
    values = loss.call(fixed, warped)
    axes = tuple(range(1, len(values.shape)))
    return ops.mean(values, axis=axes) if axes else values


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
    start: Field | None,
    seed: int,
    progress: Progress,
) -> Iterator[Field]:
    """Yield, at each step, the displacement that comes before that of the start, if any."""
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
        field = field.on(frame, shape)
        outer = [] if start is None else to_tensors([start.on(frame, shape).values])
        control = along(field.values, [fit(bspline_operator(n, here.spacing)) for n in shape])
        variables = [to_tensors(ops.convert_to_numpy(control)), *weights]
        shapes = tuple(tuple(variable.shape) for variable in variables)
        compiled = _step(similarity, here, config, tuple(shape), shapes)
        compiled.restart(variables)
        inputs = outer, *level_inputs(pairs, level, matrices)
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
        fields = compiled.fields(values)
        field, current = (Field(ops.convert_to_numpy(values), frame) for values in fields)
        yield current
        if progress.stopped:
            break
