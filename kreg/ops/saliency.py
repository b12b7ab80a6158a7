"""Joint saliency: where two images have the same edges, and their match can be trusted.

An image is described by its structure tensors T(x), symmetric D x D matrices that say how strong
its edges around x are and which way they run; one kind of saliency or another compares those of
two images. Each stage is a function of its own.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import keras
from keras import ops

from kreg.ops.coordinates import check_image, check_same_size
from kreg.ops.displacement import spatial_gradient
from kreg.ops.filters import gaussian_filter, mirrored
from kreg.ops.intensity import TINY, normalise_locally

#: Added where tensors of mean size 1 are squared: below it they are flat.
_FLAT = 1e-8
#: Distances of such tensors below it are rounding; where they are 0, its root has a slope.
_ROUNDING = 1e-4
#: A map that varies less is constant; 1 / x^2 is still finite in float32.
_CONSTANT = 1e-12


def structure_tensor(image, sigma: float | Sequence[float]):
    """T = g_sigma * sum over channels c of grad I_c grad I_c^T.

    Derivatives are central differences, one-sided at the edges, where g mirrors the image.

    Args:
        image: ``(batch, *spatial, channels)``, floating; spatial sizes must be known.
        sigma: standard deviation of the Gaussian in voxels, for all axes or one for each.

    Returns:
        ``(batch, *spatial, D, D)``, symmetric, no eigenvalue negative, float32.

    Raises:
        ValueError: if the image is not floating, a size is unknown or a sigma negative.
    """
    gradient = ops.unstack(spatial_gradient(ops.cast(check_image(image), "float32")), axis=-1)
    axes = range(len(gradient))
    pairs = list(itertools.combinations_with_replacement(axes, 2))
    # Each entry once, as a channel: half of the tensor is a mirror image of the other.
    products = [ops.sum(gradient[i] * gradient[j], axis=-1) for i, j in pairs]
    smooth = ops.unstack(gaussian_filter(ops.stack(products, axis=-1), sigma), axis=-1)
    entry = dict(zip(pairs, smooth, strict=True))
    rows = [ops.stack([entry[min(i, j), max(i, j)] for j in axes], axis=-1) for i in axes]
    return ops.stack(rows, axis=-2)


def _check_tensors(*tensors):
    """Return structure tensors as float32, or raise ValueError."""
    tensors = tuple(ops.cast(tensor, "float32") for tensor in tensors)
    shapes = [tuple(tensor.shape) for tensor in tensors]
    rank = len(shapes[0])
    if rank not in (5, 6) or any(
        len(shape) != rank or shape[-2:] != (rank - 3, rank - 3) for shape in shapes
    ):
        raise ValueError(
            "Expected structure tensors of equal shape (batch, *spatial, D, D), D the number of "
            f"spatial axes; `structure_tensor` makes them of images. Received: {shapes}."
        )
    return tensors


def _square(tensor):
    """|T|^2, the sum of all squared entries, ``(batch, *spatial, 1)``."""
    return ops.sum(ops.square(tensor), axis=(-2, -1))[..., None]


def _trace(tensor):
    return sum(tensor[..., i, i] for i in range(tensor.shape[-1]))[..., None]


def _sample_axes(values):
    return tuple(range(1, len(values.shape)))


def _over_common_scale(first, second):
    """Both tensor fields over the mean of tr A + tr B of each sample.

    What is built on it does not depend on a common scale: neither does its gradient, so that none
    need flow through the scale.
    """
    trace = _trace(first) + _trace(second)
    mean = ops.mean(trace, axis=_sample_axes(trace), keepdims=True)[..., None]
    scale = 1.0 / (ops.stop_gradient(mean) + TINY)
    return first * scale, second * scale


def tensor_correlation(first, second, *, contrast: float = 0.1):
    """J = (2 <A, B> + e) / (|A|^2 + |B|^2 + e), e = contrast^2 mean(|A|^2 + |B|^2).

    1 where both tensors are equal or both images flat, near 0 where only one has an edge or the
    edges cross. The mean is over the voxels of each sample.

    Args:
        first, second: structure tensors A and B, ``(batch, *spatial, D, D)``.
        contrast: tensors that are weak beside this share of their root mean square are flat.

    Returns:
        ``(batch, *spatial, 1)`` in [0, 1].

    Raises:
        ValueError: if `contrast` is not positive, or these are no structure tensors.
    """
    if not contrast > 0:
        raise ValueError(f"Expected `contrast` > 0. Received: {contrast}.")
    first, second = _over_common_scale(*_check_tensors(first, second))
    total = _square(first) + _square(second)
    mean = ops.mean(total, axis=_sample_axes(total), keepdims=True)
    # The same as in the docstring, but never above 1, and exact near it.
    correlation = 1.0 - _square(first - second) / (total + contrast**2 * mean + _FLAT)
    return ops.maximum(correlation, 0.0)


def tensor_distance(first, second, *, epsilon: float = 1e-6):
    """d = sqrt(8 pi/15 (|A - B|^2 - tr(A - B)^2 / 3) + eps^2) - eps.

    In 3-D the root of the integral over all directions n of (n^T (A - B) n - its mean)^2 (Zhang
    et al., Medical Image Analysis 2006): a multiple of the identity is no distance. In 2-D, where
    the tensors have no extent along a third axis, it is one.

    Args:
        first, second: structure tensors A and B, ``(batch, *spatial, D, D)``.
        epsilon: below this distance it grows with the square; positive, in units of the tensors.

    Returns:
        ``(batch, *spatial, 1)``, not negative.

    Raises:
        ValueError: if `epsilon` is not positive (the gradient at 0 would be NaN), or these are no
            structure tensors.
    """
    if not epsilon > 0:
        raise ValueError(f"Expected `epsilon` > 0. Received: {epsilon}.")
    first, second = _check_tensors(first, second)
    return _length(_coordinates(first) - _coordinates(second), epsilon)


def _coordinates(tensor):
    """Vectors ``(..., K)`` whose Euclidean distance is that of the tensors."""
    axes = range(tensor.shape[-1])
    trace = _trace(tensor)[..., 0]
    # |T|^2 - tr^2 / 3 is the square of what has no trace, and a share of tr^2: none in 3-D.
    parts = [trace * math.sqrt(1 / len(axes) - 1 / 3)]
    for i, j in itertools.combinations_with_replacement(axes, 2):
        entry = tensor[..., i, j]
        parts.append(entry - trace / len(axes) if i == j else math.sqrt(2) * entry)
    return math.sqrt(8 * math.pi / 15) * ops.stack(parts, axis=-1)


def _length(vector, epsilon):
    square = ops.sum(ops.square(vector), axis=-1, keepdims=True)
    return ops.sqrt(square + epsilon**2) - epsilon


def single_saliency(tensor, *, epsilon: float = 1e-6):
    """S(x) = 3^-D sum over the 3^D - 1 neighbours y of d(T(x), T(y)): how much T varies near x.

    Beyond the image its border goes on.

    Args:
        tensor: structure tensors ``(batch, *spatial, D, D)``.
        epsilon: of `tensor_distance`.

    Returns:
        ``(batch, *spatial, 1)``, not negative.

    Raises:
        ValueError: if these are no structure tensors.
    """
    (tensor,) = _check_tensors(tensor)
    dimensions, sizes = tensor.shape[-1], ops.shape(tensor)[1:-2]
    here = padded = _coordinates(tensor)
    for axis in range(1, dimensions + 1):
        padded = mirrored(padded, 1, axis)
    neighbours = []
    for offset in itertools.product((0, 1, 2), repeat=dimensions):
        if offset != (1,) * dimensions:
            window = (slice(o, o + n) for o, n in zip(offset, sizes, strict=True))
            neighbours.append(padded[(slice(None), *window)])
    # One tensor of them all: XLA would compile a sum of so many parts for many seconds.
    return ops.sum(_length(ops.stack(neighbours) - here, epsilon), axis=0) / 3**dimensions


def unit_range(values):
    """(x - min) / (max - min) over the voxels of each sample; 0 where x is constant."""
    values = ops.convert_to_tensor(values)
    axes = _sample_axes(values)
    low = ops.min(values, axis=axes, keepdims=True)
    span = ops.max(values, axis=axes, keepdims=True) - low
    constant = span <= _CONSTANT
    return ops.where(constant, 0.0, (values - low) / ops.where(constant, 1.0, span))


def original_joint_saliency(first, second):
    """J = norm(min(S_A, S_B) / (1 + norm(d(A, B)))), norm the map's range brought to [0, 1].

    Mostly edge strength: the divisor lies in [1, 2], and flat regions are near 0.

    Args:
        first, second: structure tensors A and B, ``(batch, *spatial, D, D)``.

    Returns:
        ``(batch, *spatial, 1)`` in [0, 1]; 0 everywhere if an image is constant.

    Raises:
        ValueError: if these are no structure tensors.
    """
    first, second = _over_common_scale(*_check_tensors(first, second))
    singles = (single_saliency(tensor, epsilon=_ROUNDING) for tensor in (first, second))
    distance = tensor_distance(first, second, epsilon=_ROUNDING)
    return unit_range(ops.minimum(*singles) / (1.0 + unit_range(distance)))


class _Saliency:
    """What all kinds of saliency share: subclasses write ``describe`` and ``compare``."""

    def describe(self, image):
        """Return what is compared of an image, one tensor; an unchanged image needs it once."""
        raise NotImplementedError(f"{type(self).__name__} must define describe().")

    def compare(self, fixed, warped):
        """Return the saliency ``(batch, *spatial, 1)`` in [0, 1] of two described images."""
        raise NotImplementedError(f"{type(self).__name__} must define compare().")

    def __call__(self, fixed, warped):
        """Return the saliency ``(batch, *spatial, 1)`` in [0, 1], float32, of two images.

        Args:
            fixed, warped: ``(batch, *spatial, channels)``, floating, sizes known.

        Raises:
            ValueError: if the shapes differ, a size is unknown or the images are not floating.
        """
        fixed, warped = check_image(fixed, "fixed"), check_image(warped, "warped")
        check_same_size(fixed, warped)
        return self.compare(self.describe(fixed), self.describe(warped))

    @classmethod
    def from_config(cls, config):
        """Return the saliency."""
        return cls(**config)


@keras.saving.register_keras_serializable("kreg")
@dataclass(frozen=True)
class TensorCorrelation(_Saliency):
    """J = product over sigma of (2 <A, B> + e) / (|A|^2 + |B|^2 + e), A, B structure tensors.

    See `tensor_correlation`. 1 where the edges of both images agree or both are flat: a weight of
    what one of them shows and the other lacks. The same for -I as for I, and for s I, t + I on
    both images; where contrast differs between them, normalise them first
    (`kreg.ops.normalise_locally`).

    Args:
        sigmas: widths of the Gaussians in voxels; a narrow one places the map well, a wide one
            bears with edges that do not meet yet.
        contrast: tensors that are weak beside this share of their root mean square are flat.

    Raises:
        ValueError: if there is no sigma, one is negative, or `contrast` is not positive.
    """

    sigmas: Sequence[float] = (1.5, 3.0)
    contrast: float = 0.1

    def __post_init__(self):
        object.__setattr__(self, "sigmas", tuple(float(sigma) for sigma in self.sigmas))
        if not self.sigmas or min(self.sigmas) < 0 or not self.contrast > 0:
            raise ValueError(
                "Expected `sigmas` >= 0 voxels, at least one, and `contrast` > 0. "
                f"Received: {self}."
            )

    def describe(self, image):
        """Return structure tensors of all widths, ``(batch, *spatial, widths, D, D)``."""
        return ops.stack([structure_tensor(image, sigma) for sigma in self.sigmas], axis=-3)

    def compare(self, fixed, warped):
        """Return the product of the correlations, ``(batch, *spatial, 1)``."""
        saliency = 1.0
        widths = zip(ops.unstack(fixed, axis=-3), ops.unstack(warped, axis=-3), strict=True)
        for first, second in widths:
            saliency = saliency * tensor_correlation(first, second, contrast=self.contrast)
        return saliency

    def get_config(self):
        """Return the constructor arguments."""
        return {"sigmas": list(self.sigmas), "contrast": self.contrast}


@keras.saving.register_keras_serializable("kreg")
@dataclass(frozen=True)
class OriginalSaliency(_Saliency):
    """J = norm(min(S_f, S_w) / (1 + norm(d(f, w)))): strong edges that both images have.

    The first form of joint saliency, kept for comparison; see `original_joint_saliency`. Here
    each sample is normalised by itself.

    Args:
        sigma: width of the Gaussian in voxels: 1 (9 voxels in all) or, for the heart, 1.5 (13).

    Raises:
        ValueError: if `sigma` is negative.
    """

    sigma: float = 1.0

    def __post_init__(self):
        if not self.sigma >= 0:
            raise ValueError(f"Expected `sigma` >= 0 voxels. Received: {self.sigma}.")

    def describe(self, image):
        """Return structure tensors, ``(batch, *spatial, D, D)``."""
        return structure_tensor(image, self.sigma)

    def compare(self, fixed, warped):
        """Return the saliency, ``(batch, *spatial, 1)``."""
        return original_joint_saliency(fixed, warped)

    def get_config(self):
        """Return the constructor arguments."""
        return {"sigma": self.sigma}


@keras.saving.register_keras_serializable("kreg")
@dataclass(frozen=True)
class LocallyNormalised(_Saliency):
    """J of both images, each normalised locally first: for images whose contrast differs.

    Args:
        saliency: the kind of J, such as `TensorCorrelation`.
        sigma: standard deviation of the window of `kreg.ops.normalise_locally`, voxels.

    Raises:
        ValueError: if `sigma` is not positive.
    """

    saliency: _Saliency = TensorCorrelation()
    sigma: float = 6.0

    def __post_init__(self):
        if not self.sigma > 0:
            raise ValueError(f"Expected `sigma` > 0 voxels. Received: {self.sigma}.")

    def describe(self, image):
        """Return what is compared of the normalised image."""
        return self.saliency.describe(normalise_locally(check_image(image), self.sigma))

    def compare(self, fixed, warped):
        """Return the saliency, ``(batch, *spatial, 1)``."""
        return self.saliency.compare(fixed, warped)

    def get_config(self):
        """Return the constructor arguments."""
        return {
            "saliency": keras.saving.serialize_keras_object(self.saliency),
            "sigma": self.sigma,
        }

    @classmethod
    def from_config(cls, config):
        """Rebuild the kind within, then this one."""
        saliency = keras.saving.deserialize_keras_object(config["saliency"])
        return cls(**{**config, "saliency": saliency})
