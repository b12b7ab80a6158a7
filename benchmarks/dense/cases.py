"""Pairs whose displacement is known, or whose labels tell how well they fit.

* smooth: 256^2, camera and the retina's green channel of scikit-image; u is Gaussian noise smoothed
  by a standard deviation of 12 to 30 px, at most 8 px long; both images with noise of .01.
* stereo: scikit-image's motorcycle, 250 x 370, its disparity as truth.
* mnist: 200 pairs of fives, and 200 of all digits, of MNIST's test set.
* warped brain: 80 x 96 x 112, 2 mm; u of a standard deviation of 8, at most 6 voxels; noise of .01.
* two brains: those of two people, 80 x 96 x 112, labels of 13 structures.

MNIST and brains need the environment variable KREG_DATA.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import scipy.ndimage
import skimage
from skimage.color import rgb2gray
from skimage.transform import resize

#: FreeSurfer's labels, left and right, in the order of the one-hot labels of the other brain.
STRUCTURES = (
    (10, 49),
    (8, 47),
    (4, 43),
    (7, 46),
    (12, 51),
    (11, 50),
    (13, 52),
    (17, 53),
    (18, 54),
    (3, 42),
    (14,),
    (15,),
    (16,),
)
#: Voxels from the edge that the interior leaves out.
MARGIN = 16


class Case(NamedTuple):
    """Images ``(*spatial)``, or ``(n, *spatial)`` for a batch, and what judges a displacement."""

    fixed: np.ndarray
    moving: np.ndarray
    judge: Callable[[np.ndarray], dict]
    #: Whether the first axis counts pairs.
    batch: bool = False


def random_field(generator, shape, sigma: float, largest: float) -> np.ndarray:
    """Return smoothed noise ``(*shape, D)`` whose longest vector is `largest` voxels."""
    noise = [
        scipy.ndimage.gaussian_filter(generator.normal(size=shape), sigma, mode="wrap")
        for _ in shape
    ]
    field = np.stack(noise, -1)
    return (field * largest / np.linalg.norm(field, axis=-1).max()).astype("float32")


def pull_back(image, displacement, order: int = 3) -> np.ndarray:
    """Return image(x + u(x)) by SciPy's splines, edges continued."""
    points = np.indices(displacement.shape[:-1]) + np.moveaxis(displacement, -1, 0)
    return scipy.ndimage.map_coordinates(image, points, order=order, mode="nearest")


def folds(displacement) -> float:
    """Return the percentage of voxels where det(1 + grad u) <= 0, by central differences."""
    axes = tuple(range(displacement.ndim - 1))
    rows = [
        np.stack(np.gradient(displacement[..., i], axis=axes), -1)
        for i in range(displacement.shape[-1])
    ]
    volumes = np.linalg.det(np.stack(rows, -2) + np.eye(len(rows)))
    return float(100 * np.mean(volumes <= 0))


def overlap(a, b) -> float:
    """Return Dice's coefficient of two masks."""
    return float(2 * np.sum(a & b) / (np.sum(a) + np.sum(b)))


def mean_dice(fixed, moving) -> float:
    """Return the mean of Dice's coefficient over the labels but 0 of the fixed map."""
    return float(np.mean([overlap(fixed == i, moving == i) for i in np.unique(fixed) if i]))


def _end_point_errors(displacement, truth, where) -> np.ndarray:
    return np.linalg.norm(displacement - truth, axis=-1)[where]


def smooth(seed: int) -> Case:
    """A known smooth field: even seeds on camera, odd ones on the retina."""
    generator = np.random.default_rng(seed)
    image = skimage.data.retina()[..., 1] if seed % 2 else skimage.data.camera()
    image = resize(image / 255.0, (256, 256), anti_aliasing=True)
    truth = random_field(generator, image.shape, generator.uniform(12, 30), 8)
    noise = 0.01 * generator.normal(size=(2, *image.shape))
    interior = np.zeros(image.shape, bool)
    interior[MARGIN:-MARGIN, MARGIN:-MARGIN] = True

    def judge(displacement):
        return {
            "EPE": float(_end_point_errors(displacement, truth, ...).mean()),
            "EPE interior": float(_end_point_errors(displacement, truth, interior).mean()),
            "folds %": folds(displacement),
        }

    fixed = pull_back(image, truth) + noise[0]
    return Case(fixed.astype("float32"), (image + noise[1]).astype("float32"), judge)


