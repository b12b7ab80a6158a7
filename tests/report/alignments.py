"""Alignments whose transform is known, without a search."""

import numpy as np
from scipy import ndimage

from kreg.io import Alignment, Grid, Image, Transform
from kreg.ops import centred_frame
from kreg.pairwise import Registration
from kreg.pairwise.images import Image as Source

HISTORY = {
    "stage": ["level 1"] * 4 + ["level 0"] * 3,
    "similarity": [0.1, 0.4, 0.5, 0.55, 0.3, float("nan"), 0.35],
}


def scene(shape, seed=0):
    """Blurred noise from 0 to 255."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return (255 * (noise - noise.min()) / np.ptp(noise)).astype("float32")


def aligned(
    fixed: Image, moving: Image, matrix=None, field=None, *, trusted=True, reason="it was made so"
) -> Alignment:
    """An alignment by a matrix from world to world, the identity where None."""
    matrix = np.eye(fixed.dimensions + 1) if matrix is None else matrix
    transform = Transform(matrix, fixed.grid, moving.grid, field)
    frames = [
        centred_frame(image.shape, image.spacing).astype("float64") for image in (fixed, moving)
    ]
    registration = Registration(
        matrix=frames[1] @ transform.mapping.matrix @ np.linalg.inv(frames[0]),
        similarity_before=0.25,
        similarity_after=0.75,
        overlap=0.875,
        chance=0.125,
        runner_up=0.5,
        trusted=trusted,
        reason=reason,
        history=HISTORY,
        fixed_shape=fixed.shape,
        fixed_spacing=fixed.spacing,
        moving_spacing=moving.spacing,
        moving=Source(moving.array, "moving"),
        field=field,
    )
    return Alignment(fixed, moving, transform, registration)


def pair(shape=(40, 48), **options) -> Alignment:
    """Two different scenes of one shape in pixels."""
    images = [Image(scene(shape, seed), source=f"{seed}.png") for seed in (0, 1)]
    return aligned(*images, **options)


def bent(shape, amplitude=1.5):
    """A smooth displacement, voxels."""
    noise = np.random.default_rng(2).normal(size=(*shape, len(shape)))
    field = ndimage.gaussian_filter(noise, (*[4] * len(shape), 0))
    return (amplitude * field / np.abs(field).max()).astype("float32")


def patient(shape=(10, 24, 20), spacing=(4.0, 1.0, 1.0)) -> Grid:
    """A grid of slices (z, y, x) in mm: x to the left, y to the back, z up."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = spacing
    affine[:3, 3] = -20, -30, -40
    affine[3, 3] = 1
    return Grid(shape, affine, "mm")
