"""A global start: mutual information at every translation at once, over rotations and scales."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.fft
import scipy.ndimage

from kreg.groups import Group, Rigid
from kreg.pairwise.blocks import Frame

#: A score counts overlap with this power: two images also agree where they hardly meet.
OVERLAP_POWER = 0.7


#: The moving image may be this large, in voxels of the coarsest level of the fixed one.
_CANVAS = 2**21


class Candidate(NamedTuple):
    """A transform to start from: fixed to moving points, world, and its score."""

    matrix: np.ndarray
    score: float


class Piece(NamedTuple):
    """One small image with its weights and frame."""

    values: np.ndarray  # spatial
    mask: np.ndarray | None  # spatial
    frame: Frame


@dataclass(frozen=True)
class MultiStart:
    """Tries all translations, by FFT, for each of a set of rotations and scales, at a coarse level.

    The joint histogram of every translation is the cross-correlation of the indicator images of
    the two images' grey-value bins. Candidates score (MI - bias) overlap^0.7; `keep` of them are
    refined by a few scoring steps within the similarity group, `finalists` of these within the
    affine group one level finer, and the best starts the registration.

    Args:
        angles: degrees that are tried, about the centre in 2-D and about each axis in 3-D; where
            None, -50 to 50 by 10 in 2-D and -40 to 40 by 20 in 3-D.
        scales: sizes of the fixed in the moving image that are tried.
        bins: grey-value bins of equal count.
        keep, finalists: how many candidates go on to the two refinements.
        overlap: least share of the fixed image that must fall inside the moving one.
    """

    angles: Sequence[float] | None = None
    scales: Sequence[float] = (0.7, 0.84, 1.0, 1.19, 1.41)
    bins: int = 7
    keep: int = 40
    finalists: int = 8
    overlap: float = 0.25

    def __post_init__(self):
        counts = self.bins >= 2 and self.keep >= 1 and 1 <= self.finalists <= self.keep
        if not counts or not 0 < self.overlap <= 1 or min(self.scales, default=0) <= 0:
            raise ValueError(
                "Expected MultiStart with at least 2 bins, 1 <= finalists <= keep, positive scales "
                f"and 0 < overlap <= 1. Received: {self}."
            )

    def linear_parts(self, dimensions: int, group: Group) -> list[np.ndarray]:
        """Return the rotations times scales, each ``(D, D)``, that a group holds."""
        scales = self.scales if group.size(dimensions) > Rigid().size(dimensions) else (1.0,)
        # Half as many in 3-D: there are three axes, and a search costs far more.
        angles = self.angles
        if angles is None:
            angles = range(-50, 51, 10) if dimensions == 2 else range(-40, 41, 20)
        if group.size(dimensions) == dimensions or not len(angles):
            rotations = [np.eye(dimensions)]
        elif dimensions == 2:
            radians = np.deg2rad(angles)
            rotations = [
                np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in radians
            ]
        else:
            from scipy.spatial.transform import Rotation  # a fifth of a second, for volumes alone

            vectors = {tuple(np.deg2rad(angle) * axis) for angle in angles for axis in np.eye(3)}
            vectors.add((0.0, 0.0, 0.0))
            rotations = [Rotation.from_rotvec(v).as_matrix() for v in sorted(vectors)]
        return [scale * rotation for rotation in rotations for scale in scales]

    def search(self, fixed: Piece, moving: Piece, group: Group) -> list[Candidate]:
        """Return the `keep` best candidates, best first; fewer where fewer places qualify."""
        found: list[Candidate] = []
        labels = _labels(fixed.values, fixed.mask, self.bins)
        for part in self.linear_parts(fixed.values.ndim, group):
            found += self._translations(part, fixed, labels, moving)
        found.sort(key=lambda candidate: -candidate.score)
        return found[: self.keep]

    def _translations(self, part, fixed: Piece, labels, moving: Piece) -> list[Candidate]:
        """Return the best few translations for one linear part."""
        canvas, valid, matrix = _resampled(part, fixed.frame, moving)
        if np.count_nonzero(valid) < self.overlap * np.count_nonzero(labels >= 0):
            return []
        others = _labels(canvas, valid, self.bins)
        shape = [
            scipy.fft.next_fast_len(a + b - 1, real=True)
            for a, b in zip(fixed.values.shape, canvas.shape, strict=True)
        ]
        score = _scores(labels, others, self.bins, shape, self.overlap)
        peaks = (score == scipy.ndimage.maximum_filter(score, 3, mode="wrap")) & (score > 0)
        best = np.argsort(-score[peaks])[:6]
        candidates = []
        for index in np.argwhere(peaks)[best]:
            # Cyclic: what lies beyond the last shift to the right is a shift to the left.
            left = index > np.asarray(shape) - fixed.values.shape
            shift = np.eye(len(shape) + 1)
            shift[:-1, -1] = index - np.where(left, shape, 0)
            world = matrix @ shift @ np.linalg.inv(fixed.frame.matrix())
            candidates.append(Candidate(world, float(score[tuple(index)])))
        return candidates


def _labels(values: np.ndarray, mask: np.ndarray | None, bins: int) -> np.ndarray:
    """The bin of each voxel, bins of equal count; -1 where the mask is empty."""
    valid = np.ones(values.shape, bool) if mask is None else mask > 0.5
    if not valid.any():
        return np.full(values.shape, -1)
    edges = np.quantile(values[valid], np.linspace(0, 1, bins + 1)[1:-1])
    return np.where(valid, np.searchsorted(edges, values), -1)


def _resampled(part: np.ndarray, frame: Frame, moving: Piece):
    """The moving image under a linear part, on a grid of the fixed image's spacing.

    Returns:
        Its values, where they are valid, and the matrix from the grid's voxels to moving world.
    """
    dimensions = len(part)
    half = moving.frame.spacing * (np.asarray(moving.values.shape) - 1) / 2  # world
    middle = moving.frame.origin + half
    extent = np.abs(np.linalg.inv(part)) @ half / frame.spacing  # voxels of the grid
    if np.prod(2 * extent + 1) > _CANVAS:
        raise ValueError(
            "Expected images of comparable extent for a global start: at most "
            f"{_CANVAS} voxels of the fixed image's coarsest level. Received: a moving image of "
            f"{(2 * extent).round().astype(int).tolist()} of them; check the spacings, crop it, or "
            "pass `start=None`."
        )
    shape = 2 * np.ceil(extent).astype(int) + 1
    matrix = np.eye(dimensions + 1)
    matrix[:-1, :-1] = part * frame.spacing
    matrix[:-1, -1] = middle - matrix[:-1, :-1] @ ((shape - 1) / 2)
    to_voxels = np.linalg.inv(moving.frame.matrix()) @ matrix

    def sampled(image, shift, mode):
        linear, offset = to_voxels[:-1, :-1], to_voxels[:-1, -1] + shift
        return scipy.ndimage.affine_transform(
            image, linear, offset, tuple(shape), order=1, mode=mode
        )

    values = sampled(moving.values, 0, "nearest")
    mask = np.ones(moving.values.shape, "float32") if moving.mask is None else moving.mask
    valid = sampled(np.pad(mask, 1), 1, "constant")  # padded: the border itself is inside
    return values, (valid > 0.5).astype("float32"), matrix


def _scores(labels, others, bins: int, shape: Sequence[int], least: float) -> np.ndarray:
    """(MI - bias) (n / n_fixed)^0.7 for every cyclic shift x -> x + t of the moving labels."""
    axes = tuple(range(1, labels.ndim + 1))

    def spectra(array):
        return scipy.fft.rfftn(
            np.stack([array == k for k in range(bins)]).astype("float32"), shape, axes=axes
        )

    fixed, moving = np.conj(spectra(labels)), spectra(others)
    information = np.zeros(shape, "float32")
    in_moving = [np.zeros(shape, "float32") for _ in range(bins)]
    count = np.zeros(shape, "float32")
    for row in fixed:  # one bin of the fixed image at a time: bins, not bins^2, maps in memory
        joint = scipy.fft.irfftn(row * moving, shape, axes=axes)
        np.maximum(joint, 0, out=joint)
        total = joint.sum(0)
        information += _entropy_terms(joint).sum(0) - _entropy_terms(total)
        count += total
        for k in range(bins):
            in_moving[k] += joint[k]
    for marginal in in_moving:
        information -= _entropy_terms(marginal)
    information = (information + _entropy_terms(count)) / np.maximum(count, 1)
    bias = (bins - 1) ** 2 / (2 * np.maximum(count, 1))
    share = count / max(np.count_nonzero(labels >= 0), 1)
    score = np.maximum(information - bias, 0) * share**OVERLAP_POWER
    return np.where(share >= least, score, 0)


def _entropy_terms(count: np.ndarray) -> np.ndarray:
    return count * np.log(count + np.float32(1e-6))