def stereo() -> Case:
    """The motorcycle, left image fixed, at half size, by the mean of what it shrinks.

    Visible is what the right image shows as well: where no nearer point lies on the same spot.
    """
    left, right, disparity = skimage.data.stereo_motorcycle()
    size = tuple(n // 2 for n in disparity.shape)
    fixed, moving = (
        resize(rgb2gray(image), size, anti_aliasing=True).astype("float32")
        for image in (left, right)
    )
    disparity = disparity[: 2 * size[0] : 2, : 2 * size[1] : 2] / 2
    known = np.isfinite(disparity) & (disparity > 0)
    column = np.arange(size[1]) - np.where(known, disparity, 0)
    visible = known & (column >= 0)
    nearest = np.full((size[0], size[1] + 1), -np.inf)
    landing = np.clip(np.rint(column), 0, size[1]).astype(int)
    row = np.broadcast_to(np.arange(size[0])[:, None], size)
    np.maximum.at(nearest, (row[visible], landing[visible]), disparity[visible])
    visible &= disparity >= nearest[row, landing] - 1
    truth = np.stack([np.zeros(size), np.where(known, -disparity, 0)], -1)

    def judge(displacement):
        return {
            "EPE": float(_end_point_errors(displacement, truth, known).mean()),
            "EPE visible": float(_end_point_errors(displacement, truth, visible).mean()),
            "folds %": folds(displacement),
        }

    return Case(fixed, moving, judge)


def _data() -> Path:
    folder = os.environ.get("KREG_DATA")
    if not folder:
        raise FileNotFoundError(
            "Expected the environment variable KREG_DATA to name a folder of data. Received: none."
        )
    return Path(folder)


def correlation(a, b) -> float:
    """Return the normalised cross-correlation of two images."""
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


def mnist(digits, pairs: int = 200) -> Case:
    """Pairs of equal digits, of which those in `digits` take turns."""
    stored = np.load(_data() / "mnist" / "mnist.npz")
    images, labels = stored["x_test"].astype("float32") / 255, stored["y_test"]
    generator = np.random.default_rng(0)
    of_digit = [np.flatnonzero(labels == digit) for digit in digits]
    drawn = [generator.choice(of_digit[n % len(digits)], 2, replace=False) for n in range(pairs)]
    fixed, moving = (images[list(side)] for side in zip(*drawn, strict=True))

    def judge(displacements):
        warped = [pull_back(m, u, 1) for m, u in zip(moving, displacements, strict=True)]
        both = list(zip(fixed, warped, strict=True))
        return {
            "NCC": float(np.mean([correlation(f, w) for f, w in both])),
            "Dice": float(np.mean([overlap(f > 0.5, w > 0.5) for f, w in both])),
            "folds %": float(np.mean([folds(u) for u in displacements])),
        }

    return Case(fixed, moving, judge, batch=True)


def _halved(volume) -> np.ndarray:
    """The mean of 2 x 2 x 2 voxels, largest value 1."""
    a, b, c = (n // 2 for n in volume.shape)
    volume = volume.astype("float32").reshape(a, 2, b, 2, c, 2).mean((1, 3, 5))
    return volume / volume.max()


def _scan() -> tuple[np.ndarray, np.ndarray]:
    """The labelled scan and its map of labels 1 to 13."""
    stored = np.load(_data() / "brain3d" / "voxelmorph_test_scan.npz")
    labels = np.zeros(stored["seg"].shape, int)
    for number, group in enumerate(STRUCTURES, 1):
        labels[np.isin(stored["seg"], group)] = number
    return _halved(stored["vol"]), labels[::2, ::2, ::2]


def warped_brain(seed: int = 3) -> Case:
    """A brain and itself, deformed by a known smooth field."""
    volume, labels = _scan()
    generator = np.random.default_rng(seed)
    truth = random_field(generator, volume.shape, 8, 6)
    fixed, fixed_labels = pull_back(volume, truth), pull_back(labels, truth, 0)
    fixed, moving = (x + 0.01 * generator.normal(size=x.shape) for x in (fixed, volume))
    brain = pull_back(volume, truth) > 0.05

    def judge(displacement):
        return {
            "EPE": float(_end_point_errors(displacement, truth, brain).mean()),
            "Dice": mean_dice(fixed_labels, pull_back(labels, displacement, 0)),
            "folds %": folds(displacement),
        }

    return Case(fixed.astype("float32"), moving.astype("float32"), judge)


def two_brains() -> Case:
    """Two people's brains, roughly aligned, the one with the file of 13 structures fixed."""
    folder = _data() / "brain3d"
    crop = np.s_[48:208, 32:224, 16:240]
    fixed = _halved(np.asarray(nibabel.load(folder / "c2fvit_image_A.nii.gz").dataobj)[crop])
    onehot = nibabel.load(folder / "c2fvit_image_A_seg35_onehot.nii.gz")
    parts = np.asarray(onehot.dataobj)[crop][::2, ::2, ::2]
    fixed_labels = np.where(parts.max(-1) > 0.5, parts.argmax(-1) + 1, 0)
    moving, labels = _scan()

    def judge(displacement):
        return {
            "Dice": mean_dice(fixed_labels, pull_back(labels, displacement, 0)),
            "folds %": folds(displacement),
        }

    return Case(fixed, moving, judge)


GROUPS: dict[str, Callable[[], Iterator[Case]]] = {
    "smooth": lambda: (smooth(100 + seed) for seed in range(10)),
    "stereo": lambda: iter([stereo()]),
    "mnist fives": lambda: iter([mnist([5])]),
    "mnist all": lambda: iter([mnist(range(10))]),
    "warped brain": lambda: iter([warped_brain()]),
    "two brains": lambda: iter([two_brains()]),
}
