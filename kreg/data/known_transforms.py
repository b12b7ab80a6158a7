"""Pairs of an image and itself under a random transform that is known: no labels are needed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product

import keras
import numpy as np

from kreg.data.pairs import as_images, to_float


@dataclass(frozen=True)
class RandomAffine:
    """A = T R S: stretched along each axis, rotated about the middle, shifted; all drawn evenly.

    Args:
        rotation: the largest angle in degrees, either way; in 3-D about each axis.
        scale: the least and the largest scale, drawn evenly on a logarithmic scale.
        stretch: the axes' scales differ from it by a factor between 1 / stretch and stretch.
        translation: the largest shift along each axis, either way, as a share of its size.

    Raises:
        ValueError: if an angle or a shift is negative, a scale is not positive, the least exceeds
            the largest, or `stretch` is below 1.
    """

    rotation: float = 45.0
    scale: tuple[float, float] = (0.7, 1.4)
    stretch: float = 1.0
    translation: float = 0.2

    def __post_init__(self):
        low, high = self.scale
        if min(self.rotation, self.translation) < 0 or not 0 < low <= high or self.stretch < 1:
            raise ValueError(
                "Expected `rotation` and `translation` >= 0, 0 < least `scale` <= largest and "
                f"`stretch` >= 1. Received: {self}."
            )

    def draw(self, rng: np.random.Generator, count: int, shape: Sequence[int]) -> np.ndarray:
        """Return matrices ``(count, D + 1, D + 1)`` in the centred world frame, float64."""
        axes = len(shape)
        low, high = np.log(self.scale)
        logarithms = rng.uniform(low, high, (count, 1))
        stretch = math.log(self.stretch)
        scales = np.exp(logarithms + rng.uniform(-stretch, stretch, (count, axes)))
        linear = np.eye(axes) * scales[:, None]
        for first, second in combinations(range(axes), 2):
            angle = np.deg2rad(rng.uniform(-self.rotation, self.rotation, count))
            turn = np.tile(np.eye(axes), (count, 1, 1))
            turn[:, first, first] = turn[:, second, second] = np.cos(angle)
            turn[:, second, first] = np.sin(angle)
            turn[:, first, second] = -np.sin(angle)
            linear = turn @ linear
        matrices = np.tile(np.eye(axes + 1), (count, 1, 1))
        matrices[:, :-1, :-1] = linear
        shift = rng.uniform(-self.translation, self.translation, (count, axes))
        matrices[:, :-1, -1] = shift * np.asarray(shape)
        return matrices


@dataclass(frozen=True)
class SmoothNoise:
    """s(x): Gaussian noise of one standard deviation everywhere, smooth.

    Independent numbers on a coarse grid, weighted by Gaussians.

    Args:
        deviation: standard deviation of each component, as a share of the longest side.
        correlation: over this distance, as a share of the longest side, values are correlated by
            exp(-1/2).

    Raises:
        ValueError: if `deviation` is negative or `correlation` not positive.
    """

    deviation: float = 0.006
    correlation: float = 0.15

    def __post_init__(self):
        if self.deviation < 0 or not self.correlation > 0:
            raise ValueError(f"Expected `deviation` >= 0 and `correlation` > 0. Received: {self}.")

    def draw(self, rng: np.random.Generator, count: int, shape: Sequence[int]) -> np.ndarray:
        """Return displacements ``(count, *shape, D)``, voxels, float32."""
        longest = max(shape)
        # A Gaussian and itself overlap as a Gaussian sqrt(2) times as wide.
        width = self.correlation * longest / math.sqrt(2)
        operators = [_noise_operator(size, width) for size in shape]
        points = [operator.shape[1] for operator in operators]
        noise = rng.standard_normal((count, len(shape), *points), "float32")
        for axis, operator in enumerate(operators, 2):
            noise = np.moveaxis(np.tensordot(noise, operator, (axis, 1)), -1, axis)
        return np.moveaxis(self.deviation * longest * noise, 1, -1)


def _noise_operator(size: int, width: float) -> np.ndarray:
    """Gaussian weights of control points a width apart; each row has the norm 1."""
    points = np.arange(-3 * width, size + 3 * width, width)
    operator = np.exp(-0.5 * ((np.arange(size)[:, None] - points) / width) ** 2)
    return (operator / np.linalg.norm(operator, axis=1, keepdims=True)).astype("float32")


class KnownTransforms(keras.utils.PyDataset):
    """Pairs of an image I with itself, moving = I, fixed(x) = I(A (x + s(x))), and their truth.

    Any images do: a network trained on the truth needs no labels and no similarity. Outside of
    the image it is zero, unless it is `mirrored`.

    Each batch is a tuple of one dict. What `kreg.RegistrationModel` compares the outputs
    ``matrix``, ``stage_matrices`` and ``displacement`` with is where they lead in the moving
    image, by the same names behind ``moving_``:

    * ``moving``, ``fixed``: ``(batch, *spatial, channels)``, float32.
    * ``moving_matrix``: A, ``(batch, D + 1, D + 1)``, fixed to moving points in the centred world
      frame; ``moving_stage_matrices`` the same for any number of stages,
      ``(batch, 1, D + 1, D + 1)``.
    * ``moving_displacement``: u(x) = A (x + s(x)) - x, ``(batch, *spatial, D)``, voxels.

    Drawn batch by batch, of seed, epoch and batch alone.

    Args:
        images: ``(n, *spatial[, channels])``; integers are scaled to [0, 1].
        affine: `RandomAffine`, or an object with ``draw(rng, count, shape)``.
        deformation: `SmoothNoise`, an object with ``draw(rng, count, shape)``, or None for none.
        other: the share of pairs whose moving image is another one of the set, for sets that are
            roughly aligned: A is then the truth but for what differs between the two.
        inverted: the share of pairs whose moving image has its contrast inverted.
        mirrored: whether outside of the image it is mirrored rather than zero. For photographs,
            whose visible edge would give the transform away.
        batch_size: pairs a batch.
        steps: batches an epoch.
        seed: of the draw.
        fresh: whether each epoch draws other pairs; False for a fixed set.

    Raises:
        ValueError: see `as_images`; also if `batch_size` or `steps` is not positive, a share not
            in [0, 1], or there is no other image.
    """

    def __init__(
        self,
        images,
        *,
        affine=RandomAffine(),
        deformation=SmoothNoise(),
        other: float = 0.0,
        inverted: float = 0.0,
        mirrored: bool = False,
        batch_size: int = 32,
        steps: int = 100,
        seed: int = 0,
        fresh: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.images = as_images(images)
        if min(batch_size, steps) < 1:
            raise ValueError(
                f"Expected `batch_size` and `steps` >= 1. Received: {batch_size} and {steps}."
            )
        if not (0 <= other <= 1 and 0 <= inverted <= 1):
            raise ValueError(
                "Expected `other` and `inverted` in [0, 1], shares of the pairs. "
                f"Received: {other} and {inverted}."
            )
        if other and len(self.images) < 2:
            raise ValueError(
                "Expected two images or more for pairs of different ones. Received: 1."
            )
        self.affine, self.deformation = affine, deformation
        self.other, self.inverted, self.mirrored = other, inverted, mirrored
        self.batch_size, self.steps = batch_size, steps
        self.seed, self.fresh, self.epoch = seed, fresh, 0

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image, ``(*spatial, channels)``: what the model builders take."""
        return self.images.shape[1:]

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, batch: int):
        rng = np.random.default_rng((self.seed, self.epoch if self.fresh else 0, batch))
        count, shape = self.batch_size, self.image_shape[:-1]
        chosen = rng.integers(len(self.images), size=count)
        matrix = self.affine.draw(rng, count, shape)
        start = np.zeros((count, *shape, len(shape)), "float32")
        if self.deformation is not None:
            start = self.deformation.draw(rng, count, shape)
        points, displacement = _mapped(matrix, start, shape)
        image = to_float(self.images[chosen])
        moving = image
        if self.other:
            others = (chosen + rng.integers(1, len(self.images), size=count)) % len(self.images)
            others = np.where(rng.random(count) < self.other, others, chosen)
            moving = to_float(self.images[others])
        if self.inverted:
            within = tuple(range(1, moving.ndim))
            ends = moving.min(within, keepdims=True) + moving.max(within, keepdims=True)
            swap = rng.random((count, *(1 for _ in within))) < self.inverted
            moving = np.where(swap, ends - moving, moving)
        matrix = matrix.astype("float32")
        return (
            {
                "moving": moving,
                "fixed": _sampled(image, points, self.mirrored),
                "moving_matrix": matrix,
                "moving_stage_matrices": matrix[:, None],
                "moving_displacement": displacement,
            },
        )

    def on_epoch_end(self):
        """Go on to the draws of the next epoch."""
        self.epoch += 1


