"""Pairs with missing correspondence: a known deformation, and parts that one image lacks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from scipy import ndimage

from kreg.data.pairs import as_images, to_float

Field = Callable[[np.ndarray], np.ndarray]

#: Alterations above this share of the image's range are seen: they make up the truth's mask.
_VISIBLE = 0.05
#: Voxels brighter than this share of the image's range are foreground.
_FOREGROUND = 0.1
#: Landmarks lie on edges stronger than this share of the strong ones (a quantile), this far from
#: one another, from what is altered and from the border, in voxels.
_EDGE, _STRONG, _DISTANCE, _MARGIN = 0.3, 0.98, 4.0, 2
#: Deformations drawn until one does not fold, and until one keeps the object within the frame.
_DRAWS, _FRAMINGS = 200, 8
#: The share of a deformation that varies the object's form, in both images alike.
_FORM = 0.5


def _grid(shape: Sequence[int]) -> np.ndarray:
    """Return the index of every voxel, ``(*shape, D)``."""
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).astype("float64")


def _smooth_noise(rng: np.random.Generator, shape: Sequence[int], spacing: float) -> Field:
    """Return a random smooth function of points ``(..., D)``: a cubic B-spline, variance below 1.

    Args:
        rng: draws its control points.
        shape: of the grid that it is for; it goes on for a few spacings beyond.
        spacing: of the control points, in voxels.
    """
    beyond = 3  # control points before the image: a cubic one reaches 2 spacings
    control = rng.normal(size=[int(size / spacing) + 2 * beyond + 1 for size in shape])

    def function(points):
        at = np.moveaxis(points / spacing + beyond, -1, 0)
        return ndimage.map_coordinates(control, at, order=3, prefilter=False, mode="nearest")

    return function


@dataclass(frozen=True)
class SmoothDeformation:
    """phi(x) = x + u(x), u a sum of random cubic B-splines of several spacings; it does not fold.

    The wider spacings move and turn the whole, the narrower ones bend it; each stretches as much
    as any other.

    Args:
        mean: the mean length of u over the image and over pairs, as a share of the shortest side.
        spread: pairs differ in their mean length by up to this share of it.
        spacings: of the control points, as shares of the shortest side.
        least_volume: the least Jacobian determinant, of a field on its own.

    Raises:
        ValueError: if the mean is negative, the spread not in [0, 1], or a spacing not positive;
            when drawn, if nearly every deformation of that length folds.
    """

    mean: float
    spread: float = 0.4
    spacings: Sequence[float] = (0.5, 0.2)
    least_volume: float = 0.25

    def __post_init__(self):
        object.__setattr__(self, "spacings", tuple(self.spacings))
        spaced = self.spacings and min(self.spacings) > 0
        if not self.mean >= 0 or not 0 <= self.spread <= 1 or not spaced:
            raise ValueError(
                "Expected `mean` >= 0, `spread` in [0, 1] and positive `spacings`. "
                f"Received: {self}."
            )

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Field:
        """Return u as a function of points ``(..., D)``, voxels, that gives ``(..., D)``."""
        side = min(shape)
        # Splines are looked at some points between two control points, not at every voxel.
        step = max(int(min(self.spacings) * side / 6), 1)
        grid = _grid([-(-size // step) for size in shape]) * step
        length = self.mean * side * rng.uniform(1 - self.spread, 1 + self.spread)
        for _ in range(_DRAWS):
            noise = [
                [(share, _smooth_noise(rng, shape, share * side)) for share in self.spacings]
                for _ in shape
            ]

            def field(points, noise=noise):
                parts = [sum(share * part(points) for share, part in axis) for axis in noise]
                return np.stack(parts, axis=-1)

            raw = field(grid)
            factor = length / np.linalg.norm(raw, axis=-1).mean()
            if _least_determinant(factor * raw / step) >= self.least_volume:
                return lambda points: factor * field(points)
        raise ValueError(
            f"Expected a deformation that shrinks nothing below {self.least_volume} of its volume; "
            f"lower `mean`, or widen `spacings`. Received: {self}, {_DRAWS} draws for {shape}."
        )


def _least_determinant(displacement: np.ndarray) -> float:
    axes = tuple(range(displacement.ndim - 1))
    gradient = np.stack(np.gradient(displacement, axis=axes), axis=-1)
    return float(np.linalg.det(gradient + np.eye(len(axes))).min())


# --- alterations ---


def _range(image: np.ndarray) -> tuple[float, float]:
    low = float(image.min())
    return low, max(float(image.max()) - low, 1e-12)


def _foreground(image: np.ndarray) -> np.ndarray:
    """Return which voxels are brighter than the background, ``spatial``; one at least."""
    low, span = _range(image)
    brightness = image.mean(axis=-1)
    return brightness >= min(low + _FOREGROUND * span, brightness.max())


def _any_voxel(rng: np.random.Generator, among: np.ndarray) -> np.ndarray:
    return rng.choice(np.argwhere(among))


def _blob(rng, shape, centre, radius: float, *, softness: float = 1.5) -> np.ndarray:
    """Return a random ellipsoid with an uneven, soft rim: 1 within, 0 outside, ``(*spatial, 1)``.

    Args:
        rng: draws its form.
        shape: spatial sizes.
        centre: its middle, a voxel index.
        radius: its mean radius in voxels.
        softness: the width of the rim in voxels.
    """
    dimensions = len(shape)
    turn, _ = np.linalg.qr(rng.normal(size=(dimensions, dimensions)))
    axes = np.exp(rng.uniform(-0.35, 0.35, dimensions))
    axes /= np.prod(axes) ** (1 / dimensions)
    grid = _grid(shape)
    level = np.linalg.norm((grid - centre) @ turn / axes, axis=-1) / radius
    level += 0.3 * _smooth_noise(rng, shape, max(0.8 * radius, 2.0))(grid)
    return np.clip(0.5 + (1 - level) * radius / softness, 0, 1)[..., None]


def _stroke(rng, shape, start, length: float, width: float) -> np.ndarray:
    """Return a random bent stroke, 1 within, 0 outside, ``(*spatial, 1)``.

    Args:
        rng: draws its course.
        shape: spatial sizes.
        start: one of its ends, a voxel index.
        length, width: voxels.
    """
    middle = (np.array(shape) - 1) / 2
    directions = rng.normal(size=(2, len(shape)))
    # Towards the middle rather than out of the image.
    directions[0] += 1.5 * (middle - start) / (np.linalg.norm(middle - start) + 1)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    knee = start + length / 2 * directions[0]
    end = knee + length / 2 * (0.6 * directions[0] + 0.8 * directions[1])
    t = np.linspace(0, 1, max(int(2 * length), 2))[:, None]
    course = (1 - t) ** 2 * start + 2 * t * (1 - t) * knee + t**2 * end
    filled = np.zeros(shape, bool)
    inside = np.all((course > -0.5) & (course < np.array(shape) - 0.5), axis=-1)
    filled[tuple(np.rint(course[inside]).astype(int).T)] = True
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(~filled), 0.7)
    return np.clip(0.5 + width / 2 - distance, 0, 1)[..., None]


@dataclass(frozen=True)
class Strokes:
    """Alters a drawing, bright on dark: a part of it is erased, dimmed, or a stroke added.

    Args:
        most: 1 to this many alterations an image.
        radius: of what is erased or dimmed, the least and the most, as shares of the shortest side.
        length: of an added stroke, the same.
        width: of an added stroke, as a share of the shortest side.
    """

    most: int = 2
    radius: tuple[float, float] = (0.09, 0.15)
    length: tuple[float, float] = (0.25, 0.45)
    width: float = 0.085

    def alter(self, rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
        """Return another image ``(*spatial, channels)``."""
        kinds = [self._erase, self._dim, self._add]
        for _ in range(rng.integers(1, self.most + 1)):
            image = kinds[rng.integers(len(kinds))](rng, image)
        return image

    def _part(self, rng, image):
        shape = image.shape[:-1]
        centre = _any_voxel(rng, _foreground(image))
        return _blob(rng, shape, centre, rng.uniform(*self.radius) * min(shape))

    def _erase(self, rng, image):
        low, _ = _range(image)
        return image + self._part(rng, image) * (low - image)

    def _dim(self, rng, image):
        low, _ = _range(image)
        return image + rng.uniform(0.5, 0.8) * self._part(rng, image) * (low - image)

    def _add(self, rng, image):
        shape, (low, span) = image.shape[:-1], _range(image)
        start = _any_voxel(rng, _foreground(image))
        length = rng.uniform(*self.length) * min(shape)
        stroke = _stroke(rng, shape, start, length, self.width * min(shape))
        return np.maximum(image, low + span * rng.uniform(0.8, 1.0) * stroke)


@dataclass(frozen=True)
class Lesions:
    """Alters tissue: a part of it is resected, a lesion grows, or oedema darkens it.

    Nothing is moved aside. Resections lie at the surface and are filled with dark fluid; lesions
    are bright, dark, or dark with a bright rim; oedema has a wide soft rim.

    Args:
        most: 1 to this many alterations an image.
        resection, lesion, oedema: radius, the least and the most, as shares of the shortest side.
    """

    most: int = 2
    resection: tuple[float, float] = (0.08, 0.13)
    lesion: tuple[float, float] = (0.035, 0.08)
    oedema: tuple[float, float] = (0.06, 0.11)

    def alter(self, rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
        """Return another image ``(*spatial, channels)``."""
        kinds = [self._resect, self._grow, self._darken]
        for _ in range(rng.integers(1, self.most + 1)):
            # The organ, without what lies between it and its surroundings.
            filled = ndimage.binary_fill_holes(_foreground(image))
            image = kinds[rng.integers(len(kinds))](rng, image, filled)
        return image

    def _resect(self, rng, image, organ):
        shape, (low, span) = image.shape[:-1], _range(image)
        depth = _depth(organ)
        radius = rng.uniform(*self.resection) * min(shape)
        surface = organ & (depth <= max(0.6 * radius, 1.0))
        cavity = _blob(rng, shape, _any_voxel(rng, surface), radius)
        fluid = low + span * rng.uniform(0.05, 0.15)
        # Beyond the organ the background stays as it is.
        return image + _soft(organ) * cavity * (np.minimum(fluid, image) - image)

    def _grow(self, rng, image, organ):
        shape, (low, span) = image.shape[:-1], _range(image)
        radius = rng.uniform(*self.lesion) * min(shape)
        depth = _depth(organ)
        centre = _any_voxel(rng, depth >= min(radius, depth.max()))
        bright, dark = rng.uniform(0.85, 1.0), rng.uniform(0.15, 0.3)
        level = (bright, dark, bright)[kind := rng.integers(3)]
        lesion = _blob(rng, shape, centre, radius)
        value = low + span * level * (1 + 0.06 * _smooth_noise(rng, shape, 3.0)(_grid(shape)))
        value = np.clip(value, low, low + span)[..., None]
        if kind == 2:  # a rim about three voxels wide around a dark core
            core = ndimage.gaussian_filter(lesion[..., 0], 1.5)[..., None] ** 4
            value = value + core * (low + span * dark - value)
        return image + _soft(organ) * lesion * (value - image)

    def _darken(self, rng, image, organ):
        shape, (low, _) = image.shape[:-1], _range(image)
        centre = _any_voxel(rng, organ)
        radius = rng.uniform(*self.oedema) * min(shape)
        part = _blob(rng, shape, centre, radius, softness=0.04 * min(shape))
        return image + rng.uniform(0.3, 0.5) * part * (low - image)


def _depth(mask: np.ndarray) -> np.ndarray:
    """Return how far each voxel lies below the surface, 1 on it; the image's border is surface."""
    inner = (slice(1, -1),) * mask.ndim
    return ndimage.distance_transform_edt(np.pad(mask, 1))[inner]


