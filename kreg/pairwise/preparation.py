"""Preparations: grey values as a similarity sees them, level by level of a Gaussian pyramid."""

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from keras import ops

from kreg.ops.intensity import normalise_locally
from kreg.ops.pyramid import downsample


class Preparation:
    """Turns an image into the levels that are registered, values in [-1, 1].

    Subclasses write ``normalise(image, mask, longest)``.

    Attributes:
        quantile: absolute values beyond this quantile are clipped.
    """

    quantile: float = 0.995

    def normalise(self, image: np.ndarray, mask: np.ndarray | None, longest: float) -> np.ndarray:
        """Return ``(batch, *spatial, channels)`` centred on 0, of any range.

        Args:
            image: one level.
            mask: None or weights of its voxels ``(batch, *spatial, 1)``.
            longest: the longest side of the whole image in voxels of this level, twice that from
                the third level on.
        """
        raise NotImplementedError(f"{type(self).__name__} must define normalise().")

    def levels(self, image: np.ndarray, mask: np.ndarray | None, count: int) -> list[np.ndarray]:
        """Return `count` levels ``(batch, *spatial, channels)``, finest first, in [-1, 1]."""
        longest = max(image.shape[1:-1])
        masks = mask_levels(mask, count)
        fine = self.normalise(image, masks[0], longest)
        levels = _pyramid(fine, min(count, 2), mask)
        if count > 2:
            # Coarse levels keep wider structure, which leads from further away.
            raw = _pyramid(image, 3, mask)[2]
            wide = self.normalise(raw, masks[2], 2 * longest / 4)
            levels += _pyramid(wide, count - 2, masks[2])
        return [self.clipped(*level) for level in zip(levels, masks, strict=True)]

    def clipped(self, values: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """Return values over the quantile of their size, in [-1, 1], channel by channel."""
        size = np.abs(values).reshape(len(values), -1, values.shape[-1])
        size = size[:, :: max(size.shape[1] // 100_000, 1)]  # enough to tell a quantile from
        if mask is not None:
            weight = mask.reshape(len(values), -1, 1)[:, :: max(mask[0].size // 100_000, 1)]
            # On coarse levels a thin mask has small weights only.
            size = np.where(weight >= 0.5 * weight.max(axis=1, keepdims=True), size, np.nan)
        limit = np.nanquantile(size, self.quantile, axis=1)
        limit = np.where(limit > 0, limit, 1)  # a constant image
        limit = limit.reshape(len(values), *(1,) * (values.ndim - 2), values.shape[-1])
        return np.clip(values / limit, -1, 1).astype("float32")


def mask_levels(mask: np.ndarray | None, count: int) -> list:
    """Return the mask on each level, its largest weight 1, Nones where there is none."""
    if mask is None:
        return [None] * count
    axes = tuple(range(1, mask.ndim))
    # Weights are relative: a thin mask would fade from level to level, and overlap with it.
    return [level / level.max(axis=axes, keepdims=True) for level in _pyramid(mask, count)]


def _pyramid(image: np.ndarray, count: int, mask: np.ndarray | None = None) -> list[np.ndarray]:
    if mask is not None:  # means over what is valid: whatever lies outside must not leak in
        levels, weights = _pyramid(mask * image, count), _pyramid(mask, count)
        return [a / np.maximum(b, 1e-6) for a, b in zip(levels, weights, strict=True)]
    levels = [np.asarray(image, "float32")]
    for _ in range(count - 1):
        levels.append(ops.convert_to_numpy(downsample(levels[-1])))
    return levels


@dataclass(frozen=True)
class LocalNormalisation(Preparation):
    """d = (I - G*I) / (sqrt(G*(I - G*I)^2) + floor range), G a wide Gaussian.

    Removes shading and evens out contrast, so that fine structure counts everywhere: the largest
    single gain in precision.

    Args:
        width: standard deviation of G as a share of the longest side.
        floor: what keeps flat regions from becoming noise, as a share of the image's range.
        quantile: absolute values beyond this quantile are clipped.
    """

    width: float = 1 / 32
    floor: float = 0.02
    quantile: float = 0.995

    def normalise(self, image, mask, longest):
        """Return the locally normalised image."""
        sigma = max(self.width * longest, 1.0)
        return ops.convert_to_numpy(normalise_locally(image, sigma, floor=self.floor, mask=mask))


@dataclass(frozen=True)
class Standardisation(Preparation):
    """d = I - mean: grey values as they are, for images without fine structure, such as PET.

    Args:
        quantile: absolute values beyond this quantile are clipped.
    """

    quantile: float = 0.995

    def normalise(self, image, mask, longest):
        """Return the image less its mean, over the mask."""
        axes = tuple(range(1, image.ndim - 1))
        weight = np.ones_like(image[..., :1]) if mask is None else mask
        total = np.maximum(weight.sum(axis=axes, keepdims=True), 1e-6)
        return (image - (weight * image).sum(axis=axes, keepdims=True) / total) * (weight > 0)


@dataclass(frozen=True)
class Unchanged(Preparation):
    """d = I: grey values as they are, for losses that a network was trained with."""

    def levels(self, image, mask, count):
        """Return the levels of the pyramid, of the image's own range."""
        return _pyramid(image, count, mask)


@dataclass(frozen=True)
class EdgeStrength(Preparation):
    """d = local normalisation of log(abs(grad G*I) / max + floor): where edges are, not which way.

    Grey values of two modalities may have little to do with each other where their edges agree:
    vessels in a colour image and in an angiography, outlines in visible light and infrared.

    Args:
        sigma: standard deviation in voxels of the Gaussian G before the gradient.
        width: of the local normalisation, as a share of the longest side.
        floor: share of the strongest edge below which nothing counts as one.
        quantile: absolute values beyond this quantile are clipped.
    """

    sigma: float = 1.0
    width: float = 1 / 32
    floor: float = 0.02
    quantile: float = 0.995

    def normalise(self, image, mask, longest):
        """Return the locally normalised logarithm of the edges' strength."""
        axes = range(1, image.ndim - 1)
        sigma = [self.sigma if axis in axes else 0 for axis in range(image.ndim)]
        if mask is not None:  # nor may the mask's own outline be an edge: go on as inside
            inside, weight = (
                scipy.ndimage.gaussian_filter(x, 2 * np.array(sigma)) for x in (mask * image, mask)
            )
            image = mask * image + (1 - mask) * inside / np.maximum(weight, 1e-6)
        squares = [
            np.square(scipy.ndimage.gaussian_filter(image, sigma, order=_first(axis, image.ndim)))
            for axis in axes
        ]
        strength = np.sqrt(sum(squares))
        if mask is not None:
            strength = strength * (mask > 0)
        strongest = np.maximum(strength.max(axis=tuple(axes), keepdims=True), 1e-12)
        edges = np.log(strength / strongest + self.floor).astype("float32")
        width = max(self.width * longest, 1.0)
        return ops.convert_to_numpy(normalise_locally(edges, width, mask, floor=0.05))


def _first(axis: int, dimensions: int) -> list[int]:
    """The orders of a first derivative along one axis."""
    return [int(axis == other) for other in range(dimensions)]


@dataclass(frozen=True)
class Channels(Preparation):
    """Several preparations of the same image side by side, as channels.

    For `CriticRatio` (MINE), which compares any number of channels at once; the other
    similarities see the first alone.

    Args:
        parts: the preparations.
        quantile: absolute values beyond this quantile are clipped.
    """

    parts: tuple[Preparation, ...] = (EdgeStrength(), LocalNormalisation())
    quantile: float = 0.995

    def normalise(self, image, mask, longest):
        """Return the channels of all parts."""
        return np.concatenate([p.normalise(image, mask, longest) for p in self.parts], axis=-1)


def field_of_view(image: np.ndarray, threshold: float = 0.06) -> np.ndarray:
    """Return 1 where an image shows something, 0 in a dark surround that touches its border.

    Retina cameras, endoscopes and skull-stripped scans leave a black surround whose outline says
    where the camera was, not where the object is: pass the result as `fixed_mask`, `moving_mask`.

    Args:
        image: one image, ``(*spatial)`` or ``(*spatial, channels)`` (at most 4 of them).
        threshold: of darkness, as a share of the image's range of grey values.

    Returns:
        ``(*spatial)``, float32; 1 per cent of the longest side is taken off the edge of the view.
    """
    image = np.asarray(image, "float32")
    grey = image.mean(-1) if image.ndim > 2 and image.shape[-1] <= 4 else image
    low, high = np.quantile(grey, [0.001, 0.999])
    bright = np.pad(grey > low + threshold * (high - low), 2, mode="edge")
    bright = scipy.ndimage.binary_opening(bright, iterations=2)[(slice(2, -2),) * grey.ndim]
    parts, _ = scipy.ndimage.label(~bright)
    faces = [np.unique(np.take(parts, end, axis)) for axis in range(grey.ndim) for end in (0, -1)]
    surround = np.isin(parts, np.setdiff1d(np.concatenate(faces), [0]))
    margin = max(round(0.01 * max(grey.shape)), 1)
    view = scipy.ndimage.binary_erosion(~surround, iterations=margin, border_value=1)
    return view.astype("float32")
