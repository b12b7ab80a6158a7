"""Preparations: grey values as a similarity sees them, level by level of a Gaussian pyramid."""

from dataclasses import dataclass

import numpy as np
from keras import ops

from kreg.ops.intensity import normalise_locally
from kreg.ops.pyramid import downsample


class Preparation:
    """Turns an image into the levels that are registered, values in [-1, 1].

    Subclasses write ``normalise(image, mask, widening)``.

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
        levels = _pyramid(fine, min(count, 2))
        if count > 2:
            # Coarse levels keep wider structure, which leads from further away.
            raw = _pyramid(image, 3)[2]
            wide = self.normalise(raw, masks[2], 2 * longest / 4)
            levels += _pyramid(wide, count - 2)
        return [self.clipped(*level) for level in zip(levels, masks, strict=True)]

    def clipped(self, values: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """Return values over the quantile of their size, in [-1, 1], channel by channel."""
        size = np.abs(values).reshape(len(values), -1, values.shape[-1])
        size = size[:, :: max(size.shape[1] // 100_000, 1)]  # enough to tell a quantile from
        if mask is not None:
            weight = mask.reshape(len(values), -1, 1)[:, :: max(mask[0].size // 100_000, 1)]
            size = np.where(weight[:, : size.shape[1]] > 0.5, size, np.nan)
        with np.errstate(all="ignore"):
            limit = np.nanquantile(size, self.quantile, axis=1)
        limit = np.where(limit > 0, limit, 1)  # a constant image; NaN where the mask is empty
        limit = limit.reshape(len(values), *(1,) * (values.ndim - 2), values.shape[-1])
        return np.clip(values / limit, -1, 1).astype("float32")


def mask_levels(mask: np.ndarray | None, count: int) -> list:
    """Return the mask on each level, Nones where there is none."""
    return [None] * count if mask is None else _pyramid(mask, count)


def _pyramid(image: np.ndarray, count: int) -> list[np.ndarray]:
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
        return (image - (weight * image).sum(axis=axes, keepdims=True) / total) * (weight > 0.5)
