"""Refine a displacement by local least squares, weighted by joint saliency."""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import keras
import numpy as np
from keras import ops

from kreg import backend
from kreg.ops.coordinates import check_displacement, check_image, check_same_size
from kreg.ops.displacement import compose, spatial_gradient, warp
from kreg.ops.filters import along_axis, gaussian_operator, known_sizes
from kreg.ops.intensity import normalise_locally
from kreg.ops.interpolation import nearest_border
from kreg.ops.saliency import TensorCorrelation

#: One step is at most so many voxels long, and stretches at most so much: it does not fold.
_LONGEST, _STRETCH = 2.0, 0.45
#: A step of which the tensor's trace is below so many stiffnesses counts for less than half.
_CONFIDENT = 4.0
#: A Gaussian as narrow as this, in voxels, leaves an image as it is.
_NO_BLUR = 0.05
#: Added to a saliency, whose power then has a slope everywhere.
_LEAST = 1e-3


@keras.saving.register_keras_serializable("kreg")
@dataclass(frozen=True)
class RefinementStage:
    """Steps of `SaliencyRefinement` that are alike.

    Args:
        window: standard deviation in voxels of the window of each least-squares problem.
        blur: the same of the Gaussian that smooths both images; 0 for none.
        steps: how many there are.
        power: p of the weights J^p, the first value where it is learned; 0 for equal weights.
        elastic: standard deviation in voxels of the Gaussian that smooths the displacement after
            each step.
        stiffness: what holds a step back, as a share of the mean trace of the tensor; the first
            value where it is learned.

    Raises:
        ValueError: if a number is negative, or `window`, `elastic` or `stiffness` 0.
    """

    window: float
    blur: float
    steps: int
    power: float = 4.0
    elastic: float = 1.75
    stiffness: float = 0.05

    def __post_init__(self):
        positive = min(self.window, self.elastic, self.stiffness) > 0
        if not positive or min(self.blur, self.steps, self.power) < 0:
            raise ValueError(
                "Expected positive `window`, `elastic` and `stiffness`, and `blur`, `steps` and "
                f"`power` >= 0. Received: {self}."
            )

    def get_config(self):
        """Return the constructor arguments."""
        return asdict(self)

    @classmethod
    def from_config(cls, config):
        """Return the stage."""
        return cls(**config)