def _mapped(matrix, start, shape):
    """A (x + s(x)) and u(x), voxels, float32."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).astype("float32")
    middle = (np.asarray(shape, "float32") - 1) / 2
    linear = np.swapaxes(matrix[:, :-1, :-1], 1, 2).astype("float32")
    shift = matrix[:, None, :-1, -1].astype("float32") + middle
    at = (start + (grid - middle)).reshape(len(matrix), -1, len(shape))
    points = (at @ linear + shift).reshape(start.shape)
    return points, points - grid


def _sampled(images, points, mirrored: bool):
    """Linear interpolation of each image at its points ``(n, *spatial, D)``."""
    count, *shape, channels = images.shape
    # One voxel more around: zeros make "zero outside" of "the nearest", and none is the last.
    margin = (0, 1) if mirrored else (1, 2)
    frame = [(0, 0), *[margin] * len(shape), (0, 0)]
    padded = np.pad(images, frame, "edge" if mirrored else "constant")
    strides = np.cumprod([1, *padded.shape[-2:0:-1]])[::-1]  # rows from voxel to voxel, image first
    index = np.arange(count).reshape(count, *(1 for _ in shape)) * strides[0]
    fractions = []
    for axis, (size, stride) in enumerate(zip(shape, strides[1:], strict=True)):
        x = points[..., axis]  # axis by axis: several times faster than all in one array
        if mirrored:
            x = np.mod(x + np.float32(0.5), np.float32(2 * size))
            x = np.clip(np.minimum(x, 2 * size - x) - np.float32(0.5), 0, size - 1)
        else:
            x = np.clip(x + 1, 0, size + 1)
        lower = x.astype("int64")
        index = index + lower * stride
        fractions.append((x - lower).astype("float32")[..., None])
    rows = padded.reshape(-1, channels)
    steps = strides[1:]
    values = [
        np.take(rows, index + np.dot(corner, steps), axis=0)
        for corner in product((0, 1), repeat=len(shape))
    ]
    for fraction in reversed(fractions):  # the last axis varies fastest
        pairs = zip(values[0::2], values[1::2], strict=True)
        values = [low + (high - low) * fraction for low, high in pairs]
    return values[0]