def _soft(mask: np.ndarray) -> np.ndarray:
    """Return a mask whose rim is soft inwards, ``(*spatial, 1)``."""
    return (mask * ndimage.gaussian_filter(mask.astype("float64"), 0.7))[..., None]


@dataclass(frozen=True)
class ContrastChange:
    """I -> I^gamma b, gamma and the smooth bias b drawn for each image, I scaled to [0, 1].

    Args:
        gamma: the largest exponent; the least is 1 / gamma.
        bias: the standard deviation of log b, about.
        spacing: how far apart b varies, as a share of the shortest side.
    """

    gamma: float = 1.4
    bias: float = 0.2
    spacing: float = 0.5

    def alter(self, rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
        """Return another image ``(*spatial, channels)``."""
        shape, (low, span) = image.shape[:-1], _range(image)
        gamma = self.gamma ** rng.uniform(-1, 1)
        noise = _smooth_noise(rng, shape, self.spacing * min(shape))(_grid(shape))
        shading = np.exp(2 * self.bias * noise)[..., None]  # a B-spline halves the deviation
        changed = ((image - low) / span) ** gamma * shading
        return low + span * changed / max(float(changed.max()), 1e-12)  # nothing saturates


# --- pairs ---


class MissingPairs(keras.utils.PyDataset):
    """Pairs of one image with itself, deformed and altered, and the truth about them.

    Of an image I and two random deformations p and phi = id + u, moving(x) = I(p(x)) and
    fixed(x) = I(p(phi(x))): both are interpolated once, from I, and moving(x + u(x)) is fixed(x).
    Draws that push the object beyond the frame are taken again. Then one of the two, either as
    likely, is altered, and one, either as likely, changes contrast.

    Each batch is a tuple of one dict, whose keys beside the images `kreg.RegistrationModel`
    leaves aside or takes for targets:

    * ``moving``, ``fixed``: ``(batch, *spatial, channels)``, float32.
    * ``displacement``: u, ``(batch, *spatial, D)``, voxels.
    * ``altered``: ``(batch, *spatial, 1)``, 1 where in the fixed image's frame either side was
      visibly altered (contrast is not), else 0.
    * ``fixed_landmarks``, ``moving_landmarks``: ``(batch, n, D)``, voxel indices: points on edges,
      away from what is altered, and where they are in the moving image; filled up with NaN.

    The draw depends on seed, epoch and place alone, and the deformations do not depend on the
    alterations: without any, the same seed gives the same pairs, unaltered.

    Args:
        images: ``(n, *spatial[, channels])``, bright on dark; integers are scaled to [0, 1].
        alteration: `Strokes`, `Lesions`, or an object with ``alter(rng, image)``; None for none.
        deformation: `SmoothDeformation`, or an object with ``draw(rng, shape)``.
        contrast: `ContrastChange`, or an object with ``alter(rng, image)``; None for none.
        shape: spatial sizes of the pairs, to which the images are enlarged (or made smaller) and
            padded; their own where None.
        landmarks: n, the most a pair has.
        batch_size: pairs a batch.
        steps: batches an epoch. An epoch takes every image once before any a second time.
        seed: of the draw.
        fresh: whether each epoch draws other pairs; False for a fixed set.

    Raises:
        ValueError: see `as_images`; also if `shape` has another length than there are spatial
            axes, or `batch_size`, `steps` or `landmarks` is not positive.
    """

    def __init__(
        self,
        images,
        *,
        alteration,
        deformation,
        contrast=None,
        shape: Sequence[int] | None = None,
        landmarks: int = 32,
        batch_size: int = 32,
        steps: int = 100,
        seed: int = 0,
        fresh: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.images = as_images(images)
        sizes = self.images.shape[1:-1]
        if shape is not None and len(shape) != len(sizes):
            raise ValueError(
                f"Expected `shape` to be {len(sizes)} spatial sizes. Received: {tuple(shape)}."
            )
        if min(batch_size, steps, landmarks) < 1:
            raise ValueError(
                "Expected `batch_size`, `steps` and `landmarks` >= 1. Received: "
                f"{batch_size}, {steps} and {landmarks}."
            )
        self.shape = sizes if shape is None else tuple(shape)
        self.alteration, self.deformation, self.contrast = alteration, deformation, contrast
        self.landmarks, self.batch_size, self.steps = landmarks, batch_size, steps
        self.seed, self.fresh, self.epoch = seed, fresh, 0

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image, ``(*spatial, channels)``: what the model builders take."""
        return (*self.shape, self.images.shape[-1])

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, batch: int):
        epoch = self.epoch if self.fresh else 0
        places = batch * self.batch_size + np.arange(self.batch_size)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.images))
        pairs = [
            self._pair(image, np.random.default_rng((self.seed, epoch, place)))
            for image, place in zip(order[places % len(order)], places.tolist(), strict=True)
        ]
        names = pairs[0].keys()
        return (
            {name: np.stack([pair[name] for pair in pairs], dtype="float32") for name in names},
        )

    def on_epoch_end(self):
        """Go on to the draws of the next epoch."""
        self.epoch += 1

    def _pair(self, image: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        geometry, change, contrast, points = rng.spawn(4)
        clean, displacement = self._deformed(image, geometry)
        phi = _grid(self.shape) + displacement
        pair, altered = dict(clean), np.zeros(self.shape, bool)
        if self.alteration is not None:
            side = ("moving", "fixed")[change.integers(2)]
            pair[side] = self.alteration.alter(change, clean[side])
            altered = _visible(pair[side] - clean[side], _range(clean[side])[1], phi, side)
        if self.contrast is not None:
            side = ("moving", "fixed")[contrast.integers(2)]
            pair[side] = self.contrast.alter(contrast, pair[side])
        found = _landmarks(points, clean["fixed"], altered, phi, self.landmarks)
        return {
            **pair,
            "displacement": displacement,
            "altered": altered[..., None],
            "fixed_landmarks": found,
            "moving_landmarks": _at(phi, found),
        }

    def _deformed(self, image: int, rng: np.random.Generator):
        """Return both images and u, of the draw that leaves least of the object on the border."""
        values, grid = to_float(self.images[image : image + 1])[0], _grid(self.shape)
        least = np.inf
        for _ in range(_FRAMINGS):
            form, u = (self.deformation.draw(rng, self.shape) for _ in range(2))
            displacement = u(grid)
            points = {"moving": grid, "fixed": grid + displacement}
            drawn = {
                name: self._resampled(values, x + _FORM * form(x)) for name, x in points.items()
            }
            cut = sum(_on_border(_foreground(side)) for side in drawn.values())
            if cut < least:
                least, found = cut, (drawn, displacement)
            if not cut:
                break
        return found

    def _resampled(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Return the image at points of the pairs' frame, by cubic splines, in its own range."""
        old, new = np.array(image.shape[:-1]), np.array(self.shape)
        points = (points - (new - 1) / 2) / np.min(new / old) + (old - 1) / 2
        at = np.moveaxis(points, -1, 0)
        low, span = _range(image)
        channels = [
            ndimage.map_coordinates(channel, at, order=3, mode="grid-constant", cval=low)
            for channel in np.moveaxis(image.astype("float64"), -1, 0)
        ]
        return np.clip(np.stack(channels, axis=-1), low, low + span)


def _on_border(mask: np.ndarray) -> int:
    inner = (slice(1, -1),) * mask.ndim
    return int(mask.sum() - mask[inner].sum())


def _visible(difference: np.ndarray, span: float, phi: np.ndarray, side: str) -> np.ndarray:
    """Return where an alteration is seen in the fixed image's frame, ``spatial``, bool."""
    size = np.abs(difference).max(axis=-1)
    if side == "moving":
        size = ndimage.map_coordinates(size, np.moveaxis(phi, -1, 0), order=1, mode="constant")
    return size > _VISIBLE * span


def _landmarks(rng, fixed, altered, phi, count: int) -> np.ndarray:
    """Return up to `count` voxels on edges, spread out, ``(count, D)``, filled up with NaN."""
    shape = fixed.shape[:-1]
    sizes = np.array(shape)
    strength = sum(
        ndimage.gaussian_gradient_magnitude(channel, 1.0) for channel in np.moveaxis(fixed, -1, 0)
    )
    found = np.full((count, len(sizes)), np.nan)
    edge = strength > max(_EDGE * np.quantile(strength, _STRONG), 1e-6)
    edge &= ndimage.distance_transform_edt(~altered) > _MARGIN if altered.any() else True
    for points in (_grid(shape), phi):
        edge &= np.all((points >= _MARGIN) & (points <= sizes - 1 - _MARGIN), axis=-1)
    candidates = rng.permutation(np.argwhere(edge))
    chosen = 0
    while len(candidates) and chosen < count:
        found[chosen] = candidates[0]
        apart = np.linalg.norm(candidates - candidates[0], axis=-1) >= _DISTANCE
        candidates, chosen = candidates[apart], chosen + 1
    return found


def _at(phi: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return phi at voxels ``(n, D)``, NaN where they are."""
    missing = np.isnan(points)
    index = np.where(missing, 0, points).astype(int)
    return np.where(missing, np.nan, phi[tuple(index.T)])


def missing_digit_pairs(images, **options) -> MissingPairs:
    """Return `MissingPairs` of digits: 64^2, strokes erased, dimmed or added.

    Before registration landmarks are 3.5 voxels apart on average.

    Args:
        images: ``(n, 28, 28)``, such as ``load_mnist().train.images``.
        **options: of `MissingPairs`, to replace what is set here.
    """
    preset: dict[str, Any] = {
        "shape": (64, 64),
        "deformation": SmoothDeformation(0.057),
        "alteration": Strokes(),
    }
    return MissingPairs(images, **(preset | options))


def missing_brain_pairs(images, **options) -> MissingPairs:
    """Return `MissingPairs` of brains: resections, lesions and oedema, contrast changed.

    Before registration landmarks are 4.1 voxels apart on average in images of 128^2.

    Args:
        images: ``(n, *spatial[, channels])``, skull-stripped, bright on dark, 2-D or 3-D.
        **options: of `MissingPairs`, to replace what is set here.
    """
    preset: dict[str, Any] = {
        "deformation": SmoothDeformation(0.036),
        "alteration": Lesions(),
        "contrast": ContrastChange(),
    }
    return MissingPairs(images, **(preset | options))