@keras.saving.register_keras_serializable("kreg")
class SaliencyRefinement(keras.layers.Layer):
    """phi <- (phi o (id + d)) smoothed, d = (T + k I)^-1 g_s * (c e grad w), again and again.

    Unrolled steps of Lucas and Kanade (IJCAI 1981). f and w are fixed and warped image, e = f - w,
    T = g_s * (c grad w grad w^T) with the mean of both images' gradients for grad w, g_s a Gaussian
    window, k the stiffness times the mean of tr T. The weights c = J^p come from the joint saliency
    J of both images, anew in each step: what one image shows and the other lacks does not pull.
    Where T says little, d is that of the surroundings. With local normalisation, what has no
    partner counts for nothing in the averages either.

    Gradients reach the displacement, by the warped image and by the weights, and what is learned:
    stiffness and power of each stage, unless ``trainable=False``. The images are taken for data. A
    pair without differences is left as it is. Each pair by itself.

    Args:
        stages: `RefinementStage` objects, coarse to fine.
        saliency: the kind of J, such as `kreg.ops.TensorCorrelation`, within
            `kreg.ops.LocallyNormalised` where contrast differs; None for c = 1, least squares
            without weights.
        normalisation: None, or the standard deviation in voxels of the window in which both images
            are normalised (`kreg.ops.normalise_locally`); for images whose contrast differs.

    Call arguments:
        fixed, moving: ``(batch, *spatial, channels)``, floating, equal sizes that are known.
        displacement: ``(batch, *spatial, D)``, voxels, where to start.

    Raises:
        ValueError: if there is no stage, the normalisation is not positive, the shapes differ, a
            spatial size is unknown or the images are not floating.
    """

    def __init__(
        self,
        stages: Sequence[RefinementStage],
        *,
        saliency=TensorCorrelation(),  # noqa: B008, it is frozen
        normalisation=None,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)  # displacements stay float32
        self.stages = tuple(stages)
        self.saliency = saliency
        self.normalisation = normalisation
        if not self.stages or not (normalisation is None or normalisation > 0):
            raise ValueError(
                "Expected at least one stage, and `normalisation` None or > 0 voxels. "
                f"Received: stages {self.stages}, normalisation {normalisation}."
            )

    def build(self, *_):
        """Make the weights: logarithms, so that what they stand for stays positive."""

        def logarithms(name):
            values = [max(getattr(stage, name), 1e-3) for stage in self.stages]
            return self.add_weight(
                shape=(len(values),), dtype="float32", name=f"log_{name}", autocast=False,
                initializer=keras.initializers.Constant(np.log(values).astype("float32")),
            )  # fmt: skip

        self._logarithms = [logarithms("stiffness")]
        if self.saliency is not None:
            self._logarithms.append(logarithms("power"))

    def call(self, fixed, moving, displacement):
        """Return the refined displacement, ``(batch, *spatial, D)`` float32 voxels."""
        check_pair(fixed, moving, displacement)
        fixed, moving, u = (ops.cast(x, "float32") for x in (fixed, moving, displacement))
        seen = fixed if self.saliency is None else described(self.saliency, fixed)
        learned = ops.stack([ops.convert_to_tensor(x) for x in self._logarithms], axis=-1)
        step = _step(self.saliency, self.normalisation)
        for i, stage in enumerate(self.stages):
            numbers = ops.exp(learned[i])
            widths = max(stage.blur, _NO_BLUR), stage.window, stage.elastic
            gaussians = [
                ops.convert_to_tensor(gaussian_operator(np.arange(size), size, sigma))
                for sigma in widths
                for size in known_sizes(fixed)
            ]

            def improve(u, numbers=numbers, gaussians=gaussians):
                return step(seen, fixed, moving, u, numbers, *gaussians)

            u = backend.repeat(improve, stage.steps, u)
        return u

    def compute_output_spec(self, fixed, moving, displacement):
        """Return the shape of the displacement, float32 whatever the policy."""
        shape = self.compute_output_shape(fixed.shape, moving.shape, displacement.shape)
        return keras.KerasTensor(shape, dtype="float32")

    def compute_output_shape(self, fixed_shape, moving_shape, displacement_shape):
        """Return the shape of the displacement."""
        return refined_shape(fixed_shape, displacement_shape)

    def get_config(self):
        """Return the constructor arguments."""
        return {
            **super().get_config(),
            "stages": [keras.saving.serialize_keras_object(stage) for stage in self.stages],
            "saliency": keras.saving.serialize_keras_object(self.saliency),
            "normalisation": self.normalisation,
        }

    @classmethod
    def from_config(cls, config):
        """Rebuild stages and saliency, then the layer."""
        config = {**config}
        for name in ("stages", "saliency"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)


def refined_shape(fixed_shape, displacement_shape) -> tuple:
    """Return the displacement's shape, or raise ValueError if a spatial size is unknown."""
    if None in fixed_shape[1:-1]:
        raise ValueError(
            "Expected known spatial sizes, over which windows reach; give them to "
            f"`keras.Input`. Received: fixed {tuple(fixed_shape)}."
        )
    return tuple(displacement_shape)


def check_pair(fixed, moving, displacement):
    """Raise ValueError unless both images and the displacement share one grid of known sizes."""
    fixed, moving = check_image(fixed, "fixed"), check_image(moving, "moving")
    check_same_size(fixed, moving, ("fixed", "moving"))
    displacement = check_displacement(displacement)
    sizes = known_sizes(fixed), known_sizes(displacement)
    if sizes[0] != sizes[1]:
        raise ValueError(
            "Expected a displacement on the grid of the images; `kreg.layers.ResizeDisplacement` "
            f"brings it there. Received: sizes {sizes[1]} and {sizes[0]}."
        )


def _normalised(image, sigma, weights=None):
    return image if sigma is None else normalise_locally(image, sigma, weights)


def described(saliency, image):
    """Return what the saliency compares of an image, computed once for many comparisons."""
    return _describe(saliency)(image)


