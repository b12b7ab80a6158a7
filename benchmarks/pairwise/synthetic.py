"""Retina pairs with an exact transform.

Both images sample one continuous scene: the cubic spline through scikit-image's `retina()`
(1411^2), blurred by .7 pixels against aliasing. The fixed image takes it at a centred 512^2 grid,
one source pixel apart, the moving image at that grid mapped by inverse(T). No image is a resampled
copy of the other, so T is exact whatever the spline does between the pixels. All samples lie
within the disc of the fundus, which reaches far beyond the frame; a draw of T that leaves it is
drawn again.

Transforms, about the centre of the frame, each number uniform:

* affine: rotation +-15 degrees, scales of the two axes .9-1.1, shear +-.05, translation +-8 % of
  the width along each axis.
* homography: such an affine over 1 + p x / (half the width), |p_i| <= .035, which moves the
  corners by up to 5 % of the width more.
* large: rotation +-45 degrees, one scale .7-1.4 (uniform in its logarithm), translation +-30 %;
  registered with the affine model.

Variants of the moving image, to which Gaussian noise of .01 is added at the end:

* mono: the scene itself, values / 255.
* inverted: (1 - s)^gamma, gamma .6-1.6, times a smooth bias 1 + .15 (cos a + cos b), each a wave of
  .5-1 periods across the frame.
* remapped: .8 (1 - |2 x - 1|) + .2 x, where x takes the 1st to 99th percentile of the fixed
  channel to 0-1: not monotone.
"""

import functools

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates, spline_filter
from skimage import data

from benchmarks.pairwise.cases import AFFINE, HOMOGRAPHY, Case, Entry, apply, grey, grid_truth

SIZE, NOISE, BLUR = 512, 0.01, 0.7
#: Of the fundus in the source, less a margin for blur and spline.
RADIUS = 685
LARGE = "large"
VARIANTS = ("mono", "inverted", "remapped")
CHANNELS = {"grey": 1, "rgb": 3}
_CENTRE = (SIZE - 1) / 2
_TO_CENTRE = np.array([[1, 0, -_CENTRE], [0, 1, -_CENTRE], [0, 0, 1.0]])


@functools.cache
def _scene(channels: int) -> tuple[np.ndarray, ...]:
    """Spline coefficients of each channel."""
    source = data.retina() / 255.0
    if channels == 1:
        source = grey(source)[..., None]
    return tuple(spline_filter(gaussian_filter(x, BLUR)) for x in np.moveaxis(source, -1, 0))


def render(matrix, channels: int) -> np.ndarray:
    """Return image(y) = scene(inverse(matrix) y), ``(512, 512, channels)``."""
    scene = _scene(channels)
    grid = np.stack(np.meshgrid(*[np.arange(SIZE, dtype=float)] * 2, indexing="ij"), -1)
    points = apply(np.linalg.inv(matrix), grid.reshape(-1, 2)) - _CENTRE
    points = (points + (np.array(scene[0].shape) - 1) / 2).T
    values = [map_coordinates(x, points, order=3, prefilter=False) for x in scene]
    return np.stack(values, -1).reshape(SIZE, SIZE, channels)


def _one_draw(kind: str, random) -> np.ndarray:
    """A matrix on points relative to the centre of the frame."""

    def uniform(limit, size=None):
        return random.uniform(-limit, limit, size)

    large = kind == LARGE
    angle = np.radians(uniform(45 if large else 15))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.eye(3)
    if large:
        matrix[:2, :2] = np.exp(random.uniform(np.log(0.7), np.log(1.4))) * rotation
    else:
        shear = np.array([[1, uniform(0.05)], [0, 1]])
        matrix[:2, :2] = rotation @ shear @ np.diag(random.uniform(0.9, 1.1, 2))
    matrix[:2, 2] = uniform((0.3 if large else 0.08) * SIZE, 2)
    if kind == HOMOGRAPHY:
        matrix[2, :2] = uniform(0.035, 2) / (SIZE / 2)
    return matrix


def draw(kind: str, seed: int) -> np.ndarray:
    """Return the true voxel matrix of a seed: the same for all variants of the images."""
    random = np.random.default_rng([seed, (AFFINE, HOMOGRAPHY, LARGE).index(kind)])
    edge = np.linspace(-_CENTRE, _CENTRE, 65)
    side = np.full_like(edge, _CENTRE)
    border = np.concatenate([np.c_[edge, side], np.c_[edge, -side]])
    border = np.concatenate([border, border[:, ::-1]])
    while True:
        matrix = _one_draw(kind, random)
        if np.linalg.norm(apply(np.linalg.inv(matrix), border), axis=1).max() < RADIUS:
            return np.linalg.inv(_TO_CENTRE) @ matrix @ _TO_CENTRE


def _appearance(variant: str, moving, fixed, random) -> np.ndarray:
    if variant == "inverted":
        rows, columns = np.meshgrid(*[np.linspace(0, 1, SIZE)] * 2, indexing="ij")
        bias = np.ones((SIZE, SIZE))
        for _ in range(2):
            frequency, angle, phase = random.uniform([0.5, 0, 0], [1, 2 * np.pi, 2 * np.pi])
            along = rows * np.cos(angle) + columns * np.sin(angle)
            bias += 0.15 * np.cos(2 * np.pi * frequency * along + phase)
        return (1 - np.clip(moving, 0, 1)) ** random.uniform(0.6, 1.6) * bias[..., None]
    if variant == "remapped":
        low, high = np.percentile(fixed, [1, 99], axis=(0, 1))
        x = (moving - low) / (high - low)
        return 0.8 * (1 - np.abs(2 * x - 1)) + 0.2 * x
    return moving


def make(kind: str, variant: str, colour: str, seed: int) -> Case:
    """Return one pair."""
    channels = CHANNELS[colour]
    truth = draw(kind, seed)
    fixed = render(np.eye(3), channels)
    random = np.random.default_rng([seed, 9, VARIANTS.index(variant), channels])
    moving = _appearance(variant, render(truth, channels), fixed, random)
    moving = moving + NOISE * random.standard_normal(moving.shape)
    return Case(
        model=HOMOGRAPHY if kind == HOMOGRAPHY else AFFINE,
        fixed=fixed.astype("float32"),
        moving=moving.astype("float32"),
        truth=grid_truth(truth, fixed.shape),
        limit=1.0,
    )


def entries(seeds) -> list[Entry]:
    """Return every synthetic pair of these seeds."""
    kinds = [(kind, colour) for kind in (AFFINE, HOMOGRAPHY) for colour in CHANNELS]
    found = []
    for kind, colour in [*kinds, (LARGE, "grey")]:
        for variant in VARIANTS:
            group = f"synthetic/{kind}/{variant}/{colour}"
            found += [
                Entry(group, f"{group}/{s}", functools.partial(make, kind, variant, colour, s))
                for s in seeds
            ]
    return found