@functools.lru_cache
def _describe(saliency):
    return backend.compiled(saliency.describe)


# One boundary a step: fused into one another, XLA would compile chained warps for minutes. The
# Gaussians are tensors: it is compiled once for all stages.
@functools.lru_cache
def _step(saliency, normalisation):
    def step(seen, fixed, moving, u, numbers, *gaussians):
        # Stopped inside the boundary: outside it, XLA would still compute the gradients.
        seen, fixed, moving = map(ops.stop_gradient, (seen, fixed, moving))
        gaussians = [ops.stop_gradient(gaussian) for gaussian in gaussians]
        axes = u.shape[-1]
        blur, window, elastic = (gaussians[i * axes : (i + 1) * axes] for i in range(3))
        warped = warp(moving, u, border=nearest_border)
        weights = None
        if saliency is not None:
            joint = saliency.compare(seen, saliency.describe(warped))
            weights = ops.power((joint + _LEAST) / (1 + _LEAST), numbers[1])
        pair = [_normalised(image, normalisation, weights) for image in (fixed, warped)]
        pair = [_smooth(image, blur) for image in pair]
        change = _least_squares(*pair, weights, window, numbers[0])
        return _smooth(compose(u, change), elastic)

    return backend.compiled(step)


def _least_squares(fixed, warped, weights, window, stiffness):
    """The step d ``(batch, *spatial, D)`` that brings the warped image nearest to the fixed one."""
    gradient = (spatial_gradient(fixed) + spatial_gradient(warped)) / 2
    difference = (fixed - warped)[..., None]
    slopes = ops.unstack(gradient, axis=-1)  # D times (batch, *spatial, channels)
    size = len(slopes)
    pairs = [(i, j) for i in range(size) for j in range(i, size)]
    products = [slopes[i] * slopes[j] for i, j in pairs]
    products += [slope * difference[..., 0] for slope in slopes]
    products = ops.stack([ops.sum(product, axis=-1) for product in products], axis=-1)
    if weights is not None:
        products = weights * products
    products = ops.unstack(_smooth(products, window), axis=-1)
    entries = dict(zip(pairs, products, strict=False))
    force = products[len(pairs) :]

    trace = sum(entries[i, i] for i in range(size))
    axes = tuple(range(1, len(trace.shape)))
    hold = stiffness * ops.mean(trace, axis=axes, keepdims=True) + 1e-12
    system = [
        [entries[min(i, j), max(i, j)] + (hold if i == j else 0.0) for j in range(size)]
        for i in range(size)
    ]
    change = ops.stack(_solved(system, force), axis=-1)
    length = ops.sqrt(ops.sum(ops.square(change), axis=-1, keepdims=True) + 1e-12)
    change = change * ops.minimum(1.0, _LONGEST / length)

    confidence = (trace / (trace + _CONFIDENT * hold))[..., None]
    both = _smooth(ops.concatenate([confidence * change, confidence], axis=-1), window)
    return _held(both[..., :-1] / (both[..., -1:] + 1e-3))


def _solved(matrix, right):
    """Solve a symmetric positive system of tensors at each voxel, by elimination."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    size = len(rows)
    for k, pivot in enumerate(rows):
        for row in rows[k + 1 :]:
            factor = row[k] / pivot[k]
            row[k:] = [a - factor * b for a, b in zip(row[k:], pivot[k:], strict=True)]
    found: list = [None] * size
    for i in reversed(range(size)):
        rest = sum(rows[i][j] * found[j] for j in range(i + 1, size))
        found[i] = (rows[i][size] - rest) / rows[i][i]
    return found


def _held(change):
    """A step made shorter, per sample, until it stretches nowhere by more than `_STRETCH`."""
    slope = ops.abs(spatial_gradient(change))
    axes = tuple(range(1, len(slope.shape)))
    steepest = ops.max(slope, axis=axes)
    factor = ops.minimum(1.0, _STRETCH / (steepest + 1e-9))
    return change * ops.reshape(factor, (-1, *(1,) * (len(change.shape) - 1)))


def _smooth(image, gaussians):
    for axis, gaussian in enumerate(gaussians, 1):
        image = along_axis(image, gaussian, axis)
    return image
